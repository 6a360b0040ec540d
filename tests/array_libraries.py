# SPDX-License-Identifier: MIT
"""Arrays of several libraries for the same test, and a GPU that is none."""

import numpy as np

from deepep_ptx._emu_executor import EmuExecutor
from deepep_ptx._executor import Memory
from deepep_ptx.arrays import BFLOAT16, DeviceArray
from deepep_ptx.comm import RankComm


class PretendGpu(EmuExecutor):
    """The CPU executor as Python sees a GPU: device memory has no host address, streams count."""

    name = "cuda"
    device = 0
    in_host_memory = False
    takes_streams = True
    ends_with_run = False

    def host_view(self, dptr, nbytes):
        return None

    def copy_array(self, dst, src, nbytes, stream):
        self.copy_in(dst, self.read(src, nbytes, stream).tobytes(), stream=stream)

    def read(self, dptr, nbytes, stream=0):
        self.synchronize(stream)
        return np.frombuffer(self.world.read(self.rank, dptr, nbytes), np.uint8).copy()

    def device_of(self, address):
        return self.device

    @staticmethod
    def of(comm):
        """`comm`'s rank on such a GPU."""
        own = comm.executor
        return RankComm(PretendGpu(own.world, own.rank, arch=own.arch), comm.size,
                        comm.ranks_per_node)


class NumPyArrays:
    """As they are."""

    def __init__(self, executor):
        self.executor = executor

    def give(self, array):
        return array

    def get(self, array):
        assert isinstance(array, np.ndarray) and array.flags.c_contiguous
        return np.array(array)

    def get_fp8(self, array):
        """FP8 rows that a call has returned."""
        return self.get(array)

    def store(self, array, rows):
        array[:len(rows)] = rows


class TorchArrays(NumPyArrays):
    """CPU tensors; NumPy and torch exchange bfloat16 as int16."""

    def give(self, array):
        import torch

        if array.dtype == BFLOAT16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def get(self, tensor):
        import torch

        assert isinstance(tensor, torch.Tensor) and tensor.is_contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().copy().view(BFLOAT16)
        return tensor.numpy().copy()

    def store(self, tensor, rows):
        tensor[:len(rows)] = self.give(rows)


class DeviceArrays(NumPyArrays):
    """`DeviceArray` on a `PretendGpu`."""

    def give(self, array):
        memory = Memory(self.executor, array.nbytes, "array")
        memory.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return DeviceArray(memory, self.executor, memory.address, array.shape, array.dtype)

    def get(self, array):
        assert type(array) is DeviceArray
        return array.numpy()

    def store(self, array, rows):
        if rows.nbytes:
            self.executor.copy_in(array.address, rows.tobytes())


class Interface:
    """An array that only has `__cuda_array_interface__`."""

    def __init__(self, array, **changes):
        self.array = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | changes


class Exporter:
    """An array that only has `__array_interface__`."""

    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


class Capsule:
    """An array that only has DLPack: gives the capsules that `make(**kwargs)` makes."""

    def __init__(self, make, device=(1, 0)):
        self.make = make
        self.device = device

    def __dlpack__(self, **kwargs):
        return self.make(**kwargs)

    def __dlpack_device__(self):
        return self.device
