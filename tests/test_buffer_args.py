# SPDX-License-Identifier: MIT
"""Bad arguments: a typed error that begins with the argument's name, and nothing launched."""

from functools import partial

import ml_dtypes
import numpy as np
import pytest

from deepep_ptx import Buffer, Config, EventOverlap, run_ranks
from deepep_ptx._arguments import Placement
from deepep_ptx._call import Call
from deepep_ptx._emu_executor import EmuExecutor
from deepep_ptx.arrays.library import NUMPY
from deepep_ptx.comm import RankComm
from deepep_ptx.errors import CapacityError, DestroyedError, RankError, RankMismatchError
from deepep_ptx.event import EventHandle
from deepep_ptx.handle import EPHandle
from tests.array_libraries import PretendGpu
from tests.test_buffer_life import check_round, dispatch, tokens

BF16 = ml_dtypes.bfloat16
R, T, H, K, E = 2, 6, 16, 3, 8


@pytest.fixture(scope="module")
def buffer():
    """Rank 0's buffer of two.  Checks come before anything that needs the other rank."""
    return run_ranks(lambda comm: Buffer(comm), R)[0]


@pytest.fixture
def arrays():
    """Good arguments of dispatch."""
    return {
        "x": np.zeros((T, H), BF16),
        "num_tokens_per_rank": np.array([T, 0], np.int32),
        "is_token_in_rank": np.tile(np.array([True, False]), (T, 1)),
        "num_tokens_per_expert": np.array([T] * K + [0] * (E - K), np.int32),
        "topk_idx": np.tile(np.arange(K), (T, 1)),
        "topk_weights": np.ones((T, K), np.float32),
    }


@pytest.fixture
def handle():
    """A handle as a dispatch of T tokens that all stay would give it."""
    return handle_of(R)


def handle_of(num_ranks, rank=0):
    prefix = np.zeros((num_ranks, num_ranks), np.int32)
    prefix[:, 0] = T
    pos = np.zeros((T, num_ranks), np.int32)
    take = partial(NUMPY.take, name="handle", stream=0)
    return EPHandle._of((prefix,), {
        "recv_src_idx": np.arange(T, dtype=np.int32),
        "is_token_in_rank": np.zeros((T, num_ranks), np.bool_), "num_tokens": T, "num_recv": T,
        "num_topk": K, "num_worst_tokens": 0, "hidden": H, "pos": pos, "executor": "emu",
        "rank": rank, "placement": Placement(NUMPY, take(pos), take(prefix), handle=1, rows=T),
    })


def expect(buffer, error, text, call, *args, **kwargs):
    before = buffer.last_launch
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert str(caught.value).startswith(text), str(caught.value)
    assert buffer.last_launch == before


# -- construction -----------------------------------------------------------------------------

@pytest.mark.parametrize(("kwargs", "error", "text"), [
    ({"num_nvl_bytes": 100}, ValueError, "num_nvl_bytes: must be a multiple of 128"),
    ({"num_nvl_bytes": -128}, ValueError, "num_nvl_bytes: must be in [0, 281474976710656]"),
    ({"num_nvl_bytes": 1 << 64}, ValueError, "num_nvl_bytes: must be in [0, 281474976710656]"),
    ({"arena_limit_bytes": 1 << 64}, ValueError, "arena_limit_bytes: must be in [0, 28147497671"),
    ({"num_nvl_bytes": 1.5}, TypeError, "num_nvl_bytes: must be an integer"),
    ({"num_nvl_bytes": True}, TypeError, "num_nvl_bytes: must be an integer"),
    ({"num_rdma_bytes": 128}, NotImplementedError, "num_rdma_bytes: "),
    ({"enable_shrink": True}, ValueError, "enable_shrink: must be False without low_latency_mode"),
    ({"num_qps_per_rank": 0}, ValueError, "num_qps_per_rank: must be at least 1"),
    ({"policy": "quick"}, ValueError, "policy: unknown policy 'quick'"),
    ({"policy": 3}, TypeError, "policy: "),
    ({"timeout_s": 0}, ValueError, "timeout_s: "),
    ({"timeout_s": -1.0}, ValueError, "timeout_s: "),
    ({"timeout_s": float("nan")}, ValueError, "timeout_s: "),
    ({"timeout_s": "1"}, TypeError, "timeout_s: "),
])
def test_construction(kwargs, error, text):
    with pytest.raises(RankError) as caught:
        run_ranks(lambda comm: Buffer(comm, **kwargs), 1)
    assert isinstance(caught.value.__cause__, error)
    assert str(caught.value.__cause__).startswith(text)


