# SPDX-License-Identifier: MIT
"""NumPy arrays, and host memory of libraries that are not known by name."""

import math

import numpy as np

from .._array import HOST, Array
from . import dlpack

# Of the first byte of arrays made here: what rows need, and a cache line for good measure.
_ALIGNMENT = 64


class NumPy:
    """Takes host memory of any library; makes NumPy arrays.

    On the CPU executor results are views.  On GPUs arrays are copied to the device before a call
    and results from it afterwards.
    """

    name = "NumPy"
    on_gpu = False
    blocks = False
    shares = False
    captures = True
    lasting = False

    def take(self, value, name, stream):
        """See `library.Library`."""
        if not isinstance(value, np.ndarray):
            if not hasattr(value, "__array_interface__"):
                return dlpack.take(value, name)
            value = np.asarray(value)
        address = value.__array_interface__["data"][0]
        return Array(value, address, value.shape, value.dtype, HOST, value.flags.c_contiguous,
                     strides=value.strides)

    def empty(self, executor, shape, dtype, stream):
        """See `library.Library`."""
        array = _empty(shape, dtype)
        return Array(array, array.__array_interface__["data"][0], shape, dtype)

    def part(self, executor, slot, offset, shape, dtype, stream, copy):
        """See `library.Library`."""
        nbytes = math.prod(shape) * dtype.itemsize
        if executor.name != "emu":
            return executor.read(slot.address + offset, nbytes).view(dtype).reshape(shape)
        array = np.asarray(slot)[offset:offset + nbytes].view(dtype).reshape(shape)
        if copy:
            view, array = array, _empty(shape, dtype)
            array[...] = view
        return array

    def freeze(self, array):
        """Make it read-only, as far as the library can."""
        array.flags.writeable = False

    def current(self, device):
        """None: it has no streams of its own."""

    def share(self, array, stream, device):
        """Nothing: the buffer keeps the array until the call has ended."""

    def current_stream(self, value, device):
        """The stream on which its work is."""
        return 0


def _empty(shape, dtype):
    nbytes = math.prod(shape) * dtype.itemsize
    storage = np.empty(nbytes + _ALIGNMENT, np.uint8)
    first = -storage.__array_interface__["data"][0] % _ALIGNMENT
    return storage[first:first + nbytes].view(dtype).reshape(shape)
