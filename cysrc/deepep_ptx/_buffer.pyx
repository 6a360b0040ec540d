# SPDX-License-Identifier: MIT
"""The C core's buffer: its life, its memory and its state."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from gen.params cimport (
    EP_MAX_SMEM,
    EP_ROW_ALIGN,
    EP_STATUS_RECORDS,
    ep_status_record,
)

from deepep_ptx._core cimport (
    ep_arena_stats,
    ep_block,
    ep_buffer_abandon,
    ep_buffer_check,
    ep_buffer_close,
    ep_buffer_combine,
    ep_buffer_combine_kernel,
    ep_buffer_copy_out,
    ep_buffer_create,
    ep_buffer_destroy,
    ep_buffer_dispatch,
    ep_buffer_drop_segment,
    ep_buffer_extent,
    ep_buffer_find,
    ep_buffer_give_back,
    ep_buffer_has_news,
    ep_buffer_idle_segments,
    ep_buffer_is_aborted,
    ep_buffer_is_crowded,
    ep_buffer_is_last,
    ep_buffer_keep_stream,
    ep_buffer_land_results,
    ep_buffer_launched,
    ep_buffer_layout,
    ep_buffer_ll_bytes,
    ep_buffer_ll_combine,
    ep_buffer_ll_dispatch,
    ep_buffer_ll_mask,
    ep_buffer_ll_masked,
    ep_buffer_ll_shrink,
    ep_buffer_leave,
    ep_buffer_look,
    ep_buffer_make_landing,
    ep_buffer_max_ctas,
    ep_buffer_may_grow,
    ep_buffer_most_stage_bytes,
    ep_buffer_poison_slots,
    ep_buffer_reserve,
    ep_buffer_retire,
    ep_buffer_segment,
    ep_buffer_set_kernel,
    ep_buffer_settle,
    ep_buffer_stats,
    ep_buffer_status,
    ep_buffer_stream,
    ep_buffer_unmap_segment,
    ep_buffer_unraised,
    ep_call,
    ep_combine_args,
    ep_connection,
    ep_copies,
    ep_dispatch_args,
    ep_dispatch_result,
    ep_extent,
    ep_failure,
    ep_group,
    ep_heard,
    ep_hooks,
    ep_layout_args,
    ep_ll_bytes,
    ep_ll_combine_args,
    ep_ll_dispatch_args,
    ep_ll_mask_args,
    ep_ll_shape,
    ep_ll_smem,
    ep_loaded,
    ep_param_bytes,
    ep_symmetric,
    ep_symmetric_connect,
    ep_symmetric_create,
    ep_symmetric_end,
    ep_symmetric_ensure_landing,
    ep_symmetric_ensure_low_latency,
    ep_symmetric_failure,
    ep_symmetric_free,
    ep_symmetric_grow,
    ep_symmetric_number,
    ep_symmetric_reset,
)
from deepep_ptx._errors cimport EP_KERNEL_LL_DISPATCH, EP_NUM_KERNELS, Report, check
from deepep_ptx._executor cimport EP_ERR_STATUS, EP_OK, Executor, ep_executor

from deepep_ptx._errors import KERNELS


def param_bytes(str kernel not None):
    """Bytes of a kernel's parameter block in this build, 0: it has no kernel of that name."""
    return ep_param_bytes(KERNELS.get(kernel, EP_NUM_KERNELS))


