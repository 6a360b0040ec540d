# SPDX-License-Identifier: MIT
"""All cases of a plan, one after the other, within a budget."""

import functools
import time

from deepep_ptx.cli.tune.decide import decide


def sweep(plan, state, machine, bar, budget_s=None, clock=time.monotonic):
    """Add what comes of each case that is not finished to `state`.

    Args:
        machine: has run(plan, case, decide, progress, is_over), which returns what
            decide(bench) makes of a bench of the case's candidates; see `decide.decide`.
            progress() is to be called after every call; is_over() says whether the budget is spent.
        bar: a tqdm of calls.
        budget_s: no case and no rung but a case's first begins after so many seconds; None: no
            limit.
        clock: seconds.
    """
    began = clock()

    def is_over():
        return budget_s is not None and clock() - began >= budget_s

    expected = 0        # calls, if the case under way drops nobody
    for case in plan.cases:
        expected += plan.num_calls(case)
        if str(case) not in state.finished:
            if is_over():
                return
            bar.set_description(str(case))
            state.add(case, machine.run(plan, case, functools.partial(
                decide, plan.candidates[case.op], rungs=plan.rungs(), seed=plan.seed),
                bar.update, is_over))
        bar.update(expected - bar.n)
