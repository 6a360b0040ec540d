# SPDX-License-Identifier: MIT
"""What every rank does: dispatch, experts, combine."""

import time
from dataclasses import dataclass, field

import numpy as np

from deepep_ptx import Buffer
from deepep_ptx.cli.demo import times
from deepep_ptx.cli.demo.low_latency import LowLatencyCalls
from deepep_ptx.cli.demo.normal import NormalCalls
from deepep_ptx.cli.demo.traffic import Traffic
from deepep_ptx.cli.demo.verdict import mismatches
from deepep_ptx.emu.coverage import not_executed

CALLS = {"normal": NormalCalls, "ll": LowLatencyCalls}      # mode -> calls of a rank
PHASES = ("dispatch", "experts", "combine")


@dataclass(frozen=True, eq=False)
class RankOutput:
    """What one rank got from the buffer, copied out of the arena, and what it cost.

    seconds, instructions: of the phases that were run; of `PHASES` "dispatch" has the layout.
    """

    arrays: dict
    num_tokens: int        # of its own
    traffic: Traffic
    seconds: dict          # phase -> (start, end), time.perf_counter
    counters: dict         # empty on GPUs
    symbols: tuple
    executor: str
    arch: str
    virtual_ns: int | None # None on GPUs
    not_executed: list | None      # lines, of the whole run, on rank 0; see `emu.coverage`
    instructions: dict = field(default_factory=dict)    # phase -> warp instructions; {} on GPUs
    rounds_us: dict = field(default_factory=dict)       # phase -> microseconds, see `times`


def rank_main(comm, job, wanted, bar, timed_rounds):
    """Run one rank of `run_ranks`; returns its `RankOutput`.  `bar` moves once for each phase.

    wanted: each rank's arrays by the reference.  Where those of dispatch are wrong on any rank,
    nothing goes on with them: `arrays` are those of dispatch alone then.
    timed_rounds: how often dispatch and combine are timed on GPUs, behind the rest.
    """
    settings, executor = job.settings, comm.executor
    calls_of = CALLS[settings.mode]
    seconds, instructions = {}, {}

    def timed(phase, work, *args):
        comm.barrier()
        before = executor.counters()
        started = time.perf_counter()
        result = work(*args)
        seconds[phase] = (started, time.perf_counter())
        if before:
            instructions[phase] = (executor.counters()["warp_instructions"]
                                   - before["warp_instructions"])
        bar.update()
        return result

    with Buffer(comm, policy=settings.policy, **calls_of.buffer_options(job)) as buffer:
        calls = calls_of(comm, buffer, job, HostArrays())
        received = timed("dispatch", calls.dispatch)
        symbols, arrays = received.symbols, calls.arrays(received)
        traffic, rounds_us = calls.traffic(received, arrays), {}

        def output():
            return RankOutput(
                arrays=arrays,
                num_tokens=len(job.topk_idxs[comm.rank]),
                traffic=traffic,
                seconds=seconds,
                counters=executor.counters(),
                symbols=symbols,
                executor=executor.name,
                arch=executor.arch,
                virtual_ns=executor.now,
                not_executed=not_executed(executor) if comm.rank == 0 else None,
                instructions=instructions,
                rounds_us=rounds_us,
            )

        if any(comm.allgather(mismatches(comm.rank, arrays, wanted[comm.rank]) != [])):
            return output()

        def experts():
            y = calls.experts(received)
            return y, calls.placed(received, y)

        y, placed = timed("experts", experts)
        combined = timed("combine", calls.combine, received, placed)
        arrays |= {name: np.array(array) for name, array in combined.items()}
        symbols += buffer.last_launch
        if timed_rounds and executor.keeps_time:
            rounds_us = times.measured(comm, buffer, job, calls_of, y, timed_rounds)
        return output()


class HostArrays:
    """NumPy's arrays as they are, for calls on the default stream."""

    stream = None

    @staticmethod
    def give(array):
        """The array itself."""
        return array

    @staticmethod
    def store(array, rows):
        """Copy `rows` over the first of `array`."""
        array[:len(rows)] = rows
