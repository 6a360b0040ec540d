# SPDX-License-Identifier: MIT
"""How many SMs a call should take, where nobody says so and no tuning file knows better.

A call's payload has to be moved by its CTAs, one per SM, and what is for other GPUs has to cross
this GPU's link.  On n SMs

    time(n)  = max(sm_time(n), link_time(n), memory_time) + fixed
    sm_time  = ceil(T / n) * e * row_bytes * sum(1 / rate of each pass over the rows)
    link     = S * T * e * (R - S) / R * row_bytes / min(S * min(n, T) * peer_sm, link rate)
    memory   = S * T * e * row_bytes / memory rate

for T tokens, R ranks of which S share this GPU and its link, and e = R * (1 - (1 - 1/R)^K) ranks
per token: K choices that are uniform over ranks.  A dispatch stores each row, a pulling combine
reads and adds it, a pushing one does both.  A token is one warp's work, so CTAs without a token
gain nothing.  The choice is the smallest n whose time is within 3 % of the best one's.

docs/tuning.md derives the formula and holds it against measurements.
"""

from dataclasses import dataclass, replace

TOLERANCE = 1.03
SM_SHARE_OF_LINK = 1 / 8        # what an SM of an H100 moves of what its link takes
OPS = ("dispatch", "combine_pull", "combine_push")
PASSES = {"dispatch": ("store",), "combine_pull": ("reduce",), "combine_push": ("store", "reduce")}


@dataclass(frozen=True)
class Rates:
    """What one kind of GPU does with payload rows, in GB/s (10**9 bytes per second).

    sm: (pass, data path) -> of one SM; passes are "store" and "reduce", paths "bulk" and "vec".
    peer_sm: stores of one SM to another GPU.
    link: pass that crosses it -> of a GPU's link, both ways at once, with SMs enough.
    memory: rows copied inside the GPU, with SMs enough.
    fixed_us: of a call, whatever its size.
    source: where the figures are from.
    """

    sm: dict
    peer_sm: float
    link: dict
    memory: float
    fixed_us: float
    source: str


def rates_from_link(link, source):
    """`Rates` of a GPU of which only the link's rate is known: one SM moves an eighth of it."""
    of_sm = link * SM_SHARE_OF_LINK
    return Rates(sm={(work, path): of_sm for work in ("store", "reduce")
                     for path in ("bulk", "vec")},
                 peer_sm=of_sm, link={"store": link, "reduce": link}, memory=4 * link,
                 fixed_us=16.0, source=source)


_H100 = Rates(
    sm={("store", "bulk"): 51.7, ("store", "vec"): 46.6,
        ("reduce", "bulk"): 60.3, ("reduce", "vec"): 12.4},
    peer_sm=45.7,
    link={"store": 341.0, "reduce": 324.0},
    memory=1395.0,
    fixed_us=16.0,
    source="2xH100 SXM, NVLink NV18, 2026-11-21: docs/tuning.md",
)
# Name of the device -> its rates.
RATES = {
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H200": replace(_H100, source="the H100's, whose SMs and links it has; not measured"),
}
# NVLink 3, which has the least of what is in use: 300 GB/s one way, of which SMs reach four fifths.
UNKNOWN = rates_from_link(240.0, "not measured: an SM moves an eighth of the link's 240 GB/s")


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
    passes = PASSES[work.op]
    us_per_gb_s = work.row_bytes * work.rows_per_token / 1e3      # of a token, at 1 GB/s
    per_token = us_per_gb_s * sum(1 / rates.sm[one, work.path] for one in passes)
    all_tokens = work.tokens * work.ranks_here * us_per_gb_s
    remote = (work.ranks - work.ranks_here) / work.ranks
    link = min(rates.link[passes[0]],
               work.ranks_here * min(num_sms, work.tokens) * rates.peer_sm)
    return rates.fixed_us + max(-(-work.tokens // num_sms) * per_token,
                                all_tokens * remote / link,
                                all_tokens / rates.memory)


def choose_sms(work, rates, limit):
    """The smallest number of SMs in [1, limit] whose predicted time is within 3 % of the best."""
    times = [predicted_us(work, rates, num_sms)
             for num_sms in range(1, min(limit, work.tokens) + 1)]
    enough = TOLERANCE * min(times)
    return 1 + next(index for index, time in enumerate(times) if time <= enough)
