# SPDX-License-Identifier: MIT
"""DLPack between other libraries and `Array`."""

from .. import _dlpack
from .._array import HOST, Array, check_memory, is_contiguous
from .dtypes import DLPACK, FROM_DLPACK

# What reading a description of an array raises where it is not one.
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

_HOST_TYPES = (_dlpack.CPU, _dlpack.CUDA_HOST)
_GPU_TYPES = (_dlpack.CUDA, _dlpack.CUDA_MANAGED)
MAX_DEVICES = 1 << 16           # more than there are anywhere


def device_of(value, name):
    """Ordinal of the GPU that holds `value`, or HOST.  TypeError for another kind of device."""
    try:
        device_type, device_id = map(int, value.__dlpack_device__())
    except MALFORMED as error:
        raise TypeError(f"{name}: {type_name(value)} has a __dlpack_device__ that gives no pair of "
                        f"integers: {error}") from error
    if device_type in _HOST_TYPES:
        return HOST
    if device_type not in _GPU_TYPES:
        raise TypeError(f"{name}: {type_name(value)} is in memory of DLPack device type "
                        f"{device_type}; taken are host and CUDA memory")
    if not 0 <= device_id < MAX_DEVICES:
        raise TypeError(f"{name}: {type_name(value)} is on GPU {device_id} by its "
                        "__dlpack_device__")
    return device_id


def take(value, name, stream=None):
    """`value` as an `Array`; in device memory its contents are ready on `stream`."""
    device = device_of(value, name)
    # DLPack says 1 for the legacy default stream.
    arguments = {} if device == HOST else {"stream": stream or 1}
    try:
        try:
            capsule = value.__dlpack__(max_version=_dlpack.VERSION, **arguments)
        except TypeError:       # it is older than version 1
            capsule = value.__dlpack__(**arguments)
        tensor = _dlpack.Imported(capsule)
    except (BufferError, RuntimeError, *MALFORMED) as error:
        reason = f"{type_name(value)} does not export its memory: {error}"
        raise TypeError(f"{name}: {reason}") from error
    dtype = FROM_DLPACK.get((tensor.type_code, tensor.bits, tensor.lanes))
    if dtype is None or (tensor.padded and tensor.bits < 8):
        hint = ("; pack the values, several in a byte, and give the bytes as uint8"
                if tensor.bits < 8 else "")
        raise TypeError(f"{name}: DLPack type code {tensor.type_code} with {tensor.bits} bits and "
                        f"{tensor.lanes} lanes is not known{hint}")
    strides = tensor.strides and [step * dtype.itemsize for step in tensor.strides]
    check_claim(value, name, "DLPack", tensor.address, tensor.shape, strides, dtype.itemsize)
    return Array(tensor, tensor.address, tensor.shape, dtype, device,
                 is_contiguous(tensor.shape, tensor.strides, 1), strides=strides)


def check_claim(value, name, protocol, address, shape, strides, itemsize):
    """`TypeError` unless what argument `name` says of its memory can be."""
    try:
        check_memory(address, shape, strides, itemsize)
    except ValueError as error:
        raise TypeError(f"{name}: {type_name(value)} exports by {protocol} an array "
                        f"{error}") from error


def is_read_only(interface):
    """Of `__array_interface__` or `__cuda_array_interface__`; None: there is none."""
    return isinstance(interface, dict) and bool(interface["data"][1])


def export(owner, address, shape, dtype, device, versioned=False, swapped=False):
    """A capsule over C-contiguous memory that `owner` keeps; swapped: of which the last two
    dimensions lie in the other order."""
    if dtype not in DLPACK:
        raise BufferError(f"DLPack has no name for {dtype}")
    place = (_dlpack.CPU, 0) if device == HOST else (_dlpack.CUDA, device)
    return _dlpack.export(owner, address, shape, *DLPACK[dtype], *place, versioned,
                          swapped=swapped)


def type_name(value):
    """The type of `value` as error texts name it."""
    cls = value if isinstance(value, type) else type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"
