#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Mutation testing of the kernels' synchronisation: every synchronising instruction made weaker or
taken out, one at a time, and run until the race checker, a wrong bit or a fault shows it.

tests/mutants.json has what came out, tests/survivors.toml why nothing shows the others;
docs/mutants.md explains both.  Exit status 1: a mutant survived and has no reason, or the score is
too low.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
import time
import tomllib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

from tqdm import tqdm

from deepep_ptx import _emu, runtime, select
from deepep_ptx.cli import catalogue
from deepep_ptx.cli.check import workloads
from deepep_ptx.emu.kernel import load_image
from deepep_ptx.errors import DeepEPTimeoutError, KernelFault, PtxError, RankError
from deepep_ptx.toolchain.mutants import Mutant, mutants_of

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests/mutants.json"
REASONS = ROOT / "tests/survivors.toml"

ARCH = "sm_90"
# Symbol -> what `Buffer(policy=)` takes to run it.  One of each data path: the others differ in the
# form of payload loads, which no mutant is about.
SYMBOLS = {"ep_dispatch_vec_ld_na": "ld_na", "ep_combine_vec_ld_na": "ld_na",
           "ep_dispatch_bulk": "bulk", "ep_combine_bulk": "bulk",
           "ep_ll_dispatch": "ld_na", "ep_ll_combine": "ld_na", "ep_ll_logfmt_combine": "ld_na",
           "ep_layout": "ld_na", "ep_copy": "ld_na", "ep_abort": "ld_na"}
SCHEDULES = (("rr", 0, "sc"), ("late-async", 0, "sc"), ("random", 0, "sc"), ("rr", 0, "weak"),
             ("random", 0, "weak"))
# Warp instructions, without the mutant, of all runs that one is tried in: the short ones first.
ENOUGH = 10_000_000

# A mutant that never ends is found out soon: a launch of these workloads executes far less.
LIMITS = {"instruction_limit": 1 << 24, "stall_limit": 1 << 20}
PATIENCE_S = 120        # of wall time, for a run that hangs elsewhere

# How an instruction is called in the report.
_SHORT = re.compile(r"fence\.proxy\.async|bar\.warp|cp\.async\.bulk\.\w+|\w+")
SURVIVED = "survived"
NOT_EXECUTED = "not executed"
KINDS = ("equivalent", "unseen", "unexecuted")
MIN_SCORE = 95


class TooLong(BaseException):
    """A run has taken more than PATIENCE_S: no `Exception`, so that no workload catches it."""


# -- runs -----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Run:
    """One workload by `policy`, under one scheduler and seed, in memory that is "sc" or "weak"."""

    policy: str
    case: str
    scheduler: str
    seed: int
    memory: str

    def __str__(self):
        return f"{self.case} {self.scheduler} {self.seed} {self.memory}"

    @classmethod
    def of(cls, symbol, name):
        """Of a kernel, by what `str` gives."""
        case, scheduler, seed, memory = name.split(" ")
        return cls(SYMBOLS[symbol], case, scheduler, int(seed), memory)


@dataclass
class Outcome:
    """verdict: what showed in a run, "" where nothing did.  told: the whole report.  lines: symbol
    -> rendered lines that were executed.  instructions: of all warps."""

    verdict: str
    told: str
    lines: dict
    instructions: int


@cache
def texts():
    """Symbol -> rendered text."""
    return {variant["symbol"]: select.read_text(variant)
            for variant in select.load_table()["variants"]
            if variant["arch"] == ARCH and variant["symbol"] in SYMBOLS}


@contextmanager
def patched(symbol, text):
    """Within the block kernels are checked, and `text` is in the place of `symbol`'s; gives the
    list of the worlds that are made."""
    worlds = []
    read = select.read_text

    class Checked(_emu.World):
        def __new__(cls, *args, **options):
            world = super().__new__(cls, *args, **{**options, **LIMITS, "check": "races-strict"})
            worlds.append(world)
            return world

    def read_text(variant):
        mutated = variant["symbol"] == symbol and variant["arch"] == ARCH
        return text if mutated else read(variant)

    with mock.patch.object(runtime, "World", Checked), \
            mock.patch.object(select, "read_text", read_text):
        yield worlds


def give_up(_signal, _frame):
    raise TooLong