@cython.no_gc_clear     # __dealloc__ uses the executor
cdef class CoreBuffer:
    """One rank's buffer; `CoreCalls` has its calls as well.

    executor: of this rank.  timeout_ns: limit of each wait of a kernel, FOREVER = none.
    grows: the arena grows where a call finds no room.
    """

    def __cinit__(self, Executor executor not None, uint32_t rank, uint32_t num_ranks,
                  uint64_t timeout_ns, bint grows=False):
        cdef int code
        self.executor = executor
        self.rank = rank
        self.num_ranks = num_ranks
        self.grows = grows
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
        if code == EP_OK:
            return 0
        report.num_records = ep_buffer_status(self.core, &report.records)
        report.rank = self.rank
        report.grows = self.grows
        report.crowded = ep_buffer_is_crowded(self.core)
        report.shrinks = self.shrinks
        return check(code, self.executor, &report)

    # -- construction ------------------------------------------------------------------------------

    def load_kernel(self, str name not None, dict variant not None, text):
        """Load a row of the table of variants, rendered as `text`, and use it in the place `name`.

        The row is one that runs here: see `select.choose`.
        """
        cdef uint32_t index = KERNELS.get(name, EP_NUM_KERNELS)     # of text newer than the build
        cdef uint32_t param_bytes = variant["param_bytes"]
        cdef str symbol = variant["symbol"]
        cdef ep_loaded loaded
        if param_bytes != ep_param_bytes(index):
            raise ImportError(f"{symbol}: the rendered PTX takes {param_bytes} parameter bytes, "
                              f"this build {ep_param_bytes(index)}; build again")
        kernel = self.executor.load(symbol, text, param_bytes)
        self.kernels[index] = kernel
        self.symbols[index] = symbol
        loaded.handle = <void *><size_t>kernel.handle
        loaded.threads = variant["threads"]
        loaded.smem = variant["smem"]
        loaded.smem_per_rank = variant["smem_per_rank"]
        loaded.max_smem = min(EP_MAX_SMEM, self.executor.cta_smem - variant["static_smem"])
        if index == EP_KERNEL_LL_DISPATCH:
            self.ll_dispatch_smem = loaded.max_smem
        loaded.rings = variant["rings"]
        loaded.stages = variant["stages"]
        loaded.stage_bytes = variant["stage_bytes"]
        ep_buffer_set_kernel(self.core, index, &loaded)

    # -- segments, one rank's part -----------------------------------------------------------------

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

    # -- state ---------------------------------------------------------------------------------

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

    @property
    def may_grow(self):
        """Whether the newest call, and no other, found no room in an arena that grows."""
        return ep_buffer_may_grow(self.core)

    def land_results(self, bint lands):
        """Whether a result for which nothing is free lands, to be copied out, though the host
        waits: in an arena that cannot grow now."""
        ep_buffer_land_results(self.core, lands)

    def poison_slots(self):
        """From now on slots that die are filled with bytes of 255."""
        ep_buffer_poison_slots(self.core)

    def make_landing(self, uint64_t nbytes):
        """Whether landing has at least `nbytes`, once what is free has been taken for it."""
        cdef int made = 0, code
        with nogil:
            code = ep_buffer_make_landing(self.core, nbytes, &made)
        check(code, self.executor)
        return made != 0

    cpdef size_t look(self, size_t stream) except? 0:
        """The graph into which what is queued on `stream`, a caller's, is being captured, a number;
        0: it is not.  A call begins with it."""
        cdef void *graph = NULL
        check(ep_buffer_look(self.core, <void *>stream, &graph), self.executor)
        return <size_t>graph

    @property
    def stream(self):
        """Of the kernels, a number."""
        return <size_t>ep_buffer_stream(self.core)

    def keep_stream(self):
        """The stream stays when the buffer ends: an allocator that was told of it records events on
        it when what it allocated dies, whenever that is."""
        ep_buffer_keep_stream(self.core)

    @property
    def has_news(self):
        """Whether the device has reported something that was not raised yet."""
        return ep_buffer_has_news(self.core)

    def unraised(self):
        """What the device has reported and nobody has raised, as an exception, or None.  Waits for
        nothing; the next look raises it."""
        cdef Report report
        cdef ep_status_record records[EP_STATUS_RECORDS]
        report.records = records
        report.num_records = ep_buffer_unraised(self.core, records)
        report.rank = self.rank
        report.grows = self.grows
        report.crowded = ep_buffer_is_crowded(self.core)
        report.shrinks = self.shrinks
        if report.num_records == 0:
            return None
        try:
            check(EP_ERR_STATUS, self.executor, &report)
        except Exception as error:
            return error

    cdef ep_arena_stats stats(self) noexcept:
        cdef ep_arena_stats found
        ep_buffer_stats(self.core, &found)
        return found

    @property
    def landing_bytes(self):
        """Bytes of the extent that no result keeps."""
        return self.stats().landing_bytes

    @property
    def launched(self):
        """Symbols of the kernels of the newest call, in launch order."""
        cdef uint32_t kernels[EP_NUM_KERNELS]
        cdef uint32_t num_launched = ep_buffer_launched(self.core, kernels)
        return tuple([self.symbols[kernels[i]] for i in range(num_launched)])

    @property
    def arena_bytes(self):
        """Bytes of all segments."""
        return self.stats().arena_bytes

    @property
    def arena_used_bytes(self):
        """Bytes of slots in use, quarantined ones included."""
        return self.stats().used_bytes

    @property
    def low_latency_bytes(self):
        """Bytes of low-latency memory."""
        return ep_buffer_ll_bytes(self.core)

    def shrink(self):
        """From here on low-latency calls mask a rank that does not come."""
        self.shrinks = True
        ep_buffer_ll_shrink(self.core)

    def masked_ranks(self):
        """Ranks that are masked, once all calls made so far have ended."""
        cdef uint64_t mask = 0
        cdef int code
        with nogil:
            code = ep_buffer_ll_masked(self.core, &mask)
        self.raise_for(code)
        return [rank for rank in range(64) if mask >> rank & 1]

    @property
    def num_segments(self):
        """Segments of the arena."""
        return self.stats().num_segments

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
        return ep_buffer_is_crowded(self.core)

    # -- reset and end -------------------------------------------------------------------------

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

    # -- for the modules that make calls and slots ---------------------------------------------
    # The core is linked to this one alone.

    cdef int layout_with(self, const ep_layout_args *args) except -1:
        cdef int code
        with nogil:
            code = ep_buffer_layout(self.core, args)
        return self.raise_for(code)

    cdef int dispatch_with(self, const ep_dispatch_args *args, ep_dispatch_result *out) except -1:
        cdef int code
        with nogil:
            code = ep_buffer_dispatch(self.core, args, out)
        return self.raise_for(code)

    cdef int copy_out_with(self, const ep_call *call, const ep_copies *copies, const ep_block *slot,
                           uint32_t slot_rows) except -1:
        cdef int code
        with nogil:
            code = ep_buffer_copy_out(self.core, call, copies, slot, slot_rows)
        return self.raise_for(code)

    cdef int combine_with(self, const ep_combine_args *args) except -1:
        cdef int code
        self.check_stage_bytes(ep_buffer_combine_kernel(args), args.call.stage_bytes)
        with nogil:
            code = ep_buffer_combine(self.core, args)
        return self.raise_for(code)

    cdef int ll_dispatch_with(self, const ep_ll_dispatch_args *args, uint64_t *number) except -1:
        cdef int code
        with nogil:
            code = ep_buffer_ll_dispatch(self.core, args, number)
        return self.raise_for(code)

    cdef int ll_combine_with(self, const ep_ll_combine_args *args) except -1:
        cdef int code
        with nogil:
            code = ep_buffer_ll_combine(self.core, args)
        return self.raise_for(code)

    cdef int ll_mask_with(self, const ep_ll_mask_args *args) except -1:
        cdef int code
        with nogil:
            code = ep_buffer_ll_mask(self.core, args)
        return self.raise_for(code)

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

    cdef ep_block *take(self, uint64_t nbytes, size_t stream) except NULL:
        # Room for a caller's array on `stream`, which then comes after all calls.
        cdef ep_block *block = NULL
        cdef int code
        with nogil:
            code = ep_buffer_reserve(self.core, nbytes, <void *>stream, &block)
        self.raise_for(code)
        return block

    cdef int written(self, const ep_extent *where, uint64_t nbytes) except -1:
        # The host may store to the first bytes of an extent, unseen, where it sees them.
        if where.segment in self.views:
            self.executor.written(where.dptr, nbytes)
        return 0

    cdef void locate_slot(self, const ep_block *block, ep_extent *out) noexcept:
        ep_buffer_extent(self.core, block, out)

    cdef void locate_segment(self, uint32_t index, ep_extent *out) noexcept:
        ep_buffer_segment(self.core, index, out)

    cdef bint find(self, uint64_t address, uint64_t nbytes, ep_extent *out) noexcept:
        # Whether it lies in the arena; if so, where.
        return ep_buffer_find(self.core, address, nbytes, out)

    cdef void retire(self, ep_block *block, void **streams, bint lasting) noexcept nogil:
        ep_buffer_retire(self.core, block, streams, lasting)

    cdef void give_back(self, ep_block *block) noexcept nogil:
        ep_buffer_give_back(self.core, block)


