# SPDX-License-Identifier: MIT
"""DEEPEP_PTX_POISON: memory of results that have died is NaN, and no result is wrong for it."""

import ctypes
import gc
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from deepep_ptx import Buffer, RankError, poison, run_ranks
from tests.low_latency import make_inputs, round_trip
from tests.test_async import Side, bits, let_run
from tests.test_buffer_life import tokens
from tests.test_graphs import SIZE, Inputs, check, layer

BF16 = ml_dtypes.bfloat16
T, H, K, E, R = 6, 128, 2, 8, 2


@pytest.fixture
def poisoned(monkeypatch):
    monkeypatch.setenv(poison.VARIABLE, "1")


def at(address, nbytes):
    """Memory as it is, whoever it belongs to: what a stale pointer reads."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def bytes_of(array):
    return at(array.__array_interface__["data"][0], array.nbytes)


def inputs(rank):
    rng = np.random.default_rng(rank)
    x = rng.integers(-8, 9, (T, H)).astype(BF16)
    idx = np.argsort(rng.random((T, E)), axis=1)[:, :K].copy()
    return x, idx, np.ones((T, K), np.float32)


def dispatch(buffer, x, idx, weights, **options):
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, E)
    return buffer.dispatch(x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                           num_tokens_per_expert=per_expert, topk_idx=idx, topk_weights=weights,
                           **options)


def on_ranks(main, check=None, **options):
    def rank_main(comm):
        with Buffer(comm, 1 << 20, **options) as buffer:
            return main(comm, buffer)

    return run_ranks(rank_main, R, executor="emu", **({"check": check} if check else {}))


@pytest.mark.parametrize("value", ["1", "0", "", None])
def test_a_dead_result_is_nan_where_it_is_asked_for(monkeypatch, value):
    monkeypatch.delenv(poison.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(poison.VARIABLE, value)

    def main(comm, buffer):
        recv_x, recv_idx, recv_weights, *_ = result = dispatch(buffer, *inputs(comm.rank))
        stale = bytes_of(recv_x)
        values = stale.copy()
        del result, recv_x, recv_idx
        gc.collect()
        assert np.array_equal(stale, values), "another array of the slot lives"
        del recv_weights, _
        gc.collect()
        if value == "1":
            assert np.isnan(stale.view(BF16)).all()
            assert np.isnan(stale.view(ml_dtypes.float8_e4m3fn)).all()
            assert (stale.view(np.int64) == -1).all()
        else:
            assert np.array_equal(stale, values)

    on_ranks(main)


def test_views_of_torch(poisoned):
    torch = pytest.importorskip("torch")

    def main(comm, buffer):
        x, idx, weights = inputs(comm.rank)
        x = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        result = dispatch(buffer, x, torch.from_numpy(idx), torch.from_numpy(weights))
        recv_x = result[0]
        if buffer.zero_copy is None:    # the tensor is torch's, its slot is free
            assert not recv_x.isnan().any() and buffer.stats()["copied_bytes"] > 0
            return
        stale = at(recv_x.data_ptr(), recv_x.nbytes)
        assert not recv_x.isnan().any()
        del result, recv_x
        gc.collect()
        assert np.isnan(stale.view(BF16)).all()

    for zero_copy in True, None:
        on_ranks(main, zero_copy=zero_copy)


@pytest.mark.parametrize("library, races", [("NumPy", None), ("NumPy", "races"), ("torch", None),
                                            ("torch, views", "races")])
def test_results_are_right_whatever_dies_between(poisoned, library, races):
    """Calls reuse slots that were filled; combines read rows of slots that are handles' alone."""
    give = get = np.asarray
    if library.startswith("torch"):
        torch = pytest.importorskip("torch")

        def give(array):
            tensor = torch.from_numpy(array.view(np.int16) if array.dtype == BF16 else array)
            return tensor.view(torch.bfloat16) if array.dtype == BF16 else tensor

        def get(tensor):
            return tensor.view(torch.int16).numpy().view(BF16)

    def main(comm, buffer):
        x, idx, weights = inputs(comm.rank)
        x, idx, weights = give(x), give(idx), give(weights)
        per_rank, _, _, in_rank, _ = buffer.get_dispatch_layout(idx, E)
        want = get(x).astype(np.float32) * np.asarray(in_rank).sum(1, keepdims=True)
        kept = []
        for number in range(12):
            recv_x, *_, handle, _ = dispatch(buffer, x, idx, weights,
                                             num_worst_tokens=R * T if number % 3 == 2 else 0)
            pushed = give(np.array(get(recv_x)))
            y = pushed if number % 2 else recv_x
            out = buffer.combine(y, handle)[0]
            again = buffer.dispatch(x, handle=handle)[0]
            del recv_x, y
            total = buffer.combine(again, handle)[0]
            for got in out, total:
                np.testing.assert_array_equal(get(got).astype(np.float32), want)
            kept.append(again)
            if len(kept) == 3:
                del kept[number % 2]
        buffer.check()
        return want

    on_ranks(main, races, zero_copy=True if library == "torch, views" else None)


