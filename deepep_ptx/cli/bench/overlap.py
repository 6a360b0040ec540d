# SPDX-License-Identifier: MIT
"""`bench overlap` on one rank: a GEMM on the caller's stream beside calls on the buffer's."""

import itertools
from dataclasses import asdict, dataclass

import numpy as np

from deepep_ptx import select
from deepep_ptx.cli.bench import launch, overlap_report, report
from deepep_ptx.cli.bench.case import Case
from deepep_ptx.cli.bench.figures import spread_of
from deepep_ptx.cli.bench.intranode import bar_of
from deepep_ptx.cli.bench.plan import ROUNDS
from deepep_ptx.cli.bench.rounds import WARMUP, Session
from deepep_ptx.cli.measure import settings
from deepep_ptx.cli.measure.statistics import interleaved
from deepep_ptx.errors import DeepEPError

WHATS = ("dispatch", "combine-pull")
SMS = (8, 16, 24)
GEMMS = ((8192, 4096, 7168), (2048, 2048, 2048))      # the second lives in the L2 cache
TARGET_US = 600


@dataclass(frozen=True)
class Plan:
    """All that fixes a run of `bench overlap`; see `make`.

    gemms: (M, N, K) of bfloat16 products, each repeated for about `target_us`.
    """

    cases: tuple[Case, ...]
    gemms: tuple[tuple[int, int, int], ...]
    target_us: float
    arch: str
    devices: tuple[int, ...]
    ranks: int
    rounds: int
    warmup: int
    seed: int
    timeout_s: float
    out: str | None
    plot: str | None
    options: dict
    executor: str = "cuda"
    layout: str = "processes"

    @property
    def num_calls(self):
        """Steps of the bar: the checks, then every entry of every round."""
        entries = len(self.gemms) + len(self.cases) * (1 + len(self.gemms))
        return len(self.cases) + (self.warmup + self.rounds) * entries


def make(*, arch, num_gpus, what=None, policy=None, sms=None, gemm=None, target_us=TARGET_US,
         tokens=None, hidden=None, topk=None, experts=None, ranks=None, devices=None, rounds=None,
         warmup=None, seed=0, timeout_s=10.0, out=None, plot=None):
    """The `Plan`: cases are the product of what, policy and sms, lists of which None is the
    default.

    Raises:
        ValueError: the text begins with the option.
        DeepEPError: torch with CUDA is not there.
    """
    whats = list(what or WHATS)
    settings.check_names("what", whats, WHATS)
    policies, all_sms = list(policy or [select.DEFAULT_POLICY]), list(sms or SMS)
    for name in policies:
        select.choose(name, arch, origin="--policy")
    shape = settings.shape_of("cuda", num_gpus, devices, tokens=tokens, hidden=hidden, topk=topk,
                              experts=experts, ranks=ranks)
    settings.check_shape(**shape)
    ranks = shape.pop("ranks")
    rounds, warmup = settings.rounds_of("cuda", rounds, warmup, (ROUNDS, WARMUP))
    for name, value in (("target-us", target_us), *(("sms", number) for number in all_sms)):
        settings.check(name, value, 1)
    settings.check_run(seed, timeout_s)
    torch, why_not = launch.torch_with_cuda()
    if torch is None:
        raise DeepEPError(f"bench overlap: its GEMM needs torch with CUDA: {why_not}")
    devices = settings.devices_of("cuda", devices, ranks, num_gpus)
    if len(set(devices)) < ranks:
        raise ValueError("--devices: each rank must have a GPU of its own, got "
                         f"{','.join(map(str, devices))}")
    gemms = tuple(gemm or GEMMS)
    cases = tuple(Case(one, policy=name, sms=count, **shape)
                  for one, name, count in itertools.product(whats, policies, all_sms))
    return Plan(cases=cases, gemms=gemms, target_us=target_us, arch=arch, devices=devices,
                ranks=ranks, rounds=rounds, warmup=warmup, seed=seed, timeout_s=timeout_s, out=out,
                plot=plot, options={"what": whats, "policy": policies, "sms": all_sms,
                                    "gemm": gemms, "target_us": target_us, **shape})


class Repeated:
    """`work()`, queued on torch's current stream as often as makes about `target_us`.

    repeats: so often; may be set, for all ranks to do the same.
    """

    def __init__(self, work, machine, target_us):
        self.work = work
        self.repeats = 5
        self()
        machine.begin.record(machine.stream)
        self()
        machine.end.record(machine.stream)
        once_us = machine.end.since(machine.begin) / self.repeats
        self.repeats = max(1, round(target_us / once_us))

    def __call__(self):
        for _ in range(self.repeats):
            self.work()


