# SPDX-License-Identifier: MIT
"""SGLang's normal mode: configs from JSON, FP8 rows for DeepGEMM, two batches that overlap.  And
its low latency mode, with hooks or with events, in one buffer with the normal one."""

import json

from deep_ep import Buffer, Config

from deepep_ptx import reference
from tests.consumers import common

HIDDEN = 256
CONFIG = json.loads("""{
    "num_sms": 8, "num_max_nvl_chunked_send_tokens": 10, "num_max_nvl_chunked_recv_tokens": 512,
    "num_max_rdma_chunked_send_tokens": 16, "num_max_rdma_chunked_recv_tokens": 512
}""")


def make_buffer(place, configs):
    hidden_bytes = 2 * HIDDEN
    num_nvl_bytes = num_rdma_bytes = 0
    for config in configs or (Buffer.get_dispatch_config(place.size),
                              Buffer.get_combine_config(place.size)):
        num_nvl_bytes = max(config.get_nvl_buffer_size_hint(hidden_bytes, place.size),
                            num_nvl_bytes)
        num_rdma_bytes = max(config.get_rdma_buffer_size_hint(hidden_bytes, place.size),
                             num_rdma_bytes)
    num_qps_per_rank = max((config.num_sms for config in configs), default=Buffer.num_sms)
    buffer = Buffer(place.group, num_nvl_bytes, num_rdma_bytes, low_latency_mode=False,
                    num_qps_per_rank=num_qps_per_rank, allow_mnnvl=True)
    assert buffer.group_size == place.size and not buffer.low_latency_mode
    return buffer


class Dispatcher:
    """Dispatch and combine, each in two halves, of one batch after another."""

    def __init__(self, place, buffer, is_async, configs):
        self.place = place
        self.buffer = buffer
        self.is_async = is_async
        self.dispatch_config, self.combine_config = configs or (None, None)

    def capture(self):
        return Buffer.capture() if self.is_async else None

    def dispatch_a(self, x, topk_idx, topk_weights):
        self.state = x, topk_idx, topk_weights, self.capture()

    def dispatch_b(self):
        x, topk_idx, topk_weights, previous_event = self.state
        per_rank, per_rdma_rank, per_expert, in_rank, previous_event = (
            self.buffer.get_dispatch_layout(
                topk_idx, self.place.num_experts, previous_event=previous_event,
                async_finish=self.is_async, allocate_on_comm_stream=previous_event is not None))
        is_later = self.is_async and previous_event is not None
        recv_x, recv_idx, recv_weights, counts, self.handle, event = self.buffer.dispatch(
            x, topk_idx=topk_idx, topk_weights=topk_weights, num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_rdma_rank, is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert, previous_event=previous_event,
            async_finish=self.is_async, allocate_on_comm_stream=is_later,
            expert_alignment=128 if isinstance(x, tuple) else 1, config=self.dispatch_config)
        if self.is_async:
            event.current_stream_wait()
        return recv_x, recv_idx, recv_weights, counts

    def combine_a(self, x):
        previous_event = self.capture()
        self.combined = self.buffer.combine(
            x, self.handle, async_finish=self.is_async, previous_event=previous_event,
            allocate_on_comm_stream=previous_event is not None, config=self.combine_config)
        self.handle = None

    def combine_b(self):
        combined, _, event = self.combined
        if self.is_async:
            event.current_stream_wait()
        return combined


class Batch(common.RowsBatch):
    """A batch on its way, and what it must become."""

    def inputs(self):
        give, rank = self.place.give, self.place.rank
        x = give(self.batch.xs[rank])
        if self.is_fp8:     # DeepGEMM's scales are column-major
            rows, scales = self.pairs[rank]
            x = give(rows), give(scales.T).T
        return x, give(self.batch.topk_idxs[rank]), give(self.batch.topk_weights[rank])

    def experts(self, recv_x, recv_idx, recv_weights, counts):
        common.assert_received(self.received[self.place.rank], recv_x, recv_idx, recv_weights,
                               counts, 128 if self.is_fp8 else 1)
        return common.dequantized(*recv_x) if self.is_fp8 else recv_x

    def check(self, combined):
        outputs = [reference.per_token_cast_back(*r.recv_x) if self.is_fp8 else r.recv_x
                   for r in self.received]
        want, _ = reference.combine(outputs, self.received)[self.place.rank]
        common.assert_same(combined, want, "combined_x")


def forward(place, is_async=False, is_fp8=False, has_configs=False):
    """One batch after another."""
    configs = (Config(**CONFIG), Config(**CONFIG)) if has_configs else ()
    buffer = make_buffer(place, configs)
    for seed in range(4):
        batch = Batch(place, seed, HIDDEN, is_fp8)
        dispatcher = Dispatcher(place, buffer, is_async, configs)
        dispatcher.dispatch_a(*batch.inputs())
        dispatcher.combine_a(batch.experts(*dispatcher.dispatch_b()))
        batch.check(dispatcher.combine_b())
    place.barrier()


def overlap(place, is_fp8=False):
    """Two batches: one is computed on while the other is on its way."""
    buffer = make_buffer(place, ())
    for seed in range(3):
        batches = [Batch(place, 10 * seed + number, HIDDEN, is_fp8) for number in range(2)]
        ways = [Dispatcher(place, buffer, True, ()) for _ in batches]
        for batch, way in zip(batches, ways, strict=True):
            way.dispatch_a(*batch.inputs())
        received = [way.dispatch_b() for way in ways]
        for batch, way, results in zip(batches, ways, received, strict=True):
            way.combine_a(batch.experts(*results))
        for batch, way in zip(batches, ways, strict=True):
            batch.check(way.combine_b())
    place.barrier()


