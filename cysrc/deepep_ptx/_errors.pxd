# SPDX-License-Identifier: MIT
from libc.stdint cimport uint32_t

from deepep_ptx._executor cimport Executor
from gen.params cimport ep_status_record

cdef extern from "kernels.h" nogil:
    enum:
        EP_KERNEL_COMBINE
        EP_KERNEL_DISPATCH
        EP_KERNEL_LL_COMBINE
        EP_KERNEL_LL_COMBINE_SHRINK
        EP_KERNEL_LL_LOGFMT_COMBINE
        EP_KERNEL_LL_DISPATCH
        EP_KERNEL_LL_DISPATCH_SHRINK
        EP_NUM_KERNELS

    struct ep_kernel_info:
        const char *name
        uint32_t param_bytes

    const ep_kernel_info ep_kernels[]

# What the device reported in a call, oldest first; all borrowed.
cdef struct Report:
    const ep_status_record *records
    uint32_t num_records
    uint32_t rank
    bint grows              # the arena; else it is of fixed size
    bint crowded            # see ep_buffer_is_crowded
    bint shrinks            # see ep_buffer_ll_shrink

# The one place where a result of the core or of an executor becomes an exception.
cdef int check(int code, Executor executor, const Report *report=*) except -1
