# SPDX-License-Identifier: MIT
"""`bench ll`: what it runs, and the run on one rank."""

import itertools
import sys
from dataclasses import asdict, dataclass

import numpy as np

from deepep_ptx._limits import MAX_HIDDEN, MAX_TOKENS
from deepep_ptx._low_latency import GROUP
from deepep_ptx.cli.bench import launch, ll_peers, ll_report, report
from deepep_ptx.cli.bench.figures import spread_of
from deepep_ptx.cli.bench.intranode import bar_of, links_of
from deepep_ptx.cli.bench.ll_case import DTYPES, WHATS, Case, Job, bandwidths, payload, shape_of
from deepep_ptx.cli.bench.ll_session import PER_GRAPH, Session, num_steps
from deepep_ptx.cli.bench.plan import Setup, known, refuse_layout, setup_of, sms_of, unique
from deepep_ptx.cli.measure import settings
from deepep_ptx.cli.measure.machine import own_stream
from deepep_ptx.comm import RankComm
from deepep_ptx.emu.coverage import not_executed
from deepep_ptx.errors import DeepEPError
from deepep_ptx.low_latency import WORD_TOKENS
from deepep_ptx.reference.low_latency import REDUCTIONS

SHAPES = {
    "cuda": {"hidden": 7168, "topk": 8, "experts": 288},
    "emu": {"ranks": 4, "hidden": 1920, "topk": 4, "experts": 16},
}
# On the CPU executor one number on each side of where rows stop to cross as words.
TOKENS = {"cuda": (1, 8, 32, 128, 512), "emu": (8, WORD_TOKENS + 8)}


@dataclass(frozen=True)
class Plan(Setup):
    """All that fixes a run of `bench ll`; see `make`.

    options: the options as they were given, for the record.
    """

    cases: tuple[Case, ...]
    options: dict

    @property
    def num_steps(self):
        """Of the bar."""
        return num_steps(len(self.cases), self.rounds, self.warmup, self.host_rounds)


def make(*, executor, arch, num_gpus=0, layout=None, tokens=None, dtype=None, reduce=None,
         sms=None, hidden=None, topk=None, experts=None, ranks=None, devices=None, rounds=None,
         warmup=None, seed=0, timeout_s=10.0, peers=True, out=None):
    """The `Plan`: cases are the product of tokens, dtype, reduce and sms, lists of which None is
    the default.

    Raises:
        ValueError: the text begins with the option.
        DeepEPError: torch with CUDA is not there.
    """
    dtypes = known("dtype", dtype, DTYPES)
    reductions = known("reduce", reduce, REDUCTIONS)
    refuse_layout(executor, layout)
    shape = settings.shape_of(executor, num_gpus, devices, SHAPES, hidden=hidden, topk=topk,
                              experts=experts, ranks=ranks)
    all_tokens = unique("tokens", tokens, list(TOKENS[executor]))
    if shape["hidden"] % GROUP:
        raise ValueError(f"--hidden: must be a multiple of {GROUP}, got {shape['hidden']}")
    settings.check("hidden", shape["hidden"], GROUP, MAX_HIDDEN)
    for number in all_tokens:
        settings.check("tokens", number, 1, MAX_TOKENS)
        settings.check_shape(tokens=number, **shape)
    ranks = shape.pop("ranks")
    all_sms = sms_of(executor, sms)
    setup = setup_of(executor=executor, arch=arch, ranks=ranks, seed=seed, layout=layout,
                     devices=devices, num_gpus=num_gpus, rounds=rounds, warmup=warmup,
                     timeout_s=timeout_s, peers=peers, out=out)
    if executor == "cuda":
        torch, why_not = launch.torch_with_cuda()
        if torch is None:
            raise DeepEPError(f"bench ll: its graphs need torch with CUDA: {why_not}")
    cases = [Case(one_dtype, one_reduce, number, sms=count, **shape)
             for one_reduce, number, one_dtype, count in itertools.product(
                 reductions, all_tokens, dtypes, all_sms)]
    return Plan(**setup, cases=tuple(cases),
                options={"tokens": all_tokens, "dtype": dtypes, "reduce": reductions,
                         "sms": all_sms, "ranks": ranks, **shape})


def rank_main(comm, plan):
    """Run the plan; rank 0 writes and prints what was found.  Returns the exit code.

    The record is written before the peer is timed, and again after it.
    """
    made = report.head("bench ll", plan) | {"per_graph": PER_GRAPH, "cases": [], "peers": [],
                                            "low_latency_bytes": {},
                                            "links": links_of(comm, plan)}
    jobs = _jobs(comm, plan)
    torch = sys.modules["torch"] if plan.executor == "cuda" else None
    with own_stream(comm.executor, torch), bar_of(comm, plan.num_steps) as bar:
        for reduce in plan.options["reduce"]:
            wrong = _reduction(comm, plan, reduce, jobs, made, bar, torch)
            if wrong:
                bar.close()
                made = report.with_wrong(report.head("bench ll", plan), wrong)
                _publish(comm, plan, made, ll_report.text, made)
                return 1
    return 0


