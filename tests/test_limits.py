# SPDX-License-Identifier: MIT
"""As many ranks and experts as there may be, what lies beyond one warp or one CTA's bins, and where
32-bit arithmetic ends."""

import numpy as np
import pytest

from deepep_ptx import Buffer, _limits, reference, run_ranks
from deepep_ptx.errors import CapacityError, DeepEPError
from tests.hostile_arrays import Exports
from tests.test_roundtrip import BF16, NUM_EXPERTS, PLAIN, assert_round_trip, make_inputs

MAX_RANKS, MAX_LOCAL_EXPERTS = 64, 1024
NUM_BINS = 4096             # experts that a CTA of layout counts in shared memory


@pytest.mark.parametrize("policy", ["ld_na", "bulk"])
@pytest.mark.parametrize("combine", ["pull", "mixed"])
def test_more_ranks_than_lanes(policy, combine):
    """Ranks 32 and up are the warps' second look at a token's places."""
    case = PLAIN | {"num_ranks": NUM_EXPERTS, "hidden": 8, "num_topk": 32, "policy": policy,
                    "combine": combine, "tokens": "some zero", "num_sms": 2}
    assert_round_trip(case, [make_inputs(case, 48)])


def test_a_bit_for_each_of_the_most_ranks():
    """A token's ranks are one mask of 64 bits."""
    num_experts = 2 * MAX_RANKS
    rng = np.random.default_rng(64)
    idxs = [rng.integers(-1, num_experts, (40, 8)) for _ in range(MAX_RANKS)]
    idxs[0][:3] = [[0] * 8, [num_experts - 1] * 8, [-1, 62, 63, 64, 65, 126, 127, 0]]

    def main(comm):
        with Buffer(comm) as buffer:
            per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idxs[comm.rank],
                                                                             num_experts)
        return per_rank, per_expert, in_rank

    for got, idx in zip(run_ranks(main, MAX_RANKS, executor="emu"), idxs, strict=True):
        for array, want in zip(got, reference.layout(idx, num_experts, MAX_RANKS), strict=True):
            np.testing.assert_array_equal(array, want)


def test_more_experts_than_bins():
    """Those beyond are counted in global memory, which the next layout finds clean again."""
    num_ranks = NUM_BINS // MAX_LOCAL_EXPERTS + 1
    num_experts = num_ranks * MAX_LOCAL_EXPERTS
    rng = np.random.default_rng(4096)
    xs = [rng.standard_normal((300, 8)).astype(BF16) for _ in range(num_ranks)]
    idxs = [rng.integers(0, num_experts, (300, 4)) for _ in range(num_ranks)]
    for idx in idxs:
        idx[::3] = [NUM_BINS - 1, NUM_BINS, num_experts - 1, 0]
    received = reference.dispatch(xs, idxs, None, num_experts)

    def main(comm):
        rank = comm.rank
        with Buffer(comm) as buffer:
            for _ in range(2):
                per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idxs[rank],
                                                                                 num_experts)
            recv_x, _, _, counts, *_ = buffer.dispatch(
                xs[rank], num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                num_tokens_per_expert=per_expert)
            return per_rank, per_expert, in_rank, np.array(recv_x), counts

    for rank, got in enumerate(run_ranks(main, num_ranks, executor="emu")):
        want = reference.layout(idxs[rank], num_experts, num_ranks)
        for array, expected in zip(got, (*want, received[rank].recv_x), strict=False):
            np.testing.assert_array_equal(array, expected)
        assert got[-1] == received[rank].num_recv_tokens_per_expert_list


# -- where 32-bit arithmetic ends -----------------------------------------------------------------

MAX_TOKENS, MAX_CHOICE_ROWS, MAX_HIDDEN = (1 << 25) - 1, (1 << 26) - 1, (1 << 24) - 1


def declared(shape, dtype):
    """An array of that shape; nobody looks at its memory."""
    array = np.zeros(1, dtype)
    return Exports("__array_interface__", {"shape": shape, "typestr": array.dtype.str,
                                           "data": (1 << 20, False), "version": 3}, array)


