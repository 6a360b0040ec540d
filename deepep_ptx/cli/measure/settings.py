# SPDX-License-Identifier: MIT
"""What `deepep-ptx ab`, `bench` and `tune` share: defaults, exit codes, and what is refused."""

import os
from pathlib import Path

from deepep_ptx import _cuda, reference
from deepep_ptx.checks import check_size
from deepep_ptx.errors import DeepEPError
from deepep_ptx.runtime import ARCHS, EXECUTORS, MAX_RANKS

EXIT_CODES = "exit codes: 0 = done, 1 = a wrong bit or a failed run, 2 = bad input"

# What is taken where nothing is asked for.  The CPU executor counts, and counts are exact on small
# shapes; with so few SMs, each loop over tokens, and over parts of rows, is entered.
SHAPES = {
    "cuda": {"tokens": 4096, "hidden": 7168, "topk": 8, "experts": 256},
    "emu": {"ranks": 4, "tokens": 40, "hidden": 1920, "topk": 4, "experts": 16},
}
EMU_SMS = 2
MIN_ROUNDS = 5          # below, an interval says nothing


def executor_of(asked):
    """"cuda" or "emu": what was asked for, else what DEEPEP_PTX_EXECUTOR says, else what there is.

    Raises:
        ValueError: DEEPEP_PTX_EXECUTOR is neither.
    """
    executor = (asked or os.environ.get("DEEPEP_PTX_EXECUTOR")
                or ("cuda" if _cuda.device_count() else "emu"))
    if executor not in EXECUTORS[1:]:
        raise ValueError(f"DEEPEP_PTX_EXECUTOR: must be emu or cuda, got {executor!r}")
    return executor


def require(executor):
    """Raise DeepEPError unless it can run here."""
    if executor == "cuda" and not _cuda.device_count():
        raise DeepEPError(f"--executor: 'cuda' cannot be used: {_cuda.why_not()}")


def arch_of(asked, executor):
    """The target that was asked for, else that of the GPUs, else the newest."""
    if asked is None and executor == "cuda" and _cuda.device_count():
        return _cuda.CudaExecutor(0).arch
    return asked or ARCHS[-1]


def shape_of(executor, num_gpus, devices, shapes=SHAPES, **given):
    """ranks, hidden, topk and experts as given, None for the executor's default; tokens likewise.

    shapes: executor -> defaults.  ranks: as many as `devices` names, else as many as GPUs and at
    least two.  experts: the default is rounded up to a multiple of ranks.

    Raises:
        ValueError: the text begins with the option.
    """
    if executor == "emu":
        refuse("the CPU executor has a device of its own for each rank", devices=devices)
    shape = shapes[executor] | {name: v for name, v in given.items() if v is not None}
    shape["ranks"] = _ranks(shape.get("ranks"), devices, num_gpus)
    check("ranks", shape["ranks"], 1, MAX_RANKS)
    if given.get("experts") is None:        # the default's are for a power of two
        shape["experts"] += -shape["experts"] % shape["ranks"]
    return shape


def rounds_of(executor, rounds, warmup, defaults):
    """(rounds, warmup) as given, None for its default; none on the CPU executor, which takes none.

    Raises:
        ValueError: the text begins with the option.
    """
    if executor == "emu":
        refuse("the CPU executor calls each case once, and counts", rounds=rounds, warmup=warmup)
        return 0, 0
    rounds = defaults[0] if rounds is None else rounds
    warmup = defaults[1] if warmup is None else warmup
    check("rounds", rounds, MIN_ROUNDS)
    check("warmup", warmup, 0)
    return rounds, warmup


def devices_of(executor, devices, ranks, num_gpus):
    """GPU of each rank: those given, else in turn; None on the CPU executor."""
    if executor == "emu":
        return None
    if devices is None:
        return tuple(rank % max(1, num_gpus) for rank in range(ranks))
    if num_gpus and max(devices) >= num_gpus:
        raise ValueError(f"--devices: must be below {num_gpus}, the GPUs there are; got "
                         f"{', '.join(map(str, devices))}")
    return tuple(devices)


def check_shape(ranks, tokens, hidden, topk, experts, dtypes=()):
    """Raise ValueError unless calls of this shape, with rows of these types, can be made."""
    check("ranks", ranks, 1, MAX_RANKS)
    check("tokens", tokens, 1)
    check("experts", experts, 1)
    check("topk", topk, 1, min(experts, reference.MAX_TOPK))
    if hidden < 8 or hidden % 8:
        raise ValueError(f"--hidden: must be a positive multiple of 8 (16 bytes), got {hidden}")
    if "fp8" in dtypes and hidden % reference.FP8_GROUP:
        raise ValueError(f"--hidden: must be a multiple of {reference.FP8_GROUP} with fp8, got "
                         f"{hidden}")
    if experts % ranks:
        raise ValueError(f"--experts: must be a multiple of --ranks ({ranks}), got {experts}")
    check_size(("--tokens", "--hidden"), ranks, tokens, hidden)


def check_names(name, given, known):
    """Raise ValueError unless all that option `name` lists is known."""
    for one in given:
        if one not in known:
            raise ValueError(f"--{name}: must be of {', '.join(known)}, got {one!r}")


def check_run(seed, timeout_s):
    """Raise ValueError unless these are a seed and a number of seconds to wait for."""
    check("seed", seed, 0)
    if not 0 < timeout_s <= 1e9:
        raise ValueError(f"--timeout-s: must be above 0 and at most 1e9, got {timeout_s}")


def check(name, value, low, high=None):
    """Raise ValueError unless option `name` is in [low, high]."""
    if value < low or (high is not None and value > high):
        accepted = f"at least {low}" if high is None else f"{low}..{high}"
        raise ValueError(f"--{name}: must be {accepted}, got {value}")


def check_out(name, path):
    """Raise ValueError unless option `name` names a file that can be written; None: it was not
    given."""
    if path is None:
        return
    folder = Path(path).absolute().parent
    if Path(path).is_dir():
        why = "it is a directory"
    elif not folder.is_dir():
        why = f"there is no directory {folder}"
    elif not os.access(path if Path(path).exists() else folder, os.W_OK):
        why = "permission denied"
    else:
        return
    raise ValueError(f"--{name}: cannot write {path}: {why}")


def refuse(why, **options):
    """Raise ValueError where an option was given that only GPUs take."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')}: only on GPUs: {why}")


def _ranks(ranks, devices, num_gpus):
    if devices is not None:
        if min(devices, default=-1) < 0:
            raise ValueError("--devices: must be GPU numbers, 0 and up")
        if ranks not in (None, len(devices)):
            raise ValueError(f"--devices: must name one GPU per rank, {ranks}; got {len(devices)}")
        return len(devices)
    return max(2, num_gpus) if ranks is None else ranks
