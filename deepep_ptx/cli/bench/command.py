# SPDX-License-Identifier: MIT
"""`deepep-ptx bench`: options in, tables, records and exit codes out."""

import os

from deepep_ptx import _cuda
from deepep_ptx.cli import picture
from deepep_ptx.cli.bench import intranode, launch, ll, ll_case, overlap, plan
from deepep_ptx.cli.bench.case import WHATS
from deepep_ptx.cli.measure import options, settings
from deepep_ptx.cli.measure.inputs import DTYPES, ROUTINGS
from deepep_ptx.cli.options import HELP, names, numbers

_WHATS = "; ".join(f"{name}: {does}" for name, does in WHATS.items())


def add(commands):
    """Add `bench` to the subparsers `commands`."""
    bench = commands.add_parser(
        "bench", help="times of dispatch and combine, alone and beside a GEMM, and of the "
                      "low-latency calls")
    benches = bench.add_subparsers(required=True, metavar="WHAT")
    _add_intranode(benches)
    _add_overlap(benches)
    _add_ll(benches)


def _add_intranode(benches):
    run = benches.add_parser(
        "intranode", help="every call beside what the links can do",
        description="Every case's results are compared bit for bit first.  Then, on GPUs, "
                    "interleaved rounds of all cases; on the CPU executor, counts.  Cases are the "
                    "product of the lists.",
        epilog=f"calls: {_WHATS}.  {settings.EXIT_CODES}")
    gpu, emu = settings.SHAPES["cuda"], settings.SHAPES["emu"]
    options.add_list(run, "what", names, f"calls, of {', '.join(WHATS)} (default: all)")
    options.add_list(run, "dtype", names,
                     f"of the rows that dispatch moves, of {', '.join(DTYPES)} (default: all)")
    options.add_list(run, "tokens", numbers,
                     f"per rank (default: {gpu['tokens']}; emu: {emu['tokens']})")
    options.add_list(run, "routing", names, f"of {', '.join(ROUTINGS)} (default: uniform)")
    options.add_list(run, "policy", names, "as Buffer takes them (default: fast)")
    options.add_list(run, "sms", numbers, "CTAs of the calls (default: the buffer's own choice; "
                                          f"emu: {settings.EMU_SMS})")
    options.add_sizes(run, "hidden", "topk", "experts", "ranks",
                      ranks="one for each GPU, or threads")
    _add_run(run)
    _add_plot(run)
    _add_where(run, "NCCL and, where it is installed, deep_ep")
    run.set_defaults(command=_intranode)


def _add_run(run):
    """What all benchmarks take."""
    options.add_rounds(run, plan.ROUNDS, plan.WARMUP)
    options.add_run(run, "data and order")
    run.add_argument("--out", metavar="FILE", help="write the record (JSON)")


def _add_plot(run):
    run.add_argument("--plot", metavar="FILE",
                     help="draw the times (.png, .svg, .pdf); needs matplotlib")


def _add_where(run, peers):
    """Of benchmarks that run on both executors; peers: what `--no-peers` leaves out."""
    run.add_argument("--layout", choices=launch.LAYOUTS,
                     help="of ranks (default: processes where torch has CUDA and each rank a GPU); "
                          "under torchrun, its processes")
    options.add_executor(run, HELP["executor"], "kernels")
    run.add_argument("--no-peers", action="store_true", help=f"leave out {peers}")


def _intranode(args):
    executor = settings.executor_of(args.executor)
    check_files(args)
    if executor == "emu" and args.plot:
        raise ValueError("--plot: only on GPUs: there are no times to draw")
    return _run(args, executor, intranode.rank_main, plan.make, "what", "routing", "policy", "plot")


