# SPDX-License-Identifier: MIT
"""What other libraries say of their arrays is believed only as far as it can be true."""

import numpy as np
import pytest

from deepep_ptx import Buffer, run_ranks
from deepep_ptx._array import check_memory, span_of
from deepep_ptx.arrays.library import library_of
from deepep_ptx.arrays.streams import stream_number
from tests.array_libraries import Capsule, PretendGpu
from tests.hostile_arrays import (
    HIDDEN,
    INTERFACES,
    NUM_TOKENS,
    TENSORS,
    Claim,
    Exports,
    interface,
)

E = 8


@pytest.fixture(scope="module")
def buffer():
    return run_ranks(Buffer, 2, executor="emu")[0]


def refused(name, call, *args, **kwargs):
    with pytest.raises((TypeError, ValueError)) as caught:
        call(*args, **kwargs)
    assert str(caught.value).startswith(f"{name}: "), str(caught.value)
    return str(caught.value)


def test_the_claims_are_right_but_for_what_is_wrong(buffer):
    array = np.zeros((NUM_TOKENS, HIDDEN), np.int64)
    for good in (Claim(array, 0, 64), interface("__array_interface__", dict)):
        *_, in_rank, _ = buffer.get_dispatch_layout(good, E)
        assert in_rank.shape == (NUM_TOKENS, 2)


@pytest.mark.parametrize("what", TENSORS)
def test_dlpack(buffer, what):
    indices = Claim(np.zeros((NUM_TOKENS, HIDDEN), np.int64), 0, 64, **TENSORS[what])
    refused("topk_idx", buffer.get_dispatch_layout, indices, E)
    rows = Claim(np.zeros((NUM_TOKENS, HIDDEN), np.uint8), 1, 8, **TENSORS[what])
    refused("x", buffer.dispatch, rows)


@pytest.mark.parametrize("device", [None, (), (1,), ("host", 0), (1, 0, 0), (2, -5), (2, 1 << 70)])
def test_dlpack_device(buffer, device):
    refused("topk_idx", buffer.get_dispatch_layout, Capsule(lambda **_: None, device), E)


@pytest.mark.parametrize("made", [None, 7, b"dltensor", object()])
def test_dlpack_without_a_capsule(buffer, made):
    refused("topk_idx", buffer.get_dispatch_layout, Capsule(lambda **_: made), E)


@pytest.mark.parametrize("what", INTERFACES)
def test_array_interface(buffer, what):
    text = refused("topk_idx", buffer.get_dispatch_layout,
                   interface("__array_interface__", INTERFACES[what]), E)
    assert "Exports" in text or "dtype" in text or "C-contiguous" in text


@pytest.mark.parametrize("what", INTERFACES)
def test_cuda_array_interface(what):
    library = library_of(Exports("__cuda_array_interface__", {}, None), "x")
    given = interface("__cuda_array_interface__", INTERFACES[what])
    if what in ("overflowing strides", "too few strides"):
        refused("x", library.take, given, "x", 0)

    def main(comm):
        with Buffer(PretendGpu.of(comm), 1 << 16) as gpu:
            refused("topk_idx", gpu.get_dispatch_layout, given, E)

    run_ranks(main, 1, executor="emu")


@pytest.mark.parametrize("stream", [-3, 1 << 64, 0.5, "s", ()])
def test_streams_that_are_none(stream):
    text = refused("stream", stream_number, Exports("cuda_stream", stream, None))
    assert "must be" in text
    refused("stream", stream_number, Exports("__cuda_stream__", stream, None))
    refused("stream", stream_number, Exports("__cuda_stream__", (0, stream), None))


def test_spans():
    assert span_of((3, 4), None, 2) == span_of((3, 4), (8, 2), 2) == (0, 24)
    assert span_of((3, 4), (-8, 2), 2) == (-16, 8)
    assert span_of((3, 0), (-8, 2), 2) == (0, 0)
    check_memory(0, (3, 0), None, 2)                # which has no bytes
    check_memory((1 << 63) - 24, (3, 4), None, 2)
    check_memory(16, (3, 4), (-8, 2), 2)
    for wrong in ((0, (1,), None, 2), ((1 << 63) - 23, (3, 4), None, 2), (15, (3, 4), (-8, 2), 2),
                  (1, (2,), (1 << 63,), 2), (1, (1,), (1 << 63,), 2), (1, (2,), (1, 1), 2)):
        with pytest.raises(ValueError):
            check_memory(*wrong)


# -- arrays of NumPy and torch that overflow ------------------------------------------------------

def strided(shape, strides):
    return np.lib.stride_tricks.as_strided(np.ones(8, np.float32), shape, strides)


@pytest.mark.parametrize("strides", [(1 << 62, 4), (-(1 << 62), 4), (4, 1 << 62)])
def test_scales_with_overflowing_strides(buffer, strides):
    x = np.zeros((NUM_TOKENS, HIDDEN), np.uint8)
    text = refused("x[1]", buffer.dispatch, (x, strided((NUM_TOKENS, 4), strides)))
    assert "are no memory" in text


# -- like -----------------------------------------------------------------------------------------

def test_like_on_another_device(buffer):
    gpu = interface("__cuda_array_interface__", dict)
    text = refused("like", buffer.get_combine_buffer, 4, HIDDEN, like=gpu)
    assert "the CPU executor takes arrays in host memory" in text
    torch = pytest.importorskip("torch")
    text = refused("like", buffer.get_combine_buffer, 4, HIDDEN,
                   like=torch.empty(3, device="meta"))
    assert "taken are CPU and CUDA tensors" in text