cdef int symmetric_create(const ep_executor *exec, const ep_group *group, const ep_hooks *hooks,
                          ep_symmetric **out) noexcept nogil:
    return ep_symmetric_create(exec, group, hooks, out)


cdef void symmetric_free(ep_symmetric *s) noexcept nogil:
    ep_symmetric_free(s)


cdef const ep_failure *symmetric_failure(const ep_symmetric *s) noexcept nogil:
    return ep_symmetric_failure(s)


cdef uint64_t symmetric_number(const ep_symmetric *s) noexcept nogil:
    return ep_symmetric_number(s)


cdef int symmetric_connect(ep_symmetric *s, const ep_connection *connection,
                           uint32_t *num_here) noexcept nogil:
    return ep_symmetric_connect(s, connection, num_here)


cdef int symmetric_grow(ep_symmetric *s, uint64_t needed) noexcept nogil:
    return ep_symmetric_grow(s, needed)


cdef int symmetric_ensure_landing(ep_symmetric *s, uint64_t nbytes, const uint64_t *said,
                                  ep_heard *heard) noexcept nogil:
    return ep_symmetric_ensure_landing(s, nbytes, said, heard)


cdef int symmetric_ensure_low_latency(ep_symmetric *s, const ep_ll_shape *shape, uint64_t nbytes,
                                      void *stream) noexcept nogil:
    return ep_symmetric_ensure_low_latency(s, shape, nbytes, stream)


cdef uint64_t low_latency_bytes(const ep_ll_shape *shape, uint32_t num_ranks) noexcept nogil:
    return ep_ll_bytes(shape, num_ranks)


cdef uint64_t low_latency_smem(const ep_ll_shape *shape) noexcept nogil:
    return ep_ll_smem(shape)


cdef int symmetric_reset(ep_symmetric *s, const uint64_t *said, ep_heard *heard) noexcept nogil:
    return ep_symmetric_reset(s, said, heard)


cdef int symmetric_end(ep_symmetric *s) noexcept nogil:
    return ep_symmetric_end(s)
