# SPDX-License-Identifier: MIT
"""The `deepep-ptx` command.

Exit codes: 0 = done; 1 = a wrong bit, or the run failed; 2 = bad input, one line on stderr.
"""

import argparse
import os
import platform
import re
import sys
from dataclasses import fields
from importlib import metadata

import deepep_ptx
from deepep_ptx import _cuda, _emu, corpus, demo
from deepep_ptx.ab import command as ab
from deepep_ptx.errors import DeepEPError, KernelFault, RankError

# Setting -> its option where the names differ.
_OPTIONS = {
    "num_ranks": "ranks", "num_tokens": "tokens", "num_experts": "experts",
    "num_groups": "groups", "num_topk_groups": "topk-groups", "num_topk": "topk",
}
_HELP = {
    "num_ranks": "ranks, each a virtual GPU",
    "num_tokens": "tokens per rank, on the average: shares are uneven",
    "hidden": "elements of a row, a multiple of 8",
    "num_experts": "experts of all ranks",
    "num_groups": "groups of experts",
    "num_topk_groups": "groups that a token may choose from",
    "num_topk": "experts per token",
    "seed": "of embeddings, experts and scheduler",
    "executor": "what runs the kernels: emu, the CPU executor, or cuda (default: "
                "DEEPEP_PTX_EXECUTOR, else cuda where a GPU is usable, else emu)",
    "scheduler": "order of warps on the CPU executor",
    "policy": "how payload moves: fast, safe, aggressive, bulk, a policy or a variant's symbol "
              "(default: DEEPEP_PTX_POLICY, else fast)",
    "arch": "target whose kernels run (default: the best that runs)",
    "text": "file to send around (default: the text that ships)",
    "unit": "what a token is",
    "combine": "pull: experts write over what they received; push: into arrays of their own",
    "checks": "of the CPU executor; off: leave out the check for uninitialised reads",
    "worst": "worst-case mode: results have the size of the worst case, nobody waits for totals",
}
_CHOICES = {"arch": demo.ARCHS, "unit": corpus.UNITS, "combine": demo.COMBINE_MODES,
            "checks": demo.CHECKS, "executor": demo.EXECUTORS}
# Settings' names in errors; other names are words of the language too, and start a text at most.
_NAMES = re.compile(rf"\b({'|'.join(_OPTIONS)})\b")
_COLUMNS = """\
columns of the report:
  rows sent     rows that this rank's tokens became: one for each rank that a token goes to
  rows recv     rows that this rank received, its own included
  experts hit   of this rank's experts, those that at least one row chose
  busiest       share of the busiest expert in the choices that reached this rank
  warp instr    warp instructions that this rank's kernels executed (- on GPUs: not counted)
  wire MB       bytes stored to, or loaded from, other ranks by this rank's kernels, flags and
                records included, 10**6 bytes (- on GPUs)
  logical MB    payload rows received and given back: 2 * rows recv * hidden * 2 bytes, also those
                that stay on the rank
"""


def main(argv=None):
    """Run the command; returns its exit code."""
    try:
        try:
            args = parser().parse_args(argv)
            return args.command(args)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the report has read enough; leave nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ValueError as error:
        return _refuse(error)
    except RankError as error:
        return _refuse(error.__cause__) if isinstance(error.__cause__, ValueError) else _fail(error)
    except DeepEPError as error:
        return _fail(error)


def parser():
    """The command line."""
    top = argparse.ArgumentParser(
        prog="deepep-ptx", description="MoE dispatch and combine in hand-written PTX")
    top.add_argument("--version", action="version", version=f"deepep-ptx {deepep_ptx.__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "demo", help="a text through a mixture-of-experts layer, checked bit for bit",
        epilog=_COLUMNS, formatter_class=argparse.RawDescriptionHelpFormatter)
    for setting in fields(demo.Settings):
        _add_option(run, setting)
    run.set_defaults(command=_demo)

    info = commands.add_parser("info", help="what would run here: executor, variants, tools")
    info.add_argument("--arch", choices=demo.ARCHS, help=_HELP["arch"])
    info.add_argument("--policy", help=_HELP["policy"])
    info.set_defaults(command=_info)
    ab.add(commands)
    return top