def observe(run, symbol=None, text=None):
    """The `Outcome` of a run, with `text` in the place of the kernel `symbol`."""
    workload = workloads.WORKLOADS[run.case]
    old = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    found = error = None
    with patched(symbol, text) as worlds:
        try:
            found = workload.run(run.policy, arch=ARCH, scheduler=run.scheduler, seed=run.seed,
                                 memory=run.memory)
        except (Exception, TooLong) as raised:
            error = raised
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
    races = [race for world in worlds for race in world.races()]
    verdict, told = judgement(races, found, error)
    instructions = sum(world.counters(rank)["warp_instructions"] for world in worlds
                       for rank in range(world.num_ranks))
    return Outcome(verdict, told, executed(worlds), instructions)


def judgement(races, found, error):
    """(verdict in a few words, the whole report) of what a run gave: what the checker says first.

    races: of its worlds.  found: what the workload returned.  error: what it raised.
    """
    if races:
        return f"race, {races[0].kind}", races[0].text
    if error is None:
        if found.wrong:
            return "wrong bits", str(found.wrong[0])
        error = found.failure
    if error is None:
        return "", ""
    while isinstance(error, RankError):
        error = error.__cause__
    if isinstance(error, PtxError):
        raise error
    told = f"{type(error).__name__}: {error}"
    if isinstance(error, KernelFault):
        return f"fault, {error.kind}", told
    if isinstance(error, DeepEPTimeoutError):
        return "timeout", told
    if isinstance(error, TooLong):
        return f"no end in {PATIENCE_S} s", told
    return f"error, {type(error).__name__}", told


def executed(worlds):
    """Symbol -> rendered lines of its text that some thread executed."""
    found = {}
    for world in worlds:
        for (symbol, text), flags in world.ran().items():
            image = load_image(text, symbol)
            lines = image.lines[image.insns["line"][:len(flags)][flags]]["ptx_line"]
            found.setdefault(symbol, set()).update(lines.tolist())
    return found


def all_runs():
    """Of all policies: what comes first is tried first."""
    return [Run(policy, case, *schedule)
            for schedule in SCHEDULES
            for policy in dict.fromkeys(SYMBOLS.values())
            for case, workload in workloads.WORKLOADS.items()
            if workload.is_for(workload.variants(policy, ARCH))]


# -- all mutants ----------------------------------------------------------------------------------

@dataclass
class Tried:
    """A mutant of `symbol`'s text with what came out: a verdict as in the table, and the report."""

    symbol: str
    mutant: Mutant
    verdict: str
    told: str = ""

    @property
    def was_killed(self):
        return self.verdict not in (SURVIVED, NOT_EXECUTED)


def try_mutant(job):
    """A `Tried`; job: (symbol, `Mutant`, the runs to try it in)."""
    symbol, mutant, runs = job
    if not runs:
        return Tried(symbol, mutant, NOT_EXECUTED)
    text = mutant.of(texts()[symbol])
    for run in runs:
        outcome = observe(run, symbol, text)
        if outcome.verdict:
            return Tried(symbol, mutant, f"{outcome.verdict}: {run}", outcome.told)
    return Tried(symbol, mutant, SURVIVED)


def verdict_of(symbol, mutant, name):
    """What a mutant's verdict would be, were the run of this name the first."""
    run = Run.of(symbol, name)
    return f"{observe(run, symbol, mutant.of(texts()[symbol])).verdict}: {run}"


def jobs(baseline, symbols, only):
    """What `try_mutant` takes, for each mutant of these kernels in which `only` occurs.

    baseline: `Run` -> `Outcome` without a mutant, of runs in which nothing shows.
    """
    for symbol in symbols:
        for mutant in mutants_of(texts()[symbol]):
            if only not in f"{mutant.site}: {mutant.mutation}":
                continue
            runs = [run for run, outcome in baseline.items()
                    if run.policy == SYMBOLS[symbol]
                    and mutant.ptx_line in outcome.lines.get(symbol, ())]
            runs.sort(key=lambda run: baseline[run].instructions)
            total = itertools.accumulate(baseline[run].instructions for run in runs)
            yield symbol, mutant, [run for run, sum_so_far in zip(runs, total, strict=True)
                                   if sum_so_far <= ENOUGH]