def test_group_must_be_a_group():
    with pytest.raises(TypeError, match=r"^group: "):
        Buffer(object())


@pytest.mark.parametrize(("num_sms", "error", "text"), [
    (0, ValueError, "num_sms: must be at least 1, got 0"),
    (2.0, TypeError, "num_sms: must be an integer, got float"),
    (True, TypeError, "num_sms: must be an integer, got bool"),
    (None, TypeError, "num_sms: must be an integer, got NoneType"),
])
def test_num_sms(num_sms, error, text):
    before = Buffer.num_sms
    with pytest.raises(error) as caught:
        Buffer.set_num_sms(num_sms)
    assert str(caught.value) == text
    assert Buffer.num_sms == before


# -- get_dispatch_layout ----------------------------------------------------------------------

@pytest.mark.parametrize(("topk_idx", "num_experts", "error", "text"), [
    ([[0, 1]], E, TypeError, "topk_idx: takes a NumPy array"),
    (3, E, TypeError, "topk_idx: takes a NumPy array"),
    (np.zeros((T, K), np.float32), E, TypeError, "topk_idx: dtype must be int64 or int32"),
    (np.zeros(T, np.int64), E, ValueError, "topk_idx: shape must be [num_tokens, num_topk]"),
    (np.zeros((T, 0), np.int64), E, ValueError, "topk_idx: num_topk must be in [1, 32], got 0"),
    (np.zeros((T, 33), np.int64), E, ValueError, "topk_idx: num_topk must be in [1, 32], got 33"),
    (np.zeros((K, T), np.int64).T, E, ValueError, "topk_idx: must be C-contiguous"),
    (np.zeros((T, K), np.int64), 0, ValueError, "num_experts: must be at least 1"),
    (np.zeros((T, K), np.int64), 7, ValueError, "num_experts: number of experts must be a multi"),
    (np.zeros((T, K), np.int64), 2.0, TypeError, "num_experts: must be an integer"),
    (np.zeros((T, K), np.int64), 2050, ValueError, "num_experts: number of experts"),
])
def test_layout(buffer, topk_idx, num_experts, error, text):
    expect(buffer, error, text, buffer.get_dispatch_layout, topk_idx, num_experts)


@pytest.mark.parametrize(("later", "error", "text"), [
    ({"previous_event": object()}, TypeError, "previous_event: must be None, an EventOverlap"),
    ({"allocate_on_comm_stream": True}, ValueError, "allocate_on_comm_stream: must be False with"),
    ({"allocate_on_comm_stream": True, "async_finish": True}, ValueError,
     "allocate_on_comm_stream: must be False with"),
    ({"allocate_on_comm_stream": True, "previous_event": EventOverlap()}, ValueError,
     "allocate_on_comm_stream: must be False with"),
])
def test_async_arguments(buffer, arrays, handle, later, error, text):
    expect(buffer, error, text, buffer.get_dispatch_layout, arrays["topk_idx"], E, **later)
    expect(buffer, error, text, buffer.dispatch, **arrays, **later)
    expect(buffer, error, text, buffer.combine, arrays["x"], handle, **later)
    expect(buffer, error, text, buffer.dispatch, arrays["x"], handle=handle, **later)


# -- dispatch ---------------------------------------------------------------------------------

def fp8():
    return np.zeros((T, H), ml_dtypes.float8_e4m3fn)


def scales():
    return np.ones((T, 2), np.float32)


def odd_scales():
    return np.zeros(T * 12 + 2, np.uint8)[2:].view(np.float32).reshape(T, 3)


def strided(array):
    return np.repeat(array, 2, axis=0)[::2]


