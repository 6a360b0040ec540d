# SPDX-License-Identifier: MIT
from deepep_ptx._core cimport ep_ll_shape


cdef class Shape:
    cdef ep_ll_shape shape
