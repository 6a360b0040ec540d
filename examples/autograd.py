# SPDX-License-Identifier: MIT
"""python examples/autograd.py [--executor emu|cuda] [--ranks N]: training through a `Buffer`.

Dispatch and combine are each other's gradient: the gradient of a row that was sent is the sum of
those of its copies, the gradient of a sum goes to everything that was added.

Checked against PyTorch's own autograd of the same layer without any communication.  All values are
small integers, so that both must agree to the last bit.
"""

import argparse

import torch

from deepep_ptx import Buffer, run_ranks

NUM_TOKENS, HIDDEN, TOPK, EXPERTS_PER_RANK = 48, 256, 4, 4


class Dispatch(torch.autograd.Function):
    """Rows and top-k weights to the ranks of their experts.

    The handle, which `Combine` needs, keeps the dispatch's arena slot as long as the graph lives.
    """

    @staticmethod
    def forward(ctx, x, topk_idx, topk_weights, buffer, num_experts):
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(topk_idx, num_experts)
        recv_x, recv_idx, recv_weights, counts, handle, _ = buffer.dispatch(
            x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert, topk_idx=topk_idx, topk_weights=topk_weights)
        ctx.buffer, ctx.handle = buffer, handle
        ctx.save_for_backward(recv_idx)
        ctx.mark_non_differentiable(recv_idx)
        return recv_x, recv_idx, recv_weights, counts, handle

    @staticmethod
    def backward(ctx, grad_x, grad_idx, grad_weights, grad_counts, grad_handle):
        # A choice of another rank's expert arrived as a constant 0.
        (recv_idx,) = ctx.saved_tensors
        grad_weights = grad_weights.masked_fill(recv_idx < 0, 0)
        grad_x, grad_weights, _ = ctx.buffer.combine(grad_x.contiguous(), ctx.handle,
                                                     topk_weights=grad_weights)
        return grad_x, None, grad_weights, None, None


class Combine(torch.autograd.Function):
    """The sum, at each token's rank, of the rows that the experts' ranks made of it."""

    @staticmethod
    def forward(ctx, x, handle, buffer):
        ctx.buffer, ctx.handle = buffer, handle
        combined, _, _ = buffer.combine(x, handle)
        return combined

    @staticmethod
    def backward(ctx, grad):
        recv_grad, *_ = ctx.buffer.dispatch(grad.contiguous(), handle=ctx.handle)
        return recv_grad, None, None


def experts(x, idx, weights, scale):
    """Expert e multiplies a row by scale[e]; a row's results are added with their weights."""
    chosen = torch.where(idx >= 0, weights * scale[idx.clamp(min=0)], 0)
    return (chosen.sum(dim=1, keepdim=True) * x.float()).bfloat16()


def make_inputs(rank, num_experts, device):
    """x, topk_idx with some unused choices, topk_weights, and the gradient of the result."""
    random = torch.Generator().manual_seed(rank)

    def integers(low, high, *shape):
        return torch.randint(low, high + 1, shape, generator=random)

    x = integers(-2, 2, NUM_TOKENS, HIDDEN).bfloat16()
    topk_idx = torch.rand(NUM_TOKENS, num_experts, generator=random).topk(TOPK).indices
    topk_idx[integers(0, 3, NUM_TOKENS, TOPK) == 0] = -1
    topk_weights = integers(0, 2, NUM_TOKENS, TOPK).float()
    grad = integers(-2, 2, NUM_TOKENS, HIDDEN).bfloat16()
    return [array.to(device) for array in (x, topk_idx, topk_weights, grad)]


def rank_main(comm):
    """Returns the gradients that differ: none."""
    device = torch.device("cpu")
    if comm.executor.name == "cuda":
        device = torch.device("cuda", comm.executor.device)
        torch.cuda.set_device(device)
    num_experts = comm.size * EXPERTS_PER_RANK
    mine = slice(comm.rank * EXPERTS_PER_RANK, (comm.rank + 1) * EXPERTS_PER_RANK)
    x, topk_idx, topk_weights, grad = make_inputs(comm.rank, num_experts, device)
    scale = 1.0 + torch.arange(num_experts, device=device) % 2

    ours = [leaf.clone().requires_grad_() for leaf in (x, topk_weights, scale[mine])]
    with Buffer(comm) as buffer:
        recv_x, recv_idx, recv_weights, _, handle = Dispatch.apply(
            ours[0], topk_idx, ours[1], buffer, num_experts)
        out = Combine.apply(experts(recv_x, recv_idx, recv_weights, ours[2]), handle, buffer)
        # In this thread: ranks that share a GPU would share autograd's thread for it, too, and wait
        # in it for each other.
        with torch.autograd.set_multithreading_enabled(False):
            out.backward(grad)

    plain = [leaf.clone().requires_grad_() for leaf in (x, topk_weights, scale)]
    want = experts(plain[0], topk_idx, plain[1], plain[2])
    want.backward(grad)
    # An expert's gradient comes from the tokens of all ranks.
    scale_grad = sum(part.to(device) for part in comm.allgather(plain[2].grad))[mine]

    pairs = {
        "result": (out, want),
        "gradient of x": (ours[0].grad, plain[0].grad),
        "gradient of topk_weights": (ours[1].grad, plain[1].grad),
        "gradient of the experts' scale": (ours[2].grad, scale_grad),
    }
    return [name for name, (got, expected) in pairs.items() if not torch.equal(got, expected)]


def main():
    parser = argparse.ArgumentParser(description="Gradients through dispatch and combine.")
    parser.add_argument("--executor", choices=("emu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--ranks", type=int, default=4)
    args = parser.parse_args()
    different = run_ranks(rank_main, args.ranks, executor=args.executor)
    for rank, names in enumerate(different):
        print(f"rank {rank}: {', '.join(names) + ' differ' if names else 'bit-exact'}")
    raise SystemExit(any(different))


if __name__ == "__main__":
    main()
