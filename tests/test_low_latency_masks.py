# SPDX-License-Identifier: MIT
"""Masks of ranks: low-latency calls that go on without one of them, and have it back."""

import numpy as np
import pytest

from deepep_ptx import Buffer, low_latency, reference, run_ranks
from deepep_ptx.errors import DeepEPError, DeepEPTimeoutError, RankMismatchError
from tests.low_latency import make_inputs, round_trip, without_experts

R, HIDDEN, EXPERTS, TOPK, MAX_TOKENS = 4, 256, 16, 4, 6
OUT = 2                         # the rank that is out
LIMIT_S = 5.0                   # of virtual time
CASTS = {"fp8": {}, "bfloat16": {"use_fp8": False}}


def inputs_of(rng, tokens=None):
    return make_inputs(rng, rng.integers(1, MAX_TOKENS + 1, R) if tokens is None else tokens,
                       HIDDEN, EXPERTS, TOPK)


def make_buffer(comm, reduce="exact", **keywords):
    return Buffer(comm, low_latency_mode=True, enable_shrink=True, reduce=reduce,
                  timeout_s=LIMIT_S, **keywords)


def rounds_without(comm, buffer, rng, number, masked=(OUT,), hook=False, **cast):
    """Round trips of the ranks that are left, compared with the reference."""
    for _ in range(number):
        inputs = inputs_of(rng)
        round_trip(comm, buffer, inputs, EXPERTS, MAX_TOKENS, hook=hook, num_sms=3,
                   masked=masked, **cast)


def masked_of(buffer):
    status = np.full(R, -1, np.int32)
    buffer.low_latency_query_mask_buffer(status)
    return list(np.flatnonzero(status))


def run(rank_main, **keywords):
    return run_ranks(rank_main, R, executor="emu", **keywords)


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("reduce", ["exact", "rank"])
@pytest.mark.parametrize("word_tokens", [64, 0])
@pytest.mark.parametrize("hook", [False, True])
def test_masked_by_its_peers(cast, reduce, word_tokens, hook, monkeypatch):
    monkeypatch.setattr(low_latency, "WORD_TOKENS", word_tokens)
    masked_by_its_peers(cast, reduce, hook)


def masked_by_its_peers(cast, reduce, hook):
    """A rank that the others have masked is neither sent to nor awaited, and comes back."""
    def rank_main(comm):
        rng = np.random.default_rng(3)
        with make_buffer(comm, reduce) as buffer:
            round_trip(comm, buffer, inputs_of(rng), EXPERTS, MAX_TOKENS, **CASTS[cast])
            assert masked_of(buffer) == []
            if comm.rank != OUT:
                buffer.low_latency_update_mask_buffer(OUT, mask=True)
                assert masked_of(buffer) == [OUT]
                rounds_without(comm, buffer, rng, 4, hook=hook, **CASTS[cast])
            buffer.low_latency_clean_mask_buffer()
            assert masked_of(buffer) == []
            rng = np.random.default_rng(4)
            for _ in range(3):
                round_trip(comm, buffer, inputs_of(rng), EXPERTS, MAX_TOKENS, hook=hook,
                           **CASTS[cast])

    run(rank_main)


@pytest.mark.parametrize("scheduler", ["rr", "random", "late-async"])
@pytest.mark.parametrize("arch", ["sm_90", "sm_80"])
@pytest.mark.parametrize("reduce", ["exact", "rank"])
@pytest.mark.parametrize("word_tokens", [64, 0])
@pytest.mark.parametrize("late_for", ["dispatch", "combine", "receive"])
def test_a_late_rank_is_masked(late_for, word_tokens, reduce, arch, scheduler, monkeypatch):
    monkeypatch.setattr(low_latency, "WORD_TOKENS", word_tokens)
    a_late_rank_is_masked(late_for, reduce, scheduler=scheduler, arch=arch, seed=7)


def a_late_rank_is_masked(late_for, reduce, **options):
    """The others finish, the late rank is told, and is served again behind reset()."""
    def late(comm, buffer, inputs):
        xs, idxs, weights = (of[OUT] for of in inputs)
        hook = late_for == "receive"
        if late_for != "dispatch":
            recv_x, _, handle, _, receive = buffer.low_latency_dispatch(
                xs, idxs, MAX_TOKENS, EXPERTS, use_fp8=False, return_recv_hook=hook)
        comm.barrier()          # until the others have done without it
        with pytest.raises(DeepEPTimeoutError, match=f"^rank {OUT}: rank [013] has masked this "
                                                     "rank, which did not come in time"):
            if late_for == "dispatch":
                buffer.low_latency_dispatch(xs, idxs, MAX_TOKENS, EXPERTS, use_fp8=False)
            elif late_for == "receive":
                receive()
            else:
                buffer.low_latency_combine(recv_x, idxs, weights, handle)

    def rank_main(comm):
        rng = np.random.default_rng(5)
        with make_buffer(comm, reduce) as buffer:
            round_trip(comm, buffer, inputs_of(rng), EXPERTS, MAX_TOKENS, use_fp8=False)
            inputs = inputs_of(rng)
            if comm.rank == OUT:
                late(comm, buffer, inputs)
            else:
                round_trip(comm, buffer, inputs, EXPERTS, MAX_TOKENS, num_sms=3, use_fp8=False,
                           masked=(OUT,), came=late_for != "dispatch")
                assert masked_of(buffer) == [OUT]
                rounds_without(comm, buffer, rng, 3, use_fp8=False)
                comm.barrier()
            buffer.reset()
            assert masked_of(buffer) == []
            rng = np.random.default_rng(6)
            for _ in range(3):
                round_trip(comm, buffer, inputs_of(rng), EXPERTS, MAX_TOKENS, use_fp8=False)

    run(rank_main, **options)


