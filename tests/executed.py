# SPDX-License-Identifier: MIT
"""Runs in which every instruction of the shipped kernels is executed, but for those that
tests/unexecuted.toml names, each with its reason; docs/coverage.md explains both."""

import os
import tomllib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from deepep_ptx import Buffer, _emu, run_ranks, runtime, select
from deepep_ptx import low_latency as low_latency_calls
from deepep_ptx.arrays.dtypes import BY_NAME
from deepep_ptx.cli.check import failing_low_latency
from deepep_ptx.cli.check.low_latency import LowLatencyCalls
from deepep_ptx.cli.check.rounds import Calls
from deepep_ptx.cli.check.workloads import WORKLOADS, Workload
from deepep_ptx.emu.coverage import coverage, ranges
from deepep_ptx.errors import DeepEPError, DeepEPTimeoutError, RankMismatchError
from tests import low_latency, test_async, test_graphs, test_row_types
from tests import test_buffer_life as life
from tests import test_low_latency_masks as masks
from tests.test_roundtrip import PLAIN, assert_round_trip, make_inputs

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("unexecuted.toml")

# Included for each wait, or each error, of a kernel: that of its copies one is executed is enough.
SHARED = tuple(f"ptx/role/{name}.inc" for name in (
    "exchange/look_around", "exchange/wait_flag", "fault/abort_rank", "fault/give_up",
    "fault/report", "fault/stuck", "fault/tell_abort", "fault/tell_peers", "fault/write_report",
    "low_latency/await_word", "low_latency/mask_rank", "low_latency/note_failure"))

# In the place of a policy: the kernels that have none, and those of buffers with enable_shrink.
LOW_LATENCY = "low-latency"
SHRINK = "low-latency, enable_shrink"
OF_KERNEL = {"ll_dispatch": LOW_LATENCY, "ll_dispatch_shrink": SHRINK}

AT_ONCE = 1e-7          # seconds: a wait of more than 64 polls gives up
LONG = 1 << 20          # hidden of rows that take longer than so many polls


def forms():
    """(target, policy) of all that ships."""
    found = {}
    for variant in select.load_table()["variants"]:
        if variant["path"]:
            found[variant["arch"], variant["policy"] or variant["path"]] = None
        elif variant["kernel"] in OF_KERNEL:
            found[variant["arch"], OF_KERNEL[variant["kernel"]]] = None
    return list(found)


def form_of(name):
    """In the place of a policy, of the kernel of that name; None: it has one, or runs with any."""
    if not name.startswith("ll_"):
        return None
    return SHRINK if name == "ll_mask" or name.endswith("_shrink") else LOW_LATENCY


def symbols(arch, policy):
    """Those of the kernels that the runs of a form are about."""
    form = policy if policy in (LOW_LATENCY, SHRINK) else None
    chosen = select.choose(select.DEFAULT_POLICY if form else policy, arch)
    return {variant["symbol"] for name, variant in chosen.items() if form_of(name) == form}


# -- calls that are right ---------------------------------------------------------------------

SINGLE_SM = {"num_ranks": 2, "num_sms": 1}
ROUND_TRIPS = [
    {"hidden": 1160, "num_biases": 2, "tokens": "some zero", "routing": "holes", "again": "same",
     "num_sms": 2},
    {"hidden": 1160, "num_ranks": 3, "combine": "push", "tokens": "some zero", "worst": True,
     "num_biases": 1, "num_sms": 1, "num_topk": 9},
    {"hidden": 8, "num_ranks": 2, "combine": "mixed", "topk_data": "none"},
    {"num_ranks": 1},
    # several tokens for each warp, rows in several parts and chunks
    SINGLE_SM | {"tokens": "many", "hidden": 8, "combine": "mixed"},
    SINGLE_SM | {"tokens": "many", "hidden": 264, "combine": "push", "again": "same"},
    SINGLE_SM | {"tokens": "many", "hidden": 264, "again": "same", "idx_dtype": "int32"},
    SINGLE_SM | {"hidden": 7168, "ring": (3, 512), "combine": "mixed", "again": "same"},
    # more ranks than lanes, more choices than are unrolled, entries for all threads
    {"hidden": 8, "num_ranks": 48, "num_topk": 32, "num_sms": 1, "again": "same",
     "combine": "mixed"},
    {"hidden": 8, "num_ranks": 12, "num_topk": 9, "num_sms": 1, "tokens": "many",
     "idx_dtype": "int32", "combine": "push", "topk_data": "dispatch"},
    {"hidden": 1152, "num_ranks": 2, "dtype": "fp8", "again": "fp8", "idx_dtype": "int32",
     "combine": "pull x", "worst": True},
    {"hidden": 528, "num_ranks": 2, "dtype": "fp8 odd", "again": "same",
     "combine": "pull weights", "topk_data": "dispatch"},
]
SCALES = (("float32", 129), ("float16", 130), ("uint8", 300))


