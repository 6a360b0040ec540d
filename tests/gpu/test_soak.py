# SPDX-License-Identifier: MIT
"""Many rounds of mixed sizes on GPUs, bit for bit: ranks on GPUs of their own, and sharing them."""

import os

import ml_dtypes
import numpy as np
import pytest

from deepep_ptx import Buffer, reference, run_ranks
from deepep_ptx._cuda import device_count

NUM_ROUNDS = int(os.environ.get("DEEPEP_PTX_SOAK_ROUNDS", 1000))
NUM_INPUTS = 24
NUM_EXPERTS = 48
HIDDENS = (8, 520, 1024, 2048, 7168)
LAYOUTS = {
    "2 ranks on 2 GPUs": [0, 1],
    "8 ranks on 2 GPUs": [0, 1, 0, 1, 0, 1, 0, 1],
    "2 ranks on 1 GPU": [0, 0],
}


def make_case(rng, num_ranks):
    """One call's inputs on all ranks, uneven, with its results by the reference."""
    hidden, num_topk = int(rng.choice(HIDDENS)), int(rng.integers(1, 10))
    xs, idxs, weights = [], [], []
    for _ in range(num_ranks):
        tokens = int(rng.choice([0, 1, 17, 64, 200]))
        xs.append(rng.standard_normal((tokens, hidden), np.float32).astype(ml_dtypes.bfloat16))
        idx = rng.random((tokens, NUM_EXPERTS)).argsort(axis=1)[:, :num_topk].astype(np.int64)
        idx[rng.random(idx.shape) < 0.1] = -1
        idxs.append(idx)
        weights.append(rng.random((tokens, num_topk), np.float32))
    received = reference.dispatch(xs, idxs, weights, NUM_EXPERTS)
    combined = reference.combine([r.recv_x for r in received], received,
                                 [r.recv_topk_weights for r in received])
    return xs, idxs, weights, received, combined


def rank_main(comm, cases, order, policy, num_sms):
    Buffer.set_num_sms(num_sms)
    with Buffer(comm, num_nvl_bytes=1 << 28, policy=policy, timeout_s=20.0) as buffer:
        for number in range(NUM_ROUNDS):
            xs, idxs, weights, received, combined = cases[order[number]]
            want, rank = received[comm.rank], comm.rank
            per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(
                idxs[rank], NUM_EXPERTS)
            recv_x, recv_idx, recv_weights, counts, handle, _ = buffer.dispatch(
                xs[rank], num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                num_tokens_per_expert=per_expert, topk_idx=idxs[rank], topk_weights=weights[rank])
            got_x, got_weights, _ = buffer.combine(recv_x, handle, topk_weights=recv_weights)
            where = f"round {number}, rank {rank}, case {order[number]}"
            assert same_bits(recv_x, want.recv_x), f"recv_x: {where}"
            assert np.array_equal(recv_idx, want.recv_topk_idx), f"recv_topk_idx: {where}"
            assert same_bits(recv_weights, want.recv_topk_weights), f"recv_topk_weights: {where}"
            assert counts == list(want.num_recv_tokens_per_expert_list), where
            assert same_bits(got_x, combined[rank][0]), f"combined_x: {where}"
            assert same_bits(got_weights, combined[rank][1]), f"combined_topk_weights: {where}"
    return NUM_ROUNDS


def same_bits(got, want):
    return np.array_equal(np.ascontiguousarray(got).view(np.uint8),
                          np.ascontiguousarray(want).view(np.uint8))


@pytest.mark.parametrize("policy", ["fast", "ld_relaxed_sys", "bulk"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bit_exact(layout, policy):
    devices = LAYOUTS[layout]
    if max(devices) >= device_count():
        pytest.skip(f"needs {max(devices) + 1} GPUs, there is {device_count()}")
    rng = np.random.default_rng(len(devices))
    cases = [make_case(rng, len(devices)) for _ in range(NUM_INPUTS)]
    order = rng.integers(0, NUM_INPUTS, NUM_ROUNDS)
    num_sms = 12 if len(devices) == 8 else 24
    done = run_ranks(rank_main, len(devices), cases, order, policy, num_sms, executor="cuda",
                     devices=devices)
    assert done == [NUM_ROUNDS] * len(devices)
