# SPDX-License-Identifier: MIT
"""Times as figures: spreads, bandwidths, and how far from the floor."""

from dataclasses import asdict

import numpy as np

from deepep_ptx.cli.measure import spread, traffic


def figures_of(case, times, rows, sms, devices, links):
    """The JSON of a timed case.

    rows: int [R, R], see `measure.inputs.Job`.  links: as `measure.links` gives them, or {}.
    sms: CTAs of the call; None where they are not ours to choose.

    kernel, call, host: spreads in microseconds, None where there is none.  late: "kernel", "call"
    -> share of the rounds in which a rank's host came too late for it (of no meaning where the host
    waits).  of: "kernel", or "call" for kernels that are not ours: what bandwidths and ratios are
    made of.
    """
    made = asdict(case) | {"tuning": dict(case.tuning), "sms": sms}
    made |= {name: spread_of(times.of(name)) if name in times.us else None
             for name in ("kernel", "call", "host")}
    made |= {"late": {name: round(float(late.any(axis=1).mean()), 3)
                      for name, late in times.late.items()},
             "of": "kernel" if made["kernel"] else "call",
             "rounds_us": {name: np.round(times.of(name), 2).tolist() for name in times.late}}
    return made | bandwidths(case, made[made["of"]]["median_us"], rows, devices, links)


def spread_of(times):
    """`measure.spread` of an array, to a hundredth of a microsecond."""
    return {name: round(float(value), 2) for name, value in spread(times.tolist()).items()}


def bandwidths(case, median_us, rows, devices, links):
    """bytes, floor_us, wire_gb_s, logical_gb_s, wire_of_link and of_floor; None for what moves no
    rows, or crosses no link.

    Wire bytes cross the links of the busiest GPU in its busier direction; logical bytes are all
    that the busiest rank receives, its own rows included.  The floor is the wire bytes at the copy
    engine's rate both ways.
    """
    size = traffic.row_bytes(case.hidden, case.dtype)
    moves = case.what != "layout"
    wire = traffic.busiest_link(rows, devices) * size if moves else 0
    logical = traffic.busiest_rank(rows) * size if moves else 0
    rate = links.get("copy_engine_both_ways_gb_s")
    floor = wire / rate / 1e3 if wire and rate else None
    wire_gb_s = wire / median_us / 1e3 if wire else None
    return {
        "bytes": {"row": size, "wire": wire, "logical": logical} if moves else None,
        "floor_us": rounded(floor, 2),
        "wire_gb_s": rounded(wire_gb_s, 1),
        "logical_gb_s": rounded(logical / median_us / 1e3 if logical else None, 1),
        "wire_of_link": rounded(wire_gb_s / rate if floor else None, 3),
        "of_floor": rounded(median_us / floor if floor else None, 3),
    }


def counts_of(case, counts, rows, sms):
    """The JSON of a counted case: each rank's counts, and all ranks' per row; layout: per token."""
    num_rows = int(rows.sum()) if case.what != "layout" else case.tokens * len(rows)
    total = {name: sum(rank[name] for rank in counts) for name in counts[0]}
    return asdict(case) | {
        "tuning": dict(case.tuning), "sms": sms, "rows": num_rows, "counts": counts,
        "per_row": {name: round(count / max(1, num_rows), 3) for name, count in total.items()}}


def rounded(value, digits):
    """`round`, of None too."""
    return None if value is None else round(value, digits)