def layout(comm, idx, num_experts):
    """`get_dispatch_layout` of these choices on every rank."""
    with Buffer(comm) as buffer:
        per_expert = buffer.get_dispatch_layout(idx, num_experts)[2]
        np.testing.assert_array_equal(per_expert, np.bincount(idx.ravel(), minlength=num_experts))


def choices(num_tokens, num_topk, num_experts):
    """Experts [num_tokens, num_topk], none of them twice for one token."""
    rng = np.random.default_rng(num_tokens)
    first = rng.integers(0, num_experts, (num_tokens, 1))
    return (first + np.arange(num_topk)) % num_experts


def odd_ranks(comm):
    """A number of ranks that divides no number of threads."""
    x = np.full((9, 8), comm.rank, life.BF16)
    with Buffer(comm) as buffer:
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(choices(9, 1, 10), 10)
        recv_x, _, _, _, handle, _ = buffer.dispatch(
            x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert)
        sent = np.diff(handle[0][:, comm.rank], prepend=0)
        np.testing.assert_array_equal(recv_x[:, 0], np.repeat(np.arange(comm.size), sent))


def copied(comm):
    """Results that are copied, in more than one turn of all threads."""
    inputs = [life.tokens(rank, 200, 7168) for rank in range(comm.size)]
    with Buffer(comm, zero_copy=False) as buffer:
        for _ in range(2):
            recv_x, *_, handle, _ = life.dispatch(buffer, *inputs[comm.rank])
            ends = handle[0][:, comm.rank]
            sources = np.repeat(np.arange(comm.size), np.diff(ends, prepend=0))
            for row, source, token in zip(recv_x, sources, handle.recv_src_idx, strict=True):
                assert row.tobytes() == inputs[source][0][token].tobytes()


# -- calls that are refused, and waits that give up ---------------------------------------------

def bad_experts(comm):
    """An expert that is not there in each of the unrolled choices."""
    idx = choices(8, 8, life.E)
    np.fill_diagonal(idx, life.E)
    with Buffer(comm) as buffer:
        error = life.raised(buffer.get_dispatch_layout, idx, life.E)
        assert isinstance(error, ValueError), error
        assert str(error).startswith("topk_idx: row "), error


def mismatch(comm):
    """On several CTAs: rank 1 has longer rows, then another handle; then all is right."""
    with Buffer(comm) as buffer:
        inputs = life.tokens(comm.rank, hidden=128 if comm.rank else life.H)
        error = life.raised(life.dispatch, buffer, *inputs, num_sms=2)
        assert isinstance(error, RankMismatchError), error
        inputs = life.tokens(comm.rank)
        recv_x, *_, handle, _ = [life.dispatch(buffer, *inputs) for _ in range(2)][comm.rank]
        error = life.raised(buffer.combine, recv_x, handle, num_sms=2)
        assert isinstance(error, RankMismatchError), error
        life.check_round(buffer, comm.size)


def dead_handles(comm, use):
    """A call with the handle of a dispatch that is refused, queued before anybody knows."""
    x, idx, weights = life.tokens(comm.rank)
    with Buffer(comm, 1 << 20) as buffer:
        handle = life.dispatch(buffer, x, idx, weights, num_worst_tokens=1, async_finish=True)[4]
        if use == "dispatch":
            buffer.dispatch(x, handle=handle, async_finish=True)
        else:
            buffer.combine(x[:1], handle, async_finish=True)
        error = life.raised(buffer.check)
        assert "num_worst_tokens: must be at least" in str(error), error
        assert any("handle: must be of a dispatch that was carried out" in note
                   for note in error.__notes__), error.__notes__


