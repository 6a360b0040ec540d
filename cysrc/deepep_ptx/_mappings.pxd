# SPDX-License-Identifier: MIT
from libc.stdint cimport uint64_t

from deepep_ptx._arguments cimport Launch
from deepep_ptx._array cimport Array
from deepep_ptx._buffer cimport CoreBuffer
from deepep_ptx._executor cimport ep_dptr_t


cdef class Mappings:
    cdef CoreBuffer buffer
    cdef list mapped            # None: nothing
    cdef list arrays            # keeps what is mapped

    cdef object until_end(self, Launch launch)
    cdef ep_dptr_t add(self, Array array, bint writable, str name) except? 0
    cdef ep_dptr_t add_span(self, Array array, tuple span, str name) except? 0
    cdef ep_dptr_t locate(self, Array array, uint64_t address, uint64_t nbytes, bint writable,
                          str name) except? 0