@pytest.mark.parametrize("reduce", ["exact", "rank"])
@pytest.mark.parametrize("word_tokens", [64, 0])
def test_masked_between_the_calls(reduce, word_tokens, monkeypatch):
    monkeypatch.setattr(low_latency, "WORD_TOKENS", word_tokens)
    masked_between(reduce)


def masked_between(reduce):
    """A rank is masked between a dispatch and its combine, which has its tokens and not its
    experts' rows."""
    def rank_main(comm):
        rng = np.random.default_rng(14)
        waits = np.zeros(R, np.int64)
        with make_buffer(comm, reduce) as buffer:
            xs, idxs, weights = inputs_of(rng)
            mine = idxs[comm.rank], weights[comm.rank]
            recv_x, _, handle, _, _ = buffer.low_latency_dispatch(
                xs[comm.rank], idxs[comm.rank], MAX_TOKENS, EXPERTS, use_fp8=False)
            if comm.rank != OUT:
                buffer.low_latency_update_mask_buffer(OUT, mask=True)
                out, _, _ = buffer.low_latency_combine(recv_x, *mine, handle,
                                                       combine_wait_recv_cost_stats=waits)
                want = reference.low_latency_dispatch(xs, idxs, MAX_TOKENS, EXPERTS, use_fp8=False)
                wanted = reference.low_latency_combine(
                    [of_rank.recv_x for of_rank in want], want,
                    without_experts(idxs, [OUT], EXPERTS), weights, reduce)[comm.rank]
                np.testing.assert_array_equal(out.view(np.uint16), wanted.view(np.uint16))
                assert waits[OUT] == 0
            comm.barrier()
            if comm.rank == OUT:
                with pytest.raises(DeepEPTimeoutError, match="has masked this rank"):
                    buffer.low_latency_combine(recv_x, *mine, handle)
            buffer.reset()

    run(rank_main)


@pytest.mark.parametrize("memory", ["sc", "weak"])
@pytest.mark.parametrize("scheduler", ["rr", "random"])
@pytest.mark.parametrize("reduce", ["exact", "rank"])
@pytest.mark.parametrize("word_tokens", [64, 0])
def test_no_races(word_tokens, reduce, scheduler, memory, monkeypatch):
    """Of a rank that is masked while it is waited for, and back."""
    monkeypatch.setattr(low_latency, "WORD_TOKENS", word_tokens)

    def rank_main(comm):
        rng = np.random.default_rng(8)
        with make_buffer(comm, reduce) as buffer:
            for _ in range(2):
                round_trip(comm, buffer, inputs_of(rng), EXPERTS, MAX_TOKENS, num_sms=2)
                if comm.rank != OUT:
                    rounds_without(comm, buffer, rng, 2)
                comm.barrier()
                buffer.reset()
                rng = np.random.default_rng(9)

    run(rank_main, scheduler=scheduler, memory=memory, check="races", seed=1)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("scheduler", ["random", "late-async"])
def test_ctas_agree_on_a_rank_that_aborts(seed, scheduler):
    ctas_agree_on_a_rank_that_aborts(seed, scheduler)


