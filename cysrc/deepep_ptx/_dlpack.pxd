# SPDX-License-Identifier: MIT
from libc.stdint cimport uint64_t

cpdef object export(owner, uint64_t address, tuple shape, int type_code, int bits, int device_type,
                    int device_id, bint versioned=*, bint read_only=*)
