# SPDX-License-Identifier: MIT
"""Which library an array is of."""

import sys
from typing import Protocol

import numpy as np

from .._array import HOST
from .._torch import Torch
from . import dlpack
from .cupy_arrays import CuPy
from .device_array import Device, DeviceArray
from .dtypes import ROW_CODES, why_unknown
from .numpy_arrays import NumPy, check_mask


class Library(Protocol):
    """How arrays of one library are read and made.

    name: as error texts call it.  on_gpu: whether the cuda executor uses its arrays in place.
    blocks: whether its allocations and kernels' loads may wait for a whole device.  shares: whether
    `share` works: an array may be allocated for one stream and used on another.  captures: whether
    it allocates while a stream is captured.  lasting: whether its streams last as long as the
    process.  ordinary: whether its allocator promises more than views of the arena can keep.
    lends: whether arrays/torch_memory.py makes its arrays in the arena.  fp8: dtype of FP8 results.
    """

    name: str
    on_gpu: bool
    blocks: bool
    shares: bool
    captures: bool
    lasting: bool
    ordinary: bool
    lends: bool
    fp8: np.dtype

    def take(self, value, name, stream):
        """The `Array` of argument `name`, ready on `stream`; TypeError if it is none."""

    def check_type(self, kind, name):
        """TypeError for a subclass of the library's array type that is not simply its memory; only
        of libraries that are known by name."""

    def empty(self, executor, shape, dtype, stream):
        """A new array for use on `stream`, as an `Array` whose owner it is."""

    def part(self, executor, slot, offset, shape, dtype):
        """The library's array over bytes from `offset` of `slot`, which it keeps; a copy where its
        arrays are in other memory."""

    def first_rows(self, array, rows):
        """The library's array of the first rows of an `Array` of its own."""

    def entry(self, array, index):
        """The library's array of one element, that `index` of an `Array` of its own, in the same
        memory."""

    def swapped(self, array):
        """The library's array of an `Array` of its own, with the last two dimensions swapped, in
        the same memory."""

    def is_read_only(self, value):
        """Whether an array that `take` takes says that it must not be written to."""

    def freeze(self, array):
        """Make the library's array read-only, if it can be."""

    def current_stream(self, value, device):
        """The library's stream (int) for work on GPU `device`, where `value` is, or None: no
        array."""

    def current(self, device):
        """A function that gives the thread's current stream (int) on GPU `device`; None where the
        library has none."""

    def share(self, array, stream, device):
        """Stream `stream` uses the library's array too: its memory is not to be reused before."""


NUMPY = NumPy()
DEVICE = Device()

# Type of an array -> its library; grows as types are met.
BY_TYPE = {np.ndarray: NUMPY, DeviceArray: DEVICE}

# Module -> (name of its array type, library)
_BY_MODULE = {"torch": ("Tensor", Torch), "cupy": ("ndarray", CuPy)}
_LOADED = {}


def default_library(executor):
    """What arrays are of where a call names no array: on GPUs torch if it is loaded and uses
    them."""
    if executor.in_host_memory:
        return NUMPY
    torch = sys.modules.get("torch")
    return DEVICE if torch is None or not torch.cuda.is_available() else _load("torch", torch)


def give_back_caches(executor):
    """What libraries keep of the GPU's memory without using it goes back to the driver."""
    if executor.in_host_memory:
        return
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if cupy is not None:
        cupy.get_default_memory_pool().free_all_blocks()


def library_of_dtype(dtype, executor):
    """(library, NumPy dtype) of a dtype of torch or of what `numpy.dtype` takes.

    Raises:
        TypeError: neither.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(dtype, torch.dtype):
        library = _load("torch", torch)
        known = library.dtype_of(dtype)
        if known is None:
            raise TypeError(f"dtype: {dtype} is not taken, DLPack has no name for it")
        return library, known
    try:
        known = None if dtype is None else np.dtype(dtype)      # to NumPy None is float64
    except TypeError:
        known = None
    if known is None:
        raise TypeError(f"dtype: must be a dtype of torch or NumPy, got {dtype!r}")
    if known not in ROW_CODES:
        raise TypeError(f"dtype: {why_unknown(known)}")
    return (NUMPY if executor.in_host_memory else DEVICE), known


def _load(module_name, module):
    # One object, whichever thread is first.
    return _LOADED.setdefault(module_name, _BY_MODULE[module_name][1](module))


def library_of(value, name):
    """The library of argument `name`.

    Raises:
        TypeError: not an array; names the type.
    """
    return BY_TYPE.get(type(value)) or _find(value, name)


def _find(value, name):
    if isinstance(value, np.ndarray):
        check_mask(value, getattr(value, "mask", None), name)
        return NUMPY
    if isinstance(value, (type, np.generic)):
        raise _not_an_array(value, name)
    for module_name, (type_name, _) in _BY_MODULE.items():
        module = sys.modules.get(module_name)
        array_type = getattr(module, type_name, None)
        if array_type is not None and isinstance(value, array_type):
            library = _LOADED.get(module_name) or _load(module_name, module)
            library.check_type(type(value), name)
            BY_TYPE[type(value)] = library
            return library
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
