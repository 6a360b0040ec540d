# SPDX-License-Identifier: MIT
"""`deepep-ptx bench`: options in, tables, records and exit codes out."""

import os

from deepep_ptx import _cuda
from deepep_ptx.cli import picture
from deepep_ptx.cli.bench import intranode, launch, overlap, plan
from deepep_ptx.cli.bench.case import WHATS
from deepep_ptx.cli.measure import settings
from deepep_ptx.cli.measure.inputs import DTYPES, ROUTINGS
from deepep_ptx.cli.options import HELP, names, numbers
from deepep_ptx.errors import DeepEPError
from deepep_ptx.runtime import ARCHS, EXECUTORS

_WHATS = "; ".join(f"{name}: {does}" for name, does in WHATS.items())


def add(commands):
    """Add `bench` to the subparsers `commands`."""
    bench = commands.add_parser(
        "bench", help="times of dispatch and combine, alone and beside a GEMM")
    benches = bench.add_subparsers(required=True, metavar="WHAT")
    _add_intranode(benches)
    _add_overlap(benches)


def _add_intranode(benches):
    run = benches.add_parser(
        "intranode", help="every call beside what the links can do",
        description="Every case's results are compared bit for bit first.  Then, on GPUs, "
                    "interleaved rounds of all cases; on the CPU executor, counts.  Cases are the "
                    "product of the lists.",
        epilog=f"calls: {_WHATS}.  {settings.EXIT_CODES}")
    gpu, emu = settings.SHAPES["cuda"], settings.SHAPES["emu"]
    _list(run, "what", names, f"calls, of {', '.join(WHATS)} (default: all)")
    _list(run, "dtype", names, f"of the rows that dispatch moves, of {', '.join(DTYPES)} "
                               "(default: all)")
    _list(run, "tokens", numbers, f"per rank (default: {gpu['tokens']}; emu: {emu['tokens']})")
    _list(run, "routing", names, f"of {', '.join(ROUTINGS)} (default: uniform)")
    _list(run, "policy", names, "as Buffer takes them (default: fast)")
    _list(run, "sms", numbers, "CTAs of the calls (default: the buffer's own choice; emu: "
                        f"{settings.EMU_SMS})")
    for name, what in (("hidden", "elements of a row"), ("topk", "experts per token"),
                       ("experts", "of all ranks"), ("ranks", "one for each GPU, or threads")):
        default = f"{gpu.get(name, 'GPUs, at least 2')}; emu: {emu[name]}"
        _number(run, name, f"{what} (default: {default})")
    add_run_options(run, plan.ROUNDS, plan.WARMUP)
    run.add_argument("--layout", choices=launch.LAYOUTS,
                     help="of ranks (default: processes where torch has CUDA and each rank a GPU); "
                          "under torchrun, its processes")
    run.add_argument("--executor", choices=EXECUTORS[1:], help=HELP["executor"])
    run.add_argument("--arch", choices=ARCHS, help="target of the kernels (default: the GPU's)")
    run.add_argument("--no-peers", action="store_true",
                     help="leave out NCCL and, where it is installed, deep_ep")
    run.set_defaults(command=_intranode)


def add_run_options(run, rounds, warmup):
    """What all benchmarks take."""
    _list(run, "devices", numbers, "GPU of each rank (default: in turn)")
    _number(run, "rounds", f"that count, on GPUs (default: {rounds})")
    _number(run, "warmup", f"rounds before them (default: {warmup})")
    run.add_argument("--seed", type=int, default=0, metavar="N",
                     help="of data and order (default: %(default)s)")
    run.add_argument("--timeout-s", type=float, default=10.0, metavar="S",
                     help="limit of each wait for another rank (default: %(default)s)")
    run.add_argument("--out", metavar="FILE", help="write the record (JSON)")
    run.add_argument("--plot", metavar="FILE",
                     help="draw the times (.png, .svg, .pdf); needs matplotlib")


