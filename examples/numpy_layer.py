# SPDX-License-Identifier: MIT
"""python examples/numpy_layer.py [--executor emu|cuda] [--ranks N]: a mixture-of-experts layer on
NumPy arrays alone, without torch, and on the CPU executor without a GPU.

Checked against the same layer without ranks.  All values are small integers, which bfloat16 holds
exactly, so both must agree to the last bit.
"""

import argparse

import numpy as np
from ml_dtypes import bfloat16

from deepep_ptx import Buffer, run_ranks

NUM_TOKENS, HIDDEN, TOPK, EXPERTS_PER_RANK = 128, 512, 4, 4


def experts(x, idx, weights, scale):
    """Expert e multiplies a row by scale[e]; a row's results are added with their weights."""
    chosen = np.where(idx >= 0, weights * scale[idx], 0)
    return (chosen.sum(axis=1, keepdims=True) * x.astype(np.float32)).astype(bfloat16)


def make_inputs(rank, num_experts):
    """x, topk_idx with some unused choices, and topk_weights."""
    rng = np.random.default_rng(rank)
    x = rng.integers(-2, 3, (NUM_TOKENS, HIDDEN)).astype(bfloat16)
    topk_idx = np.argsort(rng.random((NUM_TOKENS, num_experts)))[:, :TOPK].copy()
    topk_idx[rng.random(topk_idx.shape) < 0.25] = -1
    topk_weights = rng.integers(0, 3, topk_idx.shape).astype(np.float32)
    return x, topk_idx, topk_weights


def rank_main(comm):
    """Returns (rows received, whether the result is that of the layer without ranks)."""
    num_experts = comm.size * EXPERTS_PER_RANK
    mine = slice(comm.rank * EXPERTS_PER_RANK, (comm.rank + 1) * EXPERTS_PER_RANK)
    x, topk_idx, topk_weights = make_inputs(comm.rank, num_experts)
    scale = 1.0 + np.arange(num_experts) % 3

    with Buffer(comm) as buffer:
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(topk_idx, num_experts)
        recv_x, recv_idx, recv_weights, _, handle, _ = buffer.dispatch(
            x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert, topk_idx=topk_idx, topk_weights=topk_weights)
        # A view of the arena: what is stored there is combined without a copy.
        recv_x[:] = experts(recv_x, recv_idx, recv_weights, scale[mine])
        combined, _, _ = buffer.combine(recv_x, handle)
    return len(recv_idx), np.array_equal(combined, experts(x, topk_idx, topk_weights, scale))


def main():
    parser = argparse.ArgumentParser(description="A mixture-of-experts layer on NumPy arrays.")
    parser.add_argument("--executor", choices=("emu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--ranks", type=int, default=4)
    args = parser.parse_args()
    results = run_ranks(rank_main, args.ranks, executor=args.executor)
    for rank, (rows, same) in enumerate(results):
        print(f"rank {rank}: {rows} rows received, {'bit-exact' if same else 'WRONG'}")
    raise SystemExit(not all(same for _, same in results))


if __name__ == "__main__":
    main()
