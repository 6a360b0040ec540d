# SPDX-License-Identifier: MIT
"""Low-latency calls on GPUs: bits, libraries, hooks, graphs, waits, and many calls in a row."""

import gc
import os
import threading

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from deepep_ptx import Buffer, low_latency, run_ranks  # noqa: E402
from tests import test_logfmt  # noqa: E402
from tests.gpu.libraries import need_cupy  # noqa: E402
from tests.low_latency import make_inputs, round_trip  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

E, K, M, H = 48, 4, 24, 512
CASTS = ({}, {"use_fp8": False}, {"round_scale": True, "use_ue8m0": True})
SOAK_PAIRS = int(os.environ.get("DEEPEP_PTX_SOAK_PAIRS", 2000))
TIMEOUT_S = 20.0


def rounds(comm, buffer, number_of_rounds, **library):
    """Of changing tokens, casts and routings, every third with hooks, every second two with
    `zero_copy`."""
    rng = np.random.default_rng(5)                  # the same on all ranks
    for number in range(number_of_rounds):
        inputs = make_inputs(rng, rng.integers(0, M + 1, comm.size), H, E, K,
                             ("random", "holes")[number % 2])
        round_trip(comm, buffer, inputs, E, M, hook=number % 3 == 2,
                   zero_copy=number % 4 >= 2, **library, **CASTS[number % len(CASTS)])


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
@pytest.mark.parametrize("reduce", ["exact", "rank"])
@pytest.mark.parametrize("word_tokens", [64, 0])
def test_bits(num_ranks, reduce, word_tokens, monkeypatch):
    monkeypatch.setattr(low_latency, "WORD_TOKENS", word_tokens)

    def main(comm):
        with Buffer(comm, low_latency_mode=True, reduce=reduce, timeout_s=TIMEOUT_S) as buffer:
            rounds(comm, buffer, 12)

    run_ranks(main, num_ranks, executor="cuda")


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
@pytest.mark.parametrize("word_tokens", [64, 0])
@pytest.mark.parametrize("hidden", [512, 1536, 7168])
def test_bits_of_logfmt(num_ranks, word_tokens, hidden, monkeypatch):
    """Combine in LogFMT-10 and as it is, in turn, of rows that can be encoded, some or all."""
    monkeypatch.setattr(low_latency, "WORD_TOKENS", word_tokens)

    def main(comm):
        rng = np.random.default_rng(6)              # the same on all ranks
        with Buffer(comm, low_latency_mode=True, reduce="exact", timeout_s=TIMEOUT_S) as buffer:
            for number in range(8):
                inputs = make_inputs(rng, rng.integers(0, M + 1, comm.size), hidden, E, K,
                                     ("random", "holes")[number % 2])
                round_trip(comm, buffer, inputs, E, M, hook=number % 3 == 2, use_fp8=False,
                           use_logfmt=number % 4 != 3, shrink=2.0 ** -(6 * (number % 3)))

    run_ranks(main, num_ranks, executor="cuda")


@pytest.mark.parametrize("kind", test_logfmt.ROWS)
@pytest.mark.parametrize("word_tokens", [64, 0])
def test_logfmt_of_all_kinds_of_rows(kind, word_tokens, monkeypatch):
    monkeypatch.setattr(low_latency, "WORD_TOKENS", word_tokens)
    job = test_logfmt.Job(kind, 1024, 2)

    def main(comm):
        with Buffer(comm, low_latency_mode=True, reduce="exact", timeout_s=TIMEOUT_S) as buffer:
            test_logfmt.assert_bits(job.combine(buffer, job.dispatch(buffer)),
                                    job.wanted[comm.rank])

    run_ranks(main, 2, executor="cuda")


def torch_functions(comm):
    device = torch.device("cuda", comm.executor.device)

    def give(array):
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16)).to(device).view(torch.bfloat16)
        return torch.from_numpy(array).to(device)

    def get(tensor):
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)
        if tensor.dtype == torch.float8_e4m3fn:
            return tensor.view(torch.uint8).cpu().numpy().view(ml_dtypes.float8_e4m3fn)
        return tensor.cpu().numpy()

    return {"give": give, "get": get}


