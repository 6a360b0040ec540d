# SPDX-License-Identifier: MIT
"""A low-latency case, its inputs on all ranks, what has to come out, and how many bytes cross."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from deepep_ptx import Buffer, reference
from deepep_ptx.cli.bench.figures import rounded
from deepep_ptx.cli.measure import traffic
from deepep_ptx.cli.measure.bits import wrong_array
from deepep_ptx.cli.measure.inputs import Shape, choices, random_rows

WHATS = ("pair", "dispatch", "combine")     # pair: a dispatch, and a combine with its handle
DTYPES = ("fp8", "bf16")
COMPARED_TOKENS = 128                       # of the largest case that is compared
FP32_BYTES = 4
OF_ROWS = ("src_info", "recv_x", "recv_scales")


@dataclass(frozen=True)
class Case:
    """A low-latency dispatch and a combine of all ranks.

    dtype: "fp8", with a float32 scale per 128 values, or "bf16": of the rows that dispatch sends.
    reduce: of the buffer; None: of another library's, which has one way.
    tokens: per rank, and the most of any rank.  sms: CTAs; None: the buffer's own choice.
    """

    dtype: str
    reduce: str | None
    tokens: int
    hidden: int
    topk: int
    experts: int
    sms: int | None = None

    def __str__(self):
        sms = "the buffer's SMs" if self.sms is None else f"{self.sms} SMs"
        return f"{self.dtype}, {self.reduce}, {self.tokens} tokens, {sms}"

    def memory(self, ranks):
        """Bytes of low-latency memory that its calls take on each rank."""
        return Buffer.get_low_latency_rdma_size_hint(
            self.tokens, self.hidden, ranks, self.experts, num_topk=self.topk, reduce=self.reduce)

    def result_bytes(self, ranks):
        """No fewer than those of the arrays that a dispatch and a combine return, together."""
        rows = self.experts * self.tokens
        # recv_x and its scales, if it has some, src_info; rows of tokens; combined_x.
        return (rows * (2 * self.hidden + self.hidden // 32 + 4)
                + ranks * self.tokens * self.topk * 4 + 2 * self.tokens * self.hidden)


class Job:
    """Inputs of all ranks with so many tokens, and what has to come out by the reference; lists in
    rank order.

    shape: a `measure.inputs.Shape`.  dtypes, reductions: of the cases.
    compared: whether there is anything by the reference.
    xs: bfloat16 [T, H].  topk_idxs, topk_weights: int64 and float32 [T, K].
    counts: [E], rows of each expert.
    """

    def __init__(self, shape, seed, dtypes, reductions):
        self.shape = shape
        self.seed = seed
        self.compared = shape.tokens <= COMPARED_TOKENS
        rngs = [np.random.default_rng([seed, shape.tokens, rank]) for rank in range(shape.ranks)]
        self.topk_idxs = [choices(rng, shape, rank) for rank, rng in enumerate(rngs)]
        self.topk_weights = [rng.random((shape.tokens, shape.topk), np.float32) for rng in rngs]
        self.xs = [random_rows(rng, shape.tokens, shape.hidden, "bf16") for rng in rngs]
        self.counts = np.bincount(np.concatenate(self.topk_idxs).ravel(), minlength=shape.experts)
        self._received, self._combined = {}, {}
        if self.compared:
            self._received = {dtype: reference.low_latency_dispatch(
                self.xs, self.topk_idxs, shape.tokens, shape.experts, use_fp8=dtype == "fp8")
                for dtype in dtypes}
            ys = [self.y(rank) for rank in range(shape.ranks)]
            received = next(iter(self._received.values()))
            self._combined = {reduce: reference.low_latency_combine(
                ys, received, self.topk_idxs, self.topk_weights, reduce) for reduce in reductions}

    def y(self, rank):
        """bfloat16 [L, R * T, H]: what a rank's experts make of what they received; rows that were
        not received are zero."""
        shape = self.shape
        num_local = shape.experts // shape.ranks
        rng = np.random.default_rng([self.seed, shape.tokens, rank, 1])
        # Zeros that nobody writes take no memory of the host.
        y = np.zeros((num_local, shape.worst_rows, shape.hidden), ml_dtypes.bfloat16)
        for local, count in enumerate(self.counts[rank * num_local:][:num_local]):
            y[local, :count] = random_rows(rng, count, shape.hidden, "bf16")
        return y

    def wrong_dispatch(self, case, rank, got, get):
        """`Wrong` of what a rank has received, or None.  got: as of `named`.  get: an array as
        NumPy's."""
        want = self._received[case.dtype][rank]
        wanted = named(want.recv_x, want.recv_count, (want.src_info, want.layout_range))
        valid = np.arange(want.src_info.shape[1]) < want.recv_count[:, None]
        for array, of_reference in wanted.items():
            mine = get(got[array])
            if array == "recv_scales":
                mine, of_reference = mine.swapaxes(1, 2), of_reference.swapaxes(1, 2)
            if array in OF_ROWS:
                mine, of_reference = mine[valid], of_reference[valid]
            wrong = wrong_array(f"dispatch {case}", rank, array, mine, of_reference)
            if wrong:
                return wrong
        return None

    def wrong_combine(self, case, rank, combined_x, get):
        """`Wrong` of what a rank has combined, or None."""
        return wrong_array(f"combine {case}", rank, "combined_x", get(combined_x),
                           self._combined[case.reduce][rank])