def overlapping(comm, use):
    """Two replays of one captured call at the same time, which the device finds."""
    x, idx, weights = life.tokens(comm.rank)
    executor = comm.executor
    with Buffer(comm, 1 << 20, timeout_s=0.5) as buffer:
        recv_x, *_, handle, _ = life.dispatch(buffer, x, idx, weights)
        with executor.capture() as graph:
            out = (buffer.combine(recv_x, handle) if use == "combine"
                   else buffer.dispatch(x, handle=handle))
        streams = [executor.stream_create() for _ in range(2)]
        for stream in streams:
            graph.replay(stream)
        for stream in streams:
            executor.synchronize(stream)
        error = life.raised(buffer.check)
        assert "two calls of one buffer overlap" in str(error), error
        graph.close()
        del out, recv_x, handle
        buffer.reset()
        life.check_round(buffer, comm.size)


SPIN = """
.version 7.4
.target sm_80
.address_size 64
.visible .entry spin(.param .align 8 .b8 p[8])
{
    .reg .b32 n;  .reg .pred q;
    ld.param.u32    n, [p];
$again:
    sub.u32         n, n, 1;
    setp.ne.u32     q, n, 0;
    @q bra          $again;
    ret;
}
"""


def late_rank(comm):
    """Rank 1 is busy for thousands of polls of the others; then all is right."""
    executor = comm.executor
    busy = executor.load("spin", SPIN, 8)
    with Buffer(comm) as buffer:
        x, idx, weights = life.tokens(comm.rank)
        layout = buffer.get_dispatch_layout(idx, life.E)
        recv_x, *_, handle, _ = buffer.dispatch(
            x, num_tokens_per_rank=layout[0], is_token_in_rank=layout[3],
            num_tokens_per_expert=layout[2], topk_idx=idx, topk_weights=weights)
        for call in (partial(buffer.dispatch, x, handle=handle),
                     partial(buffer.combine, recv_x, handle)):
            if comm.rank:
                executor.launch(busy, (100_000).to_bytes(8, "little"), 1, 1)
            call()
        life.check_round(buffer, comm.size)


def slow_push(comm, with_weights):
    """Rank 1 pushes long rows to rank 0, which has little patience."""
    x = np.zeros((0 if comm.rank else 3, LONG), life.BF16)
    idx = np.full((len(x), 1), life.E - 1)      # of rank 1
    with Buffer(comm) as buffer:
        recv_x, _, recv_weights, _, handle, _ = life.dispatch(
            buffer, x, idx, np.ones(idx.shape, np.float32))
        y, weights = np.array(recv_x), np.array(recv_weights)
    with Buffer(comm, timeout_s=AT_ONCE) as buffer:
        error = life.raised(buffer.combine, y, handle, num_sms=1,
                            topk_weights=weights if with_weights else None)
        assert isinstance(error, DeepEPTimeoutError), error
        buffer.reset()


def slow_push_beside_pulled_rows(comm):
    """Rank 0 gives up waiting for a row of rank 1 while rows of rank 2 are on their way."""
    x = np.zeros((0 if comm.rank else 33, 34 * 1024), life.BF16)
    idx = np.full((len(x), 2), life.E - 1)      # of rank 2
    idx[32:, 0] = life.E // 3                   # of rank 1
    with Buffer(comm) as buffer:
        recv_x, *_, handle, _ = life.dispatch(buffer, x, idx, np.ones(idx.shape, np.float32))
        y = np.array(recv_x)
    with Buffer(comm, 1 << 26, timeout_s=AT_ONCE, stage_bytes=256) as buffer:
        if comm.rank == 2:
            y = buffer.get_combine_buffer(*y.shape)
            y[:] = 0
        error = life.raised(buffer.combine, y, handle, num_sms=1)
        assert isinstance(error, DeepEPTimeoutError), error
        del y
        buffer.reset()


def late_loads(comm, use):
    """Bulk loads come later than the limit."""
    x, idx, weights = life.tokens(comm.rank, 24, 1160)
    with Buffer(comm) as buffer:
        recv_x, *_, handle, _ = life.dispatch(buffer, x, idx, weights)
        y = np.array(recv_x)
    with Buffer(comm, 1 << 20, timeout_s=AT_ONCE) as buffer:
        call = {"dispatch": partial(life.dispatch, buffer, x, idx, weights),
                "push": partial(buffer.combine, y, handle),
                "mixed": partial(buffer.combine, y if comm.rank else recv_x, handle)}[use]
        error = life.raised(call, num_sms=1)
        assert isinstance(error, DeepEPTimeoutError), error
        buffer.reset()