@pytest.mark.parametrize(("name", "change", "error", "text"), [
    ("x", lambda a: None, TypeError, "x: takes a NumPy array"),
    ("x", lambda a: a.tolist(), TypeError, "x: takes a NumPy array"),
    ("x", lambda a: (a,), ValueError, "x: must be one array or a pair (x, scales), got a tuple"),
    ("x", lambda a: (fp8(), None), TypeError, "x[1]: takes a NumPy array"),
    ("x", lambda a: (fp8(), scales().astype(np.float64)), TypeError,
     "x[1]: dtype must be of 1, 2 or 4 bytes, got float64"),
    ("x", lambda a: (fp8(), scales()[1:]), ValueError, "x[1]: shape must be [6, num_scales]"),
    ("x", lambda a: (fp8(), scales()[:, :0]), ValueError, "x[1]: num_scales must be at least 1"),
    ("x", lambda a: (fp8(), odd_scales()), ValueError,
     "x[1]: the first byte must be 4-byte aligned, is 2 bytes behind such an address"),
    ("x", lambda a: (np.zeros((T, 8), fp8().dtype), scales()), ValueError,
     "x: hidden must be a multiple of 16"),
    ("x", lambda a: a.astype(np.float32)[:, :6], ValueError, "x: must be C-contiguous"),
    ("x", lambda a: np.zeros((T, 6), np.float32), ValueError, "x: hidden must be a multiple of 4 "),
    ("x", lambda a: a.astype(">f4"), TypeError, "x: dtype must be a number's, of NumPy, ml_dtypes"),
    ("x", lambda a: np.ma.array(a), TypeError, "x: must have no mask, got numpy.ma"),
    ("topk_idx", lambda a: np.ma.array(a, mask=a > 1), TypeError, "topk_idx: must have no mask, "),
    ("topk_weights", np.ma.array, TypeError, "topk_weights: must have no mask, got numpy.ma"),
    ("is_token_in_rank", np.ma.array, TypeError, "is_token_in_rank: must have no mask, got numpy"),
    ("x", lambda a: a[0], ValueError, "x: shape must be [num_tokens, hidden], got [16]"),
    ("x", lambda a: np.zeros((T, 12), BF16), ValueError, "x: hidden must be a multiple of 8"),
    ("x", lambda a: np.zeros((T, 0), BF16), ValueError, "x: hidden must be a multiple of 8"),
    ("x", strided, ValueError, "x: must be C-contiguous"),
    ("x", lambda a: np.zeros(T * H + 8, BF16)[1:T * H + 1].reshape(T, H), ValueError,
     "x: the first byte must be 16-byte aligned"),
    ("num_tokens_per_rank", lambda a: None, TypeError,
     "num_tokens_per_rank: must be given without a handle"),
    ("num_tokens_per_rank", lambda a: a.astype(np.int64), TypeError,
     "num_tokens_per_rank: dtype must be int32"),
    ("num_tokens_per_rank", lambda a: a[:1], ValueError, "num_tokens_per_rank: shape must be [2]"),
    ("is_token_in_rank", lambda a: a.astype(np.uint8), TypeError,
     "is_token_in_rank: dtype must be bool"),
    ("is_token_in_rank", lambda a: a[1:], ValueError, "is_token_in_rank: shape must be [6, 2]"),
    ("num_tokens_per_expert", lambda a: a[:7], ValueError, "num_tokens_per_expert: number of exp"),
    ("num_tokens_per_expert", lambda a: a[:0], ValueError, "num_tokens_per_expert: number of exp"),
    ("num_tokens_per_rdma_rank", lambda a: np.zeros(1, np.int32), ValueError,
     "num_tokens_per_rdma_rank: must be None"),
    ("topk_idx", lambda a: None, ValueError, "topk_idx: topk_idx and topk_weights must both"),
    ("topk_idx", lambda a: a[:-1].copy(), ValueError, "topk_idx: shape must be [6, num_topk]"),
    ("topk_idx", lambda a: a.astype(np.uint64), TypeError, "topk_idx: dtype must be int64 or int"),
    ("topk_weights", lambda a: None, ValueError, "topk_weights: topk_idx and topk_weights must b"),
    ("topk_weights", lambda a: a.astype(np.float64), TypeError,
     "topk_weights: dtype must be float32"),
    ("topk_weights", lambda a: a[:, :2].copy(), ValueError, "topk_weights: shape must be [6, 3]"),
    ("expert_alignment", lambda a: 0, ValueError, "expert_alignment: must be at least 1"),
    ("num_worst_tokens", lambda a: -1, ValueError, "num_worst_tokens: must be in [0, "),
    ("num_worst_tokens", lambda a: 2.5, TypeError, "num_worst_tokens: must be an integer"),
    ("config", lambda a: object(), TypeError, "config: must be None or a Config"),
    ("config", lambda a: Config(num_sms=10**9), ValueError, "num_sms: must be in [1, "),
    ("handle", lambda a: object(), ValueError, "topk_idx: must be None with a handle"),
])
def test_dispatch(buffer, arrays, name, change, error, text):
    arrays[name] = change(arrays.get(name))
    expect(buffer, error, text, buffer.dispatch, **arrays)


