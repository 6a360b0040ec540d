# SPDX-License-Identifier: MIT
"""python examples/numpy_decode.py [--executor emu|cuda] [--ranks N]: a layer of a decoding step by
low-latency calls, two micro-batches whose rows cross while the other one is computed.

Checked against the same layer without ranks.  All values are small integers, which bfloat16 holds
exactly, so both must agree to the last bit.
"""

import argparse

import numpy as np
from ml_dtypes import bfloat16

from deepep_ptx import Buffer, run_ranks

MAX_TOKENS, HIDDEN, TOPK, EXPERTS_PER_RANK = 16, 512, 4, 4


class Batch:
    """The tokens of one micro-batch on one rank; every rank may have another number of them."""

    def __init__(self, buffer, seed):
        rng = np.random.default_rng([buffer.rank, seed])
        self.buffer = buffer
        self.num_experts = buffer.group_size * EXPERTS_PER_RANK
        tokens = rng.integers(1, MAX_TOKENS + 1)
        self.x = rng.integers(-2, 3, (tokens, HIDDEN)).astype(bfloat16)
        self.topk_idx = np.argsort(rng.random((tokens, self.num_experts)))[:, :TOPK].copy()
        self.topk_weights = rng.integers(0, 3, self.topk_idx.shape).astype(np.float32)

    def send(self):
        """Rows are on their way behind this; the hook takes them."""
        self.recv_x, self.recv_count, self.handle, _, hook = self.buffer.low_latency_dispatch(
            self.x, self.topk_idx, MAX_TOKENS, self.num_experts, use_fp8=False,
            return_recv_hook=True)
        return hook

    def compute(self, scale):
        """Expert e multiplies its rows by scale[e]."""
        for expert, count in enumerate(self.recv_count):
            rows = self.recv_x[expert, :count]
            rows[:] = (rows.astype(np.float32) * scale[expert]).astype(bfloat16)

    def send_back(self):
        self.combined_x, _, hook = self.buffer.low_latency_combine(
            self.recv_x, self.topk_idx, self.topk_weights, self.handle, return_recv_hook=True)
        return hook

    def is_right(self, scale):
        factor = (self.topk_weights * scale[self.topk_idx]).sum(axis=1, keepdims=True)
        return np.array_equal(self.combined_x, (factor * self.x).astype(bfloat16))


def rank_main(comm):
    """Returns (tokens, whether the results are those of the layer without ranks)."""
    scale = 1.0 + np.arange(comm.size * EXPERTS_PER_RANK) % 3
    own = scale[comm.rank * EXPERTS_PER_RANK:][:EXPERTS_PER_RANK]
    with Buffer(comm, low_latency_mode=True) as buffer:
        first, second = Batch(buffer, 0), Batch(buffer, 1)
        first.send()()                      # nothing to compute yet
        hook = second.send()
        first.compute(own)                  # while rows of the second cross
        hook()
        hook = first.send_back()
        second.compute(own)                 # while results of the first do
        hook()
        second.send_back()()
    return (len(first.x) + len(second.x), first.is_right(scale) and second.is_right(scale))


def main():
    parser = argparse.ArgumentParser(description="A layer of a decoding step on NumPy arrays.")
    parser.add_argument("--executor", choices=("emu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--ranks", type=int, default=4)
    args = parser.parse_args()
    results = run_ranks(rank_main, args.ranks, executor=args.executor)
    for rank, (tokens, same) in enumerate(results):
        print(f"rank {rank}: {tokens} tokens, {'bit-exact' if same else 'WRONG'}")
    raise SystemExit(not all(same for _, same in results))


if __name__ == "__main__":
    main()
