# SPDX-License-Identifier: MIT
"""Rounds of calls of one `Buffer`: inputs of a seed, what has to come out, what a rank does."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deepep_ptx import Buffer, reference, run_ranks
from deepep_ptx.cli.measure.bits import wrong_array
from deepep_ptx.cli.measure.inputs import Shape, choices, random_rows

ARENA_BYTES = 1 << 20           # for calls that cannot wait for the arena to grow
TIMEOUT_S = 0.5                 # virtual
# Whose array a result is, by how its name begins; the rest is dispatch's.
_MADE_BY = {"layout": "layout", "combined": "combine", "ll_dispatch": "ll_dispatch",
            "ll_logfmt_combine": "ll_logfmt_combine", "ll_combine": "ll_combine"}


@dataclass(frozen=True)
class Calls:
    """What the rounds of a workload do; in each: layout, dispatch, combine.

    tokens: of each rank, in turn, also of further ranks; the next round begins one further.
    experts: of each rank.
    sms: CTAs of each kernel but layout and copy.  dtype: "bf16", or "fp8" with scales.
    again: rows are sent once more, with the handle.  combine: "pull", "push", or "mixed": even
    ranks' rows are pulled.  biases: of combine, 0 to 2.  worst: results have the size of the worst
    case, no host waits for totals.  queued: as `worst`, and no host waits for anything before all
    rounds are queued; what is combined is what came the second time, as it came.  copies: results
    are copied out, rows are pushed.  twice: zeros are combined before the rows.  early: dispatch
    returns when its totals are there.  stages, stage_bytes: of rings of bulk copies.  others: the
    policy of odd ranks.  before: a function of (comm, buffer, calls, inputs, policy) that each rank
    calls before its last round.  only_layout: nothing is sent.
    """

    tokens: tuple[int, ...] = (17, 9)
    hidden: int = 64
    topk: int = 3
    experts: int = 6
    sms: int = 2
    dtype: str = "bf16"
    idx_dtype: str = "int64"
    again: bool = False
    combine: str = "pull"
    biases: int = 0
    weights: bool = True
    worst: bool = False
    queued: bool = False
    copies: bool = False
    twice: bool = False
    stages: int | None = None
    stage_bytes: int | None = None
    early: bool = False
    others: str | None = None
    rounds: int = 2
    before: Callable | None = None
    only_layout: bool = False

    def pulls(self, rank):
        """Whether the others pull this rank's rows."""
        return not self.copies and (self.combine == "pull"
                                    or (self.combine == "mixed" and rank % 2 == 0))

    def inputs(self, ranks, number, seed):
        """Those of all ranks in one round."""
        return Inputs(self, ranks, number, seed)

    def run(self, ranks, rounds, policy, **options):
        """What `rank_main` returns on each of so many ranks.  options: of `run_ranks`."""
        return run_ranks(rank_main, ranks, self, rounds, policy, **options)


class Inputs:
    """One round's inputs of all ranks, as lists in rank order, and what has to come out."""

    def __init__(self, calls, ranks, number, seed):
        self.calls = calls
        self.num_experts = ranks * calls.experts
        rngs, counts, self.topk_idxs = drawn(calls, ranks, number, seed)
        if calls.only_layout:
            return
        self.topk_weights = weights_of(rngs, self.topk_idxs)
        self.xs, self.others = ([random_rows(rng, count, calls.hidden, calls.dtype)
                                 for rng, count in zip(rngs, counts, strict=True)]
                                for _ in range(2))
        self.worst = sum(counts) + 1
        self.received = reference.dispatch(self.xs, self.topk_idxs, self.topk_weights,
                                           self.num_experts)
        self.again = (reference.cached_dispatch(self.others, self.received) if calls.again
                      else [None] * ranks)
        self.ys = self.again if calls.queued else [
            random_rows(rng, received.num_recv, calls.hidden, "bf16")
            for rng, received in zip(rngs, self.received, strict=True)]
        self.biases = [_biases(calls, rng, count) for rng, count in zip(rngs, counts, strict=True)]

    def wanted(self):
        """Per rank: name -> array."""
        layouts = [_of_layout(reference.layout(idx, self.num_experts, len(self.topk_idxs)))
                   for idx in self.topk_idxs]
        if self.calls.only_layout:
            return layouts
        combined = reference.combine(
            self.ys, self.received,
            [r.recv_topk_weights for r in self.received] if self.calls.weights else None,
            self.biases)
        return [layout | _of_calls(received, received.recv_x, again, outcome)
                for layout, received, again, outcome in zip(
                    layouts, self.received, self.again, combined, strict=True)]


