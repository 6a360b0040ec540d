# SPDX-License-Identifier: MIT
"""Rounds of low-latency calls of one `Buffer`, as `rounds` has them of the others."""

import copy
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from ml_dtypes import bfloat16

from deepep_ptx import Buffer, low_latency, reference, run_ranks
from deepep_ptx.cli.check.rounds import TIMEOUT_S, Calls, Round, drawn, weights_of
from deepep_ptx.cli.measure.inputs import random_rows

CASTS = {"bf16": {"use_fp8": False}, "fp8": {}, "round": {"round_scale": True},
         "ue8m0": {"round_scale": True, "use_ue8m0": True}}


@dataclass(frozen=True)
class LowLatencyCalls:
    """What the rounds of a low-latency workload do; in each: dispatch, combine.

    tokens: of each rank, in turn, also of further ranks; the next round begins one further.
    experts: of each rank.  sms: CTAs of each kernel.
    cast: "bf16" for none, "fp8", "round": scales are powers of two, "ue8m0": as exponents.
    reduce: "exact" or "rank".  word_tokens: of a rank with more tokens, rows or sums cross as they
    are, behind flags.  logfmt: rows cross in LogFMT-10, about half of them encoded.  stats: both
    calls count cycles of waiting, dispatch also rows.  hook: a call is two launches.  twice: of two
    dispatches the second counts, so that both halves of the memory have both calls.  again: so many
    combines more by the same handle, before the one that counts.  queued: no host waits for
    anything before all rounds are queued.  normal: what rounds of other calls do, on the same
    buffer, one between the two and one behind them.
    before: a function of (comm, buffer, calls, inputs, policy) that each rank calls before its last
    round.
    """

    tokens: tuple[int, ...]
    hidden: int = 256
    topk: int = 3
    experts: int = 4
    sms: int = 2
    cast: str = "fp8"
    reduce: str = "exact"
    word_tokens: int = low_latency.WORD_TOKENS
    logfmt: bool = False
    stats: bool = False
    hook: bool = False
    twice: bool = False
    again: int = 0
    queued: bool = False
    idx_dtype: str = "int64"
    normal: Calls | None = None
    rounds: int = 2
    before: Callable | None = None

    @property
    def max_tokens(self):
        """num_max_dispatch_tokens_per_rank: there is room for a token's rows at one expert."""
        return max(self.tokens) + self.topk

    def inputs(self, ranks, number, seed):
        """Those of all ranks in one round."""
        return Inputs(self, ranks, number, seed)

    def run(self, ranks, all_inputs, policy, **options):
        """What `rank_main` returns on each of so many ranks.  options: of `run_ranks`."""
        with _word_tokens(self.word_tokens):
            return run_ranks(rank_main, ranks, self, all_inputs, policy, **options)


@contextmanager
def _word_tokens(number):
    """Within the block it is that of all ranks, which are threads of this process."""
    before, low_latency.WORD_TOKENS = low_latency.WORD_TOKENS, number
    try:
        yield
    finally:
        low_latency.WORD_TOKENS = before


