# SPDX-License-Identifier: MIT
"""Low-latency memory: what earlier calls have left in it, and its replacement."""

import ml_dtypes
import numpy as np
import pytest

from deepep_ptx import Buffer, run_ranks
from tests.low_latency import make_inputs, round_trip

BF16 = ml_dtypes.bfloat16
H, M = 512, 96                  # values of a row, most tokens
MANY, FEW = 80, 20              # rows that cross as they are, and as words


def rows_of_number(number, shape):
    """bfloat16 rows of which every 32 bits are that number."""
    pairs = np.array([number], np.uint32).view(BF16)
    return np.broadcast_to(pairs, (*shape[:-1], shape[-1] // 2, 2)).reshape(shape)


class Exchange:
    """Two ranks of an expert each, which send all tokens to both."""

    def __init__(self, comm, buffer, use_logfmt=False):
        self.comm, self.buffer, self.use_logfmt = comm, buffer, use_logfmt

    def dispatch(self, tokens, number=None):
        idx = np.tile(np.array([1 - self.comm.rank, self.comm.rank]), (tokens, 1))
        x = np.ones((tokens, H), BF16)
        if number is not None:
            x = rows_of_number(number, x.shape)
        recv_x, count, handle, _, _ = self.buffer.low_latency_dispatch(x, idx, M, 2, use_fp8=False)
        assert count.tolist() == [2 * tokens]
        return idx, recv_x, handle

    def combine(self, sent, number=None):
        """Rows of ones, or of that number."""
        idx, recv_x, handle = sent
        rows = np.ones(recv_x.shape, BF16)
        if number is not None:
            rows = rows_of_number(number, recv_x.shape)
        out, _, _ = self.buffer.low_latency_combine(rows, idx, np.ones(idx.shape, np.float32),
                                                    handle, self.use_logfmt)
        if number is None:
            np.testing.assert_array_equal(out.astype(np.float32), 2)


@pytest.mark.parametrize("reduce", ["exact", "rank", "logfmt"])
@pytest.mark.parametrize("tokens", [MANY, FEW])
@pytest.mark.parametrize("scheduler", ["rr", "random"])
@pytest.mark.parametrize("is_paired", [True, False])
def test_rows_that_look_like_words_of_a_later_call(reduce, tokens, scheduler, is_paired):
    """Bits of rows are the epochs of calls that come, in memory of both parities.  logfmt: exact,
    with rows that nothing encodes, since they have one size."""
    use_logfmt = reduce == "logfmt"

    def main(comm):
        with Buffer(comm, low_latency_mode=True,
                    reduce="exact" if use_logfmt else reduce) as buffer:
            ranks = Exchange(comm, buffer, use_logfmt)
            epoch = 0
            for _ in range(4):
                if is_paired:
                    ranks.combine(ranks.dispatch(tokens, epoch + 3), epoch + 4)
                    ranks.combine(ranks.dispatch(FEW))
                    epoch += 4
                else:                   # calls of both kinds in memory of either parity
                    first = ranks.dispatch(tokens, epoch + 5)
                    second = ranks.dispatch(tokens, epoch + 6)
                    ranks.combine(first, epoch + 7)
                    ranks.combine(second, epoch + 6)
                    ranks.combine(ranks.dispatch(FEW))
                    epoch += 6

    run_ranks(main, 2, executor="emu", scheduler=scheduler, seed=1)


def bytes_held(buffer):
    return buffer._core.low_latency_bytes


@pytest.mark.parametrize("scheduler", ["rr", "random", "late-async"])
def test_replacement_behind_replays(scheduler):
    """The replays of the caller's stream end before their memory goes."""
    def main(comm):
        rng = np.random.default_rng(comm.size)
        with Buffer(comm, low_latency_mode=True, reduce="exact") as buffer:
            ranks = Exchange(comm, buffer)
            ranks.combine(ranks.dispatch(MANY))
            held = bytes_held(buffer)
            with comm.executor.capture() as graph:
                idx = np.tile(np.array([1 - comm.rank, comm.rank]), (MANY, 1))
                recv_x, _, handle, _, _ = buffer.low_latency_dispatch(
                    np.ones((MANY, H), BF16), idx, M, 2, use_fp8=False)
                out, _, _ = buffer.low_latency_combine(recv_x, idx, np.ones((MANY, 2), np.float32),
                                                       handle)
            for _ in range(3):
                graph.replay()
            larger = make_inputs(rng, [3] * comm.size, 4 * H, 4, 2, "random", np.int64)
            round_trip(comm, buffer, larger, 4, 2 * M)
            assert bytes_held(buffer) > held
            graph.replay()
            comm.executor.synchronize()
            np.testing.assert_array_equal(out.astype(np.float32), 2)
            buffer.check()

    run_ranks(main, 2, executor="emu", scheduler=scheduler, seed=2)


def test_areas_that_grow_in_memory_that_is_large_enough():
    """A shape with more numbers than those before it: words have moved, the memory is new."""
    def main(comm):
        rng = np.random.default_rng(comm.size)
        hint = Buffer.get_low_latency_rdma_size_hint(M, 4 * H, comm.size, 8, reduce="exact")
        with Buffer(comm, num_rdma_bytes=4 * hint, low_latency_mode=True,
                    reduce="exact") as buffer:
            held = bytes_held(buffer)
            for experts, most in ((4, 8), (64, 8), (8, M), (4, 8)):
                for _ in range(3):
                    inputs = make_inputs(rng, [8, 5], H, experts, 4, "holes", np.int64)
                    round_trip(comm, buffer, inputs, experts, most)
            assert bytes_held(buffer) == held

    run_ranks(main, 2, executor="emu")
