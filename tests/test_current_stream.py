# SPDX-License-Identifier: MIT
"""The stream of a call that has no array: every library knows one for no array at all."""

import types

import numpy as np
import pytest

from deepep_ptx import Buffer, run_ranks
from deepep_ptx._call import Call
from deepep_ptx._torch import Torch
from deepep_ptx.arrays import BFLOAT16, DeviceArray
from deepep_ptx.arrays.cupy_arrays import CuPy
from deepep_ptx.arrays.library import DEVICE, NUMPY
from tests.array_libraries import DeviceArrays, PretendGpu, TorchArrays

STREAM = 0x7007


class Stands:
    """A module with some names of another one replaced."""

    def __init__(self, module, **names):
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, name)


def torch_with_streams():
    """torch, which may know no GPUs, with a current stream on one."""
    torch = pytest.importorskip("torch")
    return Torch(Stands(torch, _C=Stands(torch._C,
                                         _cuda_getCurrentRawStream=lambda device: STREAM + device)))


def cupy_with_streams():
    """What there is of CuPy without CuPy."""
    return CuPy(types.SimpleNamespace(cuda=types.SimpleNamespace(
        get_current_stream=lambda device: types.SimpleNamespace(ptr=STREAM + device))))


LIBRARIES = {
    "torch": (torch_with_streams, STREAM), "CuPy": (cupy_with_streams, STREAM),
    "Device": (lambda: DEVICE, 0), "NumPy": (lambda: NUMPY, 0),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_without_an_array(name):
    make, first = LIBRARIES[name]
    library = make()
    for device in (0, 1):
        want = first + device if first else 0
        assert library.current_stream(None, device) == want
        assert (library.current(device) or (lambda: 0))() == want


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("stream", [None, 5])
def test_call_of_library(name, stream):
    make, first = LIBRARIES[name]
    library = make()

    def main(comm):
        call = Call.of_library(PretendGpu.of(comm).executor, library, "like", stream)
        return call.stream, call.results_on

    want = first if stream is None else stream
    assert run_ranks(main, 1, executor="emu") == [(want, want)]


def test_a_tensor_in_host_memory_is_on_the_default_stream():
    """It is refused later, by name, also by a torch that knows no GPUs."""
    torch = pytest.importorskip("torch")
    assert torch_with_streams().current_stream(torch.zeros(1), 0) == 0


@pytest.mark.parametrize("on_gpu", [False, True], ids=["emu", "gpu"])
def test_before_any_call(on_gpu):
    """Arrays and the stream of a buffer that has seen no array, beside a torch without GPUs."""
    def main(comm):
        comm = PretendGpu.of(comm) if on_gpu else comm
        with Buffer(comm, 1 << 20) as buffer:
            made = buffer.get_combine_buffer(3, 8)
            assert made.shape == (3, 8) and made.dtype == BFLOAT16
            assert type(made) is (DeviceArray if on_gpu else np.ndarray)
            assert buffer.get_comm_stream().cuda_stream == buffer._core.stream
            view = buffer.get_local_buffer_tensor("bfloat16", (3, 8))
            assert type(view) is type(made)
            assert buffer.capture().event is not None

    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this torch uses GPUs; tests/gpu has it")
    run_ranks(main, 1, executor="emu")


@pytest.mark.parametrize(("arrays", "on_gpu"), [(TorchArrays, False), (DeviceArrays, True)],
                         ids=["torch-emu", "device-gpu"])
def test_like(arrays, on_gpu):
    if arrays is TorchArrays:
        pytest.importorskip("torch")

    def main(comm):
        comm = PretendGpu.of(comm) if on_gpu else comm
        with Buffer(comm, 1 << 20) as buffer:
            like = arrays(comm.executor).give(np.zeros((1, 8), BFLOAT16))
            made = buffer.get_combine_buffer(3, 8, like=like)
            assert type(made) is type(like) and tuple(made.shape) == (3, 8)

    run_ranks(main, 1, executor="emu")