def cupy_functions(comm):
    import cupy

    def give(array):
        with cupy.cuda.Device(comm.executor.device):
            return cupy.asarray(array)

    def get(array):
        with cupy.cuda.Device(comm.executor.device):
            host = np.asarray(array.get())
        return host.view(ml_dtypes.float8_e4m3fn) if host.dtype == np.uint8 else host

    return {"give": give, "get": get}


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_libraries(library):
    num_ranks = 2
    if library == "cupy":
        need_cupy()
        # Its allocations may wait for a device on which another rank's kernel waits for this one.
        num_ranks = min(num_ranks, torch.cuda.device_count())

    def main(comm):
        torch.cuda.set_device(comm.executor.device)
        functions = (torch_functions if library == "torch" else cupy_functions)(comm)
        with Buffer(comm, low_latency_mode=True, timeout_s=TIMEOUT_S) as buffer:
            rounds(comm, buffer, 12, **functions)

    run_ranks(main, num_ranks, executor="cuda")


def settle(device):
    """Memory for torch's current stream is there: no allocation waits for a GPU on which a kernel
    of another rank waits for this one."""
    kept = [torch.empty(nbytes, dtype=torch.uint8, device=device)
            for nbytes in 64 * [1 << 18] + 8 * [8 << 20]]
    del kept
    torch.cuda.synchronize()


class Layer:
    """A rank's static tensors, of small integers, so that sums are exact, and a layer of them."""

    def __init__(self, comm, buffer, tokens):
        self.device = torch.device("cuda", comm.executor.device)
        self.buffer, self.tokens, self.rank = buffer, tokens, comm.rank
        self.x = torch.zeros(tokens, H, dtype=torch.bfloat16, device=self.device)
        self.idx = torch.zeros(tokens, K, dtype=torch.int64, device=self.device)
        self.weights = torch.ones(tokens, K, device=self.device)
        # The first launch of a kernel loads it, which may wait for the GPU as allocations may.
        self.fill(0)
        right = self.is_right(self.x.clone())
        right &= right.clone()
        settle(self.device)

    def fill(self, seed):
        generator = torch.Generator(device="cuda").manual_seed(1000 * seed + self.rank)
        shape = self.tokens, H
        self.x.copy_(torch.randint(-8, 9, shape, generator=generator, device=self.device))
        scores = torch.rand(self.tokens, E, generator=generator, device=self.device)
        self.idx.copy_(scores.topk(K).indices)
        holes = torch.rand(self.tokens, K, generator=generator, device=self.device) < 0.2
        self.idx.masked_fill_(holes, -1)

    def run(self, hook=False, use_logfmt=False):
        """What its experts, which pass rows on, make of x: x times the experts that there are.
        With a hook they are passed on by `zero_copy`, if not in LogFMT-10."""
        rows, _, handle, _, receive = self.buffer.low_latency_dispatch(
            self.x, self.idx, M, E, use_fp8=False, return_recv_hook=hook)
        if hook:
            receive()
            if not use_logfmt:
                self.buffer.get_next_low_latency_combine_buffer(handle).copy_(rows)
                rows.zero_()
        out, _, receive = self.buffer.low_latency_combine(
            rows, self.idx, self.weights, handle, use_logfmt,
            zero_copy=hook and not use_logfmt, return_recv_hook=hook)
        if hook:
            receive()
        return out

    def is_right(self, out):
        """A tensor: whether all of `out` is what it must be."""
        want = (self.idx >= 0).sum(1, keepdim=True) * self.x.float()
        return (out.float() == want).all()


def on_ranks(main, **buffer):
    lock = threading.Lock()

    def rank_main(comm):
        torch.cuda.set_device(comm.executor.device)
        stream = torch.cuda.Stream()
        with (Buffer(comm, low_latency_mode=True, timeout_s=TIMEOUT_S, **buffer) as made,
              torch.cuda.stream(stream)):
            return main(comm, made, stream, lock)

    return run_ranks(rank_main, 2, executor="cuda")


