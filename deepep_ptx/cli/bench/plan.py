# SPDX-License-Identifier: MIT
"""What a benchmark runs, from its options."""

import importlib.util
import itertools
from dataclasses import dataclass

from deepep_ptx import select
from deepep_ptx.cli.bench import launch
from deepep_ptx.cli.bench.case import FP8_WHATS, WHATS, Case
from deepep_ptx.cli.bench.rounds import WARMUP, num_calls
from deepep_ptx.cli.measure import settings
from deepep_ptx.cli.measure.inputs import DTYPES, ROUTINGS

ROUNDS, HOST_ROUNDS = 30, 10


@dataclass(frozen=True)
class Setup:
    """What plans of `bench intranode` and `bench ll` have in common; see `setup_of`.

    devices: GPU of each rank; None on the CPU executor, which makes no rounds.
    """

    executor: str
    layout: str
    arch: str
    devices: tuple[int, ...] | None
    ranks: int
    rounds: int
    warmup: int
    host_rounds: int
    seed: int
    timeout_s: float
    peers: bool
    out: str | None


@dataclass(frozen=True)
class Plan(Setup):
    """All that fixes a run of `bench intranode`; see `make`.

    options: the options as they were given, for the record.
    """

    cases: tuple[Case, ...]
    plot: str | None
    options: dict

    @property
    def num_calls(self):
        """Calls of the cases, each of which moves the bar by one."""
        return num_calls(len(self.cases), self.rounds, self.warmup, self.host_rounds)


def make(*, executor, arch, num_gpus=0, layout=None, what=None, dtype=None, tokens=None,
         routing=None, policy=None, sms=None, hidden=None, topk=None, experts=None, ranks=None,
         devices=None, rounds=None, warmup=None, seed=0, timeout_s=10.0, peers=True, out=None,
         plot=None):
    """The `Plan` of a benchmark: cases are the product of what, dtype, tokens, routing, policy and
    sms, lists of which None is the default; `layout` has neither dtype nor policy, and combine is
    always of bf16.

    Raises:
        ValueError: the text begins with the option.
    """
    whats = known("what", what, WHATS)
    dtypes = known("dtype", dtype, DTYPES)
    routings = known("routing", routing, ROUTINGS, ["uniform"])
    policies = unique("policy", policy, [select.DEFAULT_POLICY])
    for name in policies:
        select.choose(name, arch, origin="--policy")
    refuse_layout(executor, layout)
    shape = settings.shape_of(executor, num_gpus, devices, hidden=hidden, topk=topk,
                              experts=experts, ranks=ranks)
    all_tokens = unique("tokens", tokens, [shape.pop("tokens")])
    for number in all_tokens:
        settings.check_shape(tokens=number, dtypes=dtypes, **shape)
    ranks = shape.pop("ranks")
    if "local" in routings:
        settings.check("topk", shape["topk"], 1, shape["experts"] // ranks)
    all_sms = sms_of(executor, sms)
    setup = setup_of(executor=executor, arch=arch, ranks=ranks, seed=seed, layout=layout,
                     devices=devices, num_gpus=num_gpus, rounds=rounds, warmup=warmup,
                     timeout_s=timeout_s, peers=peers, out=out)
    cases = [
        Case(one, one_dtype, number, routing=of, policy=name, sms=count, **shape)
        for one, one_dtype, number, of, name, count in itertools.product(
            whats, DTYPES, all_tokens, routings, policies, all_sms)
        if (one_dtype in dtypes if one in FP8_WHATS else one_dtype == "bf16")
        and (one != "layout" or name == policies[0])]
    return Plan(
        **setup, cases=tuple(cases), plot=plot,
        options={"what": whats, "dtype": dtypes, "tokens": all_tokens, "routing": routings,
                 "policy": policies, "sms": all_sms, "ranks": ranks, **shape})


def refuse_layout(executor, layout):
    """ValueError for a layout of ranks that is asked for on the CPU executor."""
    if executor != "cuda":
        settings.refuse("the ranks of the CPU executor are threads", layout=layout)


def sms_of(executor, sms):
    """Numbers of SMs, as asked for; None among them: the buffer's own choice.

    Raises:
        ValueError: none of them, or below 1.
    """
    numbers = unique("sms", sms, [settings.EMU_SMS if executor == "emu" else None])
    for number in numbers:
        if number is not None:
            settings.check("sms", number, 1)
    return numbers


def setup_of(*, executor, seed, timeout_s, rounds, warmup, ranks, devices, num_gpus, layout,
             **given):
    """The fields of a `Setup`, checked, where None is the default.  given: those that are as they
    were given.

    Raises:
        ValueError: the text begins with the option.
    """
    settings.check_run(seed, timeout_s)
    rounds, warmup = settings.rounds_of(executor, rounds, warmup, (ROUNDS, WARMUP))
    devices = settings.devices_of(executor, devices, ranks, num_gpus)
    return given | {
        "executor": executor, "ranks": ranks, "seed": seed, "devices": devices,
        "layout": layout_of(layout, devices) if executor == "cuda" else "threads",
        "rounds": rounds, "warmup": warmup, "host_rounds": min(HOST_ROUNDS, rounds),
        "timeout_s": timeout_s}


def layout_of(layout, devices):
    """"processes" or "threads": as asked for, else processes where they can be.

    Raises:
        ValueError: processes that cannot be.
    """
    shared = len(set(devices)) < len(devices)
    if layout is None and (shared or importlib.util.find_spec("torch") is None):
        return "threads"
    if layout == "threads":
        return layout
    if shared:
        raise ValueError("--layout: processes must have a GPU each, got --devices "
                         f"{','.join(map(str, devices))}")
    torch, why_not = launch.torch_with_cuda()
    if torch is None and layout == "processes":
        raise ValueError(f"--layout: processes cannot be made: {why_not}")
    return "threads" if torch is None else "processes"


def known(name, given, known, default=None):
    """The names given, each once, all of them known."""
    names = unique(name, given, default or list(known))
    settings.check_names(name, names, known)
    return names


def unique(name, given, default):
    """What option `name` lists, each once; None: the default.

    Raises:
        ValueError: it lists nothing.
    """
    if given is None:
        return default
    if not given:
        raise ValueError(f"--{name}: must not be empty")
    return list(dict.fromkeys(given))
