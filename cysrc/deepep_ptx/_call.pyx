# SPDX-License-Identifier: MIT
"""The arrays of one call of a buffer."""

cimport cython
from libc.stdint cimport uint64_t

from deepep_ptx._array cimport IN_HOST_MEMORY, Array, Form
from deepep_ptx._torch cimport Torch

from deepep_ptx._array import HOST, UNKNOWN, check_memory, place_name
from deepep_ptx.arrays.dlpack import type_name
from deepep_ptx.arrays.dtypes import name_of
from deepep_ptx.arrays.library import BY_TYPE, library_of
from deepep_ptx.arrays.streams import PER_THREAD, stream_number


cdef dict known_types = BY_TYPE


@cython.final
cdef class Call:
    """All of one library, in memory that the executor's kernels reach, ready on one stream.

    executor: of the rank.  value, name: the argument whose library the call's results are of.
    stream: of the caller: None, an int or a stream object; None takes the library's current one.

    Attributes:
        stream: its number; 0 is the default stream.
        results_on: number of the stream that results are allocated for; see `allocate_on`.
        copies: whether results are copies whatever the buffer says.

    Raises:
        TypeError: `value` is not an array, `stream` not a stream.
        ValueError: a stream on the CPU executor, which has none but the default one.
    """

    def __init__(self, executor, value, str name not None, stream=None):
        self.start(executor, library_of(value, name), value, name, stream)

    @classmethod
    def of_library(cls, executor, library, str name not None, stream=None):
        """A call without an array."""
        cdef Call call = cls.__new__(cls)
        call.start(executor, library, None, name, stream)
        return call

    cdef int start(self, executor, library, value, str name, stream) except -1:
        self.executor = executor
        self.library = library
        self.name = name
        self.device = IN_HOST_MEMORY
        self.takes_streams = executor.takes_streams
        if not executor.in_host_memory:
            if library.on_gpu:
                self.device = executor.device
            else:
                self.copies = True
        if not self.takes_streams:
            self.stream = 0 if stream is None else no_stream(stream, executor)
        elif stream is None:
            self.stream = library.current_stream(value, executor.device)
        else:
            self.stream = stream_number(stream)
        self.results_on = self.stream
        return 0

    def allocate_on(self, size_t stream):
        """Allocate results for `stream`, on which they are made, if the library can; `share` says
        who else uses them."""
        if self.library.shares and self.takes_streams:
            self.results_on = stream

    def share(self, arrays):
        """The caller's stream uses `arrays` of the library, whichever they were allocated for."""
        if self.results_on != self.stream:
            for array in arrays:
                self.library.share(array, self.stream, self.executor.device)

    def lend(self, arguments, size_t stream):
        """The buffer's stream uses those of the arguments that are arrays of the library.  Returns
        whether the library's allocator knows that stream from now on."""
        if not (self.takes_streams and self.library.shares):
            return False
        for array in arguments:
            if known_types.get(type(array)) is self.library:
                self.library.share(array, stream, self.executor.device)
        return True

    @property
    def current(self):
        """A function that gives the number of the stream on which the library's work is then."""
        current = self.library.current(self.executor.device) if self.device != HOST else None
        return current or (lambda stream=self.stream: stream)

    cpdef Array take(self, value, str name, dtypes, tuple shape, unsigned alignment=1,
                     bint strided=False):
        """Argument `name` as an `Array` of one of `dtypes` and of `shape`, C-contiguous unless
        `strided`.

        dtypes: accepted NumPy dtypes, None = all.  shape: a length, or the name of a free one, per
        dimension: (8, "num_topk").  alignment: of the first byte, for the kernels that read it in
        vectors; every array is aligned to its elements.

        Raises:
            TypeError: not an array, of another library or dtype, or in memory that the executor
                does not take.
            ValueError: on another GPU, another shape, not C-contiguous, or not aligned.
        """
        cdef Array array
        if known_types.get(type(value)) is not self.library:
            self.check_library(library_of(value, name), name)
        if type(self.library) is Torch:
            array = (<Torch>self.library).take(value, name, self.stream)
        else:
            array = self.library.take(value, name, self.stream)
        if array.device != self.device:
            self.check_device(array, value, name)
        if dtypes is not None and array.dtype not in dtypes:
            accepted = " or ".join([str(dtype) for dtype in dtypes])
            raise TypeError(f"{name}: dtype must be {accepted}, got {name_of(array.dtype)}")
        if not matches(array.shape, shape):
            accepted = ", ".join([str(length) for length in shape])
            raise ValueError(f"{name}: shape must be [{accepted}], got {list(array.shape)}")
        if not array.contiguous:
            check_strides(array, name, strided)
        if array.itemsize > alignment:
            alignment = array.itemsize
        if array.address % alignment and array.nbytes:
            raise ValueError(f"{name}: the first byte must be {alignment}-byte aligned, is "
                             f"{array.address % alignment} bytes behind such an address")
        self.follow(array)
        return array

    def check_place(self, value, str name not None):
        """TypeError or ValueError where `take` would not take `value` for what it is or for where
        its memory is."""
        cdef Array array = self.library.take(value, name, self.stream)
        if array.device != self.device:
            self.check_device(array, value, name)

    def take_again(self, Array array not None, library, str name not None):
        """`take` of what an earlier call of this rank has taken or made, of `library`."""
        self.check_library(library, name)
        self.follow(array)

    cdef int follow(self, Array array) except -1:
        # What is ready on another stream.
        if array.stream is not None and array.stream != self.stream:
            self.executor.stream_wait(self.stream, array.stream)
        return 0

    def empty(self, tuple shape not None, dtype):
        """A new array of the library, as an `Array` whose owner it is."""
        return self.make((Form(shape, dtype),))[0]

    cdef list make(self, tuple forms):
        # New arrays of the library for `Form`s, as `Array`s whose owners they are.
        if type(self.library) is Torch:
            return (<Torch>self.library).make_all(forms, self.device, self.results_on)
        return [self.make_one(form) for form in forms]

    cdef Array make_one(self, Form form):
        cdef Array lying
        if not form.swapped:
            return self.library.empty(self.executor, form.shape, form.dtype, self.results_on)
        lying = self.library.empty(self.executor, form.lying, form.dtype, self.results_on)
        owner = self.library.swapped(lying)
        return Array.plain(owner, lying.address, form.shape, form.dtype, form.itemsize, form.nbytes,
                           lying.device)

    def show(self, slot):
        """Arrays over `slot` are given to the caller: what comes after its end comes after the
        stream that is the library's current one then."""
        if self.device != IN_HOST_MEMORY:
            slot.current = self.library.current(self.device)
            if self.library.lasting and self.stream != PER_THREAD:
                slot.lasting = True

    def part(self, slot, uint64_t offset, tuple shape not None, dtype):
        """The library's array over bytes from `offset` of `slot`, which it keeps; where arrays of
        the library are in other memory, a copy.

        Raises:
            ValueError: the slot is smaller.
        """
        cdef object end = dtype.itemsize
        for length in shape:
            end *= length
        end += offset
        if end > slot.nbytes:
            raise ValueError(f"shape: {list(shape)} of {name_of(dtype)} from byte {offset} on "
                             f"takes {end} bytes, the memory has {slot.nbytes}")
        return self.library.part(self.executor, slot, offset, shape, dtype)

    def freeze(self, array):
        """Make an array of the library read-only, if it can be."""
        self.library.freeze(array)

    cdef int check_library(self, library, str name) except -1:
        if library is not self.library:
            raise TypeError(f"{name}: is a {library.name} array while {self.name} is a "
                            f"{self.library.name} array; all arrays of a call must be of one "
                            "library")
        return 0

    cdef int check_device(self, Array array, value, str name) except -1:
        # Raises unless the array, which is not known to be in the right place, is there.
        cdef int device = array.device
        if device == UNKNOWN and not self.executor.in_host_memory:
            device = self.executor.device_of(array.address) if array.nbytes else self.device
            if device == HOST:
                raise ValueError(f"{name}: 0x{array.address:x} is not memory of a GPU that this "
                                 "process uses; the array was freed, or is of another process")
            if device == self.device:
                return 0
        kind = f"{type_name(value)} {place_name(device)}"
        if self.executor.in_host_memory:
            raise TypeError(f"{name}: {kind}; the {self.executor.device_name} takes arrays in host "
                            "memory: copy it there, or use executor='cuda'")
        needed = f"cuda:{self.device}"
        if device == HOST:
            raise TypeError(f"{name}: {kind}; the {self.executor.name} executor of this rank takes "
                            f"arrays on {needed} (and NumPy arrays, which it copies): move it to "
                            f"{needed}, "
                            "or use executor='emu'")
        raise ValueError(f"{name}: {kind}; this rank needs it on {needed}")


cdef Call call_of(executor, value, str name, stream):
    cdef Call call = Call.__new__(Call)
    library = known_types.get(type(value))
    call.start(executor, library or library_of(value, name), value, name, stream)
    return call


cdef int check_strides(Array array, str name, bint strided) except -1:
    # Of an array that is not contiguous.
    if not strided:
        raise ValueError(f"{name}: must be C-contiguous; make a contiguous copy")
    try:
        check_memory(array.address, array.shape, array.strides, array.itemsize)
    except ValueError as error:
        raise ValueError(f"{name}: is an array {error}") from None
    return 0


cdef bint matches(tuple got, tuple want) except -1:
    cdef Py_ssize_t i
    if len(got) != len(want):
        return False
    for i in range(len(got)):
        if type(want[i]) is not str and got[i] != want[i]:
            return False
    return True


cdef size_t no_stream(stream, executor) except? 0:
    number = stream_number(stream)
    if number:
        raise ValueError(f"stream: must be None or 0 on the {executor.device_name}, got {number}")
    return 0