# -- reasons --------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Reason:
    """An entry of tests/survivors.toml: why nothing shows these mutants.

    kind: of KINDS.  of: how symbols begin.  copies: () for all.
    """

    kind: str
    of: tuple
    files: tuple
    statements: tuple
    mutations: tuple
    copies: tuple
    reason: str

    @classmethod
    def read(cls, kind, entry):
        """Of an entry as TOML has it; ValueError where it is none."""
        if (entry.keys() - {"copies"} != {"of", "files", "statements", "mutations", "reason"}
                or not entry["reason"].strip()):
            raise ValueError(f"{REASONS.name}: must have of, files, statements, mutations and "
                             f"reason, got {entry}")
        return cls(kind, tuple(entry["of"]), tuple(entry["files"]), tuple(entry["statements"]),
                   tuple(entry["mutations"]), tuple(entry.get("copies", ())),
                   " ".join(entry["reason"].split()))

    def is_about(self, symbol, mutant):
        return (symbol.startswith(self.of) and mutant.file in self.files
                and mutant.statement in self.statements and mutant.mutation in self.mutations
                and (not self.copies or mutant.copy in self.copies))


def reasons(path=REASONS):
    """All of the file.  ValueError for a kind or an entry that is none."""
    document = tomllib.loads(path.read_text())
    if unknown := document.keys() - set(KINDS):
        raise ValueError(f"{path.name}: must be of {', '.join(KINDS)}, got {', '.join(unknown)}")
    return [Reason.read(kind, entry) for kind in KINDS for entry in document.get(kind, ())]


def reason_for(symbol, mutant, verdict, table):
    """The `Reason` for a mutant that nothing has shown, or None."""
    kinds = KINDS[2:] if verdict == NOT_EXECUTED else KINDS
    return next((reason for reason in table
                 if reason.kind in kinds and reason.is_about(symbol, mutant)), None)


def complaints(tried, table):
    """Lines of text: mutants that need a reason, and reasons that nobody needs."""
    used, lines = set(), []
    for one in tried:
        if one.was_killed:
            continue
        reason = reason_for(one.symbol, one.mutant, one.verdict, table)
        if reason is None:
            lines.append(f"{one.symbol}: {told_of(one.mutant)}: {one.verdict}: a workload has to "
                         f"show it, or {REASONS.name} says why none can")
        else:
            used.add(reason)
    tried_sites = {(one.symbol, one.mutant.file) for one in tried}
    lines += [f"{REASONS.name}: {', '.join(reason.files)}: {' | '.join(reason.statements)}: "
              f"{', '.join(reason.mutations)}: no mutant of {' or '.join(reason.of)} needs it"
              for reason in table if reason not in used
              and any(symbol.startswith(reason.of) and file in reason.files
                      for symbol, file in tried_sites)]
    return lines


def told_of(mutant):
    return f"{mutant.file}:{mutant.line}: {mutant.statement} #{mutant.copy}: {mutant.mutation}"


def summary(tried, table):
    """name -> number; the score is the share of mutants that were killed in those that a run can
    tell from the kernels: executed, and not equivalent."""
    numbers = dict.fromkeys(("mutants", "killed", "equivalent", "unseen", "unexecuted",
                             "without a reason"), 0)
    for one in tried:
        reason = reason_for(one.symbol, one.mutant, one.verdict, table)
        numbers["mutants"] += 1
        numbers["killed" if one.was_killed else reason.kind if reason else "without a reason"] += 1
    told = numbers["killed"] + numbers["unseen"] + numbers["without a reason"]
    return {"score": round(100 * numbers["killed"] / max(told, 1), 1), **numbers}


# -- the table ------------------------------------------------------------------------------------

def document(tried, table):
    """The content of tests/mutants.json."""
    verdicts = {}
    for one in tried:
        sites = verdicts.setdefault(one.symbol, {})
        sites.setdefault(one.mutant.site, {})[one.mutant.mutation] = one.verdict
    return {"summary": summary(tried, table), "verdicts": verdicts}


def recorded(path=TABLE):
    """(its summary, `Tried` of the mutants of the kernels as they are, lines of text about where
    the table and they have parted)."""
    found = json.loads(path.read_text())
    tried, lines, gone = [], [], set()
    for symbol, sites in found["verdicts"].items():
        gone |= {(symbol, site, mutation) for site in sites for mutation in sites[site]}
    for symbol in SYMBOLS:
        for mutant in mutants_of(texts()[symbol]):
            key = symbol, mutant.site, mutant.mutation
            if key in gone:
                gone.remove(key)
                verdict = found["verdicts"][symbol][mutant.site][mutant.mutation]
                tried.append(Tried(symbol, mutant, verdict))
            else:
                lines.append(f"{symbol}: {told_of(mutant)}: is new; make mutate")
    lines += [f"{symbol}: {site}: {mutation}: is gone; make mutate"
              for symbol, site, mutation in sorted(gone)]
    return found["summary"], tried, lines


