# SPDX-License-Identifier: MIT
from libc.stdint cimport uint64_t

cdef enum:
    IN_HOST_MEMORY = -1         # device of an array


cdef class Array:
    cdef readonly object owner          # keeps the memory; the caller's array where there is one
    cdef readonly uint64_t address
    cdef readonly tuple shape
    cdef readonly object dtype
    cdef readonly uint64_t itemsize
    cdef readonly uint64_t nbytes
    cdef readonly int device
    cdef readonly bint contiguous
    cdef readonly object stream
    cdef object some_strides            # bytes; None: C order

    # In C order, with less to do than the constructor has.
    @staticmethod
    cdef Array plain(owner, uint64_t address, tuple shape, dtype, uint64_t itemsize,
                     uint64_t nbytes, int device)


cdef class Form:
    cdef readonly tuple shape
    cdef readonly object dtype
    cdef readonly bint swapped
    cdef readonly uint64_t itemsize
    cdef readonly uint64_t nbytes
    cdef readonly tuple strides         # elements
    cdef object prepared                # what a library has made of it for itself

    cdef Py_ssize_t dimension(self, Py_ssize_t i)
