# SPDX-License-Identifier: MIT
"""Pairwise covering sets: few cases in which every two values of two axes meet."""

from itertools import combinations, product


def pairs(axes, allowed=lambda case: True):
    """Every ((axis, value), (axis, value)) that a case may hold, as a set.

    Args:
        axes: dict of axis name -> list of values.
        allowed: says of a dict with some of the axes whether it may be (part of) a case.
    """
    return {
        ((a, va), (b, vb))
        for a, b in combinations(axes, 2)
        for va, vb in product(axes[a], axes[b])
        if allowed({a: va, b: vb})
    }


def covered(cases):
    """The pairs that `cases` hold."""
    return {pair for case in cases for pair in combinations(case.items(), 2)}


def covering(axes, allowed=lambda case: True):
    """A list of cases (dicts with every axis, in its order) in which every allowed pair occurs.

    Greedy and without chance: each case starts with the first pair still missing and takes, axis
    by axis, the value that adds most missing pairs.  `allowed` must leave every allowed partial
    case a way to go on; ValueError if it does not.
    """
    missing = dict.fromkeys(sorted(pairs(axes, allowed), key=lambda p: _place(axes, p)))
    cases = []
    while missing:
        case = dict(next(iter(missing)))
        for axis in [axis for axis in axes if axis not in case]:
            values = [v for v in axes[axis] if allowed({**case, axis: v})]
            if not values:
                raise ValueError(f"allowed leaves no value of {axis} to {case}")
            # The largest axes repeat values whatever is chosen: spread them over the cases.
            used = {v: sum(c[axis] == v for c in cases) for v in values}
            case[axis] = max(values, key=lambda v: (_gain(missing, axes, {**case, axis: v}, axis),
                                                    -used[v]))
        cases.append({axis: case[axis] for axis in axes})
        for pair in combinations(cases[-1].items(), 2):
            missing.pop(pair, None)
    return cases


def _gain(missing, axes, case, axis):
    """Missing pairs of `case` that have `axis` in them."""
    order = list(axes)
    mine = (axis, case[axis])
    return sum(
        ((mine, item) if order.index(axis) < order.index(item[0]) else (item, mine)) in missing
        for item in case.items() if item[0] != axis
    )


def _place(axes, pair):
    order = list(axes)
    return [(order.index(axis), axes[axis].index(value)) for axis, value in pair]
