# SPDX-License-Identifier: MIT
"""The main job in normal mode: layout, dispatch, combine."""

from dataclasses import dataclass

import numpy as np

from deepep_ptx import reference
from deepep_ptx.cli.demo.rows import combine_row_bytes, dispatch_row_bytes
from deepep_ptx.cli.demo.traffic import Traffic
from deepep_ptx.cli.measure.align import aligner

ARENA_LINE = 128  # bytes: sizes of the arena are multiples of it


@dataclass(frozen=True, eq=False)
class Received:
    """What a layout and a dispatch gave to a rank.  symbols: of both."""

    num_tokens_per_rank: object
    recv_x: object
    recv_topk_idx: object
    recv_topk_weights: object
    per_expert: list
    handle: object
    symbols: tuple


class NormalCalls:
    """One rank's calls of a `Job`.  machine: gives arrays of the library that the calls take."""

    def __init__(self, comm, buffer, job, machine):
        self._comm = comm
        self._buffer = buffer
        self._job = job
        self._rank = rank = comm.rank
        self._machine = machine
        x = job.xs[rank]
        self._x = tuple(map(machine.give, x)) if isinstance(x, tuple) else machine.give(x)
        self._topk_idx = machine.give(job.topk_idxs[rank])
        self._topk_weights = machine.give(job.topk_weights[rank])

    @staticmethod
    def buffer_options(job):
        """Keywords of the job's `Buffer`."""
        return {"arena_limit_bytes": arena_bytes(job) or None}

    @staticmethod
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

    def aligner(self, timeout_s):
        """A context that gives what aligns the ranks, see `measure.align`."""
        return aligner(self._comm, self._machine, timeout_s)

    def dispatch(self):
        """`Received`."""
        buffer, stream = self._buffer, self._machine.stream
        num_tokens_per_rank, _, num_tokens_per_expert, is_token_in_rank, _ = \
            buffer.get_dispatch_layout(self._topk_idx, self._job.settings.num_experts,
                                       stream=stream)
        symbols = buffer.last_launch
        recv_x, recv_topk_idx, recv_topk_weights, per_expert, handle, _ = buffer.dispatch(
            self._x, num_tokens_per_rank=num_tokens_per_rank, is_token_in_rank=is_token_in_rank,
            num_tokens_per_expert=num_tokens_per_expert, topk_idx=self._topk_idx,
            topk_weights=self._topk_weights, num_worst_tokens=self._job.num_worst_tokens,
            stream=stream)
        return Received(num_tokens_per_rank, recv_x, recv_topk_idx, recv_topk_weights, per_expert,
                        handle, symbols + buffer.last_launch)

    def arrays(self, received):
        """name -> copy of what was received, of NumPy."""
        rows = self._rows(received)
        return {
            "rank_prefix_matrix": np.array(received.handle[0]),
            "recv_src_idx": received.handle.recv_src_idx[rows].copy(),
            "recv_topk_idx": received.recv_topk_idx.copy(),
            "recv_topk_weights": received.recv_topk_weights[rows].copy(),
            **{name: array.copy() for name, array in named_rows(received.recv_x, rows).items()},
            "num_recv_tokens_per_expert_list": np.array(received.per_expert, dtype=np.int64),
        }

    def traffic(self, received, arrays):
        """`Traffic` by the `arrays` of what was received, which may be wrong."""
        settings = self._job.settings
        recv_from = np.diff(arrays["rank_prefix_matrix"][:, self._rank].astype(np.int64),
                            prepend=0)
        idx, num_local = arrays["recv_topk_idx"], self._job.num_local_experts
        row = dispatch_row_bytes(settings) + combine_row_bytes(settings)
        return Traffic(
            num_sent=int(np.array(received.num_tokens_per_rank).sum()),
            recv_from=recv_from,
            expert_load=np.bincount(idx[(idx >= 0) & (idx < num_local)], minlength=num_local),
            payload_from=recv_from * row,
        )

    def experts(self, received):
        """bfloat16 [received rows, H] of NumPy: what the experts make of them."""
        rows, x = self._rows(received), received.recv_x
        x = tuple(part[rows] for part in x) if isinstance(x, tuple) else x[rows]
        return self._job.experts.apply(x, received.recv_topk_idx[rows],
                                       received.recv_topk_weights[rows],
                                       self._rank * self._job.num_local_experts)

    def placed(self, received, y):
        """What combine takes: the experts' rows over what was received, or elsewhere; weights."""
        if self._job.settings.combine == "pull":
            self._machine.store(received.recv_x, self._machine.give(y))
            return received.recv_x, received.recv_topk_weights
        pushed = np.zeros((len(received.recv_topk_idx), y.shape[1]), dtype=y.dtype)
        pushed[:len(y)] = y
        return self._machine.give(pushed), received.recv_topk_weights.copy()

    def combine(self, received, placed):
        """name -> array of the results, of the calls' library."""
        y, weights = placed
        combined_x, combined_topk_weights, _ = self._buffer.combine(
            y, received.handle, topk_weights=weights, stream=self._machine.stream)
        return {"combined_x": combined_x, "combined_topk_weights": combined_topk_weights}

    def _rows(self, received):
        """Those received."""
        return slice(int(received.handle[0][-1, self._rank]))


def named_rows(recv_x, rows):
    """Rows of recv_x as {"recv_x": ...}, and "recv_scales" where it is a pair."""
    if isinstance(recv_x, tuple):
        return {"recv_x": recv_x[0][rows], "recv_scales": recv_x[1][rows]}
    return {"recv_x": recv_x[rows]}


def arena_bytes(job):
    """The arena of worst-case mode, in which nobody waits for it to grow; else 0: it grows.

    Room for the result and for the rows that combine may be sent, in which a token has one row
    per rank at most, each array on lines of its own.
    """
    settings = job.settings
    if not settings.worst:
        return 0
    extra = 12 * settings.num_topk + 4      # index, weight and source of a row
    staged = max(map(len, job.topk_idxs)) * min(settings.num_ranks, settings.num_topk)
    nbytes = (job.num_worst_tokens * (dispatch_row_bytes(settings) + extra)
              + staged * (combine_row_bytes(settings) + extra))
    return (-(-nbytes // ARENA_LINE) + 8) * ARENA_LINE
