# SPDX-License-Identifier: MIT
"""Which of a case's candidates wins: right bits first, then rounds of fewer and fewer of them."""

import numpy as np

from deepep_ptx.cli.measure.statistics import ratio, spread

MARGIN = 1.02       # who is that much slower than the quickest could still win, with fewer SMs


def decide(candidates, bench, rungs, seed=0):
    """What is known of each candidate, and the winner: the one with the fewest SMs of those whose
    median is within 2 % of the quickest one's.

    A candidate is dropped after a rung if the interval of the ratio of its median to the quickest
    one's lies above 1.02: more rounds would not make it win.

    Args:
        candidates: list of `Candidate`.
        bench: has
            check(): per candidate None, or what is wrong with its results in words;
            measure(indices, rounds): microseconds [candidates of these numbers, rounds];
            is_over(): whether there is no time for another rung.
            Where ranks decide together all of them get the same from it.
        rungs: rounds of each rung.
        seed: of the intervals.

    Returns:
        dict, as what JSON can hold: candidates (a dict each: sms, policy, knobs, wrong, rounds,
        dropped, and with rounds median_us, p10_us, p90_us), winner and quickest (numbers, or None
        where no candidate is right), complete (whether all rungs were run that were of use).
    """
    wrong = bench.check()
    times = {index: np.empty(0) for index, text in enumerate(wrong) if text is None}
    alive, complete = list(times), True
    for number, rounds in enumerate(rungs):
        if not alive or number and len(alive) == 1:
            break
        if number and bench.is_over():
            complete = False
            break
        for index, more in zip(alive, bench.measure(alive, rounds), strict=True):
            times[index] = np.append(times[index], more)
        alive = survivors(times, alive, seed)
    quickest, winner = winner_of(candidates, times, alive)
    return {
        "candidates": [
            {"sms": one.sms, "policy": one.policy, "knobs": dict(one.knobs), "wrong": wrong[index],
             "rounds": len(times.get(index, ())),
             "dropped": index in times and index not in alive,
             **(spread(times[index].tolist()) if len(times.get(index, ())) else {})}
            for index, one in enumerate(candidates)],
        "winner": winner, "quickest": quickest, "complete": complete,
    }


def survivors(times, alive, seed=0):
    """Those of `alive` that may still win: not surely slower than the quickest by the margin."""
    best = min(alive, key=lambda index: np.median(times[index]))
    return [index for index in alive
            if index == best or ratio(times[index], times[best], seed).low <= MARGIN]


def winner_of(candidates, times, alive):
    """(number of the quickest, number of the winner); (None, None) of nobody."""
    if not alive:
        return None, None
    medians = {index: np.median(times[index]) for index in alive}
    quickest = min(alive, key=medians.get)
    near = [index for index in alive if medians[index] <= MARGIN * medians[quickest]]
    return quickest, min(near, key=lambda index: (candidates[index].sms, medians[index]))
