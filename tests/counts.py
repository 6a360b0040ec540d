# SPDX-License-Identifier: MIT
"""What the kernels of each call cost on the CPU executor, and what they cost when that was
recorded; `make counts` records it in tests/counts.json."""

import argparse
import functools
import json
from pathlib import Path

from deepep_ptx import run_ranks, select
from deepep_ptx.cli import catalogue
from deepep_ptx.cli.bench import rounds
from deepep_ptx.cli.bench.case import FP8_WHATS, WHATS, Case
from deepep_ptx.cli.bench.figures import counts_of

RECORD = Path(__file__).with_name("counts.json")
COUNTERS = ("warp_instructions", "global_load_transactions", "global_store_transactions")
RANKS = 4
SHAPE = {"tokens": 32, "hidden": 1024, "topk": 4, "experts": 16, "sms": 4}
MAY_GROW, MAY_SHRINK = 0.02, 0.10


def data_paths():
    """(target, data path, policy) of each data path in the table of variants, with the policy of
    its first variant, which is the path itself where it has none."""
    found = {}
    for variant in select.load_table()["variants"]:
        if variant["path"]:
            found.setdefault((variant["arch"], variant["path"]),
                             variant["policy"] or variant["path"])
    return [(*key, policy) for key, policy in found.items()]


def counted(arch, path, policy):
    """Name -> counter -> count per row (layout: per token) of every call."""
    cases = [Case(what, dtype, policy=policy, **SHAPE) for what in WHATS
             for dtype in ("bf16", "fp8") if dtype == "bf16" or what in FP8_WHATS]
    outcome = run_ranks(functools.partial(rounds.measure, cases=cases, rounds=0), RANKS,
                        executor="emu", arch=arch)[0]
    assert not outcome.wrong, outcome.wrong[0]
    found = {}
    for case, counts, rows, sms in zip(cases, outcome.counts, outcome.rows, outcome.sms,
                                       strict=True):
        per_row = counts_of(case, counts, rows, sms)["per_row"]
        found[f"{arch} {path} {case.what} {case.dtype}"] = {name: per_row[name]
                                                            for name in COUNTERS}
    return found


def drifts(now, recorded):
    """What is out of bounds, in lines: a count that grew or shrank, a call that is new or gone."""
    lines = [f"{name}: is gone; `make counts`" for name in recorded if name not in now]
    for name, counts in now.items():
        if name not in recorded:
            lines.append(f"{name}: is new; `make counts`")
            continue
        for counter, count in counts.items():
            before = recorded[name][counter]
            if count > before * (1 + MAY_GROW):
                lines.append(f"{name}: {counter} per row grew from {before} to {count}; if it is "
                             "meant, `make counts`")
            elif count < before * (1 - MAY_SHRINK):
                lines.append(f"{name}: {counter} per row shrank from {before} to {count}: record "
                             "it, `make counts`")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="record what is counted now")
    write = parser.parse_args().write
    now = {}
    for of in data_paths():
        now |= counted(*of)
    catalogue.warn_if_stale()
    if write:
        RECORD.write_text(json.dumps(now, indent=1) + "\n")
        print(f"counts: {RECORD.name} has {len(now)} calls")
        return
    print("\n".join(drifts(now, json.loads(RECORD.read_text()))) or "counts: all within bounds")


if __name__ == "__main__":
    main()
