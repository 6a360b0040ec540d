# SPDX-License-Identifier: MIT
"""DLPack capsules, version 0 and version 1: taken and made.

A capsule's tensor is owned by whoever renamed the capsule to "used_...", and freed by its deleter,
which may come from any thread.
"""

cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.pycapsule cimport (
    PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New, PyCapsule_SetName,
)
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int64_t, uint64_t

cdef extern from "Python.h" nogil:
    int Py_IsInitialized()

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13       # device types
VERSION = (1, 0)                                       # of the capsules that are taken and made

cdef enum:
    MAX_DIMS = 32

# Flags.
cdef uint64_t READ_ONLY = 1
cdef uint64_t PADDED = 4            # an element of less than a byte takes a whole one

cdef const char *NAME = "dltensor"
cdef const char *USED = "used_dltensor"
cdef const char *NAME_VERSIONED = "dltensor_versioned"
cdef const char *USED_VERSIONED = "used_dltensor_versioned"
cdef const char *EXCHANGE = "dlpack_exchange_api"


@cython.final
cdef class Imported:
    """The tensor of a capsule that was taken; its end gives the tensor back.

    address, shape, strides (in elements, None = C order), type_code, bits, lanes, padded,
    device_type, device_id: as the capsule said.
    """

    cdef Managed *managed                   # owned, one of the two
    cdef ManagedVersioned *versioned
    cdef readonly uint64_t address
    cdef readonly tuple shape
    cdef readonly tuple strides
    cdef readonly int type_code, bits, lanes, device_type, device_id
    cdef readonly bint padded

    def __cinit__(self, capsule):
        cdef Tensor *tensor
        if PyCapsule_IsValid(capsule, NAME_VERSIONED):
            self.versioned = <ManagedVersioned *>PyCapsule_GetPointer(capsule, NAME_VERSIONED)
            if self.versioned.major != 1:
                major, self.versioned = self.versioned.major, NULL
                raise BufferError(f"DLPack version {major} is not known")
            PyCapsule_SetName(capsule, USED_VERSIONED)
            self.padded = self.versioned.flags & PADDED
            tensor = &self.versioned.tensor
        elif PyCapsule_IsValid(capsule, NAME):
            self.managed = <Managed *>PyCapsule_GetPointer(capsule, NAME)
            PyCapsule_SetName(capsule, USED)
            tensor = &self.managed.tensor
        else:
            raise BufferError("not a DLPack capsule, or one that was used before")
        if not 0 <= tensor.ndim <= MAX_DIMS:
            raise BufferError(f"a tensor of {tensor.ndim} dimensions, at most {MAX_DIMS} are taken")
        if tensor.ndim and tensor.shape == NULL:
            raise BufferError("a tensor without a shape")
        if tensor.data != NULL:         # else it has no memory, wherever in that it begins
            self.address = <uint64_t><size_t>tensor.data + tensor.byte_offset
            if self.address < tensor.byte_offset:
                raise BufferError(f"a tensor {tensor.byte_offset} bytes behind its data")
        self.shape = tuple([tensor.shape[i] for i in range(tensor.ndim)])
        if tensor.strides != NULL:
            self.strides = tuple([tensor.strides[i] for i in range(tensor.ndim)])
        self.type_code = tensor.type_code
        self.bits = tensor.bits
        self.lanes = tensor.lanes
        self.device_type = tensor.device_type
        self.device_id = tensor.device_id

    def __dealloc__(self):
        if self.managed != NULL and self.managed.deleter != NULL:
            self.managed.deleter(self.managed)
        if self.versioned != NULL and self.versioned.deleter != NULL:
            self.versioned.deleter(self.versioned)


cdef void drop(void *owner) noexcept nogil:
    # After the interpreter's end there is no reference to give back.
    if Py_IsInitialized():
        with gil:
            Py_DECREF(<object>owner)


