# SPDX-License-Identifier: MIT
"""What an A/B found: the record, and the text that the command prints."""

import datetime
import textwrap
from dataclasses import asdict

import numpy as np

from deepep_ptx import __version__, select
from deepep_ptx.cli import measure
from deepep_ptx.cli.ab import sass
from deepep_ptx.cli.measure import statistics, traffic
from deepep_ptx.cli.measure.machine import FLUSH_BYTES
from deepep_ptx.cli.tables import table
from deepep_ptx.emu.coverage import paragraphs

PAYLOAD = "payload rows; flags, indices and weights come on top"
WIDTH = 100


def record(plan, job, outcome, look, links, checks=None):
    """All of it as what JSON can hold.

    look: a `sass.Look`, or the reason for none as a string.  links: as `measure.links` gives them.
    checks: as `run.check` gives them, None: not asked for.
    A wrong result leaves figures out.
    """
    made = {
        "program": "deepep-ptx ab",
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": plan.kernel,
        "combine": plan.combine,
        "executor": plan.executor,
        "arch": plan.arch,
        "gpu": outcome.device_name if plan.executor == "cuda" else None,
        "driver": measure.driver_version() if plan.executor == "cuda" else None,
        "devices": plan.devices,
        "shape": {name: getattr(plan, name)
                  for name in ("ranks", "tokens", "hidden", "topk", "experts", "sms")},
        "rounds": plan.rounds,
        "warmup": plan.warmup,
        "seed": plan.seed,
        "timeout_s": plan.timeout_s,
        "ptx_inputs": select.load_table()["inputs"],
        "assembler": _assembler(look),
        "variants": [_variant(plan, outcome, look, number)
                     | {"check": checks[number] if checks else None}
                     for number in range(len(plan.contenders))],
        "wrong": [asdict(wrong) | {"text": str(wrong)} for wrong in outcome.wrong],
    }
    if outcome.wrong:
        return made
    made["verdicts"] = verdicts(plan, outcome)
    if plan.executor == "emu":
        return made | {"rows": int(job.rows.sum()), "counts_of": "the call, waits included"}
    return made | _timing(plan, job, outcome, links)


def text(made):
    """What `record` holds, in lines for people."""
    lines = [_headline(made), *_shape_lines(made), ""]
    if made["wrong"]:
        lines += [f"WRONG  {w['text']}" for w in made["wrong"]]
        return "\n".join([*lines, "no figures: a wrong result is not worth a time",
                          *_check_lines(made)])
    lines += _counts_table(made) if made["executor"] == "emu" else _times_table(made)
    if made["verdicts"]:
        lines += ["", *made["verdicts"]]
    lines += _check_lines(made)
    if made["executor"] == "emu":
        lines += ["", *paragraphs({variant["name"]: variant["not_executed"]
                                   for variant in made["variants"]})]
    return "\n".join([*lines, "", *_sass_lines(made)])


def dry_run(plan):
    """What the plan would do."""
    lines = [f"{c.name:<16}{c.symbol}{'  (undefined at its load site)' if c.undefined else ''}"
             for c in plan.contenders]
    where = "CPU executor" if plan.devices is None else \
        f"GPUs {', '.join(map(str, plan.devices))}, one for each rank"
    return "\n".join([
        f"would compare variants of {_kernel_name(plan.kernel, plan.combine)} for {plan.arch}",
        *lines,
        f"on {where}: {plan.ranks} ranks, {plan.tokens} tokens each, hidden {plan.hidden}, "
        f"top-{plan.topk} of {plan.experts} experts, {plan.sms} SMs, seed {plan.seed}",
        f"{plan.num_calls} calls: each variant for its bits, {plan.warmup} + {plan.rounds} rounds "
        "of all variants, each for its bits again" if plan.rounds else
        f"{plan.num_calls} calls: each variant once, for its bits and for counts",
    ])


def slower_rank(outcome):
    """Microseconds [contenders, rounds]: a call lasts as long as its slowest rank."""
    return outcome.times.max(axis=2)


