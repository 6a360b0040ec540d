# SPDX-License-Identifier: MIT
from libc.stdint cimport uint32_t, uint64_t

from deepep_ptx._array cimport Array
from deepep_ptx._call cimport Call
from deepep_ptx._executor cimport Event


cdef class Launch:
    cdef readonly size_t stream
    cdef readonly Event previous
    cdef readonly uint32_t num_sms
    cdef readonly bint wait
    cdef readonly bint detached
    cdef readonly size_t graph
    cdef readonly uint32_t stages
    cdef readonly uint32_t stage_bytes
    cdef readonly Event started


# What `checks.as_bool` says.
cdef bint as_flag(value, str name) except -1
cpdef Array take_indices(Call call, topk_idx, num_tokens=*)
cpdef Array take_weights(Call call, topk_weights, num_rows, num_topk=*)


cdef class Rows:
    cdef readonly Array array
    cdef readonly uint32_t code
    cdef readonly uint64_t hidden
    cdef readonly Array scales
    cdef readonly uint64_t scale_bytes
    cdef readonly uint32_t scale_width
    cdef readonly tuple strides

    cdef int widen(self) except -1


cdef class Placement:
    cdef readonly object library
    cdef readonly Array pos
    cdef readonly Array rank_prefix
    cdef readonly Array in_rank
    cdef readonly Array rank_counts
    cdef readonly Array expert_counts
    cdef readonly uint32_t num_experts
    cdef readonly uint64_t handle
    cdef readonly uint32_t rows
