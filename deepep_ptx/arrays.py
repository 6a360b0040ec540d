# SPDX-License-Identifier: MIT
"""Arrays of any library as NumPy arrays over the same memory, and their checks.

Taken are NumPy arrays and objects that export `__array_interface__` or DLPack in host memory.
NumPy exports neither bfloat16 nor fp8 and reads neither from DLPack, so capsules are read here.
"""

import ctypes

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
INT32 = np.dtype(np.int32)
INT64 = np.dtype(np.int64)
BOOL = np.dtype(np.bool_)


# -- DLPack (dlpack.h, version 0 capsules) ----------------------------------------------------

_CPU = 1

# (type code, bits) -> dtype
_DLPACK_DTYPES = {
    (0, 8): np.dtype(np.int8),
    (0, 16): np.dtype(np.int16),
    (0, 32): INT32,
    (0, 64): INT64,
    (1, 8): np.dtype(np.uint8),
    (1, 16): np.dtype(np.uint16),
    (1, 32): np.dtype(np.uint32),
    (1, 64): np.dtype(np.uint64),
    (2, 16): np.dtype(np.float16),
    (2, 32): FLOAT32,
    (2, 64): np.dtype(np.float64),
    (4, 16): BFLOAT16,
    (6, 8): BOOL,
    (10, 8): np.dtype(ml_dtypes.float8_e4m3fn),
}


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


class _Memory:
    """Memory of another library as NumPy sees it; keeps `owner`."""

    def __init__(self, owner, address, shape, strides, itemsize):
        self.owner = owner
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{itemsize}",
            "shape": shape,
            "strides": strides,
            "data": (address, False),
        }


def _from_dlpack(value, name):
    try:
        capsule = value.__dlpack__()
    except (BufferError, RuntimeError) as error:
        reason = f"{_type_name(value)} does not export its memory: {error}"
        raise TypeError(f"{name}: {reason}") from error
    # The tensor is the first field of its manager.  The capsule stays unconsumed and so frees the
    # tensor itself, when the last array over it has let go of it.
    tensor = _Tensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    dtype = _DLPACK_DTYPES.get((tensor.type_code, tensor.bits))
    if dtype is None or tensor.lanes != 1:
        raise TypeError(f"{name}: DLPack type code {tensor.type_code} with {tensor.bits} bits and "
                        f"{tensor.lanes} lanes is not known")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = None
    if tensor.strides:
        strides = tuple(tensor.strides[i] * dtype.itemsize for i in range(tensor.ndim))
    if 0 in shape:
        return np.empty(shape, dtype)
    address = tensor.data + tensor.byte_offset
    return np.asarray(_Memory(capsule, address, shape, strides, dtype.itemsize)).view(dtype)


# -- any library ------------------------------------------------------------------------------

def borrow(value, name):
    """`value` as a NumPy array over the same memory.

    Raises:
        TypeError: not an array in host memory; names the argument and the type.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, (type, np.generic)):
        raise _not_an_array(value, name)
    if hasattr(value, "__array_interface__"):
        return np.asarray(value)
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        if int(value.__dlpack_device__()[0]) != _CPU:
            raise TypeError(f"{name}: {_type_name(value)} in device memory; the CPU executor "
                            "takes arrays in host memory")
        return _from_dlpack(value, name)
    raise _not_an_array(value, name)


def _type_name(value):
    cls = value if isinstance(value, type) else type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"


def _not_an_array(value, name):
    return TypeError(f"{name}: takes a NumPy array or an object that exports __array_interface__ "
                     f"or DLPack in host memory, got {_type_name(value)}")


def check_array(value, name, dtypes, shape, alignment=1):
    """`value` as a C-contiguous NumPy array of one of `dtypes` and of `shape`.

    Args:
        value: array of any library that `borrow` takes.
        name: the argument, as error texts begin.
        dtypes: accepted NumPy dtypes.
        shape: a length, or the name of a free one, per dimension: (8, "num_topk").
        alignment: of the first byte.

    Raises:
        TypeError: not an array, or another dtype.
        ValueError: another shape, not C-contiguous, or not aligned.
    """
    array = borrow(value, name)
    if array.dtype not in dtypes:
        accepted = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name}: dtype must be {accepted}, got {array.dtype}")
    matches = array.ndim == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not matches:
        accepted = ", ".join(str(length) for length in shape)
        raise ValueError(f"{name}: shape must be [{accepted}], got {list(array.shape)}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: must be C-contiguous, got strides {array.strides} for shape "
                         f"{list(array.shape)}")
    if array.nbytes and array.__array_interface__["data"][0] % alignment:
        raise ValueError(f"{name}: the first byte must be {alignment}-byte aligned")
    return array


def empty(shape, dtype, alignment):
    """A new array whose first byte is aligned."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    storage = np.empty(nbytes + alignment, np.uint8)
    first = -storage.ctypes.data % alignment
    return storage[first:first + nbytes].view(dtype).reshape(shape)


def part(slot, offset, shape, dtype):
    """The array at byte `offset` of `slot`, a uint8 array; it keeps the slot."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return slot[offset:offset + nbytes].view(dtype).reshape(shape)
