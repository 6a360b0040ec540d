# SPDX-License-Identifier: MIT
"""Options that `deepep-ptx ab`, `bench` and `tune` have in common."""

from deepep_ptx.cli.measure.settings import SHAPES
from deepep_ptx.cli.options import numbers
from deepep_ptx.runtime import ARCHS, EXECUTORS

_SIZES = {"ranks": "threads, one rank each", "tokens": "per rank", "hidden": "elements of a row",
          "topk": "experts per token", "experts": "of all ranks"}


def add_list(parser, name, kind, does):
    """An option with a list with commas; kind: `options.names` or `options.numbers`."""
    parser.add_argument(f"--{name}", type=kind, metavar="A,B[,...]", help=does)


def add_number(parser, name, does):
    """An option with one integer."""
    parser.add_argument(f"--{name}", type=int, metavar="N", help=does)


def add_sizes(parser, *names, on_emu=True, shapes=SHAPES, **says):
    """Sizes of a call, with defaults of `shapes`; on_emu: whether the CPU executor's are named
    too."""
    for name in names:
        default = f"{shapes['cuda'].get(name, 'GPUs, at least 2')}"
        if on_emu:
            default += f"; emu: {shapes['emu'][name]}"
        add_number(parser, name, f"{says.get(name, _SIZES[name])} (default: {default})")


def add_executor(parser, does, arch):
    """--executor, and --arch: the target of `arch`."""
    parser.add_argument("--executor", choices=EXECUTORS[1:], help=does)
    parser.add_argument("--arch", choices=ARCHS,
                        help=f"target of the {arch} (default: the GPU's)")


def add_rounds(parser, rounds, warmup):
    """--rounds and --warmup, with their defaults."""
    add_number(parser, "rounds", f"that count, on GPUs (default: {rounds})")
    add_number(parser, "warmup", f"rounds before them (default: {warmup})")


def add_run(parser, seeds):
    """--devices, --seed and --timeout-s; seeds: what the seed fixes."""
    add_list(parser, "devices", numbers, "GPU of each rank (default: in turn)")
    parser.add_argument("--seed", type=int, default=0, metavar="N",
                        help=f"of {seeds} (default: %(default)s)")
    parser.add_argument("--timeout-s", type=float, default=10.0, metavar="S",
                        help="limit of each wait for another rank (default: %(default)s)")
