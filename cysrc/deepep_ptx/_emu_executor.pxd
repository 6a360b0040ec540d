# SPDX-License-Identifier: MIT
from deepep_ptx._emu cimport RankTable, World
from deepep_ptx._executor cimport Executor


cdef class EmuExecutor(Executor):
    cdef readonly World world       # keeps the host side alive
    cdef readonly int rank
    cdef RankTable own              # `table` points into it

    cdef int call(self, int code) except -1