def test_worst_case_needs_topk(buffer, arrays):
    arrays["topk_idx"] = arrays["topk_weights"] = None
    expect(buffer, ValueError, "topk_idx: must be given with num_worst_tokens", buffer.dispatch,
           **arrays, num_worst_tokens=12)


@pytest.mark.parametrize(("change", "error", "text"), [
    ({"handle": (1, 2)}, TypeError, "handle: must be what dispatch returned"),
    ({"x": np.zeros((T - 1, H), BF16)}, ValueError, "x: shape must be [6, hidden]"),
    ({"topk_idx": np.zeros((T, K), np.int64)}, ValueError, "topk_idx: must be None with a handle"),
    ({"topk_weights": np.zeros((T, K), np.float32)}, ValueError, "topk_idx: must be None with"),
    ({"num_worst_tokens": 2 * T}, ValueError, "num_worst_tokens: must be 0 or 6, the rows of the"),
    ({"num_worst_tokens": T - 1}, ValueError, "num_worst_tokens: must be 0 or 6, the rows of the"),
    ({"num_worst_tokens": -1}, ValueError, "num_worst_tokens: must be at least 0, got -1"),
    ({"num_worst_tokens": 6.0}, TypeError, "num_worst_tokens: must be an integer"),
    ({"config": 3}, TypeError, "config: must be None or a Config"),
])
def test_cached_dispatch(buffer, handle, change, error, text):
    arguments = {"x": np.zeros((T, H), BF16), "handle": handle} | change
    expect(buffer, error, text, buffer.dispatch, **arguments)


# -- combine ----------------------------------------------------------------------------------

@pytest.mark.parametrize(("change", "error", "text"), [
    ({"x": np.zeros((T - 1, H), BF16)}, ValueError, "x: shape must be [6, hidden]"),
    ({"x": np.zeros((T, H), np.float16)}, TypeError, "x: dtype must be bfloat16"),
    ({"handle": None}, TypeError, "handle: must be what dispatch returned"),
    ({"handle": (1, 2)}, TypeError, "handle: must be what dispatch returned"),
    ({"topk_weights": np.zeros((T, 33), np.float32)}, ValueError, "topk_weights: num_topk must"),
    ({"topk_weights": np.zeros((T, K), np.float64)}, TypeError, "topk_weights: dtype must be fl"),
    ({"bias": np.zeros((T, H + 8), BF16)}, ValueError, "bias: shape must be [6, 16]"),
    ({"bias": (np.zeros((T, H), BF16),)}, ValueError, "bias: must be None, one array or a pair"),
    ({"bias": (np.zeros((T, H), BF16), np.zeros((T, H), np.float32))}, TypeError,
     "bias[1]: dtype must be bfloat16"),
    ({"bias": (None, np.zeros((T, H), np.float32))}, TypeError, "bias[1]: dtype must be bfloat16"),
    ({"config": object()}, TypeError, "config: must be None or a Config"),
])
def test_combine(buffer, handle, change, error, text):
    arguments = {"x": np.zeros((T, H), BF16), "handle": handle} | change
    expect(buffer, error, text, buffer.combine, **arguments)


def test_handle_of_another_group(buffer):
    expect(buffer, ValueError, "handle: made by a group of 3 ranks", buffer.combine,
           np.zeros((T, H), BF16), handle_of(3))


