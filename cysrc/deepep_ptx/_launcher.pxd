# SPDX-License-Identifier: MIT
from libc.stdint cimport uint32_t

from deepep_ptx._arguments cimport Launch
from deepep_ptx._buffer cimport CoreBuffer
from deepep_ptx._call cimport Call


cdef class Launcher:
    cdef readonly CoreBuffer core
    cdef readonly object library        # of the newest call, None before the first
    cdef readonly object last_num_sms   # likewise, what it was given
    cdef readonly uint32_t max_sms
    cdef object in_flight
    cdef object results
    cdef uint32_t ranks_here
    cdef bint is_thread

    cpdef Launch launch(self, Call call, num_sms, tuple ring, previous_event, async_finish,
                        allocate_on_comm_stream, bint has_start=*)
    cdef bint host_waits(self, Call call, bint async_finish) except -1
