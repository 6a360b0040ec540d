# SPDX-License-Identifier: MIT
"""What a check found, in lines for people."""

from deepep_ptx.cli.check import record
from deepep_ptx.cli.check.findings import CLEAN
from deepep_ptx.cli.tables import aligned
from deepep_ptx.emu.coverage import brief, paragraphs

MOST = 10       # reports that are printed


def text(made, groups):
    """made: as `record.make` gives it; groups: `Group`s."""
    lines = [*_headline(made), "", *_table(made)]
    for group in groups[:MOST]:
        lines += ["", *_of_group(group)]
    if len(groups) > MOST:
        lines += ["", f"and {len(groups) - MOST} others; --json FILE has them all"]
    lines.append("")
    if made["not_executed"]:
        lines.append(f"not executed: {brief(made['not_executed'])}")
    return "\n".join([*lines, _last(made)])


def lines_not_executed(made):
    """Lines for people."""
    return list(paragraphs({"": made["not_executed"]}))


def _headline(made):
    given = made["arguments"]
    yield (f"{_count(given['runs'], 'run')}; schedulers {', '.join(given['schedulers'])}; seeds "
           f"{given['seeds'][0]}:{given['seeds'][1]}; memory {given['memory']}"
           if "seeds" in given else f"{_count(given['runs'], 'run')} of {given['replay']}")


def _count(number, what):
    return f"{number} {what}{'' if number == 1 else 's'}"


def _table(made):
    rows = [("kernel", "arch", "path", "policy", "symbol", "runs", "verdict", "first")]
    rows += [tuple("-" if cell is None else str(cell) for cell in (
        *(variant[name] for name in ("kernel", "arch", "path", "policy", "symbol", "runs",
                                     "verdict")), _first(variant["first"]) or ""))
             for variant in made["variants"]]
    return aligned(rows)


def _first(run):
    if run is None:
        return None
    case = f"case {run['case']}, " if "case" in run else ""
    return f"{case}{run['scheduler']}, seed {run['seed']}"


def _of_group(group):
    yield from group.finding.report.splitlines()
    yield f"  in    {', '.join(group.finding.texts)}; {_count(len(group.runs), 'run')}"
    yield f"  again {record.replay(group)}"


def _last(made):
    found = [variant for variant in made["variants"] if variant["verdict"] != CLEAN]
    if not found:
        return "clean; docs/verifier.md says what that means, and what it cannot promise"
    return f"not clean: {len(found)} of {_count(len(made['variants']), 'variant')}"
