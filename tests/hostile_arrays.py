# SPDX-License-Identifier: MIT
"""Descriptions of arrays that are none: DLPack tensors and array interfaces, one field wrong."""

import ctypes

import numpy as np

from tests.array_libraries import Capsule

NUM_TOKENS, HIDDEN = 6, 16


class Tensor(ctypes.Structure):
    """DLTensor, and DLManagedTensor's two fields behind it."""

    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32),
                ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8),
                ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
                ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p


def int64s(values):
    return None if values is None else (ctypes.c_int64 * len(values))(*values)


class Claim(Capsule):
    """Exports `array` by DLPack, with `changes` of the tensor's fields."""

    def __init__(self, array, code, bits, **changes):
        fields = {"data": array.ctypes.data, "device_type": 1, "ndim": array.ndim, "code": code,
                  "bits": bits, "lanes": 1, "shape": array.shape, "strides": None} | changes
        self.kept = array, int64s(fields.pop("shape")), int64s(fields.pop("strides"))
        self.tensor = Tensor(**fields)
        self.tensor.shape, self.tensor.strides = self.kept[1:]
        super().__init__(lambda **_: _new_capsule(ctypes.addressof(self.tensor), b"dltensor", None))


# Of a tensor that would be taken but for this.
TENSORS = {
    "huge ndim": {"ndim": 1 << 30},
    "negative ndim": {"ndim": -1},
    "no shape": {"shape": None},
    "no data": {"data": None},
    "no data, an offset": {"data": None, "byte_offset": 16},
    "negative length": {"shape": (-NUM_TOKENS, HIDDEN)},
    "two negative lengths": {"shape": (-NUM_TOKENS, -HIDDEN)},
    "more bytes than there are": {"shape": (1 << 40, 1 << 40)},
    "bytes past the end": {"shape": (1 << 58, HIDDEN)},
    "an offset past the end": {"byte_offset": (1 << 64) - 64},
    "overflowing strides": {"strides": (1 << 62, 1)},
    "negative strides": {"strides": (-(1 << 62), 1)},
}

# Of an interface's dict; callables get the address.
INTERFACES = {
    "no dict": lambda good: 7,
    "None": lambda good: {},
    "no shape": lambda good: {key: good[key] for key in ("typestr", "data", "version")},
    "no typestr": lambda good: {key: good[key] for key in ("shape", "data", "version")},
    "address 0": lambda good: good | {"data": (0, False)},
    "address of no number": lambda good: good | {"data": ("there", False)},
    "negative address": lambda good: good | {"data": (-4096, False)},
    "address past the end": lambda good: good | {"data": ((1 << 64) - 16, False)},
    "address of too many bits": lambda good: good | {"data": (1 << 70, False)},
    "data without an address": lambda good: good | {"data": ()},
    "negative length": lambda good: good | {"shape": (-NUM_TOKENS, HIDDEN)},
    "length of no number": lambda good: good | {"shape": (6.5, HIDDEN)},
    "more bytes than there are": lambda good: good | {"shape": (1 << 40, 1 << 40)},
    "shape of no numbers": lambda good: good | {"shape": 96},
    "typestr of no type": lambda good: good | {"typestr": "<x9"},
    "typestr of objects": lambda good: good | {"typestr": "|O8"},
    "too few strides": lambda good: good | {"strides": (32,)},
    "overflowing strides": lambda good: good | {"strides": (1 << 62, 2)},
    "strides of no numbers": lambda good: good | {"strides": "ab"},
}


class Exports:
    """Says of itself what it is told to."""

    def __init__(self, attribute, description, owner):
        self.owner = owner
        setattr(self, attribute, description)


def interface(attribute, change, dtype=np.int64):
    """An object whose interface `attribute` is that of an array of tokens, changed."""
    array = np.zeros((NUM_TOKENS, HIDDEN), dtype)
    good = {key: array.__array_interface__[key] for key in ("shape", "typestr", "data", "version")}
    return Exports(attribute, change(good), array)
