# SPDX-License-Identifier: MIT
"""Memory of a buffer's arena as Python objects."""

cimport cython
from libc.stdint cimport uint64_t

from deepep_ptx._buffer cimport CoreBuffer
from deepep_ptx._core cimport ep_block, ep_extent


@cython.final
@cython.no_gc_clear     # __dealloc__ uses the buffer
cdef class Slot:
    """An extent of the arena, as bytes.  Arrays over it keep it; its end releases the extent, for
    calls that come after what is queued by then on `stream`, and on what `current()` names."""

    @staticmethod
    cdef Slot wrap(CoreBuffer buffer, ep_block *block, size_t stream):
        cdef Slot slot = Slot.__new__(Slot)
        slot.stream = <void *>stream
        slot.buffer = buffer
        slot.block = block
        buffer.locate_slot(block, &slot.where)
        slot.lasting = stream == 0
        return slot

    def __dealloc__(self):
        cdef void *streams[2]
        if self.block == NULL:
            return
        if self.settled:
            with nogil:
                self.buffer.give_back(self.block)
            return
        streams[0] = streams[1] = self.stream
        if self.current is not None:
            try:
                streams[1] = <void *><size_t>self.current()
            except Exception:       # of a library that is going, at the very end
                pass
        with nogil:
            self.buffer.retire(self.block, streams, self.lasting)

    @property
    def address(self):
        """Of its first byte, as the caller's arrays see memory."""
        return self.where.view

    @property
    def nbytes(self):
        """Its size."""
        return self.where.bytes

    @property
    def stream_number(self):
        """Of the caller's stream."""
        return <size_t>self.stream

    @property
    def __array_interface__(self):      # where arrays are in host memory
        return {"version": 3, "typestr": "|u1", "shape": (self.where.bytes,),
                "data": (self.where.view, False)}


@cython.final
cdef class Region:
    """The first segment of a buffer's arena, as bytes; the memory goes with the buffer."""

    cdef CoreBuffer buffer
    cdef readonly uint64_t address
    cdef readonly uint64_t nbytes
    cdef readonly size_t stream_number

    def __init__(self, CoreBuffer buffer not None):
        cdef ep_extent where
        self.buffer = buffer
        self.stream_number = 0
        buffer.locate_segment(0, &where)
        self.address = where.view
        self.nbytes = where.bytes

    @property
    def __array_interface__(self):
        return {"version": 3, "typestr": "|u1", "shape": (self.nbytes,),
                "data": (self.address, False)}
