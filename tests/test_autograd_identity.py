# SPDX-License-Identifier: MIT
"""Dispatch and combine are each other's transpose: <dispatch(x), y> = <x, combine(y)>.

All values are small integers, of which bfloat16 and float32 round none: both sides are equal.
"""

import runpy
from pathlib import Path

import numpy as np
import pytest

from deepep_ptx import Buffer, run_ranks
from tests.test_roundtrip import BF16, NUM_EXPERTS, counts, route

EXAMPLE = Path(__file__).parents[1] / "examples" / "autograd.py"
HIDDEN, TOPK = 24, 4

LAYOUTS = [
    (1, "even", "random"), (2, "uneven", "holes"), (3, "some zero", "random"),
    (4, "uneven", "crowd"), (4, "some zero", "holes"),
]


def integers(rng, *shape, dtype=BF16, most=2):
    return rng.integers(-most, most + 1, shape).astype(dtype)


def dot(a, b):
    """Exactly."""
    assert a.shape == b.shape
    return int((a.astype(np.int64) * b.astype(np.int64)).sum())


def sums(results):
    """Both sides of each identity, summed over the ranks."""
    return {name: tuple(sum(r[name][side] for r in results) for side in (0, 1))
            for name in results[0]}


def assert_equal_sides(results):
    for name, (left, right) in sums(results).items():
        assert left == right, name


def inputs_of(comm, tokens, routing):
    """num_tokens alike from one seed on all ranks, the rest of each rank's own."""
    num_tokens = counts(tokens, comm.size, np.random.default_rng(7))[comm.rank]
    rng = np.random.default_rng([comm.size, comm.rank])
    return rng, num_tokens, route(routing, num_tokens, TOPK, rng)


def layout_of(buffer, topk_idx):
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(topk_idx, NUM_EXPERTS)
    return {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank,
            "num_tokens_per_expert": per_expert}


@pytest.mark.parametrize("later", [{}, {"async_finish": True}], ids=["wait", "event"])
@pytest.mark.parametrize("has_topk", [False, True], ids=["plain", "topk"])
@pytest.mark.parametrize(("num_ranks", "tokens", "routing"), LAYOUTS)
def test_rows(num_ranks, tokens, routing, has_topk, later):
    def main(comm):
        rng, num_tokens, topk_idx = inputs_of(comm, tokens, routing)
        x, again = integers(rng, num_tokens, HIDDEN), integers(rng, num_tokens, HIDDEN)
        topk_weights = integers(rng, num_tokens, TOPK, dtype=np.float32)
        topk = {"topk_idx": topk_idx, "topk_weights": topk_weights} if has_topk else {}
        with Buffer(comm) as buffer:
            recv_x, _, _, _, handle, _ = buffer.dispatch(x, **layout_of(buffer, topk_idx), **topk)
            cached, *_, event = buffer.dispatch(again, handle=handle, **later)
            event.current_stream_wait()
            y = integers(rng, *recv_x.shape)
            pushed, _, event = buffer.combine(y, handle, **later)
            event.current_stream_wait()
            sides = {"dispatch": (dot(recv_x, y), dot(x, pushed)),
                     "cached dispatch": (dot(cached, y), dot(again, pushed)),
                     # of what combine makes of rows, dispatch is the gradient
                     "combine": (dot(buffer.combine(y, handle)[0], again), dot(y, cached))}
            recv_x[...] = y
            pulled = buffer.combine(recv_x, handle)[0]
            np.testing.assert_array_equal(pulled, pushed)
            return sides

    assert_equal_sides(run_ranks(main, num_ranks, executor="emu"))


@pytest.mark.parametrize(("num_ranks", "tokens", "routing"), LAYOUTS)
def test_weights(num_ranks, tokens, routing):
    """A weight arrives where its expert is, and is the constant 0 elsewhere; the sums that combine
    makes go back to every row of the token."""
    def main(comm):
        rng, num_tokens, topk_idx = inputs_of(comm, tokens, routing)
        x = integers(rng, num_tokens, HIDDEN)
        weights = integers(rng, num_tokens, TOPK, dtype=np.float32)
        with Buffer(comm) as buffer:
            recv_x, recv_idx, recv_weights, _, handle, _ = buffer.dispatch(
                x, **layout_of(buffer, topk_idx), topk_idx=topk_idx, topk_weights=weights)
            grad = integers(rng, *recv_weights.shape, dtype=np.float32)
            masked = np.where(recv_idx < 0, np.float32(0), grad)
            back = buffer.combine(recv_x, handle, topk_weights=masked)[1]
            sides = {"dispatch": (dot(recv_weights, grad), dot(weights, back))}

            u = integers(rng, *recv_weights.shape, dtype=np.float32)
            summed = buffer.combine(recv_x, handle, topk_weights=u)[1]
            grad = integers(rng, num_tokens, TOPK, dtype=np.float32)
            # float32 [T, 4] as rows of 16 bytes, which a dispatch moves like any others
            rows = buffer.dispatch(grad.view(np.int16), handle=handle)[0]
            gathered = np.array(rows).view(np.float32)
            sides["combine"] = (dot(summed, grad), dot(u, gathered))

            everybody, prefix = comm.allgather(grad), handle[0][:, comm.rank]
            source = np.searchsorted(prefix, np.arange(len(gathered)), side="right")
            want = [everybody[s][t] for s, t in zip(source, handle.recv_src_idx, strict=True)]
            np.testing.assert_array_equal(gathered, np.reshape(want, gathered.shape))
            return sides

    assert_equal_sides(run_ranks(main, num_ranks, executor="emu"))


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_worst_case_rows_past_the_total_do_not_count(num_ranks):
    """With num_worst_tokens, combine adds the rows that were received and no others."""
    def main(comm):
        rng, num_tokens, topk_idx = inputs_of(comm, "uneven", "holes")
        x = integers(rng, num_tokens, HIDDEN)
        with Buffer(comm, 1 << 20) as buffer:
            recv_x, recv_idx, _, _, handle, _ = buffer.dispatch(
                x, **layout_of(buffer, topk_idx), topk_idx=topk_idx,
                topk_weights=integers(rng, num_tokens, TOPK, dtype=np.float32),
                num_worst_tokens=33 * num_ranks)
            num = int(handle[0][-1, comm.rank])
            assert (recv_idx[num:] == -1).all()
            y = integers(rng, *recv_x.shape)
            out = buffer.combine(y, handle)[0]
            return {"dispatch": (dot(recv_x[:num], y[:num]), dot(x, out))}

    assert_equal_sides(run_ranks(main, num_ranks, executor="emu"))


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_the_example(num_ranks):
    """examples/autograd.py: every gradient as PyTorch finds it without communication."""
    pytest.importorskip("torch")
    rank_main = runpy.run_path(str(EXAMPLE))["rank_main"]
    assert run_ranks(rank_main, num_ranks, executor="emu") == [[]] * num_ranks