def settings_of(args):
    """The keywords of `demo.Settings` that a parsed `demo` command line gives."""
    return {setting.name: getattr(args, setting.name) for setting in fields(demo.Settings)}


def _add_option(run, setting):
    name, default = setting.name, setting.default
    option = {"dest": name, "help": _HELP[name], "default": default}
    if isinstance(default, bool):
        option["action"] = "store_true"
    elif name in _CHOICES:
        option["choices"] = _CHOICES[name]
    elif isinstance(default, int):
        option |= {"type": int, "metavar": "N"}
    elif name == "scheduler":          # checked where it is used, named here
        option["metavar"] = f"{{{','.join(_emu.SCHEDULERS)}}}"
    if default is not None and default is not False:
        option["help"] += f" (default: {default})"
    run.add_argument(f"--{_OPTIONS.get(name, name)}", **option)


def _demo(args):
    report = demo.run(**settings_of(args))
    print(report)
    return 0 if report.bit_exact else 1


def _info(args):
    facts = list(_facts(args))
    width = max(len(name) for name, _ in facts) + 2
    for name, value in facts:
        print(f"{name:<{width}}{value}")
    return 0


def _facts(args):
    """(name, text) of each line of `info`."""
    from deepep_ptx import select

    gpu, gpu_arch = _gpu()
    arch = args.arch or gpu_arch or demo.ARCHS[-1]
    policy, origin = select.requested_policy(args.policy)
    chosen = select.choose(policy, arch, origin=origin)
    table = select.load_table()
    executor = os.environ.get("DEEPEP_PTX_EXECUTOR") or ("cuda" if gpu_arch else "emu")
    yield "deepep_ptx", deepep_ptx.__version__
    yield "python", f"{platform.python_version()}, " + ", ".join(
        f"{name} {metadata.version(name)}" for name in ("numpy", "ml_dtypes"))
    yield "executor", f"{executor} (of emu, which runs the rendered PTX on the CPU, and cuda)"
    yield "gpu", gpu
    yield "arch", f"{arch} (of {', '.join(sorted({v['arch'] for v in table['variants']}))})"
    paths = {v["path"]: None for v in table["variants"] if v["path"] and not v["policy"]}
    yield "policy", f"{policy} (of {', '.join([*table['aliases'], *table['policies'], *paths])})"
    yield "variants", f"{len(table['variants'])} shipped; chosen:"
    rows = [(kernel, variant["symbol"],
             f"{variant['policy']} at a {variant['site']} site" if variant["policy"] else "")
            for kernel, variant in chosen.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "", "  ".join(cells).rstrip()
    yield "ptxas", _ptxas()


def _gpu():
    """(text, target) of the first GPU; target is None where no GPU can be used."""
    count = _cuda.device_count()
    if not count:
        return f"none usable: {_cuda.why_not()}", None
    try:
        first = _cuda.CudaExecutor(0)
    except DeepEPError as error:
        return f"none usable: {error}", None
    return f"{count} usable; GPU 0 is {first.device_name}, {first.arch}", first.arch


def _ptxas():
    from deepep_ptx.toolchain import ptxas

    try:
        tools = ptxas.find()
    except ptxas.ToolError as error:
        return f"not found, not needed to run ({error})"
    return f"{tools.ptxas_version}, nvdisasm {tools.nvdisasm_version}"


def _refuse(error):
    """Bad input: one line, whatever the error's text has."""
    print(f"deepep-ptx: {_in_options(' '.join(str(error).split()))}", file=sys.stderr)
    return 2


def _in_options(text):
    """An error's text with options in place of the settings that they set."""
    name = text.partition(":")[0]
    if name not in _HELP:
        return text
    rest = _NAMES.sub(lambda match: f"--{_OPTIONS[match[1]]}", text[len(name):])
    return f"--{_OPTIONS.get(name, name)}{rest}"


def _fail(error):
    """The run failed: a kernel's fault is printed whole, it is the report to work with."""
    fault = error.__cause__ if isinstance(error.__cause__, KernelFault) else error
    print(f"deepep-ptx: {_in_options(str(fault))}", file=sys.stderr)
    return 1
