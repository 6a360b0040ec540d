# SPDX-License-Identifier: MIT
"""The public API as a table: how each method, property and attribute is tried, with and without
each of its optional arguments.

A new method or attribute is a `Member` of `TABLE`, a new optional argument a row of its member:
`{"argument": value}`.  `tests/test_api.py` names what is missing, and runs the table on the CPU
executor; `tests/gpu/test_api_cuda.py` runs it on GPUs.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from deepep_ptx import Buffer, Config, EventHandle, EventOverlap, reference
from deepep_ptx.arrays import BFLOAT16, DeviceArray
from deepep_ptx.handle import EPHandle, LowLatencyHandle
from deepep_ptx.low_latency import default_reduce
from tests.api_calls import Job, Side
from tests.test_stubs import by_name, stub_kind_of, stub_of

JOB = {"tokens": [24, 17], "hidden": 512, "num_topk": 4, "num_experts": 8}


@dataclass
class Member:
    """A method, property or attribute.

    run: (side, row) makes the call with the options of the row, and compares what it gives; all
    ranks run it.  rows: options, one dict per call.  needs: option -> those without which it is
    refused.  always: optional parameters that `run` gives in every call.
    """

    run: Callable
    rows: list = field(default_factory=lambda: [{}])
    needs: dict = field(default_factory=dict)
    always: tuple = ()


# -- values of options ------------------------------------------------------------------------

def captured(side):
    """What the current stream has queued."""
    return side.buffer.capture()


def after_a_call(side):
    """The end of a call that the caller's stream does not wait for."""
    return side.buffer.get_dispatch_layout(side.topk_idx, side.job.num_experts,
                                           async_finish=True)[-1]


def stream(side):
    return side.arrays.make_stream()


TOPK = {"topk_idx": lambda side: side.topk_idx, "topk_weights": lambda side: side.topk_weights}
ASYNC = {"previous_event": captured, "async_finish": True, "allocate_on_comm_stream": True}
# Of every call: each alone, then together.
LATER = [{"previous_event": captured}, {"previous_event": after_a_call}, {"async_finish": True},
         {**ASYNC, "previous_event": after_a_call}, ASYNC, {"stream": stream}]
LATER_NEEDS = {"allocate_on_comm_stream": {"previous_event", "async_finish"}}
SMS = [{"num_sms": 1}, {"num_sms": 7}, {"config": Config(4)}, {"config": Config(0)}]


# -- Buffer: construction, settings -----------------------------------------------------------

def construct(side, row):
    """A buffer of its own, and a round trip on it."""
    with Buffer(side.comm, **side.make(row)) as buffer:
        own = side.with_buffer(buffer)
        own.round_trip()
        if row.get("low_latency_mode"):
            own.ll_round_trip()
            assert buffer.reduce == (row.get("reduce") or reduce_of(side))


def set_num_sms(side, row):
    before = Buffer.__dict__["num_sms"]
    side.comm.barrier()
    try:
        Buffer.set_num_sms(3)
        side.comm.barrier()
        assert Buffer.num_sms == Buffer.get_dispatch_config(2).num_sms == 3
        side.combine({})
        assert side.buffer.last_num_sms == 3
        side.comm.barrier()
    finally:
        Buffer.num_sms = before


def get_size_hint(side, row):
    """A limit that has room for one round trip."""
    job = side.job
    size = Buffer.get_size_hint(max(job.tokens), job.hidden, job.num_topk, side.comm.size, **row)
    with Buffer(side.comm, size) as buffer:
        side.with_buffer(buffer).round_trip()


def equals(call, want):
    """A member that gives a plain value."""
    def run(side, row):
        got, expected = call(side, row), want(side, row)
        assert got == expected, f"{got}, not {expected}"
    return run


# -- Buffer: calls ----------------------------------------------------------------------------

def dispatch(side, row):
    """Of bfloat16, and of rows with scales where nothing is said of a handle."""
    side.dispatch(row)
    side.dispatch(row, "pair")


def cached_of_all(side, row):
    """Rows of every type with a handle."""
    for kind in ("rows", "others", "pair"):
        side.dispatch(row, kind)


def either_dispatch(side, row):
    (cached_of_all if "handle" in row else dispatch)(side, row)


def combine(side, row):
    for where in ("array", "recv_x", "buffer"):
        side.combine(row, where)


