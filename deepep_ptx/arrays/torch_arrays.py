# SPDX-License-Identifier: MIT
"""PyTorch tensors.  This module never imports torch: who gives a tensor has it."""

import contextlib
import functools

from .._array import HOST, Array
from . import dlpack
from .dtypes import BY_NAME

_HERE = contextlib.nullcontext()


class Torch:
    """Takes and makes torch tensors, on the CPU for the CPU executor and on GPUs.

    Tensors are read by `data_ptr()`: unlike DLPack that also takes tensors that require grad, which
    is what the inputs of an autograd function are.
    """

    name = "torch"
    on_gpu = True
    blocks = False
    shares = True
    captures = True

    def __init__(self, torch):
        self.torch = torch
        self.dtypes = {getattr(torch, name): dtype for name, dtype in BY_NAME.items()
                       if hasattr(torch, name)}
        self.torch_dtypes = {dtype: known for known, dtype in self.dtypes.items()}
        # The number alone, without a stream object around it, where torch has that.
        self.stream_of = getattr(torch._C, "_cuda_getCurrentRawStream", self._stream_of)

    def take(self, tensor, name, stream):
        """See `library.Library`."""
        dtype = self.dtypes.get(tensor.dtype)
        if dtype is None:
            raise TypeError(f"{name}: dtype {tensor.dtype} is not known")
        if not (tensor.is_cuda or tensor.is_cpu):
            raise TypeError(f"{name}: torch tensor on {tensor.device}; taken are CPU and CUDA "
                            "tensors")
        if tensor.layout is not self.torch.strided or tensor.is_neg():
            raise TypeError(f"{name}: must be a dense tensor whose memory holds its values")
        try:
            address = tensor.data_ptr()
        except RuntimeError as error:
            raise TypeError(f"{name}: {dlpack.type_name(tensor)} has no memory: {error}") from error
        device = tensor.get_device() if tensor.is_cuda else HOST
        contiguous = tensor.is_contiguous()
        strides = None if contiguous else [step * dtype.itemsize for step in tensor.stride()]
        array = Array(tensor, address, tuple(tensor.shape), dtype, device, contiguous,
                      strides=strides)
        if address == 0 and array.nbytes:
            raise TypeError(f"{name}: {dlpack.type_name(tensor)} has no memory")
        return array

    def empty(self, executor, shape, dtype, stream):
        """See `library.Library`."""
        torch = self.torch
        if executor.name == "emu":
            tensor, device = torch.empty(shape, dtype=self.torch_dtypes[dtype], device="cpu"), HOST
        else:
            device = executor.device
            with self._on(stream, device):
                tensor = torch.empty(shape, dtype=self.torch_dtypes[dtype],
                                     device=torch.device("cuda", device))
        return Array(tensor, tensor.data_ptr(), shape, dtype, device)

    def part(self, executor, slot, offset, shape, dtype, stream, copy):
        """See `library.Library`."""
        device = HOST if executor.name == "emu" else executor.device
        tensor = self.torch.utils.dlpack.from_dlpack(
            dlpack.export(slot, slot.address + offset, shape, dtype, device))
        if not copy:
            return tensor
        with self._on(stream, device):
            return tensor.clone()

    def freeze(self, tensor):
        """Tensors cannot be read-only."""

    def stream(self, number, device):
        """torch's object for a stream of ours."""
        return self.torch.cuda.ExternalStream(number, device=device)

    def current_stream(self, tensor, device):
        """The stream on which its work is."""
        return self.stream_of(device) if tensor.is_cuda else 0

    def current(self, device):
        """See `library.Library`."""
        return functools.partial(self.stream_of, device)

    def share(self, tensor, stream, device):
        """See `library.Library`."""
        tensor.record_stream(self.torch.cuda.ExternalStream(stream, device=device))

    def _stream_of(self, device):
        return self.torch.cuda.current_stream(device).cuda_stream

    def _on(self, stream, device):
        # The caching allocator gives memory to a stream: to the one that the results are for.
        if device == HOST or stream == self.stream_of(device):
            return _HERE
        cuda = self.torch.cuda
        return cuda.stream(cuda.ExternalStream(stream, device=device))
