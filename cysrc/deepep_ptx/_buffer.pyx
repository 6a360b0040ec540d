# SPDX-License-Identifier: MIT
"""The C core's buffer as Python objects: lifetimes, array mappings, results."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from gen.params cimport (
    EP_FOREVER,
    EP_MAX_LOCAL_EXPERTS,
    EP_MAX_RANKS,
    EP_MAX_TOPK,
    EP_MODE_PULL_WEIGHTS,
    EP_MODE_PULL_X,
    EP_ROW_ALIGN,
    EP_SLOT_ALIGN,
)

from deepep_ptx._array cimport IN_HOST_MEMORY, Array
from deepep_ptx._errors cimport Report, check
from deepep_ptx._executor cimport EP_HANDLE_BYTES, Executor, ep_dptr_t, ep_executor

from deepep_ptx._errors import KERNELS
from deepep_ptx.errors import DeepEPError

# Limits of params.h, for argument checks.
FOREVER = EP_FOREVER
MAX_LOCAL_EXPERTS = EP_MAX_LOCAL_EXPERTS
MAX_RANKS = EP_MAX_RANKS
MAX_TOPK = EP_MAX_TOPK
ROW_ALIGN = EP_ROW_ALIGN
SLOT_ALIGN = EP_SLOT_ALIGN

cdef tuple KERNEL_ORDER = tuple(sorted(KERNELS, key=KERNELS.get))


def param_bytes(str kernel not None):
    """Bytes of a kernel's parameter block in this build."""
    return ep_param_bytes(KERNELS[kernel])


