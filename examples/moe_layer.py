# SPDX-License-Identifier: MIT
"""A mixture-of-experts layer over a `Buffer`, on torch tensors: what the launchers here share."""

import torch

NUM_TOKENS, HIDDEN, NUM_EXPERTS, TOPK = 512, 2048, 64, 8


def run(buffer, device, seed=0):
    """Dispatch random tokens, double them at their experts, combine; returns the largest error.

    Each rank that a token goes to doubles its row, so the sum is 2 * ranks * x.
    """
    torch.manual_seed(seed + buffer.rank)
    x = torch.randint(-8, 9, (NUM_TOKENS, HIDDEN), device=device).bfloat16()
    topk_weights, topk_idx = torch.rand(NUM_TOKENS, NUM_EXPERTS, device=device).topk(TOPK)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(topk_idx, NUM_EXPERTS)
    recv_x, _, recv_weights, counts, handle, _ = buffer.dispatch(
        x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert, topk_idx=topk_idx, topk_weights=topk_weights)
    recv_x *= 2                                        # the experts' work, in place
    combined, _, _ = buffer.combine(recv_x, handle, topk_weights=recv_weights)
    expected = 2 * in_rank.sum(dim=1, keepdim=True) * x
    print(f"rank {buffer.rank}: received {len(recv_x)} rows, {sum(counts)} for its experts; "
          f"{', '.join(buffer.last_launch)}")
    return (combined.float() - expected.float()).abs().max().item()
