# SPDX-License-Identifier: MIT
"""Megatron-LM: a fused dispatch and combine as autograd functions over one global buffer."""

import numpy as np
import torch
from deep_ep import Buffer
from deep_ep.utils import EventHandle, EventOverlap

from deepep_ptx import reference
from tests.consumers import common

HIDDEN = 64
NUM_LAYERS = 58         # of DeepSeek-V3, those with experts


class Globals:
    """Of one rank's process; ranks of `run_ranks` share one, hence an object."""

    def __init__(self):
        self.buffer = None

    def get_buffer(self, place, hidden_bytes):
        """The buffer, made again only for another group or more memory."""
        num_nvl_bytes = num_rdma_bytes = 0
        for config in (Buffer.get_dispatch_config(place.size),
                       Buffer.get_combine_config(place.size)):
            num_nvl_bytes = max(config.get_nvl_buffer_size_hint(hidden_bytes, place.size),
                                num_nvl_bytes)
            num_rdma_bytes = max(config.get_rdma_buffer_size_hint(hidden_bytes, place.size),
                                 num_rdma_bytes)
        held = self.buffer
        if (held is None or held.group != place.group or held.num_nvl_bytes < num_nvl_bytes
                or held.num_rdma_bytes < num_rdma_bytes):
            self.buffer = Buffer(place.group, num_nvl_bytes, num_rdma_bytes)
        return self.buffer


def start(later):
    """The event behind which an asynchronous call starts."""
    return EventOverlap(EventHandle()) if later else None


class Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, topk_idx, topk_weights, held, place, later):
        buffer = held.get_buffer(place, x.size(1) * max(x.element_size(), 2))
        per_rank, per_rdma_rank, per_expert, in_rank, event = buffer.get_dispatch_layout(
            topk_idx, place.num_experts, previous_event=start(later), async_finish=later,
            allocate_on_comm_stream=later)
        recv_x, recv_idx, recv_weights, counts, handle, event = buffer.dispatch(
            x, topk_idx=topk_idx, topk_weights=topk_weights, num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_rdma_rank, is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert, previous_event=event if later else None,
            async_finish=later, allocate_on_comm_stream=later)
        if later:
            event.current_stream_wait()
        ctx.held, ctx.place, ctx.handle, ctx.later = held, place, handle, later
        return recv_x, recv_idx, recv_weights, torch.tensor(counts), handle

    @staticmethod
    def backward(ctx, grad_x, grad_idx, grad_weights, grad_counts, grad_handle):
        buffer = ctx.held.get_buffer(ctx.place, grad_x.size(1) * max(grad_x.element_size(), 2))
        grad_x, grad_weights, event = buffer.combine(
            grad_x.contiguous(), ctx.handle, topk_weights=grad_weights.float(),
            previous_event=start(ctx.later), async_finish=ctx.later,
            allocate_on_comm_stream=ctx.later)
        if ctx.later:
            event.current_stream_wait()
        return grad_x, None, grad_weights, None, None, None


class Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, held, place, handle, later):
        buffer = held.get_buffer(place, x.size(1) * max(x.element_size(), 2))
        combined, _, event = buffer.combine(
            x, handle=handle, async_finish=later, previous_event=start(later),
            allocate_on_comm_stream=later)
        if later:
            event.current_stream_wait()
        ctx.held, ctx.place, ctx.handle, ctx.later = held, place, handle, later
        return combined

    @staticmethod
    def backward(ctx, grad):
        buffer = ctx.held.get_buffer(ctx.place, grad.size(1) * max(grad.element_size(), 2))
        grad_x, _, _, _, _, event = buffer.dispatch(
            grad.contiguous(), handle=ctx.handle, previous_event=start(ctx.later),
            async_finish=ctx.later, allocate_on_comm_stream=ctx.later)
        if ctx.later:
            event.current_stream_wait()
        return grad_x, None, None, None, None


