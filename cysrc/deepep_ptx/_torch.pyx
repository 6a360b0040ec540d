# SPDX-License-Identifier: MIT
"""PyTorch tensors.  This module never imports torch: who gives a tensor has it.

Written for the time that it takes: a call reads up to six tensors and makes up to seven.
"""

import contextlib
import functools

cimport cython
from cpython.exc cimport PyErr_Clear
from cpython.object cimport PyObject_Call
from libc.stdint cimport int64_t, uint64_t

from deepep_ptx._array cimport IN_HOST_MEMORY, Array, Form
from deepep_ptx._dlpack cimport Tensor, exchange_of, export

from deepep_ptx import _dlpack
from deepep_ptx.arrays.dlpack import type_name
from deepep_ptx.arrays.dtypes import BY_NAME, DLPACK, FP8, packed

cdef enum:
    COMPLEX = 5     # DLPack's code


@cython.final
cdef class Torch:
    """Takes and makes torch tensors, on the CPU for the CPU executor and on GPUs.

    Tensors are read by DLPack's functions in C, or by `data_ptr()` where torch has none: unlike
    `__dlpack__` both take tensors that require grad, which is what the inputs of an autograd
    function are.
    """

    name = "torch"
    on_gpu = True
    blocks = False
    shares = True
    captures = True
    lasting = True          # taken from a pool of torch's, which keeps them
    ordinary = True
    lends = True
    fp8 = FP8

    def __init__(self, torch):
        self.torch = torch
        self.dtypes = {getattr(torch, name): dtype for name, dtype in BY_NAME.items()
                       if hasattr(torch, name) and dtype in DLPACK}
        self.codes = {dtype: (known, *DLPACK[dtype]) for known, dtype in self.dtypes.items()}
        self.devices = {IN_HOST_MEMORY: torch.device("cpu")}
        self.streams = {}
        # What is smaller torch may call by one code though it tells it apart: int4 by int8's.
        self.by_code = {code | bits << 8: dtype
                        for dtype, (_, code, bits, _) in self.codes.items() if bits >= 16}
        self.exchange = exchange_of(torch.Tensor)
        # The number alone, without a stream object around it, where torch has that.
        self.stream_of = getattr(torch._C, "_cuda_getCurrentRawStream", self.number_of_current)
        # With strides, of torch's ways to an empty tensor the one that takes the least time.
        self.make_empty = torch.empty_strided
        self.from_dlpack = torch._C._from_dlpack
        self.gpu_type = _dlpack.CUDA
        self.is_deterministic = torch.are_deterministic_algorithms_enabled
        self.deterministic = torch.utils.deterministic

    cpdef Array take(self, tensor, str name, stream):
        """See `library.Library`."""
        cdef Array array = self.read(tensor)
        return self.read_attributes(tensor, name) if array is None else array

    def check_type(self, kind, str name not None):
        """TypeError for a type of tensors whose values are not simply what their memory holds:
        those that do every operation themselves (nested, masked, distributed, fake, ...)."""
        if kind.__torch_dispatch__ is not self.torch.Tensor.__torch_dispatch__:
            raise TypeError(f"{name}: {type_name(kind)} is not taken, it is a subclass that gives "
                            "its memory a meaning of its own; give the plain tensor")

    def dtype_of(self, known):
        """The dtype of NumPy for one of torch, None where there is none.

        One that NumPy and `ml_dtypes` have no name for is whatever DLPack gives back as the same.
        """
        dtype = self.dtypes.get(known)
        if dtype is not None:
            return dtype
        try:
            tensor = self.torch.empty(1, dtype=known, device="cpu")
            if self.from_dlpack(tensor.__dlpack__()).dtype is not known:
                return None
            seen = _dlpack.Imported(tensor.__dlpack__())
        except (BufferError, RuntimeError):
            return None
        code = seen.type_code, seen.bits, seen.lanes
        if seen.bits * seen.lanes != 8 * tensor.element_size():
            return None
        dtype = packed(str(known).removeprefix("torch."), *code)
        self.codes[dtype] = known, *code
        self.dtypes[known] = dtype
        return dtype

    cdef Array read(self, tensor):
        # By the functions of DLPack, in half the time that the attributes take.  None where torch
        # has none, and for all but contiguous memory of a type that is known.
        cdef Tensor seen
        cdef Py_ssize_t i
        cdef tuple shape
        cdef uint64_t itemsize, nbytes
        cdef int device
        if self.exchange == NULL:
            return None
        if self.exchange.read(<void *>tensor, &seen) != 0:
            PyErr_Clear()
            return None
        dtype = self.by_code.get(seen.type_code | seen.bits << 8)
        if dtype is None:
            dtype = self.dtypes.get(tensor.dtype)
        if dtype is None or seen.data == NULL or not in_order(&seen) or tensor.is_neg():
            return None
        if seen.type_code == COMPLEX and tensor.is_conj():
            return None
        if seen.device_type == self.gpu_type:
            device = seen.device_id
        elif seen.device_type == _dlpack.CPU:
            device = IN_HOST_MEMORY
        else:
            return None
        shape = tuple([seen.shape[i] for i in range(seen.ndim)])
        itemsize = nbytes = dtype.itemsize
        for i in range(seen.ndim):
            nbytes *= <uint64_t>seen.shape[i]
        return Array.plain(tensor, <uint64_t><size_t>seen.data, shape, dtype, itemsize, nbytes,
                           device)

    cdef Array read_attributes(self, tensor, str name):
        cdef object dtype
        cdef bint contiguous
        cdef uint64_t address
        cdef Array array
        if tensor.is_nested:
            raise TypeError(f"{name}: must be a dense tensor, got a nested one")
        dtype = self.dtype_of(tensor.dtype)
        if dtype is None:
            raise TypeError(f"{name}: dtype {tensor.dtype} is not taken, DLPack has no name for "
                            "it; give quantized values as their integers, and what is smaller than "
                            "a byte packed, as uint8")
        if not (tensor.is_cuda or tensor.is_cpu):
            raise TypeError(f"{name}: torch tensor on {tensor.device}; taken are CPU and CUDA "
                            "tensors")
        try:
            if tensor.layout is not self.torch.strided or tensor.is_neg() or tensor.is_conj():
                raise TypeError(f"{name}: must be a dense tensor whose memory holds its values")
            address = tensor.data_ptr()
        except (RuntimeError, ValueError) as error:
            raise TypeError(f"{name}: {type_name(tensor)} has no memory: {error}") from error
        contiguous = tensor.is_contiguous()
        strides = None if contiguous else [step * dtype.itemsize for step in tensor.stride()]
        array = Array(tensor, address, tuple(tensor.shape), dtype,
                      tensor.get_device() if tensor.is_cuda else IN_HOST_MEMORY, contiguous, None,
                      strides)
        if address == 0 and array.nbytes:
            raise TypeError(f"{name}: {type_name(tensor)} has no memory")
        return array

    def empty(self, executor, tuple shape not None, dtype, size_t stream):
        """See `library.Library`."""
        return self.make_all((Form(shape, dtype),), self.device_of(executor), stream)[0]

    cdef list make_all(self, tuple forms, int device, size_t stream):
        # The caching allocator gives memory to a stream: to the one that the results are for.
        if self.is_current(stream, device):
            return self.on_current(forms, device)
        with self.on(stream, device):
            return self.on_current(forms, device)

    cdef list on_current(self, tuple forms, int device):
        cdef Form form
        cdef list made = []
        cdef bint fills = self.is_deterministic() and self.deterministic.fill_uninitialized_memory
        for form in forms:
            if fills:
                # torch would fill it on its current stream, for which the call need not wait.
                tensor = self.without_values(device, form.shape, form.strides, form.dtype)
            else:
                if form.prepared is None:
                    form.prepared = ((form.shape, form.strides),
                                     {"dtype": self.codes[form.dtype][0],
                                      "device": self.known_device(device)})
                tensor = PyObject_Call(self.make_empty, form.prepared[0], form.prepared[1])
            made.append(Array.plain(tensor, tensor.data_ptr(), form.shape, form.dtype,
                                    form.itemsize, form.nbytes, device))
        return made

    def part(self, executor, slot, uint64_t offset, tuple shape not None, dtype):
        """See `library.Library`."""
        cdef int device = self.device_of(executor)
        cdef uint64_t first = slot.address
        _, code, bits, lanes = self.codes[dtype]
        if device == IN_HOST_MEMORY:
            capsule = export(slot, first + offset, shape, code, bits, lanes, _dlpack.CPU, 0)
        else:
            capsule = export(slot, first + offset, shape, code, bits, lanes, self.gpu_type, device)
        return self.from_dlpack(capsule)

    def make(self, tuple shape not None, dtype, int device):
        """A new tensor on GPU `device`, of its current stream."""
        return self.on_current((Form(shape, dtype),), device)[0].owner

    def first_rows(self, array, rows):
        """See `library.Library`."""
        tensor = getattr(array, "owner", array)
        return tensor.resize_((rows, *tensor.shape[1:]))

    def entry(self, array, index):
        """See `library.Library`."""
        return array.owner.view(-1)[index:index + 1]

    def swapped(self, array):
        """See `library.Library`."""
        return array.owner.transpose(-2, -1)

    def is_read_only(self, value):
        """Tensors cannot be."""
        return False

    def freeze(self, tensor):
        """Tensors cannot be read-only."""

    def stream(self, number, device):
        """torch's object for a stream of ours."""
        return self.torch.cuda.ExternalStream(number, device=device)

    def current_stream(self, tensor, device):
        """See `library.Library`."""
        # A tensor in host memory is refused later; it may be of a torch that knows no GPUs.
        return self.stream_of(device) if tensor is None or tensor.is_cuda else 0

    def current(self, device):
        """See `library.Library`."""
        current = self.streams.get(device)
        if current is None:
            current = self.streams[device] = functools.partial(self.stream_of, device)
        return current

    def share(self, tensor, stream, device):
        """See `library.Library`."""
        tensor.record_stream(self.stream(stream, device))

    def number_of_current(self, device):
        """Number of the thread's current stream on GPU `device`."""
        return self.torch.cuda.current_stream(device).cuda_stream

    cdef int device_of(self, executor) except? -1:
        return IN_HOST_MEMORY if executor.in_host_memory else executor.device

    cdef object known_device(self, int device):
        known = self.devices.get(device)
        if known is None:
            known = self.devices[device] = self.torch.device("cuda", device)
        return known

    cdef object without_values(self, int device, tuple shape, strides, dtype):
        nbytes = dtype.itemsize
        for length in shape:
            nbytes *= length
        known = self.known_device(device)
        return self.torch.empty(0, dtype=self.codes[dtype][0], device=known).set_(
            self.torch.UntypedStorage(nbytes, device=known), 0, shape, strides)

    cdef bint is_current(self, size_t stream, int device) except -1:
        return device == IN_HOST_MEMORY or stream == self.stream_of(device)

    def on(self, size_t stream, int device):
        """A context in which torch's current stream is that one."""
        if self.is_current(stream, device):
            return contextlib.nullcontext()
        return self.torch.cuda.stream(self.stream(stream, device))


cdef bint in_order(const Tensor *tensor) noexcept:
    # Whether it is C-contiguous.
    cdef int64_t want = 1
    cdef int i
    for i in reversed(range(tensor.ndim)):
        if tensor.shape[i] != 1 and tensor.strides[i] != want:
            return False
        want *= tensor.shape[i]
    return True
