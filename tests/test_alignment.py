# SPDX-License-Identifier: MIT
"""Where arrays may begin: what the kernels' accesses need of each argument is checked on the host,
and the CPU executor shows the kernels the alignment that the caller's array has."""

import functools

import ml_dtypes
import numpy as np
import pytest

from deepep_ptx import Buffer, reference, run_ranks
from deepep_ptx.errors import RankError
from tests.test_buffer_args import expect
from tests.test_runtime import STEP, params

BF16 = np.dtype(ml_dtypes.bfloat16)
R, T, H, K, E = 2, 6, 16, 3, 8
ALIGNED = 256


def placed(array, offset):
    """A copy that begins `offset` bytes behind a multiple of ALIGNED."""
    memory = np.zeros(array.nbytes + 2 * ALIGNED, np.uint8)
    made = np.ndarray(array.shape, array.dtype, memory,
                      -memory.ctypes.data % ALIGNED + offset)
    made[...] = array
    return made


def tensor(array):
    """The same memory as a tensor."""
    import torch

    shown = array.dtype if array.dtype != BF16 else np.dtype(np.int16)
    made = torch.frombuffer(array.base, dtype=getattr(torch, shown.name), count=array.size,
                            offset=array.ctypes.data - array.base.ctypes.data)
    made = made if array.dtype == shown else made.view(torch.bfloat16)
    return made.reshape(array.shape)


def arguments(rng, idx_dtype=np.int64, scale_dtype=np.float32):
    """Of all calls, by the names that errors give them."""
    return {
        "topk_idx": np.argsort(rng.random((T, E)))[:, :K].astype(idx_dtype),
        "topk_weights": rng.random((T, K), np.float32),
        "x": rng.integers(0, 256, (T, H)).astype(BF16),
        "x[1]": rng.integers(0, 100, (T, 4)).astype(scale_dtype),
        "bias[0]": rng.standard_normal((T, H)).astype(BF16),
        "bias[1]": rng.standard_normal((T, H)).astype(BF16),
    }


# Least alignment of each argument: of an element, but for what is read in vectors of 16 bytes.
NEEDED = {"x": 16, "bias[0]": 16, "bias[1]": 16, "topk_weights": 4, "num_tokens_per_rank": 4,
          "num_tokens_per_expert": 4, "is_token_in_rank": 1}


def run(comm, kind, given, at, calls):
    """A layout, dispatch, cached dispatch and combine with arrays `at[name]` bytes behind aligned
    ones; what the calls return, and the handle."""
    def place(name, array):
        return kind(placed(array, at.get(name, 0)))

    def plain(array):
        return np.array(array if isinstance(array, np.ndarray) else array.numpy())

    def show(array):
        return array.view(np.uint16) if isinstance(array, np.ndarray) else plain(
            array.view(__import__("torch").int16)).view(np.uint16)

    args = {name: place(name, array) for name, array in given[comm.rank].items()}
    with Buffer(comm, 1 << 18) as buffer:
        topk_idx = args["topk_idx"]
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(topk_idx, E)
        layout = {name: place(name, plain(array)) for name, array in (
            ("num_tokens_per_rank", per_rank), ("num_tokens_per_expert", per_expert),
            ("is_token_in_rank", in_rank))}
        received, idx, weights, _, handle, _ = buffer.dispatch(
            (args["x"], args["x[1]"]), topk_idx=topk_idx, topk_weights=args["topk_weights"],
            **layout)
        again = buffer.dispatch((args["x"], args["x[1]"]), handle=handle)[0]
        y = received[0]
        pushed = kind(placed(show(y).view(BF16), at["x"]))
        combined = [buffer.combine(rows, handle, topk_weights=some, bias=bias)
                    for rows, some, bias in (
                        (y, weights, args["bias[0]"]),
                        (pushed, kind(placed(plain(weights), at.get("topk_weights", 0))),
                         (args["bias[0]"], args["bias[1]"])))]
        calls.append(handle)
        return ([plain(idx), plain(weights), plain(received[1]), plain(again[1])]
                + [show(rows) for rows in (received[0], again[0])]
                + [(show(x), plain(w)) for x, w, _ in combined])


