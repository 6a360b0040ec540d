# SPDX-License-Identifier: MIT
"""What a tuning run measures: cases, the candidates of each, rounds, and what they cost."""

import dataclasses
import functools
import itertools
from dataclasses import dataclass

from deepep_ptx import select
from deepep_ptx.cli.measure import settings
from deepep_ptx.cli.measure.inputs import DTYPES
from deepep_ptx.knobs import KNOBS, accepted, values_of
from deepep_ptx.sm_model import OPS, Work, predicted_us, ranks_per_token, rates_of
from deepep_ptx.tuning import kernel_of

ITEMSIZES = {"bf16": 2, "fp8": 1}
TOKENS = (8, 64, 512, 4096)
SMS = (1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 32, 64)
POLICIES = ("fast", "ld_relaxed_sys", "bulk")       # as far as the GPU has them
FIRST_ROUNDS = settings.MIN_ROUNDS
WARMUP = 3              # rounds before those of each rung

# What a run takes beside its kernels, for the estimate: of a case (ranks, buffers, inputs), of a
# candidate (bytes compared on the host), of a call (caches flushed, ranks aligned).
CASE_S = 4.0
COMPARED_BYTES_PER_S = 0.5e9
CALL_S = 2e-3


@dataclass(frozen=True)
class Candidate:
    """One way to make a call.

    policy: form of payload loads, or data path.  knobs: (name, value) of launch parameters.
    """

    sms: int
    policy: str
    knobs: tuple = ()

    def __str__(self):
        return ", ".join([f"{self.sms} SMs", self.policy,
                          *(f"{name} {value}" for name, value in self.knobs)])


@dataclass(frozen=True)
class Case:
    """One class of calls, by the call that stands for it.

    op: of `sm_model.OPS`.  dtype: "bf16" or "fp8".  tokens: per rank.
    """

    op: str
    dtype: str
    tokens: int

    def __str__(self):
        return f"{self.op} {self.dtype}, {self.tokens} tokens"


@dataclass(frozen=True)
class Plan:
    """All that fixes a run; see `make`.  candidates: op -> tuple of `Candidate`."""

    gpu: str
    arch: str
    devices: tuple
    cases: tuple
    candidates: dict
    hidden: int
    topk: int
    experts: int
    rounds: int
    seed: int
    timeout_s: float

    @property
    def ranks(self):
        """One for each device."""
        return len(self.devices)

    def rungs(self):
        """Rounds of each rung: whoever is still there has 5 after the first, then twice as many
        after each."""
        made, total = [], 0
        while total < self.rounds:
            more = min(max(total, FIRST_ROUNDS), self.rounds - total)
            made.append(more)
            total += more
        return made

    def num_calls(self, case):
        """Calls of a case, if no candidate is ever dropped: one for its bits, and rounds."""
        rungs = self.rungs()
        return len(self.candidates[case.op]) * (1 + WARMUP * len(rungs) + sum(rungs))

    def work(self, case, policy="bulk"):
        """The `Work` of a case's call on the busiest device."""
        kernel = select.choose(policy, self.arch)[kernel_of(case.op)]
        ranks_here = max(map(self.devices.count, self.devices))
        return Work(case.op, case.tokens, self.hidden * ITEMSIZES[case.dtype], self.ranks,
                    ranks_here, ranks_per_token(self.ranks, self.topk), kernel["path"])

    def estimate_s(self, case):
        """Seconds that a case may take, if no candidate is ever dropped."""
        candidates = self.candidates[case.op]
        rates, calls = rates_of(self.gpu), self.num_calls(case) // len(candidates)
        kernels_us = sum(predicted_us(self.work(case, one.policy), rates, one.sms)
                         for one in candidates)
        work = self.work(case)
        compared = work.tokens * work.rows_per_token * work.row_bytes * self.ranks
        return (CASE_S + len(candidates) * (compared / COMPARED_BYTES_PER_S + calls * CALL_S)
                + calls * kernels_us / 1e6)

    def document(self):
        """The plan as what JSON can hold; two plans are the same if their documents are."""
        made = dataclasses.asdict(self)
        made["devices"] = list(self.devices)
        made["cases"] = [str(case) for case in self.cases]
        made["candidates"] = {op: [str(one) for one in candidates]
                              for op, candidates in self.candidates.items()}
        return made