def verdicts(plan, outcome):
    """Sentences: each contender against the first; then what undefined ones have to show."""
    lines = []
    times = slower_rank(outcome) if outcome.times is not None else None
    if times is not None:
        for number, contender in enumerate(plan.contenders[1:], start=1):
            against_first = statistics.ratio(times[number], times[0], plan.seed)
            lines.append(statistics.verdict(contender.name, plan.contenders[0].name,
                                            against_first))
    for number, contender in enumerate(plan.contenders):
        if contender.undefined:
            lines.append(f"{contender.name}: PTX leaves its loads undefined at a "
                         f"{contender.variant['site']} site: right bits here prove nothing"
                         + ("" if times is None else "; " + _has_to_beat(plan, times, number)))
    return lines


def _has_to_beat(plan, times, number):
    defined = [i for i, contender in enumerate(plan.contenders) if not contender.undefined]
    if not defined:
        return "it has to beat the best defined variant, and none is in this run"
    best = min(defined, key=lambda i: np.median(times[i]))
    name, of = plan.contenders[best].name, statistics.ratio(times[number], times[best], plan.seed)
    if of.high < 1:
        return f"it has to beat the best defined variant, {name}, and does"
    return (f"it has to beat the best defined variant, {name}, and does not "
            f"(ratio {of.median:.4f}, {of.low:.4f} .. {of.high:.4f})")


# -- record -----------------------------------------------------------------------------------

def _variant(plan, outcome, look, number):
    contender = plan.contenders[number]
    row = {
        "name": contender.name,
        "symbol": contender.symbol,
        "site": contender.variant["site"],
        "undefined": contender.undefined,
        "launched": list(outcome.launched[number]),
        "sass": None if isinstance(look, str) else look.record(number),
    }
    if outcome.counts is not None:
        row["counts"] = outcome.counts[number]
        row["not_executed"] = outcome.not_executed[number]
    if outcome.times is not None:
        row["times_us"] = np.round(outcome.times[number].astype(float), 3).tolist()
    return row


def _assembler(look):
    if isinstance(look, str):
        return {"missing": look}
    return {"ptxas": look.tools.ptxas_version, "nvdisasm": look.tools.nvdisasm_version}


def _timing(plan, job, outcome, links):
    row_bytes = traffic.row_bytes(plan.hidden, "bf16")
    rows = job.rows.T if plan.combine == "push" else job.rows       # who sends what to whom
    wire = traffic.busiest_link(rows, plan.devices) * row_bytes
    logical = traffic.busiest_rank(rows) * row_bytes
    bandwidth = links.get("copy_engine_both_ways_gb_s")
    times = slower_rank(outcome)
    figures = []
    for number, contender in enumerate(plan.contenders):
        spread = measure.spread(times[number].tolist())
        median = spread["median_us"]
        line = {"name": contender.name, **spread, "wire_gb_s": wire / median / 1e3,
                "logical_gb_s": logical / median / 1e3}
        if number:
            line["ratio"] = asdict(statistics.ratio(times[number], times[0], plan.seed))
        figures.append(line)
    return {
        "flush_bytes": FLUSH_BYTES,
        "bootstrap": {"resamples": statistics.RESAMPLES, "coverage": statistics.COVERAGE},
        "order": plan.order().tolist(),
        "links": links,
        "bytes": {"row": row_bytes, "wire_busiest_gpu": wire, "logical_busiest_rank": logical,
                  "of": PAYLOAD},
        "floor_us": wire / bandwidth / 1e3 if wire and bandwidth else None,
        "figures": figures,
    }


# -- text -------------------------------------------------------------------------------------

def _kernel_name(kernel, combine):
    return f"{kernel} ({combine})" if combine else kernel


def _headline(made):
    name = _kernel_name(made["kernel"], made["combine"])
    if made["executor"] == "emu":
        return f"{name}: counts of the CPU executor, {made['arch']}; they are not times"
    return (f"{name} on {made['gpu']}, GPUs {', '.join(map(str, made['devices']))}, "
            f"driver {made['driver']}, {made['arch']}")


