# SPDX-License-Identifier: MIT
"""The C core's buffer as Python objects: lifetimes, array mappings, results."""

import contextlib

cimport cython
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memset

from gen.params cimport (
    EP_FOREVER,
    EP_MAX_CHOICE_ROWS,
    EP_MAX_CTAS,
    EP_MAX_HIDDEN,
    EP_MAX_RANKS,
    EP_MAX_SEGMENTS,
    EP_MAX_SMEM,
    EP_MAX_TOKENS,
    EP_MAX_TOPK,
    EP_MIN_STAGES,
    EP_MODE_PULL_WEIGHTS,
    EP_MODE_PULL_X,
    EP_ROW_ALIGN,
    EP_SLOT_ALIGN,
    EP_STATUS_RECORDS,
    ep_status_record,
)

from deepep_ptx._arguments cimport Launch, Placement, Rows
from deepep_ptx._array cimport IN_HOST_MEMORY, Array
from deepep_ptx._errors cimport (
    EP_KERNEL_DISPATCH,
    EP_NUM_KERNELS,
    Report,
    check,
    ep_kernels,
)
from deepep_ptx._executor cimport EP_ERR_STATUS, EP_HANDLE_BYTES, Executor, ep_dptr_t

from deepep_ptx._errors import KERNELS
from deepep_ptx.errors import DeepEPError

# Limits of params.h, for argument checks.
FOREVER = EP_FOREVER
MAX_CHOICE_ROWS = EP_MAX_CHOICE_ROWS
MAX_CTAS = EP_MAX_CTAS
MAX_HIDDEN = EP_MAX_HIDDEN
MAX_RANKS = EP_MAX_RANKS
MAX_SEGMENTS = EP_MAX_SEGMENTS
MAX_SMEM = EP_MAX_SMEM
MAX_TOKENS = EP_MAX_TOKENS
MAX_TOPK = EP_MAX_TOPK
MIN_STAGES = EP_MIN_STAGES
ROW_ALIGN = EP_ROW_ALIGN
SLOT_ALIGN = EP_SLOT_ALIGN


def param_bytes(str kernel not None):
    """Bytes of a kernel's parameter block in this build."""
    return ep_kernels[<uint32_t>KERNELS[kernel]].param_bytes