cdef const Exchange *exchange_of(cls) except? NULL:
    cdef const Exchange *found
    capsule = getattr(cls, "__dlpack_c_exchange_api__", None)
    if not PyCapsule_IsValid(capsule, EXCHANGE):
        return NULL
    found = <const Exchange *>PyCapsule_GetPointer(capsule, EXCHANGE)
    return found if found.major == 1 and found.read != NULL else NULL


cdef void delete_managed(Managed *managed) noexcept nogil:
    drop(managed.context)
    PyMem_RawFree(managed)


cdef void delete_versioned(ManagedVersioned *managed) noexcept nogil:
    drop(managed.context)
    PyMem_RawFree(managed)


cdef void drop_capsule(object capsule) noexcept:
    # Only what nobody has taken.
    cdef Managed *managed
    cdef ManagedVersioned *versioned
    if PyCapsule_IsValid(capsule, NAME):
        managed = <Managed *>PyCapsule_GetPointer(capsule, NAME)
        managed.deleter(managed)
    elif PyCapsule_IsValid(capsule, NAME_VERSIONED):
        versioned = <ManagedVersioned *>PyCapsule_GetPointer(capsule, NAME_VERSIONED)
        versioned.deleter(versioned)


cdef int describe(Tensor *tensor, int64_t *lengths, uint64_t address, tuple shape, int type_code,
                  int bits, int lanes, int device_type, int device_id, bint swapped) except -1:
    cdef int64_t stride = 1
    cdef int ndim = len(shape), i
    tensor.data = <void *><size_t>address
    tensor.device_type = device_type
    tensor.device_id = device_id
    tensor.ndim = ndim
    tensor.type_code = type_code
    tensor.bits = bits
    tensor.lanes = lanes
    tensor.shape = lengths
    tensor.strides = lengths + ndim
    tensor.byte_offset = 0
    for i in reversed(range(ndim)):
        tensor.shape[i] = shape[i]
        tensor.strides[i] = stride
        stride *= tensor.shape[i]
    if swapped:
        tensor.strides[ndim - 2], tensor.strides[ndim - 1] = 1, tensor.shape[ndim - 2]
    return 0


cpdef object export(owner, uint64_t address, tuple shape, int type_code, int bits, int lanes,
                    int device_type, int device_id, bint versioned=False, bint read_only=False,
                    bint swapped=False):
    """A capsule over C-contiguous memory, which `owner` keeps until the capsule's user is done.

    versioned: a capsule of version 1; only such a one can say `read_only`.  swapped: the last two
    dimensions, two at least, lie in memory in the other order.
    """
    cdef Managed *managed
    cdef ManagedVersioned *v
    cdef size_t lengths = 2 * len(shape) * sizeof(int64_t)
    if len(shape) > MAX_DIMS:
        raise BufferError(f"at most {MAX_DIMS} dimensions, got {len(shape)}")
    if versioned:
        v = <ManagedVersioned *>PyMem_RawMalloc(sizeof(ManagedVersioned) + lengths)
        if v == NULL:
            raise MemoryError("DLPack capsule")
        describe(&v.tensor, <int64_t *>(v + 1), address, shape, type_code, bits, lanes,
                 device_type, device_id, swapped)
        v.major, v.minor = VERSION
        v.flags = READ_ONLY if read_only else 0
        v.context = <PyObject *>owner
        v.deleter = delete_versioned
        capsule = PyCapsule_New(v, NAME_VERSIONED, drop_capsule)
    else:
        managed = <Managed *>PyMem_RawMalloc(sizeof(Managed) + lengths)
        if managed == NULL:
            raise MemoryError("DLPack capsule")
        describe(&managed.tensor, <int64_t *>(managed + 1), address, shape, type_code, bits, lanes,
                 device_type, device_id, swapped)
        managed.context = <PyObject *>owner
        managed.deleter = delete_managed
        capsule = PyCapsule_New(managed, NAME, drop_capsule)
    Py_INCREF(owner)
    return capsule