def ctas_agree_on_a_rank_that_aborts(seed, scheduler):
    """A rank aborts in the middle of its dispatch: it is there for all CTAs of another rank or for
    none, so rows of the others lie where they say."""
    def rank_main(comm):
        rng = np.random.default_rng(seed)
        with make_buffer(comm) as buffer:
            round_trip(comm, buffer, inputs_of(rng), EXPERTS, MAX_TOKENS, use_fp8=False)
            xs, idxs, _ = inputs_of(rng, [MAX_TOKENS] * R)
            idxs[OUT][:] = rng.integers(R) * (EXPERTS // R)     # an expert, far too often
            mine = xs[comm.rank], idxs[comm.rank], MAX_TOKENS, EXPERTS
            if comm.rank == OUT:
                with pytest.raises(ValueError, match="^topk_idx: row . of rank 2 names expert"):
                    buffer.low_latency_dispatch(*mine, use_fp8=False, num_sms=3)
            else:
                recv_x, count, handle, _, _ = buffer.low_latency_dispatch(
                    *mine, use_fp8=False, num_sms=5)
                assert_rows_of_others(comm.rank, xs, idxs, recv_x, count, handle)
                assert masked_of(buffer) in ([], [OUT])
                rounds_without(comm, buffer, rng, 2)
                assert masked_of(buffer) == [OUT]
            comm.barrier()
            buffer.reset()
            round_trip(comm, buffer, inputs_of(np.random.default_rng(seed)), EXPERTS, MAX_TOKENS)

    run(rank_main, scheduler=scheduler, seed=seed)


def assert_rows_of_others(rank, xs, idxs, recv_x, count, handle):
    """Rows of all ranks but OUT, wherever they begin; and nothing between."""
    src_info, layout_range = handle[:2]
    each = EXPERTS // R
    for local in range(each):
        end = 0
        for source in range(R):
            first, rows = layout_range[local, source] >> 32, layout_range[local, source] & 0xFFFF
            assert first == end
            end += rows
            if source == OUT:
                named = (idxs[OUT] == rank * each + local).sum()
                assert rows in (0, min(named, MAX_TOKENS))
                continue
            tokens = np.flatnonzero((idxs[source] == rank * each + local).any(axis=1))
            np.testing.assert_array_equal(src_info[local, first:end], tokens)
            np.testing.assert_array_equal(recv_x[local, first:end].view(np.uint16),
                                          xs[source][tokens].view(np.uint16))
        assert count[local] == end


def test_bad_arguments():
    def rank_main(comm):
        rng = np.random.default_rng(10)
        status = np.zeros(R, np.int32)
        with Buffer(comm, low_latency_mode=True) as buffer:
            assert buffer.enable_shrink is False
            for call in (lambda: buffer.low_latency_update_mask_buffer(0, True),
                         lambda: buffer.low_latency_query_mask_buffer(status),
                         buffer.low_latency_clean_mask_buffer):
                with pytest.raises(ValueError, match="^enable_shrink: must be True for masks"):
                    call()
        with make_buffer(comm) as buffer:
            assert buffer.enable_shrink is True and "enable_shrink" in repr(buffer)
            mask = buffer.low_latency_update_mask_buffer
            for rank, error in (-1, ValueError), (R, ValueError), ("1", TypeError):
                with pytest.raises(error, match="^rank_to_mask: must be "):
                    mask(rank, True)
            with pytest.raises(ValueError, match="^rank_to_mask: must be another rank than this"):
                mask(comm.rank, True)
            with pytest.raises(TypeError, match="^mask: must be True or False"):
                mask((comm.rank + 1) % R, np.zeros(2))
            frozen = np.zeros(R, np.int32)
            frozen.flags.writeable = False
            for bad, error in ((np.zeros(R + 1, np.int32), ValueError), (frozen, ValueError),
                               (np.zeros(R, np.int64), (TypeError, ValueError)),
                               ([0] * R, TypeError)):
                with pytest.raises(error, match="^mask_status: "):
                    buffer.low_latency_query_mask_buffer(bad)
            round_trip(comm, buffer, inputs_of(rng), EXPERTS, MAX_TOKENS)

    run(rank_main)


def test_ranks_differ():
    def rank_main(comm):
        with pytest.raises(RankMismatchError, match="^enable_shrink: rank 0 has True, rank 1 has"):
            Buffer(comm, low_latency_mode=True, enable_shrink=comm.rank == 0)

    run(rank_main)


def test_new_numbers_need_all_ranks():
    """The hosts' collective before the first call of a shape is refused by name, on each rank."""
    def rank_main(comm):
        rng = np.random.default_rng(11)
        with make_buffer(comm) as buffer:
            round_trip(comm, buffer, inputs_of(rng), EXPERTS, MAX_TOKENS)
            if comm.rank != OUT:
                buffer.low_latency_update_mask_buffer(OUT, mask=True)
                xs, idxs, _ = inputs_of(rng)
                with pytest.raises(DeepEPError, match=r"^num_max_dispatch_tokens_per_rank: the "
                                                      r"first call .* of them \[2\] are masked$"):
                    buffer.low_latency_dispatch(xs[comm.rank], idxs[comm.rank], MAX_TOKENS + 1,
                                                EXPERTS)
                rounds_without(comm, buffer, rng, 1)
            buffer.low_latency_clean_mask_buffer()
            rng = np.random.default_rng(12)
            inputs = inputs_of(rng)
            round_trip(comm, buffer, inputs, EXPERTS, MAX_TOKENS + 1)

    run(rank_main)


def test_waits_of_a_late_rank():
    """What it was waited for is counted once; of a masked rank nobody waits."""
    def rank_main(comm):
        rng = np.random.default_rng(13)
        waits = np.zeros((2, R), np.int64)
        with make_buffer(comm) as buffer:
            round_trip(comm, buffer, inputs_of(rng), EXPERTS, MAX_TOKENS)
            if comm.rank != OUT:
                for of_call in waits:
                    xs, idxs, _ = inputs_of(rng)
                    buffer.low_latency_dispatch(xs[comm.rank], idxs[comm.rank], MAX_TOKENS, EXPERTS,
                                                dispatch_wait_recv_cost_stats=of_call)
                assert waits[0, OUT] >= LIMIT_S * 1e9 * 0.9
                assert waits[1].max() < LIMIT_S * 1e9 / 100
            comm.barrier()
            buffer.reset()

    run(rank_main)
