# SPDX-License-Identifier: MIT
"""DLPack between other libraries and `Array`."""

from .. import _dlpack
from .._array import HOST, Array, is_contiguous
from .dtypes import DLPACK, FROM_DLPACK

_HOST_TYPES = (_dlpack.CPU, _dlpack.CUDA_HOST)
_GPU_TYPES = (_dlpack.CUDA, _dlpack.CUDA_MANAGED)


def device_of(value, name):
    """Ordinal of the GPU that holds `value`, or HOST.  TypeError for another kind of device."""
    device_type, device_id = value.__dlpack_device__()
    if int(device_type) in _HOST_TYPES:
        return HOST
    if int(device_type) in _GPU_TYPES:
        return int(device_id)
    raise TypeError(f"{name}: {type_name(value)} is in memory of DLPack device type "
                    f"{int(device_type)}; taken are host and CUDA memory")


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
    except (BufferError, RuntimeError) as error:
        reason = f"{type_name(value)} does not export its memory: {error}"
        raise TypeError(f"{name}: {reason}") from error
    dtype = FROM_DLPACK.get((tensor.type_code, tensor.bits, tensor.lanes))
    if dtype is None or (tensor.padded and tensor.bits < 8):
        hint = ("; pack the values, several in a byte, and give the bytes as uint8"
                if tensor.bits < 8 else "")
        raise TypeError(f"{name}: DLPack type code {tensor.type_code} with {tensor.bits} bits and "
                        f"{tensor.lanes} lanes is not known{hint}")
    return Array(tensor, tensor.address, tensor.shape, dtype, device,
                 is_contiguous(tensor.shape, tensor.strides, 1),
                 strides=tensor.strides and [step * dtype.itemsize for step in tensor.strides])


def export(owner, address, shape, dtype, device, versioned=False):
    """A capsule over C-contiguous memory that `owner` keeps."""
    if dtype not in DLPACK:
        raise BufferError(f"DLPack has no name for {dtype}")
    place = (_dlpack.CPU, 0) if device == HOST else (_dlpack.CUDA, device)
    return _dlpack.export(owner, address, shape, *DLPACK[dtype], *place, versioned)


def type_name(value):
    """The type of `value` as error texts name it."""
    cls = value if isinstance(value, type) else type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"
