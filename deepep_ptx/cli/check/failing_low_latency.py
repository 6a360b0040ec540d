# SPDX-License-Identifier: MIT
"""Low-latency calls that fail, as `failing` has the others."""

import numpy as np
from ml_dtypes import bfloat16

from deepep_ptx.cli.check.failing import AT_ONCE_S, Gone, may_raise, must_raise
from deepep_ptx.cli.check.low_latency import combine, dispatch, of_calls, open_buffer
from deepep_ptx.cli.check.rounds import wrong_array
from deepep_ptx.errors import DeepEPError, DeepEPTimeoutError

NARROW = 256                    # hidden of short rows
MANY_SMS = 11


def mistaken(comm, buffer, calls, inputs, policy):
    """An expert that is not there, casts and handles that differ, an expert named too often."""
    is_last = comm.rank == comm.size - 1
    idx = np.array(inputs.topk_idxs[comm.rank])
    idx[:1] = inputs.num_experts
    dispatch(buffer, calls, inputs, idx, async_finish=True)
    if len(idx):
        must_raise(ValueError, buffer.check)
    # Who finds that they differ may be told so by another rank, which has found it before.
    must_raise(DeepEPError, dispatch, buffer, calls, inputs, round_scale=is_last)
    buffer.reset()
    # The last rank waits for more words than the others send of a row.
    must_raise(DeepEPError, dispatch_to_last, buffer, calls, inputs, 1, 1, use_fp8=not is_last)
    buffer.reset()
    handles = [dispatch(buffer, calls, inputs)[-1] for _ in range(2)]
    must_raise(DeepEPError, combine, buffer, calls, inputs, handles[is_last])
    buffer.reset()
    if is_last:
        # Its first CTA, where it comes late, finds the rank aborted.
        must_raise((ValueError, DeepEPError), dispatch_to_last, buffer, calls, inputs,
                   calls.max_tokens, calls.topk)
    else:
        may_raise(DeepEPTimeoutError, dispatch_to_last, buffer, calls, inputs, 1, 1)
    buffer.reset()


def dispatch_to_last(buffer, calls, inputs, tokens, times, **changes):
    """A dispatch of so many tokens, each of which names the last rank's first expert so often."""
    idx = np.full((tokens, calls.topk), -1, calls.idx_dtype)
    idx[:, :times] = inputs.num_experts - calls.experts
    buffer.low_latency_dispatch(np.zeros((tokens, calls.hidden), bfloat16), idx, calls.max_tokens,
                                inputs.num_experts, num_sms=calls.sms, **changes)


def late_dispatch(comm, buffer, calls, inputs, policy):
    """The last rank does not come: the others give up, also what they have queued behind it, and
    all begin again."""
    if comm.rank != comm.size - 1:
        *_, handle = dispatch(buffer, calls, inputs, async_finish=True,
                              dispatch_wait_recv_cost_stats=np.zeros(comm.size, np.int64))
        combine(buffer, calls, inputs, handle, async_finish=True)
        dispatch(buffer, calls, inputs, async_finish=True)
        must_raise(DeepEPTimeoutError, buffer.check)
    buffer.reset()


def late_combine(comm, buffer, calls, inputs, policy):
    """The last rank comes once the others have given up, and all begin again."""
    *_, handle = dispatch(buffer, calls, inputs)
    if comm.rank == comm.size - 1:
        comm.barrier()
        # What the others have sent is enough where rows cross, and there nobody asks them.
        may_raise(DeepEPTimeoutError, combine, buffer, calls, inputs, handle)
    else:
        must_raise(DeepEPTimeoutError, combine, buffer, calls, inputs, handle,
                   combine_wait_recv_cost_stats=np.zeros(comm.size, np.int64))
        comm.barrier()
    buffer.reset()


def impatient(comm, buffer, calls, inputs, policy):
    """The last rank's counts come before its rows, which may come later than the limit of a wait:
    its last CTA, which tells them, has no tokens of its own, the others have ten each."""
    idx = np.zeros((10 * (MANY_SMS - 1) if comm.rank == comm.size - 1 else 0, 1), calls.idx_dtype)
    x = np.zeros((len(idx), NARROW), bfloat16)
    with open_buffer(comm, calls, policy, AT_ONCE_S) as hasty:
        # Of its CTAs one may give up before another one enters, which finds the rank aborted.
        failed = may_raise(DeepEPError, hasty.low_latency_dispatch, x, idx, 10 * MANY_SMS,
                           inputs.num_experts, use_fp8=False, num_sms=MANY_SMS)
        if any(comm.allgather(failed)):
            hasty.reset()


def left(comm, buffer, calls, inputs, policy):
    """The last rank leaves a buffer while the others are in a call: they hear of it at once."""
    try:
        with open_buffer(comm, calls, policy) as left:
            dispatch(left, calls, inputs)       # memory for it is the collective of a first one
            if comm.rank == comm.size - 1:
                raise Gone
            dispatch(left, calls, inputs)
    except (Gone, DeepEPTimeoutError):
        comm.barrier()
        return
    raise DeepEPError("a low-latency dispatch without one rank ended well")


def masked(comm, buffer, calls, inputs, policy):
    """The last rank stays away from a combine and what follows, and comes back; its peers mask it,
    and it comes back; it aborts in the middle of a dispatch, and comes back."""
    last = comm.size - 1
    left = inputs.without(last)
    with open_buffer(comm, calls, policy, enable_shrink=True) as shrinking:
        *_, handle = dispatch(shrinking, calls, inputs)
        waits = np.zeros(comm.size, np.int64)
        if comm.rank != last:
            combine(shrinking, calls, inputs, handle, combine_wait_recv_cost_stats=waits)
            must_be_masked(shrinking, last)
            round_without(shrinking, calls, inputs, left)
        comm.barrier()
        if comm.rank == last:
            must_raise(DeepEPTimeoutError, combine, shrinking, calls, inputs, handle)
        shrinking.reset()

        if comm.rank != last:
            shrinking.low_latency_update_mask_buffer(last, mask=True)
            must_be_masked(shrinking, last)
            round_without(shrinking, calls, inputs, left)
        shrinking.low_latency_clean_mask_buffer()

        if comm.rank == last:
            must_raise(ValueError, dispatch_to_last, shrinking, calls, inputs, calls.max_tokens,
                       calls.topk)
        else:
            dispatch(shrinking, calls, inputs, dispatch_wait_recv_cost_stats=waits)
            round_without(shrinking, calls, inputs, left)
            must_be_masked(shrinking, last)
        comm.barrier()
        shrinking.reset()
        dispatch(shrinking, calls, inputs)


def must_be_masked(buffer, rank):
    """That rank alone."""
    status = np.full(buffer.group_size, -1, np.int32)
    buffer.low_latency_query_mask_buffer(status)
    wanted = np.zeros_like(status)
    wanted[rank] = 1
    if (status != wanted).any():
        raise DeepEPError(f"masked: {status}, wanted {wanted}")


def round_without(buffer, calls, inputs, left):
    """A dispatch and a combine of the ranks that are left, whose results are `left`'s."""
    y = left.ys[buffer.rank]
    recv_x, recv_count, handle = dispatch(buffer, calls, inputs)
    combined_x, _ = combine(buffer, calls, inputs, handle, y)
    found = of_calls(calls, recv_x, recv_count, *handle[:2], recv_count * calls.stats, combined_x)
    for name, wanted in left.wanted()[buffer.rank].items():
        wrong = wrong_array("without one rank", buffer.rank, name, found[name], wanted)
        if wrong:
            raise DeepEPError(str(wrong))
