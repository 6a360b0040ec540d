# SPDX-License-Identifier: MIT
"""The calls of the C core's buffer: arrays and numbers to its structures, and its results back."""

cimport cython
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset

from gen.params cimport EP_MODE_PULL_WEIGHTS, EP_MODE_PULL_X

from deepep_ptx._arguments cimport Launch, Placement, Rows
from deepep_ptx._array cimport IN_HOST_MEMORY, Array
from deepep_ptx._buffer cimport CoreBuffer
from deepep_ptx._core cimport (
    EP_CALL_DETACHED,
    EP_CALL_WAIT,
    ep_call,
    ep_combine_args,
    ep_copies,
    ep_dispatch_args,
    ep_dispatch_result,
    ep_extent,
    ep_layout_args,
)
from deepep_ptx._errors cimport EP_KERNEL_DISPATCH
from deepep_ptx._executor cimport ep_dptr_t
from deepep_ptx._mappings cimport Mappings
from deepep_ptx._slots cimport Slot


@cython.final
cdef class CoreCalls(CoreBuffer):
    """One rank's buffer and its calls.  Arrays are C-contiguous and in memory of the executor, or
    in host memory, checked by the caller."""

    # Each call returns what must stay until it has ended, None where it has.

    def layout(self, Array topk_idx, Array rank_counts, Array expert_counts, Array in_rank,
               Launch launch not None):
        """Fill rank_counts int32 [R], expert_counts int32 [E] and in_rank bool [T, R]."""
        cdef ep_layout_args args
        cdef Mappings maps = Mappings(self)
        memset(&args, 0, sizeof(args))
        fill(&args.call, launch)
        args.num_tokens, args.num_topk = topk_idx.shape
        args.num_experts = expert_counts.shape[0]
        args.topk_idx_bytes = topk_idx.itemsize
        with maps:
            args.topk_idx = maps.add(topk_idx, False, "topk_idx")
            args.rank_counts = maps.add(rank_counts, True, "num_tokens_per_rank")
            args.expert_counts = maps.add(expert_counts, True, "num_tokens_per_expert")
            args.in_rank = maps.add(in_rank, True, "is_token_in_rank")
            self.layout_with(&args)
            return maps.until_end(launch)

    def dispatch(self, Rows x not None, Array topk_idx, Array topk_weights, Placement at not None,
                 uint32_t num_worst_tokens, uint32_t of_row, uint32_t combine_hidden,
                 Launch launch not None, Copies copies=None, uint32_t granule=0, queued=None):
        """Send x and, unless None, top-k.  Returns (`Received`, what must stay).

        With at.handle 0 the layout is taken from `at`, whose pos and rank_prefix are filled; else
        these are an earlier dispatch's, and the result has at.rows rows.  of_row: bytes of landing
        for each row that a combine with its handle may push.  combine_hidden: what the caller
        said of it, equal on all ranks.  copies: what is copied out of the
        slot, in the same order of the stream.  granule: the slot is a multiple of so many bytes,
        where there is room for that.  queued(address, nbytes): called before the host waits for the
        totals, with the extent whose first bytes are to be the slot; returns how many of them shall
        stay.
        """
        cdef ep_dispatch_args args
        cdef ep_dispatch_result result
        cdef Mappings maps = Mappings(self)
        memset(&args, 0, sizeof(args))
        fill(&args.call, launch)
        self.check_stage_bytes(EP_KERNEL_DISPATCH, launch.stage_bytes)
        args.num_tokens = x.array.shape[0]
        args.hidden_bytes = x.array.shape[1] * x.array.itemsize
        args.dtype = x.code
        if x.scales is not None:
            args.scale_bytes = x.scale_bytes
            args.scale_width = x.scale_width
            args.scale_row_stride, args.scale_stride = x.strides
        if topk_idx is not None:
            args.num_topk = topk_idx.shape[1]
            args.topk_idx_bytes = topk_idx.itemsize
        args.num_experts = at.num_experts
        args.handle = at.handle
        args.rows = at.rows if at.handle else num_worst_tokens
        args.worst_rows = num_worst_tokens
        args.landing_bytes = of_row
        args.combine_hidden = combine_hidden
        args.granule = granule
        with maps:
            args.x = maps.add(x.array, False, "x")
            args.scales = maps.add_span(x.scales, x.span, "x[1]")
            args.topk_idx = maps.add(topk_idx, False, "topk_idx")
            args.topk_weights = maps.add(topk_weights, False, "topk_weights")
            args.in_rank = maps.add(at.in_rank, False, "is_token_in_rank")
            args.rank_counts = maps.add(at.rank_counts, False, "num_tokens_per_rank")
            args.expert_counts = maps.add(at.expert_counts, False, "num_tokens_per_expert")
            args.pos = maps.add(at.pos, at.handle == 0, "pos")
            args.rank_prefix = maps.add(at.rank_prefix, at.handle == 0, "rank_prefix_matrix")
            fill_copies(&args.copies, copies, args.rank_prefix, maps)
            if queued is not None:
                args.queued = call_queued
                failures = []
                asked = queued, failures
                args.what = <void *>asked
            self.dispatch_with(&args, &result)
            received = Received()
            received.rows = result.rows
            received.number = result.number
            received.landed = result.landed
            received.scales = result.slot.scales
            received.topk_idx = result.slot.topk_idx
            received.topk_weights = result.slot.topk_weights
            received.src_idx = result.slot.src_idx
            if args.rows == 0 and at.handle == 0:
                received.expert_counts = [
                    <int32_t>result.expert_counts[i]
                    for i in range(args.num_experts // self.num_ranks)
                ]
            if result.block != NULL:
                received.slot = Slot.wrap(self, result.block, launch.stream)
            if queued is not None and failures:
                raise failures[0]
            return received, maps.until_end(launch)

    def copy_out(self, Slot slot not None, uint32_t slot_rows, Copies copies not None,
                 Array rank_prefix not None, Launch launch not None):
        """Copies behind the dispatch that has just been called; returns what must stay.

        slot: its, for slot_rows rows.  rank_prefix, launch: as it had them.
        """
        cdef ep_call call
        cdef ep_copies args
        cdef Mappings maps = Mappings(self)
        memset(&call, 0, sizeof(call))
        memset(&args, 0, sizeof(args))
        fill(&call, launch)
        with maps:
            fill_copies(&args, copies, maps.add(rank_prefix, False, "rank_prefix_matrix"), maps)
            self.copy_out_with(&call, &args, slot.block, slot_rows)
            return maps.until_end(launch)

    def combine(self, Array x, bint pull_x, Array topk_weights, Array bias0, Array bias1,
                Array out, Array out_weights, Placement at not None, uint32_t max_ranks,
                bint zero_copy, Launch launch not None):
        """Reduce x [n, H] bf16 and, unless None, topk_weights float32 [n, K] into out, out_weights.

        pull_x: what `is_pulled` said of x.  bias0, bias1: None or [T, H].  at: of the dispatch,
        whose tokens went to max_ranks ranks at most.
        """
        cdef ep_combine_args args
        cdef ep_extent where
        cdef Mappings maps = Mappings(self)
        memset(&args, 0, sizeof(args))
        fill(&args.call, launch)
        args.num_tokens = at.pos.shape[0]
        args.hidden_bytes = x.shape[1] * x.itemsize
        args.num_topk = 0 if topk_weights is None else topk_weights.shape[1]
        args.max_ranks = max_ranks
        args.handle = at.handle
        memset(&where, 0, sizeof(where))
        if pull_x and self.find_pulled(x, True, &where):
            args.mode |= EP_MODE_PULL_X
            args.x_segment, args.x_offset, args.x_bytes = where.segment, where.offset, where.bytes
        memset(&where, 0, sizeof(where))
        if self.find_pulled(topk_weights, zero_copy, &where):
            args.mode |= EP_MODE_PULL_WEIGHTS
            args.weights_segment, args.weights_offset = where.segment, where.offset
            args.weights_bytes = where.bytes
        with maps:
            if not args.mode & EP_MODE_PULL_X:
                args.x = maps.add(x, False, "x")
            if not args.mode & EP_MODE_PULL_WEIGHTS:
                args.weights = maps.add(topk_weights, False, "topk_weights")
            args.bias0 = maps.add(bias0, False, "bias[0]")
            args.bias1 = maps.add(bias1, False, "bias[1]")
            args.out = maps.add(out, True, "combined_x")
            args.out_weights = maps.add(out_weights, True, "combined_topk_weights")
            args.pos = maps.add(at.pos, False, "pos")
            args.rank_prefix = maps.add(at.rank_prefix, False, "rank_prefix_matrix")
            self.combine_with(&args)
            return maps.until_end(launch)

    def is_pulled(self, Array array, bint zero_copy):
        """Whether a combine leaves `array` where it is, for the other ranks to read."""
        cdef ep_extent where
        return self.find_pulled(array, zero_copy, &where)

    cdef bint find_pulled(self, Array array, bint zero_copy, ep_extent *where) except -1:
        # Nothing to read counts as pulled: nobody has to wait for a push.
        if array is None or array.nbytes == 0:
            return True
        return zero_copy and self.find(array.address, array.nbytes, where)

    def reserve(self, uint64_t nbytes, size_t stream, uint64_t granule=0):
        """A `Slot` of nbytes for a caller's array on `stream`, which then comes after all calls; of
        a multiple of `granule`, if that is not 0."""
        if granule:
            nbytes = (nbytes + granule - 1) // granule * granule
        cdef Slot slot = Slot.wrap(self, self.take(nbytes, stream), stream)
        self.written(&slot.where, nbytes)
        return slot

    def count_received(self, Array rank_prefix not None):
        """Rows that this rank received by the dispatch whose matrix that is, -1 if it was refused.
        Waits for the calls made so far."""
        cdef uint64_t address = rank_prefix.address + rank_prefix.itemsize * (
            (self.num_ranks - 1) * self.num_ranks + self.rank)
        self.settle()
        if rank_prefix.device == IN_HOST_MEMORY:
            return (<const int32_t *><size_t>address)[0]
        return int(self.executor.read(address, sizeof(int32_t), self.stream).view("int32")[0])


cdef void fill(ep_call *call, Launch launch) noexcept:
    call.caller_stream = <void *>launch.stream
    call.previous = NULL if launch.previous is None else launch.previous.handle
    call.graph = <void *>launch.graph
    call.started = NULL if launch.started is None else launch.started.handle
    call.num_sms = launch.num_sms
    call.flags = ((EP_CALL_WAIT if launch.wait else 0)
                  | (EP_CALL_DETACHED if launch.detached else 0))
    call.stages = launch.stages
    call.stage_bytes = launch.stage_bytes


cdef uint64_t call_queued(void *what, uint64_t view, uint64_t nbytes) noexcept with gil:
    # The call goes on whatever comes of it; its caller raises it.
    cdef tuple asked = <tuple>what
    try:
        return asked[0](view, nbytes)
    except BaseException as error:
        asked[1].append(error)
        return 0


@cython.final
cdef class Copies:
    """What is copied out of a slot, for at most `rows` rows.

    arrays: for each array of a slot (x, scales, topk_idx, topk_weights, src_idx) None, or (`Array`
    to fill or None, bytes of a row, whether rows past the total are there too).
    """

    cdef readonly uint32_t rows
    cdef readonly list arrays

    def __init__(self, uint32_t rows, list arrays not None):
        self.rows = rows
        self.arrays = arrays


cdef int fill_copies(ep_copies *out, Copies copies, ep_dptr_t rank_prefix, Mappings maps) except -1:
    cdef Array array
    if copies is None:
        return 0
    out.rows = copies.rows
    out.rank_prefix = rank_prefix
    for i, entry in enumerate(copies.arrays):
        if entry is None:
            continue
        array, out.copy[i].row_bytes, out.copy[i].whole = entry
        out.copy[i].dst = maps.add(array, True, "result")
    return 0


cdef class Received:
    """What dispatch found.

    rows: of the result.  slot: None without rows, or without room for them.  scales, topk_idx,
    topk_weights, src_idx: where they begin in it, in bytes; x is at 0.  landed: the slot is to be
    copied out before the next call.
    expert_counts: tokens of each local expert, [] unless the host waited for the totals.
    number: of the call, for handles.
    """

    cdef readonly uint32_t rows
    cdef readonly uint64_t number
    cdef readonly bint landed
    cdef readonly uint64_t scales
    cdef readonly uint64_t topk_idx
    cdef readonly uint64_t topk_weights
    cdef readonly uint64_t src_idx
    cdef readonly list expert_counts
    cdef readonly object slot

    def __cinit__(self):
        self.expert_counts = []

    @property
    def offsets(self):
        """Of x, scales, topk_idx, topk_weights and src_idx."""
        return 0, self.scales, self.topk_idx, self.topk_weights, self.src_idx
