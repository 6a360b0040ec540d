# SPDX-License-Identifier: MIT
"""Random inputs of all ranks, and what dispatch and combine have to make of them."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from deepep_ptx import reference

DTYPES = ("bf16", "fp8")
ROUTINGS = ("uniform", "skewed", "local")
ZIPF_EXPONENT = 2       # of "skewed": expert e is drawn in proportion to (e + 1) ** -2


@dataclass(frozen=True)
class Shape:
    """What fixes a `Job`, with its seed.  tokens: of each rank.

    routing: "uniform"; "skewed": experts drawn as by Zipf's law, so that ranks get very unequal
    numbers of rows; "local": no token leaves its rank.
    """

    ranks: int
    tokens: int
    hidden: int
    topk: int
    experts: int
    routing: str = "uniform"

    @property
    def worst_rows(self):
        """Rows that a rank could receive at most."""
        return self.ranks * self.tokens


class Job:
    """Inputs of all ranks and what has to come out, by the reference; lists in rank order.

    topk_idxs, topk_weights: int64 and float32 [T, K].
    xs: dtype's name -> rows: bfloat16 [T, H], and if asked for pairs of float8_e4m3fn and scales.
    received: `reference.Received` of the bfloat16 rows.
    rows: int [R, R], [s, d] = rows that rank s sends to rank d.
    ys: bfloat16 [worst_rows, H], with `combine` (else none): what a rank's experts make of what it
    received; rows that were not received are zero.
    """

    def __init__(self, shape, seed, *, dtypes=("bf16",), combine=True):
        self.shape = shape
        rngs = [np.random.default_rng([seed, shape.tokens, rank]) for rank in range(shape.ranks)]
        self.topk_idxs = [choices(rng, shape, rank) for rank, rng in enumerate(rngs)]
        self.topk_weights = [rng.random((shape.tokens, shape.topk), np.float32) for rng in rngs]
        self.xs = {dtype: [random_rows(rng, shape.tokens, shape.hidden, dtype) for rng in rngs]
                   for dtype in DTYPES if dtype in ("bf16", *dtypes)}
        self.received = reference.dispatch(self.xs["bf16"], self.topk_idxs, self.topk_weights,
                                           shape.experts)
        self.rows = np.diff(self.received[0].rank_prefix_matrix, axis=0, prepend=0)
        if "fp8" in dtypes:
            self._recv_fp8 = reference.cached_dispatch(self.xs["fp8"], self.received)
        self.ys = []
        if combine:
            self.ys = [self._expert_rows(rng, r) for rng, r in zip(rngs, self.received,
                                                                   strict=True)]
            self._combined = reference.combine(
                [y[:r.num_recv] for y, r in zip(self.ys, self.received, strict=True)],
                self.received, [r.recv_topk_weights for r in self.received])

    def _expert_rows(self, rng, received):
        y = np.zeros((self.shape.worst_rows, self.shape.hidden), ml_dtypes.bfloat16)
        y[:received.num_recv] = random_rows(rng, received.num_recv, self.shape.hidden, "bf16")
        return y

    def of_layout(self, rank):
        """name -> array of `get_dispatch_layout`."""
        names = ("num_tokens_per_rank", "num_tokens_per_expert", "is_token_in_rank")
        return dict(zip(names, reference.layout(self.topk_idxs[rank], self.shape.experts,
                                                self.shape.ranks), strict=True))

    def of_rows(self, rank, dtype):
        """recv_x, with recv_scales where rows have scales."""
        if dtype == "fp8":
            return dict(zip(("recv_x", "recv_scales"), self._recv_fp8[rank], strict=True))
        return {"recv_x": self.received[rank].recv_x}

    def of_dispatch(self, rank, dtype="bf16", worst=True):
        """name -> array of `dispatch`, of the valid rows; worst: recv_topk_idx has the rows of the
        worst case."""
        received, shape = self.received[rank], self.shape
        names = ("rank_prefix_matrix", "recv_src_idx", "recv_topk_weights")
        wanted = {name: getattr(received, name) for name in names}
        wanted["recv_topk_idx"] = received.recv_topk_idx
        if worst:
            wanted["recv_topk_idx"] = np.full((shape.worst_rows, shape.topk), -1, np.int64)
            wanted["recv_topk_idx"][:received.num_recv] = received.recv_topk_idx
        return wanted | self.of_rows(rank, dtype)

    def of_combine(self, rank):
        """name -> array of `combine`."""
        return dict(zip(("combined_x", "combined_topk_weights"), self._combined[rank],
                        strict=True))


def choices(rng, shape, rank):
    """int64 [T, K]: experts of a rank's tokens, none twice, by the shape's routing."""
    first, num = 0, shape.experts
    if shape.routing == "local":
        num = shape.experts // shape.ranks
        first = rank * num
    # The K largest of log(u) / w: drawn without replacement in proportion to w.
    keys = rng.random((shape.tokens, num))
    if shape.routing == "skewed":
        keys = np.log(keys) * np.arange(1, num + 1) ** ZIPF_EXPONENT
    return first + np.argpartition(-keys, shape.topk - 1, axis=1)[:, :shape.topk].astype(np.int64)


def random_rows(rng, num_rows, hidden, dtype):
    """Random bits as rows: bfloat16 of 2^-7 to 2 and either sign; or a pair, of any float8_e4m3fn
    and float32 scales."""
    if dtype == "fp8":
        bits = rng.integers(0, 1 << 8, (num_rows, hidden), np.uint8)
        scales = rng.random((num_rows, hidden // reference.FP8_GROUP), np.float32)
        return bits.view(reference.FP8), scales
    bits = rng.integers(0, 1 << 16, (num_rows, hidden), np.uint16)
    return (bits & 0x83FF | 0x3C00).view(ml_dtypes.bfloat16)
