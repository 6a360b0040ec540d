# SPDX-License-Identifier: MIT
from libc.stdint cimport uint32_t, uint64_t

from deepep_ptx._arguments cimport Launch
from deepep_ptx._array cimport Array, Form
from deepep_ptx._buffer cimport CoreBuffer
from deepep_ptx._core cimport ep_ll_shape


cdef class Shape:
    cdef ep_ll_shape shape
    cdef uint32_t num_ranks
    cdef dict forms             # (CAST_* or none, dtype of FP8) -> of a dispatch's results

    cdef tuple results(self, uint32_t cast, fp8)
    cdef tuple rows(self)


cdef class Sent:
    cdef Array x, topk_idx, recv_x, recv_scales, recv_count, src_info, layout_range, places
    cdef Array recv_stats, wait_stats
    cdef uint32_t cast


cdef class Combined:
    cdef Array x, topk_idx, topk_weights, out, places, wait_stats
    cdef uint32_t x_row_bytes
    cdef bint logfmt
    cdef uint64_t handle


# Each gives what must stay until the call has ended, or None; `number`: of the call.
cdef object dispatch(CoreBuffer core, Shape shape, Sent call, uint32_t phases, Launch launch,
                     uint64_t *number)
cdef object combine(CoreBuffer core, Shape shape, Combined call, uint32_t phases, Launch launch)
