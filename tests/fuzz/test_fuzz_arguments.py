# SPDX-License-Identifier: MIT
"""Every method of a buffer with arguments of all kinds: a call is right, or a typed error names an
argument; nothing else, and the buffer works afterwards.

Derandomised: the same calls each time, those that have found something among them as examples.
"""

import inspect

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from deepep_ptx import Buffer, run_ranks
from tests.fuzz.calls import (
    ARENA_BYTES,
    CHECKS,
    METHODS,
    RANKS,
    Rank,
    is_named,
)
from tests.fuzz.values import NOTHING

BOUNDED = settings(derandomize=True, database=None, print_blob=False,
                   phases=(Phase.explicit, Phase.generate))
LOCAL = ("get_dispatch_layout", "get_combine_buffer", "get_local_buffer_tensor", "count_received",
         "set_num_sms", "clean_low_latency_buffer", "get_next_low_latency_combine_buffer")
# Ranks that differ in these: tests/test_low_latency_errors.py; they need a reset() then.
ABORTING = "low_latency_dispatch", "low_latency_combine"
# Of buffers with enable_shrink.
MASKS = "low_latency_update_mask_buffer", "low_latency_query_mask_buffer"


@st.composite
def a_call(draw, methods=tuple(METHODS)):
    """(method, argument -> name of its value), of one argument or two."""
    method = draw(st.sampled_from(methods))
    arguments = draw(st.lists(st.sampled_from(sorted(METHODS[method])), min_size=1, max_size=2,
                              unique=True))
    return method, {argument: draw(st.sampled_from(sorted(METHODS[method][argument])))
                    for argument in arguments}


def some_calls(*methods):
    return st.lists(a_call(*methods), min_size=1, max_size=6)


def attempt(side, method, arguments):
    """(results, None) or (None, the error, which names an argument or another rank)."""
    try:
        return side.call(method, arguments), None
    except Exception as error:
        return None, error


def judge(side, method, found, results, error, meant):
    """Whether the call did what it has to, on this rank."""
    if error is None:
        refused = [argument for argument, value in found.items() if value.means is NOTHING]
        assert not refused, f"{refused} taken"
        CHECKS[method](side, results, meant)
    else:
        assert is_named(error, method), f"{type(error).__name__}: {error}"
        assert len(found) > 1 or not any(value.must for value in found.values()), str(error)


def means_of(found):
    return {argument: value.means for argument, value in found.items()}


def all_ranks_alike(calls):
    """All ranks make the calls, in an arena that grows."""
    def main(comm):
        with Buffer(comm, ARENA_BYTES, low_latency_mode=True) as buffer:
            side = Rank(comm, buffer)
            side.dispatch_well()
            for method, changes in calls:
                arguments, found = side.changed(method, changes)
                meant = comm.allgather(means_of(found))
                results, error = attempt(side, method, arguments)
                outcomes = comm.allgather(error)
                assert len({outcome is None for outcome in outcomes}) == 1, outcomes
                judge(side, method, found, results, error, meant)
                del results, error, outcomes
            buffer.check()
            side.dispatch_well()

    run_ranks(main, RANKS, executor="emu")


def one_rank_differs(calls):
    """Rank 1 makes the calls, and a good one where one is refused; rank 0 knows of nothing."""
    def main(comm):
        with Buffer(comm, arena_limit_bytes=ARENA_BYTES, low_latency_mode=True) as buffer:
            side = Rank(comm, buffer)
            side.dispatch_well()
            for method, changes in calls:
                make_differing_call(side, method, changes)
            side.dispatch_well()

    run_ranks(main, RANKS, executor="emu")


def make_differing_call(side, method, changes):
    arguments, found = side.changed(method, changes if side.rank else {})
    meant = side.comm.allgather(means_of(found))
    launched = instructions(side)
    results, error = attempt(side, method, arguments)
    is_refused = error is not None and launched == instructions(side)
    if is_refused:              # by this rank alone: nothing of it has run
        judge(side, method, found, None, error, meant)
        found = {}
        results, error = attempt(side, method, side.right(method))
    refused, outcomes = zip(*side.comm.allgather((is_refused, error)), strict=True)
    assert not refused[0], outcomes
    if refused[1]:
        assert outcomes == (None, None), outcomes
        meant = [{}] * RANKS
    assert len({outcome is None for outcome in outcomes}) == 1, outcomes
    if error is None:
        judge(side, method, found, results, error, meant)
    else:
        assert any(is_named(outcome, method) for outcome in outcomes), outcomes


def instructions(side):
    """What this rank's kernels have executed."""
    return side.comm.executor.counters()["warp_instructions"]


# What has been found so far.
@example([("low_latency_dispatch", {"return_recv_hook": "array"})])
@example([("get_combine_buffer", {"rows": "int32 100"})])
@example([("get_combine_buffer", {"hidden": "uint8 128"})])
@example([("get_combine_buffer", {"like": "read-only"})])
@example([("get_dispatch_layout", {"num_experts": "uint8 64"})])
@example([("get_dispatch_layout", {"topk_idx": "claims huge ndim"})])
@example([("get_dispatch_layout", {"topk_idx": "claims no shape"})])
@example([("get_dispatch_layout", {"topk_idx": "claims no data"})])
@example([("get_dispatch_layout", {"topk_idx": "interface, address 0"})])
@example([("get_dispatch_layout", {"topk_idx": "interface, negative address"})])
@example([("get_dispatch_layout", {"async_finish": "array"})])
@example([("dispatch", {"expert_alignment": "uint32 128"})])
@example([("dispatch", {"num_worst_tokens": "uint8 100"})])
@example([("dispatch", {"x": "with scales (4611686018427387904, 4) apart"})])
@example([("dispatch", {"previous_event": "an event's number that is none"})])
@example([("combine", {"topk_weights": "claims bytes past the end"})])
@settings(BOUNDED, max_examples=130)
@given(some_calls())
def test_all_ranks_alike(calls):
    all_ranks_alike(calls)


@example([("dispatch", {"expert_alignment": "uint32 128"})])
@example([("dispatch", {"x": "of float64"})])
@example([("dispatch", {"num_tokens_per_rank": "a row too many"})])
@settings(BOUNDED, max_examples=60)
@given(some_calls(tuple(method for method in METHODS
                        if method not in (*LOCAL, *ABORTING))))
def test_one_rank_differs(calls):
    one_rank_differs(calls)


def test_every_method_is_tried():
    """Those with arguments, and all of their arguments."""
    tried = {}
    for method, arguments in METHODS.items():
        tried.setdefault(method.removeprefix("cached "), set()).update(arguments)
    for name, method in inspect.getmembers(Buffer, callable):
        parameters = set(inspect.signature(method).parameters) - {"self"} if (
            not name.startswith("_")) else set()
        elsewhere = name in MASKS or name in (
            "get_dispatch_config", "get_combine_config", "get_size_hint",
            "get_low_latency_rdma_size_hint")
        if parameters and not elsewhere:
            assert tried.get(name) == parameters, name


@pytest.mark.parametrize("method", METHODS)
def test_values_that_have_to_be_taken(method):
    """Each argument has some, so that refusing everything is no way out."""
    def main(comm):
        with Buffer(comm, ARENA_BYTES, low_latency_mode=True) as buffer:
            side = Rank(comm, buffer)
            side.dispatch_well()
            return {argument: sum(side.changed(method, {argument: name})[1][argument].must
                                  for name in METHODS[method][argument])
                    for argument in METHODS[method]}

    for counts in run_ranks(main, RANKS, executor="emu"):
        assert min(counts.values()) >= 1, counts
        assert np.sum(list(counts.values())) >= 1
