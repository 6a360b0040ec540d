# SPDX-License-Identifier: MIT
"""Captured calls on the CPU executor: replayed with changing inputs, among eager calls."""

import gc

import ml_dtypes
import numpy as np
import pytest

from deepep_ptx import Buffer, RankError, run_ranks
from deepep_ptx.errors import CapacityError, DeepEPError, DeepEPTimeoutError

BF16 = ml_dtypes.bfloat16
R, T, H, K, E = 2, 6, 32, 3, 8
SIZE = 4 * Buffer.get_size_hint(T, H, K, R)


class Inputs:
    """Static arrays of a rank."""

    def __init__(self, rank):
        self.rank = rank
        self.x = np.zeros((T, H), BF16)
        self.idx = np.zeros((T, K), np.int64)
        self.weights = np.zeros((T, K), np.float32)

    def fill(self, seed):
        """Small integers: sums are exact."""
        rng = np.random.default_rng([seed, self.rank])
        self.x[...] = rng.integers(-8, 9, (T, H))
        self.idx[...] = np.argsort(rng.random((T, E)), axis=1)[:, :K]
        self.weights[...] = rng.integers(0, 9, (T, K))


def layer(buffer, inputs, worst=R * T):
    """Layout, worst-case dispatch, combine of what came; then the rows again, and their sum."""
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(inputs.idx, E)
    recv_x, _, weights, _, handle, _ = buffer.dispatch(
        inputs.x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert, topk_idx=inputs.idx, topk_weights=inputs.weights,
        num_worst_tokens=worst)
    out, out_weights, _ = buffer.combine(recv_x, handle, topk_weights=weights)
    again, *_ = buffer.dispatch(inputs.x, handle=handle)
    total, _, _ = buffer.combine(again, handle)
    return out, out_weights, total, in_rank


def check(inputs, results):
    out, out_weights, total, in_rank = results
    want = in_rank.sum(1, keepdims=True) * inputs.x.astype(np.float32)
    np.testing.assert_array_equal(out.astype(np.float32), want)
    np.testing.assert_array_equal(total.astype(np.float32), want)
    np.testing.assert_array_equal(out_weights, inputs.weights)


def on_ranks(main, **run):
    def rank_main(comm):
        with Buffer(comm, SIZE) as buffer:
            return main(comm, buffer, Inputs(comm.rank))

    return run_ranks(rank_main, R, executor="emu", **run)


@pytest.mark.parametrize("scheduler", ["rr", "random", "late-async"])
def test_replays_with_changing_inputs(scheduler):
    def main(comm, buffer, inputs):
        executor = comm.executor
        with executor.capture() as graph:
            results = layer(buffer, inputs)
        for number in range(20):
            inputs.fill(number)
            graph.replay()
            executor.synchronize()
            check(inputs, results)
        buffer.check()

    on_ranks(main, scheduler=scheduler, seed=3)


def test_the_host_does_not_wait_for_a_capture():
    """It is refused, and nothing is broken."""
    def main(comm, buffer, inputs):
        with comm.executor.capture() as graph:
            results = layer(buffer, inputs)
            with pytest.raises(DeepEPError, match="^stream: is being captured"):
                buffer.check()
        inputs.fill(0)
        graph.replay()
        comm.executor.synchronize()
        check(inputs, results)

    on_ranks(main)


def test_replays_among_eager_calls():
    def main(comm, buffer, inputs):
        executor, graphs = comm.executor, []
        inputs.fill(0)
        for _ in range(2):
            layer(buffer, inputs)
            with executor.capture() as graph:
                results = layer(buffer, inputs)
            graphs.append((graph, results))
        for number, which in enumerate(np.random.default_rng(7).integers(3, size=30)):
            inputs.fill(number)
            if which < 2:
                graph, results = graphs[which]
                graph.replay()
                executor.synchronize()
            else:
                results = layer(buffer, inputs)
            check(inputs, results)

    on_ranks(main)