class Layer:
    """One layer: its inputs, what it keeps for the backward pass, and what all that must be."""

    def __init__(self, place, seed, num_tokens, unused):
        self.place = place
        self.batch = common.make_batch(place, seed, num_tokens, HIDDEN, unused)
        self.received = self.batch.received(place.num_experts)
        self.grads = common.by_rank(place, seed + 1, [x.shape for x in self.batch.xs])
        self.weight_grads = [
            common.numbers(np.random.default_rng([seed, rank, 5]),
                           *received.recv_topk_weights.shape).astype("f4")
            for rank, received in enumerate(self.received)]

    def forward(self, held, later):
        place, batch = self.place, self.batch
        self.x, weights = (place.give(arrays[place.rank]).requires_grad_()
                           for arrays in (batch.xs, batch.topk_weights))
        self.weights = weights
        recv_x, recv_idx, self.recv_weights, counts, self.handle = Dispatch.apply(
            self.x, place.give(batch.topk_idxs[place.rank]), weights, held, place, later)
        for result in (recv_x, recv_idx, self.recv_weights):
            common.record(result)
        common.assert_received(self.received[place.rank], recv_x, recv_idx, self.recv_weights,
                               counts.tolist())
        # An expert that negates is exact, and what it returns is no array of the arena's.
        self.out = Combine.apply(-recv_x, held, place, self.handle, later)
        want, _ = reference.combine([-r.recv_x for r in self.received], self.received)[place.rank]
        common.assert_same(self.out, want, "combined_x")
        return recv_x

    def backward(self):
        place, rank = self.place, self.place.rank
        torch.autograd.backward(
            [self.out, self.recv_weights],
            [place.give(self.grads[rank]), place.give(self.weight_grads[rank])])
        rows = reference.cached_dispatch(self.grads, self.received)
        want_x, want_weights = reference.combine([-r for r in rows], self.received,
                                                 self.weight_grads)[rank]
        common.assert_same(self.x.grad, want_x, "gradient of x")
        common.assert_same(self.weights.grad, want_weights, "gradient of topk_weights")


def finish(place, held):
    """The buffer is dropped, not destroyed: when no rank is in a call."""
    place.barrier()
    held.buffer = None


def train(place, later=False, unused=0.0, steps=3):
    """Forward and backward passes with changing token counts over one buffer."""
    held, first = Globals(), None
    with torch.autograd.set_multithreading_enabled(False):
        for step in range(steps):
            layers = [Layer(place, 100 * step + number, common.uneven(place, step + number, 24),
                            unused) for number in range(3)]
            for layer in layers:
                layer.forward(held, later)
            for layer in reversed(layers):
                layer.backward()
            first = first or held.buffer
            assert held.buffer is first and first.group is place.group
    finish(place, held)


def keep_handles(place, later=False, steps=3):
    """Every layer keeps its newest handle until its next pass, and uses it before that."""
    held, kept = Globals(), {}
    for step in range(steps):
        for number in range(NUM_LAYERS):
            layer = Layer(place, 1000 * step + number, common.uneven(place, step + number, 8), 0.1)
            if number in kept:
                kept[number].backward()
            layer.forward(held, later)
            kept[number] = layer
    assert len(kept) == NUM_LAYERS
    kept.clear()
    finish(place, held)


def free_inputs(place, later=False):
    """What was dispatched is freed as soon as the call has been waited for."""
    held = Globals()
    for step in range(3):
        layer = Layer(place, step, common.uneven(place, step, 24), 0.0)
        layer.forward(held, later)
        common.free(layer.x)
        layer.backward()
    finish(place, held)


def free_results(place, later=False):
    """What was received is freed as soon as it has been used; its handle is still good."""
    held = Globals()
    for step in range(3):
        layer = Layer(place, step, common.uneven(place, step, 24), 0.0)
        recv_x = layer.forward(held, later)
        common.free(recv_x)
        assert recv_x.untyped_storage().nbytes() == 0
        layer.backward()
        common.free(layer.out)
    finish(place, held)


def same_buffer(place):
    """`buffer.group` is the group that was given, so that a second look does not make another."""
    held = Globals()
    buffer = held.get_buffer(place, 2 * HIDDEN)
    assert buffer.group is place.group and held.get_buffer(place, 2 * HIDDEN) is buffer
    assert (buffer.rank, buffer.group_size) == (place.rank, place.size)
    finish(place, held)


def now(program, **options):
    return lambda place: program(place, **options)


PROGRAMS = {
    "same buffer": same_buffer,
    "train": now(train),
    "train later": now(train, later=True),
    "train with dropped choices": now(train, later=True, unused=0.3),
    "keep handles": now(keep_handles),
    "keep handles later": now(keep_handles, later=True),
    "free inputs": now(free_inputs),
    "free inputs later": now(free_inputs, later=True),
    "free results": now(free_results),
    "free results later": now(free_results, later=True),
}
