# SPDX-License-Identifier: MIT
"""What a benchmark found: the record, and the text that the command prints."""

import datetime
import json
import platform
from dataclasses import asdict
from pathlib import Path

from deepep_ptx import __version__, select
from deepep_ptx.cli import measure
from deepep_ptx.cli.measure.machine import FLUSH_BYTES
from deepep_ptx.cli.tables import table
from deepep_ptx.emu.coverage import paragraphs

FORMAT = 2          # of the record; a change of what a name means makes it another


def head(program, plan):
    """What every record begins with.  plan: executor, layout, arch, devices, ranks, seed, rounds,
    warmup, timeout_s, options."""
    made = {
        "format": FORMAT,
        "program": f"deepep-ptx {program}",
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "executor": plan.executor,
        "arch": plan.arch,
        "layout": plan.layout,
        "machine": measure.describe() if plan.executor == "cuda" else None,
        "devices": plan.devices,
        "ptx_inputs": select.load_table()["inputs"],
    }
    return made | {name: getattr(plan, name)
                   for name in ("ranks", "seed", "rounds", "warmup", "timeout_s", "options")}


def with_wrong(made, wrong):
    """The record of a run that had wrong results: they are all it has."""
    return made | {"wrong": [asdict(one) | {"text": str(one)} for one in wrong]}


def write(made, path):
    """Write the record to `path`, if there is one."""
    if path is not None:
        Path(path).write_text(json.dumps(made, indent=1) + "\n")


def text(made):
    """What the record holds, in lines for people."""
    if made.get("wrong"):
        return "\n".join([*head_lines(made), "", *(f"WRONG  {one['text']}"
                                                    for one in made["wrong"]),
                          "no figures: a wrong result is not worth a time"])
    if made["executor"] == "emu":
        return "\n".join([*head_lines(made), "", *_counts_table(made["cases"]), "",
                          *paragraphs({"": made["not_executed"]})])
    return "\n".join([*head_lines(made), *_rules(made), "", *times_table(made["cases"])])


def peers_text(peer):
    """Lines on one peer: its table beside ours, or why there is none."""
    if "missing" in peer:
        return f"{peer['name']}: not timed: {peer['missing']}"
    return "\n".join(["", f"beside {peer['name']} {peer['version']}, interleaved:", "",
                      *times_table(peer["cases"])])


def times_table(cases):
    """Lines: a row for each timed case."""
    rows = [("call", "dtype", "routing", "policy", "tokens", "SMs", "kernel us", "p10 .. p90",
             "late", "call us", "p10 .. p90", "late", "host us", "wire GB/s", "logical", "of link",
             "of floor")]
    rows += [(case["what"], "-" if case["what"] == "layout" else case["dtype"], case["routing"],
              "-" if case["what"] == "layout" else case["policy"], str(case["tokens"]),
              cell(case["sms"], "d"), *_time_cells(case, "kernel"), *_time_cells(case, "call"),
              spread_cells(case["host"])[0], cell(case["wire_gb_s"], ".1f"),
              cell(case["logical_gb_s"], ".1f"), cell(case["wire_of_link"], ".2f"),
              cell(case["of_floor"], ".2f")) for case in cases]
    return table(rows, left=4)


def head_lines(made):
    """What ran, where and on which shapes."""
    options = made["options"]
    if made["executor"] == "emu":
        yield f"counts of the CPU executor, {made['arch']}; they are not times"
    else:
        machine = made["machine"]
        yield (f"{machine['gpus'][made['devices'][0]]}, GPUs "
               f"{', '.join(map(str, made['devices']))}, one rank each as {made['layout']}, "
               f"driver {machine['driver']}, {made['arch']}")
    yield (f"{made['ranks']} ranks, hidden {options['hidden']}, top-{options['topk']} of "
           f"{options['experts']} experts, seed {made['seed']}")


def _rules(made):
    yield "bits equal to the reference's on all ranks, for every case"
    yield (f"{made['rounds']} rounds of all cases after {made['warmup']}, each in an order of its "
           f"own; kernel and call of calls of their own; {FLUSH_BYTES >> 20} MiB written before "
           "each; ranks begin together; the slower rank's time")
    yield from link_lines(made["links"])


def link_lines(links):
    """What the copy engine does, and what the floor is made of."""
    if not links:
        yield "copy engine: not measured, all ranks share one GPU"
        return
    yield (f"copy engine {links['copy_engine_one_way_gb_s']} GB/s one way, "
           f"{links['copy_engine_both_ways_gb_s']} both ways at once; the floor is a call's wire "
           "bytes at the latter")


def _counts_table(cases):
    names = ("warp_instructions", "global_load_transactions", "global_store_transactions",
             "peer_load_bytes", "peer_store_bytes")
    rows = [("call", "dtype", "routing", "policy", "tokens", "SMs", "rows", "warp instr", "loads",
             "stores", "peer load B", "peer store B")]
    rows += [(case["what"], case["dtype"], case["routing"], case["policy"], str(case["tokens"]),
              cell(case["sms"], "d"), str(case["rows"]),
              *(f"{case['per_row'][name]:,.1f}" for name in names)) for case in cases]
    return [*table(rows, left=4), "per row (layout: per token), all ranks, waits included; loads "
                                  "and stores of global memory in transactions of 32 bytes"]


def _time_cells(case, name):
    late = "-"          # where the host waits, it is late by its nature
    if name in case["late"] and case["what"] != "dispatch-wait":
        late = f"{100 * case['late'][name]:.0f} %"
    return *spread_cells(case[name]), late


def spread_cells(spread):
    """(median, "p10 .. p90") of a spread; "-" where there is none."""
    if spread is None:
        return "-", "-"
    return f"{spread['median_us']:.1f}", f"{spread['p10_us']:.1f} .. {spread['p90_us']:.1f}"


def cell(value, form):
    """`value` in a form of `format`; "-" for None."""
    return "-" if value is None else format(value, form)
