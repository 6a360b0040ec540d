# SPDX-License-Identifier: MIT
"""The low-latency calls of the C core's buffer: arrays and numbers to its structures."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from gen.params cimport (
    EP_LL_CAST_FP8, EP_LL_CAST_ROUND, EP_LL_CAST_UE8M0, EP_LL_GROUP, EP_LL_RECEIVE,
    EP_LL_REDUCE_EXACT, EP_LL_REDUCE_RANK, EP_LL_SEND,
)

from deepep_ptx._arguments cimport Launch
from deepep_ptx._array cimport Array
from deepep_ptx._buffer cimport CoreBuffer, low_latency_bytes, low_latency_smem
from deepep_ptx._calls cimport fill
from deepep_ptx._core cimport ep_ll_args, ep_ll_combine_args, ep_ll_dispatch_args
from deepep_ptx._mappings cimport Mappings

CAST_FP8, CAST_ROUND, CAST_UE8M0 = EP_LL_CAST_FP8, EP_LL_CAST_ROUND, EP_LL_CAST_UE8M0
GROUP = EP_LL_GROUP             # values of a row that share an FP8 scale
SEND, RECEIVE = EP_LL_SEND, EP_LL_RECEIVE
REDUCTIONS = {"exact": EP_LL_REDUCE_EXACT, "rank": EP_LL_REDUCE_RANK}


@cython.final
cdef class Shape:
    """What all low-latency calls of a kind have in common, equal on all ranks.

    max_tokens: of any rank.  hidden: values of a row.  reduce: one of REDUCTIONS' numbers.
    word_tokens: of a rank with more tokens, a combine's rows or sums cross as they are, behind
    flags, and not as words.
    """

    def __cinit__(self, uint32_t max_tokens, uint32_t hidden, uint32_t num_experts,
                  uint32_t num_topk, uint32_t reduce, uint32_t word_tokens):
        self.shape.max_tokens = max_tokens
        self.shape.hidden = hidden
        self.shape.num_experts = num_experts
        self.shape.num_topk = num_topk
        self.shape.reduce = reduce
        self.shape.word_tokens = word_tokens

    def nbytes(self, uint32_t num_ranks):
        """Bytes of low-latency memory that its calls take on each of so many ranks."""
        return low_latency_bytes(&self.shape, num_ranks)

    @property
    def smem(self):
        """Bytes of dynamic shared memory that a dispatch takes."""
        return low_latency_smem(&self.shape)


@cython.final
cdef class Sent:
    """A dispatch: its arrays, which must stay until it has ended.

    x bfloat16 [T, H], topk_idx [T, K]; results recv_x [L, R * M, H], recv_scales [L, groups, R * M]
    or None, recv_count int32 [L], src_info int32 [L, R * M], layout_range int64 [L, R]; for combine
    rows_of int32 [R, M, K], source_tokens int32 [R].  recv_stats int32 [L], wait_stats int64 [R]:
    what is added to, or None.  cast: CAST_*.
    """

    cdef public Array x, topk_idx, recv_x, recv_scales, recv_count, src_info, layout_range
    cdef public Array rows_of, source_tokens, recv_stats, wait_stats
    cdef public uint32_t cast


@cython.final
cdef class Combined:
    """A combine: its arrays, which must stay until it has ended.

    x bfloat16 [L, R * M, H], rows x_row_bytes apart; topk_idx and topk_weights [T, K]; out
    bfloat16 [T, H]; rows_of, source_tokens: of the dispatch, whose call number is `handle`.
    wait_stats int64 [R]: what is added to, or None.
    """

    cdef public Array x, topk_idx, topk_weights, out, rows_of, source_tokens, wait_stats
    cdef public uint32_t x_row_bytes
    cdef public uint64_t handle


cdef void fill_common(ep_ll_args *args, Shape shape, Array topk_idx, uint32_t phases,
                      Launch launch) noexcept:
    fill(&args.call, launch)
    args.shape = shape.shape
    args.num_tokens = topk_idx.shape[0]
    args.topk_idx_bytes = topk_idx.itemsize
    args.phases = phases


def dispatch(CoreBuffer core not None, Shape shape not None, Sent call not None, uint32_t phases,
             Launch launch not None):
    """Returns (number of the call, what must stay until it has ended or None)."""
    cdef ep_ll_dispatch_args args
    cdef uint64_t number = 0
    cdef Mappings maps = Mappings(core)
    memset(&args, 0, sizeof(args))
    fill_common(&args.ll, shape, call.topk_idx, phases, launch)
    args.cast = call.cast
    with maps:
        args.x = maps.add(call.x, False, "x")
        args.topk_idx = maps.add(call.topk_idx, False, "topk_idx")
        args.recv_x = maps.add(call.recv_x, True, "recv_x")
        args.recv_scales = maps.add(call.recv_scales, True, "recv_scales")
        args.recv_count = maps.add(call.recv_count, True, "recv_count")
        args.src_info = maps.add(call.src_info, True, "handle[0]")
        args.layout_range = maps.add(call.layout_range, True, "handle[1]")
        args.rows_of = maps.add(call.rows_of, True, "rows of tokens")
        args.source_tokens = maps.add(call.source_tokens, True, "tokens of ranks")
        args.recv_stats = maps.add(call.recv_stats, True, "cumulative_local_expert_recv_stats")
        args.wait_stats = maps.add(call.wait_stats, True, "dispatch_wait_recv_cost_stats")
        core.ll_dispatch_with(&args, &number)
        return number, maps.until_end(launch)


def combine(CoreBuffer core not None, Shape shape not None, Combined call not None, uint32_t phases,
            Launch launch not None):
    """Returns what must stay until the call has ended, or None."""
    cdef ep_ll_combine_args args
    cdef Mappings maps = Mappings(core)
    memset(&args, 0, sizeof(args))
    fill_common(&args.ll, shape, call.topk_idx, phases, launch)
    args.x_row_bytes = call.x_row_bytes
    args.handle = call.handle
    with maps:
        args.x = maps.add(call.x, False, "x")
        args.topk_idx = maps.add(call.topk_idx, False, "topk_idx")
        args.topk_weights = maps.add(call.topk_weights, False, "topk_weights")
        args.out = maps.add(call.out, True, "combined_x")
        args.rows_of = maps.add(call.rows_of, False, "rows of tokens")
        args.source_tokens = maps.add(call.source_tokens, False, "tokens of ranks")
        args.wait_stats = maps.add(call.wait_stats, True, "combine_wait_recv_cost_stats")
        core.ll_combine_with(&args)
        return maps.until_end(launch)
