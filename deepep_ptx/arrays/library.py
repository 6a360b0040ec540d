# SPDX-License-Identifier: MIT
"""Which library an array is of."""

import sys
from typing import Protocol

import numpy as np

from .._array import HOST
from . import dlpack
from .cupy_arrays import CuPy
from .device_array import Device, DeviceArray
from .numpy_arrays import NumPy
from .torch_arrays import Torch


class Library(Protocol):
    """How arrays of one library are read and made.

    name: as error texts call it.  on_gpu: whether the cuda executor uses its arrays in place.
    """

    name: str
    on_gpu: bool

    def take(self, value, name, stream):
        """The `Array` of argument `name`, ready on `stream`; TypeError if it is none."""

    def empty(self, executor, shape, dtype, stream):
        """A new array for use on `stream`, as an `Array` whose owner it is."""

    def part(self, executor, slot, offset, shape, dtype, stream, copy):
        """The library's array over bytes from `offset` of `slot`, which it keeps; or a copy."""

    def freeze(self, array):
        """Make the library's array read-only, if it can be."""

    def current_stream(self, value, device):
        """The library's stream (int) for work on GPU `device`, where `value` is."""


NUMPY = NumPy()
DEVICE = Device()

# Type of an array -> its library; grows as types are met.
_BY_TYPE = {np.ndarray: NUMPY, DeviceArray: DEVICE}

# Module -> (name of its array type, library)
_BY_MODULE = {"torch": ("Tensor", Torch), "cupy": ("ndarray", CuPy)}
_LOADED = {}


def library_of(value, name):
    """The library of argument `name`.

    Raises:
        TypeError: not an array; names the type.
    """
    return _BY_TYPE.get(type(value)) or _find(value, name)


def _find(value, name):
    if isinstance(value, np.ndarray):
        return NUMPY
    if isinstance(value, (type, np.generic)):
        raise _not_an_array(value, name)
    for module_name, (type_name, library) in _BY_MODULE.items():
        module = sys.modules.get(module_name)
        array_type = getattr(module, type_name, None)
        if array_type is not None and isinstance(value, array_type):
            if module_name not in _LOADED:      # one object, whichever thread is first
                _LOADED.setdefault(module_name, library(module))
            _BY_TYPE[type(value)] = _LOADED[module_name]
            return _LOADED[module_name]
    if hasattr(value, "__cuda_array_interface__"):
        return DEVICE
    if hasattr(value, "__array_interface__"):
        return NUMPY
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        return NUMPY if dlpack.device_of(value, name) == HOST else DEVICE
    raise _not_an_array(value, name)


def _not_an_array(value, name):
    return TypeError(f"{name}: takes a NumPy array, a torch tensor or an object that exports "
                     "DLPack, __cuda_array_interface__ or __array_interface__, got "
                     f"{dlpack.type_name(value)}")
