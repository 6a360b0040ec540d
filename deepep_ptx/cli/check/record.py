# SPDX-License-Identifier: MIT
"""The JSON record of a check: written, and read to run again what found something."""

import datetime
import json
from collections import Counter
from pathlib import Path

from deepep_ptx import __version__, select
from deepep_ptx._emu import SCHEDULERS
from deepep_ptx.cli.check import harness
from deepep_ptx.cli.check.executed import not_executed
from deepep_ptx.cli.check.findings import verdict
from deepep_ptx.cli.check.runs import MEMORIES, MOST_RANKS, Run
from deepep_ptx.cli.check.workloads import WORKLOADS
from deepep_ptx.runtime import ARCHS
from deepep_ptx.toolchain.ptx_text import digest

PROGRAM, FORMAT = "deepep-ptx check", 1


def make(arguments, texts, results, groups):
    """All of it as what JSON can hold.

    arguments: name -> value.  texts: as `texts_of` gives them.  results: (run, its `Result`) of all
    runs.  groups: their `Group`s.
    """
    counts = Counter(row["file"] for run, _ in results for row in run.variants)
    return {
        "program": PROGRAM,
        "format": FORMAT,
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "arguments": arguments,
        "variants": [text | {
            "sha256": sha256_of(name),
            "harness_sha256": text["harness"] and sha256_of(text["harness"]),
            "runs": counts[name],
            "verdict": verdict([group for group in groups if name in group.finding.texts]),
            "first": next((group.run.as_dict() for group in groups
                           if name in group.finding.texts), None),
        } for name, text in texts.items()],
        "findings": [{
            "verdict": group.finding.verdict, "what": group.finding.what,
            "variants": list(group.finding.texts), "runs": len(group.runs),
            "first": group.run.as_dict(), "replay": replay(group),
            "report": group.finding.report, "race": group.finding.race,
        } for group in groups],
        "found": [run.as_dict() for run, result in results if result.findings],
        "not_executed": not_executed((result.executed for _, result in results), text_of),
    }


def replay(group):
    """The command that replays a group's first run."""
    return group.run.command(group.run.kernel_of(group.finding.texts[0]))


def texts_of(results, kernel="all"):
    """Name of a PTX text -> a row of the table without its verdict: of variants of `kernel`, and of
    those that something was found about."""
    found = {name for _, result in results for finding in result.findings
             for name in finding.texts}
    rows = {}
    for run, _ in results:
        for row in run.variants:
            if row["file"] in found or kernel in ("all", row["kernel"]):
                rows[row["file"]] = {name: row.get(name) for name in (
                    "file", "kernel", "arch", "path", "policy", "symbol", "harness")}
    order = [row["file"] for row in select.load_table()["variants"]]
    return dict(sorted(rows.items(), key=lambda item: order.index(item[0])
                       if item[0] in order else -1))


def sha256_of(name):
    """Of a text."""
    return digest(text_of(name))


def text_of(name):
    """A shipped text, or that of a file."""
    for row in select.load_table()["variants"]:
        if row["file"] == name:
            return select.read_text(row)
    return harness.read(name)


# -- read again -------------------------------------------------------------------------------

def runs_in(path):
    """The runs of a record that found something.

    Raises:
        ValueError: no record of this format, this version and these texts; says which.
    """
    made = _load(path)
    _require(made, "program", PROGRAM)
    _require(made, "format", FORMAT)
    _require(made, "version", __version__)
    try:
        for text in made["variants"]:
            _require_text(text["file"], text["sha256"])
            if text["harness"]:
                _require_text(text["harness"], text["harness_sha256"])
        return [_run_of(run) for run in made["found"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--replay: {path} is no whole record: {error!r}") from error


def _load(path):
    try:
        made = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--replay: cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--replay: {path} is no JSON: {error}") from error
    if not isinstance(made, dict):
        raise ValueError(f"--replay: {path} is no record of {PROGRAM}")
    return made


def _require(made, name, needed):
    if made.get(name) != needed:
        raise ValueError(f"--replay: {name} must be {needed!r}, as this is; the record has "
                         f"{made.get(name)!r}")


def _require_text(name, sha256):
    try:
        now = sha256_of(name)
    except ValueError as error:
        raise ValueError(f"--replay: variant {name}: there is none now") from error
    if now != sha256:
        raise ValueError(f"--replay: variant {name} has changed since: sha256 {now}, in the record "
                         f"{sha256}")


def _run_of(run):
    """A `Run` or `HarnessRun` of what JSON held."""
    made = harness.HarnessRun(**run) if "harness" in run else Run(**run)
    is_known = (made.scheduler in SCHEDULERS and made.memory in MEMORIES
                and type(made.seed) is int)
    if isinstance(made, harness.HarnessRun):
        is_known &= (type(made.file) is str and type(made.harness) is str
                     and (made.ranks is None or type(made.ranks) is int))
    if isinstance(made, Run):
        is_known &= (made.case in WORKLOADS and made.arch in ARCHS
                     and made.ranks in range(2, MOST_RANKS + 1))
    if not is_known:
        raise TypeError(run)
    return made
