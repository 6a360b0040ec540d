# SPDX-License-Identifier: MIT
"""The kernels under schedulers that do their worst: the same bits whatever runs when."""

import numpy as np
import pytest

from deepep_ptx import Buffer, run_ranks, select
from deepep_ptx.errors import CapacityError
from tests.test_roundtrip import (
    NUM_EXPERTS,
    PLAIN,
    Inputs,
    any_bits,
    assert_round_trip,
    make_inputs,
    rank_main,
    route,
    wanted,
    worst_tokens,
)

SEEDS = range(10)
SCHEDULERS = ["random", "late-async"]

# Small shapes that meet every kernel, both ways of combining, and each kind of call.
CASES = {
    "pull": PLAIN | {"num_biases": 1},
    "push": PLAIN | {"combine": "push", "tokens": "uneven", "num_biases": 2,
                      "policy": "ld_relaxed_sys"},
    "mixed": PLAIN | {"combine": "mixed", "num_ranks": 3, "routing": "holes", "hidden": 520,
                      "policy": "ld_nc_na"},
    "worst": PLAIN | {"worst": True, "tokens": "some zero", "num_ranks": 2, "arch": "sm_80"},
    "crowd": PLAIN | {"topk_data": "none", "routing": "crowd", "idx_dtype": "int32", "hidden": 8},
    "bulk-pull": PLAIN | {"policy": "bulk", "num_ranks": 2, "hidden": 7168, "num_biases": 2},
    "bulk-push": PLAIN | {"policy": "bulk", "combine": "push", "tokens": "uneven"},
    "fp8": PLAIN | {"dtype": "fp8", "hidden": 528, "again": "fp8", "num_biases": 1},
    "fp8 odd": PLAIN | {"dtype": "fp8 odd", "num_ranks": 3, "tokens": "uneven", "again": "same",
                        "combine": "push", "policy": "ld_relaxed_sys", "arch": "sm_80"},
    "cached": PLAIN | {"again": "same", "tokens": "some zero", "routing": "holes",
                       "topk_data": "none"},
    "async": PLAIN | {"finish": "event", "again": "same", "combine": "mixed", "num_biases": 2},
    "async-fp8": PLAIN | {"finish": "event", "dtype": "fp8", "again": "fp8", "num_ranks": 2,
                          "hidden": 528, "combine": "push", "routing": "holes"},
    "async-worst": PLAIN | {"finish": "event", "worst": True, "again": "same", "num_ranks": 3,
                            "tokens": "some zero", "combine": "push"},
    "bulk-async": PLAIN | {"policy": "bulk", "finish": "event", "dtype": "fp8", "again": "fp8",
                           "num_ranks": 2, "tokens": "uneven", "hidden": 1040},
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_bit_exact(scheduler, case, seed):
    assert_round_trip(case, [make_inputs(case, 1000 + 10 * seed + i) for i in range(2)],
                      scheduler=scheduler, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_calls_in_flight(scheduler, seed):
    """Chains that no host waits for, refused calls among them; ranks queue at their own pace."""
    case = PLAIN | {"num_ranks": 3, "tokens": "some zero"}
    inputs = make_inputs(case, 7000 + seed)
    everybody = wanted(case | {"worst": True}, inputs)

    def main(comm):
        rank, later, want = comm.rank, {"async_finish": True}, everybody[comm.rank]
        weights = inputs.topk_weights[rank]
        num_worst = worst_tokens({"worst": True}, inputs)
        with Buffer(comm, 1 << 20) as buffer:
            event, results = None, []
            for turn in range(3):
                per_rank, _, per_expert, in_rank, event = buffer.get_dispatch_layout(
                    inputs.topk_idxs[rank], NUM_EXPERTS, previous_event=event, **later)
                layout = {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank,
                          "num_tokens_per_expert": per_expert}
                recv_x, *_, handle, event = buffer.dispatch(
                    inputs.xs[rank], **layout, topk_idx=inputs.topk_idxs[rank],
                    topk_weights=weights, num_worst_tokens=num_worst, previous_event=event,
                    **later)
                same, *_, event = buffer.dispatch(inputs.xs[rank], handle=handle,
                                                  previous_event=event, **later)
                if turn == 1:       # its rows do not fit: refused, and nothing else is lost
                    buffer.dispatch(inputs.xs[rank], **layout, topk_idx=inputs.topk_idxs[rank],
                                    topk_weights=weights, num_worst_tokens=1, **later)
                for _ in range(rank):
                    comm.executor.yield_()
                _, _, event = buffer.combine(same, handle, previous_event=event, **later)
                results.append((recv_x, same))
            with pytest.raises(CapacityError, match="num_worst_tokens: must be at least"):
                buffer.check()
            num = want["rank_prefix_matrix"][-1, rank]
            rows = want["recv_x"][:num].view(np.uint16)
            for recv_x, same in results:
                for got in (recv_x, same):
                    np.testing.assert_array_equal(got[:num].view(np.uint16), rows)

    run_ranks(main, 3, scheduler=scheduler, seed=seed)


FORMS = [
    *((arch, policy) for arch in ("sm_80", "sm_90") for policy in select.load_table()["policies"]),
    ("sm_90", "bulk"),
]


@pytest.mark.parametrize("scheduler", ["rr", *SCHEDULERS])
@pytest.mark.parametrize(("arch", "policy"), FORMS)
def test_every_form(arch, policy, scheduler):
    """Ten seeds of each; pull and push in turn."""
    for seed in SEEDS:
        case = PLAIN | {"arch": arch, "policy": policy, "num_ranks": 2, "hidden": 264,
                        "combine": ("pull", "push")[seed % 2]}
        assert_round_trip(case, [make_inputs(case, 5000 + seed)], scheduler=scheduler, seed=seed)


def several_tokens_for_each_warp(policy, seed):
    case = PLAIN | {"num_ranks": 2, "hidden": 264, "num_topk": 2, "policy": policy,
                    "combine": "mixed"}
    rng = np.random.default_rng(seed)
    num_tokens = [600, 1300]
    inputs = Inputs(
        xs=[any_bits(rng, (n, case["hidden"])) for n in num_tokens],
        topk_idxs=[route("holes", n, 2, rng) for n in num_tokens],
        topk_weights=[rng.random((n, 2), dtype=np.float32) for n in num_tokens],
        biases=[None, None], seed=seed)
    return case, [inputs]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("policy", ["fast", "bulk"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_several_tokens_for_each_warp(scheduler, policy, seed):
    assert_round_trip(*several_tokens_for_each_warp(policy, seed), scheduler=scheduler, seed=seed)


def totals(comm, case, rounds):
    """Virtual time and counters of a rank when it is done."""
    rank_main(comm, case, rounds)
    return comm.executor.now, tuple(comm.executor.counters().values())


def test_a_seed_fixes_the_run():
    """Virtual time and every counter of every rank."""
    case = CASES["push"]
    rounds = [make_inputs(case, 1)]

    def run(scheduler, seed):
        return tuple(run_ranks(totals, case["num_ranks"], case, rounds, scheduler=scheduler,
                               seed=seed))

    for scheduler in SCHEDULERS:
        assert [run(scheduler, seed) for seed in range(2)] == [
            run(scheduler, seed) for seed in range(2)]
    assert len({run("random", seed) for seed in range(5)}) == 5
