# SPDX-License-Identifier: MIT
from libc.stdint cimport uint32_t, uint64_t

from deepep_ptx._executor cimport Executor, ep_dptr_t, ep_executor

cdef extern from "cuda/executor.h" nogil:
    struct cuda_executor
    cuda_executor *cuda_executor_create(int device, const char **why)
    void cuda_executor_destroy(cuda_executor *executor)
    const ep_executor *cuda_executor_table(cuda_executor *executor)
    int cuda_executor_arch(const cuda_executor *executor)
    uint32_t cuda_executor_cta_smem(const cuda_executor *executor)
    const char *cuda_executor_device_name(const cuda_executor *executor)
    int cuda_executor_load(cuda_executor *executor, const char *ptx, const char *symbol,
                           uint32_t param_bytes, void **kernel)
    void cuda_executor_unload(cuda_executor *executor, void *kernel)
    int cuda_executor_alloc_async(cuda_executor *executor, uint64_t nbytes, void *stream,
                                  ep_dptr_t *out)
    int cuda_executor_free_async(cuda_executor *executor, ep_dptr_t ptr, void *stream)
    void cuda_executor_ask(cuda_executor *executor, int (*interrupted)() noexcept nogil)
    int cuda_executor_copy(cuda_executor *executor, ep_dptr_t dst, ep_dptr_t src,
                           uint64_t nbytes, void *stream)
    int cuda_executor_profile(cuda_executor *executor, uint32_t most)
    int cuda_executor_launch_time(cuda_executor *executor, uint32_t index, void **kernel,
                                  float *microseconds)
    int cuda_executor_timed_event(cuda_executor *executor, void **event)
    int cuda_executor_timed_event_destroy(cuda_executor *executor, void *event)
    int cuda_executor_elapsed(cuda_executor *executor, void *begin, void *end,
                              float *microseconds)
    int cuda_executor_time_copy(cuda_executor *executor, ep_dptr_t dst, ep_dptr_t src,
                                uint64_t nbytes, uint32_t times, void *stream,
                                float *microseconds)
    int cuda_executor_uuid(cuda_executor *executor, void *uuid)
    int cuda_executor_device_of(cuda_executor *executor, ep_dptr_t address)
    int cuda_executor_enable_peer(cuda_executor *executor, const cuda_executor *peer)
    void cuda_executor_stop(cuda_executor *executor)

cdef extern from "cuda/driver.h" nogil:
    enum:
        CUDA_MIN_DRIVER

cdef extern from "cuda/device.h" nogil:
    struct cuda_device_facts:
        char name[128]
        int arch
        uint64_t memory

    struct cuda_link_facts:
        int access
        int atomics
        int rank

    int cuda_driver_version(const char **why)
    int cuda_device_count(const char **why)
    int cuda_describe_device(int device, cuda_device_facts *out, const char **why)
    int cuda_describe_link(int origin, int peer, cuda_link_facts *out, const char **why)


cdef extern from "cuda/event.h" nogil:
    const char *cuda_event_create(void **event)
    const char *cuda_event_destroy(void *event)
    const char *cuda_event_record(void *event, void *stream)
    const char *cuda_event_wait(void *event, void *stream)
    const char *cuda_event_synchronize(void *event)
    const char *cuda_event_query(void *event, int *done)
    bint cuda_has_context()


cdef class CudaExecutor(Executor):
    cdef cuda_executor *own         # owned
    cdef void *stream               # owned: copies of arrays
    cdef dict mapped                # device address -> (host address, nbytes, writable)
    cdef dict symbols               # kernel -> its symbol
    cdef readonly int device
    cdef readonly int rank
    cdef readonly object world
    cdef str kind
    cdef int call(self, int code) except -1


cdef class CudaKernel:
    cdef CudaExecutor executor      # keeps the context
    cdef void *kernel               # owned
