# SPDX-License-Identifier: MIT
"""`deepep-ptx ab`: options in, report and exit code out."""

import json
from pathlib import Path

from deepep_ptx import _cuda
from deepep_ptx.cli import measure
from deepep_ptx.cli.ab import plan, report, run, sass
from deepep_ptx.cli.measure import options, settings
from deepep_ptx.cli.measure.inputs import Job
from deepep_ptx.cli.options import names
from deepep_ptx.cuda_ranks import ask_for_queues
from deepep_ptx.toolchain.ptxas import ToolError


def add(commands):
    """Add `ab` to the subparsers `commands`."""
    ab = commands.add_parser(
        "ab", help="compare variants of a kernel: bits, times, machine code",
        description="Every variant's results are compared bit for bit first.  Then, on GPUs, "
                    "interleaved rounds and the interval of the ratio of medians; on the CPU "
                    "executor, counts.",
        epilog=settings.EXIT_CODES)
    ab.add_argument("kernel", metavar="KERNEL", help="dispatch or combine")
    ab.add_argument("--policy", required=True, type=names, metavar="A,B[,...]",
                    help="variants by policy, alias, data path or symbol; the first is what the "
                         "others are compared with")
    options.add_executor(ab, "cuda: times; emu: counts (default: DEEPEP_PTX_EXECUTOR, else cuda "
                             "where a GPU is usable, else emu)", "variants")
    options.add_sizes(ab, "ranks", "tokens", "hidden", "topk", "experts")
    options.add_number(ab, "sms", f"CTAs of each kernel (default: {plan.SMS['cuda']}; emu: "
                                  f"{plan.SMS['emu']})")
    ab.add_argument("--combine", choices=plan.COMBINE_MODES,
                    help="of combine: rows pulled from the peers, or pushed by them (default: "
                         "pull)")
    options.add_rounds(ab, plan.ROUNDS, plan.WARMUP)
    options.add_run(ab, "data, order and resampling")
    ab.add_argument("--json", type=Path, metavar="FILE", help="write the record with all raw times")
    ab.add_argument("--sass", action="store_true",
                    help="show the unified diff of the machine code too")
    ab.add_argument("--no-check", action="store_true",
                    help="leave out the race checker, which looks at each variant on the CPU "
                         "executor for a second or two")
    ab.add_argument("--dry-run", action="store_true", help="print what would run")
    ab.set_defaults(command=command)


def command(args):
    """Run `ab`; returns its exit code."""
    ask_for_queues()            # ranks may share a GPU
    settings.check_out("json", args.json)
    planned = _plan(args)
    if args.dry_run:
        print(report.dry_run(planned))
        return 0
    settings.require(planned.executor)
    look = _look(planned)
    inputs = Job(planned.shape, planned.seed, combine=planned.kernel != "dispatch")
    links = _links(planned)
    outcome = run.run(planned, inputs)
    checks = None if args.no_check else run.check(planned)
    made = report.record(planned, inputs, outcome, look, links, checks)
    if args.json:
        args.json.write_text(json.dumps(made, indent=1) + "\n")
    print(report.text(made))
    if args.sass and not isinstance(look, str):
        print("\n".join(report.sass_diffs(planned, look)))
    return 1 if outcome.wrong else 0


def _plan(args):
    executor = settings.executor_of(args.executor)
    arch = settings.arch_of(args.arch, executor)
    given = {name: getattr(args, name) for name in (
        "devices", "ranks", "tokens", "hidden", "topk", "experts", "sms", "rounds", "warmup",
        "seed", "timeout_s", "combine")}
    return plan.make(args.kernel, args.policy, executor=executor, arch=arch,
                     num_gpus=_cuda.device_count(), **given)


def _look(planned):
    """The assembler's view, or in one line why there is none."""
    try:
        return sass.look(planned.contenders, planned.arch)
    except ToolError as error:
        return " ".join(str(error).split())


def _links(planned):
    """Of the first two GPUs of the run; {} where it has one."""
    gpus = list(dict.fromkeys(planned.devices or ()))
    return measure.links(gpus[:2]) if len(gpus) > 1 else {}
