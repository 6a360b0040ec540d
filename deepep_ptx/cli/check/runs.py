# SPDX-License-Identifier: MIT
"""Runs of the workloads: which there are, and what each found."""

from dataclasses import asdict, dataclass

from deepep_ptx import select
from deepep_ptx.cli.check.executed import packed
from deepep_ptx.cli.check.findings import Finding, Result, of_race, options_of
from deepep_ptx.cli.check.rounds import made_by
from deepep_ptx.cli.check.workloads import WORKLOADS
from deepep_ptx.errors import KernelFault

MEMORIES = ("sc", "weak")
MOST_RANKS = 8          # with twice as many a run takes five seconds, and 600 MB


@dataclass(frozen=True)
class Run:
    """One run of a workload.  case: its name.  The rest is as of `Workload.run`."""

    case: str
    policy: str
    arch: str
    ranks: int
    scheduler: str
    seed: int
    memory: str

    @property
    def workload(self):
        """The `Workload`."""
        return WORKLOADS[self.case]

    @property
    def variants(self):
        """Rows of the shipped table that it runs, once each."""
        rows = self.workload.variants(self.policy, self.arch).values()
        return list({row["file"]: row for row in rows}.values())

    @property
    def texts(self):
        """Symbol of each kernel that it runs -> the name of its text."""
        return {row["symbol"]: row["file"] for row in self.variants}

    def command(self, kernel):
        """What replays it."""
        return (f"deepep-ptx check {kernel} --policy {self.policy} --arch {self.arch} "
                f"--ranks {self.ranks} --case {self.case} {options_of(self)}")

    def kernel_of(self, text):
        """The kernel whose variant the text is."""
        return next(row["kernel"] for row in self.variants if row["file"] == text)

    def as_dict(self):
        """For JSON."""
        return asdict(self)

    def result(self):
        """Run it: its `Result`."""
        outcome = self.workload.run(self.policy, arch=self.arch, ranks=self.ranks,
                                    scheduler=self.scheduler, seed=self.seed, memory=self.memory)
        return Result([*(of_race(race, self.texts) for race in outcome.races),
                       *map(self._of_wrong, outcome.wrong),
                       *([self._of_failure(outcome.failure)] if outcome.failure else [])],
                      packed(outcome.ran or {}, self.texts))

    def _of_wrong(self, wrong):
        kernel = made_by(wrong.array)
        files = tuple(row["file"] for row in self.variants
                      if row["kernel"] == kernel or (kernel == "dispatch"
                                                     and row["kernel"] == "copy"))
        return Finding("WRONG", "bits", files, (self.case, wrong.array), f"WRONG {wrong}")

    def _of_failure(self, failure):
        cause = failure.__cause__
        what, files, place = type(cause).__name__, tuple(self.texts.values()), ()
        text = str(failure)
        if isinstance(cause, KernelFault):
            what, place, text = cause.kind, (cause.file, cause.line), str(cause)
            if cause.kernel in self.texts:
                files = (self.texts[cause.kernel],)
        notes = [*getattr(failure, "__notes__", []), *getattr(cause, "__notes__", [])]
        return Finding("FAULT", what, files, (self.case, *place),
                       "\n".join([f"FAULT {text}", *dict.fromkeys(notes)]))


def runs_of(kernel, policies, archs, *, cases=None, ranks=None, schedulers, seeds, memory="sc"):
    """`Run`s in order: of each workload with each of its variants, schedulers and seeds in turn.

    kernel: of the shipped table, or "all".  policies: as of `select.choose`; a policy is left out
    on targets that it has no variant for, if others have one.  cases: names of workloads, None =
    all.  ranks: None = as many as each workload says.

    Raises:
        ValueError: a policy that is unknown, or nothing to run; the text begins with the option.
    """
    runs, seen = [], set()
    for workload in WORKLOADS.values():
        if kernel not in ("all", *workload.kernels) or workload.name not in (cases or WORKLOADS):
            continue
        for policy in policies:
            for arch, variants in _variants(workload, policy, archs):
                key = (workload.name, *(row["file"] for row in variants.values()))
                if key in seen or not workload.is_for(variants):
                    continue
                seen.add(key)
                runs += [Run(workload.name, policy, arch, ranks or workload.ranks, scheduler, seed,
                             memory) for scheduler in schedulers for seed in seeds]
    if not runs:
        raise ValueError(f"--case: none of {', '.join(cases or WORKLOADS)} runs {kernel} with "
                         f"{', '.join(policies)} on {', '.join(archs)}")
    return runs


def _variants(workload, policy, archs):
    """(target, variants by use) of the targets that have the policy."""
    found, refusal = [], None
    for arch in archs:
        try:
            found.append((arch, workload.variants(policy, arch)))
        except ValueError as error:
            refusal = error
    if not found:
        raise ValueError(f"--policy: {str(refusal).removeprefix('policy: ')}")
    return found


def default_policies(archs):
    """What the aliases of defined loads choose, and each data path that has a name of its own."""
    table = select.load_table()
    aliases = [alias for alias, rule in table["aliases"].items() if not rule["undefined"]]
    bare = dict.fromkeys(row["path"] for row in table["variants"]
                         if row["path"] and not row["policy"])
    return [*aliases, *(path for path in bare if any(select.runs(path, arch) for arch in archs))]