def _reduction(comm, plan, reduce, jobs, made, bar, torch):
    """Add to the record `made` what there is of one way to add up; behind the last one it is
    published.  Returns what is wrong."""
    cases = [case for case in plan.cases if case.reduce == reduce]
    is_last = reduce == plan.options["reduce"][-1]
    with Session(comm, cases, jobs, seed=plan.seed, progress=bar.update,
                 timeout_s=plan.timeout_s, torch=torch) as session:
        session.check()
        if session.wrong:
            return session.wrong
        made["low_latency_bytes"][reduce] = session.low_latency_bytes
        if session.machine.times:
            graphs = session.graphs(session.calls)
            times = None
            if not session.wrong:
                times = session.times(session.calls, graphs, plan.warmup, plan.rounds,
                                      plan.host_rounds)
            del graphs      # before their buffer
            if session.wrong:
                return session.wrong
            found = figures_of(session.calls, times, jobs, plan, made["links"])
        else:
            found = counts_of(comm, session, jobs)
        for one, number in zip(found, np.repeat(range(len(cases)), len(found) // len(cases)),
                               strict=True):
            what = one["what"]
            one |= {"launched": session.launched[number].get(what),
                    "sms": session.sms[number].get(what), "compared": jobs[one["tokens"]].compared,
                    "memory": cases[number].memory(comm.size)}
        made["cases"] += found
        if is_last:
            bar.close()
            if comm.rank == 0 and not session.machine.times:
                made["not_executed"] = not_executed(comm.executor)
            _publish(comm, plan, made, ll_report.text, made)
            if session.machine.times and plan.peers and plan.layout == "processes":
                _peers(comm, plan, session, jobs, made)
    return []


def figures_of(all_calls, times, jobs, plan, links):
    """The JSON of timed calls, of each of `WHATS`.

    graph, eager, host: spreads in microseconds, of a call in a graph, of a single one between
    events, and of the host in it.  late: "graph", "eager" -> share of the rounds in which a rank's
    host came too late.  bytes: as of `payload`.
    """
    found = []
    for at, (of_graph, of_eager) in enumerate(times):
        case, what = all_calls[at // len(WHATS)].case, WHATS[at % len(WHATS)]
        us = {"graph": of_graph.of("call") / PER_GRAPH, "eager": of_eager.of("call")}
        late = {"graph": of_graph.late["call"], "eager": of_eager.late["call"]}
        made = asdict(case) | {"what": what}
        made |= {name: spread_of(times) for name, times in us.items()}
        made |= {"host": spread_of(of_eager.of("host")),
                 "late": {name: round(float(of.any(axis=1).mean()), 3)
                          for name, of in late.items()},
                 "rounds_us": {name: np.round(times, 2).tolist() for name, times in us.items()},
                 "bytes": payload(case, jobs[case.tokens].topk_idxs, plan.devices)[what]}
        found.append(made | bandwidths(made["bytes"]["wire"], made["graph"]["median_us"], links))
    return found


def counts_of(comm, session, jobs):
    """The JSON of counted calls, dispatch and combine of each case: counts of each rank."""
    everybody = comm.allgather(session.counts)
    return [asdict(case) | {
        "what": what, "counts": [of_rank[number][what] for of_rank in everybody],
        "bytes": payload(case, jobs[case.tokens].topk_idxs, range(comm.size))[what]}
        for number, case in enumerate(session.cases) for what in WHATS[1:]]


def _jobs(comm, plan):
    """Tokens -> `Job`."""
    def make_all():
        return {case.tokens: Job(shape_of(case, plan.ranks), plan.seed, plan.options["dtype"],
                                 plan.options["reduce"])
                for case in {case.tokens: case for case in plan.cases}.values()}

    if isinstance(comm, RankComm):      # threads: one makes them for all
        return comm.allgather(make_all() if comm.rank == 0 else None)[0]
    return make_all()


def _peers(comm, plan, session, jobs, made):
    found, calls, times = ll_peers.measured(comm, plan, session, jobs)
    if times:
        found["cases"] = figures_of(calls, times, jobs, plan, made["links"])
    made["peers"].append(found)
    _publish(comm, plan, made, ll_report.peers_text, found)


def _publish(comm, plan, made, text, of):
    """Rank 0 writes the record and prints `text(of)`."""
    if comm.rank == 0:
        report.write(made, plan.out)
        print(text(of), flush=True)
