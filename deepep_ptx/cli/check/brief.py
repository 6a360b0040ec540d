# SPDX-License-Identifier: MIT
"""The verdict on one variant, of a few runs: a second or two, for tools that do something else."""

from deepep_ptx import select
from deepep_ptx.cli.check.findings import grouped, verdict
from deepep_ptx.cli.check.runs import Run
from deepep_ptx.cli.check.workloads import WORKLOADS

# Between them: several tokens for each warp, rows in parts and stages, both ways of combining.
CASES = ("mixed", "many", "many-push", "rings")


def look(use, symbol, arch):
    """What a few runs find of a variant, as what JSON can hold.

    use: its kernel, or a use of that, as `select.choose` has them.

    Returns:
        dict: verdict, as `findings.verdict` words it; runs; reports (lines for people); replay (a
        command that shows the first of them, None if there is none).
    """
    runs = [Run(name, symbol, arch, WORKLOADS[name].ranks, "random", 0, "sc") for name in CASES
            if use in WORKLOADS[name].uses]
    runs = [run for run in runs
            if run.workload.is_for(run.workload.variants(symbol, arch))]
    file = select.choose(symbol, arch)[use]["file"]
    groups = [group for group in grouped((run, run.result()) for run in runs)
              if file in group.finding.texts]
    return {
        "verdict": verdict(groups),
        "runs": len(runs),
        "reports": [group.finding.report for group in groups],
        "replay": groups[0].run.command(groups[0].run.kernel_of(file)) if groups else None,
    }