def count_received(side, row):
    """The host's count is that of the call that waits for it, whether or not it was waited for."""
    _, handle = side.sent()
    for worst in ({}, {"num_worst_tokens": sum(side.job.tokens)}):
        made = side.dispatch(side.make(TOPK | worst))[4]
        assert side.buffer.count_received(made) == handle.num_recv
        assert side.buffer.count_received(tuple(made)) == handle.num_recv


def get_combine_buffer(side, row):
    if side.arrays.copies:
        return                      # an array that is copied to the GPU is in no arena
    side.sent()
    given = side.make(row)
    made = side.buffer.get_combine_buffer(6, 64, **given)
    rows = np.arange(6 * 64).reshape(6, 64).astype(BFLOAT16)
    side.arrays.finish(given.get("stream"))
    side.arrays.store(made, rows)
    side.check(made, rows, "get_combine_buffer")
    side.combine({}, "buffer")
    with Buffer(side.comm, 1 << 20) as fresh:       # which has seen no array yet
        made = fresh.get_combine_buffer(2, 8, **given)
        assert tuple(made.shape) == (2, 8)
        assert type(made) is type(side.topk_idx) or "like" not in given
        assert fresh.get_combine_buffer(0, 8, **given).shape[0] == 0


def get_comm_stream(side, row):
    made = side.buffer.get_comm_stream()
    assert made.cuda_stream == side.buffer._core.stream
    side.arrays.finish(made)
    with Buffer(side.comm) as fresh:
        assert fresh.get_comm_stream().cuda_stream == fresh._core.stream


