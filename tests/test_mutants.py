# SPDX-License-Identifier: MIT
"""tests/mutants.json is about the kernels as they are: every synchronising instruction is in it,
and what no run can tell from the kernels has a reason in tests/survivors.toml."""

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepep_ptx.errors import DeepEPTimeoutError, KernelFault, PtxError, RankError
from deepep_ptx.toolchain.mutants import mutants_of
from tests.emu.machine import kernel

ROOT = Path(__file__).resolve().parents[1]
SAMPLE, SEED = 24, 14


def load_tool():
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "tools/mutate.py")
    module = sys.modules["mutate"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mutate = load_tool()
SUMMARY, TRIED, PARTED = mutate.recorded()


def sample():
    """Of the mutants that were killed: each of another kind, chosen by SEED."""
    rng = random.Random(SEED)
    by_kind = {}
    for one in TRIED:
        if one.was_killed:
            by_kind.setdefault(mutate.kind_of(one.mutant), []).append(one)
    return [rng.choice(by_kind[kind]) for kind in rng.sample(sorted(by_kind), SAMPLE)]


def survivor():
    """One that no run tells from its kernel, chosen by SEED."""
    return random.Random(SEED).choice([one for one in TRIED if one.verdict == mutate.SURVIVED])


def test_the_table_is_about_the_kernels_as_they_are():
    assert PARTED == []


def test_what_survived_has_a_reason():
    assert mutate.complaints(TRIED, mutate.reasons()) == []


def test_the_score():
    assert mutate.summary(TRIED, mutate.reasons()) == SUMMARY
    assert SUMMARY["score"] >= mutate.MIN_SCORE
    assert SUMMARY["killed"] > SUMMARY["mutants"] / 2


def test_the_page_has_the_score():
    text = (ROOT / "docs/mutants.md").read_text()
    assert ("{mutants} mutants: {killed} killed, {equivalent} equivalent, {unseen} unseen, "
            "{unexecuted} unexecuted; score {score} %".format(**SUMMARY)) in text


@pytest.mark.parametrize("one", sample(), ids=lambda one: f"{one.symbol}-{one.mutant.site}"
                                                          f"-{one.mutant.mutation}")
def test_some_are_killed_again(one):
    run = one.verdict.rpartition(": ")[2]
    assert mutate.verdict_of(one.symbol, one.mutant, run) == one.verdict


def test_one_survives_again():
    one = survivor()
    runs = [run for run in mutate.all_runs() if run.policy == mutate.SYMBOLS[one.symbol]]
    assert mutate.verdict_of(one.symbol, one.mutant, str(runs[0])) == f": {runs[0]}"


# -- the judgement itself ---------------------------------------------------------------------

FINE = SimpleNamespace(wrong=(), failure=None)
RACE = SimpleNamespace(kind="order", text="a race")
FAULT = KernelFault("a fault", kind="livelock", kernel="k", file="f", line=1, rank=0, cta=0, warp=0,
                    lane=0)


def failed(cause):
    error = RankError("rank 0: failed", rank=0)
    error.__cause__ = cause
    return SimpleNamespace(wrong=(), failure=error)


@pytest.mark.parametrize(("races", "found", "error", "verdict"), [
    ([], FINE, None, ""),
    ([RACE], FINE, None, "race, order"),
    ([RACE], failed(FAULT), None, "race, order"),
    ([], SimpleNamespace(wrong=("row 3",), failure=None), None, "wrong bits"),
    ([], failed(FAULT), None, "fault, livelock"),
    ([], failed(failed(FAULT).failure), None, "fault, livelock"),
    ([], failed(DeepEPTimeoutError("late", rank=0, peer=1, wait="x")), None, "timeout"),
    ([], failed(ValueError("x")), None, "error, ValueError"),
    ([], None, AssertionError("x"), "error, AssertionError"),
])
def test_verdicts(races, found, error, verdict):
    assert mutate.judgement(races, found, error)[0] == verdict


def test_a_text_that_is_none_is_no_verdict():
    with pytest.raises(PtxError):
        mutate.judgement([], failed(PtxError("x", file="f", line=1)), None)


FENCE, BARRIER = (mutants_of(kernel(f"{text};"))[0] for text in ("fence.acq_rel.cta", "bar.sync 0"))


def tried(mutant, verdict, symbol="ep_a_one"):
    return mutate.Tried(symbol, mutant, verdict)


def reason(kind="equivalent", **changes):
    entry = {"of": ["ep_a"], "files": ["test.ptx"], "statements": ["fence.acq_rel.cta;"],
             "mutations": ["removed"], "reason": "because"}
    return mutate.Reason.read(kind, entry | changes)


@pytest.mark.parametrize(("verdict", "table", "lines"), [
    ("race, order: pull rr 0 sc", [], []),
    ("survived", [reason()], []),
    ("survived", [reason("unseen")], []),
    ("survived", [reason(copies=[1, 2])], []),
    ("not executed", [reason("unexecuted")], []),
    ("survived", [], ["a workload has to show it"]),
    ("survived", [reason("unexecuted")], []),
    ("not executed", [reason()], ["a workload has to show it", "no mutant of ep_a"]),
    ("survived", [reason(copies=[2])], ["a workload has to show it", "no mutant of ep_a"]),
    ("survived", [reason(mutations=["gpu -> cta"])],
     ["a workload has to show it", "no mutant of ep_a"]),
    ("survived", [reason(of=["ep_b"])], ["a workload has to show it"]),
    ("race, order: pull rr 0 sc", [reason()], ["no mutant of ep_a"]),
])
def test_reasons_and_survivors_are_held_against_each_other(verdict, table, lines):
    found = mutate.complaints([tried(FENCE, verdict)], table)
    assert len(found) == len(lines)
    assert all(part in line for part, line in zip(lines, found, strict=True))


def test_what_counts():
    found = mutate.summary(
        [tried(FENCE, "survived"), tried(BARRIER, "survived"), tried(BARRIER, "not executed"),
         *[tried(BARRIER, "race, order: pull rr 0 sc")] * 3], [reason()])
    assert found == {"score": 60.0, "mutants": 6, "killed": 3, "equivalent": 1, "unseen": 0,
                     "unexecuted": 0, "without a reason": 2}


def test_a_table_of_other_kernels(tmp_path):
    document = json.loads(mutate.TABLE.read_text())
    sites = document["verdicts"]["ep_copy"]
    site = next(iter(sites))
    moved = sites.pop(site)
    sites["ptx/src/copy.ptx: bar.sync 7; #1"] = {"removed": "survived"}
    path = tmp_path / "mutants.json"
    path.write_text(json.dumps(document))
    lines = mutate.recorded(path)[2]
    assert lines[-1] == "ep_copy: ptx/src/copy.ptx: bar.sync 7; #1: removed: is gone; make mutate"
    assert len(lines) == 1 + len(moved)
    assert all(line.endswith(": is new; make mutate") for line in lines[:-1])


@pytest.mark.parametrize(("text", "says"), [
    ('[[survived]]\n', "must be of equivalent, unseen, unexecuted, got survived"),
    ('[[unseen]]\nof = ["ep_a"]\n', "must have of, files, statements, mutations and reason"),
    ('[[unseen]]\nof = ["a"]\nfiles = ["f"]\nstatements = ["s"]\nmutations = ["m"]\nreason = " "\n',
     "must have of, files, statements, mutations and reason"),
])
def test_a_file_of_reasons_that_is_none(tmp_path, text, says):
    path = tmp_path / "survivors.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        mutate.reasons(path)