def test_handle_of_another_rank(buffer):
    expect(buffer, ValueError, "handle: made by rank 1, this is rank 0", buffer.combine,
           np.zeros((T, H), BF16), handle_of(R, rank=1))


def test_handle_is_immutable(handle):
    with pytest.raises(AttributeError):
        handle.num_recv = 3
    with pytest.raises(AttributeError):
        del handle.pos
    assert isinstance(handle, tuple) and handle[0].shape == (R, R)


# -- get_combine_buffer -----------------------------------------------------------------------

@pytest.mark.parametrize(("change", "error", "text"), [
    ({"rows": -1}, ValueError, "rows: must be in [0, 2147483647], got -1"),
    ({"rows": 1 << 31}, ValueError, "rows: must be in [0, 2147483647], got 2147483648"),
    ({"rows": 1 << 70}, ValueError, "rows: must be in [0, 2147483647]"),
    ({"rows": 2.0}, TypeError, "rows: must be an integer, got float"),
    ({"rows": True}, TypeError, "rows: must be an integer, got bool"),
    ({"rows": None}, TypeError, "rows: must be an integer, got NoneType"),
    ({"hidden": 0}, ValueError, "hidden: must be in [1, 16777215], got 0"),
    ({"hidden": 1 << 70}, ValueError, "hidden: must be in [1, 16777215]"),
    ({"hidden": 12}, ValueError, "hidden: must be a multiple of 8, got 12"),
    ({"hidden": "8"}, TypeError, "hidden: must be an integer, got str"),
    ({"like": [1]}, TypeError, "like: takes a NumPy array"),
    ({"like": BF16}, TypeError, "like: takes a NumPy array"),
    ({"stream": 3}, ValueError, "stream: must be None or 0 on the CPU executor, got 3"),
    ({"stream": "s"}, TypeError, "stream: must be None, an integer or an object with"),
    ({"rows": (1 << 31) - 1, "hidden": (1 << 24) - 8}, CapacityError, "num_nvl_bytes: rank 0 has"),
])
def test_combine_buffer(buffer, change, error, text):
    arguments = {"rows": T, "hidden": H} | change
    expect(buffer, error, text, buffer.get_combine_buffer, **arguments)


def test_combine_buffer_of_numpy_on_a_gpu():
    """NumPy arrays are copied there, and nothing of them lies in the arena."""
    def main(comm):
        with Buffer(PretendGpu.of(comm), 1 << 16) as gpu_buffer:
            expect(gpu_buffer, TypeError, "like: must be an array on the GPU",
                   gpu_buffer.get_combine_buffer, T, H, like=np.zeros(1))

    run_ranks(main, 1, executor="emu")


# -- integers of NumPy ------------------------------------------------------------------------

INTEGERS = [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64]


def same(got, want):
    np.testing.assert_equal(got, want)