def get_local_buffer_tensor(side, row):
    recv_x, _ = side.sent()
    given = side.make(row)
    whole, shown = (side.buffer.get_local_buffer_tensor(BFLOAT16, **how)
                    for how in ({}, given))
    offset = given.get("offset", 0) // 2
    want = whole.numpy() if isinstance(whole, DeviceArray) else whole
    got = shown.numpy() if isinstance(shown, DeviceArray) else shown
    shape = given.get("size") or (side.buffer.num_nvl_bytes // 2 - offset,)
    assert got.shape == shape and got.dtype == BFLOAT16
    want = want[offset:][:got.size].reshape(shape)
    assert np.array_equal(got.view(np.uint16), want.view(np.uint16))
    if not side.arrays.copies:      # the rows lie there
        assert side.get(recv_x)[0].tobytes() in want.tobytes() or given
    mine = side.buffer.get_local_buffer_tensor(side.arrays.dtype(BFLOAT16), **given)
    assert tuple(mine.shape) == shape
    side.check(mine, got, "get_local_buffer_tensor") if type(mine) is type(recv_x) else None


def check(side, row):
    side.combine({})
    side.buffer.check()
    side.combine({})


def reset(side, row):
    """Without a failure before it: what lives stays, calls go on."""
    side.sent()
    side.buffer.reset()
    side.combine({})


def destroy(side, row):
    buffer = Buffer(side.comm)
    own = side.with_buffer(buffer)
    recv_x, _ = own.sent()
    before = side.get(recv_x)
    buffer.destroy()
    buffer.destroy()
    assert np.array_equal(side.get(recv_x).view(np.uint16), before.view(np.uint16))
    try:
        buffer.check()
    except RuntimeError as error:
        assert type(error).__name__ == "DestroyedError"
    else:
        raise AssertionError("check() after destroy()")


def stats(side, row):
    side.sent()
    got = side.buffer.stats()
    assert got["arena_bytes"] >= side.buffer.num_nvl_bytes and got["arena_segments"] >= 1
    assert got["landing_bytes"] >= 0
    assert got["copied_bytes"] + got["arena_used_bytes"] > 0


def last_launch(side, row):
    side.combine({})
    (symbol,) = side.buffer.last_launch
    assert symbol in {variant["symbol"] for variant in side.buffer.variants.values()}, symbol


# -- Buffer: low latency ------------------------------------------------------------------------

def rdma_size_hint(side, row):
    """What calls of that size take: none of them makes more."""
    job = side.job
    size = Buffer.get_low_latency_rdma_size_hint(max(job.tokens), job.hidden, side.comm.size,
                                                 job.num_experts, **row)
    with Buffer(side.comm, num_rdma_bytes=size, low_latency_mode=True,
                reduce=row.get("reduce")) as buffer:
        assert buffer.num_rdma_bytes == size
        side.with_buffer(buffer).ll_round_trip()


def clean_low_latency_buffer(side, row):
    side.buffer.clean_low_latency_buffer(max(side.job.tokens), side.job.hidden,
                                         side.job.num_experts)
    side.low_latency_combine({})


def reduce_of(side):
    """Of a buffer that was not told."""
    return default_reduce(side.comm.size, side.job.num_topk)


def reduce(side, row):
    """Known from the first call on."""
    with Buffer(side.comm, low_latency_mode=True) as fresh:
        assert fresh.reduce is None
        side.with_buffer(fresh).ll_round_trip()
        assert fresh.reduce == reduce_of(side)


def masks(change):
    """A method that changes masks, of a buffer that has some: change(buffer, peer, row)."""
    def run(side, row):
        size, rank = side.comm.size, side.comm.rank
        if size == 1:
            return
        with Buffer(side.comm, low_latency_mode=True, enable_shrink=True) as fresh:
            shrinking = side.with_buffer(fresh)
            shrinking.ll_round_trip()
            change(fresh, (rank + 1) % size, row)
            status = side.arrays.give(np.full(size, -1, np.int32))
            fresh.low_latency_query_mask_buffer(status)
            side.arrays.finish()
            found = np.flatnonzero(side.get(status)).tolist()
            assert found in ([], [(rank + 1) % size])
            side.comm.barrier()
            fresh.low_latency_clean_mask_buffer()
            shrinking.ll_round_trip()
    return run


def get_next_low_latency_combine_buffer(side, row):
    """Of the library of the dispatch, and the same one each time."""
    handle = side.ll_sent()
    made = side.buffer.get_next_low_latency_combine_buffer(handle)
    assert made is side.buffer.get_next_low_latency_combine_buffer(tuple(handle))
    want = side.job.ll_output(side.rank)
    side.arrays.finish()
    side.arrays.store(made, want)
    side.check(made, want, "get_next_low_latency_combine_buffer")
    side.low_latency_combine({"zero_copy": True}, tuple(handle))


def ll_rebuilt_handle(side, row):
    handle = side.ll_sent()
    again = LowLatencyHandle(value for value in handle)
    assert again == handle
    for made in (again, LowLatencyHandle((None, *handle[1:])), tuple(handle)):
        side.low_latency_combine({}, made)


def ll_attribute(name):
    """One whose value `Side.low_latency_dispatch` compares."""
    def run(side, row):
        getattr(side.ll_sent(), name)
    return run


def zeros(dtype, *shape):
    """An array, given a function of the side that tells its shape."""
    def make(side):
        return side.arrays.give(np.zeros([size(side) for size in shape], dtype))
    return make


# -- events -----------------------------------------------------------------------------------

def capture(side, row):
    event = Buffer.capture()
    assert isinstance(event, EventOverlap) and isinstance(event.event, EventHandle)
    side.combine({"previous_event": lambda side: event})
    event.current_stream_wait()


def event_handle(side, row):
    event = EventHandle()
    event.current_stream_wait()
    side.combine({"previous_event": lambda side: event})


def handle_waits(side, row):
    """For a call's end, and for what the current stream had queued."""
    for event in (after_a_call(side).event, EventHandle()):
        if event is not None:           # None: the host has waited
            event.current_stream_wait()
    side.combine({})


def event_overlap(side, row):
    given = side.make(row)
    event = EventOverlap(**given)
    assert event.event is given.get("event")
    assert event.extra_tensors is given.get("extra_tensors")
    with event as entered:
        assert entered is event
    side.combine({"previous_event": lambda side: event})


def wait_for_a_call(side, row):
    """Results are read behind the wait alone."""
    per_rank, _, per_expert, _, event = side.buffer.get_dispatch_layout(
        side.topk_idx, side.job.num_experts, async_finish=True)
    event.current_stream_wait(**row)
    event.current_stream_wait(**row)                # a second time is nothing
    side.arrays.finish()
    want = reference.layout(side.job.topk_idxs[side.rank], side.job.num_experts, side.comm.size)
    side.check(per_rank, want[0], "num_tokens_per_rank")
    side.check(per_expert, want[1], "num_tokens_per_expert")


def between_call_and_end(wait):
    """A member that a caller makes use of while a call runs: wait(event)."""
    def run(side, row):
        _, handle = side.sent()
        x = side.x()
        side.make({})
        recv_x, *_, event = side.buffer.dispatch(x, handle=handle, async_finish=True)
        wait(event)
        side.wait(event, {})
        want = reference.cached_dispatch(side.job.sources("rows"), side.job.received())[side.rank]
        side.check_rows(recv_x, want, handle.num_recv)
    return run


def wait_for_starts(event):
    """Also of what has none."""
    for other in (event, Buffer.capture(), EventOverlap()):
        other.current_stream_wait_start()


def wait_for_starts_by_handle(event):
    for handle in (event.event, EventHandle()):
        if handle is not None:          # None: the host has waited
            handle.current_stream_wait_start()


def with_block(side, row):
    """`with event(**row)`: the block's end waits."""
    per_rank, *_, event = side.buffer.get_dispatch_layout(
        side.topk_idx, side.job.num_experts, async_finish=True)
    before = event.event
    with event(**row) as entered:
        assert entered is event
    assert event.event is (None if row.get("release_handle") else before)
    side.arrays.finish()
    want, _, _ = reference.layout(side.job.topk_idxs[side.rank], side.job.num_experts,
                                  side.comm.size)
    side.check(per_rank, want, "num_tokens_per_rank")


def register_hook(side, row):
    """Called by the next wait, once."""
    calls = []
    event = after_a_call(side)
    event.register_hook_after_wait(lambda: calls.append(side.rank))
    event.current_stream_wait()
    event.current_stream_wait()
    assert calls == [side.rank]


# -- handles ----------------------------------------------------------------------------------

def rebuilt_handle(side, row):
    recv_x, handle = side.sent()
    again = EPHandle(value for value in handle)
    assert again == handle
    for made in (again, EPHandle((None, handle[1])), tuple(handle)):
        side.combine({}, sent=(recv_x, made))


def attribute(name):
    """One whose value `Side.check_handle` compares."""
    def run(side, row):
        getattr(side.sent()[1], name)
    return run


# -- DeviceArray ------------------------------------------------------------------------------

def device_array(check):
    """check(array, values): on one that was given and on one that a call returned."""
    def run(side, row):
        given = side.arrays.give(side.job.xs[side.rank])
        check(given, side.job.xs[side.rank], side, row)
        recv_x, _ = side.sent()
        check(recv_x, side.get(recv_x), side, row)
    return run


def copied(array, values, side, row):
    copy = array.copy()
    assert copy.address != array.address and copy.stream == array.stream
    assert np.array_equal(copy.numpy().view(np.uint16), values.view(np.uint16))


def exported(array, values, side, row):
    """A capsule that a `DeviceArray` can be made of again."""
    given = side.make(row)
    if given.get("dl_device") == "own":
        given["dl_device"] = array.__dlpack_device__()
    assert "dltensor" in repr(array.__dlpack__(**given))


# -- the table --------------------------------------------------------------------------------

def group_size(side):
    return side.comm.size


def local_experts(side):
    return side.job.num_experts // side.comm.size


COUNTS = {"cumulative_local_expert_recv_stats": zeros(np.int32, local_experts)}
WAITS = {"dispatch_wait_recv_cost_stats": zeros(np.int64, group_size)}
COMBINE_WAITS = {"combine_wait_recv_cost_stats": zeros(np.int64, group_size)}
OUT = {"out": zeros(BFLOAT16, lambda side: side.job.tokens[side.rank],
                    lambda side: side.job.hidden)}
# Of low-latency calls: each alone.
FEW_LATER = [{"async_finish": True}, {"async_finish": False}, {"return_recv_hook": True},
             {"num_sms": 1}, {"num_sms": 7}, {"stream": stream},
             {"return_recv_hook": True, "stream": stream}]

TABLE = {
    "Buffer": Member(construct, [
        {}, {"num_nvl_bytes": lambda side: side.job.arena_bytes}, {"num_rdma_bytes": 0},
        {"low_latency_mode": False}, {"num_qps_per_rank": 12},
        {"allow_nvlink_for_low_latency_mode": False}, {"allow_mnnvl": True},
        {"explicitly_destroy": True}, {"enable_shrink": False}, {"reduce": "rank"},
        {"low_latency_mode": True, "enable_shrink": True},
        {"low_latency_mode": True}, {"low_latency_mode": True, "reduce": "rank"},
        {"low_latency_mode": True, "reduce": "exact", "num_rdma_bytes": 1 << 20},
        {"policy": "safe"}, {"policy": "aggressive"},
        {"timeout_s": None}, {"timeout_s": 50.0}, {"zero_copy": False}, {"zero_copy": None},
        {"zero_copy": True}, {"tuning": False},
        {"arena_limit_bytes": lambda side: side.job.arena_bytes},
        {"stages": 2}, {"stage_bytes": 1024},
        {"num_nvl_bytes": lambda side: side.job.arena_bytes, "num_rdma_bytes": 0,
         "low_latency_mode": True, "num_qps_per_rank": 1, "enable_shrink": False, "reduce": None,
         "allow_nvlink_for_low_latency_mode": False, "allow_mnnvl": True,
         "explicitly_destroy": True, "policy": "bulk", "timeout_s": 60.0, "zero_copy": False,
         "tuning": False, "stages": 3, "stage_bytes": 512,
         "arena_limit_bytes": lambda side: 2 * side.job.arena_bytes},
    ]),
    "Buffer.get_dispatch_layout": Member(Side.get_dispatch_layout, [
        {}, *LATER, {**ASYNC, "stream": stream},
    ], LATER_NEEDS),
    "Buffer.dispatch": Member(either_dispatch, [
        {}, TOPK, {"num_tokens_per_rdma_rank": None}, {"expert_alignment": 4}, *SMS, *LATER,
        {**TOPK, "num_worst_tokens": lambda side: side.job.worst_tokens},
        {**TOPK, "expert_alignment": 16, "num_sms": 2, "config": Config(3), **ASYNC,
         "stream": stream},
        {**TOPK, "num_worst_tokens": lambda side: side.job.worst_tokens, "expert_alignment": 16,
         "num_sms": 2, "config": Config(3), **ASYNC, "stream": stream},
        {"combine_hidden": 1024}, {**TOPK, "combine_hidden": 8},
        {"handle": lambda side: side.sent()[1]},
        *({"handle": lambda side: side.sent()[1], **later} for later in (*SMS, *LATER)),
        {"handle": lambda side: side.sent()[1], "num_sms": 2, "config": Config(3), **ASYNC,
         "stream": stream},
    ], {"topk_idx": {"topk_weights"}, "topk_weights": {"topk_idx"},
        "num_worst_tokens": set(TOPK), **LATER_NEEDS},
        always=("num_tokens_per_rank", "is_token_in_rank", "num_tokens_per_expert")),
    "Buffer.combine": Member(combine, [
        {}, {"topk_weights": True}, {"bias": lambda side: side.bias[0]},
        {"bias": lambda side: side.bias}, *SMS, *LATER,
        {"topk_weights": True, "bias": lambda side: side.bias, "num_sms": 2, "config": Config(3),
         **ASYNC, "stream": stream},
    ], LATER_NEEDS),
    "Buffer.get_combine_buffer": Member(get_combine_buffer, [
        {}, {"like": lambda side: side.topk_idx}, {"stream": stream},
        {"like": lambda side: side.topk_idx, "stream": stream},
    ]),
    "Buffer.get_comm_stream": Member(get_comm_stream),
    "Buffer.get_local_buffer_tensor": Member(get_local_buffer_tensor, [
        {}, {"size": (3, 40)}, {"offset": 256}, {"use_rdma_buffer": False},
        {"size": (3, 40), "offset": 256, "use_rdma_buffer": False},
    ]),
    "Buffer.count_received": Member(count_received),
    "Buffer.check": Member(check),
    "Buffer.reset": Member(reset),
    "Buffer.destroy": Member(destroy),
    "Buffer.stats": Member(stats),
    "Buffer.last_launch": Member(last_launch),
    "Buffer.capture": Member(capture),
    "Buffer.num_sms": Member(equals(lambda s, row: s.buffer.num_sms, lambda s, row: 20)),
    "Buffer.set_num_sms": Member(set_num_sms),
    "Buffer.is_sm90_compiled": Member(equals(lambda s, row: Buffer.is_sm90_compiled(),
                                             lambda s, row: True)),
    "Buffer.get_dispatch_config": Member(equals(
        lambda s, row: Buffer.get_dispatch_config(2), lambda s, row: Config(20, 24, 256, 6, 128))),
    "Buffer.get_combine_config": Member(equals(
        lambda s, row: Buffer.get_combine_config(2), lambda s, row: Config(20, 10, 256, 6, 128))),
    "Buffer.get_size_hint": Member(get_size_hint, [
        {}, {"itemsize": 2}, {"num_scales": 3}, {"topk_idx_bytes": 8}, {"live_results": 2},
        {"scale_itemsize": 2},
        {"itemsize": 2, "num_scales": 3, "topk_idx_bytes": 8, "live_results": 2,
         "scale_itemsize": 1},
    ]),

    "Buffer.low_latency_dispatch": Member(Side.low_latency_dispatch, [
        {}, COUNTS, WAITS, {"use_fp8": False}, {"use_fp8": True}, {"round_scale": True},
        {"round_scale": True, "use_ue8m0": True}, *FEW_LATER, {"x_global_scale": None},
        {"use_nvfp4": False},
        {"dispatch_wait_recv_cost_stats": zeros(np.int64, group_size, group_size)},
        {**COUNTS, **WAITS, "use_fp8": True, "round_scale": True, "use_ue8m0": True,
         "async_finish": True, "return_recv_hook": False, "x_global_scale": None,
         "use_nvfp4": False, "num_sms": 3, "stream": stream},
        {**COUNTS, **WAITS, "use_fp8": False, "return_recv_hook": True, "num_sms": 3,
         "stream": stream},
    ], {"use_ue8m0": {"round_scale"}}),
    "Buffer.low_latency_combine": Member(Side.low_latency_combine, [
        {}, OUT, COMBINE_WAITS, {"out": None}, {"use_logfmt": False}, {"zero_copy": False},
        {"zero_copy": True}, {"zero_copy": True, "return_recv_hook": True, "stream": stream},
        *FEW_LATER, {"overlap": False}, {"packed_recv_count": None}, {"comp_signal": None},
        {"block_m": 64}, {"threshold": 0}, {"src_signals": None}, {"src_signal_expect_value": 0},
        {"combine_wait_recv_cost_stats": zeros(np.int64, group_size, group_size)},
        {**OUT, **COMBINE_WAITS, "use_logfmt": False, "zero_copy": False, "async_finish": True,
         "return_recv_hook": False, "overlap": False, "packed_recv_count": None,
         "comp_signal": None, "block_m": 64, "threshold": 0, "src_signals": None,
         "src_signal_expect_value": 0, "num_sms": 3, "stream": stream},
        {**OUT, **COMBINE_WAITS, "return_recv_hook": True, "num_sms": 3, "stream": stream},
    ]),
    "Buffer.get_low_latency_rdma_size_hint": Member(rdma_size_hint, [
        {}, {"num_topk": 4}, {"reduce": "rank"}, {"num_topk": 4, "reduce": "exact"},
    ]),
    "Buffer.clean_low_latency_buffer": Member(clean_low_latency_buffer),
    "Buffer.reduce": Member(reduce),
    "Buffer.get_next_low_latency_combine_buffer": Member(get_next_low_latency_combine_buffer),
    "Buffer.low_latency_update_mask_buffer": Member(
        masks(lambda buffer, peer, row: buffer.low_latency_update_mask_buffer(peer, **row)),
        [{}, {"mask": False}, {"mask": True}]),
    "Buffer.low_latency_query_mask_buffer": Member(
        masks(lambda buffer, peer, row: buffer.low_latency_update_mask_buffer(peer, mask=True))),
    "Buffer.low_latency_clean_mask_buffer": Member(
        masks(lambda buffer, peer, row: buffer.low_latency_clean_mask_buffer())),

    "EPHandle": Member(rebuilt_handle),
    "LowLatencyHandle": Member(ll_rebuilt_handle),

    "EventHandle": Member(event_handle),
    "EventHandle.current_stream_wait": Member(handle_waits),
    "EventHandle.current_stream_wait_start": Member(
        between_call_and_end(wait_for_starts_by_handle)),
    "EventOverlap": Member(event_overlap, [
        {}, {"event": lambda side: EventHandle()}, {"extra_tensors": lambda side: (side.bias,)},
        {"hook_after_wait": lambda side: list},         # any function without arguments
        {"event": lambda side: after_a_call(side).event,
         "extra_tensors": lambda side: (side.bias,), "hook_after_wait": lambda side: list},
    ]),
    "EventOverlap.__call__": Member(with_block, [{}, {"release_handle": True}]),
    "EventOverlap.current_stream_wait": Member(wait_for_a_call, [{}, {"release_handle": True}]),
    "EventOverlap.current_stream_wait_start": Member(between_call_and_end(wait_for_starts)),
    "EventOverlap.register_hook_after_wait": Member(register_hook),

    "Config": Member(lambda side, row: side.combine({"config": Config(**row)}), [
        {}, {"num_sms": 5}, {"num_max_nvl_chunked_send_tokens": 4},
        {"num_max_nvl_chunked_recv_tokens": 128}, {"num_max_rdma_chunked_send_tokens": 4},
        {"num_max_rdma_chunked_recv_tokens": 128},
        {"num_sms": 5, "num_max_nvl_chunked_send_tokens": 4,
         "num_max_nvl_chunked_recv_tokens": 128, "num_max_rdma_chunked_send_tokens": 4,
         "num_max_rdma_chunked_recv_tokens": 128},
    ]),
    "Config.get_nvl_buffer_size_hint": Member(equals(
        lambda s, row: Config().get_nvl_buffer_size_hint(512, 2), lambda s, row: 0)),
    "Config.get_rdma_buffer_size_hint": Member(equals(
        lambda s, row: Config().get_rdma_buffer_size_hint(512, 2), lambda s, row: 0)),

    "DeviceArray.numpy": Member(device_array(
        lambda array, values, side, row: side.check(array, values, "numpy"))),
    "DeviceArray.copy": Member(device_array(copied)),
    "DeviceArray.__dlpack__": Member(device_array(exported), [
        {}, {"stream": 1}, {"stream": -1}, {"stream": stream}, {"max_version": (1, 0)},
        {"dl_device": "own"}, {"copy": True},
        {"stream": stream, "max_version": (1, 0), "dl_device": "own", "copy": True},
    ]),
}

# Attributes: what they are.
ATTRIBUTES = {
    "Buffer.group": lambda side, value: value is side.comm,
    "Buffer.rank": lambda side, value: value == side.rank,
    "Buffer.group_size": lambda side, value: value == side.comm.size,
    "Buffer.num_nvl_bytes": lambda side, value: value == side.job.arena_bytes,
    "Buffer.num_rdma_bytes": lambda side, value: value == 0,
    "Buffer.low_latency_mode": lambda side, value: value is True,
    "Buffer.enable_shrink": lambda side, value: value is False,
    "Buffer.explicitly_destroy": lambda side, value: value is False,
    "Buffer.timeout_s": lambda side, value: value == 30.0,
    "Buffer.zero_copy": lambda side, value: value is None,
    "Buffer.arena_limit_bytes": lambda side, value: value is None,
    "Buffer.variants": lambda side, value: {"dispatch", "combine"} <= set(value),
    "Buffer.tuning": lambda side, value: value is None,
    "Buffer.last_num_sms": lambda side, value: value is None or value >= 1,
    # None: the host has waited.
    "EventOverlap.event": lambda side, value: value is None or isinstance(value, EventHandle),
    "EventOverlap.hook_after_wait": lambda side, value: value is None,
    "EventOverlap.extra_tensors": lambda side, value: True,     # others may put theirs there
    "DeviceArray.shape": lambda side, value: value == side.job.xs[side.rank].shape,
    "DeviceArray.dtype": lambda side, value: value == BFLOAT16,
    "DeviceArray.ndim": lambda side, value: value == 2,
    "DeviceArray.nbytes": lambda side, value: value == side.job.xs[side.rank].nbytes,
    "DeviceArray.address": lambda side, value: value % 16 == 0 < value,
    "DeviceArray.device": lambda side, value: value == side.comm.executor.device,
    "DeviceArray.stream": lambda side, value: value == 0,
    "DeviceArray.swapped": lambda side, value: value is False,      # as scales of few tokens are
}
OWNERS = {
    "Buffer": lambda side: side.buffer,
    "EventOverlap": after_a_call,
    "DeviceArray": lambda side: side.x(),
}


def has_value(key, is_right):
    owner, _, name = key.partition(".")

    def run(side, row):
        value = getattr(OWNERS[owner](side), name)
        assert is_right(side, value), f"is {value!r}"
    return run


TABLE |= {key: Member(has_value(key, is_right)) for key, is_right in ATTRIBUTES.items()}
TABLE |= {f"Config.{name}": Member(equals(lambda s, row, name=name: getattr(Config(), name),
                                          lambda s, row, want=want: want))
          for name, want in {
              "num_sms": 20, "num_max_nvl_chunked_send_tokens": 6,
              "num_max_nvl_chunked_recv_tokens": 256, "num_max_rdma_chunked_send_tokens": 6,
              # a multiple of the one before
              "num_max_rdma_chunked_recv_tokens": 258}.items()}
# `Side.dispatch` compares them.
TABLE |= {f"EPHandle.{name}": Member(attribute(name)) for name in (
    "rank", "executor", "recv_src_idx", "is_token_in_rank", "num_tokens", "num_recv", "num_topk",
    "num_worst_tokens", "hidden", "recv_count")}

TABLE |= {f"LowLatencyHandle.{name}": Member(ll_attribute(name)) for name in (
    "rank", "num_ranks", "executor", "num_tokens", "num_topk")}


# -- what there is ----------------------------------------------------------------------------

CLASSES = {"Buffer": "buffer", "EPHandle": "handle", "LowLatencyHandle": "handle",
           "EventHandle": "event", "EventOverlap": "event", "Config": "config",
           "DeviceArray": "arrays.device_array"}


def public_members():
    """Key of `TABLE` -> names of its optional parameters, from the code and its stubs.

    A class stands for its construction; special methods are there if they have such parameters.
    """
    found = {}
    for name, module in CLASSES.items():
        cls = getattr(importlib.import_module(f"deepep_ptx.{module}"), name)
        stub = by_name(stub_of(module)[name][0].body)
        if name != "DeviceArray":       # calls make it
            found[name] = optional_of(cls)
        members = {member for member in dir(cls) if not member.startswith("_")}
        members -= {member for base in cls.__mro__[1:] for member in dir(base)
                    if not base.__module__.startswith("deepep_ptx")}
        members |= {member for member in stub if not member.startswith("_")}
        members |= {member for member, nodes in stub.items()
                    if member not in ("__init__", "__new__", "__exit__")
                    and member.startswith("__") and stub_kind_of(nodes[0]) == "function"
                    and (nodes[0].args.defaults or any(nodes[0].args.kw_defaults))}
        for member in members:
            value = inspect.getattr_static(cls, member, None)
            value = getattr(value, "__func__", value)
            found[f"{name}.{member}"] = optional_of(value) if inspect.isfunction(value) else []
    return found


def optional_of(function):
    """Names of the parameters that have a default."""
    return [p.name for p in inspect.signature(function).parameters.values()
            if p.default is not p.empty]


def missing(table, members):
    """What the table lacks, and what it has too much, as lines."""
    lines = [f"{key}: no Member in tests/api_table.py" for key in sorted(set(members) - set(table))]
    lines += [f"{key}: in tests/api_table.py, but not public" for key in
              sorted(set(table) - set(members))]
    for key in sorted(set(members) & set(table)):
        member, optional = table[key], set(members[key])
        free = optional - set(member.always)
        if {} not in member.rows:
            lines.append(f"{key}: no row without an option")
        unknown = {option for row in member.rows for option in row} - optional
        lines += [f"{key}: has no optional parameter {option}" for option in sorted(unknown)]
        for option in sorted(free):
            alone = {option} | set(member.needs.get(option, ()))
            if alone not in [set(row) for row in member.rows]:
                lines.append(f"{key}: no row with {option} alone"
                             + (f" beside {sorted(alone - {option})}" if len(alone) > 1 else ""))
        together = [set(row) for row in member.rows]
        if len(free) > 1 and not any(len(row) > 1 for row in together):
            lines.append(f"{key}: no row with all compatible options")
    return lines


# -- running it -------------------------------------------------------------------------------

def groups(library_gives_device_arrays):
    """Classes whose rows a library can run."""
    return [name for name in CLASSES if name != "DeviceArray" or library_gives_device_arrays]


def run_group(comm, library, group):
    """All rows of one class, in the table's order, on a rank."""
    job = Job(JOB["tokens"][:comm.size], JOB["hidden"], JOB["num_topk"], JOB["num_experts"])
    with Buffer(comm, job.arena_bytes, low_latency_mode=True, timeout_s=30.0,
                tuning=False) as buffer:
        side = Side(comm, library, job, buffer)
        for key, member in TABLE.items():
            if key.partition(".")[0] != group:
                continue
            for row in member.rows:
                try:
                    member.run(side, row)
                except BaseException as error:
                    error.add_note(f"{key} with {sorted(row) or 'no option'}")
                    raise
        buffer.check()
