# SPDX-License-Identifier: MIT
"""The inputs of all ranks, and what has to come out of the kernel's call, bit for bit."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from deepep_ptx import measure, reference


@dataclass(frozen=True, eq=False)
class Job:
    """Lists in rank order.

    ys: bfloat16 [worst_rows, H], what a rank's experts make of what it received; rows that were not
    received are zero.  wanted: array's name -> its valid rows.
    rows: int [R, R], [s, d] = rows that rank s sends to rank d.
    """

    xs: list
    topk_idxs: list
    topk_weights: list
    ys: list
    wanted: list
    rows: np.ndarray


@dataclass(frozen=True)
class Wrong:
    """An array that is not the reference's."""

    name: str       # of the contender
    rank: int
    array: str
    row: int | None
    num_rows: int
    detail: str

    def __str__(self):
        where = f"{self.name}: rank {self.rank}: {self.array}: "
        if self.row is None:
            return where + self.detail
        return f"{where}first bad row {self.row}, of {self.num_rows} bad rows; {self.detail}"


def make(plan):
    """Random rows, choices and weights of all ranks, by the plan's seed, and what the reference
    makes of them."""
    inputs = [_inputs(plan, rank) for rank in range(plan.ranks)]
    xs, idxs, weights = (list(part) for part in zip(*inputs, strict=True))
    received = reference.dispatch(xs, idxs, weights, plan.experts)
    if plan.kernel == "dispatch":
        ys, wanted = [], [_of_dispatch(plan, r) for r in received]
    else:
        ys = [_expert_rows(plan, r.rank) for r in received]
        for y, r in zip(ys, received, strict=True):
            y[r.num_recv:] = 0
        combined = reference.combine([y[:r.num_recv] for y, r in zip(ys, received, strict=True)],
                                     received, [r.recv_topk_weights for r in received])
        wanted = [{"combined_x": x, "combined_topk_weights": w} for x, w in combined]
    rows = np.diff(received[0].rank_prefix_matrix, axis=0, prepend=0)
    return Job(xs, idxs, weights, ys, wanted, rows)


def first_wrong(name, rank, got, wanted):
    """The first array of `got` whose valid rows are not those of `wanted`, as `Wrong`, or None."""
    for array, want in wanted.items():
        rows = got[array][:len(want)]
        if rows.shape != want.shape or rows.dtype != want.dtype:
            return Wrong(name, rank, array, None, 0, f"is {rows.dtype} {list(rows.shape)}, "
                                                     f"reference {want.dtype} {list(want.shape)}")
        bad = measure.wrong_rows(rows, want)
        if len(bad):
            return Wrong(name, rank, array, int(bad[0]), len(bad), _difference(
                np.atleast_1d(rows[bad[0]]), np.atleast_1d(want[bad[0]])))
    return None


def _difference(got, want):
    column = int(measure.wrong_rows(got, want)[0])
    return f"column {column} is {got[column]}, reference {want[column]}"


def _inputs(plan, rank):
    rng = np.random.default_rng([plan.seed, rank])
    scores = rng.random((plan.tokens, plan.experts))
    idx = np.argpartition(scores, plan.topk - 1, axis=1)[:, :plan.topk].astype(np.int64)
    return (_rows(rng, plan.tokens, plan.hidden), idx,
            rng.random((plan.tokens, plan.topk), np.float32))


def _expert_rows(plan, rank):
    return _rows(np.random.default_rng([plan.seed, plan.ranks, rank]), plan.worst_rows,
                 plan.hidden)


def _rows(rng, num_rows, hidden):
    return rng.standard_normal((num_rows, hidden), np.float32).astype(ml_dtypes.bfloat16)


def _of_dispatch(plan, received):
    names = ("rank_prefix_matrix", "recv_src_idx", "recv_topk_weights", "recv_x")
    idx = np.full((plan.worst_rows, plan.topk), -1, np.int64)
    idx[:received.num_recv] = received.recv_topk_idx
    return {"recv_topk_idx": idx} | {name: getattr(received, name) for name in names}
