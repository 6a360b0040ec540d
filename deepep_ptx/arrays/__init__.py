# SPDX-License-Identifier: MIT
"""Arrays of any library in and out of a buffer's calls.

`Call` is what `Buffer` uses: it takes arguments as `Array`, makes results of the same library, and
knows the caller's stream.  One file per library says how its arrays are read and made; torch's and
`Call`'s are Cython (cysrc/deepep_ptx): every call of a layer goes through them.
"""

from .._array import HOST, Array
from .._call import Call
from .device_array import DeviceArray
from .dtypes import BFLOAT16, BOOL, FLOAT32, INT32, INT64

__all__ = [
    "BFLOAT16", "BOOL", "FLOAT32", "HOST", "INT32", "INT64", "Array", "Call", "DeviceArray",
]