# -- low latency --------------------------------------------------------------------------------

LL_EXPERTS = 32
# tokens of each rank, changes of the call; more tokens: rows in fewer parts
LL_ROUND_TRIPS = [
    ([3, 9], {}), ([3, 9], {"use_fp8": False, "num_sms": 1}), ([0, 0], {}),
    ([300, 260], {"num_sms": 2}), ([600, 4], {}), ([1030, 4], {}),
]


# Of combine: `reduce`, and changes of the call: as it is, and with rows in LogFMT-10.
LOGFMT = {"use_logfmt": True, "shrink": 2.0**-12}
LL_FORMS = [("exact", {}), ("rank", {}), ("exact", LOGFMT)]


def low_latency_round_trip(comm, tokens, changes, reduce, idx_dtype, hidden):
    """Every second token names eight experts of one rank, the others some of all ranks."""
    rng = np.random.default_rng(len(tokens))
    num_topk = 8 if max(tokens) < 500 else 1
    inputs = low_latency.make_inputs(rng, tokens, hidden, LL_EXPERTS, num_topk, "holes", idx_dtype)
    for idx in inputs[1]:
        for number, choices in enumerate(idx[::2]):
            choices[:] = (np.arange(num_topk) + 16 * (number % 2) + number % 9)
    with Buffer(comm, low_latency_mode=True, reduce=reduce) as buffer:
        low_latency.round_trip(comm, buffer, inputs, LL_EXPERTS, max(1, *tokens), **changes)


def many_low_latency_ranks(comm, use_logfmt):
    """More ranks than a warp has lanes, whose waits are counted."""
    inputs = low_latency.make_inputs(np.random.default_rng(1), [1] * comm.size, 512, comm.size, 2)
    x, idx, weights = (arrays[comm.rank] for arrays in inputs)
    waits = np.zeros((2, comm.size), np.int64)
    with Buffer(comm, low_latency_mode=True, reduce="exact" if use_logfmt else None) as buffer:
        recv_x, _, handle, _, _ = buffer.low_latency_dispatch(
            x, idx, 1, comm.size, use_fp8=False, num_sms=1, dispatch_wait_recv_cost_stats=waits[0])
        buffer.low_latency_combine(recv_x, idx, weights, handle, use_logfmt, num_sms=1,
                                   combine_wait_recv_cost_stats=waits[1])
    assert (waits >= 0).all()


def late_low_latency_rank(comm):
    """Rank 1 is busy for thousands of polls of the other one, before each call."""
    busy = comm.executor.load("spin", SPIN, 8)
    inputs = low_latency.make_inputs(np.random.default_rng(1), [3, 2], 128, 4, 2)
    with Buffer(comm, low_latency_mode=True) as buffer:
        for _ in range(2):
            if comm.rank:
                comm.executor.launch(busy, (100_000).to_bytes(8, "little"), 1, 1)
            low_latency.round_trip(comm, buffer, inputs, 4, 3)


def aborted_before(comm, use_logfmt):
    """Of two CTAs the first aborts the rank, and the call ends; others are queued behind it."""
    idx = np.full((4, 3), -1)
    idx[:2] = 0                                         # six times, where four may be
    x = np.zeros((4, 512), life.BF16)
    with Buffer(comm, low_latency_mode=True, reduce="exact") as buffer:
        for _ in range(2):
            recv_x, _, handle, _, _ = buffer.low_latency_dispatch(
                x, idx, 4, 2, use_fp8=False, num_sms=2, async_finish=True)
        buffer.low_latency_combine(recv_x, idx, np.ones(idx.shape, np.float32), handle, use_logfmt,
                                   num_sms=2, async_finish=True)
        with pytest.raises(ValueError, match="^topk_idx: row 1 of rank 0 names expert 0 when"):
            buffer.check()
        buffer.reset()


