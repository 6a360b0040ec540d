# SPDX-License-Identifier: MIT
"""Captured calls: replayed with changing inputs, mixed with eager ones, or refused."""

import gc
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from deepep_ptx import Buffer, run_ranks  # noqa: E402
from deepep_ptx._cuda import device_count  # noqa: E402
from deepep_ptx.errors import CapacityError, DeepEPTimeoutError  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

R, T, H, K, E = 2, 64, 512, 4, 16
REPLAYS = 1000


class Inputs:
    """Static tensors of a rank, and the same numbers again."""

    def __init__(self, rank):
        self.rank = rank
        device = torch.device("cuda", torch.cuda.current_device())
        self.x = torch.zeros(T, H, dtype=torch.bfloat16, device=device)
        self.idx = torch.zeros(T, K, dtype=torch.int64, device=device)
        self.weights = torch.zeros(T, K, device=device)

    def fill(self, seed):
        """Small integers: sums are exact."""
        generator = torch.Generator(device="cuda").manual_seed(1000 * seed + self.rank)
        self.x.copy_(torch.randint(-8, 9, (T, H), generator=generator, device=self.x.device))
        scores = torch.rand(T, E, generator=generator, device=self.x.device)
        self.idx.copy_(scores.topk(K).indices)
        self.weights.copy_(scores.topk(K).values)


def layer(buffer, inputs, worst=R * T):
    """Layout, worst-case dispatch, doubling in place, combine; then the rows again, pushed."""
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(inputs.idx, E)
    recv_x, _, weights, _, handle, _ = buffer.dispatch(
        inputs.x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert, topk_idx=inputs.idx, topk_weights=inputs.weights,
        num_worst_tokens=worst)
    recv_x.mul_(2)
    out, out_weights, _ = buffer.combine(recv_x, handle, topk_weights=weights)
    again, *_ = buffer.dispatch(inputs.x, handle=handle)
    pushed, _, _ = buffer.combine(again * 3, handle)
    return out, out_weights, pushed, in_rank


def check(inputs, results):
    out, out_weights, pushed, in_rank = results
    copies = in_rank.sum(1, keepdim=True)
    assert torch.equal(out.float(), 2 * copies * inputs.x.float())
    assert torch.equal(pushed.float(), 3 * copies * inputs.x.float())
    torch.testing.assert_close(out_weights, inputs.weights)


