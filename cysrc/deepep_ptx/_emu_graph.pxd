# SPDX-License-Identifier: MIT
from libc.stdint cimport uint32_t

from deepep_ptx._emu cimport World
from deepep_ptx._emu_host cimport host_graph, host_stream


cdef class EmuGraph:
    cdef World world                # keeps the host side alive
    cdef uint32_t rank
    cdef host_graph *graph          # owned once the capture has ended; NULL: none
    cdef host_stream *stream        # that is captured
    cdef bint capturing

    cdef int end(self) noexcept

cdef EmuGraph new_graph(World world, uint32_t rank, size_t stream)