def different_low_latency_calls(comm):
    """Ranks that differ in a cast, and in a handle."""
    xs, idxs, weights = low_latency.make_inputs(np.random.default_rng(2), [3, 2], 128, 4, 2)
    mine = xs[comm.rank], idxs[comm.rank]
    with Buffer(comm, low_latency_mode=True, timeout_s=AT_ONCE * 1e4) as buffer:
        with pytest.raises(DeepEPError):
            buffer.low_latency_dispatch(*mine, 3, 4, round_scale=comm.rank == 0)
        buffer.reset()
        handles = [buffer.low_latency_dispatch(*mine, 3, 4)[2] for _ in range(2)]
        with pytest.raises(DeepEPError):
            buffer.low_latency_combine(np.zeros((2, 6, 128), life.BF16), idxs[comm.rank],
                                       weights[comm.rank], handles[comm.rank])
        buffer.reset()


def told_while_waiting(comm, call, reduce, idx_dtype):
    """Rank 2 waits in a call to which nobody comes, and is told that rank 1 has masked it."""
    xs, idxs, weights = low_latency.make_inputs(np.random.default_rng(3), [4, 3, 5], 128, 12, 8,
                                                idx_dtype=idx_dtype)
    x, idx, weight = xs[comm.rank], idxs[comm.rank], weights[comm.rank]
    with Buffer(comm, low_latency_mode=True, reduce=reduce) as buffer:
        recv_x, _, handle, _, _ = buffer.low_latency_dispatch(x, idx, 5, 12, use_fp8=False)
        if comm.rank == 1:
            buffer.low_latency_update_mask_buffer(2, mask=True)
        elif comm.rank == 2:
            with pytest.raises(DeepEPTimeoutError, match="^rank 2: rank 1 has masked this rank"):
                if call == "dispatch":
                    buffer.low_latency_dispatch(x, idx, 5, 12, use_fp8=False, num_sms=2)
                else:
                    buffer.low_latency_combine(recv_x, idx, weight, handle, num_sms=2)
        comm.barrier()
        buffer.reset()


def late_with_many_tokens(comm, reduce):
    """The warps of a combine have several units of a rank that does not come."""
    xs, idxs, weights = low_latency.make_inputs(np.random.default_rng(4), [40, 40], 256, 4, 3)
    x, idx, weight = xs[comm.rank], idxs[comm.rank], weights[comm.rank]
    with Buffer(comm, low_latency_mode=True, reduce=reduce) as buffer:
        recv_x, _, handle, _, _ = buffer.low_latency_dispatch(x, idx, 40, 4, use_fp8=False)
        if comm.rank == 0:
            buffer.low_latency_combine(recv_x, idx, weight, handle, num_sms=1)
        comm.barrier()
        buffer.reset()


def late_among_many(comm):
    """The last of more ranks than a warp has lanes does not come; then it is masked."""
    inputs = low_latency.make_inputs(np.random.default_rng(1), [1] * comm.size, 128, comm.size, 2)
    x, idx, weights = (arrays[comm.rank] for arrays in inputs)
    waits = np.zeros(comm.size, np.int64)
    with Buffer(comm, low_latency_mode=True) as buffer:
        recv_x, _, handle, _, _ = buffer.low_latency_dispatch(x, idx, 1, comm.size, use_fp8=False,
                                                              num_sms=1)
        if comm.rank != comm.size - 1:
            for _ in range(2):
                buffer.low_latency_combine(recv_x, idx, weights, handle, num_sms=1,
                                           combine_wait_recv_cost_stats=waits)
        comm.barrier()
        buffer.reset()
        recv_x, _, handle, _, _ = buffer.low_latency_dispatch(x, idx, 1, comm.size, use_fp8=False,
                                                              num_sms=1)
        if comm.rank != comm.size - 1:
            for _ in range(2):
                buffer.low_latency_dispatch(x, idx, 1, comm.size, use_fp8=False, num_sms=1,
                                            dispatch_wait_recv_cost_stats=waits)
            assert waits[-1] > 0
        comm.barrier()
        buffer.reset()


def no_such_expert(comm):
    x, idx = np.zeros((1, 128), life.BF16), np.full((1, 1), 7)
    with Buffer(comm, low_latency_mode=True) as buffer:
        buffer.low_latency_dispatch(x, idx, 1, 1, async_finish=True)
        with pytest.raises(ValueError, match="^topk_idx: row 0 has expert 7"):
            buffer.check()