def _intranode(args):
    executor = settings.executor_of(args.executor)
    check_files(args)
    if executor == "emu" and args.plot:
        raise ValueError("--plot: only on GPUs: there are no times to draw")
    options = {name: getattr(args, name) for name in (
        "what", "dtype", "tokens", "routing", "policy", "sms", "hidden", "topk", "experts",
        "ranks", "devices", "rounds", "warmup", "seed", "timeout_s", "layout", "out", "plot")}
    if launch.in_torchrun():
        options |= torchrun_options(args.devices)
    if executor == "cuda" and not _cuda.device_count():
        raise DeepEPError(f"--executor: 'cuda' cannot be used: {_cuda.why_not()}")
    planned = plan.make(executor=executor, arch=settings.arch_of(args.arch, executor),
                        num_gpus=_cuda.device_count(), peers=not args.no_peers, **options)
    if args.arch and planned.layout == "processes":
        raise ValueError("--arch: only with --layout threads; processes run the GPU's target")
    return launch.run(intranode.rank_main, planned)


def _add_overlap(benches):
    run = benches.add_parser(
        "overlap", help="a GEMM beside dispatch and combine: what each costs the other",
        description="Medians of interleaved rounds of the GEMM alone, the call alone and both "
                    "together.  One process per GPU; needs torch with CUDA.",
        epilog=settings.EXIT_CODES)
    gpu = settings.SHAPES["cuda"]
    _list(run, "what", names, f"calls, of {', '.join(overlap.WHATS)} (default: all)")
    _list(run, "policy", names, "as Buffer takes them (default: fast)")
    _list(run, "sms", numbers, f"CTAs of the calls (default: {','.join(map(str, overlap.SMS))})")
    _list(run, "gemm", gemms, "products of bfloat16 as MxNxK (default: "
                              + ",".join("x".join(map(str, size)) for size in overlap.GEMMS) + ")")
    run.add_argument("--target-us", type=float, default=overlap.TARGET_US, metavar="US",
                     help="each is repeated for about so long (default: %(default)s)")
    for name, what in (("tokens", "per rank"), ("hidden", "elements of a row"),
                       ("topk", "experts per token"), ("experts", "of all ranks")):
        _number(run, name, f"{what} (default: {gpu[name]})")
    _number(run, "ranks", "one for each GPU (default: GPUs)")
    add_run_options(run, plan.ROUNDS, plan.WARMUP)
    run.set_defaults(command=_overlap)


def gemms(text):
    """[(M, N, K)] of a list of MxNxK with commas."""
    sizes = [tuple(int(number) for number in size.split("x")) for size in names(text)]
    if any(len(size) != 3 or min(size) < 1 for size in sizes):
        raise ValueError(text)
    return sizes


def _overlap(args):
    check_files(args)
    options = {name: getattr(args, name) for name in (
        "what", "policy", "sms", "gemm", "target_us", "tokens", "hidden", "topk", "experts",
        "ranks", "devices", "rounds", "warmup", "seed", "timeout_s", "out", "plot")}
    if launch.in_torchrun():
        options |= torchrun_options(args.devices)
        del options["layout"]
    planned = overlap.make(arch=settings.arch_of(None, "cuda"), num_gpus=_cuda.device_count(),
                           **options)
    return launch.run(overlap.rank_main, planned)


def check_files(args):
    """Raise ValueError unless the record and the picture can be written."""
    picture.require(args.plot)
    settings.check_out("out", args.out)


def torchrun_options(devices):
    """Options that torchrun decides about.

    Raises:
        ValueError: `devices` was given.
    """
    if devices is not None:
        raise ValueError("--devices: torchrun gives each process the GPU of its local rank")
    ranks = int(os.environ["WORLD_SIZE"])
    return {"ranks": ranks, "devices": list(range(ranks)), "layout": "processes"}


def _list(run, name, kind, does):
    run.add_argument(f"--{name}", type=kind, metavar="A,B[,...]", help=does)


def _number(run, name, does):
    run.add_argument(f"--{name}", type=int, metavar="N", help=does)
