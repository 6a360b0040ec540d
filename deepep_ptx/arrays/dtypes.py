# SPDX-License-Identifier: MIT
"""Element types that arrays may have, what DLPack calls them, and numbers for ranks to compare.

Rows are moved as bytes, so every type will do whose values fill the bytes of its elements: NumPy's
numbers, those of `ml_dtypes`, and types with several values in one element, for which NumPy has no
name: `packed` makes one.
"""

import zlib

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
BOOL = np.dtype(np.bool_)
FLOAT32 = np.dtype(np.float32)
INT32 = np.dtype(np.int32)
INT64 = np.dtype(np.int64)

# name -> DLPack type code
_NUMPY = {
    "int8": 0, "int16": 0, "int32": 0, "int64": 0,
    "uint8": 1, "uint16": 1, "uint32": 1, "uint64": 1,
    "float16": 2, "float32": 2, "float64": 2,
    "complex64": 5, "complex128": 5,
    "bool": 6,
}
_ML_DTYPES = {
    "bfloat16": 4, "complex32": 5,
    "float8_e3m4": 7, "float8_e4m3": 8, "float8_e4m3b11fnuz": 9, "float8_e4m3fn": 10,
    "float8_e4m3fnuz": 11, "float8_e5m2": 12, "float8_e5m2fnuz": 13, "float8_e8m0fnu": 14,
}


def _bits_of_values():
    # Of the types of `ml_dtypes`, whichever it has: dtype -> bits of a value.
    found = {}
    for kind in vars(ml_dtypes).values():
        if not (isinstance(kind, type) and issubclass(kind, np.generic)):
            continue
        dtype, bits = np.dtype(kind), 8 * np.dtype(kind).itemsize
        for info in (ml_dtypes.finfo, ml_dtypes.iinfo):
            try:
                parts = 2 if "complex" in dtype.name else 1
                bits = info(kind).bits * parts
                break
            except ValueError:      # not of this sort
                continue
        found[dtype] = bits
    return found


_VALUE_BITS = _bits_of_values()
BY_NAME = {name: np.dtype(name) for name in _NUMPY} | {
    dtype.name: dtype for dtype, bits in _VALUE_BITS.items() if bits == 8 * dtype.itemsize
}
# dtype -> (type code, bits, lanes), and back; a type that DLPack has no code for is in neither
DLPACK = {dtype: ((_NUMPY | _ML_DTYPES)[name], 8 * dtype.itemsize, 1)
          for name, dtype in BY_NAME.items() if name in _NUMPY or name in _ML_DTYPES}
FROM_DLPACK = {code: dtype for dtype, code in DLPACK.items()}

# Bytes of an element of the scales beside rows.
SCALE_ITEMSIZES = (1, 2, 4)


def name_of(dtype):
    """As its library calls it."""
    return dtype.names[0] if dtype in DLPACK and dtype.names else str(dtype)


def why_unknown(dtype):
    """What is to be said of a dtype that is not among `ROW_CODES`, behind "dtype"."""
    bits = _VALUE_BITS.get(dtype)
    if bits is None:
        return ("must be a number's, of NumPy, ml_dtypes or torch, in this machine's byte "
                f"order, got {dtype}")
    return (f"{dtype} has a value of {bits} bits in each {8 * dtype.itemsize}; pack them, "
            "several in a byte, and give the bytes as uint8")


def values_of(dtype):
    """Values of one element."""
    known = DLPACK.get(dtype)
    return 1 if known is None else known[2]


# -- numbers for the ranks to compare -------------------------------------------------------------

def _code(dtype):
    # DLPack's code and bits; where it has none, seven bits of the name for the former.
    code, bits, _ = DLPACK.get(dtype) or (0x80 | zlib.crc32(dtype.name.encode()) & 0x7f,
                                          8 * dtype.itemsize, 1)
    return code | bits << 8


# Every type that rows and scales may have -> 16 bits.
ROW_CODES = {dtype: _code(dtype) for dtype in BY_NAME.values()}


def code_of(dtype, scale_dtype=None):
    """A number of 32 bits for the pair of element types."""
    return ROW_CODES[dtype] | (0 if scale_dtype is None else ROW_CODES[scale_dtype] << 16)


def name_of_code(number):
    """`code_of`'s pair in words."""
    name = _name_of_half(number & 0xffff)
    return f"{name} with {_name_of_half(number >> 16)} scales" if number >> 16 else name


def _name_of_half(number):
    for dtype, code in ROW_CODES.items():
        if code == number:
            return name_of(dtype)
    return f"type {number:#x}"


# -- types for which NumPy has no name ------------------------------------------------------------

def packed(name, code, bits, lanes):
    """The dtype of `lanes` values of DLPack's (code, bits) in one element: opaque bytes to NumPy,
    and equal to nothing but itself."""
    if (code, bits, lanes) not in FROM_DLPACK:
        made = np.dtype([(name, f"V{bits * lanes // 8}")])
        DLPACK[made] = (code, bits, lanes)
        ROW_CODES[made] = _code(made)
        BY_NAME[name] = made
        FROM_DLPACK[code, bits, lanes] = made
    return FROM_DLPACK[code, bits, lanes]


FLOAT4_X2 = packed("float4_e2m1fn_x2", 17, 4, 2)