def late_logfmt_rank(comm):
    """Likewise, before a combine in LogFMT-10."""
    busy = comm.executor.load("spin", SPIN, 8)
    ((x, _), (idx, _), (weights, _)) = low_latency.make_inputs(
        np.random.default_rng(1), [2, 2], 512, 2, 2)
    with Buffer(comm, low_latency_mode=True, reduce="exact") as buffer:
        *_, handle, _, _ = buffer.low_latency_dispatch(x, idx, 2, 2, use_fp8=False)
        rows = np.zeros((1, 4, 512), life.BF16)
        if comm.rank:
            comm.executor.launch(busy, (100_000).to_bytes(8, "little"), 1, 1)
        assert not buffer.low_latency_combine(rows, idx, weights, handle, True)[0].any()


def often(comm, use_logfmt):
    """Now and then a rank begins a call before the flag ll_free of the one before has come."""
    hidden = 512 if use_logfmt else 128
    inputs = low_latency.make_inputs(np.random.default_rng(0), [1, 1], hidden, 2, 1)
    x, idx, weights = (arrays[comm.rank] for arrays in inputs)
    with Buffer(comm, low_latency_mode=True, reduce="exact" if use_logfmt else None) as buffer:
        for _ in range(60):
            low_latency.round_trip(comm, buffer, inputs, 2, 1, use_logfmt=use_logfmt)
        handle = buffer.low_latency_dispatch(x, idx, 1, 2)[2]
        y = np.ones((1, 2, hidden), life.BF16)
        for _ in range(150):
            out = buffer.low_latency_combine(y, idx, weights, handle, use_logfmt)[0]
        assert (out == weights.astype(life.BF16)).all()


def clean(workload, arch, scheduler="rr", **options):
    """A workload as `deepep-ptx check` has them."""
    outcome = workload.run(select.DEFAULT_POLICY, arch=arch, scheduler=scheduler, check=None,
                           **options)
    assert outcome.is_clean, (workload.name, outcome)


def low_latency_scenes(arch):
    """As `scenes`, of the low-latency kernels."""
    for workload in WORKLOADS.values():
        if "ll_dispatch" in workload.uses:
            # Under "random" a word comes between the last two looks here, on sm_80 alone.
            once = workload.name == "ll-logfmt-mistaken"
            for scheduler in ("rr", "random")[:1 if once else 2]:
                yield partial(clean, workload, arch, scheduler)
    for seed in (0, 1, 3):
        for use_logfmt in (False, True):
            yield partial(run_ranks, often, 2, use_logfmt, scheduler="random", seed=seed)
    for idx_dtype in ("int32", "int64"):
        for reduce, form in LL_FORMS:
            late = LowLatencyCalls(tokens=(5, 3), topk=8, reduce=reduce, idx_dtype=idx_dtype,
                                   hidden=512 if form else 256, logfmt=bool(form),
                                   before=failing_low_latency.late_combine)
            yield partial(clean, Workload("late", "more choices at once", (), late, ranks=3), arch)
            for word_tokens in (0, 1 << 12):
                for tokens, changes in LL_ROUND_TRIPS:
                    long, short = (2560, 512) if form else (2432, 128)
                    yield partial(with_word_tokens, word_tokens, run_ranks, low_latency_round_trip,
                                  2, tokens, changes | form, reduce, idx_dtype,
                                  long if max(tokens) < 10 else short)
    # One of the two ranks that wait is told by the other one.
    yield partial(clean, WORKLOADS["ll-late-logfmt"], arch, seed=3)
    for changes in ({"before": failing_low_latency.late_dispatch},
                    {"normal": Calls(tokens=(9, 7))}):
        calls = LowLatencyCalls(tokens=(5, 3), hidden=512, logfmt=True, **changes)
        yield partial(clean, Workload("logfmt", "behind other calls", (), calls, ranks=3), arch)
    yield partial(run_ranks, late_low_latency_rank, 2)
    for scheduler in ("rr", "random"):
        for use_logfmt in (False, True):
            yield partial(run_ranks, aborted_before, 1, use_logfmt, scheduler=scheduler)
    yield partial(run_ranks, late_logfmt_rank, 2)
    for use_logfmt in (False, True):
        yield partial(run_ranks, many_low_latency_ranks, 34, use_logfmt)