def _run(args, executor, main, make, *more):
    """`main` on every rank of the plan that `make` makes of the options that both take, and of
    `more`."""
    given = {name: getattr(args, name) for name in (
        "dtype", "tokens", "sms", "hidden", "topk", "experts", "ranks", "devices", "rounds",
        "warmup", "seed", "timeout_s", "layout", "out", *more)}
    if launch.in_torchrun():
        given |= torchrun_options(args.devices)
    settings.require(executor)
    planned = make(executor=executor, arch=settings.arch_of(args.arch, executor),
                   num_gpus=_cuda.device_count(), peers=not args.no_peers, **given)
    if args.arch and planned.layout == "processes":
        raise ValueError("--arch: only with --layout threads; processes run the GPU's target")
    return launch.run(main, planned)


def _add_ll(benches):
    run = benches.add_parser(
        "ll", help="low-latency calls: in graphs, and one by one",
        description="Results are compared bit for bit first.  Then, on GPUs, interleaved rounds of "
                    "graphs and of single calls; on the CPU executor, counts.  Cases are the "
                    "product of the lists.  On GPUs it needs torch with CUDA.",
        epilog=settings.EXIT_CODES)
    gpu, emu = (",".join(map(str, ll.TOKENS[name])) for name in ("cuda", "emu"))
    options.add_list(run, "tokens", numbers, f"per rank (default: {gpu}; emu: {emu})")
    options.add_list(run, "dtype", names, "of the rows that dispatch sends, of "
                                          f"{', '.join(ll_case.DTYPES)} (default: all)")
    options.add_list(run, "reduce", names, "how combine adds up, of "
                                           f"{', '.join(ll.REDUCTIONS)} (default: all)")
    run.add_argument("--sms", "--num-sms", type=numbers, metavar="A,B[,...]",
                     help="CTAs of the calls (default: the buffer's own choice; "
                          f"emu: {settings.EMU_SMS})")
    options.add_sizes(run, "hidden", "topk", "experts", "ranks", shapes=ll.SHAPES,
                      ranks="one for each GPU, or threads")
    _add_run(run)
    _add_where(run, "deep_ep, where it is installed")
    run.set_defaults(command=_ll)


def _ll(args):
    executor = settings.executor_of(args.executor)
    settings.check_out("out", args.out)
    return _run(args, executor, ll.rank_main, ll.make, "reduce")


def _add_overlap(benches):
    run = benches.add_parser(
        "overlap", help="a GEMM beside dispatch and combine: what each costs the other",
        description="Medians of interleaved rounds of the GEMM alone, the call alone and both "
                    "together.  One process per GPU; needs torch with CUDA.",
        epilog=settings.EXIT_CODES)
    options.add_list(run, "what", names, f"calls, of {', '.join(overlap.WHATS)} (default: all)")
    options.add_list(run, "policy", names, "as Buffer takes them (default: fast)")
    options.add_list(run, "sms", numbers,
                     f"CTAs of the calls (default: {','.join(map(str, overlap.SMS))})")
    default = ",".join("x".join(map(str, size)) for size in overlap.GEMMS)
    options.add_list(run, "gemm", gemms,
                     f"products of bfloat16 as MxNxK (default: {default})")
    run.add_argument("--target-us", type=float, default=overlap.TARGET_US, metavar="US",
                     help="each is repeated for about so long (default: %(default)s)")
    options.add_sizes(run, "tokens", "hidden", "topk", "experts", "ranks", on_emu=False,
                      ranks="one for each GPU")
    _add_run(run)
    _add_plot(run)
    run.set_defaults(command=_overlap)


def gemms(text):
    """[(M, N, K)] of a list of MxNxK with commas."""
    sizes = [tuple(int(number) for number in size.split("x")) for size in names(text)]
    if any(len(size) != 3 or min(size) < 1 for size in sizes):
        raise ValueError(text)
    return sizes


def _overlap(args):
    check_files(args)
    given = {name: getattr(args, name) for name in (
        "what", "policy", "sms", "gemm", "target_us", "tokens", "hidden", "topk", "experts",
        "ranks", "devices", "rounds", "warmup", "seed", "timeout_s", "out", "plot")}
    if launch.in_torchrun():
        given |= torchrun_options(args.devices)
        del given["layout"]
    planned = overlap.make(arch=settings.arch_of(None, "cuda"), num_gpus=_cuda.device_count(),
                           **given)
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