def test_arrays_of_get_combine_buffer(poisoned):
    def main(comm, buffer):
        recv_x, *_, handle, _ = dispatch(buffer, *inputs(comm.rank))
        y = buffer.get_combine_buffer(len(recv_x), H)
        y[...] = 1
        stale = bytes_of(y)
        assert buffer.combine(y, handle)[0].astype(np.float32).max() > 0
        assert not np.isnan(stale.view(BF16)).any()
        del y
        gc.collect()
        assert np.isnan(stale.view(BF16)).all()

    on_ranks(main)


@pytest.mark.parametrize("named", [True, False])
def test_reads_that_are_queued_come_first(poisoned, named):
    """What is ordered as docs/arrays.md says reads the result; the fill is behind it."""
    def rank_main(comm):
        side = Side(comm)
        with Buffer(side.comm, 1 << 20) as buffer:
            stream = side.executor.stream_create() if named else 0
            recv_x = side.dispatch(buffer, *tokens(comm.rank), stream=stream)[0]
            want = bits(side.arrays.get(recv_x)).copy()
            memory = comm.executor.host_view(recv_x.address, recv_x.nbytes)
            stale = SimpleNamespace(address=recv_x.address, nbytes=recv_x.nbytes,
                                    dtype=recv_x.dtype, shape=recv_x.shape)
            with side.blocked(stream):
                look = side.copied(stale, stream)
                del recv_x
                gc.collect()
                let_run(side.executor)
                assert np.array_equal(memory, want.view(np.uint8).reshape(-1))
            assert np.array_equal(bits(look()), want)
            side.executor.synchronize(stream)
            assert (memory == 0xFF).all()

    run_ranks(rank_main, R, executor="emu")


def test_the_callers_stream_goes_on_behind_the_fill(poisoned):
    def rank_main(comm):
        side = Side(comm)
        with Buffer(side.comm, 1 << 20) as buffer:
            stream = side.executor.stream_create()
            recv_x = side.dispatch(buffer, *tokens(comm.rank), stream=stream)[0]
            stale = SimpleNamespace(address=recv_x.address, nbytes=recv_x.nbytes,
                                    dtype=recv_x.dtype, shape=recv_x.shape)
            with side.blocked(buffer._core.stream):
                del recv_x
                gc.collect()
                look = side.copied(stale, stream)
                let_run(side.executor)
            assert (bits(look()) == 0xFFFF).all()

    run_ranks(rank_main, R, executor="emu")


def test_what_a_graph_keeps_is_not_filled(poisoned):
    def rank_main(comm):
        with Buffer(comm, SIZE) as buffer:
            own = Inputs(comm.rank)
            results = layer(buffer, own)
            del results
            gc.collect()            # the capture may get what was filled
            with comm.executor.capture() as graph:
                results = layer(buffer, own)
            for number in range(6):
                own.fill(number)
                graph.replay()
                comm.executor.synchronize()
                check(own, results)
                dispatch_and_drop(buffer, own)
            buffer.check()

    def dispatch_and_drop(buffer, own):
        check(own, layer(buffer, own))
        gc.collect()

    run_ranks(rank_main, R, executor="emu")


def test_what_a_graph_may_still_write_to_is_not_free(poisoned):
    def rank_main(comm):
        with Buffer(comm, SIZE) as buffer:
            own = Inputs(comm.rank)
            with comm.executor.capture() as graph:
                recv_x = dispatch(buffer, own.x, own.idx, own.weights, num_worst_tokens=2 * len(
                    own.x))[0]
            own.fill(1)
            graph.replay()
            comm.executor.synchronize()
            stale = bytes_of(recv_x)
            values = stale.copy()
            del recv_x
            gc.collect()
            check(own, layer(buffer, own))
            assert np.array_equal(stale, values)
            del graph
            buffer.check()

    run_ranks(rank_main, R, executor="emu")


def test_a_result_that_outlives_its_buffer(poisoned):
    kept = []

    def rank_main(comm):
        with Buffer(comm, 1 << 20) as buffer:
            recv_x = dispatch(buffer, *inputs(comm.rank))[0]
        assert not np.isnan(recv_x).any()
        kept.append(recv_x)

    run_ranks(rank_main, R, executor="emu")
    assert not any(np.isnan(recv_x).any() for recv_x in kept)
    kept.clear()
    gc.collect()


def test_low_latency_between_normal_calls(poisoned):
    """Its results are arrays of the library, and its words are of no slot."""
    def rank_main(comm):
        rng = np.random.default_rng(7)
        with Buffer(comm, 1 << 20, low_latency_mode=True) as buffer:
            for _ in range(4):
                made = make_inputs(rng, [T] * R, H, E, K)
                round_trip(comm, buffer, made, E, T)
                recv_x, *_, handle, _ = dispatch(buffer, *inputs(comm.rank))
                assert not np.isnan(buffer.combine(recv_x, handle)[0]).any()
                del recv_x, handle
                gc.collect()

    run_ranks(rank_main, R, executor="emu")


@pytest.mark.parametrize("value", ["2", "yes", "true"])
def test_other_values_are_refused_by_name(monkeypatch, value):
    monkeypatch.setenv(poison.VARIABLE, value)
    with pytest.raises(RankError) as error:
        on_ranks(lambda comm, buffer: pytest.fail("there is a buffer"))
    assert isinstance(error.value.__cause__, ValueError)
    assert str(error.value.__cause__) == f"DEEPEP_PTX_POISON: must be 0 or 1, got {value!r}"