def test_a_graph_keeps_its_slots_and_gives_them_back():
    def main(comm, buffer, inputs):
        inputs.fill(1)
        with comm.executor.capture() as graph:
            results = layer(buffer, inputs)
        del results
        gc.collect()
        held = buffer.stats()["arena_used_bytes"]
        graph.replay()
        comm.executor.synchronize()
        graph.close()
        layer(buffer, inputs)
        gc.collect()
        return held, buffer.stats()["arena_used_bytes"]

    for held, left in on_ranks(main):
        assert held > 0 == left


def test_views_that_die_during_a_capture():
    """An eager result's end would be an edge from outside: it waits for the capture's end."""
    def main(comm, buffer, inputs):
        inputs.fill(2)
        kept = [layer(buffer, inputs), one_dispatch(buffer, inputs)]
        with comm.executor.capture() as graph:
            results = layer(buffer, inputs)
            del kept
            gc.collect()
        graph.replay()
        comm.executor.synchronize()
        check(inputs, results)
        check(inputs, layer(buffer, inputs))
        del results
        graph.close()
        layer(buffer, inputs)
        gc.collect()
        return buffer.stats()["arena_used_bytes"]

    assert on_ranks(main) == [0, 0]


def one_dispatch(buffer, inputs):
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(inputs.idx, E)
    return buffer.dispatch(
        inputs.x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert, topk_idx=inputs.idx, topk_weights=inputs.weights)


def test_what_waits_for_the_host_is_refused():
    def main(comm, buffer, inputs):
        inputs.fill(3)
        layout = buffer.get_dispatch_layout(inputs.idx, E)
        with comm.executor.capture(), pytest.raises(ValueError) as refused:
            buffer.dispatch(
                inputs.x, num_tokens_per_rank=layout[0], is_token_in_rank=layout[3],
                num_tokens_per_expert=layout[2], topk_idx=inputs.idx, topk_weights=inputs.weights)
        assert str(refused.value).startswith("num_worst_tokens: must be given while the stream is")
        with comm.executor.capture(), pytest.raises(CapacityError) as small:
            layer(buffer, inputs, worst=1000 * T)
        check(inputs, layer(buffer, inputs))
        return small.value.needed_bytes

    assert min(on_ranks(main)) > SIZE


def test_a_replay_that_a_rank_leaves_out_ends_by_its_limit():
    def main(comm):
        buffer, inputs = Buffer(comm, SIZE, timeout_s=0.5), Inputs(comm.rank)
        inputs.fill(4)
        with comm.executor.capture() as graph:
            results = layer(buffer, inputs)
        if comm.rank == 0:
            graph.replay()
            comm.executor.synchronize()
            with pytest.raises(DeepEPTimeoutError) as caught:
                buffer.check()
            assert caught.value.peer == 1
        comm.barrier()
        buffer.reset()
        graph.replay()
        comm.executor.synchronize()
        check(inputs, results)
        buffer.destroy()
        return True

    assert run_ranks(main, R, executor="emu") == [True] * R


def test_replays_of_different_graphs_are_a_mismatch():
    """The order of calls is part of what ranks agree on, captured or not."""
    def main(comm, buffer, inputs):
        inputs.fill(5)
        with comm.executor.capture() as first:
            handle = worst_dispatch(buffer, inputs)
        with comm.executor.capture() as second:
            buffer.combine(handle[0], handle[4])
        (second if comm.rank else first).replay()
        comm.executor.synchronize()
        buffer.check()

    with pytest.raises(RankError, match="call: rank . has (dispatch|combine), rank . has"):
        on_ranks(main)


def worst_dispatch(buffer, inputs):
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(inputs.idx, E)
    return buffer.dispatch(
        inputs.x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert, topk_idx=inputs.idx, topk_weights=inputs.weights,
        num_worst_tokens=R * T)
