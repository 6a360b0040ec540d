# SPDX-License-Identifier: MIT
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

# Layouts of dlpack.h.
cdef struct Tensor:
    void *data
    int32_t device_type
    int32_t device_id
    int32_t ndim
    uint8_t type_code
    uint8_t bits
    uint16_t lanes
    int64_t *shape
    int64_t *strides            # in elements; NULL = C order
    uint64_t byte_offset

cdef struct Managed:
    Tensor tensor
    void *context
    void (*deleter)(Managed *) noexcept nogil

cdef struct ManagedVersioned:
    uint32_t major
    uint32_t minor
    void *context
    void (*deleter)(ManagedVersioned *) noexcept nogil
    uint64_t flags
    Tensor tensor

# What a library's type has as `__dlpack_c_exchange_api__`, as far as it is used here; the functions
# are those of version 1.
cdef struct Exchange:
    uint32_t major
    uint32_t minor
    void *older
    void *allocate
    void *give
    void *make
    int (*read)(void *array, Tensor *out) noexcept      # may be NULL; -1: with an exception
    void *current_stream

cpdef object export(owner, uint64_t address, tuple shape, int type_code, int bits, int lanes,
                    int device_type, int device_id, bint versioned=*, bint read_only=*,
                    bint swapped=*)

# The functions of a type, NULL where it has none.
cdef const Exchange *exchange_of(cls) except? NULL
