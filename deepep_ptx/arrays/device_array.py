# SPDX-License-Identifier: MIT
"""Arrays in GPU memory without a library."""

import math
import operator

import numpy as np

from .. import _dlpack
from .._array import UNKNOWN, Array, is_contiguous
from .._executor import Memory
from . import dlpack
from .dtypes import FP8
from .numpy_arrays import check_mask
from .streams import stream_number


class DeviceArray:
    """An array in the memory of one GPU, C-contiguous, or with its last two dimensions swapped.

    What calls with arrays of an unknown library return.  Exports DLPack (of versions 0 and 1) and
    `__cuda_array_interface__`, both without a copy.

    shape, dtype (NumPy), nbytes, address (of the first byte), device (ordinal of the GPU).
    stream: the number of the stream on which the contents are ready.
    swapped: the last two dimensions lie in memory in the other order.
    """

    __slots__ = ("shape", "dtype", "nbytes", "address", "device", "stream", "swapped", "_owner",
                 "_executor", "__weakref__")

    def __init__(self, owner, executor, address, shape, dtype, stream=0, swapped=False):
        self.shape = shape
        self.dtype = dtype
        self.nbytes = math.prod(shape) * dtype.itemsize
        self.address = address
        self.device = executor.device
        self.stream = stream
        self.swapped = swapped
        self._owner = owner             # keeps the memory
        self._executor = executor

    def __repr__(self):
        return f"<DeviceArray {self.dtype} {list(self.shape)} on cuda:{self.device}>"

    def __len__(self):
        if not self.shape:
            raise TypeError("len() of an array without dimensions")
        return self.shape[0]

    @property
    def ndim(self):
        """Number of dimensions."""
        return len(self.shape)

    def numpy(self):
        """A copy as a NumPy array."""
        data = self._executor.read(self.address, self.nbytes, self.stream).view(self.dtype)
        if self.swapped:
            return data.reshape(_swapped(self.shape)).swapaxes(-2, -1)
        return data.reshape(self.shape)

    def copy(self):
        """A copy in memory of its own."""
        return self._copy_for(self.stream)

    def _copy_for(self, stream):
        made = _empty(self._executor, self.shape, self.dtype, stream)
        made.swapped = self.swapped
        if self.nbytes:
            self._executor.stream_wait(stream, self.stream)
            made._owner.copy_from(self.address)
        return made

    @property
    def __cuda_array_interface__(self):
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,      # "<V2" for bfloat16: the protocol has no name for it
            "data": (self.address, False),
            "strides": self._strides,
            "stream": self.stream or 1,     # 1: the legacy default stream
        }

    @property
    def _strides(self):
        """In bytes; None: C order."""
        if not self.swapped:
            return None
        step, steps = self.dtype.itemsize, []
        for length in reversed(_swapped(self.shape)):
            steps.append(step)
            step *= length
        return _swapped(tuple(reversed(steps)))

    def __dlpack_device__(self):
        return _dlpack.CUDA, self.device

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        if dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"dl_device: is on {self.__dlpack_device__()}; use numpy() for a "
                              "copy in host memory")
        source = self.copy() if copy else self
        # DLPack: None is the legacy default stream, -1 asks for no order.
        if stream != -1:
            self._executor.stream_wait(stream_number(stream or 0), self.stream)
        versioned = max_version is not None and max_version[0] >= 1
        return dlpack.export(source, source.address, source.shape, source.dtype, source.device,
                             versioned, source.swapped)


