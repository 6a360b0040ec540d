# SPDX-License-Identifier: MIT
"""Calls that fail, as workloads have them between others; after each the buffer is as before."""

import numpy as np
from ml_dtypes import bfloat16

from deepep_ptx.cli.check.rounds import ARENA_BYTES, dispatch, layout_of, open_buffer
from deepep_ptx.config import slot_bytes
from deepep_ptx.errors import CapacityError, DeepEPError, DeepEPTimeoutError, RankMismatchError

AT_ONCE_S = 1e-7                # a wait of more than 64 polls gives up
LONG = 8 << 10                  # hidden of rows that take longer than that


def refused(comm, buffer, calls, inputs, policy):
    """Rows that do not fit are refused on all ranks, and so is what was queued behind them."""
    layout = layout_of(buffer, inputs)
    must_raise(CapacityError, dispatch, buffer, inputs, layout, num_sms=calls.sms,
                num_worst_tokens=1)
    later = {"async_finish": True, "num_sms": calls.sms}
    rows, *_, handle, _ = dispatch(buffer, inputs, layout, num_worst_tokens=1, **later)
    buffer.dispatch(inputs.xs[comm.rank], handle=handle, **later)
    buffer.combine(rows, handle, **later)
    must_raise(CapacityError, buffer.check)
    room = slot_bytes(inputs.worst, calls.hidden, calls.topk, 2, 0, 8)
    failed = False
    with open_buffer(comm, calls, policy, num_nvl_bytes=0, arena_limit_bytes=room) as full:
        rows, *_, handle, _ = dispatch(full, inputs, layout, num_sms=calls.sms,
                                       num_worst_tokens=inputs.worst)
        must_raise(CapacityError, full.dispatch, inputs.xs[comm.rank], handle=handle,
                    num_sms=calls.sms)
        try:
            full.combine(np.array(rows), handle, num_sms=calls.sms)
        except CapacityError:
            failed = True
        del rows
    # A rank that waits for no rows needs no room, and may not have heard of those that have none.
    if not any(comm.allgather(failed)):
        raise DeepEPError("a combine without room for the rows ended well")


def mistaken(comm, buffer, calls, inputs, policy):
    """Arguments that only the device finds wrong: experts, counts, another rank's call."""
    is_last = comm.rank == comm.size - 1
    idx = np.zeros((600, calls.topk), calls.idx_dtype)      # for several CTAs
    idx[::100] = inputs.num_experts
    must_raise(ValueError, buffer.get_dispatch_layout, idx, inputs.num_experts)
    per_rank, *layout = layout_of(buffer, inputs)
    must_raise(ValueError if is_last else DeepEPError, dispatch, buffer, inputs,
                (per_rank + np.int32(is_last), *layout), num_sms=calls.sms)
    rows, *_, handle, _ = dispatch(buffer, inputs, layout_of(buffer, inputs), num_sms=calls.sms)
    if is_last:
        must_raise(RankMismatchError, buffer.combine, rows, handle, num_sms=calls.sms)
    else:
        must_raise(RankMismatchError, buffer.dispatch, inputs.xs[comm.rank], handle=handle,
                    num_sms=calls.sms)


def late_dispatch(comm, buffer, calls, inputs, policy):
    """The last rank does not come: the others give up, and all begin again."""
    if comm.rank != comm.size - 1:
        must_raise(DeepEPTimeoutError, dispatch, buffer, inputs, layout_of(buffer, inputs),
                    num_sms=calls.sms)
    buffer.reset()


def late_combine(comm, buffer, calls, inputs, policy):
    """The last rank comes once the others have given up: it learns of it, and all begin again."""
    layout = layout_of(buffer, inputs)
    rows, *_, handle, _ = dispatch(buffer, inputs, layout, num_sms=calls.sms)
    if comm.rank == comm.size - 1:
        comm.barrier()
    y = rows if calls.pulls(comm.rank) else np.array(rows)
    must_raise(DeepEPTimeoutError, buffer.combine, y, handle, num_sms=calls.sms)
    if comm.rank != comm.size - 1:
        comm.barrier()
    del y, rows, handle
    buffer.reset()


def impatient(comm, buffer, calls, inputs, policy):
    """Bulk loads that may come later than the limit of a wait."""
    layout = layout_of(buffer, inputs)
    rows, *_, handle, _ = dispatch(buffer, inputs, layout, num_sms=calls.sms)
    y = np.array(rows)
    # Ranks that have given up could not make an arena grow together with the others.
    with open_buffer(comm, calls, policy, AT_ONCE_S, num_nvl_bytes=ARENA_BYTES) as hasty:
        may_time_out(comm, hasty, dispatch, hasty, inputs, layout, num_sms=calls.sms)
        may_time_out(comm, hasty, hasty.combine, y, handle, num_sms=calls.sms)
        pulled = hasty.get_combine_buffer(*y.shape)
        pulled[:] = y
        may_time_out(comm, hasty, hasty.combine, pulled, handle, num_sms=calls.sms)
        del pulled


def slow_rows(comm, buffer, calls, inputs, policy):
    """Rank 0 gives up on a long row of the last rank while bulk loads of others are under way."""
    last, num = comm.size - 1, 0 if comm.rank else 33
    idx = np.zeros((num, 2), np.int64) + (last - 1) * calls.experts
    idx[num - 1:, 0] = last * calls.experts
    x = np.zeros((num, LONG), bfloat16)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, inputs.num_experts)
    rows, *_, handle, _ = buffer.dispatch(
        x, num_tokens_per_rank=per_rank, num_tokens_per_expert=per_expert,
        is_token_in_rank=in_rank, topk_idx=idx, topk_weights=np.ones(idx.shape, np.float32))
    y = np.array(rows)
    with open_buffer(comm, calls, policy, AT_ONCE_S, num_nvl_bytes=4 * ARENA_BYTES) as hasty:
        if comm.rank < last:
            y = hasty.get_combine_buffer(*y.shape)
            y[:] = 0
        may_time_out(comm, hasty, hasty.combine, y, handle, num_sms=1)
        del y


class Gone(Exception):
    """A rank fails between two calls."""


def left(comm, buffer, calls, inputs, policy):
    """The last rank leaves a buffer while the others are in a call: they hear of it at once."""
    try:
        with open_buffer(comm, calls, policy) as left:
            if comm.rank == comm.size - 1:
                raise Gone
            dispatch(left, inputs, layout_of(left, inputs), num_sms=calls.sms)
    except (Gone, DeepEPTimeoutError):
        comm.barrier()
        return
    raise DeepEPError("a dispatch without one rank ended well")


def may_time_out(comm, buffer, call, *args, **options):
    """All ranks begin again where some did not wait for the end of the call."""
    if any(comm.allgather(may_raise(DeepEPTimeoutError, call, *args, **options))):
        buffer.reset()


def may_raise(kind, call, *args, **options):
    """Whether `call(*args, **options)` raises a `kind` of error."""
    try:
        call(*args, **options)
    except kind:
        return True
    return False


def must_raise(kind, call, *args, **options):
    """`call(*args, **options)`, which raises an error of type `kind`, or of one of several, or this
    does."""
    if not may_raise(kind, call, *args, **options):
        raise DeepEPError(f"{call.__name__} ended well where it must raise {kind}")