class Inputs:
    """One round's inputs of all ranks, as lists in rank order, and what has to come out."""

    def __init__(self, calls, ranks, number, seed):
        self.calls = calls
        self.num_experts = ranks * calls.experts
        rngs, counts, topk_idxs = drawn(calls, ranks, number, seed)
        self.topk_idxs = [_with_twins(rng, idx) for rng, idx in zip(rngs, topk_idxs, strict=True)]
        self.topk_weights = weights_of(rngs, self.topk_idxs)
        self.xs = [random_rows(rng, count, calls.hidden, "bf16")
                   for rng, count in zip(rngs, counts, strict=True)]
        self.received = reference.low_latency_dispatch(
            self.xs, self.topk_idxs, calls.max_tokens, self.num_experts, **CASTS[calls.cast])
        self.ys = [_expert_rows(rng, received, calls)
                   for rng, received in zip(rngs, self.received, strict=True)]
        self.normal = calls.normal and calls.normal.inputs(ranks, number, seed)

    def without(self, rank):
        """These inputs as the others have them who do without that rank: no tokens of it, and no
        choices of its experts in combine."""
        other = copy.copy(self)
        for name in "xs", "topk_idxs", "topk_weights":
            of_ranks = list(getattr(self, name))
            of_ranks[rank] = of_ranks[rank][:0]
            setattr(other, name, of_ranks)
        calls = self.calls
        other.received = reference.low_latency_dispatch(
            other.xs, other.topk_idxs, calls.max_tokens, self.num_experts, **CASTS[calls.cast])
        other.ys = [_expert_rows(np.random.default_rng(number), received, calls)
                    for number, received in enumerate(other.received)]
        other.topk_idxs = [np.where(idx // calls.experts == rank, -1, idx)
                           for idx in other.topk_idxs]
        return other

    def wanted(self):
        """Per rank: name -> array."""
        combined = reference.low_latency_combine(
            self.ys, self.received, self.topk_idxs, self.topk_weights, self.calls.reduce,
            self.calls.logfmt)
        wanted = [of_calls(self.calls, received.recv_x, received.recv_count, received.src_info,
                           received.layout_range, received.recv_count * self.calls.stats, out)
                  for received, out in zip(self.received, combined, strict=True)]
        normal = self.normal.wanted() if self.normal else [{}] * len(wanted)
        return [mine | _of_both(others, others)
                for mine, others in zip(wanted, normal, strict=True)]


def _with_twins(rng, idx):
    """The first token names one expert twice."""
    if len(idx):
        idx[0, rng.permutation(idx.shape[1])[:2]] = max(idx[0])
    return idx


def _expert_rows(rng, received, calls):
    """What a rank's experts make of the rows that they have, for combine."""
    y = np.zeros((*received.src_info.shape, calls.hidden), bfloat16)
    for rows, count in zip(y, received.recv_count, strict=True):
        rows[:count] = random_rows(rng, int(count), calls.hidden, "bf16")
        if calls.logfmt:
            rows[rng.random(len(rows)) < 0.5] *= bfloat16(0.125)     # below 1 then
    return y


def of_calls(calls, recv_x, recv_count, src_info, layout_range, recv_stats, combined_x):
    """name -> array of both calls' results, without what is unspecified."""
    rows, scales = recv_x if isinstance(recv_x, tuple) else (recv_x, None)
    named = {"recv_x": _filled(rows, recv_count), "recv_count": recv_count,
             "src_info": _filled(src_info, recv_count), "layout_range": layout_range,
             "cumulative_local_expert_recv_stats": recv_stats}
    if scales is not None:
        named["recv_x scales"] = _filled(scales, recv_count)
    combine = "ll_logfmt_combine" if calls.logfmt else "ll_combine"
    return {f"ll_dispatch: {name}": np.array(array) for name, array in named.items()} | {
        f"{combine}: combined_x": np.array(combined_x)}


def _of_both(first, second):
    """name -> array of the two rounds of other calls."""
    return first | {f"{name}, the second time": array for name, array in second.items()}


def _filled(rows, counts):
    """Of each expert the rows that it has, one expert's behind the other's."""
    return np.concatenate([of_one[:count] for of_one, count in zip(rows, counts, strict=True)])


# -- one rank ---------------------------------------------------------------------------------

def rank_main(comm, calls, all_inputs, policy):
    """(name -> array of each round, what was executed); the second of rank 0 alone."""
    with open_buffer(comm, calls, policy) as buffer:
        made = []
        for number, inputs in enumerate(all_inputs):
            if calls.before and number == len(all_inputs) - 1:
                calls.before(comm, buffer, calls, inputs, policy)
            made.append(_Round(comm, buffer, calls, inputs))
            if not calls.queued:
                made[-1] = made[-1].copied()
        if calls.queued:
            made[-1].event.current_stream_wait()
            buffer.check()
            made = [result.copied() for result in made]
    comm.barrier()
    return made, None if comm.rank else comm.executor.ran()


def open_buffer(comm, calls, policy, timeout_s=TIMEOUT_S, **options):
    """A `Buffer` for these calls."""
    return Buffer(comm, policy=policy, tuning=False, timeout_s=timeout_s, low_latency_mode=True,
                  reduce=calls.reduce, **options)


class _Round:
    """One round of one rank, carried out, or queued."""

    def __init__(self, comm, buffer, calls, inputs):
        self.calls = calls
        if calls.twice:
            dispatch(buffer, calls, inputs)
        self.recv_stats = np.zeros(calls.experts, np.int32)
        waits = np.zeros((2, comm.size), np.int64)
        self.recv_x, self.recv_count, self.handle = dispatch(
            buffer, calls, inputs, async_finish=calls.queued, **({
                "cumulative_local_expert_recv_stats": self.recv_stats,
                "dispatch_wait_recv_cost_stats": waits[0]} if calls.stats else {}))
        normal = [self._normal_round(comm, buffer, calls, inputs)]
        for _ in range(calls.again):
            combine(buffer, calls, inputs, self.handle, async_finish=calls.queued)
        self.combined_x, self.event = combine(
            buffer, calls, inputs, self.handle, async_finish=calls.queued,
            combine_wait_recv_cost_stats=waits[1] if calls.stats else None)
        normal.append(self._normal_round(comm, buffer, calls, inputs))
        self.normal = _of_both(*normal)

    @staticmethod
    def _normal_round(comm, buffer, calls, inputs):
        return Round(comm, buffer, calls.normal, inputs.normal).copied() if calls.normal else {}

    def copied(self):
        """name -> array, of the valid rows."""
        return of_calls(self.calls, self.recv_x, self.recv_count, *self.handle[:2],
                        self.recv_stats, self.combined_x) | self.normal


def dispatch(buffer, calls, inputs, topk_idx=None, **changes):
    """`Buffer.low_latency_dispatch` of this rank's inputs, as (recv_x, recv_count, handle).

    topk_idx: in the place of theirs.
    """
    rank = buffer.rank
    recv_x, recv_count, handle, _, hook = buffer.low_latency_dispatch(
        inputs.xs[rank], inputs.topk_idxs[rank] if topk_idx is None else topk_idx,
        calls.max_tokens, inputs.num_experts, num_sms=calls.sms, return_recv_hook=calls.hook,
        **CASTS[calls.cast] | changes)
    if hook:
        hook()
    return recv_x, recv_count, handle


def combine(buffer, calls, inputs, handle, y=None, **changes):
    """`Buffer.low_latency_combine` of what this rank's experts have made: (combined_x, event).

    y: in the place of that.
    """
    rank = buffer.rank
    combined_x, event, hook = buffer.low_latency_combine(
        inputs.ys[rank] if y is None else y, inputs.topk_idxs[rank], inputs.topk_weights[rank],
        handle, num_sms=calls.sms, return_recv_hook=calls.hook,
        **{"use_logfmt": calls.logfmt} | changes)
    if hook:
        hook()
    return combined_x, event
