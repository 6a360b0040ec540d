# SPDX-License-Identifier: MIT
"""Shapes and modes by hand for round trips with the text of one architecture.

What `tests/test_roundtrip.py` covers in pairs with few tokens, here with many, with other numbers
of experts, and with results in the arena of a GPU.
"""

import functools
from dataclasses import dataclass

from deepep_ptx import Buffer
from tests.api_calls import FP8, Job, Side


@dataclass(frozen=True)
class Shape:
    """One round trip of two ranks.

    pair: also FP8 rows with scales.  worst: num_worst_tokens.  cached: kinds of rows sent again
    with the handle.  weights: of dispatch and combine; without them no top-k is given at all.
    """

    tokens: tuple
    hidden: int
    num_topk: int
    num_experts: int
    pair: bool = False
    worst: bool = False
    cached: tuple = ()
    weights: bool = True
    num_biases: int = 0
    idx_dtype: str = "int64"
    policy: str = "fast"
    num_sms: int | None = None
    zero_copy: bool = True

    def __str__(self):
        marks = [f"{self.tokens[0]}+{self.tokens[1]}", f"h{self.hidden}", f"k{self.num_topk}",
                 f"e{self.num_experts}", self.policy]
        marks += [name for name in ("pair", "worst", "cached") if getattr(self, name)]
        return "-".join(marks)


SHAPES = [
    Shape((0, 0), 128, 1, 2),
    Shape((0, 1), 128, 1, 2, pair=True, cached=("rows",)),
    Shape((1, 1), 7168, 8, 256, worst=True, num_biases=1),
    Shape((1, 0), 256, 9, 64, weights=False, num_biases=2),
    Shape((2, 3), 512, 2, 8, cached=("others", "pair"), policy="ld_relaxed_sys"),
    Shape((7, 5), 1024, 3, 6, pair=True, worst=True),
    Shape((16, 16), 2048, 4, 16, idx_dtype="int32", num_sms=1),
    Shape((17, 31), 7168, 8, 64, pair=True, cached=("pair",), num_biases=2),
    Shape((32, 0), 4096, 6, 128, worst=True, cached=("rows",)),
    Shape((33, 64), 128, 9, 18, num_biases=1, policy="ld_nc_na"),
    Shape((64, 64), 5120, 8, 160, weights=False, cached=("others",)),
    Shape((65, 63), 384, 5, 10, pair=True, zero_copy=False),
    Shape((96, 1), 2560, 7, 14, worst=True, pair=True, idx_dtype="int32"),
    Shape((100, 100), 3072, 2, 72, policy="ld_volatile", num_biases=2),
    Shape((127, 129), 640, 4, 32, cached=("rows", "others", "pair"), num_sms=3),
    Shape((128, 128), 7168, 8, 256, pair=True, num_biases=1),
    Shape((128, 200), 1536, 6, 12, worst=True, zero_copy=False, num_biases=2),
    Shape((150, 0), 2048, 1, 4, pair=True, worst=True, cached=("pair",)),
    Shape((199, 200), 256, 9, 48, weights=False, policy="ld_relaxed_sys"),
    Shape((222, 111), 6144, 3, 96, cached=("rows",), idx_dtype="int32"),
    Shape((255, 257), 896, 8, 8, pair=True, num_sms=7),
    Shape((256, 256), 4096, 8, 32, worst=True, policy="ld_relaxed_sys", num_biases=1),
    Shape((299, 300), 128, 2, 2, cached=("others",), num_biases=2),
    Shape((300, 300), 7168, 9, 64, pair=True, worst=True, cached=("rows", "pair"), num_biases=2),
]


@functools.cache
def job_of(shape):
    """What its ranks bring; made once, since the reference takes longer than a GPU."""
    return Job(list(shape.tokens), shape.hidden, shape.num_topk, shape.num_experts,
               seed=shape.hidden + shape.num_topk, pair_dtype=FP8, idx_dtype=shape.idx_dtype)


def round_trip(comm, library, shape):
    """Everything that `shape` says, on one rank, every array compared with the reference."""
    job = job_of(shape)
    with Buffer(comm, job.arena_bytes if shape.worst else 0, policy=shape.policy, timeout_s=30.0,
                zero_copy=shape.zero_copy, tuning=False) as buffer:
        side = Side(comm, library, job, buffer)
        sms = {"num_sms": shape.num_sms}
        given = dict(sms)
        if shape.weights:
            given |= {"topk_idx": side.topk_idx, "topk_weights": side.topk_weights}
            if shape.worst:
                given["num_worst_tokens"] = job.worst_tokens
        for kind in ("pair", "rows") if shape.pair else ("rows",):
            recv_x, _, _, _, handle, _ = side.dispatch(given, kind)
        for kind in shape.cached:
            side.dispatch({"handle": handle, **sms}, kind)
        added = dict(sms)
        if shape.weights:
            added["topk_weights"] = True
        if shape.num_biases:
            added["bias"] = side.bias[0] if shape.num_biases == 1 else side.bias
        for where in ("array", "recv_x"):
            side.combine(added, where, (recv_x, handle))
        assert {variant["arch"] for variant in buffer.variants.values()} == {comm.executor.arch}
        buffer.check()
