# SPDX-License-Identifier: MIT
"""Other libraries on the same rows, through their own public APIs, interleaved with our calls.

A peer's call is timed as a whole, as ours are: its kernels are its own.  It begins when our
alignment has ended on all ranks, as our calls do.
"""

import dataclasses
import importlib
import importlib.util

from deepep_ptx.cli.bench import figures
from deepep_ptx.errors import DeepEPError


def measured(kind, comm, plan, session, links):
    """The JSON of one peer, of class `kind`: name, and missing (why it was not timed), or version
    and cases, ours of the first policy beside the peer's.  Collective.

    Raises:
        DeepEPError: it failed in the rounds, where ranks wait for each other.
    """
    bases = _bases(kind, plan, session)

    def make():
        peer = kind(session.machine.torch, comm.size, plan.cases)
        calls = [peer.call(base, session.rows[number], comm.rank)
                 for number, base in bases.items()]
        # After all of them, which the ranks make together.
        if not all(call.right for call in calls):
            raise DeepEPError("it gives other rows than our dispatch")
        return peer, calls

    if not bases:
        return {"name": kind.name, "missing": f"it has none of these calls, only "
                                              f"{', '.join(kind.whats)}"}
    made, why_not = attempt(comm, make)
    if why_not:
        return {"name": kind.name, "missing": why_not}
    peer, calls = made
    try:
        times = session.rounds([*bases.values(), *calls], plan.rounds, plan.warmup,
                               plan.host_rounds)
    except Exception as error:
        raise DeepEPError(f"{kind.name}: {type(error).__name__}: {error}") from error
    rows = [session.rows[number] for number in bases] * 2
    sms = [session.sms[number] for number in bases] + [call.case.sms for call in calls]
    return {"name": kind.name, "version": peer.version, "cases": [
        figures.figures_of(call.case, *of_call, plan.devices, links) for call, *of_call in
        zip([*bases.values(), *calls], times, rows, sms, strict=True)]}


def _bases(kind, plan, session):
    """Number -> our call of the first policy, for each that the peer has too; one for all numbers
    of SMs where the peer chooses its own."""
    found = {}
    for number, call in enumerate(session.calls):
        case = call.case
        key = dataclasses.astuple(dataclasses.replace(
            case, tuning=(), sms=case.sms if kind.takes_sms else None))
        if case.what in kind.whats and case.policy == plan.cases[0].policy:
            found.setdefault(key, number)
    return {number: session.calls[number] for number in found.values()}


def attempt(comm, step):
    """(what `step()` returned, None), or (None, why not) where it failed on any rank."""
    result = failure = None
    try:
        result = step()
    except Exception as error:
        failure = str(error) if type(error) is DeepEPError else f"{type(error).__name__}: {error}"
    failures = [text for text in comm.allgather(failure) if text]
    return (None, failures[0]) if failures else (result, None)


class PeerCall:
    """Like `calls.Call`: calling it queues a peer's call for `case`.

    right: whether its dispatch gave the rows that ours gives.
    """

    timed = ("call",)

    def __init__(self, case, run, right):
        self.case = case
        self.right = right
        self._run = run

    def __call__(self):
        return self._run()


class Nccl:
    """all_to_all_single of the rows that dispatch sends, gathered by destination beforehand; fp8
    rows with their scales behind them, as bytes."""

    name = "nccl"
    whats = ("cached",)
    takes_sms = False

    def __init__(self, torch, ranks, cases):
        if not torch.distributed.is_nccl_available():
            raise DeepEPError("this torch.distributed has no nccl")
        self.torch = torch
        self.version = ".".join(map(str, torch.cuda.nccl.version()))
        self.group = torch.distributed.new_group(backend="nccl")

    def call(self, base, rows, rank):
        """The `PeerCall` on the inputs of `base`, a `calls.Call`; rows: int [R, R]."""
        torch, in_rank = self.torch, base.placed.layout["is_token_in_rank"]
        tokens = torch.cat([in_rank[:, to].nonzero().flatten() for to in range(len(rows))])
        sent = self._packed(base.arrays.xs[base.case.dtype]).index_select(0, tokens)
        to, origin = rows[rank].tolist(), rows[:, rank].tolist()
        received = sent.new_empty(sum(origin), sent.shape[1])

        def run():
            torch.distributed.all_to_all_single(received, sent, origin, to, group=self.group)
            return received

        return PeerCall(dataclasses.replace(base.case, policy=self.name, sms=None, tuning={}), run,
                        _equal(torch, run(), self._packed(_our_rows(base))))

    def _packed(self, x):
        """Rows as one tensor."""
        if not isinstance(x, tuple):
            return x
        return self.torch.cat([part.contiguous().view(self.torch.uint8) for part in x], dim=1)


