# SPDX-License-Identifier: MIT
"""CuPy arrays.  This module never imports CuPy: who gives an array has it."""

import contextlib

import numpy as np

from .._array import Array


class CuPy:
    """Takes and makes CuPy arrays."""

    name = "CuPy"
    on_gpu = True
    blocks = True
    shares = False
    captures = True
    lasting = False         # a stream ends with its object
    ordinary = False
    lends = False
    fp8 = np.dtype(np.uint8)     # it has no type of FP8

    def __init__(self, cupy):
        self.cupy = cupy

    def check_type(self, kind, name):
        """CuPy has no subclasses that are more than their memory."""

    def take(self, array, name, stream):
        """See `library.Library`."""
        return Array(array, array.data.ptr, array.shape, np.dtype(array.dtype), array.device.id,
                     array.flags.c_contiguous, strides=array.strides)

    def empty(self, executor, shape, dtype, stream):
        """See `library.Library`."""
        with self._on(stream, executor.device):
            array = self.cupy.empty(shape, dtype)
        return Array(array, array.data.ptr, shape, dtype, executor.device)

    def part(self, executor, slot, offset, shape, dtype):
        """See `library.Library`."""
        cuda = self.cupy.cuda
        memory = cuda.UnownedMemory(slot.address, slot.nbytes, slot, executor.device)
        return self.cupy.ndarray(shape, dtype, cuda.MemoryPointer(memory, offset))

    def first_rows(self, array, rows):
        """See `library.Library`."""
        return array.owner[:rows]

    def entry(self, array, index):
        """See `library.Library`."""
        return array.owner.reshape(-1)[index:index + 1]

    def swapped(self, array):
        """See `library.Library`."""
        return array.owner.swapaxes(-2, -1)

    def is_read_only(self, value):
        """CuPy arrays cannot be."""
        return False

    def freeze(self, array):
        """CuPy arrays cannot be read-only."""

    def current_stream(self, array, device):
        """The stream on which its work is."""
        return self.cupy.cuda.get_current_stream(device).ptr

    def current(self, device):
        """See `library.Library`."""
        return lambda: self.cupy.cuda.get_current_stream(device).ptr

    def share(self, array, stream, device):
        """CuPy's pool knows of one stream per array: the buffer keeps it until the call has ended.
        """

    @contextlib.contextmanager
    def _on(self, stream, device):
        # The memory pool gives memory to a stream: to the one that the results are for.
        cuda = self.cupy.cuda
        with cuda.Device(device), cuda.ExternalStream(stream, device):
            yield