def drawn(calls, ranks, number, seed):
    """(generators, numbers of tokens, topk_idxs) of the ranks in a round, of calls of any kind."""
    rngs = [np.random.default_rng([seed, number, rank]) for rank in range(ranks)]
    counts = list(itertools.islice(itertools.cycle(calls.tokens), number, number + ranks))
    topk_idxs = []
    for rank, (rng, count) in enumerate(zip(rngs, counts, strict=True)):
        shape = Shape(ranks, count, calls.hidden, calls.topk, ranks * calls.experts)
        topk_idxs.append(with_holes(rng, choices(rng, shape, rank).astype(calls.idx_dtype)))
    return rngs, counts, topk_idxs


def weights_of(rngs, topk_idxs):
    """topk_weights of the ranks."""
    return [rng.random(idx.shape, np.float32) for rng, idx in zip(rngs, topk_idxs, strict=True)]


def with_holes(rng, idx):
    """Some choices are none, and some tokens go nowhere."""
    idx[rng.random(idx.shape) < 0.2] = -1
    idx[rng.random(len(idx)) < 0.1] = -1
    return idx


def _biases(calls, rng, count):
    given = [random_rows(rng, count, calls.hidden, "bf16") for _ in range(calls.biases)]
    return (None, given[0] if given else None, tuple(given))[calls.biases]


def _of_layout(layout):
    """name -> array of `get_dispatch_layout`'s results."""
    return dict(zip(("layout: num_tokens_per_rank", "layout: num_tokens_per_expert",
                     "layout: is_token_in_rank"), layout, strict=True))


def _of_calls(received, rows, again, combined):
    """name -> array of the other calls' results; received: of the reference, or with its names."""
    x, scales = rows if isinstance(rows, tuple) else (rows, None)
    again_x, again_scales = again if isinstance(again, tuple) else (again, None)
    named = {"recv_x": x, "recv_x scales": scales, "cached recv_x": again_x,
             "cached recv_x scales": again_scales}
    named |= {name: getattr(received, name) for name in (
        "recv_topk_idx", "recv_topk_weights", "recv_src_idx", "rank_prefix_matrix")}
    named |= dict(zip(("combined_x", "combined_topk_weights"), combined, strict=True))
    return {name: array for name, array in named.items() if array is not None}


def all_wrong(rounds, results):
    """The first `Wrong` array of each round and rank."""
    for number, inputs in enumerate(rounds):
        for rank, wanted in enumerate(inputs.wanted()):
            got = results[rank][number]
            found = (wrong_array(f"round {number}", rank, name, got[name], want)
                     for name, want in wanted.items())
            yield from itertools.islice(filter(None, found), 1)


def made_by(array):
    """The kernel that makes the result `array`, the name in a `Wrong`."""
    return next((kernel for start, kernel in _MADE_BY.items() if array.startswith(start)),
                "dispatch")


# -- one rank ---------------------------------------------------------------------------------

def rank_main(comm, calls, rounds, policy):
    """(name -> array of each round, what was executed); the second of rank 0 alone."""
    with open_buffer(comm, calls, policy) as buffer:
        made, queued = [], []
        for number, inputs in enumerate(rounds):
            if calls.before and number == len(rounds) - 1:
                calls.before(comm, buffer, calls, inputs, policy)
            result = Round(comm, buffer, calls, inputs)
            if calls.queued:
                queued.append(result)
            else:
                made.append(result.copied())
            del result          # views of the arena: the next round takes its place
        if calls.queued:
            queued[-1].event.current_stream_wait()
            buffer.check()
            made = [result.copied() for result in queued]
            del queued
    comm.barrier()
    return made, None if comm.rank else comm.executor.ran()


def open_buffer(comm, calls, policy, timeout_s=TIMEOUT_S, **options):
    """A `Buffer` for these calls."""
    policy = calls.others if calls.others and comm.rank % 2 else policy
    grows = not (calls.worst or calls.queued or calls.dtype != "bf16")
    options = {"num_nvl_bytes": 0 if grows else ARENA_BYTES} | options
    return Buffer(comm, policy=policy, tuning=False, timeout_s=timeout_s,
                  zero_copy=False if calls.copies else None, stages=calls.stages,
                  stage_bytes=calls.stage_bytes, **options)