@cython.no_gc_clear     # __dealloc__ uses the executor
cdef class CoreBuffer:
    """One rank's buffer.  Arrays are C-contiguous and in memory of the executor, or in host memory,
    checked by the caller.

    executor: of this rank.  timeout_ns: limit of each wait of a kernel, FOREVER = none.
    grows: the arena grows where a call finds no room.
    """

    def __cinit__(self, Executor executor not None, uint32_t rank, uint32_t num_ranks,
                  uint64_t timeout_ns, bint grows=False):
        cdef int code
        self.executor = executor
        self.rank = rank
        self.num_ranks = num_ranks
        self.kernels = [None] * EP_NUM_KERNELS
        self.symbols = [None] * EP_NUM_KERNELS
        self.views = {}
        self.captured = []
        with nogil:
            code = ep_buffer_create(executor.table, rank, num_ranks, timeout_ns, grows, &self.core)
        check(code, executor)

    def __dealloc__(self):
        if self.core != NULL:
            with nogil:
                ep_buffer_destroy(self.core)

    cdef int raise_for(self, int code) except -1:
        cdef Report report
        report.records = self.core.status
        report.num_records = self.core.num_status
        report.rank = self.rank
        report.grows = self.core.grows
        report.crowded = self.core.crowded
        return check(code, self.executor, &report)

    # -- construction and growth ---------------------------------------------------------------

    def load_kernel(self, str name not None, dict variant not None, text):
        """Load a row of the table of variants, rendered as `text`, and use it in the place `name`.

        The row is one that runs here: see `select.choose`.
        """
        cdef uint32_t index = KERNELS[name]
        cdef uint32_t param_bytes = variant["param_bytes"]
        cdef str symbol = variant["symbol"]
        cdef ep_loaded loaded
        if param_bytes != ep_kernels[index].param_bytes:
            raise ImportError(f"{symbol}: the rendered PTX takes {param_bytes} parameter bytes, "
                              f"this build {ep_kernels[index].param_bytes}; build again")
        kernel = self.executor.load(symbol, text, param_bytes)
        self.kernels[index] = kernel
        self.symbols[index] = symbol
        loaded.handle = <void *><size_t>kernel.handle
        loaded.threads = variant["threads"]
        loaded.smem = variant["smem"]
        loaded.smem_per_rank = variant["smem_per_rank"]
        loaded.max_smem = min(EP_MAX_SMEM, self.executor.cta_smem - variant["static_smem"])
        loaded.rings = variant["rings"]
        loaded.stages = variant["stages"]
        loaded.stage_bytes = variant["stage_bytes"]
        ep_buffer_set_kernel(self.core, index, &loaded)

    def heap_handle(self):
        """The heap's handle, for the other ranks' `open_heap`."""
        cdef char handle[EP_HANDLE_BYTES]
        cdef int code
        memset(handle, 0, EP_HANDLE_BYTES)
        with nogil:
            code = ep_buffer_heap_handle(self.core, handle)
        check(code, self.executor)
        return handle[:EP_HANDLE_BYTES]

    def open_heap(self, uint32_t rank, bytes handle not None):
        """Map rank's heap."""
        self.check_peer(rank, handle)
        cdef const char *c_handle = handle
        cdef int code
        with nogil:
            code = ep_buffer_open_heap(self.core, rank, c_handle)
        check(code, self.executor)

    def add_segment(self, uint64_t nbytes):
        """Append `nbytes` to the arena; returns (index, handle)."""
        cdef char handle[EP_HANDLE_BYTES]
        cdef uint32_t index = 0
        cdef ep_dptr_t base = 0
        cdef int code
        memset(handle, 0, EP_HANDLE_BYTES)
        with nogil:
            code = ep_buffer_add_segment(self.core, nbytes, &index, &base, handle)
        check(code, self.executor)
        view = self.executor.host_view(base, nbytes)
        if view is not None:        # else arrays show device addresses
            self.views[index] = view
            ep_buffer_set_view(self.core, index, view.__array_interface__["data"][0])
        return index, handle[:EP_HANDLE_BYTES]

    def idle_segments(self):
        """Bit i of the result: nothing of segment i is in use."""
        cdef uint32_t idle
        with nogil:
            idle = ep_buffer_idle_segments(self.core)
        return idle

    def unmap_segment(self, uint32_t index):
        """Unmap segment `index` of all peers; after a barrier, `drop_segment`."""
        with nogil:
            ep_buffer_unmap_segment(self.core, index)

    def drop_segment(self, uint32_t index):
        """Free own segment `index`, of which nothing is in use."""
        self.views.pop(index, None)
        with nogil:
            ep_buffer_drop_segment(self.core, index)

    def open_segment(self, uint32_t rank, uint32_t index, bytes handle not None):
        """Map segment `index` of rank's arena."""
        self.check_peer(rank, handle)
        if index >= EP_MAX_SEGMENTS:
            raise ValueError(f"index: must be in [0, {EP_MAX_SEGMENTS - 1}], got {index}")
        cdef const char *c_handle = handle
        cdef int code
        with nogil:
            code = ep_buffer_open_segment(self.core, rank, index, c_handle)
        check(code, self.executor)

    cdef int check_peer(self, uint32_t rank, bytes handle) except -1:
        if rank >= self.num_ranks:
            raise ValueError(f"rank: must be in [0, {self.num_ranks - 1}], got {rank}")
        if len(handle) != EP_HANDLE_BYTES:
            raise ValueError(f"handle: must be of {EP_HANDLE_BYTES} bytes, rank {rank} gave "
                             f"{len(handle)}")
        return 0

    def publish(self):
        """Make all that was opened visible to the kernels."""
        cdef int code
        with nogil:
            code = ep_buffer_publish(self.core)
        check(code, self.executor)

    # -- calls ---------------------------------------------------------------------------------
    # Each returns what must stay until the call has ended, None where it has.

    def layout(self, Array topk_idx, Array rank_counts, Array expert_counts, Array in_rank,
               Launch launch not None):
        """Fill rank_counts int32 [R], expert_counts int32 [E] and in_rank bool [T, R]."""
        cdef ep_layout_args args
        cdef int code
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
            with nogil:
                code = ep_buffer_layout(self.core, &args)
            self.raise_for(code)
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
        cdef int code
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
            with nogil:
                code = ep_buffer_dispatch(self.core, &args, &result)
            self.raise_for(code)
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
                received.slot = Slot.wrap(self, result.block, result.view, launch.stream)
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
        cdef int code
        cdef Mappings maps = Mappings(self)
        memset(&call, 0, sizeof(call))
        memset(&args, 0, sizeof(args))
        fill(&call, launch)
        with maps:
            fill_copies(&args, copies, maps.add(rank_prefix, False, "rank_prefix_matrix"), maps)
            with nogil:
                code = ep_buffer_copy_out(self.core, &call, &args, slot.block, slot_rows)
            self.raise_for(code)
            return maps.until_end(launch)

    def combine(self, Array x, bint pull_x, Array topk_weights, Array bias0, Array bias1,
                Array out, Array out_weights, Placement at not None, uint32_t max_ranks,
                bint zero_copy, Launch launch not None):
        """Reduce x [n, H] bf16 and, unless None, topk_weights float32 [n, K] into out, out_weights.

        pull_x: what `is_pulled` said of x.  bias0, bias1: None or [T, H].  at: of the dispatch,
        whose tokens went to max_ranks ranks at most.
        """
        cdef ep_combine_args args
        cdef int code
        cdef Mappings maps = Mappings(self)
        memset(&args, 0, sizeof(args))
        fill(&args.call, launch)
        args.num_tokens = at.pos.shape[0]
        args.hidden_bytes = x.shape[1] * x.itemsize
        args.num_topk = 0 if topk_weights is None else topk_weights.shape[1]
        args.max_ranks = max_ranks
        args.handle = at.handle
        if pull_x and self.find_pulled(x, True, &args.x_segment, &args.x_offset):
            args.mode |= EP_MODE_PULL_X
            args.x_bytes = x.nbytes
        if self.find_pulled(topk_weights, zero_copy, &args.weights_segment, &args.weights_offset):
            args.mode |= EP_MODE_PULL_WEIGHTS
            args.weights_bytes = 0 if topk_weights is None else topk_weights.nbytes
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
            self.check_stage_bytes(ep_buffer_combine_kernel(&args), launch.stage_bytes)
            with nogil:
                code = ep_buffer_combine(self.core, &args)
            self.raise_for(code)
            return maps.until_end(launch)

    cdef int check_stage_bytes(self, uint32_t kernel, uint32_t stage_bytes) except -1:
        cdef uint32_t most
        if stage_bytes == 0:
            return 0
        most = ep_buffer_most_stage_bytes(self.core, kernel)
        if most != 0 and stage_bytes > most:
            raise ValueError(f"stage_bytes: must be a multiple of {EP_ROW_ALIGN} in "
                             f"[{EP_ROW_ALIGN}, {most}] for {self.symbols[kernel]}, got "
                             f"{stage_bytes}")
        return 0

    def is_pulled(self, Array array, bint zero_copy):
        """Whether a combine leaves `array` where it is, for the other ranks to read."""
        cdef uint32_t segment = 0
        cdef uint64_t offset = 0
        return self.find_pulled(array, zero_copy, &segment, &offset)

    cdef bint find_pulled(self, Array array, bint zero_copy, uint32_t *segment,
                          uint64_t *offset) except -1:
        # Nothing to read counts as pulled: nobody has to wait for a push.
        if array is None or array.nbytes == 0:
            return True
        return zero_copy and ep_arena_find(&self.core.arena, array.address, array.nbytes, segment,
                                           offset)

    def reserve(self, uint64_t nbytes, size_t stream, uint64_t granule=0):
        """A `Slot` of nbytes for a caller's array on `stream`, which then comes after all calls; of
        a multiple of `granule`, if that is not 0."""
        if granule:
            nbytes = (nbytes + granule - 1) // granule * granule
        cdef ep_block *block = NULL
        cdef uint64_t view = 0
        cdef int code
        with nogil:
            code = ep_buffer_reserve(self.core, nbytes, <void *>stream, &block, &view)
        self.raise_for(code)
        if block.segment in self.views:
            self.executor.written(self.core.arena.segment[block.segment].base + block.offset,
                                  nbytes)
        return Slot.wrap(self, block, view, stream)

    def check(self):
        """Wait for the calls made so far; raises what the device reported."""
        cdef int code
        with nogil:
            code = ep_buffer_check(self.core)
        self.raise_for(code)

    def settle(self):
        """Wait for the calls made so far, whatever they found."""
        cdef int code
        with nogil:
            code = ep_buffer_settle(self.core)
        check(code, self.executor)

    def count_received(self, Array rank_prefix not None):
        """Rows that this rank received by the dispatch whose matrix that is, -1 if it was refused.
        Waits for the calls made so far."""
        cdef uint64_t address = rank_prefix.address + rank_prefix.itemsize * (
            (self.num_ranks - 1) * self.num_ranks + self.rank)
        self.settle()
        if rank_prefix.device == IN_HOST_MEMORY:
            return (<const int32_t *><size_t>address)[0]
        return int(self.executor.read(address, sizeof(int32_t), self.stream).view("int32")[0])

    @property
    def may_grow(self):
        """Whether the newest call, and no other, found no room in an arena that grows."""
        return self.core.may_grow != 0

    def land_results(self, bint lands):
        """Whether a result for which nothing is free lands, to be copied out, though the host
        waits: in an arena that cannot grow now."""
        self.core.lands = lands

    def make_landing(self, uint64_t nbytes):
        """Whether landing has at least `nbytes`, once what is free has been taken for it."""
        cdef int made = 0, code
        with nogil:
            code = ep_buffer_make_landing(self.core, nbytes, &made)
        check(code, self.executor)
        return made != 0

    def look(self, size_t stream):
        """The graph into which what is queued on `stream`, a caller's, is being captured, a number;
        0: it is not.  A call begins with it."""
        cdef void *graph = NULL
        check(ep_buffer_look(self.core, <void *>stream, &graph), self.executor)
        return <size_t>graph

    # -- state ---------------------------------------------------------------------------------

    @property
    def stream(self):
        """Of the kernels, a number."""
        return <size_t>self.core.stream

    def keep_stream(self):
        """The stream stays when the buffer ends: an allocator that was told of it records events on
        it when what it allocated dies, whenever that is."""
        self.core.stream_stays = 1

    @property
    def has_news(self):
        """Whether the device has reported something that was not raised yet."""
        return self.core.ring.next != 0

    def unraised(self):
        """What the device has reported and nobody has raised, as an exception, or None.  Waits for
        nothing; the next look raises it."""
        cdef Report report
        cdef ep_status_record records[EP_STATUS_RECORDS]
        cdef uint32_t i
        report.records = records
        report.num_records = 0
        report.rank = self.rank
        report.grows = self.core.grows
        report.crowded = self.core.crowded
        for i in range(min(self.core.ring.next, <uint32_t>EP_STATUS_RECORDS)):
            if self.core.ring.record[i].valid:
                records[report.num_records] = self.core.ring.record[i]
                report.num_records += 1
        if report.num_records == 0:
            return None
        try:
            check(EP_ERR_STATUS, self.executor, &report)
        except Exception as error:
            return error

    @property
    def landing_bytes(self):
        """Bytes of the extent that no result keeps."""
        return self.core.landing.bytes if self.core.landing != NULL else 0

    @property
    def launched(self):
        """Symbols of the kernels of the newest call, in launch order."""
        return tuple(
            self.symbols[self.core.launched[i]] for i in range(self.core.num_launched)
        )

    @property
    def arena_bytes(self):
        """Bytes of all segments."""
        return self.core.arena.total

    @property
    def arena_used_bytes(self):
        """Bytes of slots in use, quarantined ones included."""
        return ep_buffer_used(self.core)

    @property
    def num_segments(self):
        """Segments of the arena."""
        return self.core.arena.num_segments

    def max_ctas(self):
        """CTAs of a dispatch or combine that this rank's device runs at the same time; the buffer
        counts among those of the process from here on."""
        cdef uint32_t ctas = 0
        check(ep_buffer_max_ctas(self.core, &ctas), self.executor)
        return ctas

    @property
    def is_crowded(self):
        """Whether this process's buffers on the device may make calls whose CTAs do not fit on it
        side by side, as far as it was known at the newest call."""
        return bool(self.core.crowded)

    def reset_begin(self):
        """Wait for this rank's kernels; returns the epoch that they left."""
        cdef uint64_t epoch = 0
        cdef int code
        with nogil:
            code = ep_buffer_reset_begin(self.core, &epoch)
        check(code, self.executor)
        return epoch

    def reset_end(self, uint64_t max_epoch):
        """Clear the abort and go on two epochs after `max_epoch`; release quarantined slots."""
        cdef int code
        with nogil:
            code = ep_buffer_reset_end(self.core, max_epoch)
        check(code, self.executor)

    def close_peers(self):
        """Unmap what `open_heap` and `open_segment` mapped."""
        with nogil:
            ep_buffer_close_peers(self.core)

    def abandon(self):
        """Leave without the other ranks: tell them, and keep the memory that they may write to."""
        with nogil:
            ep_buffer_abandon(self.core)

    def leave(self):
        """Close without the other ranks, between calls, and tell them.  The heap, to which they may
        write until they have left too, goes with this object: see `is_last`."""
        with nogil:
            ep_buffer_leave(self.core)
        self.captured.clear()

    @property
    def is_last(self):
        """Of a buffer that was left: whether the other ranks have left it too, as far as they have
        told."""
        cdef bint last
        with nogil:
            last = ep_buffer_is_last(self.core)
        return last

    @property
    def is_aborted(self):
        """Whether only a reset makes the buffer usable again, as far as the device has said."""
        return ep_buffer_is_aborted(self.core)

    def close(self):
        """Free everything but segments with slots in use; those go with their last slot."""
        with nogil:
            ep_buffer_close(self.core)
        self.captured.clear()


