# SPDX-License-Identifier: MIT
from deepep_ptx._array cimport Array
from deepep_ptx._dlpack cimport Exchange


cdef class Torch:
    cdef object torch
    cdef dict dtypes                    # of torch -> of NumPy
    cdef dict codes                     # of NumPy -> (of torch, DLPack's code, bits and lanes)
    cdef readonly dict devices          # ordinal -> what torch calls it
    cdef dict streams                   # ordinal -> a function that gives its current stream
    cdef dict by_code                   # DLPack's code | bits << 8, of 16 up -> dtype of NumPy
    cdef const Exchange *exchange       # NULL: torch has none
    cdef object stream_of
    cdef object make_empty
    cdef object from_dlpack
    cdef object is_deterministic
    cdef object deterministic           # torch.utils.deterministic
    cdef int gpu_type                   # of DLPack

    cpdef Array take(self, tensor, str name, stream)
    # What `Call.make` gives: `Array`s of new tensors for use on `stream`.
    cdef list make_all(self, tuple forms, int device, size_t stream)
    cdef list on_current(self, tuple forms, int device)
    cdef Array read(self, tensor)
    cdef Array read_attributes(self, tensor, str name)
    cdef int device_of(self, executor) except? -1
    cdef object known_device(self, int device)
    cdef object without_values(self, int device, tuple shape, strides, dtype)
    cdef bint is_current(self, size_t stream, int device) except -1
