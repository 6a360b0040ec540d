# SPDX-License-Identifier: MIT
"""Runs a plan: every contender's results against the reference, then rounds of all of them."""

import contextlib
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from deepep_ptx import Buffer, run_ranks
from deepep_ptx.cli.check import brief
from deepep_ptx.cli.measure.align import aligner
from deepep_ptx.cli.measure.bits import first_wrong
from deepep_ptx.cli.measure.garbage import collected
from deepep_ptx.cli.measure.machine import machine_of
from deepep_ptx.emu.coverage import not_executed
from deepep_ptx.errors import DeepEPError


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run found.  wrong: `Wrong` of contenders and ranks; if there are any, nothing else.

    times: microseconds [contenders, rounds, ranks], None on the CPU executor.
    counts: per contender and rank, a dict; None on GPUs.
    launched: per contender, the symbols of the measured call.
    device_name: the kind of device.
    not_executed: per contender, of its kernel, see `emu.coverage`.
    """

    wrong: list
    times: np.ndarray | None
    counts: list | None
    launched: list
    device_name: str
    not_executed: list | None = None


def run(plan, job):
    """The `Outcome` of `plan` on the inputs `job`.

    Raises:
        RankError: a rank failed.
    """
    # A bar only on a terminal.
    with tqdm(total=plan.num_calls, unit="call", delay=1, leave=False, disable=None) as bar:
        results = run_ranks(_rank_main, plan.ranks, plan, job, plan.order(), bar,
                            executor=plan.executor, arch=plan.arch, seed=plan.seed,
                            devices=plan.devices)
    wrong, _, launched, device_name, missed = results[0]
    measured = [result[1] for result in results]
    timed = plan.executor == "cuda" and not wrong
    counted = plan.executor == "emu" and not wrong
    return Outcome(
        wrong=wrong,
        times=np.array(measured).transpose(1, 2, 0) if timed else None,
        counts=[list(ranks) for ranks in zip(*measured, strict=True)] if counted else None,
        launched=launched,
        device_name=device_name,
        not_executed=missed,
    )


def check(plan):
    """Per contender, what the race checker finds, as `check.brief.look` gives it."""
    with tqdm(plan.contenders, unit="variant", desc="check", delay=1, leave=False,
              disable=None) as bar:
        return [brief.look(plan.use, contender.symbol, plan.arch) for contender in bar]


def _rank_main(comm, plan, job, order, bar):
    """(all ranks' wrong arrays, what was measured per contender, launched symbols, device, and on
    rank 0 lines not executed)."""
    machine = machine_of(comm.executor)
    with contextlib.ExitStack() as stack:
        stack.enter_context(collected())
        align = stack.enter_context(aligner(comm, machine, plan.timeout_s))
        arrays = Arrays.of(job, comm.rank, machine)
        buffers = [stack.enter_context(Buffer(
            comm, arena_limit_bytes=plan.arena_bytes, policy=contender.symbol,
            timeout_s=plan.timeout_s, tuning=False)) for contender in plan.contenders]
        calls = [Calls(comm, plan, machine, align, contender, buffer, arrays)
                 for contender, buffer in zip(plan.contenders, buffers, strict=True)]
        checked = [_checked(comm, job, call, bar) for call in calls]
        wrong = _all_wrong(comm, checked)
        measured = [counts for _, counts in checked]
        if plan.rounds and not wrong:
            measured = _rounds(comm, plan, calls, order, bar)
            # Once more: a load may go wrong only in a certain order of calls.
            wrong = _all_wrong(comm, [_checked(comm, job, call, bar) for call in calls])
        launched = [call.buffer.last_launch for call in calls]
        comm.barrier()
        missed = None
        if comm.rank == 0:
            missed = [not_executed(comm.executor, contender.symbol)
                      for contender in plan.contenders]
    return wrong, measured, launched, comm.executor.device_name, missed


def _rounds(comm, plan, calls, order, bar):
    """Per contender, its times in round order; each round's order is that of `order`."""
    times = [[] for _ in calls]
    for number, contenders in enumerate(order):
        for contender in contenders:
            _, time = calls[contender].measured()
            if number >= plan.warmup:
                times[contender].append(time)
            if comm.rank == 0:
                bar.update()
    return times


