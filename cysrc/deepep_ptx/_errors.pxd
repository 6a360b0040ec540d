# SPDX-License-Identifier: MIT
from libc.stdint cimport uint32_t

from deepep_ptx._executor cimport Executor
from gen.params cimport ep_status_record

# What the device reported in a call, oldest first; all borrowed.
cdef struct Report:
    const ep_status_record *records
    uint32_t num_records
    uint32_t rank
    bint grows              # the arena; else it is of fixed size
    bint crowded            # see ep_residency_is_crowded

# The one place where a result of the core or of an executor becomes an exception.
cdef int check(int code, Executor executor, const Report *report=*) except -1