def with_the_rest(tried):
    """`tried`, and what the table has of other mutants of the kernels as they are, in their
    order."""
    keys = {(one.symbol, one.mutant) for one in tried}
    rest = [one for one in (recorded()[1] if TABLE.exists() else ())
            if (one.symbol, one.mutant) not in keys]
    symbols = list(SYMBOLS)
    return sorted([*tried, *rest], key=lambda one: (symbols.index(one.symbol), one.mutant.start))


# -- the command ----------------------------------------------------------------------------------

def try_all(symbols, only, num_jobs, tell):
    """(`Run`s in which something shows without a mutant, with their `Outcome`; a `Tried` of each
    mutant); tell: is called with every one of these as it comes."""
    policies = {SYMBOLS[symbol] for symbol in symbols}
    runs = [run for run in all_runs() if run.policy in policies]
    quiet = not sys.stderr.isatty()
    with multiprocessing.get_context("fork").Pool(num_jobs) as pool:
        outcomes = list(zip(runs, tqdm(pool.imap(observe, runs), "runs", len(runs), disable=quiet),
                            strict=True))
        baseline = {run: outcome for run, outcome in outcomes if not outcome.verdict}
        work = list(jobs(baseline, symbols, only))
        tried = []
        for one in tqdm(pool.imap(try_mutant, work), "mutants", len(work), disable=quiet):
            tried.append(one)
            tell(one)
    return [(run, outcome) for run, outcome in outcomes if outcome.verdict], tried


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", action="append", choices=SYMBOLS, metavar="SYMBOL",
                        help=f"of {', '.join(SYMBOLS)}; several times for several (default: all)")
    parser.add_argument("--only", default="", metavar="TEXT",
                        help="mutants in whose file, statement or change this occurs")
    parser.add_argument("--jobs", type=int, choices=range(1, 65), metavar="N",
                        default=min(2, os.cpu_count() or 1),
                        help="processes, 1 to 64 (default: %(default)s)")
    parser.add_argument("--dry", action="store_true", help="leave the table as it is")
    parser.add_argument("--reports", action="store_true", help="what showed each mutant")
    args = parser.parse_args()
    catalogue.warn_if_stale()
    os.environ["DEEPEP_PTX_EXECUTOR"] = "emu"
    began = time.monotonic()

    def tell(one):
        if args.reports:
            print(f"{one.symbol}: {told_of(one.mutant)}: {one.verdict}\n{one.told}\n", flush=True)

    wrong, tried = try_all(args.kernel or list(SYMBOLS), args.only, args.jobs, tell)
    table = reasons()
    for line in by_mutation(tried, table):
        print(line)
    tried = with_the_rest(tried)
    lines = [f"{run.policy}, {run}: not a mutant, and {outcome.verdict}\n{outcome.told}"
             for run, outcome in wrong] + complaints(tried, table)
    numbers = summary(tried, table)
    lines.append(f"mutate: {', '.join(f'{name} {number}' for name, number in numbers.items())}; "
                 f"{time.monotonic() - began:.0f} s")
    print("\n".join(lines))
    if not (args.dry or wrong):
        TABLE.write_text(json.dumps(document(tried, table), indent=1) + "\n")
    return int(len(lines) > 1 or numbers["score"] < MIN_SCORE)


def kind_of(mutant):
    """Of a mutant: what was done to which instruction."""
    opcode = mutant.statement.split(" ")[mutant.statement.startswith("@")].rstrip(";")
    return f"{_SHORT.match(opcode)[0]}: {mutant.mutation}"


def by_mutation(tried, table):
    """Lines of a table: what became of the mutants of each kind."""
    columns = ("killed", "by the checker", *KINDS, "open")
    counts = {}
    for one in tried:
        row = counts.setdefault(kind_of(one.mutant), Counter())
        reason = reason_for(one.symbol, one.mutant, one.verdict, table)
        row["killed" if one.was_killed else reason.kind if reason else "open"] += 1
        row["by the checker"] += one.verdict.startswith("race")
    yield f"{'':32}" + "".join(f"{column:>16}" for column in columns)
    for mutation, row in sorted(counts.items()):
        yield f"{mutation:32}" + "".join(f"{row[column] or '':>16}" for column in columns)


if __name__ == "__main__":
    sys.exit(main())
