# SPDX-License-Identifier: MIT
"""What an A/B compares, on which shapes, and in which order."""

import difflib
from dataclasses import dataclass

from deepep_ptx import reference, select
from deepep_ptx.cli.measure import settings
from deepep_ptx.cli.measure.inputs import Shape
from deepep_ptx.cli.measure.statistics import interleaved

COMBINE_MODES = ("pull", "push")
ROUNDS, WARMUP = 100, 5
SMS = {"cuda": 16, "emu": settings.EMU_SMS}


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
    def use(self):
        """What is compared, in the words of `use_of`."""
        return use_of(self.kernel, self.combine)

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
         hidden=None, topk=None, experts=None, sms=None, rounds=None, warmup=None, seed=0,
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
        combine: for combine: "pull" (the default) or "push".
        table: as `select.load_table()` gives it.

    Raises:
        ValueError: the text begins with the option of `deepep-ptx ab`.
    """
    table = select.load_table() if table is None else table
    combine = _combine_mode(kernel, combine)
    contenders = _contenders(kernel, combine, policies, arch, table)
    shape = settings.shape_of(executor, num_gpus, devices, ranks=ranks, tokens=tokens,
                              hidden=hidden, topk=topk, experts=experts)
    settings.check_shape(**shape)
    sms = SMS[executor] if sms is None else sms
    settings.check("sms", sms, 1)
    settings.check_run(seed, timeout_s)
    rounds, warmup = settings.rounds_of(executor, rounds, warmup, (ROUNDS, WARMUP))
    devices = settings.devices_of(executor, devices, shape["ranks"], num_gpus)
    return Plan(kernel=kernel, contenders=contenders, executor=executor, arch=arch,
                devices=devices, sms=sms, rounds=rounds, warmup=warmup, seed=seed,
                timeout_s=timeout_s, combine=combine, **shape)


def comparable(arch, table=None):
    """Names of the kernels that have several variants on `arch`, in the table's order."""
    table = select.load_table() if table is None else table
    counts = {}
    for variant in table["variants"]:
        if variant["arch"] == arch:
            counts[variant["kernel"]] = counts.get(variant["kernel"], 0) + 1
    return [kernel for kernel, count in counts.items() if count > 1]


def use_of(kernel, combine):
    """Of a kernel and a mode of combine, what `select.choose` has a variant for."""
    return "combine_push" if combine == "push" else kernel


def _contenders(kernel, combine, policies, arch, table):
    kernels = comparable(arch, table)
    if kernel not in kernels:
        near = difflib.get_close_matches(kernel, kernels, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"KERNEL: {kernel!r} has no variants to compare; {hint}"
                         f"those that have on {arch} are {', '.join(kernels)}")
    use = use_of(kernel, combine)
    rows = [(name, _variant(kernel, use, name, arch, table)) for name in policies]
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


def _variant(kernel, use, name, arch, table):
    """The row that `name` means for that use of the kernel; where the kernel has none of that name,
    an error instead of the default that a `Buffer` would take."""
    row = select.choose(name, arch, table, "--policy")[use]
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
    if kernel == "combine":
        return combine or "pull"
    if combine:
        raise ValueError(f"--combine: is for combine, not {kernel}")
    return None
