# SPDX-License-Identifier: MIT
"""How many SMs a call should take, where nobody says so and no tuning file knows better.

A call's payload has to be moved by its CTAs, one per SM, and what is for other GPUs has to cross
this GPU's link.  On n SMs

    time(n) = max(sm_time(n) + LINK_WAIT * link_time, link_time(n), memory_time) + fixed
    sm_time = ceil(T / n) * e * row_bytes / sm rate
    link    = S * T * e * (R - S) / R * row_bytes / link rate
    memory  = S * T * e * row_bytes / memory rate

for T tokens, R ranks of which S share this GPU and its link, and e = R * (1 - (1 - 1/R)^K) ranks
per token: K choices that are uniform over ranks.  Where stores of so many SMs get into each other's
way (CROWD), the link's rate in link_time(n) is the crowded one; the wait is for the link at its
best.  A token is one warp's work, so CTAs without a token gain nothing.

Enough is the smallest n whose time would be within 3 % of the best one's if nothing were crowded.
The choice is the quickest of 1 .. enough, crowds counted, and of equals the smallest.
docs/tuning.md derives the formula and holds it against measurements.
"""

from dataclasses import dataclass, replace

TOLERANCE = 1.03
OPS = ("dispatch", "combine_pull", "combine_push")
LINK_WAIT = 0.2             # of the link's time, what an SM waits for it besides its own work
CROWD = range(17, 49)       # SMs of one GPU; measured on 24 and 32, and not on 16 or 64


@dataclass(frozen=True)
class Rates:
    """What one kind of GPU does with payload rows, in GB/s (10**9 bytes per second).

    sm: (op, data path) -> of one SM; paths are "bulk" and "vec".
    link: op -> of a GPU's link, both ways at once, with SMs enough.
    crowded: (op, data path) -> of the link while CROWD SMs use it; without an entry as `link`.
    memory: rows copied inside the GPU, with SMs enough.
    fixed_us: op -> of a call, whatever its size.
    source: where the figures are from.
    num_sms: of the GPU; None where the kind is not known.
    """

    sm: dict
    link: dict
    crowded: dict
    memory: float
    fixed_us: dict
    source: str
    num_sms: int | None = None


_H100 = Rates(
    sm={("dispatch", "vec"): 52.5, ("dispatch", "bulk"): 53.4,
        ("combine_pull", "vec"): 36.0, ("combine_pull", "bulk"): 52.7,
        ("combine_push", "vec"): 33.9, ("combine_push", "bulk"): 39.0},
    link={"dispatch": 347.0, "combine_pull": 334.0, "combine_push": 342.0},
    crowded={("dispatch", "vec"): 283.0, ("dispatch", "bulk"): 287.0,
             ("combine_push", "vec"): 304.0, ("combine_push", "bulk"): 263.0},
    memory=1395.0,
    fixed_us={"dispatch": 16.0, "combine_pull": 17.0, "combine_push": 25.5},
    source="2xH100 SXM, NVLink NV18, 2026-11-25: docs/tuning.md",
    num_sms=132,
)
# Name of the device -> its rates.
RATES = {
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H200": replace(_H100, source="the H100's, whose SMs and links it has; held against "
                                         "2xH200, 16 and 64 SMs, 2026-11-25: docs/tuning.md"),
}


def rates_from_link(link, source):
    """`Rates` of a GPU of which only the link's rate for stores is known: all else is to it as on
    an H100, but for crowds, of which nothing is known."""
    times = link / _H100.link["dispatch"]
    return replace(_H100, source=source, num_sms=None, crowded={}, memory=times * _H100.memory,
                   sm={key: times * rate for key, rate in _H100.sm.items()},
                   link={op: times * rate for op, rate in _H100.link.items()})


# NVLink 3, which has the least of what is in use: 300 GB/s one way, of which SMs reach four fifths.
UNKNOWN = rates_from_link(240.0, "not measured: a link of 240 GB/s, all else in the H100's ratio")


def rates_of(device_name):
    """The `Rates` of a kind of GPU; `UNKNOWN` for one that is not in the table."""
    return RATES.get(device_name, UNKNOWN)


def ranks_per_token(num_ranks, num_topk):
    """Ranks that a token goes to, where its choices are uniform over the ranks."""
    return num_ranks * (1 - (1 - 1 / num_ranks) ** num_topk)


@dataclass(frozen=True)
class Work:
    """The payload of one call on one rank.

    op: one of OPS.  tokens: of this rank, at least 1.  row_bytes: of one row.  ranks: of the group.
    ranks_here: those that share this GPU.  rows_per_token: ranks that a token goes to.
    path: data path of the op's kernel, "bulk" or "vec".
    """

    op: str
    tokens: int
    row_bytes: int
    ranks: int
    ranks_here: int
    rows_per_token: float
    path: str = "bulk"


def predicted_us(work, rates, num_sms):
    """Microseconds of a call on `num_sms` SMs, `rates.fixed_us` among them."""
    return _time_us(work, rates, num_sms, rates.crowded)


def choose_sms(work, rates, limit):
    """The number of SMs in [1, limit] that a call should take; see the module."""
    numbers = range(1, min(limit, work.tokens) + 1)
    at_rest = [_time_us(work, rates, number, {}) for number in numbers]
    near_best = TOLERANCE * min(at_rest)
    enough = 1 + next(index for index, time in enumerate(at_rest) if time <= near_best)
    return min(numbers[:enough], key=lambda number: predicted_us(work, rates, number))


def _time_us(work, rates, num_sms, crowded):
    key = work.op, work.path
    token = work.row_bytes * work.rows_per_token / 1e3          # microseconds at 1 GB/s
    here = token * work.tokens * work.ranks_here
    crossing = here * (work.ranks - work.ranks_here) / work.ranks
    link = rates.link[work.op]
    now = crowded.get(key, link) if work.ranks_here * num_sms in CROWD else link
    return rates.fixed_us[work.op] + max(
        -(-work.tokens // num_sms) * token / rates.sm[key] + LINK_WAIT * crossing / link,
        crossing / now, here / rates.memory)