class Round:
    """One round of one rank, carried out, or queued."""

    def __init__(self, comm, buffer, calls, inputs):
        self.calls, self.rank, self.event = calls, comm.rank, None
        self.later = {"async_finish": True} if calls.queued else {}
        self.layout = layout_of(buffer, inputs, **self.later)
        if calls.only_layout:
            return
        self.rows, self.idx, self.weights, _, self.handle, event = dispatch(
            buffer, inputs, self.layout, num_sms=calls.sms,
            async_finish=calls.early or calls.queued,
            num_worst_tokens=inputs.worst if calls.worst or calls.queued else 0)
        if calls.early:
            event.current_stream_wait()
        self.again = None
        if calls.again:
            self.again, *_, event = buffer.dispatch(
                inputs.others[comm.rank], handle=self.handle, num_sms=calls.sms,
                previous_event=event if calls.queued else None, **self.later)
        if calls.queued:
            y = self.again
        else:
            self.received = self.copy_of_received()
            if calls.twice:
                self.combine(buffer, inputs,
                             self.expert_rows(buffer, np.zeros_like(inputs.ys[comm.rank])))
            y = self.expert_rows(buffer, inputs.ys[comm.rank])
        self.combined_x, self.combined_weights, self.event = self.combine(
            buffer, inputs, y, previous_event=event if calls.queued else None, **self.later)

    def combine(self, buffer, inputs, y, **later):
        """What `Buffer.combine` makes of `y`."""
        calls, rank = self.calls, self.rank
        weights = self.weights if calls.pulls(rank) else np.array(self.weights)
        return buffer.combine(y, self.handle, topk_weights=weights if calls.weights else None,
                              bias=inputs.biases[rank], num_sms=calls.sms, **later)

    def expert_rows(self, buffer, rows):
        """`rows` where combine pulls them from, or in an array of their own."""
        y = self.rows
        if not self.calls.pulls(self.rank):
            y = np.zeros((len(self.weights), self.calls.hidden), rows.dtype)
        elif self.calls.dtype != "bf16":
            y = buffer.get_combine_buffer(len(rows), self.calls.hidden)
        y[:len(rows)] = rows
        return y

    def copy_of_received(self):
        """Of (rows, rows of the second time): expert rows take their place."""
        num = int(self.handle[0][-1, self.rank])
        return [_cut(rows, num) for rows in (self.rows, self.again)]

    def copied(self):
        """name -> array, of the valid rows."""
        named = _of_layout(self.layout[:3])
        if not self.calls.only_layout:
            named |= self.copied_calls()
        return {name: np.array(array) for name, array in named.items()}

    def copied_calls(self):
        """name -> array of dispatch and combine."""
        rows, again = self.copy_of_received() if self.calls.queued else self.received
        num = int(self.handle[0][-1, self.rank])
        self.rank_prefix_matrix = self.handle[0]
        self.recv_topk_idx = self.idx[:num]
        self.recv_topk_weights = self.weights[:num]
        self.recv_src_idx = self.handle.recv_src_idx[:num]
        return _of_calls(self, rows, again, (self.combined_x, self.combined_weights))


def _cut(rows, num):
    """Copies of the first `num` rows of an array, of both of a pair, or of none."""
    if isinstance(rows, tuple):
        return tuple(np.array(part[:num]) for part in rows)
    return None if rows is None else np.array(rows[:num])


def layout_of(buffer, inputs, **later):
    """(tokens per rank, tokens per expert, is_token_in_rank, event)."""
    per_rank, _, per_expert, in_rank, event = buffer.get_dispatch_layout(
        inputs.topk_idxs[buffer.rank], inputs.num_experts, **later)
    return per_rank, per_expert, in_rank, event


def narrow(comm, buffer, calls, inputs, policy):
    """Rows of half the width are sent, and dropped: the next ones lie where their indices did."""
    rows = np.ascontiguousarray(inputs.xs[comm.rank][:, :calls.hidden // 2])
    dispatch(buffer, inputs, layout_of(buffer, inputs), rows, num_sms=calls.sms)


def dispatch(buffer, inputs, layout, rows=None, **changes):
    """`Buffer.dispatch` of this rank's inputs; layout: as `layout_of` gives it.  rows: in the place
    of these."""
    per_rank, per_expert, in_rank, event = layout
    rank = buffer.rank
    return buffer.dispatch(
        inputs.xs[rank] if rows is None else rows, num_tokens_per_rank=per_rank,
        num_tokens_per_expert=per_expert, is_token_in_rank=in_rank,
        topk_idx=inputs.topk_idxs[rank], topk_weights=inputs.topk_weights[rank],
        previous_event=event if changes.get("async_finish") else None, **changes)