@cython.no_gc_clear     # __dealloc__ uses the executor
cdef class CoreBuffer:
    """One rank's buffer.  Arrays are C-contiguous and in memory of the executor, or in host memory,
    checked by the caller.  `stream` is a number: what the caller's stream has queued comes before
    a call's kernels, what it queues afterwards comes after them.

    executor: of this rank.  timeout_ns: limit of each wait of a kernel, FOREVER = none.
    """

    def __cinit__(self, Executor executor not None, uint32_t rank, uint32_t num_ranks,
                  uint64_t timeout_ns):
        cdef int code
        self.executor = executor
        self.rank = rank
        self.num_ranks = num_ranks
        self.kernels = [None] * len(KERNEL_ORDER)
        self.symbols = [None] * len(KERNEL_ORDER)
        self.views = []
        with nogil:
            code = ep_buffer_create(executor.table, rank, num_ranks, timeout_ns, &self.core)
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
        return check(code, self.executor, &report)

    # -- construction and growth ---------------------------------------------------------------

    def load_kernel(self, str name not None, dict variant not None, text):
        """Load a row of the table of variants, rendered as `text`, and use it in the place `name`.
        """
        cdef uint32_t index = KERNELS[name]
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
        ep_buffer_set_kernel(self.core, index, &loaded)

    def heap_handle(self):
        """The heap's handle, for the other ranks' `open_heap`."""
        cdef char handle[EP_HANDLE_BYTES]
        memset(handle, 0, EP_HANDLE_BYTES)
        check(ep_buffer_heap_handle(self.core, handle), self.executor)
        return handle[:EP_HANDLE_BYTES]

    def open_heap(self, uint32_t rank, bytes handle not None):
        """Map rank's heap."""
        check(ep_buffer_open_heap(self.core, rank, <const char *>handle), self.executor)

    def add_segment(self, uint64_t nbytes):
        """Append `nbytes` to the arena; returns (index, handle)."""
        cdef char handle[EP_HANDLE_BYTES]
        cdef uint32_t index = 0
        cdef ep_dptr_t base = 0
        memset(handle, 0, EP_HANDLE_BYTES)
        check(ep_buffer_add_segment(self.core, nbytes, &index, &base, handle), self.executor)
        view = self.executor.host_view(base, nbytes)
        if view is not None:        # else arrays show device addresses
            self.views.append(view)
            ep_buffer_set_view(self.core, index, view.__array_interface__["data"][0])
        return index, handle[:EP_HANDLE_BYTES]

    def drop_segment(self):
        """Take back the newest segment: some rank could not have it."""
        self.views.pop()
        with nogil:
            ep_buffer_drop_segment(self.core)

    def open_segment(self, uint32_t rank, uint32_t index, bytes handle not None):
        """Map segment `index` of rank's arena."""
        check(ep_buffer_open_segment(self.core, rank, index, <const char *>handle), self.executor)

    def publish(self):
        """Make all that was opened visible to the kernels."""
        cdef int code
        with nogil:
            code = ep_buffer_publish(self.core)
        check(code, self.executor)

    # -- calls ---------------------------------------------------------------------------------

    def layout(self, Array topk_idx, Array rank_counts, Array expert_counts, Array in_rank,
               uint32_t num_sms, size_t stream):
        """Fill rank_counts int32 [R], expert_counts int32 [E] and in_rank bool [T, R]."""
        cdef ep_layout_args args
        cdef int code
        memset(&args, 0, sizeof(args))
        args.num_tokens, args.num_topk = topk_idx.shape
        args.num_experts = expert_counts.shape[0]
        args.topk_idx_bytes = topk_idx.itemsize
        args.num_sms = num_sms
        args.caller_stream = <void *>stream
        with Mappings(self) as maps:
            args.topk_idx = (<Mappings>maps).add(topk_idx, False, "topk_idx")
            args.rank_counts = (<Mappings>maps).add(rank_counts, True, "num_tokens_per_rank")
            args.expert_counts = (<Mappings>maps).add(expert_counts, True, "num_tokens_per_expert")
            args.in_rank = (<Mappings>maps).add(in_rank, True, "is_token_in_rank")
            with nogil:
                code = ep_buffer_layout(self.core, &args)
            self.raise_for(code)

    def dispatch(self, Array x, Array topk_idx, Array topk_weights, Array in_rank,
                 Array rank_counts, Array expert_counts, Array pos, Array rank_prefix,
                 uint32_t worst_rows, uint32_t num_sms, size_t stream):
        """Send x [T, H] bf16 and, unless None, top-k; fill pos int32 [T, R], rank_prefix [R, R].

        Returns a `Received`.  Raises what the device reported.
        """
        cdef ep_dispatch_args args
        cdef ep_dispatch_result result
        cdef int code
        memset(&args, 0, sizeof(args))
        args.num_tokens = x.shape[0]
        args.hidden_bytes = x.shape[1] * x.itemsize
        if topk_idx is not None:
            args.num_topk = topk_idx.shape[1]
            args.topk_idx_bytes = topk_idx.itemsize
        args.num_experts = expert_counts.shape[0]
        args.dtype = EP_DTYPE_BF16
        args.worst_rows = worst_rows
        args.num_sms = num_sms
        args.caller_stream = <void *>stream
        with Mappings(self) as maps:
            args.x = (<Mappings>maps).add(x, False, "x")
            args.topk_idx = (<Mappings>maps).add(topk_idx, False, "topk_idx")
            args.topk_weights = (<Mappings>maps).add(topk_weights, False, "topk_weights")
            args.in_rank = (<Mappings>maps).add(in_rank, False, "is_token_in_rank")
            args.rank_counts = (<Mappings>maps).add(rank_counts, False, "num_tokens_per_rank")
            args.expert_counts = (<Mappings>maps).add(expert_counts, False, "num_tokens_per_expert")
            args.pos = (<Mappings>maps).add(pos, True, "pos")
            args.rank_prefix = (<Mappings>maps).add(rank_prefix, True, "rank_prefix_matrix")
            with nogil:
                code = ep_buffer_dispatch(self.core, &args, &result)
            self.raise_for(code)
        received = Received()
        received.rows = result.rows
        received.epoch = result.epoch
        received.offsets = (0, result.slot.topk_idx, result.slot.topk_weights, result.slot.src_idx)
        if worst_rows == 0:
            received.expert_counts = [
                result.expert_counts[i] for i in range(args.num_experts // self.num_ranks)
            ]
        if result.block != NULL:
            received.slot = Slot.wrap(self, &result, args.caller_stream)
        return received

    def combine(self, Array x, Array topk_weights, Array bias0, Array bias1, Array out,
                Array out_weights, Array pos, Array rank_prefix, uint64_t handle_epoch,
                bint zero_copy, uint32_t num_sms, size_t stream):
        """Reduce x [n, H] bf16 and, unless None, topk_weights float32 [n, K] into out, out_weights.

        bias0, bias1: None or [T, H].  pos, rank_prefix, handle_epoch: of the dispatch.
        """
        cdef ep_combine_args args
        cdef int code
        memset(&args, 0, sizeof(args))
        args.num_tokens = pos.shape[0]
        args.hidden_bytes = x.shape[1] * x.itemsize
        args.num_topk = 0 if topk_weights is None else topk_weights.shape[1]
        args.dtype = EP_DTYPE_BF16
        args.num_sms = num_sms
        args.handle_epoch = handle_epoch
        args.caller_stream = <void *>stream
        if self.is_pulled(x, zero_copy, &args.x_segment, &args.x_offset):
            args.mode |= EP_MODE_PULL_X
        if self.is_pulled(topk_weights, zero_copy, &args.weights_segment, &args.weights_offset):
            args.mode |= EP_MODE_PULL_WEIGHTS
        with Mappings(self) as maps:
            if not args.mode & EP_MODE_PULL_X:
                args.x = (<Mappings>maps).add(x, False, "x")
            if not args.mode & EP_MODE_PULL_WEIGHTS:
                args.weights = (<Mappings>maps).add(topk_weights, False, "topk_weights")
            args.bias0 = (<Mappings>maps).add(bias0, False, "bias[0]")
            args.bias1 = (<Mappings>maps).add(bias1, False, "bias[1]")
            args.out = (<Mappings>maps).add(out, True, "combined_x")
            args.out_weights = (<Mappings>maps).add(out_weights, True, "combined_topk_weights")
            args.pos = (<Mappings>maps).add(pos, False, "pos")
            args.rank_prefix = (<Mappings>maps).add(rank_prefix, False, "rank_prefix_matrix")
            with nogil:
                code = ep_buffer_combine(self.core, &args)
            self.raise_for(code)

    cdef bint is_pulled(self, Array array, bint zero_copy, uint32_t *segment,
                        uint64_t *offset) except -1:
        # Nothing to read counts as pulled: nobody has to wait for a push.
        if array is None or array.nbytes == 0:
            return True
        return zero_copy and ep_arena_find(&self.core.arena, array.address, array.nbytes, segment,
                                           offset)

    # -- state ---------------------------------------------------------------------------------

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

    def max_resident(self, str kernel not None):
        """CTAs of `kernel` that this rank's device runs at the same time."""
        cdef const ep_loaded *loaded = &self.core.kernel[<uint32_t>KERNELS[kernel]]
        cdef uint32_t ctas = 0
        cdef uint32_t smem = loaded.smem + self.num_ranks * loaded.smem_per_rank
        cdef int code = self.executor.table.max_resident(self.executor.table.self, loaded.handle,
                                                         loaded.threads, smem, &ctas)
        check(code, self.executor)
        return ctas

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

    @property
    def is_aborted(self):
        """Whether only a reset makes the buffer usable again."""
        return self.core.control.abort != 0

    def close(self):
        """Free everything but segments with slots in use; those go with their last slot."""
        with nogil:
            ep_buffer_close(self.core)


cdef class Mappings:
    """The arrays of one call as device addresses; what is in host memory is mapped until the end
    of the `with` block."""

    cdef CoreBuffer buffer
    cdef list mapped

    def __init__(self, CoreBuffer buffer not None):
        self.buffer = buffer
        self.mapped = []

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
        if failure is not None and error is None:
            raise failure

    cdef ep_dptr_t add(self, Array array, bint writable, str name) except? 0:
        # 0 for None and for an array without bytes.  Arena memory has an address already, and so
        # has memory of the GPU.
        cdef uint32_t segment = 0
        cdef uint64_t offset = 0
        if array is None or array.nbytes == 0:
            return 0
        if ep_arena_find(&self.buffer.core.arena, array.address, array.nbytes, &segment, &offset):
            return self.buffer.core.arena.segment[segment].base + offset
        if array.device != IN_HOST_MEMORY:
            return array.address
        dptr = self.buffer.executor.map_array(array.address, array.nbytes, writable, name)
        self.mapped.append(dptr)
        return dptr


cdef class Received:
    """What dispatch found.

    rows: received, or num_worst_tokens.  offsets: of x, topk_idx, topk_weights and src_idx in
    `slot`, bytes.  slot: None without rows.  expert_counts: tokens of each local expert, [] in
    worst-case mode.  epoch: collective calls completed.
    """

    cdef readonly uint32_t rows
    cdef readonly uint64_t epoch
    cdef readonly tuple offsets
    cdef readonly list expert_counts
    cdef readonly object slot

    def __cinit__(self):
        self.expert_counts = []


@cython.final
@cython.no_gc_clear     # __dealloc__ uses the buffer
cdef class Slot:
    """An extent of the arena, as bytes.  Arrays over it keep it; its end releases the extent."""

    cdef CoreBuffer buffer      # keeps the memory
    cdef ep_block *block        # owned
    cdef uint64_t view
    cdef void *stream           # the caller's, on which the arrays are used; outlives them
    cdef bint on_gpu

    @staticmethod
    cdef Slot wrap(CoreBuffer buffer, const ep_dispatch_result *result, void *stream):
        cdef Slot slot = Slot.__new__(Slot)
        slot.stream = stream
        slot.on_gpu = buffer.executor.name == "cuda"
        slot.buffer = buffer
        slot.block = result.block
        slot.view = result.view
        return slot

    def __dealloc__(self):
        cdef const ep_executor *table
        if self.block == NULL:
            return
        table = self.buffer.executor.table
        with nogil:
            # Later calls, which may hand the extent to peers, come after what reads it now.  A
            # buffer that is closed makes no more calls.
            if self.on_gpu and not self.buffer.core.closed:
                table.stream_wait(table.self, self.buffer.core.stream, self.stream)
            ep_buffer_release(self.buffer.core, self.block)

    @property
    def address(self):
        """Of its first byte, as the caller's arrays see memory."""
        return self.view

    @property
    def nbytes(self):
        """Its size."""
        return self.block.bytes

    @property
    def __array_interface__(self):      # where arrays are in host memory
        return {"version": 3, "typestr": "|u1", "shape": (self.block.bytes,),
                "data": (self.view, False)}


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
        """Append a free segment whose arrays begin at address `view`."""
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
        ep_arena_trim(block, nbytes)
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
        return ep_arena_used(&self.arena)

    @property
    def largest_free(self):
        """Bytes of the largest free extent."""
        return ep_arena_largest_free(&self.arena)

    def free_extents(self):
        """List of (segment, offset, nbytes), by address."""
        cdef ep_block *block
        extents = []
        for i in range(self.arena.num_segments):
            block = self.arena.segment[i].first
            while block != NULL:
                if not block.used:
                    extents.append((i, block.offset, block.bytes))
                block = block.next
        return extents
