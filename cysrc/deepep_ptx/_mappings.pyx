# SPDX-License-Identifier: MIT
"""Arrays as the kernels of one call see them."""

import contextlib

cimport cython
from libc.stdint cimport int64_t, uint64_t

from deepep_ptx._arguments cimport Launch
from deepep_ptx._array cimport IN_HOST_MEMORY, Array
from deepep_ptx._buffer cimport CoreBuffer
from deepep_ptx._core cimport ep_extent
from deepep_ptx._executor cimport ep_dptr_t

from deepep_ptx.errors import DeepEPError


@cython.final
@cython.no_gc_clear     # __dealloc__ uses the buffer
cdef class Mappings:
    """The arrays of one call as device addresses.  What is in host memory is mapped until the end
    of the `with` block, or for longer: see `until_end`."""

    def __cinit__(self, CoreBuffer buffer not None):
        self.buffer = buffer

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if self.mapped is None:
            return
        # All of them, whatever one says; what ended the block counts more than that.
        failure = None
        for dptr in self.mapped:
            try:
                self.buffer.executor.unmap(dptr)
            except DeepEPError as unmap_error:
                failure = failure or unmap_error
        self.mapped = None
        if failure is not None and error is None:
            raise failure

    def __dealloc__(self):
        # Of a call that nobody waited for, when its run has ended.
        for dptr in self.mapped or ():
            with contextlib.suppress(DeepEPError):
                self.buffer.executor.unmap(dptr)

    cdef object until_end(self, Launch launch):
        # Mappings that must stay until the call has ended; None where it has, or nothing is mapped.
        cdef Mappings rest
        if launch.wait or self.mapped is None:
            return None
        rest = Mappings(self.buffer)
        rest.mapped, self.mapped = self.mapped, rest.mapped
        rest.arrays = self.arrays
        if launch.graph:
            self.buffer.captured.append(rest)
            return None
        return rest

    def close(self):
        """Unmap all."""
        self.__exit__(None, None, None)

    cdef ep_dptr_t add(self, Array array, bint writable, str name) except? 0:
        # 0 for None and for an array without bytes.
        if array is None or array.nbytes == 0:
            return 0
        return self.locate(array, array.address, array.nbytes, writable, name)

    cdef ep_dptr_t add_span(self, Array array, tuple span, str name) except? 0:
        # The same for an array that is not contiguous: its first element's address.
        cdef int64_t first = span[0], end = span[1]
        if end == first:
            return 0
        return self.locate(array, array.address + first, end - first, False, name) - first

    cdef ep_dptr_t locate(self, Array array, uint64_t address, uint64_t nbytes, bint writable,
                          str name) except? 0:
        # Arena memory has an address already, and so has memory of the GPU.
        cdef ep_extent where
        if self.buffer.find(address, nbytes, &where):
            return where.dptr
        if array.device != IN_HOST_MEMORY:
            return address
        if self.mapped is None:
            self.mapped, self.arrays = [], []
        dptr = self.buffer.executor.map_array(address, nbytes, writable, name)
        self.mapped.append(dptr)
        self.arrays.append(array)
        return dptr