def captured(buffer, inputs, stream):
    """(graph, results): the layer, captured on `stream`."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        results = layer(buffer, inputs)
    return graph, results


def on_ranks(main, num_ranks=R, **buffer):
    lock = threading.Lock()

    def rank_main(comm):
        torch.cuda.set_device(comm.executor.device)
        size = 4 * Buffer.get_size_hint(T, H, K, comm.size)
        stream = torch.cuda.Stream()
        with Buffer(comm, size, timeout_s=20.0, **buffer) as made, torch.cuda.stream(stream):
            return main(comm, made, Inputs(comm.rank), stream, lock)

    return run_ranks(rank_main, num_ranks, executor="cuda")


@pytest.mark.parametrize("policy", ["fast", "bulk", "ld_relaxed_sys"])
def test_replays_with_changing_inputs(policy):
    def main(comm, buffer, inputs, stream, lock):
        inputs.fill(0)
        layer(buffer, inputs)                       # everything loaded and warm
        with lock:
            graph, results = captured(buffer, inputs, stream)
        comm.barrier()
        for number in range(REPLAYS):
            inputs.fill(number)
            graph.replay()
            if number % 50 == 0:
                stream.synchronize()
                check(inputs, results)
        stream.synchronize()
        check(inputs, results)
        buffer.check()
        used = buffer.stats()["arena_used_bytes"]
        comm.barrier()
        del graph, results
        gc.collect()
        torch.cuda.synchronize()
        return used

    for used in on_ranks(main, policy=policy):
        assert used > 0


def test_replays_among_eager_calls():
    def main(comm, buffer, inputs, stream, lock):
        inputs.fill(0)
        layer(buffer, inputs)
        with lock:
            first = captured(buffer, inputs, stream)
        with lock:
            second = captured(buffer, inputs, stream)
        comm.barrier()
        rng = np.random.default_rng(7)              # the same on all ranks
        for number in range(100):
            inputs.fill(number)
            which = rng.integers(4)
            if which < 2:
                graph, results = (first, second)[which]
                graph.replay()
            else:
                results = layer(buffer, inputs)
                if which == 3:                      # the host waits, and looks back
                    eager_dispatch(buffer, inputs)
            stream.synchronize()
            check(inputs, results)
        buffer.check()
        comm.barrier()

    on_ranks(main)


def test_a_start_within_a_graph():
    """Another stream of the capture goes on once the dispatch runs."""
    replays = 3

    def main(comm, buffer, inputs, stream, lock):
        side = torch.cuda.Stream()
        inputs.fill(0)
        counter = torch.zeros(1, device=inputs.x.device)
        handle = eager_dispatch(buffer, inputs)[4]
        buffer.dispatch(inputs.x, handle=handle)    # everything loaded and warm
        counter.add_(1)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with lock, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            recv_x, *_, event = buffer.dispatch(inputs.x, handle=handle, async_finish=True)
            with torch.cuda.stream(side):
                event.current_stream_wait_start()
                counter.add_(1)
            event.current_stream_wait()
            stream.wait_stream(side)
            tripled = recv_x * 3
        del event
        comm.barrier()
        for number in range(replays):
            inputs.fill(number + 1)
            graph.replay()
            stream.synchronize()
            want = buffer.dispatch(inputs.x, handle=handle)[0]
            assert torch.equal(recv_x, want) and torch.equal(tripled, want * 3)
        assert counter.item() == 1 + replays
        buffer.check()
        comm.barrier()

    on_ranks(main)


def eager_dispatch(buffer, inputs):
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(inputs.idx, E)
    return buffer.dispatch(
        inputs.x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert, topk_idx=inputs.idx, topk_weights=inputs.weights)


def test_slots_of_a_graph_are_the_graphs():
    def main(comm, buffer, inputs, stream, lock):
        inputs.fill(0)
        before = buffer.stats()["arena_used_bytes"]
        with lock:
            graph, results = captured(buffer, inputs, stream)
        del results
        gc.collect()
        held = buffer.stats()["arena_used_bytes"]
        comm.barrier()
        graph.replay()
        stream.synchronize()
        graph.reset()
        torch.cuda.synchronize()
        del graph
        gc.collect()
        comm.barrier()
        eager_dispatch(buffer, inputs)
        return before, held, buffer.stats()["arena_used_bytes"]

    for before, held, after in on_ranks(main):
        assert held > before == 0 == after


def test_what_waits_for_the_host_is_refused():
    def main(comm, buffer, inputs, stream, lock):
        inputs.fill(0)
        with lock:
            graph = torch.cuda.CUDAGraph()
            with pytest.raises(ValueError, match="^num_worst_tokens: must be given while"), \
                    torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                eager_dispatch(buffer, inputs)
        with lock:
            graph = torch.cuda.CUDAGraph()
            with pytest.raises(CapacityError), \
                    torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                layer(buffer, inputs, worst=100 * R * T)
        comm.barrier()
        results = layer(buffer, inputs)
        stream.synchronize()
        check(inputs, results)
        comm.barrier()

    on_ranks(main)


def test_a_replay_that_a_rank_leaves_out_ends_by_its_limit():
    def main(comm):
        torch.cuda.set_device(comm.executor.device)
        stream = torch.cuda.Stream()
        buffer = Buffer(comm, 4 * Buffer.get_size_hint(T, H, K, R), timeout_s=0.5)
        with torch.cuda.stream(stream):
            inputs = Inputs(comm.rank)
            inputs.fill(0)
            graph, results = captured(buffer, inputs, stream)
            comm.barrier()
            if comm.rank == 0:
                graph.replay()
                stream.synchronize()
                with pytest.raises(DeepEPTimeoutError) as caught:
                    buffer.check()
                assert caught.value.peer == 1
            comm.barrier()
            buffer.reset()
            graph.replay()
            stream.synchronize()
            check(inputs, results)
            comm.barrier()
            buffer.destroy()

    run_ranks(main, R, executor="cuda", devices=[rank % device_count() for rank in range(R)])