def test_the_limits_are_those_of_32_bits():
    """Kernels count tokens times ranks, tokens times choices and rows times choices as int32."""
    assert MAX_TOKENS * max(MAX_RANKS, 32) < 1 << 31 <= (MAX_TOKENS + 1) * MAX_RANKS
    assert MAX_CHOICE_ROWS * 32 < 1 << 31 <= (MAX_CHOICE_ROWS + 1) * 32
    assert (_limits.MAX_TOKENS, _limits.MAX_CHOICE_ROWS, _limits.MAX_HIDDEN) == (
        MAX_TOKENS, MAX_CHOICE_ROWS, MAX_HIDDEN)


@pytest.mark.parametrize(("method", "arguments", "text"), [
    ("get_dispatch_layout", {"topk_idx": declared((MAX_TOKENS + 1, 1), np.int64), "num_experts": 2},
     "topk_idx: num_tokens must be at most 33554431, got 33554432"),
    ("get_dispatch_layout", {"topk_idx": declared((1 << 32, 4), np.int64), "num_experts": 2},
     "topk_idx: num_tokens must be at most 33554431, got 4294967296"),
    ("dispatch", {"x": declared((MAX_TOKENS + 1, 16), np.uint8)},
     "x: num_tokens must be at most 33554431, got 33554432"),
    ("dispatch", {"x": declared((1 << 32, 16), np.uint8)},
     "x: num_tokens must be at most 33554431, got 4294967296"),
    ("dispatch", {"x": declared((3, 1 << 24), np.uint8)},
     "x: hidden must be at most 16777215, got 16777216"),
    ("dispatch", {"x": declared((3, 1 << 33), np.int64)},
     "x: hidden must be at most 16777215, got 8589934592"),
    ("dispatch", {"x": np.lib.stride_tricks.as_strided(np.zeros(16, np.uint8), (1, 1 << 61))},
     "x: hidden must be at most 16777215, got 2305843009213693952"),
    ("dispatch", {"x": (np.zeros((3, 16), np.uint8), declared((3, 1 << 24), np.uint8))},
     "x[1]: num_scales must be at most 16777215, got 16777216"),
    ("dispatch", {"x": np.zeros((3, 16), np.uint8), "num_worst_tokens": MAX_CHOICE_ROWS + 1},
     "num_worst_tokens: must be in [0, 67108863], got 67108864"),
    ("dispatch", {"x": np.zeros((3, 16), np.uint8), "combine_hidden": MAX_HIDDEN + 1},
     "combine_hidden: must be in [0, 16777215], got 16777216"),
])
def test_beyond(method, arguments, text):
    def main(comm):
        buffer = Buffer(comm)
        with pytest.raises(ValueError) as caught:
            getattr(buffer, method)(**arguments)
        assert str(caught.value) == text
        assert not buffer.last_launch

    run_ranks(main, 2, executor="emu")


def test_the_most_worst_case_tokens():
    """Choices of all rows are below 2^31; at 2^32 the loop over them did not end."""
    idx = np.zeros((1, 32), np.int64)

    def main(comm):
        with Buffer(comm) as buffer:
            per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, 1)
            with pytest.raises((CapacityError, MemoryError)):
                buffer.dispatch(np.zeros((1, 1 << 14), np.uint8), num_tokens_per_rank=per_rank,
                                is_token_in_rank=in_rank, num_tokens_per_expert=per_expert,
                                topk_idx=idx, topk_weights=np.zeros((1, 32), np.float32),
                                num_worst_tokens=MAX_CHOICE_ROWS)
                buffer.check()

    run_ranks(main, 1, executor="emu")


def test_a_negative_count_is_told_as_it_is():
    idx = np.zeros((2, 1), np.int64)

    def main(comm):
        with Buffer(comm, 1 << 14) as buffer:
            per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, 2)
            arguments = {"x": np.zeros((2, 16), np.uint8), "is_token_in_rank": in_rank}
            with pytest.raises((ValueError, DeepEPError)) as caught:
                buffer.dispatch(**arguments, num_tokens_per_rank=-per_rank - np.int32(1),
                                num_tokens_per_expert=per_expert)
            assert str(caught.value) == ("num_tokens_per_rank: -3 tokens for rank 0, "
                                         "is_token_in_rank has 2"), str(caught.value)
            *_, counts, _, _ = buffer.dispatch(
                **arguments, num_tokens_per_rank=per_rank,
                num_tokens_per_expert=per_expert * np.int32(-1))
            assert counts == [-4, 0][comm.rank:][:1]        # of both ranks, as they said

    run_ranks(main, 2, executor="emu")
