# SPDX-License-Identifier: MIT
"""TensorRT-LLM: a communicator of MPI in place of a group, packed FP4 rows out, BF16 rows back."""

import numpy as np
import torch
from deep_ep import Buffer

from deepep_ptx import reference
from tests.consumers import common

HIDDEN = 256
GROUP = 16      # FP4 elements of a scale, which is one byte


class VariableLengthBuffer:
    """Holds a buffer, and makes a larger one where a layer needs more."""

    def __init__(self, place):
        self.place = place
        self.buffer = None

    def reserve(self, hidden, dtype):
        hidden_bytes = hidden * max(2, dtype.itemsize)
        num_nvl_bytes = num_rdma_bytes = 0
        for config in (Buffer.get_dispatch_config(self.place.size),
                       Buffer.get_combine_config(self.place.size)):
            num_nvl_bytes = max(config.get_nvl_buffer_size_hint(hidden_bytes, self.place.size),
                                num_nvl_bytes)
            num_rdma_bytes = max(config.get_rdma_buffer_size_hint(hidden_bytes, self.place.size),
                                 num_rdma_bytes)
        held = self.buffer
        if (held is None or held.num_nvl_bytes < num_nvl_bytes
                or held.num_rdma_bytes < num_rdma_bytes):
            self.buffer = Buffer(None, num_nvl_bytes, num_rdma_bytes, comm=self.place.group)

    def dispatch(self, x, topk_idx, topk_weights):
        per_rank, per_rdma_rank, per_expert, in_rank, event = self.buffer.get_dispatch_layout(
            topk_idx, self.place.num_experts)
        assert event.event is None
        recv_x, recv_idx, recv_weights, counts, handle, event = self.buffer.dispatch(
            x, topk_idx=topk_idx, topk_weights=topk_weights, num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_rdma_rank, is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert)
        assert event.event is None
        return recv_x, recv_idx, recv_weights, counts, handle

    def combine(self, x, handle):
        combined, _, event = self.buffer.combine(x, handle)
        assert event.event is None
        return combined


def fp4_pairs(place, seed, num_tokens):
    """Of every rank: packed rows, and scales as the bits of float32."""
    pairs = []
    for rank, count in enumerate(num_tokens):
        rng = np.random.default_rng([seed, rank, 4])
        rows = rng.integers(0, 256, (count, HIDDEN // 2), np.uint8)
        scales = rng.integers(0, 256, (count, HIDDEN // GROUP), np.uint8)
        pairs.append((rows, scales.view(np.float32)))
    return pairs


def forward(place, is_fp4=False):
    held = VariableLengthBuffer(place)
    for seed in range(4):
        held.reserve(HIDDEN, torch.bfloat16)
        num_tokens = common.uneven(place, seed, 24)
        batch = common.make_batch(place, seed, num_tokens, HIDDEN, 0.1)
        xs = fp4_pairs(place, seed, num_tokens) if is_fp4 else batch.xs
        received = batch.received(place.num_experts, xs)
        mine, x = received[place.rank], xs[place.rank]
        if is_fp4:
            rows, scales = x
            x = place.give(rows), place.give(scales.view(np.uint8)).view(torch.float32)
        else:
            x = place.give(x)
        recv_x, recv_idx, recv_weights, counts, handle = held.dispatch(
            x, place.give(batch.topk_idxs[place.rank]), place.give(batch.topk_weights[place.rank]))
        common.assert_received(mine, recv_x, recv_idx, recv_weights, counts)
        # Experts give back whole rows, wider in bytes than what they got.
        outputs = common.by_rank(place, seed + 9, [(r.num_recv, HIDDEN) for r in received])
        combined = held.combine(place.give(outputs[place.rank]), handle)
        want, _ = reference.combine(outputs, received)[place.rank]
        common.assert_same(combined, want, "combined_x")
    place.barrier()
    held.buffer = None


PROGRAMS = {
    "forward": forward,
    "forward fp4": lambda place: forward(place, is_fp4=True),
}
