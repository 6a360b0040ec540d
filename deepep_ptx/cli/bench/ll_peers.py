# SPDX-License-Identifier: MIT
"""DeepEP's low-latency calls beside ours, interleaved with them."""

import copy
import dataclasses

from deepep_ptx.cli.bench import peers
from deepep_ptx.cli.bench.ll_session import Calls
from deepep_ptx.errors import DeepEPError

NAME = "deep_ep"
TOLERANCE = 0.02        # of sums of bfloat16 rows, relative to the largest value


class DeepEP:
    """DeepEP's `Buffer` of its first API, for all cases: what it keeps zero depends on the most
    tokens of a rank, so all calls name the largest case's."""

    def __init__(self, torch, ranks, cases):
        module, self.version = peers.deep_ep()
        self.torch = torch
        self.max_tokens = max(case.tokens for case in cases)
        hidden, experts = cases[0].hidden, cases[0].experts
        self.buffer = module.Buffer(
            torch.distributed.group.WORLD, 0,
            module.Buffer.get_low_latency_rdma_size_hint(self.max_tokens, hidden, ranks, experts),
            low_latency_mode=True, num_qps_per_rank=experts // ranks)
        self.y = None

    def calls(self, base, counts):
        """(`Calls` on the inputs of `base`, ours; None, or what is wrong with them).

        counts: rows of this rank's experts.
        """
        torch, arrays = self.torch, copy.copy(base.arrays)
        case = dataclasses.replace(base.case, reduce=None, sms=None)
        plain = Calls(dataclasses.replace(case, dtype="bf16"), self.buffer, arrays,
                      self.max_tokens)
        got, plain.handle = plain.dispatch()
        arrays.y = got["recv_x"]
        combined = plain.combine().float()
        want = arrays.x.float() * arrays.topk_weights.sum(1)[:, None]
        wrong = None
        if got["recv_count"].tolist() != counts.tolist():
            wrong = "it gives experts other numbers of rows than our dispatch"
        elif (combined - want).abs().max() > TOLERANCE * want.abs().max():
            wrong = "its combine of what its dispatch gave is not the weighted sum"
        # What the rows hold is of no matter for times: one array for all cases.
        if self.y is None:
            self.y = torch.zeros_like(arrays.y)
        arrays.y = self.y
        made = Calls(case, self.buffer, arrays, self.max_tokens)
        made.handle = made.dispatch()[1]
        return made, wrong


def measured(comm, plan, session, jobs):
    """(what the record has of the peer, calls, their times): name, and missing (why it was not
    timed), or version; `Calls`, ours of the first number of SMs and then the peer's, and what
    `session.times` gives of them.  Collective.

    Raises:
        DeepEPError: it failed in the rounds, where ranks wait for each other.
    """
    bases = {}
    for base in session.calls:
        bases.setdefault((base.case.tokens, base.case.dtype), base)
    bases = list(bases.values())
    local = bases[0].case.experts // comm.size

    def make():
        peer = DeepEP(session.machine.torch, comm.size, [base.case for base in bases])
        calls, wrongs = zip(*(
            peer.calls(base, jobs[base.case.tokens].counts[comm.rank * local:][:local])
            for base in bases), strict=True)
        # After all of them, which the ranks make together.
        for wrong in filter(None, wrongs):
            raise DeepEPError(wrong)
        return peer, calls

    made, why_not = peers.attempt(comm, make)
    if why_not:
        return {"name": NAME, "missing": why_not}, [], []
    peer, calls = made
    calls = [*bases, *calls]
    try:
        times = session.times(calls, session.graphs(calls, compared=False), plan.warmup,
                              plan.rounds, plan.host_rounds)
    except Exception as error:
        raise DeepEPError(f"{NAME}: {type(error).__name__}: {error}") from error
    return {"name": NAME, "version": peer.version}, calls, times