@pytest.mark.parametrize("kind", INTEGERS)
def test_numpy_integers_are_integers(kind):
    """As numbers of experts, rows, SMs: they never overflow, whatever is done with them."""
    def main(comm):
        inputs = tokens(comm.rank)
        with Buffer(comm, kind(0), num_qps_per_rank=kind(24), stages=kind(3),
                    stage_bytes=kind(112)) as ours:
            layout = ours.get_dispatch_layout(inputs[1], 12)
            same(ours.get_dispatch_layout(inputs[1], kind(12))[:4], layout[:4])
            plain = dispatch(ours, *inputs)
            got = dispatch(ours, *inputs, expert_alignment=kind(100), num_sms=kind(3),
                           combine_hidden=kind(96))
            same(got[0].view(np.uint16), plain[0].view(np.uint16))
            same(got[3], [-(-count // 100) * 100 for count in plain[3]])
            assert {type(count) for count in got[3]} == {int}
            worst = dispatch(ours, *inputs, num_worst_tokens=kind(100))
            assert worst[0].shape == (100, inputs[0].shape[1])
            assert worst[4].num_recv == 100 and type(worst[4].num_recv) is int
            again = ours.dispatch(inputs[0], worst[4], num_worst_tokens=kind(100))
            assert again[0].shape == worst[0].shape
            rows = ours.get_combine_buffer(kind(100), kind(120))
            assert rows.shape == (100, 120) and rows.nbytes == 24000
            out, _, _ = ours.combine(plain[0], plain[4], num_sms=kind(2))
            same(out.shape, inputs[0].shape)
            assert ours.last_num_sms == 2 and type(ours.last_num_sms) is int

    run_ranks(main, 2)


def test_an_array_is_never_larger_than_its_memory():
    """300000 x 7168 bfloat16 are 4.3 GB, and 5.8 MB in 32 bits."""
    def main(comm):
        with Buffer(comm, 1 << 23) as ours:
            expect(ours, CapacityError, "num_nvl_bytes: rank 0 has no 4300800000 free bytes",
                   ours.get_combine_buffer, np.int32(300000), 7168)
            slot = ours._core.reserve(256, 0)
            call = Call.of_library(ours._core.executor, NUMPY, "x")
            assert call.part(slot, 0, (16, 8), np.dtype(BF16)).nbytes == 256
            for shape, offset in (((16, 9), 0), ((16, 8), 2), ((1 << 40, 1 << 40), 0)):
                with pytest.raises(ValueError, match=r"^shape: .* the memory has 256$"):
                    call.part(slot, offset, shape, np.dtype(BF16))

    run_ranks(main, 1)


# -- get_local_buffer_tensor ------------------------------------------------------------------

ARENA = 1 << 12


@pytest.fixture(scope="module")
def limited():
    """Rank 0's buffer of two whose arena has a fixed place."""
    return run_ranks(lambda comm: Buffer(comm, ARENA), R)[0]


@pytest.mark.parametrize(("change", "error", "text"), [
    ({"dtype": "bfloat17"}, TypeError, "dtype: must be a dtype of torch or NumPy, got 'bfloat17'"),
    ({"dtype": object}, TypeError, "dtype: must be a number's, of NumPy, ml_dtypes or torch"),
    ({"dtype": None}, TypeError, "dtype: must be a dtype of torch or NumPy, got None"),
    ({"dtype": np.dtype([("a", "i4")])}, TypeError, "dtype: must be a number's, of NumPy"),
    ({"size": (ARENA // 2 + 1,)}, ValueError, "size: must have at most 2048 elements from byte 0"),
    ({"size": (3, ARENA)}, ValueError, "size: must have at most 2048 elements from byte 0"),
    ({"size": (ARENA // 2,), "offset": 2}, ValueError, "size: must have at most 2047 elements"),
    ({"size": 2048}, TypeError, "size: must be None or a sequence of integers, got int"),
    ({"size": "12"}, TypeError, "size: must be an integer, got str"),
    ({"size": (2.0,)}, TypeError, "size: must be an integer, got float"),
    ({"size": (-1,)}, ValueError, "size: must be at least 0, got -1"),
    ({"size": (-2, -2)}, ValueError, "size: must be at least 0, got -2"),
    ({"offset": -2}, ValueError, "offset: must be in [0, 4096], got -2"),
    ({"offset": ARENA + 2}, ValueError, "offset: must be in [0, 4096], got 4098"),
    ({"offset": 1}, ValueError, "offset: must be a multiple of 2 bytes, got 1"),
    ({"offset": 2.0}, TypeError, "offset: must be an integer, got float"),
    ({"use_rdma_buffer": True}, ValueError, "use_rdma_buffer: must be False"),
])
def test_local_buffer_tensor(limited, change, error, text):
    arguments = {"dtype": BF16} | change
    expect(limited, error, text, limited.get_local_buffer_tensor, **arguments)


def test_local_buffer_tensor_of_an_arena_that_grows(buffer):
    expect(buffer, ValueError, "num_nvl_bytes: must be given for get_local_buffer_tensor",
           buffer.get_local_buffer_tensor, BF16)


# -- events -----------------------------------------------------------------------------------

def test_previous_event_must_be_of_this_package(buffer, arrays):
    for previous in (1, "event", EventHandle, np.zeros(1)):
        expect(buffer, TypeError, "previous_event: must be None, an EventOverlap or an EventHandle",
               buffer.dispatch, **arrays, previous_event=previous)


# -- after destroy() --------------------------------------------------------------------------

@pytest.mark.parametrize(("method", "args"), [
    ("get_dispatch_layout", (None, None)), ("dispatch", (None,)), ("combine", (None, None)),
    ("get_combine_buffer", (None, None)), ("get_local_buffer_tensor", (None,)),
    ("get_comm_stream", ()), ("check", ()), ("reset", ()), ("stats", ()),
])
def test_every_method_after_destroy(method, args):
    """Whatever its arguments are."""
    def main(comm):
        gone = Buffer(comm)
        gone.destroy()
        with pytest.raises(DestroyedError, match="the buffer was used after destroy"):
            getattr(gone, method)(*args)
        with pytest.raises(DestroyedError):
            gone.last_launch    # noqa: B018
        gone.destroy()          # more than once is nothing

    run_ranks(main, 2)


# -- a refusal leaves nothing behind ----------------------------------------------------------

def test_the_buffer_works_after_refusals():
    """Of every method, on one rank only: none of them waits for the other."""
    def main(comm):
        inputs = tokens(comm.rank)
        with Buffer(comm, 1 << 20) as ours:
            recv_x, _, _, _, handle, _ = dispatch(ours, *inputs)
            used = ours.stats()["arena_used_bytes"]
            if comm.rank:
                refused = [
                    (ours.get_dispatch_layout, (inputs[1], 7), {}),
                    (dispatch, (ours, *inputs), {"expert_alignment": 0}),
                    (dispatch, (ours, *inputs), {"num_worst_tokens": -1}),
                    (ours.dispatch, (inputs[0][1:], handle), {}),
                    (ours.combine, (recv_x[1:], handle), {}),
                    (ours.combine, (recv_x, handle), {"bias": 3}),
                    (ours.combine, (recv_x, handle), {"previous_event": 3}),
                    (ours.get_combine_buffer, (-1, 8), {}),
                    (ours.get_local_buffer_tensor, ("uint8", (-1,)), {}),
                ]
                for call, args, kwargs in refused:
                    with pytest.raises((ValueError, TypeError)):
                        call(*args, **kwargs)
            assert ours.stats()["arena_used_bytes"] == used
            check_round(ours, comm.size)

    run_ranks(main, 2)


# -- SMs and nodes ----------------------------------------------------------------------------

def test_more_ctas_than_fit(buffer, arrays, monkeypatch):
    monkeypatch.setattr(Buffer, "num_sms", 10**9)
    expect(buffer, ValueError, "num_sms: must be in [1, ", buffer.dispatch, **arrays)
    expect(buffer, ValueError, "num_sms: must be in [1, ", buffer.get_dispatch_layout,
           arrays["topk_idx"], E)


@pytest.mark.parametrize("num_sms", [0, -1])
def test_fewer_ctas_than_one(num_sms):
    with pytest.raises(ValueError, match="num_sms: must be at least 1"):
        Buffer.set_num_sms(num_sms)


def test_several_nodes():
    with pytest.raises(RankError) as caught:
        run_ranks(Buffer, 4, ranks_per_node=2)
    assert isinstance(caught.value.__cause__, NotImplementedError)
    assert str(caught.value.__cause__).startswith("group: its 4 ranks must share one NVLink domain")


@pytest.mark.parametrize("kinds", ["AAA", "AAB"])
def test_gpus_of_different_kind(kinds):
    class Gpu(EmuExecutor):
        @property
        def device_name(self):
            return kinds[self.rank]

    def main(comm):
        own = comm.executor
        gpu = Gpu(own.world, own.rank, arch=own.arch)
        with Buffer(RankComm(gpu, comm.size, comm.ranks_per_node)) as buffer:
            check_round(buffer, comm.size)

    if kinds == "AAA":
        run_ranks(main, 3, executor="emu")
        return
    with pytest.raises(RankError) as caught:
        run_ranks(main, 3, executor="emu")
    error = caught.value.__cause__
    assert isinstance(error, RankMismatchError)
    assert str(error).startswith("group: rank 0 has a A, rank 2 a B")
    assert (error.argument, error.ranks, error.values) == ("group", (0, 2), ("A", "B"))
