# SPDX-License-Identifier: MIT
"""A rank that stalls on GPUs: the others go on without it, and it comes back."""

import threading

import pytest

torch = pytest.importorskip("torch")

from deepep_ptx import Buffer, run_ranks  # noqa: E402
from deepep_ptx.errors import DeepEPTimeoutError  # noqa: E402
from tests.gpu.test_low_latency_cuda import E, Layer  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

R, OUT, TOKENS = 4, 2, 20
LIMIT_S = 2.0                   # a busy host is not late
ROUNDS, REPLAYS = 1000, 200


class Shrinking(Layer):
    """A layer that may have to do without OUT."""

    def is_right_without(self, out):
        there = (self.idx >= 0) & (self.idx // (E // R) != OUT)
        return (out.float() == there.sum(1, keepdim=True) * self.x.float()).all()

    def masked(self):
        status = torch.full((R,), -1, dtype=torch.int32, device=self.device)
        self.buffer.low_latency_query_mask_buffer(status)
        return torch.nonzero(status).flatten().tolist()


def on_ranks(main, reduce):
    def rank_main(comm):
        torch.cuda.set_device(comm.executor.device)
        with (torch.cuda.stream(torch.cuda.Stream()),
              Buffer(comm, low_latency_mode=True, enable_shrink=True, reduce=reduce,
                     timeout_s=LIMIT_S) as buffer):
            layer = Shrinking(comm, buffer, TOKENS)
            layer.is_right_without(layer.x)         # loads its kernels, as Layer says
            right = torch.ones((), dtype=torch.bool, device=layer.device)
            comm.barrier()
            layer.fill(1)
            assert layer.is_right(layer.run())
            torch.cuda.synchronize()
            comm.barrier()
            main(comm, layer, right)

    run_ranks(rank_main, R, executor="cuda")


@pytest.mark.parametrize("reduce", ["exact", "rank"])
def test_a_rank_that_stalls(reduce):
    goes_on = threading.Event()

    def main(comm, layer, right):
        if comm.rank != OUT:
            try:
                layer.run()                         # is masked in the middle of it
                for number in range(ROUNDS):
                    layer.fill(number)
                    right &= layer.is_right_without(layer.run(hook=number % 3 == 2))
                assert right and layer.masked() == [OUT]
            finally:
                goes_on.set()
        else:
            assert goes_on.wait(120)
            with pytest.raises(DeepEPTimeoutError, match="^rank 2: rank [013] has masked this"):
                layer.run()
                torch.cuda.synchronize()
                layer.buffer.check()
        layer.buffer.low_latency_clean_mask_buffer()
        assert layer.masked() == []
        for number in range(20):
            layer.fill(number)
            assert layer.is_right(layer.run())

    on_ranks(main, reduce)


def test_replays_without_a_rank():
    """A graph that was captured with all ranks runs without one, and with it again."""
    lock = threading.Lock()

    def main(comm, layer, right):
        stream, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        with lock, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            out = layer.run()
        comm.barrier()
        graph.replay()
        stream.synchronize()
        assert layer.is_right(out)
        stream.synchronize()
        comm.barrier()
        if comm.rank != OUT:
            layer.buffer.low_latency_update_mask_buffer(OUT, mask=True)
            for number in range(REPLAYS):
                layer.fill(number)
                graph.replay()
                right &= layer.is_right_without(out)
            assert right
        layer.buffer.low_latency_clean_mask_buffer()
        graph.replay()
        assert layer.is_right(out)
        layer.buffer.check()
        del graph, out

    on_ranks(main, None)
