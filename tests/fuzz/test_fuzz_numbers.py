# SPDX-License-Identifier: MIT
"""Numbers of all kinds for what takes numbers alone: NumPy's do what ints do, others are errors by
name.  All of `values`, one argument at a time."""

import inspect

import numpy as np
import pytest

from deepep_ptx import Buffer, Config, EventOverlap, config, run_ranks
from deepep_ptx.cli.demo.gating import group_limited_topk
from deepep_ptx.handle import EPHandle
from deepep_ptx.reference import dispatch, layout
from tests.fuzz.values import EDGES, KINDS, NO_INTEGERS

IDX = np.array([[0, 7], [3, -1]])
X = np.arange(8.0).reshape(2, 4)


def ranks(num_ranks, **options):
    if isinstance(num_ranks, (int, np.integer)) and 8 < num_ranks <= 64:
        num_ranks = 65                      # so many threads take their time
    return run_ranks(lambda comm: comm.rank, num_ranks, executor="emu", **options)


# Name -> (function, its right arguments by name, those that are numbers).
SIZES = {"num_tokens": 5, "hidden": 24, "num_topk": 3, "num_ranks": 4, "itemsize": 2,
         "num_scales": 3, "topk_idx_bytes": 8, "live_results": 2, "scale_itemsize": 4}
SLOT = {"num_rows": 5, **{name: SIZES[name] for name in (
    "hidden", "num_topk", "itemsize", "num_scales", "topk_idx_bytes", "scale_itemsize")}}
FUNCTIONS = {
    "Config": (Config, {field: getattr(Config(), field) for field in Config.__match_args__}),
    "get_size_hint": (config.get_size_hint, SIZES),
    "Buffer.get_size_hint": (Buffer.get_size_hint, SIZES),
    "get_low_latency_rdma_size_hint": (Buffer.get_low_latency_rdma_size_hint, {
        "num_max_dispatch_tokens_per_rank": 5, "hidden": 256, "num_ranks": 4, "num_experts": 8,
        "num_topk": 3}),
    "slot_bytes": (config.slot_bytes, SLOT),
    "staging_bytes": (config.staging_bytes, {name: SIZES[name] for name in (
        "num_tokens", "hidden", "num_topk", "num_ranks")}),
    "get_dispatch_config": (config.get_dispatch_config, {"num_ranks": 8, "num_sms": 20}),
    "get_combine_config": (config.get_combine_config, {"num_ranks": 8, "num_sms": 20}),
    "Buffer.get_dispatch_config": (Buffer.get_dispatch_config, {"num_ranks": 8}),
    "Buffer.get_combine_config": (Buffer.get_combine_config, {"num_ranks": 8}),
    "get_nvl_buffer_size_hint": (Config().get_nvl_buffer_size_hint,
                                 {"hidden_bytes": 16, "num_ranks": 8}),
    "get_rdma_buffer_size_hint": (Config().get_rdma_buffer_size_hint,
                                  {"hidden_bytes": 16, "num_ranks": 8}),
    "layout": (lambda **numbers: layout(IDX, **numbers), {"num_experts": 8, "num_ranks": 2}),
    "dispatch": (lambda **numbers: dispatch([X], [IDX], None, **numbers)[0].recv_x.shape[0],
                 {"num_experts": 8, "num_worst_tokens": 3}),
    "group_limited_topk": (lambda **numbers: group_limited_topk(X, np.ones((128, 4)), **numbers),
                           {"num_topk": 2, "num_groups": 4, "num_topk_groups": 2}),
    "run_ranks": (ranks, {"num_ranks": 2, "seed": 0}),
}
CASES = [(name, argument) for name, (_, right) in FUNCTIONS.items() for argument in right]
MOST = 1 << 20              # of what makes as large an array


def outcome(function, arguments):
    """("gives", what) or ("raises", type, text)."""
    try:
        return "gives", function(**arguments)
    except (TypeError, ValueError) as error:
        return "raises", type(error), str(error)


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_numbers(name, argument):
    function, right = FUNCTIONS[name]
    for number in EDGES:
        if argument in ("num_experts", "num_worst_tokens") and number >= MOST:
            continue
        want = outcome(function, right | {argument: number})
        assert want[0] == "gives" or want[2].startswith(
            tuple(f"{known}: " for known in (*right, "topk_idx"))), want
        for kind in KINDS.values():
            if kind is int or np.iinfo(kind).min <= number <= np.iinfo(kind).max:
                got = outcome(function, right | {argument: kind(number)})
                np.testing.assert_equal(got, want)


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_no_numbers(name, argument):
    function, right = FUNCTIONS[name]
    for what, value in NO_INTEGERS.items():
        got = outcome(function, right | {argument: value})
        if (name, argument, what) == ("group_limited_topk", "num_topk_groups", "None"):
            assert got[0] == "gives"        # all of them
        else:
            assert got[0] == "raises" and got[2].startswith(f"{argument}: "), (what, got)


@pytest.mark.parametrize("value", NO_INTEGERS.values(), ids=NO_INTEGERS)
def test_handles_of_other_items(value):
    with pytest.raises(TypeError, match="^items: must be what dispatch returned, or a tuple of"):
        EPHandle(value)


@pytest.mark.parametrize("value", NO_INTEGERS.values(), ids=NO_INTEGERS)
def test_other_events(value):
    if value is None:
        EventOverlap(value).current_stream_wait()
    else:
        with pytest.raises(TypeError, match="^event: must be None, an EventHandle or an event"):
            EventOverlap(value)


@pytest.mark.parametrize("value", NO_INTEGERS.values(), ids=NO_INTEGERS)
def test_other_hooks(value):
    if value is None or callable(value):
        assert EventOverlap(hook_after_wait=value).event is None
    else:
        with pytest.raises(TypeError, match="^hook: must be a function without arguments"):
            EventOverlap(hook_after_wait=value)


@pytest.mark.parametrize("value", NO_INTEGERS.values(), ids=NO_INTEGERS)
@pytest.mark.parametrize("option", ["timeout_s", "devices", "ranks_per_node", "arch", "scheduler",
                                    "checks"])
def test_other_options_of_runs(option, value):
    got = outcome(ranks, {"num_ranks": 2, option: value})
    assert got == ("gives", [0, 1]) or got[0] == "raises" and got[2].startswith(f"{option}: "), got


@pytest.mark.parametrize("value", NO_INTEGERS.values(), ids=NO_INTEGERS)
@pytest.mark.parametrize("option", [
    name for name in inspect.signature(Buffer).parameters if name != "group"])
def test_other_options_of_buffers(option, value):
    def main(comm):
        try:
            Buffer(comm, **{option: value}).destroy()
        except (TypeError, ValueError, NotImplementedError) as error:
            return str(error)
        return f"{option}: "

    (text,) = run_ranks(main, 1, executor="emu")
    assert text.startswith(f"{option}: "), text