def shrinking_scenes(arch):
    """As `scenes`, of the same with masks of ranks."""
    for workload in WORKLOADS.values():
        if "ll_dispatch_shrink" in workload.uses or (
                "ll_combine" in workload.uses and not workload.calls.before):
            for scheduler in ("rr", "random"):
                yield partial(clean, workload, arch, scheduler)
    for reduce in ("exact", "rank"):
        for word_tokens in (0, 1 << 12):
            for tokens, changes in LL_ROUND_TRIPS:
                for idx_dtype in ("int32", "int64"):
                    yield partial(with_word_tokens, word_tokens, run_ranks, low_latency_round_trip,
                                  2, tokens, changes, reduce, idx_dtype,
                                  2432 if max(tokens) < 10 else 128)
            for late_for in ("dispatch", "combine", "receive"):
                yield partial(with_word_tokens, word_tokens, masks.a_late_rank_is_masked, late_for,
                              reduce)
            yield partial(with_word_tokens, word_tokens, masks.masked_between, reduce)
            for call in ("dispatch", "combine"):
                for scheduler, idx_dtype in (("rr", "int32"), ("random", "int64")):
                    yield partial(with_word_tokens, word_tokens, run_ranks, told_while_waiting, 3,
                                  call, reduce, idx_dtype, scheduler=scheduler)
            yield partial(with_word_tokens, word_tokens, run_ranks, late_with_many_tokens, 2,
                          reduce)
    for scheduler in ("rr", "random"):
        yield partial(run_ranks, different_low_latency_calls, 2, scheduler=scheduler)
        yield partial(run_ranks, aborted_before, 1, False, scheduler=scheduler)
    for seed in (1, 3):
        yield partial(run_ranks, often, 2, False, scheduler="random", seed=seed)
    yield partial(run_ranks, late_low_latency_rank, 2)
    for seed in range(4):
        yield partial(masks.ctas_agree_on_a_rank_that_aborts, seed, "random")
    # Rows that are lost; CTAs that give up on a rank whose numbers others have; of either target.
    for seed in (6, 15, 28):
        yield partial(clean, WORKLOADS["ll-impatient"], arch, "random", seed=seed)
    yield partial(run_ranks, late_among_many, 34)
    yield partial(run_ranks, no_such_expert, 1)
    yield masks.test_waits_of_a_late_rank
    yield partial(run_ranks, many_low_latency_ranks, 34, False)


def shrinking(make):
    """`Buffer.__init__` that makes low-latency buffers with enable_shrink."""
    def init(buffer, group, *args, **options):
        if options.get("low_latency_mode"):
            options.setdefault("enable_shrink", True)
        make(buffer, group, *args, **options)
    return init


def with_word_tokens(number, run, *args, **options):
    with mock.patch.object(low_latency_calls, "WORD_TOKENS", number):
        run(*args, **options)


# -- the matrix ------------------------------------------------------------------------------------

def scenes(arch, policy):
    """Functions that run kernels of that form, and hold what comes out against what has to."""
    for number, change in enumerate(ROUND_TRIPS):
        case = PLAIN | {"num_ranks": 4, "arch": arch, "policy": policy} | change
        yield partial(assert_round_trip, case, [make_inputs(case, number)])
    for dtype, count in SCALES:
        yield partial(test_row_types.check, test_row_types.case_of(
            BY_NAME["uint8"], BY_NAME[dtype], num_scales=count, layout="tokens side by side",
            policy=policy, arch=arch))
    yield partial(run_ranks, layout, 1, choices(1000, 8, 512), 512)
    yield partial(run_ranks, layout, 8, choices(1000, 8, 8192), 8192)
    yield partial(run_ranks, odd_ranks, 5)
    yield partial(run_ranks, copied, 2)

    yield partial(run_ranks, bad_experts, 1)
    yield partial(run_ranks, mismatch, 2)
    yield life.test_different_calls
    yield partial(life.test_worst_tokens_too_few, 5)
    yield life.test_staging_too_small
    yield life.test_wrong_rank_counts
    yield life.test_host_error_inside_a_call_aborts_the_peers
    yield partial(life.test_expert_out_of_range, life.E)
    yield test_async.test_many_bad_experts_leave_room_for_what_all_ranks_must_learn
    yield partial(test_async.test_bad_expert_that_a_worst_case_dispatch_has_told, "check", False)
    for fail in test_async.FAILING:
        yield partial(test_async.test_all_ranks_learn_alike, fail, "check", False)
    for use in ("dispatch", "combine"):
        yield partial(run_ranks, dead_handles, 2, use)
        yield partial(run_ranks, overlapping, 2, use)

    yield partial(run_ranks, late_rank, 2)
    yield life.test_timeout_and_reset
    yield test_graphs.test_a_replay_that_a_rank_leaves_out_ends_by_its_limit
    for call in ("dispatch", "cached dispatch", "combine"):
        yield partial(life.test_late_rank_learns_of_the_abort, call, "rr")
    for kind in ("worst", "cached", "combine"):
        yield partial(test_async.test_timeout, "check", kind, False)
    for with_weights in (False, True):
        yield partial(run_ranks, slow_push, 2, with_weights)
    if policy == "bulk":
        for scheduler in ("rr", "late-async"):
            yield partial(run_ranks, slow_push_beside_pulled_rows, 3, scheduler=scheduler)
        for use in ("dispatch", "push", "mixed"):
            yield partial(run_ranks, late_loads, 2, use, scheduler="late-async")


