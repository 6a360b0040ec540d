# SPDX-License-Identifier: MIT
"""Low-latency calls against the reference, bit for bit: what tests on both executors share."""

import ml_dtypes
import numpy as np

from deepep_ptx import reference

BF16 = ml_dtypes.bfloat16


def make_inputs(rng, tokens, hidden, num_experts, num_topk, routing="random", idx_dtype=np.int64):
    """(xs, topk_idxs, topk_weights) of ranks with so many tokens each."""
    xs, idxs, weights = [], [], []
    for n in tokens:
        xs.append((rng.standard_normal((n, hidden)) * np.exp2(rng.integers(-8, 8, (n, 1)))
                   ).astype(BF16))
        if routing == "one expert":
            idx = np.full((n, num_topk), -1)
            idx[:, rng.integers(num_topk) if n else 0] = num_experts - 1
        else:
            idx = np.stack([rng.permutation(num_experts)[:num_topk] for _ in range(n)]
                           ).reshape(n, num_topk) if n else np.zeros((0, num_topk), int)
            if routing == "holes":
                idx[rng.random(idx.shape) < 0.3] = -1
        idxs.append(idx.astype(idx_dtype))
        weights.append(rng.random((n, num_topk), dtype=np.float32))
    return xs, idxs, weights


def expert_output(recv_x, received, shrink=1):
    """Rows of bfloat16 for combine: each depends on its row, its expert and its place; times
    `shrink`."""
    rows = recv_x
    if isinstance(rows, tuple):
        rows = rows[0].view(np.uint8).astype(np.float32)
    out = np.zeros(rows.shape, np.float32)
    for expert, count in enumerate(received.recv_count):
        places = np.arange(1, count + 1, dtype=np.float32)[:, None]
        scale = np.float32(shrink * (expert + 1)) / places
        out[expert, :count] = rows[expert, :count].astype(np.float32) * scale
    return out.astype(BF16)


def assert_received(recv_x, recv_count, handle, want):
    """A rank's results and handle are the reference's, as far as these say anything."""
    np.testing.assert_array_equal(recv_count, want.recv_count)
    np.testing.assert_array_equal(handle[1], want.layout_range)
    got, expected = recv_x, want.recv_x
    if not isinstance(got, tuple):
        got, expected = (got,), (expected,)
    for expert, count in enumerate(want.recv_count):
        np.testing.assert_array_equal(handle[0][expert, :count], want.src_info[expert, :count])
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            np.testing.assert_array_equal(np.ascontiguousarray(a[expert, :count]).view(np.uint8),
                                          np.ascontiguousarray(b[expert, :count]).view(np.uint8))


def without_tokens(inputs, masked):
    """The inputs of ranks that do without the tokens of the `masked` ones."""
    return [[of_rank[:0] if rank in masked else of_rank for rank, of_rank in enumerate(of)]
            for of in inputs]


def without_experts(idxs, masked, num_experts):
    """Choices of ranks that do without the experts of the `masked` ones."""
    each = num_experts // len(idxs)
    return [np.where(np.isin(idx // each, masked), -1, idx) for idx in idxs]


def keep(array):
    """The array itself: of NumPy."""
    return array


def round_trip(comm, buffer, inputs, num_experts, max_tokens, *, hook=False, async_finish=False,
               num_sms=None, use_logfmt=False, zero_copy=False, shrink=1, give=keep, get=keep,
               masked=(), came=False, **cast):
    """One dispatch and one combine of this rank, compared with the reference.

    zero_copy: of combine, whose x is zeros then.  shrink: combine's rows are so many times what
    they would be: 2^-12 and less for rows of which nearly all can be encoded.  give, get: an array
    of NumPy as one of another library, and back.  masked: ranks that take no part, with `came`
    none in the combine.
    """
    xs, idxs, weights = inputs
    rank = comm.rank
    sent = inputs if came else without_tokens(inputs, masked)
    want = reference.low_latency_dispatch(*sent[:2], max_tokens, num_experts, **cast)
    keywords = {"return_recv_hook": hook, "async_finish": async_finish, "num_sms": num_sms}
    idx = give(idxs[rank])
    recv_x, count, handle, event, receive = buffer.low_latency_dispatch(
        give(xs[rank]), idx, max_tokens, num_experts, **cast, **keywords)
    finish(event, receive, hook, async_finish)
    recv_x = tuple(map(get, recv_x)) if isinstance(recv_x, tuple) else get(recv_x)
    assert_received(recv_x, get(count), tuple(map(get, handle[:2])), want[rank])
    ys = [expert_output(w.recv_x, w, shrink) for w in want]
    y = ys[rank]
    if zero_copy:
        buffer.get_next_low_latency_combine_buffer(handle)[...] = give(y)
        y = np.zeros_like(y)
    out, event, receive = buffer.low_latency_combine(give(y), idx, give(weights[rank]), handle,
                                                     use_logfmt, zero_copy, **keywords)
    finish(event, receive, hook, async_finish)
    expected = reference.low_latency_combine(
        ys, want, without_experts(sent[1], masked, num_experts), sent[2], buffer.reduce,
        use_logfmt)[rank]
    np.testing.assert_array_equal(get(out).view(np.uint16), expected.view(np.uint16))


def finish(event, receive, hook, async_finish):
    """Do what a caller does before it looks at results."""
    assert (receive is not None) == hook
    if hook:
        receive()
    if async_finish:
        event.current_stream_wait()
