# SPDX-License-Identifier: MIT
"""Correctness of all cases, then interleaved rounds of them, on every rank.

    outcome = measure(comm, cases, rounds=20)       # on every rank of comm, with the same arguments
    outcome.times[0].of("kernel")                   # microseconds per round, of the slower rank
"""

import contextlib
import dataclasses
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from deepep_ptx import Buffer
from deepep_ptx.cli.bench import calls
from deepep_ptx.cli.measure.align import aligner
from deepep_ptx.cli.measure.bits import first_wrong
from deepep_ptx.cli.measure.garbage import collected
from deepep_ptx.cli.measure.inputs import Job
from deepep_ptx.cli.measure.machine import machine_of
from deepep_ptx.cli.measure.statistics import interleaved
from deepep_ptx.comm import RankComm
from deepep_ptx.errors import DeepEPError

TIMEOUT_S = 10.0
WARMUP = 3


@dataclass(frozen=True, eq=False)
class Times:
    """Of one case; what was not measured is in neither.

    us: name -> microseconds [rounds, ranks].  "kernel": sum of the call's launches; "call":
    between events around the call on the caller's stream; "host": how long the call kept the host.
    Each is of calls of its own.
    late: "kernel", "call" -> bool [rounds, ranks], see `measure.machine.Timing`.
    """

    us: dict
    late: dict

    def of(self, name):
        """Microseconds [rounds]: a call lasts as long as on its slowest rank."""
        return self.us[name].max(axis=1)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Lists in the order of the cases, the same on all ranks.

    wrong: `Wrong` of cases and ranks; if there are any, times and counts are None.
    times: `Times`; None on the CPU executor.
    counts: per case and rank, counter -> what the call added to it; None on GPUs.
    launched: symbols of a case's kernels.  rows: int [R, R], see `measure.inputs.Job`.
    sms: CTAs that a case's call was given.
    """

    wrong: list
    times: list | None
    counts: list | None
    launched: list
    rows: list
    sms: list


def measure(comm, cases, *, rounds, warmup=WARMUP, host_rounds=0, seed=0, progress=None,
            timeout_s=TIMEOUT_S, torch=None):
    """The `Outcome` of `cases`.  Collective: every rank gives the same arguments.

    Every case's results are compared with the reference before anything is timed.  On the CPU
    executor nothing is: each case is counted once.

    Args:
        comm: what `run_ranks` gives to a rank, or `as_comm` of another group.
        cases: `Case` objects.
        rounds, warmup: rounds that count and rounds before them; each runs all cases twice, for
            the times of their kernels and of the whole calls, in an order of its own.
        host_rounds: further rounds for the time that a call keeps the host.
        seed: of data and order.
        progress: called after every call that is made, on rank 0 only.
        timeout_s: limit of each wait for another rank.
        torch: the module, if arrays shall be its tensors (one process per GPU only).

    Raises:
        ValueError: what a buffer refuses.
        DeepEPError: a call failed, or a result found no room in the arena.
    """
    with Session(comm, cases, seed=seed, progress=progress, timeout_s=timeout_s,
                 torch=torch) as session:
        session.check()
        times = None
        if session.machine.times and not session.wrong:
            times = session.rounds(session.calls, rounds, warmup, host_rounds)
        return session.outcome(times)


def num_calls(num_cases, rounds, warmup=WARMUP, host_rounds=0):
    """How often `measure` calls `progress` on GPUs."""
    return num_cases * (1 + len(calls.Call.timed) * (warmup + rounds) + host_rounds)


class Session:
    """One rank's buffers and calls for `cases`, in a `with` statement; see `measure`.

    After `check()`: calls, of the cases in their order; rows and sms, likewise, see `Outcome`;
    wrong, of all ranks.
    machine, aligner: of the rank.
    """

    def __init__(self, comm, cases, *, seed=0, progress=None, timeout_s=TIMEOUT_S, torch=None):
        self.comm = comm
        self.cases = list(cases)
        self.seed = seed
        self.timeout_s = timeout_s
        self.machine = machine_of(comm.executor, torch)
        self.calls = [None] * len(self.cases)
        self.wrong = []
        self._progress = progress if comm.rank == 0 else None
        self._default_sms = Buffer.num_sms
        self._counts = [None] * len(self.cases)
        self._launched = [None] * len(self.cases)
        self.sms = [None] * len(self.cases)
        self.rows = [None] * len(self.cases)
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(collected())
            self.aligner = stack.enter_context(aligner(self.comm, self.machine, self.timeout_s))
            self._buffers = {key: stack.enter_context(self._buffer(of_buffer))
                             for key, of_buffer in self._by_buffer().items()}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info):
        # Views die before their arena.
        self.calls = None
        Buffer.num_sms = self._default_sms
        return self._stack.__exit__(*exc_info)

    def check(self):
        """Call every case once and compare its results; what is wrong on any rank is in `wrong`
        then.  A case whose handle is of a dispatch that is wrong is not called, and wrong."""
        mine = []
        for shape, numbers in self._by_shape().items():
            job = self._job(shape, [self.cases[number] for number in numbers])
            arrays = calls.Arrays(job, self.comm.rank, self.machine)
            placed, wrong = {}, {}
            for number in numbers:
                case = self.cases[number]
                key = _buffer_key(case)
                if key not in placed:
                    with_handle = any(_buffer_key(self.cases[n]) == key
                                      and self.cases[n].what in calls.HANDLE_WHATS
                                      for n in numbers)
                    self.begin(case)
                    placed[key] = calls.Placed(self.machine, self._buffers[key], arrays,
                                               case.experts, with_handle)
                    wrong[key] = self._wrong_handle(placed[key], job)
                    placed[key].give_back(self.machine, arrays)
                if wrong[key] is not None and case.what in calls.HANDLE_WHATS:
                    mine += [dataclasses.replace(one, name=str(case)) for one in wrong[key]]
                    self._step()
                    continue
                self.calls[number] = calls.Call(case, self.machine, self._buffers[key], arrays,
                                                placed[key], shape.worst_rows)
                mine += self._checked(number, calls.wanted(case, job, self.comm.rank))
                self.rows[number] = job.rows
        copied = sum(buffer.stats()["copied_bytes"] for buffer in self._buffers.values())
        everybody = self.comm.allgather((mine, copied))
        self.wrong = [wrong for of_rank, _ in everybody for wrong in of_rank]
        copied = max(copied for _, copied in everybody)
        if copied:
            raise DeepEPError(f"bench: {copied} bytes of results found no room in the arena and "
                              "were copied, which would be in the times")

    def rounds(self, contenders, rounds, warmup=WARMUP, host_rounds=0, timed=calls.Call.timed):
        """`Times` of `contenders`, which are like `calls.Call`, in their order; collective.

        timed: which of "kernel" and "call" to measure, where a contender has it.
        """
        entries = [(index, name) for index, contender in enumerate(contenders)
                   for name in contender.timed if name in timed]
        us = np.empty((len(entries), rounds))
        late, host = np.empty(us.shape, bool), np.empty((len(contenders), host_rounds))
        for number, row in enumerate(interleaved(len(entries), warmup + rounds, self.seed)):
            for entry in row:
                index, name = entries[entry]
                self.begin(contenders[index].case)
                timing = self._measured(contenders[index], name)[1]     # the results are gone
                if number >= warmup:
                    at = entry, number - warmup
                    us[at], late[at] = timing.us, timing.late
        for number, row in enumerate(interleaved(len(contenders), host_rounds, self.seed)):
            for index in row:
                self.begin(contenders[index].case)
                host[index, number] = self.machine.host_us(contenders[index])[1]
                self._step()
        us, late, host = (np.stack(of_ranks, axis=-1) for of_ranks in
                          zip(*self.comm.allgather((us, late, host)), strict=True))
        found = [Times({}, {}) for _ in contenders]
        for entry, (index, name) in enumerate(entries):
            found[index].us[name], found[index].late[name] = us[entry], late[entry]
        if host_rounds:
            for times, of_host in zip(found, host, strict=True):
                times.us["host"] = of_host
        return found

    def outcome(self, times):
        """The `Outcome` with `times`."""
        counts = None
        if not self.machine.times and not self.wrong:
            counts = [list(ranks) for ranks in zip(*self.comm.allgather(self._counts),
                                                   strict=True)]
        return Outcome(self.wrong, times, counts, self._launched, self.rows,
                       self.sms)

    def begin(self, case):
        """Before every call: ranks are together, and the case's SMs are set."""
        # Ranks that are threads share the number of SMs: all of them are here, and in no call.
        self.comm.barrier()
        Buffer.num_sms = self._default_sms if case.sms is None else case.sms

    def _measured(self, call, name="kernel"):
        measure = self.machine.measure_whole if name == "call" else self.machine.measure
        measured = measure(self.aligner, call)
        self._step()
        return measured

    def _step(self):
        if self._progress:
            self._progress()

    def _checked(self, number, wanted):
        """[] or [Wrong] of a case's call."""
        self.begin(self.cases[number])
        call = self.calls[number]
        got, measured = self._measured(call)
        self._counts[number] = measured
        self._launched[number] = list(call.buffer.last_launch)
        self.sms[number] = call.buffer.last_num_sms
        wrong = first_wrong(str(call.case), self.comm.rank, got, wanted, self.machine)
        for name in wanted:
            self.machine.spoil(got[name])
        return [wrong] if wrong else []

    def _wrong_handle(self, placed, job):
        """None where the dispatch of `placed` is right on all ranks, else what is wrong on this
        one: [] or [Wrong]."""
        mine = []
        if placed.received:
            one = first_wrong("", self.comm.rank, placed.received,
                              job.of_dispatch(self.comm.rank, worst=False), self.machine)
            if one:
                mine = [dataclasses.replace(one, array=f"{one.array} of the dispatch before it")]
        return mine if any(self.comm.allgather(mine != [])) else None

    def _job(self, shape, cases):
        dtypes = sorted({case.dtype for case in cases})
        combine = any(case.what.startswith("combine") for case in cases)

        def make():
            return Job(shape, self.seed, dtypes=dtypes, combine=combine)

        if isinstance(self.comm, RankComm):     # threads: one makes it for all
            return self.comm.allgather(make() if self.comm.rank == 0 else None)[0]
        return make()

    def _buffer(self, cases):
        # Views, of whatever library: what its own tensors cost is not what is measured.
        return Buffer(self.comm, policy=cases[0].policy, timeout_s=self.timeout_s,
                      arena_limit_bytes=calls.arena_bytes(cases, self.comm.size),
                      **({"zero_copy": True} | cases[0].tuning))

    def _by_buffer(self):
        found = defaultdict(list)
        for case in self.cases:
            found[_buffer_key(case)].append(case)
        return found

    def _by_shape(self):
        found = defaultdict(list)
        for number, case in enumerate(self.cases):
            found[case.shape(self.comm.size)].append(number)
        return found


def _buffer_key(case):
    return case.policy, tuple(sorted(case.tuning.items()))
