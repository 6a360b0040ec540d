# SPDX-License-Identifier: MIT
from deepep_ptx._buffer cimport CoreBuffer
from deepep_ptx._core cimport ep_block, ep_extent


cdef class Slot:
    cdef CoreBuffer buffer      # keeps the memory
    cdef ep_block *block        # owned
    cdef ep_extent where
    cdef void *stream           # the caller's, on which the arrays are used; outlives them
    cdef public object current  # None, or a function that gives the thread's stream at the end
    cdef public bint lasting    # no other stream ever has the number of these
    cdef public bint settled    # nothing uses it any more but what the buffer's stream has queued

    @staticmethod
    cdef Slot wrap(CoreBuffer buffer, ep_block *block, size_t stream)