def executed(arch, policy):
    """What all scenes execute: symbol -> `Coverage`."""
    runs, worlds = [], []

    class Recorded(_emu.World):
        def __init__(self, *args, **kwargs):
            worlds.append(self)

    init = Buffer.__init__
    if policy == LOW_LATENCY:
        policy, all_scenes = select.DEFAULT_POLICY, low_latency_scenes(arch)
    elif policy == SHRINK:
        policy, all_scenes = select.DEFAULT_POLICY, shrinking_scenes(arch)
        init = shrinking(init)
    else:
        all_scenes = scenes(arch, policy)
    with mock.patch.multiple(runtime, World=Recorded, ARCHS=(arch,)), \
            mock.patch.object(Buffer, "__init__", init), \
            mock.patch.dict(os.environ, DEEPEP_PTX_POLICY=policy, DEEPEP_PTX_EXECUTOR="emu"):
        for scene in all_scenes:
            scene()
            runs += [world.ran() for world in worlds]
            worlds.clear()
    return coverage(*runs)


# -- held against the table ------------------------------------------------------------------------

@dataclass(frozen=True)
class Exemption:
    """An entry of tests/unexecuted.toml."""

    of: tuple
    file: str
    lines: tuple
    reason: str

    @classmethod
    def read(cls, entry):
        """Of an entry as TOML has it; ValueError where it is none."""
        if entry.keys() != {"of", "file", "lines", "reason"} or not entry["reason"].strip():
            raise ValueError(f"{TABLE.name}: must have of, file, lines and reason, got {entry}")
        return cls(tuple(entry["of"]), entry["file"], tuple(entry["lines"]), entry["reason"])

    def places(self, root=ROOT):
        """text -> (file, number) of the lines that it names."""
        source = [(number, _plain(line)) for number, line in
                  enumerate((root / self.file).read_text().splitlines(), start=1) if _plain(line)]
        found = {}
        for text in self.lines:
            wanted = [_plain(line) for line in text.split("\n")]
            found[text] = [(self.file, source[at + len(wanted) - 1][0])
                           for at in range(len(source) - len(wanted) + 1)
                           if [line for _, line in source[at:at + len(wanted)]] == wanted]
        return found


def _plain(line):
    return " ".join(line.partition("//")[0].split())


def exemptions():
    """All entries of the table."""
    return [Exemption.read(entry)
            for entry in tomllib.loads(TABLE.read_text())["unexecuted"]]


def unexecuted(found):
    """Lines of a `Coverage` that count as not executed."""
    return {line for line in found.missed if line[0] not in SHARED or line in found.nowhere}


def complaints(found, table, root=ROOT):
    """What is wrong with a kernel's `Coverage` and the table, as lines of text; none: nothing."""
    missing, reasons, texts = unexecuted(found), set(), []
    for entry in table:
        if not found.symbol.startswith(entry.of):
            continue
        for text, places in entry.places(root).items():
            if not found.lines.intersection(places):
                texts.append(f"{TABLE.name}: {entry.file}: {found.symbol} has no line {text!r}")
            reasons.update(places)
    texts += [f"{line}: {found.symbol} does not execute it: add a run to tests/executed.py, or "
              f"the reason to {TABLE.name}" for line in ranges(missing - reasons)]
    texts += [f"{TABLE.name}: {line}: {found.symbol} executes it: take it out"
              for line in ranges(found.lines.intersection(reasons) - missing)]
    return texts
