# SPDX-License-Identifier: MIT
"""A case's candidates on GPUs: bits and rounds by `deepep_ptx.cli.bench.rounds`."""

from deepep_ptx import run_ranks
from deepep_ptx.cli.bench.case import Case
from deepep_ptx.cli.bench.rounds import Session
from deepep_ptx.cli.tune.plan import WARMUP

WHATS = {"dispatch": "dispatch", "combine_pull": "combine-pull", "combine_push": "combine-push"}


class Gpus:
    """The GPUs of a plan, a thread for each rank."""

    def run(self, plan, case, decide, progress, is_over):
        """What decide(bench) makes of the case's candidates; see `tune.sweep`.

        Raises:
            RankError: a rank failed.
        """
        return run_ranks(_rank_main, plan.ranks, plan, case, decide, progress, is_over,
                         executor="cuda", arch=plan.arch, devices=list(plan.devices))[0]


def _rank_main(comm, plan, case, decide, progress, is_over):
    with Session(comm, cases_of(plan, case), seed=plan.seed, progress=progress,
                 timeout_s=plan.timeout_s) as session:
        return decide(bench=RankBench(session, is_over))


def cases_of(plan, case):
    """A `bench` case for each candidate."""
    return [Case(WHATS[case.op], dtype=case.dtype, tokens=case.tokens, hidden=plan.hidden,
                 topk=plan.topk, experts=plan.experts, sms=candidate.sms, policy=candidate.policy,
                 tuning={"tuning": False, **dict(candidate.knobs)})
            for candidate in plan.candidates[case.op]]


class RankBench:
    """What `decide` asks on one rank; all ranks ask alike, and get the same."""

    def __init__(self, session, is_over):
        self._session = session
        self._is_over = is_over

    def check(self):
        """None, or the first bad row, of each candidate."""
        self._session.check()
        wrong = {}
        for one in self._session.wrong:
            wrong.setdefault(one.name, str(one))
        return [wrong.get(str(case)) for case in self._session.cases]

    def measure(self, indices, rounds):
        """Microseconds [candidates, rounds] of the slower rank's kernels."""
        calls = [self._session.calls[index] for index in indices]
        return [times.of("kernel") for times in self._session.rounds(calls, rounds, WARMUP,
                                                                     timed=("kernel",))]

    def is_over(self):
        """As rank 0's clock says."""
        return self._session.comm.allgather(self._is_over())[0]
