# SPDX-License-Identifier: MIT
"""What runs found: one finding for all that is the same, and a verdict for each text."""

from dataclasses import dataclass, field

CLEAN = "clean"


@dataclass(frozen=True)
class Finding:
    """One thing that one run found.

    verdict: "RACE", "WRONG" or "FAULT".  what: a race's kind, "bits", a fault's kind or an
    exception's type.  texts: names of the PTX texts that it is about.  key: what findings of other
    runs have in common with it if they are the same.  report: lines for people.
    race: `Race.as_dict()`, None of other findings.
    """

    verdict: str
    what: str
    texts: tuple[str, ...]
    key: tuple
    report: str
    race: dict | None = None


@dataclass(frozen=True)
class Result:
    """What one run gave.  executed: as `executed.packed` gives it."""

    findings: list
    executed: dict


@dataclass
class Group:
    """Findings that are the same.  finding: the first, of `run`.  runs: those that found it."""

    finding: Finding
    runs: list = field(default_factory=list)

    @property
    def run(self):
        """The first run that found it."""
        return self.runs[0]


def options_of(run):
    """Options of the command by which a run is made again."""
    return (f"--scheduler {run.scheduler} --seeds {run.seed}:{run.seed + 1}"
            + (f" --memory {run.memory}" if run.memory != "sc" else ""))


def grouped(results):
    """`Group`s in the order in which they were found.  results: (run, its `Result`)."""
    groups = {}
    for run, result in results:
        for finding in result.findings:
            key = (finding.verdict, finding.what, finding.texts, finding.key)
            runs = groups.setdefault(key, Group(finding)).runs
            if not runs or runs[-1] != run:
                runs.append(run)
    return list(groups.values())


def verdict(groups):
    """In a word or a few: "clean", "RACE 2", "WRONG bits", "FAULT livelock", or several of them."""
    races = sum(group.finding.verdict == "RACE" for group in groups)
    others = dict.fromkeys(f"{group.finding.verdict} {group.finding.what}"
                           for verdict in ("WRONG", "FAULT") for group in groups
                           if group.finding.verdict == verdict)
    return ", ".join([*([f"RACE {races}"] if races else []), *others]) or CLEAN


def of_race(race, texts):
    """A `Finding` of a `Race`; texts: name of a kernel -> name of its PTX text."""
    places = [(side.kernel, side.file, side.line)
              for side in (race.first, race.second)]
    named = [texts[kernel] for kernel, *_ in places if kernel in texts]
    return Finding("RACE", race.kind, tuple(dict.fromkeys(named or texts.values())),
                   (race.kind, *places), race.text, race.as_dict())