class Device:
    """Takes device memory of any library, makes `DeviceArray`."""

    name = "CUDA"
    on_gpu = True
    blocks = False
    shares = False
    captures = False
    lasting = False
    ordinary = False
    lends = False
    fp8 = FP8

    def take(self, value, name, stream):
        """See `library.Library`."""
        if type(value) is DeviceArray:
            return Array(value, value.address, value.shape, value.dtype, value.device,
                         not value.swapped, value.stream, value._strides)
        if hasattr(value, "__cuda_array_interface__"):
            return _from_interface(value, name, stream)
        return dlpack.take(value, name, stream)

    def empty(self, executor, shape, dtype, stream):
        """See `library.Library`."""
        array = _empty(executor, shape, dtype, stream)
        return Array(array, array.address, shape, dtype, array.device)

    def part(self, executor, slot, offset, shape, dtype):
        """See `library.Library`."""
        return DeviceArray(slot, executor, slot.address + offset, shape, dtype, slot.stream_number)

    def first_rows(self, array, rows):
        """See `library.Library`."""
        whole = getattr(array, "owner", array)
        return DeviceArray(whole._owner, whole._executor, whole.address, (rows, *whole.shape[1:]),
                           whole.dtype, whole.stream)

    def entry(self, array, index):
        """See `library.Library`."""
        whole = array.owner
        return DeviceArray(whole._owner, whole._executor,
                           whole.address + index * whole.dtype.itemsize, (1,), whole.dtype,
                           whole.stream)

    def swapped(self, array):
        """See `library.Library`."""
        whole = array.owner
        return DeviceArray(whole._owner, whole._executor, whole.address, _swapped(whole.shape),
                           whole.dtype, whole.stream, True)

    def is_read_only(self, value):
        """See `library.Library`."""
        return type(value) is not DeviceArray and dlpack.is_read_only(
            getattr(value, "__cuda_array_interface__", None))

    def freeze(self, array):
        """Device memory cannot be read-only."""

    def current(self, device):
        """None: it has no streams of its own."""

    def share(self, array, stream, device):
        """Nothing: the buffer keeps the array until the call has ended."""

    def current_stream(self, value, device):
        """The stream that the array names, else the legacy default stream."""
        interface = getattr(value, "__cuda_array_interface__", None)
        # What is none is refused when it is taken.
        named = interface.get("stream") if isinstance(interface, dict) else None
        return stream_number(named or 0)


def _swapped(lengths):
    """The last two in the other order."""
    return (*lengths[:-2], lengths[-1], lengths[-2])


def _empty(executor, shape, dtype, stream):
    memory = Memory(executor, math.prod(shape) * dtype.itemsize, "array", stream)
    return DeviceArray(memory, executor, memory.address, shape, dtype, stream)


def _from_interface(value, name, stream):
    try:
        interface = value.__cuda_array_interface__
        mask = interface.get("mask")
        dtype = np.dtype(interface["typestr"])
        shape = tuple(map(operator.index, interface["shape"]))
        strides = interface.get("strides")
        if strides is not None:
            strides = tuple(map(operator.index, strides))
        address = operator.index(interface["data"][0] or 0)
        ready = interface.get("stream")
    except dlpack.MALFORMED as error:
        raise TypeError(f"{name}: {dlpack.type_name(value)} has a __cuda_array_interface__ that is "
                        f"none: {type(error).__name__}: {error}") from error
    check_mask(value, mask, name)
    device = UNKNOWN
    if hasattr(value, "__dlpack_device__"):
        device = dlpack.device_of(value, name)
    if dtype.kind == "V":
        # The protocol has no names for bfloat16 and fp8.
        if hasattr(value, "__dlpack__"):
            return dlpack.take(value, name, stream)
        dtype = _dtype_attribute(value, dtype)
    dlpack.check_claim(value, name, "__cuda_array_interface__", address, shape, strides,
                       dtype.itemsize)
    return Array(value, address, shape, dtype, device,
                 is_contiguous(shape, strides, dtype.itemsize),
                 None if ready is None else stream_number(ready, f"{name}: stream"), strides)


def _dtype_attribute(value, opaque):
    try:
        dtype = np.dtype(value.dtype)
    except (AttributeError, TypeError):
        return opaque
    return dtype if dtype.itemsize == opaque.itemsize else opaque