cdef void fill(ep_call *call, Launch launch) noexcept:
    call.caller_stream = <void *>launch.stream
    call.previous = NULL if launch.previous is None else launch.previous.handle
    call.graph = <void *>launch.graph
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


@cython.final
@cython.no_gc_clear     # __dealloc__ uses the buffer
cdef class Mappings:
    """The arrays of one call as device addresses.  What is in host memory is mapped until the end
    of the `with` block, or for longer: see `until_end`."""

    cdef CoreBuffer buffer
    cdef list mapped
    cdef list arrays            # keeps what is mapped

    def __cinit__(self, CoreBuffer buffer not None):
        self.buffer = buffer
        self.mapped = []
        self.arrays = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        # All of them, whatever one says; what ended the block counts more than that.
        failure = None
        for dptr in self.mapped:
            try:
                self.buffer.executor.unmap(dptr)
            except DeepEPError as unmap_error:
                failure = failure or unmap_error
        self.mapped = []
        if failure is not None and error is None:
            raise failure

    def __dealloc__(self):
        # Of a call that nobody waited for, when its run has ended.
        for dptr in self.mapped:
            with contextlib.suppress(DeepEPError):
                self.buffer.executor.unmap(dptr)

    cdef object until_end(self, Launch launch):
        # Mappings that must stay until the call has ended; None where it has, or nothing is mapped.
        cdef Mappings rest
        if launch.wait or not self.mapped:
            return None
        rest = Mappings(self.buffer)
        rest.mapped, self.mapped = self.mapped, rest.mapped
        rest.arrays = self.arrays
        if launch.graph:
            self.buffer.captured.append(rest)
            return None
        return rest

    def close(self):
        """Unmap all."""
        self.__exit__(None, None, None)

    cdef ep_dptr_t add(self, Array array, bint writable, str name) except? 0:
        # 0 for None and for an array without bytes.
        if array is None or array.nbytes == 0:
            return 0
        return self.locate(array, array.address, array.nbytes, writable, name)

    cdef ep_dptr_t add_span(self, Array array, tuple span, str name) except? 0:
        # The same for an array that is not contiguous: its first element's address.
        cdef int64_t first = span[0], end = span[1]
        if end == first:
            return 0
        return self.locate(array, array.address + first, end - first, False, name) - first

    cdef ep_dptr_t locate(self, Array array, uint64_t address, uint64_t nbytes, bint writable,
                          str name) except? 0:
        # Arena memory has an address already, and so has memory of the GPU.
        cdef uint32_t segment = 0
        cdef uint64_t offset = 0
        if ep_arena_find(&self.buffer.core.arena, address, nbytes, &segment, &offset):
            return self.buffer.core.arena.segment[segment].base + offset
        if array.device != IN_HOST_MEMORY:
            return address
        dptr = self.buffer.executor.map_array(address, nbytes, writable, name)
        self.mapped.append(dptr)
        self.arrays.append(array)
        return dptr


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


