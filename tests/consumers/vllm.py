# SPDX-License-Identifier: MIT
"""vLLM's high throughput mode: keywords only, a group of CPUs, micro-batches on a stream of their
own.  And its low latency mode: every call with a hook, which the other micro-batch may be there to
call."""

import contextlib

import deep_ep
import torch

from deepep_ptx import reference
from tests.consumers import common

HIDDEN = 256
NUM_NVL_BYTES = 1024 << 20      # by default
RANKS_WITH_CONFIG = (2, 4, 8, 16, 24, 32, 64, 128, 144, 160)


class PrepareAndFinalize:
    """Dispatch and combine of a layer; its annotations are evaluated where it is defined."""

    def __init__(self, buffer: deep_ep.Buffer, place, is_async):
        self.buffer = buffer
        self.place = place
        self.is_async = is_async
        self.handles = [None, None]     # by micro-batch

    def dispatch_config(self) -> deep_ep.Config | None:
        if self.buffer.group_size not in RANKS_WITH_CONFIG:
            return None
        return deep_ep.Buffer.get_dispatch_config(self.buffer.group_size)

    def combine_config(self) -> deep_ep.Config | None:
        if self.buffer.group_size not in RANKS_WITH_CONFIG:
            return None
        return deep_ep.Buffer.get_combine_config(self.buffer.group_size)

    def prepare(self, x, topk_ids, topk_weights, number=0, capture=None):
        """Starts; returns a function that waits and gives what was received."""
        previous_event = capture() if capture else None
        per_rank, per_rdma_rank, per_expert, in_rank, event = self.buffer.get_dispatch_layout(
            topk_idx=topk_ids, num_experts=self.place.num_experts, previous_event=previous_event,
            async_finish=False, allocate_on_comm_stream=False)
        recv_x, recv_ids, recv_weights, counts, self.handles[number], event = self.buffer.dispatch(
            x=x, handle=None, num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_rdma_rank, is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert, topk_idx=topk_ids, topk_weights=topk_weights,
            expert_alignment=1, config=self.dispatch_config(), previous_event=previous_event,
            async_finish=self.is_async and not capture, allocate_on_comm_stream=False)
        return lambda: self.receive(event, recv_x, recv_ids, recv_weights, counts)

    def receive(self, event: deep_ep.EventOverlap, recv_x, recv_ids, recv_weights, counts):
        if event.event is not None:
            event.current_stream_wait()
        return recv_x, recv_ids, recv_weights, counts

    def finalize(self, output, x, number=0, capture=None):
        """Starts; returns a function that waits and fills `output`."""
        assert x.dtype == torch.bfloat16
        combined, _, event = self.buffer.combine(
            x=x, handle=self.handles[number], topk_weights=None, config=self.combine_config(),
            previous_event=capture() if capture else None,
            async_finish=self.is_async and not capture, allocate_on_comm_stream=False)

        def receive():
            if event.event is not None:
                event.current_stream_wait()
            output.copy_(combined, non_blocking=True)

        return receive


class Batch(common.RowsBatch):
    """A batch, and what it must become."""

    def inputs(self):
        """x, topk_ids int64, topk_weights, and where the result goes."""
        give, rank = self.place.give, self.place.rank
        x = self.batch.xs[rank]
        return (tuple(map(give, self.pairs[rank])) if self.is_fp8 else give(x),
                give(self.batch.topk_idxs[rank]).to(torch.int64),
                give(self.batch.topk_weights[rank]), give(x))

    def experts(self, recv_x, recv_ids, recv_weights, counts):
        """Rows times the sum of their weights, as `weight_and_reduce` leaves them."""
        mine = self.received[self.place.rank]
        common.assert_received(mine, recv_x, recv_ids, recv_weights, counts)
        # Kernels want experts of all ranks, and some other rank's where there is none.
        first = self.place.rank * common.EXPERTS_PER_RANK
        other = self.place.num_experts - 1 if first == 0 else 0
        ids = torch.where(recv_ids == -1, other, recv_ids + first)
        assert (ids >= 0).all()
        per_expert = torch.bincount(recv_ids[recv_ids >= 0], minlength=common.EXPERTS_PER_RANK)
        assert per_expert.tolist() == counts
        rows = common.dequantized(*recv_x) if self.is_fp8 else recv_x
        return (rows.float() * recv_weights[:, :1]).bfloat16()

    def check(self, output):
        outputs = []
        for r in self.received:
            rows = reference.per_token_cast_back(*r.recv_x) if self.is_fp8 else r.recv_x
            outputs.append(reference.round_to_bf16(
                reference.widen(rows) * r.recv_topk_weights[:, :1]))
        want, _ = reference.combine(outputs, self.received)[self.place.rank]
        common.assert_same(output, want, "output")