def _shape_lines(made):
    shape = made["shape"]
    yield (f"{shape['ranks']} ranks, {shape['tokens']} tokens each, hidden {shape['hidden']}, "
           f"top-{shape['topk']} of {shape['experts']} experts, {shape['sms']} SMs, "
           f"seed {made['seed']}")
    if made["wrong"]:
        return
    yield "bits equal to the reference's on all ranks, for every variant"
    if made["executor"] == "emu":
        return
    yield (f"{made['rounds']} rounds of all variants after {made['warmup']}, each in an order of "
           "its own; L2 flushed before each call; the slower rank's time")
    links, floor = made["links"], made["floor_us"]
    if not links:
        yield "copy engine: not measured, all ranks share one GPU"
        return
    yield (f"copy engine {links['copy_engine_one_way_gb_s']} GB/s one way, "
           f"{links['copy_engine_both_ways_gb_s']} both ways at once")
    if floor is None:
        yield "no payload row crosses a link"
    else:
        yield (f"floor {floor:.1f} us: {made['bytes']['wire_busiest_gpu'] / 1e6:.1f} MB of payload "
               "over the busiest GPU's links, at the copy engine's rate both ways")


def _checked(variant):
    return variant["check"]["verdict"] if variant["check"] else "-"


def _check_lines(made):
    """What the race checker found, in short."""
    for variant in made["variants"]:
        check = variant["check"]
        if check and check["reports"]:
            yield ""
            yield f"check: {variant['name']}: {check['verdict']}"
            yield from check["reports"][0].splitlines()
            yield f"all of it: {check['replay']}"


def _times_table(made):
    rows = [("variant", "median us", "p10 .. p90", "wire GB/s", "logical GB/s", "ratio",
             "95 %", "registers", "check")]
    for variant, line in zip(made["variants"], made["figures"], strict=True):
        ratio = line.get("ratio")
        rows.append((
            line["name"], f"{line['median_us']:.2f}",
            f"{line['p10_us']:.2f} .. {line['p90_us']:.2f}",
            f"{line['wire_gb_s']:.1f}", f"{line['logical_gb_s']:.1f}",
            f"{ratio['median']:.4f}" if ratio else "1",
            f"{ratio['low']:.4f} .. {ratio['high']:.4f}" if ratio else "",
            str(variant["sass"]["registers"]) if variant["sass"] else "-", _checked(variant),
        ))
    return table(rows)


def _counts_table(made):
    names = list(made["variants"][0]["counts"][0])
    totals = [[sum(rank[name] for rank in variant["counts"]) for name in names]
              for variant in made["variants"]]
    rows = [("all ranks", *(name.removeprefix("global_").replace("_bytes", " B")
                            .replace("_instructions", " instr").replace("_", " ")
                            for name in names), "check")]
    rows += [(variant["name"], *(f"{total:,}" for total in line), _checked(variant))
             for variant, line in zip(made["variants"], totals, strict=True)]
    rows += [(f"per row of {made['rows']:,}", *[""] * (len(names) + 1))]
    rows += [(variant["name"], *(f"{total / made['rows']:,.1f}" for total in line), "")
             for variant, line in zip(made["variants"], totals, strict=True)]
    kernels = ", ".join(made["variants"][0]["launched"])
    return [*table(rows), f"of the whole call, waits included; {made['variants'][0]['name']}: "
                             f"{kernels}"]


def _sass_lines(made):
    first = made["variants"][0]
    if first["sass"] is None:
        yield f"SASS: not compared: {made['assembler']['missing']}"
        return
    yield (f"SASS by ptxas {made['assembler']['ptxas']}, against {first['name']} "
           f"({_resources(first['sass'])}); on a GPU the driver assembles")
    for variant in made["variants"][1:]:
        changed = sass.changes(first["sass"]["opcodes"], variant["sass"]["opcodes"])
        # Spaces that do not break a line hold an opcode and its counts together.
        counts = ", ".join(f"{opcode}\xa0{old}\xa0->\xa0{new}"
                           for opcode, (old, new) in changed.items())
        for line in textwrap.wrap(f"{variant['name']} ({_resources(variant['sass'])}): "
                                  + (counts or "the same opcodes as often"), WIDTH,
                                  initial_indent="  ", subsequent_indent="    "):
            yield line.replace("\xa0", " ")


def _resources(figures):
    return f"{figures['registers']} registers, {figures['spills']} bytes of spills"


def sass_diffs(plan, look):
    """Unified diffs of every contender against the first, as lines."""
    first = plan.contenders[0]
    for contender, assembly in zip(plan.contenders[1:], look.assemblies[1:], strict=True):
        yield ""
        yield from sass.diff(first.name, look.assemblies[0], contender.name, assembly) or [
            f"{contender.name}: SASS as that of {first.name}, but for registers and addresses"]
