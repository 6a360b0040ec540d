# SPDX-License-Identifier: MIT
"""How many tokens each expert receives: told to hosts that wait, and waited for by no others."""

import ml_dtypes
import numpy as np
import pytest

from deepep_ptx import Buffer, reference, run_ranks

T, H, K = 5, 8, 2


def inputs_of(rank, num_experts):
    rng = np.random.default_rng(rank)
    idx = rng.integers(-1, num_experts, (T, K))
    return (rng.standard_normal((T, H)).astype(ml_dtypes.bfloat16), idx,
            rng.random((T, K), dtype=np.float32))


def dispatch(buffer, x, idx, weights, num_experts, **changes):
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, num_experts)
    return buffer.dispatch(x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                           num_tokens_per_expert=per_expert, topk_idx=idx, topk_weights=weights,
                           **changes)


@pytest.mark.parametrize(("num_ranks", "num_local"), [
    (1, 1), (1, 1024), (2, 129), (3, 7), (5, 64), (8, 32), (33, 3), (64, 2)])
def test_counts(num_ranks, num_local):
    """Lanes side by side add up those of 1, 2, 4, ... ranks, of 64 two each."""
    num_experts = num_ranks * num_local
    inputs = [inputs_of(rank, num_experts) for rank in range(num_ranks)]
    received = reference.dispatch(*map(list, zip(*inputs, strict=True)), num_experts)

    def main(comm):
        with Buffer(comm, 1 << 16) as buffer:
            return dispatch(buffer, *inputs[comm.rank], num_experts, num_sms=1)[3]

    assert run_ranks(main, num_ranks, executor="emu", checks="off") == [
        r.num_recv_tokens_per_expert_list for r in received]