@pytest.mark.parametrize("kind", [lambda a: a, tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize(("idx_dtype", "scale_dtype"), [(np.int64, np.float32),
                                                        (np.int32, np.int16)])
def test_the_least_alignment_is_enough(kind, idx_dtype, scale_dtype):
    """Every array as little aligned as it may be: the kernels, whose accesses the executor checks,
    give what they give for aligned ones."""
    if kind is tensor:
        pytest.importorskip("torch")
    given = [arguments(np.random.default_rng(rank), idx_dtype, scale_dtype) for rank in range(R)]
    least = NEEDED | {"topk_idx": np.dtype(idx_dtype).itemsize,
                      "x[1]": np.dtype(scale_dtype).itemsize}
    aligned = run_ranks(run, R, kind, given, dict.fromkeys(least, 0), [])
    offset = run_ranks(run, R, kind, given, least, [])
    for left, right in zip(aligned, offset, strict=True):
        np.testing.assert_equal(right, left)
    want = reference.dispatch([(g["x"], g["x[1]"]) for g in given], [g["topk_idx"] for g in given],
                              [g["topk_weights"] for g in given], E)
    for rank, got in enumerate(offset):
        np.testing.assert_equal(got[0], want[rank].recv_topk_idx)
        np.testing.assert_equal(got[2], want[rank].recv_x[1])
        np.testing.assert_equal(got[4], want[rank].recv_x[0].view(np.uint16))


@pytest.fixture(scope="module")
def made():
    """(rank 0's buffer of two, a handle of its)."""
    def main(comm):
        buffer, calls = Buffer(comm), []
        run(comm, lambda a: a, given, dict.fromkeys(NEEDED, 0), calls)
        return buffer, calls[0]

    given = [arguments(np.random.default_rng(rank)) for rank in range(R)]
    return run_ranks(main, R)[0]


def call_with(buffer, handle, name, make):
    """A function that makes the call of argument `name`, with `make(array)` for it."""
    rng = np.random.default_rng(0)
    given = arguments(rng) | {
        "num_tokens_per_rank": np.array([T, T], np.int32),
        "num_tokens_per_expert": np.ones(E, np.int32),
        "is_token_in_rank": np.ones((T, R), bool),
    }
    given = {key: placed(array, 0) for key, array in given.items()}
    array = given[name.rpartition(" ")[2]]
    received = np.zeros((handle.num_recv, H), BF16)
    weights = np.zeros((handle.num_recv, K), np.float32)
    if name.startswith("combine "):
        array = {"combine x": received, "combine topk_weights": weights}.get(name, array)
    given[name] = make(array)
    if name == "layout topk_idx":
        return functools.partial(buffer.get_dispatch_layout, given[name], E)
    if name.startswith("combine "):
        bias = given.get("combine bias[0]", given["bias[0]"]), given.get("combine bias[1]",
                                                                         given["bias[1]"])
        return functools.partial(buffer.combine, given.get("combine x", received), handle,
                                 topk_weights=given.get("combine topk_weights", weights), bias=bias)
    x = given["x"], given["x[1]"]
    if name == "cached x":
        return functools.partial(buffer.dispatch, given[name], handle=handle)
    if name == "cached x[1]":
        return functools.partial(buffer.dispatch, (given["x"], given[name]), handle=handle)
    return functools.partial(
        buffer.dispatch, x, **{key: given[key] for key in (
            "num_tokens_per_rank", "num_tokens_per_expert", "is_token_in_rank", "topk_idx",
            "topk_weights")})


CALLS = [("layout topk_idx", 8), ("topk_idx", 8), ("topk_weights", 4), ("x", 16), ("x[1]", 4),
         ("num_tokens_per_rank", 4), ("num_tokens_per_expert", 4), ("cached x", 16),
         ("cached x[1]", 4), ("combine x", 16), ("combine topk_weights", 4),
         ("combine bias[0]", 16), ("combine bias[1]", 16)]


@pytest.mark.parametrize("offset", [1, 2, 4, 8])
@pytest.mark.parametrize(("name", "needed"), CALLS)
def test_every_argument_is_checked(made, name, needed, offset):
    buffer, handle = made
    if offset % needed == 0:
        return                      # as test_the_least_alignment_is_enough has it
    call = call_with(buffer, handle, name, functools.partial(placed, offset=offset))
    expect(buffer, ValueError, f"{name.rpartition(' ')[2]}: the first byte must be {needed}-byte "
           f"aligned, is {offset} bytes behind such an address", call)


def test_arrays_without_bytes_may_be_anywhere():
    def main(comm):
        def empty(shape, dtype):
            return placed(np.zeros(shape, dtype), 1)

        with Buffer(comm) as buffer:
            idx = empty((0, K), np.int64)
            per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, E)
            (x, scales), *_, handle, _ = buffer.dispatch(
                (empty((0, H), BF16), empty((0, 3), np.float32)), num_tokens_per_rank=per_rank,
                num_tokens_per_expert=per_expert, is_token_in_rank=empty((0, R), bool),
                topk_idx=idx, topk_weights=empty((0, K), np.float32))
            combined, _, _ = buffer.combine(empty((0, H), BF16), handle, bias=empty((0, H), BF16))
            return x.shape, scales.shape, combined.shape

    assert run_ranks(main, R) == [((0, H), (0, 3), (0, H))] * R


# -- the CPU executor -----------------------------------------------------------------------------

@pytest.mark.parametrize("offset", [0, 1, 2, 4, 8, 16, 72, 128, 255])
def test_device_addresses_are_aligned_as_host_addresses(offset):
    def main(comm):
        array = placed(np.arange(64, dtype=np.uint8), offset)
        at = comm.executor.map_array(array.ctypes.data, array.nbytes, False, "array")
        owned = comm.executor.alloc(300)
        view = comm.executor.host_view(owned, 300).ctypes.data
        read = comm.executor.copy_out(at, 64)
        comm.executor.unmap(at)
        return at % ALIGNED, owned % ALIGNED, view % ALIGNED, read == array.tobytes()

    assert run_ranks(main, 1) == [(offset, 0, 0, True)]


def step_at(offset, nbytes=8):
    """What a kernel that adds to a word says of one in an array `offset` bytes behind an aligned
    one, `nbytes` from where it may begin."""
    def main(comm):
        array = placed(np.zeros(nbytes, np.uint8), offset)
        at = comm.executor.map_array(array.ctypes.data, nbytes, True, "array")
        comm.executor.launch(comm.executor.load("step", STEP, 32), params(at, 1), 1, 1)
        comm.executor.synchronize()
        comm.executor.unmap(at)
        return array.tobytes()

    return run_ranks(main, 1)[0]


def test_kernels_fault_on_what_is_not_aligned():
    assert step_at(4) == bytes([1, 0, 0, 0, 0, 0, 0, 0])
    for offset in (1, 2, 3, 6, 129):
        with pytest.raises(RankError) as caught:
            step_at(offset)
        assert caught.value.__cause__.kind == "misaligned"
        assert "'array' + 0" in str(caught.value)


def test_counts_do_not_depend_on_alignment():
    """Two runs count the same, wherever the caller's memory happens to be."""
    given = [arguments(np.random.default_rng(rank)) for rank in range(R)]

    def main(comm, at):
        run(comm, lambda a: a, given, at, [])
        return comm.executor.world.counters(comm.rank)

    aligned, offset = (run_ranks(main, R, dict.fromkeys(NEEDED, at)) for at in (0, 16))
    assert aligned == offset


def test_an_access_before_the_start_says_so():
    def main(comm):
        array = placed(np.zeros(8, np.uint8), 64)
        at = comm.executor.map_array(array.ctypes.data, 8, True, "array")
        comm.executor.launch(comm.executor.load("step", STEP, 32), params(at - 8, 1), 1, 1)
        comm.executor.synchronize()

    with pytest.raises(RankError, match="'array', 8 bytes before its start"):
        run_ranks(main, 1)
