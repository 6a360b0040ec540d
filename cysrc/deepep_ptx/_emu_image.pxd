# SPDX-License-Identifier: MIT
from deepep_ptx._emu_host cimport emu_kernel_image


cdef class Image:
    cdef emu_kernel_image image     # points into what this object keeps
    cdef object insns, constants, lines
    cdef _Strings files, texts
    cdef bytes symbol


cdef class _Strings:
    cdef const char **items         # owned
    cdef tuple texts
