# SPDX-License-Identifier: MIT
from libc.stdint cimport uint32_t, uint64_t

from deepep_ptx._core cimport (
    ep_arena_stats,
    ep_block,
    ep_buffer,
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
    ep_ll_combine_args,
    ep_ll_dispatch_args,
    ep_ll_mask_args,
    ep_ll_shape,
    ep_symmetric,
)
from deepep_ptx._executor cimport Executor, ep_executor

# These for `_symmetric`: the core is linked into one module.
cdef int symmetric_create(const ep_executor *exec, const ep_group *group, const ep_hooks *hooks,
                          ep_symmetric **out) noexcept nogil
cdef void symmetric_free(ep_symmetric *s) noexcept nogil
cdef const ep_failure *symmetric_failure(const ep_symmetric *s) noexcept nogil
cdef uint64_t symmetric_number(const ep_symmetric *s) noexcept nogil
cdef int symmetric_connect(ep_symmetric *s, const ep_connection *connection,
                           uint32_t *num_here) noexcept nogil
cdef int symmetric_grow(ep_symmetric *s, uint64_t needed) noexcept nogil
cdef int symmetric_ensure_landing(ep_symmetric *s, uint64_t nbytes, const uint64_t *said,
                                  ep_heard *heard) noexcept nogil
cdef int symmetric_ensure_low_latency(ep_symmetric *s, const ep_ll_shape *shape, uint64_t nbytes,
                                      void *stream) noexcept nogil
cdef int symmetric_reset(ep_symmetric *s, const uint64_t *said, ep_heard *heard) noexcept nogil
cdef int symmetric_end(ep_symmetric *s) noexcept nogil

# These for `_low_latency`.
cdef uint64_t low_latency_bytes(const ep_ll_shape *shape, uint32_t num_ranks) noexcept nogil
cdef uint64_t low_latency_smem(const ep_ll_shape *shape) noexcept nogil


cdef class CoreBuffer:
    cdef ep_buffer *core             # owned
    cdef readonly Executor executor  # outlives the core
    cdef readonly uint32_t rank
    cdef readonly uint32_t num_ranks
    cdef readonly uint32_t ll_dispatch_smem     # dynamic shared memory that it can have at most
    cdef bint grows                  # the arena
    cdef readonly bint shrinks       # see ep_buffer_ll_shrink
    cdef list kernels                # keeps the loaded code
    cdef list symbols
    cdef dict views                  # segment -> what keeps the memory that its slots show
    cdef list captured               # mappings of captured calls

    cpdef size_t look(self, size_t stream) except? 0
    cdef int raise_for(self, int code) except -1
    cdef ep_arena_stats stats(self) noexcept

    cdef int check_stage_bytes(self, uint32_t kernel, uint32_t stage_bytes) except -1
    cdef int layout_with(self, const ep_layout_args *args) except -1
    cdef int dispatch_with(self, const ep_dispatch_args *args, ep_dispatch_result *out) except -1
    cdef int copy_out_with(self, const ep_call *call, const ep_copies *copies, const ep_block *slot,
                           uint32_t slot_rows) except -1
    cdef int combine_with(self, const ep_combine_args *args) except -1
    cdef int ll_dispatch_with(self, const ep_ll_dispatch_args *args, uint64_t *number) except -1
    cdef int ll_combine_with(self, const ep_ll_combine_args *args) except -1
    cdef int ll_mask_with(self, const ep_ll_mask_args *args) except -1
    cdef ep_block *take(self, uint64_t nbytes, size_t stream) except NULL
    cdef int written(self, const ep_extent *where, uint64_t nbytes) except -1
    cdef void locate_slot(self, const ep_block *block, ep_extent *out) noexcept
    cdef void locate_segment(self, uint32_t index, ep_extent *out) noexcept
    cdef bint find(self, uint64_t address, uint64_t nbytes, ep_extent *out) noexcept
    cdef void retire(self, ep_block *block, void **streams, bint lasting) noexcept nogil
    cdef void give_back(self, ep_block *block) noexcept nogil
