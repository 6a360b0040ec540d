# SPDX-License-Identifier: MIT
"""What an A/B compares, on which shapes, and in which order."""

import difflib
from dataclasses import dataclass

from deepep_ptx import reference, select
from deepep_ptx.measure.inputs import Shape
from deepep_ptx.measure.statistics import interleaved
from deepep_ptx.runtime import MAX_RANKS

COMBINE_MODES = ("pull", "push")
MIN_ROUNDS = 5          # below, an interval says nothing

# What is taken where nothing is asked for.  The CPU executor counts, and counts are exact on small
# shapes; it makes no rounds.
DEFAULTS = {
    "cuda": {"tokens": 4096, "hidden": 7168, "topk": 8, "experts": 256, "rounds": 100,
             "warmup": 5},
    "emu": {"ranks": 4, "tokens": 32, "hidden": 1024, "topk": 4, "experts": 16, "rounds": 0,
            "warmup": 0},
}


@dataclass(frozen=True)
class Contender:
    """One side of the comparison: the name it was asked for by, and its row of the table.

    undefined: whether PTX leaves its loads undefined at the kernel's load site.
    """

    name: str
    variant: dict
    undefined: bool

    @property
    def symbol(self):
        """Of its kernel."""
        return self.variant["symbol"]


@dataclass(frozen=True)
class Plan:
    """All that fixes a comparison; see `make`."""

    kernel: str
    contenders: tuple[Contender, ...]
    executor: str
    arch: str
    devices: tuple[int, ...] | None     # None on the CPU executor
    ranks: int
    tokens: int
    hidden: int
    topk: int
    experts: int
    sms: int
    rounds: int
    warmup: int
    seed: int
    timeout_s: float
    combine: str | None                 # None: the kernel is not of combine

    @property
    def shape(self):
        """The `Shape` of the inputs."""
        return Shape(self.ranks, self.tokens, self.hidden, self.topk, self.experts)

    @property
    def arena_bytes(self):
        """Room for what is received, for what is pushed, and for one slot that is not free yet."""
        row = self.hidden * reference.BF16_BYTES + 12 * self.topk + 4
        return -(-3 * (self.shape.worst_rows * row + (1 << 20)) // 128) * 128

    @property
    def num_calls(self):
        """Of the kernel's call: before the rounds, in them, and after them."""
        checks = 2 if self.rounds else 1
        return len(self.contenders) * (checks + self.warmup + self.rounds)

    def order(self):
        """Contenders' numbers [warmup + rounds, contenders]: each round runs all of them once, in
        an order of its own that the seed fixes."""
        return interleaved(len(self.contenders), self.warmup + self.rounds, self.seed)


def make(kernel, policies, *, executor, arch, num_gpus=0, devices=None, ranks=None, tokens=None,
         hidden=None, topk=None, experts=None, sms=16, rounds=None, warmup=None, seed=0,
         timeout_s=10.0, combine=None, table=None):
    """The `Plan` of a comparison; None takes the executor's default.

    Args:
        kernel: with several variants on `arch`.
        policies: at least two names of policies, aliases, data paths or symbols; the first is what
            the others are compared with.
        executor: "cuda" or "emu".
        num_gpus: on this machine.
        devices: GPU of each rank; None = in turn.
        ranks: None = as many as GPUs, and at least two.
        sms: CTAs of each kernel.
        timeout_s: limit of each wait for another rank.
        combine: for combine_reduce: "pull" (the default) or "push".
        table: as `select.load_table()` gives it.

    Raises:
        ValueError: the text begins with the option of `deepep-ptx ab`.
    """
    table = select.load_table() if table is None else table
    contenders = _contenders(kernel, policies, arch, table)
    combine = _combine_mode(kernel, combine)
    given = {"ranks": ranks, "tokens": tokens, "hidden": hidden, "topk": topk, "experts": experts,
             "rounds": rounds, "warmup": warmup}
    if executor == "emu":
        _refuse("the CPU executor runs each variant once, and counts", rounds=rounds,
                warmup=warmup)
        _refuse("the CPU executor has a device of its own for each rank", devices=devices)
    shape = DEFAULTS[executor] | {name: v for name, v in given.items() if v is not None}
    shape["ranks"] = _ranks(shape.get("ranks"), devices, num_gpus)
    if experts is None:         # the default's are for a power of two
        shape["experts"] += -shape["experts"] % shape["ranks"]
    _check_shape(**shape)
    _check("sms", sms, 1)
    _check("seed", seed, 0)
    if executor == "cuda":
        _check("rounds", shape["rounds"], MIN_ROUNDS)
        _check("warmup", shape["warmup"], 0)
        if devices is None:
            devices = [rank % max(1, num_gpus) for rank in range(shape["ranks"])]
        elif num_gpus and max(devices) >= num_gpus:
            raise ValueError(f"--devices: must be below {num_gpus}, the GPUs there are; got "
                             f"{', '.join(map(str, devices))}")
    if not 0 < timeout_s <= 1e9:
        raise ValueError(f"--timeout-s: must be above 0 and at most 1e9, got {timeout_s}")
    return Plan(kernel=kernel, contenders=contenders, executor=executor, arch=arch,
                devices=None if devices is None else tuple(devices), sms=sms, seed=seed,
                timeout_s=timeout_s, combine=combine, **shape)


def comparable(arch, table=None):
    """Names of the kernels that have several variants on `arch`, in the table's order."""
    table = select.load_table() if table is None else table
    counts = {}
    for variant in table["variants"]:
        if variant["arch"] == arch:
            counts[variant["kernel"]] = counts.get(variant["kernel"], 0) + 1
    return [kernel for kernel, count in counts.items() if count > 1]


def _contenders(kernel, policies, arch, table):
    kernels = comparable(arch, table)
    if kernel not in kernels:
        near = difflib.get_close_matches(kernel, kernels, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"KERNEL: {kernel!r} has no variants to compare; {hint}"
                         f"those that have on {arch} are {', '.join(kernels)}")
    rows = [(name, _variant(kernel, name, arch, table)) for name in policies]
    found = [Contender(name, row, _is_undefined(row, table)) for name, row in rows]
    if len(found) < 2:
        raise ValueError(f"--policy: must name at least two, got {', '.join(policies) or 'none'}; "
                         f"{kernel} has {', '.join(_names(kernel, arch, table))}")
    seen = {}
    for contender in found:
        first = seen.setdefault(contender.symbol, contender)
        if first is not contender:
            raise ValueError(f"--policy: {first.name} and {contender.name} are the same variant of "
                             f"{kernel}, {contender.symbol}")
    return tuple(found)


def _variant(kernel, name, arch, table):
    """The row that `name` means; where the kernel has none of that name, an error instead of the
    default that a `Buffer` would take."""
    row = select.choose(name, arch, table, "--policy")[kernel]
    if name not in table["aliases"] and name not in (row["policy"], row["path"], row["symbol"]):
        raise ValueError(f"--policy: {kernel} has no variant {name!r} on {arch}; it has "
                         f"{', '.join(_names(kernel, arch, table))}")
    return row


def _names(kernel, arch, table):
    return [variant["policy"] or variant["path"] for variant in table["variants"]
            if variant["kernel"] == kernel and variant["arch"] == arch]


def _is_undefined(variant, table):
    """Whether PTX leaves a variant's payload loads undefined at its kernel's load site."""
    policy = variant["policy"]
    return bool(policy) and variant["site"] not in table["policies"][policy]["defined"]


def _combine_mode(kernel, combine):
    if kernel == "combine_reduce":
        return combine or "pull"
    if combine:
        raise ValueError(f"--combine: is for combine_reduce, not {kernel}")
    return "push" if kernel == "combine_push" else None


def _ranks(ranks, devices, num_gpus):
    if devices is not None:
        if min(devices, default=-1) < 0:
            raise ValueError("--devices: must be GPU numbers, 0 and up")
        if ranks not in (None, len(devices)):
            raise ValueError(f"--devices: must name one GPU per rank, {ranks}; got {len(devices)}")
        return len(devices)
    return max(2, num_gpus) if ranks is None else ranks


def _check_shape(ranks, tokens, hidden, topk, experts, **_):
    _check("ranks", ranks, 1, MAX_RANKS)
    _check("tokens", tokens, 1)
    _check("experts", experts, 1)
    _check("topk", topk, 1, min(experts, reference.MAX_TOPK))
    if hidden < 8 or hidden % 8:
        raise ValueError(f"--hidden: must be a positive multiple of 8 (16 bytes), got {hidden}")
    if experts % ranks:
        raise ValueError(f"--experts: must be a multiple of --ranks ({ranks}), got {experts}")


def _check(name, value, low, high=None):
    if value < low or (high is not None and value > high):
        accepted = f"at least {low}" if high is None else f"{low}..{high}"
        raise ValueError(f"--{name}: must be {accepted}, got {value}")


def _refuse(why, **options):
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"--{name}: only on GPUs: {why}")
