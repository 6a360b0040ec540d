# SPDX-License-Identifier: MIT
"""What `bench ll` found, in lines for people."""

from deepep_ptx.cli.bench.ll_case import COMPARED_TOKENS
from deepep_ptx.cli.bench.report import cell, head_lines, link_lines, spread_cells
from deepep_ptx.cli.measure.machine import FLUSH_BYTES
from deepep_ptx.cli.tables import table
from deepep_ptx.emu.coverage import paragraphs

COUNTS = ("warp_instructions", "global_load_transactions", "global_store_transactions",
          "peer_load_bytes", "peer_store_bytes")


def text(made):
    """What the record holds."""
    if made.get("wrong"):
        return "\n".join([*head_lines(made), "", *(f"WRONG  {one['text']}"
                                                   for one in made["wrong"]),
                          "no figures: a wrong result is not worth a time"])
    lines = [*head_lines(made), *_compared_lines(made["cases"])]
    if made["executor"] == "emu":
        return "\n".join([*lines, "", *_counts_table(made["cases"]), "",
                          *paragraphs({"": made["not_executed"]})])
    return "\n".join([*lines, *_rules(made), "", *times_table(made["cases"]), "",
                      *_memory_lines(made)])


def peers_text(peer):
    """Lines on DeepEP: its table beside ours, or why there is none."""
    if "missing" in peer:
        return f"{peer['name']}: not timed: {peer['missing']}"
    return "\n".join(["", f"beside {peer['name']} {peer['version']}, interleaved; its reduce is -:",
                      "", *times_table(peer["cases"])])


def times_table(cases):
    """Lines: a row for each timed call."""
    rows = [("call", "dtype", "reduce", "tokens", "SMs", "graph us", "p10 .. p90", "late",
             "eager us", "p10 .. p90", "late", "host us", "peer kB", "wire GB/s", "floor us",
             "of floor")]
    rows += [(case["what"], case["dtype"], case["reduce"] or "-", str(case["tokens"]),
              cell(case["sms"], "d"), *spread_cells(case["graph"]), _late(case, "graph"),
              *spread_cells(case["eager"]), _late(case, "eager"), spread_cells(case["host"])[0],
              f"{case['bytes']['peers'] / 1e3:,.1f}", cell(case["wire_gb_s"], ".1f"),
              cell(case["floor_us"], ".2f"), cell(case["of_floor"], ".1f")) for case in cases]
    return table(rows, left=3)


def _compared_lines(cases):
    yield "bits equal to the reference's on all ranks, for every case" + (
        "" if all(case["compared"] for case in cases) else f" of up to {COMPARED_TOKENS} tokens")


def _rules(made):
    yield (f"graph: of {made['per_graph']} calls, or pairs of dispatch and combine, between events "
           "around a replay; eager: between events around one; host: how long one keeps it")
    yield (f"{made['rounds']} rounds of all after {made['warmup']}, each in an order of its own; "
           f"{FLUSH_BYTES >> 20} MiB written before each; ranks begin together; the slower rank's "
           "time")
    yield from link_lines(made["links"])


def _memory_lines(made):
    for reduce, nbytes in made["low_latency_bytes"].items():
        yield f"low-latency memory of a rank, reduce {reduce}: {nbytes / 1e6:,.1f} MB"


def _counts_table(cases):
    rows = [("call", "dtype", "reduce", "tokens", "SMs", "warp instr", "loads", "stores",
             "peer load B", "peer store B", "of rows B", "memory B")]
    for case in cases:
        total = (sum(rank[name] for rank in case["counts"]) for name in COUNTS)
        rows.append((case["what"], case["dtype"], case["reduce"], str(case["tokens"]),
                     str(case["sms"]), *(f"{number:,}" for number in total),
                     f"{case['bytes']['total']:,}", f"{case['memory']:,}"))
    return [*table(rows, left=3), "per call, all ranks, waits included; loads and stores of global "
                                  "memory in transactions of 32 bytes; memory: of each rank"]


def _late(case, name):
    return f"{100 * case['late'][name]:.0f} %"
