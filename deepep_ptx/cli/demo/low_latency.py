# SPDX-License-Identifier: MIT
"""The main job in low-latency mode: a dispatch that packs rows by expert, and a combine."""

import contextlib
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from deepep_ptx import Buffer, reference
from deepep_ptx.cli.demo.rows import combine_row_bytes, dispatch_row_bytes
from deepep_ptx.cli.demo.traffic import Traffic
from deepep_ptx.cli.measure.align import LowLatencyAligner
from deepep_ptx.cli.measure.settings import EMU_SMS

LOW_HALF = 0xFFFFFFFF   # of an entry of layout_range: the number of rows


@dataclass(frozen=True, eq=False)
class Received:
    """What a dispatch gave to a rank.  symbols: its kernels."""

    recv_x: object
    recv_count: object
    handle: object
    symbols: tuple


class LowLatencyCalls:
    """One rank's calls of a `Job`.  machine: gives arrays of the library that the calls take."""

    def __init__(self, comm, buffer, job, machine):
        self._comm = comm
        self._buffer = buffer
        self._job = job
        self._rank = rank = comm.rank
        self._machine = machine
        self._x = machine.give(job.xs[rank])
        self._topk_idx = machine.give(job.topk_idxs[rank])
        self._topk_weights = machine.give(job.topk_weights[rank])
        # On the CPU executor each CTA takes memory and time, and adds nothing.
        self._options = {"stream": machine.stream,
                         "num_sms": None if comm.executor.keeps_time else EMU_SMS}

    @staticmethod
    def buffer_options(job):
        """Keywords of the job's `Buffer`."""
        s = job.settings
        return {"low_latency_mode": True, "reduce": s.reduce,
                "num_rdma_bytes": Buffer.get_low_latency_rdma_size_hint(
                    job.max_tokens, s.hidden, s.num_ranks, s.num_experts, num_topk=s.num_topk,
                    reduce=s.reduce)}

    @staticmethod
    def expected(job):
        """Each rank's arrays by the reference, name -> array; rows as of `packed`."""
        received = reference.low_latency_dispatch(
            job.xs, job.topk_idxs, job.max_tokens, job.settings.num_experts,
            use_fp8=job.settings.dtype == "fp8")
        ys = [expert_rows(job, r.rank, r.recv_x, r.recv_count) for r in received]
        combined = reference.low_latency_combine(ys, received, job.topk_idxs, job.topk_weights,
                                                 job.settings.reduce)
        for r, combined_x in zip(received, combined, strict=True):
            yield {**named_arrays(r.recv_x, r.recv_count, r.src_info, r.layout_range),
                   "combined_x": combined_x}

    def aligner(self, timeout_s):
        """A context that gives what aligns the ranks, see `measure.align`."""
        s = self._job.settings
        rows = s.num_experts * self._job.max_tokens     # of recv_x, its scales, src_info
        self._machine.reserve(2 * rows * (2 * s.hidden + s.hidden // 32 + 4))
        return contextlib.nullcontext(LowLatencyAligner(self._comm, self._machine, self._buffer))

    def dispatch(self):
        """`Received`."""
        settings = self._job.settings
        recv_x, recv_count, handle, _, _ = self._buffer.low_latency_dispatch(
            self._x, self._topk_idx, self._job.max_tokens, settings.num_experts,
            use_fp8=settings.dtype == "fp8", **self._options)
        return Received(recv_x, recv_count, handle, self._buffer.last_launch)

    def arrays(self, received):
        """name -> copy of what was received, of NumPy; rows as of `packed`."""
        return named_arrays(received.recv_x, received.recv_count, *received.handle[:2])

    def traffic(self, received, arrays):
        """`Traffic` by what was received, which may be wrong."""
        settings = self._job.settings
        src_info, layout_range = received.handle[:2]
        tokens_of = [[tokens[rows_of(entry)] for tokens, entry in
                      zip(src_info, layout_range[:, source], strict=True)]
                     for source in range(settings.num_ranks)]
        recv_from = np.array([len(np.unique(np.concatenate(tokens))) for tokens in tokens_of])
        num_choices = np.array([sum(map(len, tokens)) for tokens in tokens_of])
        given_back = recv_from if settings.reduce == "rank" else num_choices
        num_tokens_per_rank, _, _ = reference.layout(
            self._job.topk_idxs[self._rank], settings.num_experts, settings.num_ranks)
        return Traffic(
            num_sent=int(num_tokens_per_rank.sum()),
            recv_from=recv_from,
            expert_load=np.maximum(arrays["recv_count"], 0).astype(np.int64),
            payload_from=(recv_from * dispatch_row_bytes(settings)
                          + given_back * combine_row_bytes(settings)),
        )

    def experts(self, received):
        """bfloat16 [L, R * max_tokens, H] of NumPy: what each expert makes of its rows."""
        return expert_rows(self._job, self._rank, received.recv_x, received.recv_count)

    def placed(self, received, y):
        """The experts' rows where combine takes them."""
        return self._machine.give(y)

    def combine(self, received, placed):
        """name -> array of the results, of the calls' library."""
        combined_x, _, _ = self._buffer.low_latency_combine(
            placed, self._topk_idx, self._topk_weights, received.handle, **self._options)
        return {"combined_x": combined_x}


def expert_rows(job, rank, recv_x, recv_count):
    """bfloat16 [L, R * max_tokens, H]: f_e of the rows that each expert of a rank has received,
    +0.0 behind them.  The weights come with combine."""
    rows = recv_x[0] if isinstance(recv_x, tuple) else recv_x
    y = np.zeros(rows.shape, ml_dtypes.bfloat16)
    for local_expert, count in enumerate(recv_count):
        x = tuple(part[local_expert, :count] for part in recv_x) \
            if isinstance(recv_x, tuple) else recv_x[local_expert, :count]
        y[local_expert, :count] = job.experts.apply(
            x, np.zeros((count, 1), np.int64), np.ones((count, 1), np.float32),
            rank * job.num_local_experts + local_expert)
    return y


def named_arrays(recv_x, recv_count, src_info, layout_range):
    """name -> copy of what a rank has received, with its rows alone."""
    parts = {"recv_x": recv_x}
    if isinstance(recv_x, tuple):
        parts = dict(zip(("recv_x", "recv_scales"), recv_x, strict=True))
    return {"recv_count": np.array(recv_count), "layout_range": np.array(layout_range),
            "src_info": packed(src_info, recv_count),
            **{name: packed(array, recv_count) for name, array in parts.items()}}


def packed(array, recv_count):
    """The rows that were received, expert below expert; counts may be wrong."""
    return np.concatenate([of_expert[:max(0, count)]
                           for of_expert, count in zip(array, recv_count, strict=True)])


def rows_of(entry):
    """The rows that an entry of layout_range names, which may be wrong."""
    first = max(0, int(entry) >> 32)
    return slice(first, first + (int(entry) & LOW_HALF))
