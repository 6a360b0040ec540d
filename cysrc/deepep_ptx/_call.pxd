# SPDX-License-Identifier: MIT
from deepep_ptx._array cimport Array, Form


cdef class Call:
    cdef readonly object executor       # of the rank
    cdef readonly object library        # of the call's arrays
    cdef readonly str name              # of the argument that said so
    cdef readonly size_t stream         # the caller's
    cdef readonly size_t results_on     # for which results are allocated
    cdef readonly int device            # where arrays are
    cdef readonly bint copies           # results are copies whatever the buffer says
    cdef bint takes_streams
    cdef list make(self, tuple forms)
    cdef Array make_one(self, Form form)
    cdef int start(self, executor, library, value, str name, stream) except -1
    cpdef Array take(self, value, str name, dtypes, tuple shape, unsigned alignment=*,
                     bint strided=*)
    cdef int follow(self, Array array) except -1
    cdef int check_library(self, library, str name) except -1
    cdef int check_device(self, Array array, value, str name) except -1


# What the constructor gives.
cdef Call call_of(executor, value, str name, stream)