def named(recv_x, recv_count, handle):
    """name -> array of a dispatch, each C-contiguous; those that tell most come first."""
    made = {"recv_count": recv_count, "layout_range": handle[1], "src_info": handle[0]}
    if isinstance(recv_x, tuple):
        return made | {"recv_x": recv_x[0], "recv_scales": recv_x[1].swapaxes(1, 2)}
    return made | {"recv_x": recv_x}


def shape_of(case, ranks):
    """The `Shape` of a case's inputs: experts at random."""
    return Shape(ranks, case.tokens, case.hidden, case.topk, case.experts)


def crossings(topk_idxs, experts):
    """(tokens, choices): int [R, R], [s, d] = tokens of rank s that have any expert of rank d, and
    their choices of them."""
    ranks = len(topk_idxs)
    tokens, choices = np.zeros((2, ranks, ranks), int)
    for source, topk_idx in enumerate(topk_idxs):
        hits = topk_idx[:, :, None] // (experts // ranks) == np.arange(ranks)
        tokens[source], choices[source] = hits.any(axis=1).sum(axis=0), hits.sum(axis=(0, 1))
    return tokens, choices


def payload(case, topk_idxs, devices):
    """What -> bytes: peers, of the rank that exchanges most with other ranks, in its busier
    direction; wire, likewise of the GPU over whose links most crosses; total, of all ranks to
    others.

    Rows alone: what tells that they are there comes on top.  A token's row crosses once to each
    rank that has any of its experts.  Back comes, by `reduce`, a bfloat16 row for each choice, or
    an FP32 row for each rank that has any.  Of another library, both ways a row for each choice.
    """
    tokens, choices = crossings(topk_idxs, case.experts)
    there = choices if case.reduce is None else tokens
    back = (tokens, FP32_BYTES * case.hidden)
    if case.reduce != "rank":
        back = choices, traffic.row_bytes(case.hidden, "bf16")
    made = {}
    for what, (rows, size) in {"dispatch": (there, traffic.row_bytes(case.hidden, case.dtype)),
                               "combine": back}.items():
        made[what] = {name: size * traffic.busiest_link(rows, places)
                      for name, places in (("peers", range(len(rows))), ("wire", devices))}
        made[what]["total"] = size * int(rows.sum() - np.trace(rows))
    both = made["dispatch"], made["combine"]
    return {"pair": {name: sum(one[name] for one in both) for name in both[0]}} | made


def bandwidths(wire, median_us, links):
    """floor_us, wire_gb_s, wire_of_link and of_floor; None for what crosses no link."""
    rate = links.get("copy_engine_both_ways_gb_s")
    floor = wire / rate / 1e3 if wire and rate else None
    wire_gb_s = wire / median_us / 1e3 if wire else None
    return {"floor_us": rounded(floor, 2), "wire_gb_s": rounded(wire_gb_s, 1),
            "wire_of_link": rounded(wire_gb_s / rate if floor else None, 3),
            "of_floor": rounded(median_us / floor if floor else None, 3)}
