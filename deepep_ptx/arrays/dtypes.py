# SPDX-License-Identifier: MIT
"""Element types that arrays may have, and what DLPack calls them."""

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BOOL = np.dtype(np.bool_)
FLOAT32 = np.dtype(np.float32)
INT32 = np.dtype(np.int32)
INT64 = np.dtype(np.int64)

# name -> DLPack type code
_NUMPY = {
    "int8": 0, "int16": 0, "int32": 0, "int64": 0,
    "uint8": 1, "uint16": 1, "uint32": 1, "uint64": 1,
    "float16": 2, "float32": 2, "float64": 2,
    "bool": 6,
}
_ML_DTYPES = {
    "bfloat16": 4,
    "float8_e3m4": 7, "float8_e4m3": 8, "float8_e4m3b11fnuz": 9, "float8_e4m3fn": 10,
    "float8_e4m3fnuz": 11, "float8_e5m2": 12, "float8_e5m2fnuz": 13, "float8_e8m0fnu": 14,
}

BY_NAME = {name: np.dtype(name) for name in _NUMPY} | {
    name: np.dtype(getattr(ml_dtypes, name)) for name in _ML_DTYPES if hasattr(ml_dtypes, name)
}
# dtype -> (type code, bits), and back
DLPACK = {dtype: ((_NUMPY | _ML_DTYPES)[name], 8 * dtype.itemsize)
          for name, dtype in BY_NAME.items()}
FROM_DLPACK = {code: dtype for dtype, code in DLPACK.items()}

SCALE_DTYPES = (FLOAT32, INT32)


def code_of(dtype, scale_dtype=None):
    """A number for the pair of element types, for the ranks to compare."""
    code, bits = DLPACK[dtype]
    return code | bits << 8 | (0 if scale_dtype is None else DLPACK[scale_dtype][0] + 1) << 16


# What dispatch moves: rows of any of these.
ROW_CODES = {dtype: code_of(dtype) for dtype in DLPACK if dtype.itemsize <= 2}


def name_of_code(number):
    """`code_of`'s pair in words."""
    name = str(FROM_DLPACK.get((number & 255, number >> 8 & 255), f"code {number}"))
    scale = FROM_DLPACK.get(((number >> 16) - 1, 32))
    return name if scale is None else f"{name} with {scale} scales"
