# SPDX-License-Identifier: MIT
"""The `deepep-ptx` command.

Exit codes: 0 = done; 1 = a wrong bit, or the run failed; 2 = bad input, one line on stderr.
"""

import argparse
import platform
import sys
from dataclasses import fields
from importlib import metadata

import deepep_ptx
from deepep_ptx import corpus, demo
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
    "scheduler": "of the CPU executor",
    "policy": "form of payload loads: fast, safe, aggressive, a policy or a variant's symbol "
              "(default: DEEPEP_PTX_POLICY, else fast)",
    "arch": "target whose kernels run",
    "text": "file to send around (default: the text that ships)",
    "unit": "what a token is",
    "combine": "pull: experts write over what they received; push: into arrays of their own",
    "checks": "off: leave out the check for uninitialised reads",
    "worst": "worst-case mode: results have the size of the worst case, nobody waits for totals",
}
_CHOICES = {"arch": demo.ARCHS, "unit": corpus.UNITS, "combine": demo.COMBINE_MODES,
            "checks": demo.CHECKS}


def main(argv=None):
    """Run the command; returns its exit code."""
    args = parser().parse_args(argv)
    try:
        return args.command(args)
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
        "demo", help="a text through a mixture-of-experts layer, checked bit for bit")
    for setting in fields(demo.Settings):
        _add_option(run, setting)
    run.set_defaults(command=_demo)

    info = commands.add_parser("info", help="what would run here: executor, variants, tools")
    info.add_argument("--arch", choices=demo.ARCHS, default=demo.Settings.arch)
    info.add_argument("--policy", help=_HELP["policy"])
    info.set_defaults(command=_info)
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
    if default is not None and default is not False:
        option["help"] += f" (default: {default})"
    run.add_argument(f"--{_OPTIONS.get(name, name)}", **option)


def _demo(args):
    report = demo.run(**settings_of(args))
    print(report)
    return 0 if report.bit_exact else 1


def _info(args):
    for name, value in _facts(args):
        print(f"{name:<12}{value}")
    return 0


def _facts(args):
    """(name, text) of each line of `info`."""
    from deepep_ptx import select

    policy, origin = select.requested_policy(args.policy)
    chosen = select.choose(policy, args.arch, origin=origin)
    table = select.load_table()
    yield "deepep_ptx", deepep_ptx.__version__
    yield "python", f"{platform.python_version()}, " + ", ".join(
        f"{name} {metadata.version(name)}" for name in ("numpy", "ml_dtypes"))
    yield "executor", "emu (runs the rendered PTX on the CPU)"
    yield "arch", f"{args.arch} (of {', '.join(sorted({v['arch'] for v in table['variants']}))})"
    yield "policy", f"{policy} (of {', '.join([*table['aliases'], *table['policies']])})"
    yield "variants", f"{len(table['variants'])} shipped; chosen:"
    for kernel, variant in chosen.items():
        loads = f"{variant['policy']} at a {variant['site']} site" if variant["policy"] else ""
        yield "", f"{kernel:<16}{variant['symbol']:<36}{loads}".rstrip()
    yield "ptxas", _ptxas()


def _ptxas():
    from deepep_ptx.toolchain import ptxas

    try:
        tools = ptxas.find()
    except ptxas.ToolError as error:
        return f"not found, not needed to run ({error})"
    return f"{tools.ptxas_version}, nvdisasm {tools.nvdisasm_version}"


def _refuse(error):
    """Bad input: one line, whatever the error's text has."""
    print(f"deepep-ptx: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _fail(error):
    """The run failed: a kernel's fault is printed whole, it is the report to work with."""
    fault = error.__cause__ if isinstance(error.__cause__, KernelFault) else error
    print(f"deepep-ptx: {fault}", file=sys.stderr)
    return 1
