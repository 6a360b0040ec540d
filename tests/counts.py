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
from deepep_ptx.cli.check import low_latency
from deepep_ptx.cli.check.low_latency import LowLatencyCalls
from deepep_ptx.cli.check.rounds import all_wrong

RECORD = Path(__file__).with_name("counts.json")
COUNTERS = ("warp_instructions", "global_load_transactions", "global_store_transactions")
RANKS = 4
SHAPE = {"tokens": 32, "hidden": 1024, "topk": 4, "experts": 16, "sms": 4}
LOW_LATENCY = "low-latency"     # in the place of a data path: these kernels have one each
LOW_LATENCY_CALLS = {
    "dispatch fp8": {}, "dispatch bf16": {"cast": "bf16"},
    "combine exact words": {}, "combine exact vectors": {"word_tokens": 0},
    "combine logfmt words": {"logfmt": True},
    "combine logfmt vectors": {"logfmt": True, "word_tokens": 0},
    "combine rank words": {"reduce": "rank"},
    "combine rank vectors": {"reduce": "rank", "word_tokens": 0}}
MAY_GROW, MAY_SHRINK = 0.02, 0.10


def data_paths():
    """(target, data path, policy) of each data path in the table of variants, with the policy of
    its first variant, which is the path itself where it has none; low latency counts as one."""
    found = {}
    for variant in select.load_table()["variants"]:
        if variant["path"]:
            found.setdefault((variant["arch"], variant["path"]),
                             variant["policy"] or variant["path"])
        elif variant["kernel"] == "ll_dispatch":
            found[variant["arch"], LOW_LATENCY] = select.DEFAULT_POLICY
    return [(*key, policy) for key, policy in found.items()]


def counted(arch, path, policy):
    """Name -> counter -> count per row (layout: per token) of every call."""
    if path == LOW_LATENCY:
        return {f"{arch} {path} {name}": _low_latency(arch, policy, name.split()[0], changes)
                for name, changes in LOW_LATENCY_CALLS.items()}
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


def _low_latency(arch, policy, what, changes):
    """Counter -> count per row that experts have, of a low-latency dispatch or combine."""
    counts = []

    def count(comm, buffer, calls, inputs, _policy):
        def spent(call, *arguments):
            comm.barrier()
            before = comm.executor.counters()
            result = call(buffer, calls, inputs, *arguments)
            after = comm.executor.counters()
            return result, {name: after[name] - before[name] for name in COUNTERS}

        (*_, handle), of_dispatch = spent(low_latency.dispatch)
        _, of_combine = spent(low_latency.combine, handle)
        counts.append({"dispatch": of_dispatch, "combine": of_combine}[what])

    calls = LowLatencyCalls(
        tokens=(SHAPE["tokens"],), experts=SHAPE["experts"] // RANKS, rounds=1, before=count,
        **{name: SHAPE[name] for name in ("hidden", "topk", "sms")}, **changes)
    inputs = calls.inputs(RANKS, 0, 0)
    results = calls.run(RANKS, [inputs], policy, executor="emu", arch=arch)
    wrong = next(all_wrong([inputs], [made for made, _ in results]), None)
    assert not wrong, wrong
    rows = sum(int(received.recv_count.sum()) for received in inputs.received)
    return {name: round(sum(of_rank[name] for of_rank in counts) / rows, 3) for name in COUNTERS}


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