# -- low latency ------------------------------------------------------------------------------

MAX_TOKENS = 16
FEW_HIDDEN = 512
CASTS = {"bf16": {"use_fp8": False}, "fp8": {"use_fp8": True},
         "ue8m0": {"use_fp8": True, "round_scale": True, "use_ue8m0": True}}


class FewDispatcher:
    """Dispatch and combine of few tokens, each in two halves, of one batch after another."""

    def __init__(self, place, buffer, cast, return_recv_hook):
        self.place, self.buffer, self.cast = place, buffer, cast
        self.return_recv_hook = return_recv_hook

    def finish(self, event, hook):
        hook() if self.return_recv_hook else event.current_stream_wait()

    def dispatch_a(self, x, topk_ids):
        self.received = self.buffer.low_latency_dispatch(
            x, topk_ids, MAX_TOKENS, self.place.num_experts, **self.cast,
            async_finish=not self.return_recv_hook, return_recv_hook=self.return_recv_hook)

    def dispatch_b(self):
        recv_x, masked_m, self.handle, event, hook = self.received
        self.finish(event, hook)
        return recv_x, masked_m

    def combine_a(self, x, topk_ids, topk_weights):
        self.combined = self.buffer.low_latency_combine(
            x=x, topk_idx=topk_ids, topk_weights=topk_weights, handle=self.handle,
            async_finish=not self.return_recv_hook, return_recv_hook=self.return_recv_hook)
        self.received = self.handle = None

    def combine_b(self):
        combined, event, hook = self.combined
        self.finish(event, hook)
        return combined


def make_few_buffer(place):
    num_nvl_bytes = 0
    num_rdma_bytes = Buffer.get_low_latency_rdma_size_hint(MAX_TOKENS, FEW_HIDDEN, place.size,
                                                           place.num_experts)
    buffer = Buffer(place.group, num_nvl_bytes, num_rdma_bytes, low_latency_mode=True,
                    num_qps_per_rank=place.num_experts // place.size, allow_mnnvl=True)
    assert buffer.group_size == place.size and buffer.low_latency_mode
    return buffer


def few_forward(place, cast, return_recv_hook=True, has_normal=False):
    """One batch after another; has_normal: with batches of the normal mode before some, as prefill
    comes between steps of decoding."""
    buffer = make_few_buffer(place)
    for seed in range(4):
        if has_normal and seed % 2 == 0:
            batch = Batch(place, seed, HIDDEN, False)
            dispatcher = Dispatcher(place, buffer, True, ())
            dispatcher.dispatch_a(*batch.inputs())
            dispatcher.combine_a(batch.experts(*dispatcher.dispatch_b()))
            batch.check(dispatcher.combine_b())
            buffer.clean_low_latency_buffer(MAX_TOKENS, FEW_HIDDEN, place.num_experts)
        few = common.FewBatch(place, seed, FEW_HIDDEN, MAX_TOKENS, **CASTS[cast])
        x, topk_ids, topk_weights = few.inputs()
        dispatcher = FewDispatcher(place, buffer, CASTS[cast], return_recv_hook)
        dispatcher.dispatch_a(x, topk_ids)
        dispatcher.combine_a(few.experts(*dispatcher.dispatch_b()), topk_ids, topk_weights)
        few.check(dispatcher.combine_b(), buffer.reduce)
    place.barrier()


def few_overlap(place, cast):
    """Two batches: rows of one are under way while the other is computed on."""
    buffer = make_few_buffer(place)
    for seed in range(3):
        batches = [common.FewBatch(place, 10 * seed + number, FEW_HIDDEN, MAX_TOKENS,
                                   **CASTS[cast]) for number in range(2)]
        given = [batch.inputs() for batch in batches]
        ways = [FewDispatcher(place, buffer, CASTS[cast], True) for _ in batches]
        received = []
        for (x, topk_ids, _), way in zip(given, ways, strict=True):
            way.dispatch_a(x, topk_ids)
            received.append(way.dispatch_b())
        for batch, (_, topk_ids, weights), way, results in zip(batches, given, ways, received,
                                                               strict=True):
            way.combine_a(batch.experts(*results), topk_ids, weights)
            batch.check(way.combine_b(), buffer.reduce)
    place.barrier()


PROGRAMS = {
    "forward": forward,
    "forward async": lambda place: forward(place, is_async=True),
    "forward fp8": lambda place: forward(place, is_async=True, is_fp8=True),
    "forward with configs": lambda place: forward(place, has_configs=True),
    "overlap": overlap,
    "overlap fp8": lambda place: overlap(place, is_fp8=True),
    "low latency": lambda place: few_forward(place, "fp8"),
    "low latency bf16": lambda place: few_forward(place, "bf16"),
    "low latency ue8m0": lambda place: few_forward(place, "ue8m0"),
    "low latency without hooks": lambda place: few_forward(place, "fp8", False),
    "low latency and normal": lambda place: few_forward(place, "fp8", has_normal=True),
    "low latency overlap": lambda place: few_overlap(place, "fp8"),
}