def gemm_of(torch, size, device):
    """C = A B of bfloat16, [M, K] by [K, N], on torch's current stream."""
    m, n, k = size
    a, b = (torch.randn(rows, k, device=device).bfloat16() for rows in (m, n))
    c = torch.empty(m, n, device=device, dtype=torch.bfloat16)
    return lambda: torch.matmul(a, b.t(), out=c)


def rank_main(comm, plan):
    """Run the plan; rank 0 writes and prints what was found.  Returns the exit code."""
    import torch

    with (bar_of(comm, plan.num_calls) as bar,
          Session(comm, plan.cases, seed=plan.seed, progress=bar.update,
                  timeout_s=plan.timeout_s, torch=torch) as session):
        session.check()
        made = report.head("bench overlap", plan)
        if session.wrong:
            made = report.with_wrong(made, session.wrong)
        else:
            machine = session.machine
            gemms = [Repeated(gemm_of(torch, size, machine.device), machine, plan.target_us)
                     for size in plan.gemms]
            for gemm, repeats in zip(gemms, comm.allgather([g.repeats for g in gemms])[0],
                                     strict=True):
                gemm.repeats = repeats
            times = measured(comm, plan, session, gemms, bar)
            made |= figures_of(plan, times, [gemm.repeats for gemm in gemms],
                               torch.cuda.get_device_properties(0).multi_processor_count)
    if comm.rank == 0:
        report.write(made, plan.out)
        print(overlap_report.text(made), flush=True)
        if plan.plot and not session.wrong:
            overlap_report.draw(made, plan.plot)
    return 1 if session.wrong else 0


def entries(plan):
    """(case number or None, GEMM number or None) of what each round runs."""
    cases, gemms = range(len(plan.cases)), range(len(plan.gemms))
    return [*((None, gemm) for gemm in gemms), *((case, None) for case in cases),
            *itertools.product(cases, gemms)]


def measured(comm, plan, session, gemms, bar):
    """Entry -> microseconds [2, rounds], of the call's kernels and of the GEMM, of the slower
    rank, and bool [rounds], whether a host was late; on all ranks alike."""
    all_entries = entries(plan)
    times = np.empty((len(all_entries), 2, plan.rounds))
    late = np.empty((len(all_entries), plan.rounds), bool)
    for number, row in enumerate(interleaved(len(all_entries), plan.warmup + plan.rounds,
                                             plan.seed)):
        for index in row:
            case, gemm = all_entries[index]
            session.begin(plan.cases[case or 0])
            *found, was_late = session.machine.beside(
                session.aligner, None if case is None else session.calls[case],
                None if gemm is None else gemms[gemm])
            bar.update()
            if number >= plan.warmup:
                times[index, :, number - plan.warmup] = found
                late[index, number - plan.warmup] = was_late
    everybody = comm.allgather((times, late))
    slowest = np.max([of_rank[0] for of_rank in everybody], axis=0)
    any_late = np.any([of_rank[1] for of_rank in everybody], axis=0)
    return {entry: (slowest[index], any_late[index]) for index, entry in enumerate(all_entries)}


def figures_of(plan, times, repeats, num_sms):
    """The JSON of all pairs of a case and a GEMM.

    gemm_slowdown, comm_slowdown: percent, of medians.  sm_share: percent that the GEMM would lose
    if all it lost were the call's SMs, for as long as the call runs.
    """
    pairs = []
    for number, case in enumerate(plan.cases):
        for gemm, size in enumerate(plan.gemms):
            both, late = times[number, gemm]
            spreads = {
                "gemm_alone": spread_of(times[None, gemm][0][1]),
                "gemm_both": spread_of(both[1]),
                "comm_alone": spread_of(times[number, None][0][0]),
                "comm_both": spread_of(both[0]),
            }
            median = {name: spread["median_us"] for name, spread in spreads.items()}
            beside = min(median["comm_both"], median["gemm_both"])
            pairs.append(asdict(case) | {"tuning": dict(case.tuning)} | spreads | {
                "gemm": size, "repeats": repeats[gemm], "late": round(float(late.mean()), 3),
                "gemm_slowdown": _percent(median["gemm_both"], median["gemm_alone"]),
                "comm_slowdown": _percent(median["comm_both"], median["comm_alone"]),
                "sm_share": round(100 * case.sms / num_sms * beside / median["gemm_alone"], 2),
            })
    return {"num_sms": num_sms, "pairs": pairs}


def _percent(now, before):
    return round(100 * (now / before - 1), 2)
