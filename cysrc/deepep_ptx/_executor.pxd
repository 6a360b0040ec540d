# SPDX-License-Identifier: MIT
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "deepep_ptx/executor.h" nogil:
    ctypedef uint64_t ep_dptr_t

    enum:
        EP_HANDLE_BYTES

    enum:
        EP_OK
        EP_ERR_ARGUMENT
        EP_ERR_MEMORY
        EP_ERR_EXECUTOR
        EP_ERR_ABORTED
        EP_ERR_TIMEOUT
        EP_ERR_STATUS
        EP_ERR_CAPACITY
        EP_ERR_DESTROYED
        EP_ERR_INTERRUPTED
        EP_ERR_CAPTURED
        EP_ERR_CALLER

    struct ep_launch:
        void *kernel
        const void *params
        uint32_t param_bytes
        uint32_t grid
        uint32_t block
        uint32_t smem
        void *stream

    # `self` is spelled `context` here: Cython keeps the name for methods.
    struct ep_executor:
        void *self
        int (*alloc)(void *context, uint64_t bytes, const char *name, ep_dptr_t *out) noexcept nogil
        int (*free)(void *context, ep_dptr_t ptr, void *stream) noexcept nogil
        int (*host_alloc)(void *context, uint64_t bytes, const char *name, void **host,
                          ep_dptr_t *out) noexcept nogil
        int (*host_free)(void *context, void *host) noexcept nogil
        int (*copy_in)(void *context, ep_dptr_t dst, const void *src, uint64_t bytes,
                       void *stream) noexcept nogil
        int (*copy_out)(void *context, void *dst, ep_dptr_t src, uint64_t bytes,
                        void *stream) noexcept nogil
        int (*fill)(void *context, ep_dptr_t dst, uint8_t value, uint64_t bytes,
                    void *stream) noexcept nogil
        int (*export_memory)(void *context, ep_dptr_t ptr, void *handle) noexcept nogil
        int (*import_memory)(void *context, const void *handle, ep_dptr_t *out) noexcept nogil
        int (*release_memory)(void *context, ep_dptr_t imported) noexcept nogil
        int (*stream_create)(void *context, void **out) noexcept nogil
        int (*stream_destroy)(void *context, void *stream) noexcept nogil
        int (*stream_synchronize)(void *context, void *stream) noexcept nogil
        int (*stream_wait)(void *context, void *waiter, void *waited) noexcept nogil
        int (*event_create)(void *context, void **out) noexcept nogil
        int (*event_destroy)(void *context, void *event) noexcept nogil
        int (*event_record)(void *context, void *event, void *stream) noexcept nogil
        int (*event_wait)(void *context, void *stream, void *event) noexcept nogil
        int (*event_synchronize)(void *context, void *event) noexcept nogil
        int (*event_query)(void *context, void *event, int *done) noexcept nogil
        int (*capture)(void *context, void *stream, void **graph) noexcept nogil
        int (*graph_keep)(void *context, void *graph, void *what,
                          void (*release)(void *what) noexcept nogil) noexcept nogil
        int (*launch)(void *context, const ep_launch *launch) noexcept nogil
        void (*will_read)(void *context, const void *host, uint64_t nbytes) noexcept nogil
        int (*wait_word)(void *context, void *stream, const uint64_t *word, uint64_t want,
                         uint64_t timeout_ns) noexcept nogil
        int (*interrupted)() noexcept nogil
        int (*max_resident)(void *context, void *kernel, uint32_t block, uint32_t smem,
                            uint32_t *ctas) noexcept nogil
        const char *(*last_error)(void *context) noexcept nogil


cdef class Executor:
    # Filled by the subclass's __cinit__, valid while this object lives.  Owned by the subclass.
    cdef const ep_executor *table
    cdef readonly str name      # "emu" or "cuda"
    cdef readonly str arch      # "sm_90"
    cdef readonly uint32_t cta_smem     # bytes of shared memory that a CTA can have

    # What it is like, where callers of more than one kind can tell; True by its __cinit__.
    # Kernels use arrays of host memory in place, and the host sees device memory (`host_view`);
    # else arrays are in memory of GPU `device`, an attribute of the subclass.
    cdef readonly bint in_host_memory
    # The caller's work is on streams, which calls take; else the host itself does it.
    cdef readonly bint takes_streams
    # Launches, copies and events have times.
    cdef readonly bint keeps_time
    # Memory and code are gone with the run that made it, not with the process.
    cdef readonly bint ends_with_run

    # Memory of arrays that only this rank's kernels use.  free_array: after what `stream` has
    # queued, and without waiting for the device, where a peer may spin.
    cdef int alloc_array(self, uint64_t nbytes, const char *name, void *stream,
                         ep_dptr_t *out) noexcept nogil
    cdef int free_array(self, ep_dptr_t dptr, void *stream) noexcept nogil


cdef class Event:
    cdef Executor executor           # None: of the driver's current context
    cdef void *handle                # owned; NULL: complete
    cdef int call(self, int code) except -1


cdef class Memory:
    cdef Executor executor           # keeps the device
    cdef void *stream                # on which it is used
    cdef readonly ep_dptr_t address
    cdef readonly uint64_t nbytes
