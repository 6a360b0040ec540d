# SPDX-License-Identifier: MIT
"""The low-latency calls of the C core's buffer: arrays and numbers to its structures."""

cimport cython
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset

from gen.params cimport (
    EP_LL_CAST_UE8M0, EP_LL_GROUP, EP_LL_REDUCE_EXACT, EP_LL_REDUCE_RANK,
)

from deepep_ptx._arguments cimport Launch
from deepep_ptx._array cimport Array, Form
from deepep_ptx._buffer cimport CoreBuffer, low_latency_bytes, low_latency_smem
from deepep_ptx._calls cimport fill
from deepep_ptx._core cimport (
    ep_ll_args, ep_ll_combine_args, ep_ll_dispatch_args, ep_ll_mask_args,
)
from deepep_ptx._executor cimport ep_dptr_t
from deepep_ptx._mappings cimport Mappings

from deepep_ptx.arrays.dtypes import BFLOAT16, FLOAT32, INT32, INT64

GROUP = EP_LL_GROUP             # values of a row that share an FP8 scale
PACKED_SCALES = 4               # exponents in an int32
REDUCTIONS = {"exact": EP_LL_REDUCE_EXACT, "rank": EP_LL_REDUCE_RANK}


@cython.final
cdef class Shape:
    """What all low-latency calls of a kind have in common, equal on all ranks.

    num_ranks: of the group.  max_tokens: of any rank.  hidden: values of a row.  reduce: one of
    REDUCTIONS' numbers.  word_tokens: of a rank with more tokens, a combine's rows or sums cross as
    they are, behind flags, and not as words.
    """

    def __cinit__(self, uint32_t num_ranks, uint32_t max_tokens, uint32_t hidden,
                  uint32_t num_experts, uint32_t num_topk, uint32_t reduce, uint32_t word_tokens):
        self.num_ranks = num_ranks
        self.forms = {}
        self.shape.max_tokens = max_tokens
        self.shape.hidden = hidden
        self.shape.num_experts = num_experts
        self.shape.num_topk = num_topk
        self.shape.reduce = reduce
        self.shape.word_tokens = word_tokens

    @property
    def nbytes(self):
        """Bytes of low-latency memory that its calls take on each rank."""
        return low_latency_bytes(&self.shape, self.num_ranks)

    @property
    def smem(self):
        """Bytes of dynamic shared memory that a dispatch takes."""
        return low_latency_smem(&self.shape)

    cdef tuple rows(self):
        # Shape of the rows that a rank receives and gives back.
        return (self.shape.num_experts // self.num_ranks, self.num_ranks * self.shape.max_tokens,
                self.shape.hidden)

    cdef tuple results(self, uint32_t cast, fp8):
        # `Form`s of a dispatch's arrays: recv_count, src_info, layout_range, places, recv_x and,
        # with a cast, recv_scales.
        cdef tuple forms = self.forms.get((cast, fp8))
        cdef uint32_t groups = self.shape.hidden // EP_LL_GROUP
        if forms is None:
            local, slots, _ = rows = self.rows()
            places = slots * self.shape.num_topk + self.num_ranks
            forms = (Form((local,), INT32), Form((local, slots), INT32),
                     Form((local, self.num_ranks), INT64), Form((places,), INT32),
                     Form(rows, fp8 if cast else BFLOAT16))
            if cast & EP_LL_CAST_UE8M0:
                forms += (Form((local, slots, groups // PACKED_SCALES), INT32, True),)
            elif cast:
                forms += (Form((local, slots, groups), FLOAT32, True),)
            self.forms[cast, fp8] = forms
        return forms


@cython.final
cdef class Sent:
    """A dispatch: its arrays, which must stay until it has ended.

    x bfloat16 [T, H], topk_idx [T, K]; results recv_x [L, R * M, H], recv_scales [L, R * M, groups]
    or None, recv_count int32 [L], src_info int32 [L, R * M], layout_range int64 [L, R]; for combine
    places int32: [R, M, K], the row of each rank's choice here, or -1, and [R], tokens of each
    rank.  recv_stats int32 [L], wait_stats int64 [R]: what is added to, or None.  cast: CAST_*.
    """


@cython.final
cdef class Combined:
    """A combine: its arrays, which must stay until it has ended.

    x bfloat16 [L, R * M, H], rows x_row_bytes apart; topk_idx and topk_weights [T, K]; out
    bfloat16 [T, H]; places: of the dispatch, whose call number is `handle`.  wait_stats int64 [R]:
    what is added to, or None.  logfmt: rows cross in LogFMT-10.
    """


cdef void fill_common(ep_ll_args *args, Shape shape, Array topk_idx, uint32_t phases,
                      Launch launch) noexcept:
    fill(&args.call, launch)
    args.shape = shape.shape
    args.num_tokens = topk_idx.shape[0]
    args.topk_idx_bytes = topk_idx.itemsize
    args.phases = phases


cdef ep_dptr_t tokens_behind(ep_dptr_t rows_of, Shape shape) noexcept:
    # Of places: how many tokens each rank has.
    return rows_of + sizeof(int32_t) * (<uint64_t>shape.num_ranks * shape.shape.max_tokens
                                        * shape.shape.num_topk)


cdef object dispatch(CoreBuffer core, Shape shape, Sent call, uint32_t phases, Launch launch,
                     uint64_t *number):
    cdef ep_ll_dispatch_args args
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
        args.rows_of = maps.add(call.places, True, "rows of tokens")
        args.source_tokens = tokens_behind(args.rows_of, shape)
        args.recv_stats = maps.add(call.recv_stats, True, "cumulative_local_expert_recv_stats")
        args.wait_stats = maps.add(call.wait_stats, True, "dispatch_wait_recv_cost_stats")
        core.ll_dispatch_with(&args, number)
        return maps.until_end(launch)


cdef object combine(CoreBuffer core, Shape shape, Combined call, uint32_t phases, Launch launch):
    cdef ep_ll_combine_args args
    cdef Mappings maps = Mappings(core)
    memset(&args, 0, sizeof(args))
    fill_common(&args.ll, shape, call.topk_idx, phases, launch)
    args.x_row_bytes = call.x_row_bytes
    args.handle = call.handle
    args.logfmt = call.logfmt
    with maps:
        args.x = maps.add(call.x, False, "x")
        args.topk_idx = maps.add(call.topk_idx, False, "topk_idx")
        args.topk_weights = maps.add(call.topk_weights, False, "topk_weights")
        args.out = maps.add(call.out, True, "combined_x")
        args.rows_of = maps.add(call.places, False, "rows of tokens")
        args.source_tokens = tokens_behind(args.rows_of, shape)
        args.wait_stats = maps.add(call.wait_stats, True, "combine_wait_recv_cost_stats")
        core.ll_combine_with(&args)
        return maps.until_end(launch)


def mask(CoreBuffer core not None, ranks, Array status, Launch launch not None):
    """Masks these ranks, and tells in `status`, int32 [R] or None, which are masked then.

    Returns what must stay until that has been done, or None.
    """
    cdef ep_ll_mask_args args
    cdef Mappings maps = Mappings(core)
    cdef uint64_t rank
    memset(&args, 0, sizeof(args))
    fill(&args.call, launch)
    for rank in ranks:
        args.mask |= <uint64_t>1 << rank
    with maps:
        args.status = maps.add(status, True, "mask_status")
        core.ll_mask_with(&args)
        return maps.until_end(launch)