def make(*, gpu, arch, num_gpus, cta_smem=None, devices=None, ranks=None, ops=OPS, dtypes=("bf16",),
         tokens=TOKENS, hidden=None, topk=None, experts=None, sms=SMS, policies=None, knobs=(),
         rounds=40, seed=0, timeout_s=10.0):
    """The `Plan` of a run.

    Args:
        gpu, arch: name and target of the GPUs.  num_gpus: on this machine.  cta_smem: bytes of
            shared memory that a CTA can have, None: as much as variants take.
        devices: GPU of each rank; None: in turn.  ranks: None: as many as devices, else as GPUs.
        ops, dtypes, tokens, sms, policies: all combinations; combines are of bf16 only.  policies:
            None: POLICIES.
        hidden, topk, experts: of all calls; None: as `deepep-ptx bench` has them.
        knobs: name -> values of launch parameters of the bulk data path; none: the kernels' own.
        rounds: of a candidate that is never dropped.

    Raises:
        ValueError: the text begins with the option of `deepep-ptx tune`.
    """
    shape = settings.shape_of("cuda", num_gpus, devices, ranks=ranks, hidden=hidden, topk=topk,
                              experts=experts)
    devices = settings.devices_of("cuda", devices, shape["ranks"], num_gpus)
    for name, given, known in (("ops", ops, OPS), ("dtypes", dtypes, DTYPES)):
        settings.check_names(name, given, known)
        if not given:
            raise ValueError(f"--{name}: must name at least one of {', '.join(known)}")
    for name, values in (("tokens", tokens), ("sms", sms), *dict(knobs).items()):
        option = name.replace("_", "-")
        if not values:
            raise ValueError(f"--{option}: must name at least one number")
        for value in values:
            if name not in KNOBS:
                settings.check(option, value, 1, rates_of(gpu).num_sms if name == "sms" else None)
            elif value not in values_of(name):
                raise ValueError(f"--{option}: must be {accepted(name)}, got {value}")
    settings.check_shape(dtypes=dtypes, **shape | {"tokens": max(tokens)})
    settings.check("rounds", rounds, FIRST_ROUNDS)
    settings.check_run(seed, timeout_s)
    cases = tuple(Case(op, dtype, number) for op in ops for dtype in dtypes
                  for number in sorted(set(tokens)) if dtype == "bf16" or op == "dispatch")
    if not cases:
        raise ValueError("--dtypes: must have bf16 for combine, which adds nothing else")
    if policies is None:
        policies = [name for name in POLICIES
                    if name == "fast" or select.runs(name, arch, cta_smem, len(devices))]
    choose = functools.partial(select.choose, arch=arch, origin="--policies", cta_smem=cta_smem,
                               num_ranks=len(devices))
    return Plan(gpu=gpu, arch=arch, devices=devices, cases=cases,
                candidates={op: _candidates(op, choose, sorted(set(sms)), policies, dict(knobs))
                            for op in dict.fromkeys(case.op for case in cases)},
                hidden=shape["hidden"], topk=shape["topk"], experts=shape["experts"],
                rounds=rounds, seed=seed, timeout_s=timeout_s)


def _candidates(op, choose, sms, policies, knobs):
    """All combinations; a policy whose loads PTX does not define in the op's kernel is left out,
    and of several names for one variant the first stays.  choose: `select.choose` of a policy."""
    variants = {}
    for policy in policies:
        kernel = choose(policy)[kernel_of(op)]
        if select.is_defined(kernel):
            variants.setdefault(kernel["symbol"], kernel)
    if not variants:
        raise ValueError(f"--policies: {', '.join(policies) or 'none'} has no loads that PTX "
                         f"defines in {op}")
    made = []
    for variant in variants.values():
        own = knobs if variant["path"] == "bulk" else {}
        for values in itertools.product(*own.values()):
            made += [Candidate(number, variant["policy"] or variant["path"],
                               tuple(zip(own, values, strict=True))) for number in sms]
    return tuple(made)
