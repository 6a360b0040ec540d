# SPDX-License-Identifier: MIT
"""`deepep-ptx tune`: options in, tuning file and exit code out."""

from pathlib import Path

from tqdm import tqdm

from deepep_ptx import _cuda
from deepep_ptx.cli.measure import options
from deepep_ptx.cli.measure.settings import EXIT_CODES, check_out
from deepep_ptx.cli.options import names, numbers
from deepep_ptx.cli.tune import plan, report
from deepep_ptx.cli.tune.compare import compare
from deepep_ptx.cli.tune.measure import Gpus
from deepep_ptx.cli.tune.state import State
from deepep_ptx.cli.tune.sweep import sweep
from deepep_ptx.cuda_ranks import ask_for_queues
from deepep_ptx.errors import DeepEPError
from deepep_ptx.knobs import KNOBS
from deepep_ptx.runtime import ARCHS
from deepep_ptx.sm_model import OPS, RATES
from deepep_ptx.tuning import save
from deepep_ptx.tuning_files import default_path

MAX_BUDGET_S = 1e9


def add(commands):
    """Add `tune` to the subparsers `commands`."""
    tune = commands.add_parser(
        "tune", help="measure how many SMs, and which form, calls should take on this machine",
        description="Measures candidates of every case in interleaved rounds, right bits first, "
                    "drops those that are surely slower, and writes the winners, the fewest SMs "
                    "within 2 % of the quickest, into a file that buffers read.",
        epilog=EXIT_CODES)
    tune.add_argument("--ops", type=names, default=list(OPS), metavar="A[,...]",
                      help=f"of {_joined(OPS)} (default: all)")
    tune.add_argument("--dtypes", type=names, default=["bf16"], metavar="A[,...]",
                      help=f"of {_joined(plan.ITEMSIZES)}; combine is of bf16 only (default: bf16)")
    tune.add_argument("--tokens", type=numbers, default=list(plan.TOKENS), metavar="N[,...]",
                      help="tokens per rank; one stands for its class, up to the next power of two "
                           f"(default: {_joined(plan.TOKENS)})")
    options.add_sizes(tune, "hidden", "topk", "experts", "ranks", on_emu=False)
    tune.add_argument("--sms", type=numbers, default=list(plan.SMS), metavar="N[,...]",
                      help=f"CTAs to try (default: {_joined(plan.SMS)})")
    tune.add_argument("--policies", type=names, metavar="A[,...]",
                      help="policies, aliases, data paths or symbols to try; those whose loads PTX "
                           f"does not define are left out (default: {_joined(plan.POLICIES)}, as "
                           "far as the GPU has them)")
    for name in KNOBS:
        tune.add_argument(f"--{name.replace('_', '-')}", type=numbers, metavar="N[,...]",
                          help=f"{name.replace('_', ' ')} of the bulk kernels to try (default: "
                               "their own)")
    tune.add_argument("--rounds", type=int, default=40, metavar="N",
                      help="of a candidate that is never dropped (default: %(default)s)")
    tune.add_argument("--budget-s", type=float, metavar="S",
                      help="begin nothing new after so many seconds; --resume goes on (default: no "
                           "limit)")
    options.add_run(tune, "data, order and intervals")
    tune.add_argument("--out", type=Path, metavar="FILE",
                      help="tuning file to write (default: where buffers of this user look)")
    tune.add_argument("--resume", action="store_true",
                      help="go on with the run whose finished cases are in FILE.state")
    tune.add_argument("--dry-run", action="store_true",
                      help="print what would run, and about how long")
    tune.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"),
                      help="compare two tuning files, and measure nothing")
    tune.set_defaults(command=command)


def command(args, machine=None):
    """Run `tune`; returns its exit code.  machine: as `sweep.sweep` takes it, None: the GPUs."""
    if args.compare:
        print(compare(*args.compare))
        return 0
    ask_for_queues()            # ranks may share a GPU
    check_out("out", args.out)
    if args.budget_s is not None and not 0 <= args.budget_s <= MAX_BUDGET_S:
        raise ValueError(f"--budget-s: must be 0..{MAX_BUDGET_S:g}, got "
                         f"{args.budget_s}")
    planned = _plan(args)
    if args.dry_run:
        print(report.dry_run(planned))
        return 0
    out = args.out or default_path(planned.gpu, planned.ranks)
    state = State.begin(out.with_name(f"{out.name}.state"), planned, args.resume)
    calls = sum(map(planned.num_calls, planned.cases))
    # A bar only on a terminal.
    with tqdm(total=calls, unit="call", leave=False, disable=None) as bar:
        sweep(planned, state, machine or Gpus(), bar, args.budget_s)
    return _finish(planned, state, out)


def _finish(planned, state, out):
    print(report.text(planned, state.finished))
    found = report.entries(planned, state.finished)
    if found:
        if out.exists():
            out.replace(out.with_name(f"{out.name}.old"))
            print(f"what was in {out} is in {out}.old; --compare shows both")
        save(out, report.header(planned), found)
        print(f"wrote {out}: {len(found)} entries")
    missing = len(planned.cases) - len(state.finished)
    if missing:
        print(f"the budget is spent: {missing} of {len(planned.cases)} cases were not measured; "
              f"--resume goes on from {state.path}")
    else:
        state.remove()
    wrong = any(one["wrong"] for result in state.finished.values()
                for one in result["candidates"])
    return 1 if wrong else 0


def _plan(args):
    num_gpus = _cuda.device_count()
    if num_gpus:
        first = _cuda.CudaExecutor(0)
        gpu, arch, cta_smem = first.device_name, first.arch, first.cta_smem
    elif args.dry_run:
        (gpu, *_), arch, num_gpus, cta_smem = RATES, ARCHS[-1], args.ranks or 2, None
        print(f"no GPU here ({_cuda.why_not()}): as on {num_gpus} of the kind that was measured")
    else:
        raise DeepEPError(f"tune: times calls on GPUs, and none is usable: {_cuda.why_not()}")
    knobs = {name: getattr(args, name) for name in KNOBS if getattr(args, name)}
    given = {name: getattr(args, name) for name in (
        "devices", "ranks", "ops", "dtypes", "tokens", "hidden", "topk", "experts", "sms",
        "policies", "rounds", "seed", "timeout_s")}
    return plan.make(gpu=gpu, arch=arch, num_gpus=num_gpus, cta_smem=cta_smem, knobs=knobs,
                     **given)


def _joined(values):
    return ",".join(map(str, values))