def make_buffer(place):
    buffer = deep_ep.Buffer(group=place.group, num_nvl_bytes=NUM_NVL_BYTES, num_rdma_bytes=0,
                            low_latency_mode=False, num_qps_per_rank=1, explicitly_destroy=True)
    assert buffer.explicitly_destroy and buffer.num_nvl_bytes == NUM_NVL_BYTES
    return buffer


def forward(place, is_async=False, is_fp8=False):
    """One batch after another."""
    buffer = make_buffer(place)
    layer = PrepareAndFinalize(buffer, place, is_async)
    for seed in range(4):
        batch = Batch(place, seed, HIDDEN, is_fp8)
        x, topk_ids, topk_weights, output = batch.inputs()
        received = layer.prepare(x, topk_ids, topk_weights)
        rows = batch.experts(*received())
        layer.finalize(output, rows)()
        batch.check(output)
    buffer.destroy()


def micro_batches(place, is_fp8=False):
    """Two that take turns, their calls on a stream of their own behind what is captured."""
    buffer = make_buffer(place)
    layer = PrepareAndFinalize(buffer, place, True)
    is_cuda = place.device.type == "cuda"
    side = torch.cuda.Stream() if is_cuda else None

    def on_side():
        return torch.cuda.stream(side) if is_cuda else contextlib.nullcontext()

    def back():
        if is_cuda:
            torch.cuda.current_stream().wait_stream(side)

    for seed in range(3):
        batches = [Batch(place, 10 * seed + number, HIDDEN, is_fp8) for number in range(2)]
        given = [batch.inputs() for batch in batches]
        received, finished = [], []
        for number, (x, topk_ids, topk_weights, _) in enumerate(given):
            event = buffer.capture()    # on the stream of the computation
            with on_side():
                received.append(layer.prepare(x, topk_ids, topk_weights, number,
                                              lambda event=event: event))
        for number, batch in enumerate(batches):
            back()
            rows = batch.experts(*received[number]())
            event = buffer.capture()
            with on_side():
                finished.append(layer.finalize(given[number][3], rows, number,
                                               lambda event=event: event))
                finished[-1]()
        back()
        for batch, arrays in zip(batches, given, strict=True):
            batch.check(arrays[3])
    buffer.destroy()


# -- low latency ------------------------------------------------------------------------------

MAX_TOKENS_PER_RANK = 16
FEW_HIDDEN = 512                # UE8M0 packs four scales of 128 values
CASTS = {
    "bf16": {"use_fp8": False, "round_scale": False, "use_ue8m0": False},
    "fp8": {"use_fp8": True, "round_scale": False, "use_ue8m0": False},
    "ue8m0": {"use_fp8": True, "round_scale": True, "use_ue8m0": True},
}


class Turns:
    """Micro-batches that take turns: a call of one is made when the hook of the other's has been
    called."""

    def __init__(self):
        self.hook = None

    def register(self, hook):
        self.hook = hook

    def maybe_run(self):
        hook, self.hook = self.hook, None
        if hook is not None:
            hook()


