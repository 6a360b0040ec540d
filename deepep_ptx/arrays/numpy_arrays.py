# SPDX-License-Identifier: MIT
"""NumPy arrays, and host memory of libraries that are not known by name."""

import math

import numpy as np

from .._array import HOST, Array
from . import dlpack
from .dtypes import FP8

# Of the first byte of arrays made here: what rows need, and a cache line for good measure.
_ALIGNMENT = 64


_interface_of = np.ndarray.__array_interface__.__get__


class NumPy:
    """Takes host memory of any library; makes NumPy arrays.

    On the CPU executor results may be views.  On GPUs arrays are copied to the device before a call
    and results from it afterwards.
    """

    name = "NumPy"
    on_gpu = False
    blocks = False
    shares = False
    captures = True
    lasting = False
    ordinary = False
    lends = False
    fp8 = FP8

    def take(self, value, name, stream):
        """See `library.Library`."""
        if not isinstance(value, np.ndarray):
            interface = getattr(value, "__array_interface__", None)
            if interface is None:
                return dlpack.take(value, name)
            value = _from_interface(value, interface, name)
        # Not an attribute that a subclass may have changed.
        address = _interface_of(value)["data"][0]
        return Array(value, address, value.shape, value.dtype, HOST, value.flags.c_contiguous,
                     strides=value.strides)

    def empty(self, executor, shape, dtype, stream):
        """See `library.Library`."""
        array = _empty(shape, dtype)
        return Array(array, array.__array_interface__["data"][0], shape, dtype)

    def part(self, executor, slot, offset, shape, dtype):
        """See `library.Library`."""
        nbytes = math.prod(shape) * dtype.itemsize
        if not executor.in_host_memory:
            return executor.read(slot.address + offset, nbytes).view(dtype).reshape(shape)
        return np.asarray(slot)[offset:offset + nbytes].view(dtype).reshape(shape)

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
        """See `library.Library`."""
        return dlpack.is_read_only(getattr(value, "__array_interface__", None))

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


def _from_interface(value, interface, name):
    try:
        mask = interface.get("mask")
        array = np.asarray(value)
    except dlpack.MALFORMED as error:
        raise TypeError(f"{name}: {dlpack.type_name(value)} has an __array_interface__ that NumPy "
                        f"does not take: {error}") from error
    check_mask(value, mask, name)
    dlpack.check_claim(value, name, "__array_interface__", _interface_of(array)["data"][0],
                       array.shape, array.strides, array.itemsize)
    return array


def check_mask(value, mask, name):
    """TypeError for an array with a mask, which says of values in its memory that they are none."""
    if mask is not None:
        raise TypeError(f"{name}: must have no mask, got {dlpack.type_name(value)}; give a plain "
                        "array, which has a value for each masked one (filled())")


def _empty(shape, dtype):
    nbytes = math.prod(shape) * dtype.itemsize
    storage = np.empty(nbytes + _ALIGNMENT, np.uint8)
    first = -storage.__array_interface__["data"][0] % _ALIGNMENT
    return storage[first:first + nbytes].view(dtype).reshape(shape)
