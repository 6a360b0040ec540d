# SPDX-License-Identifier: MIT
"""Every array of every rank against the reference, bit for bit."""

from dataclasses import dataclass

import numpy as np

from deepep_ptx import reference


@dataclass(frozen=True)
class Mismatch:
    """The first element of an array that is not the reference's."""

    rank: int
    name: str
    index: tuple | None         # None: shape or dtype differ
    got: str
    want: str

    def __str__(self):
        if self.index is None:
            return f"rank {self.rank}: {self.name} is {self.got}, reference {self.want}"
        place = ", ".join(f"{axis} {i}" for axis, i in
                          zip(("row", "column"), self.index, strict=False))
        return f"rank {self.rank}: {self.name} {place} is {self.got}, reference {self.want}"


def check(outputs, wanted, bar):
    """Compare every rank's arrays with the reference's, `wanted`.

    Returns the first `Mismatch` of each array that differs, by rank; an empty list if none does.
    """
    found = []
    for rank, (output, arrays) in enumerate(zip(outputs, wanted, strict=True)):
        found += mismatches(rank, output.arrays, arrays)
        bar.update()
    return found


def mismatches(rank, arrays, wanted):
    """The first `Mismatch` of each of a rank's `arrays` that differs from its like in `wanted`."""
    found = [compare(rank, name, array, wanted[name]) for name, array in arrays.items()]
    return [mismatch for mismatch in found if mismatch]


def expected(job):
    """Each rank's arrays by the reference, name -> array."""
    received = reference.dispatch(job.xs, job.topk_idxs, job.topk_weights,
                                  job.settings.num_experts, job.num_worst_tokens)
    ys = [job.experts.apply(r.recv_x, r.recv_topk_idx, r.recv_topk_weights,
                            r.rank * job.num_local_experts) for r in received]
    combined = reference.combine(ys, received, [r.recv_topk_weights for r in received])
    for r, (combined_x, combined_topk_weights) in zip(received, combined, strict=True):
        rows = slice(r.num_recv)
        yield {
            "rank_prefix_matrix": r.rank_prefix_matrix,
            "recv_src_idx": r.recv_src_idx[rows],
            "recv_topk_idx": r.recv_topk_idx,
            "recv_topk_weights": r.recv_topk_weights[rows],
            **named_rows(r.recv_x, rows),
            "num_recv_tokens_per_expert_list":
                np.array(r.num_recv_tokens_per_expert_list, dtype=np.int64),
            "combined_x": combined_x,
            "combined_topk_weights": combined_topk_weights,
        }


def named_rows(recv_x, rows):
    """Rows of recv_x as {"recv_x": ...}, and "recv_scales" where it is a pair."""
    if isinstance(recv_x, tuple):
        return {"recv_x": recv_x[0][rows], "recv_scales": recv_x[1][rows]}
    return {"recv_x": recv_x[rows]}


def compare(rank, name, got, want):
    """The first element whose bits differ as a `Mismatch`, or None."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return Mismatch(rank, name, None, f"{got.dtype} {got.shape}", f"{want.dtype} {want.shape}")
    bits = f"u{want.dtype.itemsize}"
    differs = np.ascontiguousarray(got).view(bits) != np.ascontiguousarray(want).view(bits)
    if not differs.any():
        return None
    index = tuple(int(i) for i in np.argwhere(differs)[0])
    return Mismatch(rank, name, index, _with_bits(got[index]), _with_bits(want[index]))


def _with_bits(value):
    """A float with its bits, since two NaN or two zeros print alike."""
    if np.issubdtype(value.dtype, np.integer):
        return str(value)
    return f"{value} ({value.tobytes()[::-1].hex()})"
