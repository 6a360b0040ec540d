# SPDX-License-Identifier: MIT
from deepep_ptx._arguments cimport Launch
from deepep_ptx._core cimport ep_call


cdef void fill(ep_call *call, Launch launch) noexcept