@cython.final
@cython.no_gc_clear     # __dealloc__ uses the buffer
cdef class Slot:
    """An extent of the arena, as bytes.  Arrays over it keep it; its end releases the extent, for
    calls that come after what is queued by then on `stream`, and on what `current()` names."""

    cdef CoreBuffer buffer      # keeps the memory
    cdef ep_block *block        # owned
    cdef uint64_t view
    cdef void *stream           # the caller's, on which the arrays are used; outlives them
    cdef public object current  # None, or a function that gives the thread's stream at the end
    cdef public bint lasting    # no other stream ever has the number of these
    cdef public bint settled    # nothing uses it any more but what the buffer's stream has queued

    @staticmethod
    cdef Slot wrap(CoreBuffer buffer, ep_block *block, uint64_t view, size_t stream):
        cdef Slot slot = Slot.__new__(Slot)
        slot.stream = <void *>stream
        slot.buffer = buffer
        slot.block = block
        slot.view = view
        slot.lasting = stream == 0
        return slot

    def __dealloc__(self):
        cdef void *streams[2]
        if self.block == NULL:
            return
        if self.settled:
            with nogil:
                ep_buffer_give_back(self.buffer.core, self.block)
            return
        streams[0] = streams[1] = self.stream
        if self.current is not None:
            try:
                streams[1] = <void *><size_t>self.current()
            except Exception:       # of a library that is going, at the very end
                pass
        with nogil:
            ep_buffer_retire(self.buffer.core, self.block, streams, self.lasting)

    @property
    def address(self):
        """Of its first byte, as the caller's arrays see memory."""
        return self.view

    @property
    def nbytes(self):
        """Its size."""
        return self.block.bytes

    @property
    def stream_number(self):
        """Of the caller's stream."""
        return <size_t>self.stream

    @property
    def __array_interface__(self):      # where arrays are in host memory
        return {"version": 3, "typestr": "|u1", "shape": (self.block.bytes,),
                "data": (self.view, False)}


