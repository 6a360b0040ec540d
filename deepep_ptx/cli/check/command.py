# SPDX-License-Identifier: MIT
"""`deepep-ptx check`: options in, verdicts and exit code out."""

import json
import sys
from pathlib import Path

from deepep_ptx import select
from deepep_ptx._emu import SCHEDULERS
from deepep_ptx.cli import catalogue
from deepep_ptx.cli.check import harness, pool, record, report, runs
from deepep_ptx.cli.check.findings import grouped
from deepep_ptx.cli.check.workloads import WORKLOADS
from deepep_ptx.cli.measure import settings
from deepep_ptx.cli.options import names
from deepep_ptx.errors import PtxError
from deepep_ptx.runtime import MAX_RANKS

SEEDS = "5"
MAX_SEED = 1 << 32
_EPILOG = ("exit codes: 0 = clean, 1 = something was found, 2 = bad input; cases: "
           + ", ".join(WORKLOADS))
_OF_KERNELS = ("policy", "arch", "case")


def add(commands):
    """Add `check` to the subparsers `commands`."""
    check = commands.add_parser(
        "check", help="look for data races: kernels, or a PTX file of your own",
        description="Small workloads of real calls on the CPU executor under its race checker, "
                    "each variant with every scheduler and seed; results are compared bit for bit "
                    "too.  docs/verifier.md says what a verdict means.",
        epilog=_EPILOG)
    check.add_argument("kernel", nargs="?", default="all", metavar="KERNEL|FILE.ptx",
                       help="a kernel of the package, all (the default), or a PTX file that "
                            "--harness runs")
    check.add_argument("--harness", metavar="H.py",
                       help="a Python file with run(world, *kernels), and RANKS and ENTRY if "
                            "there are several")
    check.add_argument("--policy", type=names, metavar="A[,B...]",
                       help="variants by policy, alias, data path or symbol (default: all that "
                            "fast, safe and the data paths choose)")
    check.add_argument("--arch", choices=catalogue.archs(), help="target (default: all)")
    check.add_argument("--case", type=names, metavar="A[,B...]",
                       help="workloads (default: all that run the kernel)")
    check.add_argument("--ranks", type=int, metavar="N",
                       help="of each run (default: as each workload says, or the harness)")
    check.add_argument("--scheduler", type=names, metavar="A[,B...]",
                       help=f"orders of warps (default: {','.join(SCHEDULERS)})")
    check.add_argument("--seeds", metavar="N|A:B",
                       help="N: 0 to N - 1; A:B: A to B - 1; of order, inputs and what is seen "
                            f"late (default: {SEEDS})")
    check.add_argument("--memory", choices=runs.MEMORIES,
                       help="weak: a store that nothing has published may be seen late (default: "
                            "sc: every store is seen at once)")
    check.add_argument("--jobs", type=int, metavar="N",
                       help="processes at most (default: one for each core)")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the record")
    check.add_argument("--lines", action="store_true",
                       help="list the source lines of the kernels that were not executed")
    check.add_argument("--replay", metavar="FILE",
                       help="run again what found something in a record of --json")
    check.set_defaults(command=command)


def command(args):
    """Run `check`; returns its exit code."""
    settings.check_out("json", args.json)
    jobs = pool.cores() if args.jobs is None else args.jobs
    settings.check("jobs", jobs, 1)
    try:
        planned, arguments = _replayed(args) if args.replay else _planned(args)
    except PtxError as error:       # of several lines, as a compiler's
        print(f"deepep-ptx: {error}", file=sys.stderr)
        return 2
    results = pool.results(planned, jobs)
    groups = grouped(results)
    kernel = arguments.get("kernel", "all")
    made = record.make(arguments | {"runs": len(planned)}, record.texts_of(results, kernel),
                       results, groups)
    if args.json:
        args.json.write_text(json.dumps(made, indent=1) + "\n")
    print(report.text(made, groups))
    if args.lines:
        print("", *report.lines_not_executed(made), sep="\n")
    return 1 if groups else 0


def _replayed(args):
    """(runs, arguments) of a record."""
    for name in ("harness", *_OF_KERNELS, "ranks", "scheduler", "seeds", "memory"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name}: comes with the record that --replay takes")
    if args.kernel != "all":
        raise ValueError("KERNEL: comes with the record that --replay takes")
    found = record.runs_in(args.replay)
    if not found:
        raise ValueError(f"--replay: {args.replay} is of a check that found nothing")
    return found, {"replay": args.replay}


def _planned(args):
    """(runs, arguments) of what was asked for."""
    schedulers = args.scheduler or list(SCHEDULERS)
    settings.check_names("scheduler", schedulers, SCHEDULERS)
    seeds = _seeds(SEEDS if args.seeds is None else args.seeds)
    memory = args.memory or runs.MEMORIES[0]
    how = {"ranks": args.ranks, "schedulers": schedulers, "seeds": seeds, "memory": memory}
    arguments = how | {"seeds": [seeds.start, seeds.stop]}
    if args.harness is not None:
        for name in _OF_KERNELS:
            if getattr(args, name) is not None:
                raise ValueError(f"--{name}: is for the kernels of this package, not with "
                                 "--harness")
        if args.ranks is not None:
            settings.check("ranks", args.ranks, 1, MAX_RANKS)
        return (harness.runs_of(args.kernel, args.harness, **how),
                arguments | {"file": args.kernel, "harness": args.harness})
    if args.ranks is not None:
        settings.check("ranks", args.ranks, 2, runs.MOST_RANKS)
    settings.check_names("case", args.case or (), WORKLOADS)
    archs = [args.arch] if args.arch else catalogue.archs()
    policies = args.policy or runs.default_policies(archs)
    kernel = _kernel(args.kernel)
    return (runs.runs_of(kernel, policies, archs, cases=args.case, **how),
            arguments | {"kernel": kernel, "policies": policies, "archs": list(archs),
                         "cases": args.case})


def _kernel(name):
    kernels = list(dict.fromkeys(row["kernel"] for row in select.load_table()["variants"]))
    if Path(name).suffix == ".ptx":
        raise ValueError(f"--harness: must say how {name} is run: a Python file with "
                         "run(world, *kernels)")
    if name not in ("all", *kernels):
        raise ValueError(f"KERNEL: must be all, a file *.ptx, or one of {', '.join(kernels)}; got "
                         f"{name!r}")
    return name


def _seeds(text):
    """range of "N" or "A:B"."""
    first, colon, end = text.partition(":")
    try:
        seeds = range(int(first), int(end)) if colon else range(int(first))
    except ValueError:
        seeds = range(0)
    if not seeds or not 0 <= seeds.start < seeds.stop <= MAX_SEED:
        raise ValueError(f"--seeds: must be N or A:B with 0 <= A < B <= {MAX_SEED}, got {text!r}")
    return seeds
