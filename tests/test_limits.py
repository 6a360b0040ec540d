# SPDX-License-Identifier: MIT
"""As many ranks and experts as there may be, and what lies beyond one warp or one CTA's bins."""

import numpy as np
import pytest

from deepep_ptx import Buffer, reference, run_ranks
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