@cython.final
cdef class Region:
    """The first segment of a buffer's arena, as bytes; the memory goes with the buffer."""

    cdef CoreBuffer buffer
    cdef readonly uint64_t address
    cdef readonly uint64_t nbytes
    cdef readonly size_t stream_number

    def __init__(self, CoreBuffer buffer not None):
        self.buffer = buffer
        self.stream_number = 0
        self.address = buffer.core.arena.segment[0].view
        self.nbytes = buffer.core.arena.segment[0].bytes

    @property
    def __array_interface__(self):
        return {"version": 3, "typestr": "|u1", "shape": (self.nbytes,),
                "data": (self.address, False)}


cdef class Arena:
    """The arena's bookkeeping alone, without memory behind it.  Blocks are (segment, offset)."""

    cdef ep_arena arena
    cdef dict blocks

    def __cinit__(self):
        memset(&self.arena, 0, sizeof(self.arena))
        self.blocks = {}

    def __dealloc__(self):
        ep_arena_clear(&self.arena)

    cdef object remember(self, ep_block *block):
        if block == NULL:
            return None
        key = (block.segment, block.offset)
        self.blocks[key] = <size_t>block
        return (*key, block.bytes)

    def add_segment(self, uint64_t nbytes, uint64_t view=0):
        """Add a free segment whose arrays begin at address `view`."""
        check(ep_arena_add(&self.arena, view, view, nbytes), None)

    def reserve(self, uint64_t nbytes):
        """First fit: (segment, offset, nbytes), or None."""
        cdef ep_block *block = NULL
        check(ep_arena_reserve(&self.arena, nbytes, &block), None)
        return self.remember(block)

    def reserve_largest(self):
        """The largest free extent: (segment, offset, nbytes), or None."""
        return self.remember(ep_arena_reserve_largest(&self.arena))

    def trim(self, segment, offset, uint64_t nbytes):
        """Keep the first `nbytes` of a reserved extent; returns what it has now."""
        cdef ep_block *block = <ep_block *><size_t>self.blocks[segment, offset]
        ep_arena_trim(&self.arena, block, nbytes)
        return block.bytes

    def release(self, segment, offset):
        """Give a reserved extent back."""
        ep_arena_release(&self.arena, <ep_block *><size_t>self.blocks.pop((segment, offset)))

    def find(self, uint64_t view, uint64_t nbytes):
        """(segment, offset) of [view, view + nbytes), or None."""
        cdef uint32_t segment = 0
        cdef uint64_t offset = 0
        if ep_arena_find(&self.arena, view, nbytes, &segment, &offset):
            return segment, offset
        return None

    @property
    def total(self):
        """Bytes of all segments."""
        return self.arena.total

    @property
    def used(self):
        """Bytes of reserved extents."""
        return self.arena.in_use

    @property
    def largest_free(self):
        """Bytes of the largest free extent."""
        return ep_arena_largest_free(&self.arena)

    def free_extents(self):
        """List of (segment, offset, nbytes), by address."""
        cdef ep_block *block
        extents = []
        for i in range(EP_MAX_SEGMENTS):
            block = self.arena.segment[i].first
            while block != NULL:
                if not block.used:
                    extents.append((i, block.offset, block.bytes))
                block = block.next
        return extents
