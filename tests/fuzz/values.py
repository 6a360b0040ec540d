# SPDX-License-Identifier: MIT
"""Values of all kinds for arguments, each with what it stands for: what it has to be taken as, what
it may be taken as, or nothing."""

from dataclasses import dataclass
from fractions import Fraction

import ml_dtypes
import numpy as np

from tests.array_libraries import Exporter
from tests.hostile_arrays import INTERFACES, TENSORS, Claim, Exports

NOTHING = object()      # what stands for no value at all


@dataclass(frozen=True)
class Value:
    """given: the argument.  means: what it stands for, NOTHING: it is refused.  must: it is taken,
    else it may be refused as well."""

    given: object
    means: object = NOTHING
    must: bool = False


# -- numbers --------------------------------------------------------------------------------------

KINDS = {"int": int, "int8": np.int8, "uint8": np.uint8, "int32": np.int32, "uint32": np.uint32,
         "int64": np.int64, "uint64": np.uint64}
EDGES = [-(1 << 63), -129, -2, -1, 0, 1, 2, 3, 4, 7, 8, 16, 24, 31, 32, 33, 64, 65, 100, 127, 128,
         256, 1 << 24, 1 << 25, 1 << 26, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 48,
         1 << 63, 1 << 64, 1 << 70]
NO_INTEGERS = {
    "None": None, "True": True, "NumPy True": np.True_, "half": 0.5, "8.0": 8.0, "nan": np.nan,
    "infinity": np.inf, "float32": np.float32(8), "fraction": Fraction(7, 2), "complex": 8j,
    "text": "8", "bytes": b"8", "list": [8], "dict": {8: 8}, "tuple": (8,), "object": object(),
    "type": int, "function": len, "array": np.array([8]), "array of no dimensions": np.array(8),
    "array of floats": np.ones(3), "range": range(8),
}


def integers(low, high, multiple=1, *, least_refused=None):
    """Name -> `Value` of an argument that is an integer in [low, high] and a multiple.

    least_refused: the numbers from `high` up to below it are taken too, and not tried: they need
    more memory, or time, than a test has.
    """
    values = {}
    for number in EDGES:
        if least_refused is not None and high < number < least_refused:
            continue
        taken = low <= number <= high and number % multiple == 0
        for name, kind in KINDS.items():
            if kind is int or np.iinfo(kind).min <= number <= np.iinfo(kind).max:
                values[f"{name} {number}"] = Value(kind(number), number if taken else NOTHING,
                                                   taken)
    return values | {name: Value(value) for name, value in NO_INTEGERS.items()}


# -- arrays ---------------------------------------------------------------------------------------

def same(array):
    return Value(array, array, True)


def read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return Value(copy, array, True)


def shifted(array):
    """Its first byte is aligned to nothing."""
    storage = np.zeros(array.nbytes + 1, np.uint8)
    storage[1:] = array.reshape(-1).view(np.uint8)
    return Value(storage[1:].view(array.dtype).reshape(array.shape),
                 array if array.itemsize == 1 and array.dtype != np.uint8 else NOTHING)


def with_dtype(dtype):
    def make(array):
        with np.errstate(invalid="ignore", over="ignore"):
            made = array.astype(dtype)
        return Value(made, made)
    return make


def claim(changes):
    def make(array):
        code, bits = {"i": (0, 64), "f": (2, 32), "b": (6, 8)}.get(array.dtype.kind, (1, 8))
        return Value(Claim(array, code, bits, **changes))
    return make


def interface(change):
    def make(array):
        good = {key: array.__array_interface__[key]
                for key in ("shape", "typestr", "data", "version")}
        return Value(Exports("__array_interface__", change(good), array))
    return make


REPRESENTATIONS = {
    "itself": same,
    "read-only": read_only,
    "by its interface": lambda a: Value(Exporter(a), a),
    "as a subclass": lambda a: Value(a.view(np.matrix) if a.ndim == 2 else a, a),
    "little-endian": lambda a: Value(a.astype(a.dtype.newbyteorder("<")), a),
}
WRONG = {
    "big-endian": lambda a: Value(a.astype(a.dtype.newbyteorder(">")),
                                  a if a.itemsize == 1 else NOTHING),
    "misaligned": shifted,
    "column by column": lambda a: Value(np.asfortranarray(a), a if a.ndim == 1 else NOTHING),
    "every second row": lambda a: Value(np.repeat(a, 2, axis=0)[::2]),
    "backwards": lambda a: Value(a[::-1], a if len(a) < 2 else NOTHING),
    "masked": lambda a: Value(np.ma.array(a)),
    "no dimensions": lambda a: Value(a.reshape(-1)[:1].reshape(())),
    "one dimension too many": lambda a: Value(a[None]),
    "flat": lambda a: Value(a.reshape(-1), a if a.ndim == 1 else NOTHING),
    "a row too many": lambda a: Value(np.concatenate([a, a[:1]])),
    "a row too few": lambda a: Value(a[:-1].copy()),
    "no columns": lambda a: Value(a[..., :0].copy()),
    "as a list": lambda a: Value(a.tolist()),
    "its type": lambda a: Value(type(a)),
    "its first value": lambda a: Value(a.reshape(-1)[0]),
    **{name: (lambda a, value=value: Value(value))
       for name, value in NO_INTEGERS.items() if "array" not in name},
    **{f"claims {name}": claim(changes) for name, changes in TENSORS.items()},
    **{f"interface, {name}": interface(change) for name, change in INTERFACES.items()},
}
DTYPES = {f"of {np.dtype(dtype).name}": with_dtype(dtype) for dtype in (
    np.bool_, np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64, np.float16,
    np.float32, np.float64, np.complex64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn)}
ARRAYS = REPRESENTATIONS | WRONG | DTYPES


def means_only(dtypes):
    """Of `ARRAYS`, what an argument of one of these dtypes may be."""
    def refuse_others(make):
        def made(array):
            value = make(array)
            if value.means is not NOTHING and value.means.dtype not in dtypes:
                return Value(value.given)
            return value
        return made
    return {name: refuse_others(make) for name, make in ARRAYS.items()}


# -- others ---------------------------------------------------------------------------------------

def constants(*taken, refused=()):
    """Name -> `Value` of an argument that is one of `taken`."""
    return ({repr(value): Value(value, value, True) for value in taken}
            | {f"not {value!r}": Value(value) for value in refused})
