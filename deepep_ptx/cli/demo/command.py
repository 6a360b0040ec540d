# SPDX-License-Identifier: MIT
"""`deepep-ptx demo`: the main job, its settings as options."""

import argparse
from dataclasses import fields

from deepep_ptx import _emu
from deepep_ptx.cli import demo
from deepep_ptx.cli.demo import corpus
from deepep_ptx.cli.options import HELP, OPTIONS
from deepep_ptx.reference.low_latency import REDUCTIONS

_CHOICES = {"arch": demo.ARCHS, "unit": corpus.UNITS, "combine": demo.COMBINE_MODES,
            "checks": demo.CHECKS, "executor": demo.EXECUTORS, "dtype": demo.DTYPES,
            "mode": demo.MODES, "reduce": REDUCTIONS}
_COLUMNS = """\
columns of the report:
  rows sent     rows that this rank's tokens became: one for each rank that a token goes to
  rows recv     rows that this rank received, its own included
  experts hit   of this rank's experts, those that at least one row chose
  busiest       share of the busiest expert in the choices that reached this rank
  warp instr    warp instructions that this rank's kernels executed (- on GPUs: not counted)
  wire MB       bytes stored to, or loaded from, other ranks by this rank's kernels, flags and
                records included, 10**6 bytes (- on GPUs)
  logical MB    payload rows received and given back, also those that stay on the rank: rows recv *
                (there + back); back 2 * hidden bytes, there the same or, with fp8, hidden bytes
                and 4 for every 128 of them; with --mode ll back are 2 * hidden bytes for each
                choice (exact) or 4 * hidden for each row (rank)
"""


def add(commands):
    run = commands.add_parser(
        "demo", help="a text through a mixture-of-experts layer, checked bit for bit",
        epilog=_COLUMNS, formatter_class=argparse.RawDescriptionHelpFormatter)
    for setting in fields(demo.Settings):
        _add_option(run, setting)
    run.add_argument("--compare-dtypes", action="store_true",
                     help="run the job with bf16 and with fp8 rows, and print the error of each "
                          "against float64, its bytes, and its time on GPUs or its instructions "
                          "on the CPU executor")
    run.add_argument("--lines", action="store_true",
                     help="list the source lines of the kernels that were not executed")
    run.set_defaults(command=_demo)


def settings_of(args):
    """The keywords of `demo.Settings` that a parsed `demo` command line gives."""
    return {setting.name: getattr(args, setting.name) for setting in fields(demo.Settings)}


def _add_option(run, setting):
    name, default = setting.name, setting.default
    option = {"dest": name, "help": HELP[name], "default": default}
    if isinstance(default, bool):
        option["action"] = "store_true"
    elif name in _CHOICES:
        option["choices"] = _CHOICES[name]
    elif isinstance(default, int):
        option |= {"type": int, "metavar": "N"}
    elif name in ("input", "save_input", "plot", "text"):
        option["metavar"] = "FILE"
    elif name == "scheduler":          # checked where it is used, named here
        option["metavar"] = f"{{{','.join(_emu.SCHEDULERS)}}}"
    if default is not None and default is not False:
        option["help"] += f" (default: {default})"
    run.add_argument(f"--{OPTIONS.get(name, name)}", **option)


def _demo(args):
    run = demo.compare_dtypes if args.compare_dtypes else demo.run
    report = run(**settings_of(args))
    print(report)
    if args.lines:
        print("", *report.lines_not_executed(), sep="\n")
    return 0 if report.bit_exact else 1
