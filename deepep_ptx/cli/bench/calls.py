# SPDX-License-Identifier: MIT
"""A case's call on one rank: what it needs, what it returns, and what has to come out."""

from deepep_ptx import config
from deepep_ptx.cli.measure.inputs import DTYPES
from deepep_ptx.reference import FP8_GROUP

HANDLE_WHATS = ("cached", "combine-pull", "combine-push")


class Arrays:
    """One rank's inputs of a `Job`, where its kernels reach them; y is None without a combine."""

    def __init__(self, job, rank, machine):
        self.xs = {dtype: _each(machine.give, job.xs[dtype][rank])
                   for dtype in DTYPES if dtype in job.xs}
        self.topk_idx = machine.give(job.topk_idxs[rank])
        self.topk_weights = machine.give(job.topk_weights[rank])
        self.y = machine.give(job.ys[rank][:job.received[rank].num_recv]) if job.ys else None


class Placed:
    """A dispatch of one rank's `Arrays` that stays: its layout, and if asked for its handle and
    its rows in the arena.  Made by all ranks together.

    received: name -> array of it, {} without a handle; until `give_back`.
    """

    def __init__(self, machine, buffer, arrays, experts, with_handle):
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(
            arrays.topk_idx, experts, stream=machine.stream)
        self.layout = {"num_tokens_per_rank": per_rank, "num_tokens_per_expert": per_expert,
                       "is_token_in_rank": in_rank, "topk_idx": arrays.topk_idx,
                       "topk_weights": arrays.topk_weights}
        self.received = {}
        if not with_handle:
            return
        self.rows, topk_idx, self.topk_weights, _, self.handle, _ = buffer.dispatch(
            arrays.xs["bf16"], stream=machine.stream, **self.layout)
        self.received = _named_dispatch(self.rows, topk_idx, self.topk_weights, self.handle)

    def give_back(self, machine, arrays):
        """Write what the experts make of the rows over them."""
        if self.received and arrays.y is not None:
            machine.store(self.rows, arrays.y)
        self.received = {}


class Call:
    """A case's call on one rank: calling it queues it, and returns name -> array, and the "event".

    Keywords are those of the buffer's method, such as `async_finish`.  arrays, placed: of the rank.
    timed: what its rounds measure.
    """

    timed = ("kernel", "call")

    def __init__(self, case, machine, buffer, arrays, placed, worst_rows):
        self.case = case
        self.buffer = buffer
        self._stream = machine.stream
        self.arrays = arrays
        self.placed = placed
        self._worst_rows = worst_rows
        # Of the class: a bound method would keep this alive, and with it device memory.
        self._call = getattr(Call, "_" + case.what.partition("-")[0])

    def __call__(self, **options):
        return self._call(self, stream=self._stream, **options)

    def _layout(self, **options):
        per_rank, _, per_expert, in_rank, event = self.buffer.get_dispatch_layout(
            self.arrays.topk_idx, self.case.experts, **options)
        return {"num_tokens_per_rank": per_rank, "num_tokens_per_expert": per_expert,
                "is_token_in_rank": in_rank, "event": event}

    def _dispatch(self, **options):
        worst_rows = 0 if self.case.what == "dispatch-wait" else self._worst_rows
        recv_x, recv_idx, recv_weights, _, handle, event = self.buffer.dispatch(
            self.arrays.xs[self.case.dtype], num_worst_tokens=worst_rows, **options,
            **self.placed.layout)
        return _named_dispatch(recv_x, recv_idx, recv_weights, handle) | {"event": event}

    def _cached(self, **options):
        recv_x, *_, event = self.buffer.dispatch(self.arrays.xs[self.case.dtype],
                                                 handle=self.placed.handle, **options)
        return _named_rows(recv_x) | {"event": event}

    def _combine(self, **options):
        y = self.placed.rows if self.case.what == "combine-pull" else self.arrays.y
        x, weights, event = self.buffer.combine(y, self.placed.handle,
                                                topk_weights=self.placed.topk_weights, **options)
        return {"combined_x": x, "combined_topk_weights": weights, "event": event}


def wanted(case, job, rank):
    """name -> NumPy array of what a case's call has to return."""
    if case.what == "layout":
        return job.of_layout(rank)
    if case.what == "cached":
        return job.of_rows(rank, case.dtype)
    if case.what.startswith("combine"):
        return job.of_combine(rank)
    return job.of_dispatch(rank, case.dtype, worst=case.what == "dispatch")


def arena_bytes(cases, ranks):
    """Bytes of an arena in which no result of these cases has to be copied: for what stays, for
    the rows that a combine pushes, and for three results, of which one is not free yet."""
    stays = {case.shape(ranks) for case in cases if case.what in HANDLE_WHATS}
    return (max(config.staging_bytes(case.tokens, case.hidden, case.topk, ranks) for case in cases)
            + 3 * max(_slot_bytes(case.shape(ranks), case.dtype) for case in cases)
            + sum(_slot_bytes(shape, "bf16") for shape in stays))


def _slot_bytes(shape, dtype):
    itemsize, num_scales = (1, shape.hidden // FP8_GROUP) if dtype == "fp8" else (2, 0)
    return config.slot_bytes(shape.worst_rows, shape.hidden, shape.topk, itemsize, num_scales, 8)


def _named_dispatch(recv_x, recv_idx, recv_weights, handle):
    return _named_rows(recv_x) | {
        "recv_topk_idx": recv_idx, "recv_topk_weights": recv_weights,
        "recv_src_idx": handle.recv_src_idx, "rank_prefix_matrix": handle[0]}


def _named_rows(recv_x):
    return dict(zip(("recv_x", "recv_scales"), recv_x, strict=True)) \
        if isinstance(recv_x, tuple) else {"recv_x": recv_x}


def _each(give, rows):
    return tuple(map(give, rows)) if isinstance(rows, tuple) else give(rows)