@pytest.mark.parametrize("reduce", ["exact", "rank", "logfmt"])
def test_replays_among_eager_calls(reduce):
    """logfmt: of whole numbers, which are no less than 1, so that most blocks cross as they are."""
    use_logfmt = reduce == "logfmt"

    def main(comm, buffer, stream, lock):
        layer = Layer(comm, buffer, M)
        comm.barrier()
        # The first call of a shape is not captured.
        layer.run(use_logfmt=use_logfmt)
        layer.run(hook=True, use_logfmt=use_logfmt)
        graphs = []
        for hook in (False, True):
            stream.synchronize()
            comm.barrier()
            with lock:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    graphs.append((graph, [layer.run(hook, use_logfmt),
                                           layer.run(hook, use_logfmt)]))
        comm.barrier()
        rng = np.random.default_rng(7)              # the same on all ranks
        right = torch.ones((), dtype=torch.bool, device=layer.device)
        for number in range(300):
            layer.fill(number)
            which = rng.integers(4)
            if which < 2:
                graph, results = graphs[which]
                graph.replay()
            else:
                results = [layer.run(which == 2, use_logfmt)]
            for out in results:
                right &= layer.is_right(out)
        stream.synchronize()
        assert bool(right)
        buffer.check()
        comm.barrier()
        graphs.clear()
        gc.collect()
        torch.cuda.synchronize()

    on_ranks(main, reduce="exact" if use_logfmt else reduce)


def test_soak():
    """Pairs with tokens that change, `DEEPEP_PTX_SOAK_PAIRS` of them; memory does not grow."""

    def main(comm, buffer, stream, lock):
        layers = [Layer(comm, buffer, tokens) for tokens in (0, 1, 2, 7, 16, M)]
        comm.barrier()
        for layer in layers:
            layer.run()
        stream.synchronize()
        comm.barrier()
        rng = np.random.default_rng(9)
        right = torch.ones((), dtype=torch.bool, device=layers[0].device)
        held = None
        for number in range(SOAK_PAIRS):
            layer = layers[(rng.integers(len(layers)) + comm.rank) % len(layers)]
            if number % 16 == 0:
                layer.fill(number)
            right &= layer.is_right(layer.run())
            if number in (200, SOAK_PAIRS - 1):
                stream.synchronize()
                comm.barrier()                      # no rank is within a call
                now = torch.cuda.memory_allocated(), buffer._core.low_latency_bytes
                comm.barrier()
                assert held in (None, now)
                held = now
        stream.synchronize()
        assert bool(right)
        buffer.check()
        comm.barrier()

    on_ranks(main)


def test_waits_are_those_of_the_late_rank():
    """Of five ranks that share GPUs one comes 20 ms late: it alone is charged."""
    late, cycles = 1, 20_000_000

    def main(comm):
        torch.cuda.set_device(comm.executor.device)
        device = torch.device("cuda", comm.executor.device)
        stream = torch.cuda.Stream()
        waits = torch.zeros(comm.size, dtype=torch.int64, device=device)
        with (Buffer(comm, low_latency_mode=True, timeout_s=TIMEOUT_S) as buffer,
              torch.cuda.stream(stream)):
            x = torch.ones(2, H, dtype=torch.bfloat16, device=device)
            idx = torch.arange(2 * K, device=device).reshape(2, K)
            torch.cuda._sleep(1)
            settle(device)
            for number in range(3):
                stream.synchronize()
                comm.barrier()
                if number == 2:
                    waits.zero_()
                    if comm.rank == late:
                        torch.cuda._sleep(cycles)
                buffer.low_latency_dispatch(x, idx, M, 5 * K, dispatch_wait_recv_cost_stats=waits,
                                            num_sms=4)
            stream.synchronize()
            comm.barrier()
        return waits.tolist()

    for rank, waits in enumerate(run_ranks(main, 5, executor="cuda")):
        others = [wait for other, wait in enumerate(waits) if other not in (rank, late)]
        if rank != late:
            assert waits[late] > cycles / 4 and max(others) < waits[late] / 4, waits