def _checked(comm, job, call, bar):
    """(the first wrong array or None, what was measured) of one call of all ranks."""
    if comm.rank == 0:
        bar.update()
    if call.plan.kernel == "dispatch":
        got, measured = call.measured()
        wanted = job.of_dispatch(comm.rank)
    else:
        # What it combines comes first: of rows that are wrong it would get the blame.
        received = call.dispatch()
        wrong = first_wrong(call.contender.name, comm.rank, received, job.of_dispatch(comm.rank),
                            call.machine)
        if any(comm.allgather(wrong is not None)):
            return wrong and replace(wrong, array=f"{wrong.array} of the dispatch before it"), None
        got, measured = call.measured(received)
        wanted = job.of_combine(comm.rank)
    wrong = first_wrong(call.contender.name, comm.rank, got, wanted, call.machine)
    for name in wanted:
        call.machine.spoil(got[name])
    return wrong, measured


def _all_wrong(comm, checked):
    mine = [wrong for wrong, _ in checked if wrong]
    return [wrong for of_rank in comm.allgather(mine) for wrong in of_rank]


@dataclass(frozen=True, eq=False)
class Arrays:
    """One rank's inputs where its kernels reach them; y is None without a combine."""

    x: object
    topk_idx: object
    topk_weights: object
    y: object

    @classmethod
    def of(cls, job, rank, machine):
        """Those of `rank`."""
        return cls(*(machine.give(of_ranks[rank]) if of_ranks else None
                     for of_ranks in (job.xs["bf16"], job.topk_idxs, job.topk_weights, job.ys)))


class Calls:
    """The calls of one rank with one contender."""

    def __init__(self, comm, plan, machine, align, contender, buffer, arrays):
        self.comm = comm
        self.plan = plan
        self.machine = machine
        self.align = align
        self.contender = contender
        self.buffer = buffer
        self.arrays = arrays
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(
            arrays.topk_idx, plan.experts, stream=machine.stream)
        self.layout = {"num_tokens_per_rank": per_rank, "num_tokens_per_expert": per_expert,
                       "is_token_in_rank": in_rank}

    def measured(self, received=None):
        """(name -> array of the call of the kernel, what the machine measured of it).

        Nothing is in the caches before it, and all ranks start it together.
        received: of `dispatch`, for a combine; None: it is called.
        """
        call = self.dispatch
        if self.plan.kernel != "dispatch":
            self.comm.barrier()
            call = self.combine_of(received or self.dispatch())
        self.comm.barrier()
        result, measured = self.machine.measure(self.align, call)
        return result, self._of_kernel(measured) if self.machine.times else measured

    def _of_kernel(self, timing):
        """Microseconds of the contender's kernel."""
        symbol = self.contender.symbol
        times = [time for launched, time in timing.launches if launched == symbol]
        if len(times) != 1:
            raise DeepEPError(f"{symbol}: launched {len(times)} times in a call that has it once: "
                              f"{', '.join(launched for launched, _ in timing.launches)}")
        return times[0]

    def dispatch(self):
        """Worst-case mode: nobody waits for the totals, the kernel is all that is measured."""
        recv_x, recv_idx, recv_weights, _, handle, _ = self.buffer.dispatch(
            self.arrays.x, topk_idx=self.arrays.topk_idx, topk_weights=self.arrays.topk_weights,
            num_worst_tokens=self.plan.shape.worst_rows, num_sms=self.plan.sms,
            stream=self.machine.stream, **self.layout)
        return {"recv_x": recv_x, "recv_topk_idx": recv_idx, "recv_topk_weights": recv_weights,
                "recv_src_idx": handle.recv_src_idx, "rank_prefix_matrix": handle[0],
                "handle": handle}

    def combine_of(self, received):
        """A function that combines the experts' rows: in place of what was received, or pushed."""
        y = self.arrays.y
        if self.plan.combine == "pull":
            self.machine.store(received["recv_x"], y)
            y = received["recv_x"]

        def combine():
            x, weights, _ = self.buffer.combine(y, received["handle"], num_sms=self.plan.sms,
                                                stream=self.machine.stream,
                                                topk_weights=received["recv_topk_weights"])
            return {"combined_x": x, "combined_topk_weights": weights}

        return combine
