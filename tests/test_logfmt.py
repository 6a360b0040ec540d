# SPDX-License-Identifier: MIT
"""Low-latency combine with rows in LogFMT-10, on the CPU executor: bits, the bound of its error,
values that are not encoded."""

import functools

import ml_dtypes
import numpy as np
import pytest

from deepep_ptx import Buffer, low_latency, reference, run_ranks
from tests.low_latency import make_inputs

BF16 = ml_dtypes.bfloat16
NUM_EXPERTS, NUM_TOPK, TOKENS = 24, 4, 5


def sizes(rng, shape, orders, below=0):
    """Values below 2^-below, over so many binary orders of magnitude, of both signs."""
    size = np.exp2(-0.01 - below - orders * rng.random(shape))
    return size * rng.choice([-1, 1], shape)


def with_some(value, chance):
    """Rows that have this value in random places."""
    def rows(rng, shape):
        x = sizes(rng, shape, 8)
        return np.where(rng.random(shape) < chance, value, x)
    return rows


def in_one_block(value):
    """Rows that have this value in one place, the first or the last one of a block."""
    def rows(rng, shape):
        x = sizes(rng, shape, 8)
        x[np.arange(len(x)), 512 * rng.integers(1, shape[1] // 512 + 1, len(x)) - 1] = value
        return x
    return rows


def one_size(size):
    return lambda rng, shape: size * rng.choice([-1, 1], shape)


# Kind -> rows of float64.
ROWS = {
    "normal": lambda rng, shape: rng.standard_normal(shape) * 0.1,
    "all below 1": lambda rng, shape: sizes(rng, shape, 8),
    "nearly one size": lambda rng, shape: sizes(rng, shape, 0.03),
    "more than 32 orders": lambda rng, shape: sizes(rng, shape, 60),
    "zeros among others": with_some(0.0, 0.2),
    "negative zeros": with_some(-0.0, 0.2),
    "all zero": one_size(0.0),
    "constant": one_size(0.25),
    "small": lambda rng, shape: sizes(rng, shape, 12, 110),
    "around the least normal": lambda rng, shape: sizes(rng, shape, 8, 122),
    "subnormal": lambda rng, shape: sizes(rng, shape, 7, 126),
    "huge": lambda rng, shape: sizes(rng, shape, 20, -127),
    "from subnormal to huge": lambda rng, shape: sizes(rng, shape, 250, -125),
    "one 1": in_one_block(1.0),
    "one below 1": in_one_block(1 - 2**-8),
    "one infinity": in_one_block(-np.inf),
    "one NaN": in_one_block(np.nan),
}
ENCODED = {"all below 1", "nearly one size", "more than 32 orders", "zeros among others",
           "negative zeros", "small", "around the least normal", "subnormal", "one below 1"}


def make_rows(kind, rng, shape):
    with np.errstate(over="ignore"):
        return ROWS[kind](rng, shape).astype(BF16)


class Job:
    """Inputs of all ranks, and rows of a kind for combine."""

    def __init__(self, kind, hidden, num_ranks, seed=0):
        rng = np.random.default_rng(seed)
        self.xs, self.idxs, self.weights = make_inputs(
            rng, [TOKENS - rank % 2 for rank in range(num_ranks)], hidden, NUM_EXPERTS, NUM_TOPK,
            "holes")
        self.received = reference.low_latency_dispatch(self.xs, self.idxs, TOKENS, NUM_EXPERTS,
                                                       use_fp8=False)
        self.ys = [make_rows(kind, rng, (received.recv_x[..., 0].size, hidden)
                             ).reshape(received.recv_x.shape) for received in self.received]

    @functools.cached_property
    def wanted(self):
        return self.combined(use_logfmt=True)

    def combined(self, **options):
        return reference.low_latency_combine(self.ys, self.received, self.idxs, self.weights,
                                             **options)

    def dispatch(self, buffer):
        return buffer.low_latency_dispatch(self.xs[buffer.rank], self.idxs[buffer.rank], TOKENS,
                                           NUM_EXPERTS, use_fp8=False)[2]

    def combine(self, buffer, handle, use_logfmt=True):
        rank = buffer.rank
        return buffer.low_latency_combine(self.ys[rank], self.idxs[rank], self.weights[rank],
                                          handle, use_logfmt)[0]


def assert_bits(got, want):
    np.testing.assert_array_equal(got.view(np.uint16), want.view(np.uint16))


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("hidden, num_ranks, arch, memory, scheduler", [
    (512, 2, "sm_90", "sc", "rr"), (1536, 3, "sm_80", "weak", "random"),
    (2048, 3, "sm_90", "weak", "late-async"),
])
def test_rows(kind, hidden, num_ranks, arch, memory, scheduler, monkeypatch):
    """In words and behind flags, the reference's bits."""
    job = Job(kind, hidden, num_ranks)

    def main(comm):
        with Buffer(comm, low_latency_mode=True, reduce="exact") as buffer:
            assert_bits(job.combine(buffer, job.dispatch(buffer)), job.wanted[comm.rank])

    for word_tokens in (TOKENS, 0):
        monkeypatch.setattr(low_latency, "WORD_TOKENS", word_tokens)
        run_ranks(main, num_ranks, executor="emu", arch=arch, memory=memory, scheduler=scheduler,
                  seed=3, check="races")


@pytest.mark.parametrize("kind", ROWS)
def test_the_error_is_within_the_bound(kind):
    """Against sums of the rows as they are: of each row of another rank its bound, times its
    weight, and roundings of float32 sums and of bfloat16 results."""
    job = Job(kind, 1024, 3)
    plain, encoded = job.combined(), job.wanted
    allowed = [np.zeros(out.shape) for out in plain]
    for home, received in enumerate(job.received):
        rows = job.ys[home].reshape(-1, 1024)
        bounds = reference.logfmt_error_bound(rows)
        if kind in ENCODED:
            assert reference.logfmt_round_trip(rows)[1].all()
        filled = np.arange(received.src_info.shape[1]) < received.recv_count[:, None]
        for row in np.flatnonzero(filled):
            rank, choice = divmod(int(received.origin.flat[row]), 1 << 32)
            token, k = divmod(choice, NUM_TOPK)
            bound = 2.0**-22 * np.abs(rows[row].astype(np.float64))
            if home != rank:
                bound += bounds[row]
            allowed[rank][token] += bound * job.weights[rank][token, k]
    for want, got, bound in zip(plain, encoded, allowed, strict=True):
        finite = np.isfinite(want)
        assert np.array_equal(finite, np.isfinite(got))
        want, got = (out[finite].astype(np.float64) for out in (want, got))
        rounding = 2.0**-7 * np.maximum(np.abs(want), np.abs(got)) + 2.0**-133    # of both
        assert (np.abs(got - want) <= bound[finite] + rounding).all()
    if kind in ("all zero", "constant"):
        for want, got in zip(plain, encoded, strict=True):
            assert_bits(got, want)


@pytest.mark.parametrize("kind", ["all below 1", "one 1"])
def test_a_ranks_own_rows_do_not_travel(kind):
    """One rank alone: the bits are those of the rows as they are."""
    job = Job(kind, 1024, 1)

    def main(comm):
        with Buffer(comm, low_latency_mode=True, reduce="exact") as buffer:
            handle = job.dispatch(buffer)
            assert_bits(job.combine(buffer, handle), job.combined()[0])

    run_ranks(main, 1, executor="emu")


@pytest.mark.parametrize("word_tokens", [TOKENS, 0])
def test_both_formats_on_one_buffer(word_tokens, monkeypatch):
    """In turn, by one handle: what one has left in memory is nothing to the other."""
    monkeypatch.setattr(low_latency, "WORD_TOKENS", word_tokens)
    job = Job("all below 1", 1024, 3)
    plain = job.combined()
    assert any((a != b).any() for a, b in zip(plain, job.wanted, strict=True))

    def main(comm):
        with Buffer(comm, low_latency_mode=True, reduce="exact") as buffer:
            handle = job.dispatch(buffer)
            for use_logfmt in (False, True, True, False, False, True, False, True):
                want = job.wanted if use_logfmt else plain
                assert_bits(job.combine(buffer, handle, use_logfmt), want[comm.rank])

    run_ranks(main, 3, executor="emu", scheduler="random", seed=2)


def test_captured():
    job = Job("all below 1", 512, 2)

    def main(comm):
        with Buffer(comm, low_latency_mode=True, reduce="exact") as buffer:
            handle = job.dispatch(buffer)
            with comm.executor.capture() as graph:
                out = job.combine(buffer, handle)
            for _ in range(3):
                out[:] = 0
                graph.replay(0)
                comm.executor.synchronize(0)
                assert_bits(out, job.wanted[comm.rank])
            graph.close()

    run_ranks(main, 2, executor="emu")