def deep_ep():
    """(the module, its version).

    Raises:
        DeepEPError: it is not there, or it is our own.
    """
    if importlib.util.find_spec("deep_ep") is None:
        raise DeepEPError("the module deep_ep is not installed")
    module = importlib.import_module("deep_ep")
    version = getattr(module, "__version__", "of unknown version")
    if version.endswith("+ptx"):
        raise DeepEPError("the module deep_ep that is installed is ours, of compat/")
    return module, version


class DeepEP:
    """DeepEP's `Buffer`, of its first API, with the numbers of SMs of our cases, made even."""

    name = "deep_ep"
    whats = ("layout", "dispatch-wait", "cached", "combine-push")
    takes_sms = True

    def __init__(self, torch, ranks, cases):
        self.torch = torch
        self.module, self.version = deep_ep()
        self.default_sms = self.module.Buffer.num_sms
        hidden_bytes = max(case.hidden for case in cases) * 2
        num_bytes = 0
        for case in cases:
            self.module.Buffer.set_num_sms(self._num_sms(case))
            for config in (self.module.Buffer.get_dispatch_config(ranks),
                           self.module.Buffer.get_combine_config(ranks)):
                num_bytes = max(num_bytes, config.get_nvl_buffer_size_hint(hidden_bytes, ranks))
        self.buffer = self.module.Buffer(torch.distributed.group.WORLD, num_bytes, 0)

    def call(self, base, rows, rank):
        """The `PeerCall` on the inputs of `base`, a `calls.Call`."""
        case, arrays, buffer = base.case, base.arrays, self.buffer
        num_sms = self._num_sms(case)
        self.module.Buffer.set_num_sms(num_sms)
        per_rank, per_node, per_expert, in_rank, _ = buffer.get_dispatch_layout(
            arrays.topk_idx, case.experts)
        layout = {"num_tokens_per_rank": per_rank, "num_tokens_per_rdma_rank": per_node,
                  "num_tokens_per_expert": per_expert, "is_token_in_rank": in_rank,
                  "topk_idx": arrays.topk_idx, "topk_weights": arrays.topk_weights}
        recv_x, _, recv_weights, _, handle, _ = buffer.dispatch(arrays.xs["bf16"], **layout)
        right = _equal(self.torch, recv_x, _our_rows(base, "bf16"))
        x = arrays.xs[case.dtype]
        run = {
            "layout": lambda: buffer.get_dispatch_layout(arrays.topk_idx, case.experts),
            "dispatch-wait": lambda: buffer.dispatch(x, **layout),
            "cached": lambda: buffer.dispatch(x, handle=handle),
            "combine-push": lambda: buffer.combine(arrays.y, handle, topk_weights=recv_weights),
        }[case.what]

        def with_sms():
            self.module.Buffer.set_num_sms(num_sms)
            return run()

        return PeerCall(dataclasses.replace(case, policy=self.name, sms=num_sms, tuning={}),
                        with_sms, right)

    def _num_sms(self, case):
        sms = self.default_sms if case.sms is None else case.sms
        return sms + sms % 2


def _our_rows(base, dtype=None):
    """What our dispatch makes of the inputs of `base`."""
    rows = base.arrays.xs[dtype or base.case.dtype]
    return base.buffer.dispatch(rows, **base.placed.layout)[0]


def _equal(torch, rows, ours):
    return rows.shape == ours.shape and torch.equal(rows.view(torch.uint8), ours.view(torch.uint8))


PEERS = (Nccl, DeepEP)
