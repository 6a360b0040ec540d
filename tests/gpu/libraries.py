# SPDX-License-Identifier: MIT
"""Libraries on a rank's GPU for `tests.api_calls.Side`."""

import functools

import ml_dtypes
import numpy as np
import pytest
import torch

from deepep_ptx.arrays import BFLOAT16
from deepep_ptx.arrays.streams import stream_number
from tests.api_calls import DeviceOwn, TorchHost
from tests.array_libraries import NumPyArrays
from tests.gpu.cuda_core import core_stream, need_cuda_core


def need_cupy():
    """The test is skipped without a CuPy that has bfloat16."""
    cupy = pytest.importorskip("cupy")
    try:
        cupy.dtype(BFLOAT16)
    except (TypeError, ValueError):
        pytest.skip("this CuPy has no bfloat16")


class GpuStreams:
    """Streams of torch, by their numbers; torch's pool keeps them."""

    copies = False

    @functools.cached_property
    def stream(self):
        return torch.cuda.Stream(self.executor.device)

    def make_stream(self):
        return self.stream.cuda_stream

    def finish(self, stream=None):
        device = self.executor.device
        if stream is None:
            torch.cuda.current_stream(device).synchronize()
        elif stream_number(stream) == 0:        # as an external one it would be another
            torch.cuda.default_stream(device).synchronize()
        else:
            torch.cuda.ExternalStream(stream_number(stream), device=device).synchronize()

    def dtype(self, dtype):
        return dtype


class NumPyGpu(GpuStreams, NumPyArrays):
    """NumPy arrays that are copied to the GPU and back."""

    copies = True


class DeviceGpu(GpuStreams, DeviceOwn):
    """`DeviceArray`."""


class CoreGpu(DeviceOwn):
    """`DeviceArray`, on streams of cuda.core."""

    copies = False

    @functools.cached_property
    def stream(self):
        return core_stream(self.executor)

    def make_stream(self):
        return self.stream

    def finish(self, stream=None):
        core = need_cuda_core()
        number = stream_number(stream or 0)
        (core.Stream.from_handle(number) if number else core.LEGACY_DEFAULT_STREAM).sync()

    def dtype(self, dtype):
        return dtype


class TorchGpu(GpuStreams, TorchHost):
    """CUDA tensors of any type, with stream objects."""

    def make_stream(self):
        return self.stream

    def give(self, array):
        return super().give(array).to(torch.device("cuda", self.executor.device))

    def get(self, tensor):
        assert tensor.get_device() == self.executor.device
        return super().get(tensor.cpu())

    def dtype(self, dtype):
        return TorchHost.dtype(self, dtype)


class CuPyArrays(NumPyArrays):
    """CuPy arrays on the rank's GPU."""

    def give(self, array):
        import cupy

        with cupy.cuda.Device(self.executor.device):
            return cupy.asarray(array)

    def get(self, array):
        import cupy

        assert isinstance(array, cupy.ndarray) and array.device.id == self.executor.device
        with cupy.cuda.Device(self.executor.device):
            return np.asarray(array.get())

    def get_fp8(self, array):
        bits = self.get(array)
        assert bits.dtype == np.uint8
        return bits.view(ml_dtypes.float8_e4m3fn)

    def store(self, array, rows):
        import cupy

        with cupy.cuda.Device(self.executor.device):
            array[:len(rows)] = self.give(rows)


class CuPyGpu(GpuStreams, CuPyArrays):
    """CuPy arrays, with its stream objects."""

    @functools.cached_property
    def stream(self):
        import cupy

        with cupy.cuda.Device(self.executor.device):
            return cupy.cuda.Stream(non_blocking=True)

    def make_stream(self):
        return self.stream              # ends with its object, which lives as long as the results

    def finish(self, stream=None):
        import cupy

        with cupy.cuda.Device(self.executor.device):
            if stream is None:
                cupy.cuda.get_current_stream().synchronize()
            else:
                super().finish(stream)

    def get(self, array):
        assert array.flags.c_contiguous
        return super().get(array)