class FewPrepareAndFinalize:
    """Dispatch and combine of a layer of few tokens."""

    def __init__(self, buffer: deep_ep.Buffer, place, cast):
        self.buffer, self.place, self.cast = buffer, place, cast
        self.handles = [None, None]     # by micro-batch

    def prepare(self, x, topk_ids, number=0):
        """Starts; returns the hook, and what is there behind it."""
        assert len(x) <= MAX_TOKENS_PER_RANK
        expert_x, num_tokens, handle, _, hook = self.buffer.low_latency_dispatch(
            x, topk_ids, MAX_TOKENS_PER_RANK, self.place.num_experts, **self.cast,
            async_finish=False, return_recv_hook=True)
        self.handles[number] = handle
        return hook, (expert_x, num_tokens)

    def finalize(self, output, expert_y, topk_ids, topk_weights, number=0, with_hook=False):
        """Starts; returns the hook or None."""
        _, _, hook = self.buffer.low_latency_combine(
            expert_y, topk_ids, topk_weights, self.handles[number], async_finish=False,
            zero_copy=False, return_recv_hook=with_hook, out=output)
        return hook


def make_few_buffer(place):
    num_rdma_bytes = deep_ep.Buffer.get_low_latency_rdma_size_hint(
        num_max_dispatch_tokens_per_rank=MAX_TOKENS_PER_RANK, hidden=FEW_HIDDEN,
        num_ranks=place.size, num_experts=place.num_experts)
    return deep_ep.Buffer(
        group=place.group, num_nvl_bytes=NUM_NVL_BYTES, num_rdma_bytes=num_rdma_bytes,
        low_latency_mode=True, num_qps_per_rank=place.num_experts // place.size,
        allow_nvlink_for_low_latency_mode=True, allow_mnnvl=False, explicitly_destroy=True,
        enable_shrink=False)


def few_forward(place, cast):
    """One batch after another: the hook of a dispatch at once, combine without one."""
    buffer = make_few_buffer(place)
    layer = FewPrepareAndFinalize(buffer, place, CASTS[cast])
    for seed in range(4):
        batch = common.FewBatch(place, seed, FEW_HIDDEN, MAX_TOKENS_PER_RANK, **CASTS[cast])
        x, topk_ids, topk_weights = batch.inputs()
        hook, received = layer.prepare(x, topk_ids)
        hook()
        output = torch.empty_like(x)
        assert layer.finalize(output, batch.experts(*received), topk_ids, topk_weights) is None
        batch.check(output, buffer.reduce)
    buffer.destroy()


def few_micro_batches(place, cast):
    """Two: the rows of one are under way while the other is computed on."""
    buffer, turns = make_few_buffer(place), Turns()
    layer = FewPrepareAndFinalize(buffer, place, CASTS[cast])
    for seed in range(3):
        batches = [common.FewBatch(place, 10 * seed + number, FEW_HIDDEN, MAX_TOKENS_PER_RANK,
                                   **CASTS[cast]) for number in range(2)]
        given = [batch.inputs() for batch in batches]
        received, outputs = [], [torch.empty_like(x) for x, _, _ in given]
        for number, (x, topk_ids, _) in enumerate(given):
            turns.maybe_run()
            hook, results = layer.prepare(x, topk_ids, number)
            turns.register(hook)
            received.append(results)
        for number, batch in enumerate(batches):
            turns.maybe_run()
            rows = batch.experts(*received[number])
            _, topk_ids, topk_weights = given[number]
            turns.maybe_run()
            turns.register(layer.finalize(outputs[number], rows, topk_ids, topk_weights, number,
                                          True))
        turns.maybe_run()
        for batch, output in zip(batches, outputs, strict=True):
            batch.check(output, buffer.reduce)
    buffer.destroy()


PROGRAMS = {
    "forward": forward,
    "forward async": lambda place: forward(place, is_async=True),
    "forward fp8": lambda place: forward(place, is_async=True, is_fp8=True),
    "micro-batches": micro_batches,
    "micro-batches fp8": lambda place: micro_batches(place, is_fp8=True),
    "low latency": lambda place: few_forward(place, "fp8"),
    "low latency bf16": lambda place: few_forward(place, "bf16"),
    "low latency ue8m0": lambda place: few_forward(place, "ue8m0"),
    "low latency micro-batches": lambda place: few_micro_batches(place, "fp8"),
    "low latency micro-batches ue8m0": lambda place: few_micro_batches(place, "ue8m0"),
}
