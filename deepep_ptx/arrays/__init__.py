# SPDX-License-Identifier: MIT
"""Arrays of any library in and out of a buffer's calls.

One file per library says how its arrays are read, as `Array`, and made.  `Buffer` asks for them by
a `Call`, which knows the library and the caller's stream; that and torch's file are Cython
(cysrc/deepep_ptx/_call.pyx, _torch.pyx): every call of a layer goes through them.
"""

from .._array import HOST, Array
from .device_array import DeviceArray
from .dtypes import BFLOAT16, BOOL, FLOAT32, INT32, INT64

__all__ = ["BFLOAT16", "BOOL", "FLOAT32", "HOST", "INT32", "INT64", "Array", "DeviceArray"]
