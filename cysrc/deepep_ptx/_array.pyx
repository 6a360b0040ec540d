# SPDX-License-Identifier: MIT
"""An array of any library, as the core sees it: where its bytes are and what they mean."""

cimport cython
from libc.stdint cimport int64_t, uint64_t

HOST = IN_HOST_MEMORY   # device of an array in host memory
UNKNOWN = -2            # device memory of which nobody has said on which GPU

# Of addresses; the upper half of 64 bits is no process's and no GPU's.
cdef object END_OF_MEMORY = 1 << 63


@cython.final
cdef class Array:
    """Memory of another library's array.

    owner: keeps the memory; the library's array where there is one.
    address: of the first byte.  shape: a tuple.  dtype: NumPy dtype, `ml_dtypes` included.
    device: ordinal of the GPU, HOST or UNKNOWN.  contiguous: in C order; else `strides` in bytes.
    stream: the CUDA stream (int) on which the contents are ready, None where none was named.
    """

    def __init__(self, owner, uint64_t address, tuple shape not None, dtype not None,
                 int device=HOST, bint contiguous=True, stream=None, strides=None):
        cdef uint64_t size
        self.owner = owner
        self.address = address
        self.shape = shape
        self.dtype = dtype
        self.itemsize = size = dtype.itemsize
        for length in shape:
            size *= <uint64_t>length
        self.nbytes = size
        self.device = device
        self.contiguous = contiguous
        self.stream = stream
        self.some_strides = strides

    @staticmethod
    cdef Array plain(owner, uint64_t address, tuple shape, dtype, uint64_t itemsize,
                     uint64_t nbytes, int device):
        cdef Array array = Array.__new__(Array)
        array.owner = owner
        array.address = address
        array.shape = shape
        array.dtype = dtype
        array.itemsize = itemsize
        array.nbytes = nbytes
        array.device = device
        array.contiguous = True
        return array

    @property
    def strides(self):
        """Bytes from one element to the next, per dimension; None where nobody has said."""
        if not self.contiguous:
            return self.some_strides
        steps, step = [], self.itemsize
        for length in reversed(self.shape):
            steps.append(step)
            step *= length
        return tuple(reversed(steps))

    def __repr__(self):
        return f"<Array {self.dtype} {list(self.shape)} {place_name(self.device)}>"

    @property
    def location(self):
        """"host", or ("cuda", ordinal)."""
        return "host" if self.device == HOST else ("cuda", self.device)


@cython.final
cdef class Form:
    """An array that is to be made, once or often.

    shape: a tuple.  dtype: NumPy dtype.  swapped: in memory the last two dimensions lie in the
    other order; else all are in C order.
    """

    def __init__(self, tuple shape not None, dtype not None, bint swapped=False):
        cdef Py_ssize_t i
        cdef uint64_t size = 1
        cdef list steps = [1] * len(shape)
        self.shape = shape
        self.dtype = dtype
        self.swapped = swapped
        self.itemsize = dtype.itemsize
        for i in range(len(shape)):
            i = self.dimension(i)
            steps[i] = size
            size *= <uint64_t>shape[i]
        self.nbytes = size * self.itemsize
        self.strides = tuple(steps)

    cdef Py_ssize_t dimension(self, Py_ssize_t i):
        # That of the i-th smallest step.
        if self.swapped and i < 2:
            i = 1 - i
        return len(self.shape) - 1 - i

    @property
    def lying(self):
        """Its shape as it lies in memory."""
        return tuple([self.shape[self.dimension(i)] for i in reversed(range(len(self.shape)))])


def place_name(int device):
    """`device` in words, for error texts."""
    if device == HOST:
        return "in host memory"
    return f"on cuda:{device}" if device >= 0 else "in device memory"


def is_contiguous(tuple shape not None, strides, int64_t unit):
    """Whether `strides` (None = C order), in units of which an element has `unit`, are C order."""
    cdef int64_t want = unit
    if strides is None or 0 in shape:
        return True
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != want:
            return False
        want *= length
    return True


def span_of(tuple shape not None, strides, itemsize):
    """(first, end): the bytes of an array, from its first element's address; strides None: C order.
    """
    if 0 in shape:
        return 0, 0
    if strides is None:
        end = itemsize
        for length in shape:
            end *= length
        return 0, end
    reach = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
    return (sum([min(0, step) for step in reach]),
            sum([max(0, step) for step in reach]) + itemsize)


def check_memory(address, tuple shape not None, strides, itemsize):
    """`ValueError` where there can be no such array: what other libraries say of theirs is to be
    believed no further.  Its text goes on behind "an array "."""
    if any([length < 0 for length in shape]):
        raise ValueError(f"of shape {list(shape)}")
    if strides is not None and len(strides) != len(shape):
        raise ValueError(f"of {len(shape)} dimensions with {len(strides)} strides")
    if any([abs(stride) >= END_OF_MEMORY for stride in strides or ()]):
        raise ValueError(f"with strides of {list(strides)} bytes")
    first, end = span_of(shape, strides, itemsize)
    if end == first:
        return
    if address == 0:
        raise ValueError("without memory, at address 0")
    if not (0 <= address + first and address + end <= END_OF_MEMORY):
        raise ValueError(f"whose bytes [{first}, {end}) from address {address:#x} on are no memory")
