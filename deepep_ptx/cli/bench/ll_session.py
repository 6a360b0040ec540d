# SPDX-License-Identifier: MIT
"""Low-latency calls of one rank: right bits first, then graphs of them and single calls, in
interleaved rounds."""

import contextlib
import dataclasses

from deepep_ptx import Buffer
from deepep_ptx.cli.bench import rounds
from deepep_ptx.cli.bench.ll_case import WHATS, named
from deepep_ptx.cli.measure.align import LowLatencyAligner
from deepep_ptx.cli.measure.garbage import collected
from deepep_ptx.comm import RankComm

PER_GRAPH = 10      # calls, or pairs of them


class Arrays:
    """One rank's inputs of a `Job`, where its kernels reach them."""

    def __init__(self, job, rank, machine):
        self.x = machine.give(job.xs[rank])
        self.topk_idx = machine.give(job.topk_idxs[rank])
        self.topk_weights = machine.give(job.topk_weights[rank])
        self.y = machine.give(job.y(rank))


class Calls:
    """A case's calls on one rank, of any buffer with DeepEP's low-latency methods.

    arrays: of the rank.  max_tokens: as the dispatch takes it.  options: further keywords of both
    calls.
    handle: of a dispatch that stays, for `combine`; to be set.
    """

    def __init__(self, case, buffer, arrays, max_tokens, **options):
        self.case = case
        self.buffer = buffer
        self.arrays = arrays
        self.max_tokens = max_tokens
        self.options = options
        self.handle = None

    def dispatch(self):
        """(name -> array, handle)."""
        recv_x, recv_count, handle, _, _ = self.buffer.low_latency_dispatch(
            self.arrays.x, self.arrays.topk_idx, self.max_tokens, self.case.experts,
            use_fp8=self.case.dtype == "fp8", **self.options)
        return named(recv_x, recv_count, handle), handle

    def combine(self, handle=None):
        """combined_x, with `self.handle` where none is given."""
        arrays = self.arrays
        return self.buffer.low_latency_combine(arrays.y, arrays.topk_idx, arrays.topk_weights,
                                               handle or self.handle, **self.options)[0]

    def pair(self):
        """combined_x, of a dispatch of its own."""
        _, handle = self.dispatch()     # only what combine needs stays
        return self.combine(handle)


class Contender:
    """What rounds measure: calling it queues a call, or a graph of `PER_GRAPH`.

    It returns what the call returns; a graph, what its last call does, or None.
    what: of `WHATS`.  is_compared: whether there is something to compare that with.
    """

    timed = ("call",)

    def __init__(self, case, what, run, is_compared=False):
        self.case = case
        self.what = what
        self.is_compared = is_compared
        self._run = run

    def __call__(self):
        return self._run()


class Session(rounds.Session):
    """One rank's buffer and calls for cases of one `reduce`, in a `with` statement.

    jobs: tokens -> `Job`.
    After `check()`: calls, `Calls` of the cases in their order; launched, sms and counts, for each
    a dict of "dispatch" and "combine": symbols, CTAs, and on the CPU executor counts of this rank;
    wrong, of all ranks.
    """

    def __init__(self, comm, cases, jobs, **options):
        super().__init__(comm, cases, **options)
        self._jobs = jobs
        self.launched, self.sms, self.counts = ([{} for _ in self.cases] for _ in range(3))

    def __enter__(self):
        case = self.cases[0]
        num_bytes = max(one.memory(self.comm.size) for one in self.cases)
        with contextlib.ExitStack() as stack:
            stack.enter_context(collected())
            self.buffer = stack.enter_context(Buffer(
                self.comm, low_latency_mode=True, num_rdma_bytes=num_bytes, reduce=case.reduce,
                timeout_s=self.timeout_s))
            self.aligner = self.comm.barrier
            if self.machine.times:
                self.aligner = LowLatencyAligner(self.comm, self.machine, self.buffer)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, exc_type, exc, traceback):
        # Graphs and arrays die before their buffer, and while no kernel runs that would hold up
        # what frees them.
        self.calls = self.aligner = None
        if exc_type is None:
            self.machine.synchronize()
            self.comm.barrier()
        return super().__exit__(exc_type, exc, traceback)

    @property
    def low_latency_bytes(self):
        """Of the buffer's memory on each rank."""
        return self.buffer._core.low_latency_bytes

    def check(self):
        """Make both calls of every case once and compare their results, where the job has the
        reference's.  A combine of a dispatch that is wrong on any rank is not called."""
        arrays = {tokens: Arrays(self._jobs[tokens], self.comm.rank, self.machine)
                  for tokens in dict.fromkeys(case.tokens for case in self.cases)}
        mine = []
        for number, case in enumerate(self.cases):
            made = self.calls[number] = Calls(case, self.buffer, arrays[case.tokens], case.tokens,
                                              num_sms=case.sms, stream=self.machine.stream)
            result = self._first(number, "dispatch", made.dispatch)
            wrong = self.compared(case, "dispatch", result)
            mine += wrong
            if any(self.comm.allgather(wrong != [])):
                continue
            made.handle = result[1]
            mine += self.compared(case, "combine", self._first(number, "combine", made.combine))
        self.wrong = [wrong for of_rank in self.comm.allgather(mine) for wrong in of_rank]

    def compared(self, case, what, result):
        """[] or [Wrong] of what a call has returned, which is spoiled then."""
        job = self._jobs[case.tokens]
        if not job.compared:
            return []
        if what == "dispatch":
            got, _ = result
            wrong = job.wrong_dispatch(case, self.comm.rank, got, self.machine.get)
            spoiled = [array for name, array in got.items() if name.startswith("recv")]
        else:
            wrong = job.wrong_combine(case, self.comm.rank, result, self.machine.get)
            spoiled = [result]
        for array in spoiled:
            self.machine.spoil(array)
        return [wrong] if wrong else []

    def graphs(self, all_calls, compared=True):
        """`Contender`s of graphs: for each of `all_calls` one of each of `WHATS`; collective.

        compared: whether ours, whose results are compared after a first replay: what is wrong on
        any rank is in `wrong` then.
        """
        found = []
        # Of ranks that are threads one after the other: a capture waits for the GPU that they may
        # share, and takes no other one beside it.
        turns = self.comm.size if isinstance(self.comm, RankComm) else 1
        for turn in range(turns):
            if turn == self.comm.rank % turns:
                found = [self._graph(made, what, compared and self._jobs[made.case.tokens].compared)
                         for made in all_calls for what in WHATS]
            self.comm.barrier()
        mine = []
        for one in found:
            if one.is_compared:
                self.begin(one.case)
                result = one()
                self.machine.synchronize()
                mine += [dataclasses.replace(wrong, name=f"{wrong.name}, graph of {one.what}")
                         for wrong in self.compared(one.case, one.what, result)]
        self.wrong += [wrong for of_rank in self.comm.allgather(mine) for wrong in of_rank]
        return found

    def eager(self, all_calls):
        """`Contender`s of single calls, likewise; there is memory for their results."""
        self.machine.reserve(max(made.case.result_bytes(self.comm.size) *
                                 made.max_tokens // made.case.tokens for made in all_calls))
        return [Contender(made.case, what, getattr(made, what))
                for made in all_calls for what in WHATS]

    def times(self, all_calls, graphs, warmup, num_rounds, host_rounds):
        """For each of `all_calls` and each of `WHATS` (`Times` of its graph in `graphs`, of the
        single call, which have the host's time too); collective."""
        eager = self.eager(all_calls)
        found = self.rounds([*graphs, *eager], num_rounds, warmup)
        hosts = self.rounds(eager, 0, 0, host_rounds, timed=())
        for times, of_host in zip(found[len(graphs):], hosts, strict=True):
            times.us["host"] = of_host.us["host"]
        return list(zip(found[:len(graphs)], found[len(graphs):], strict=True))

    def _first(self, number, what, call):
        """The result of a case's first call."""
        case = self.cases[number]
        self.machine.reserve(case.result_bytes(self.comm.size))
        self.begin(case)
        result, measured = self._measured(call)
        self.launched[number][what] = list(self.buffer.last_launch)
        self.sms[number][what] = self.buffer.last_num_sms
        if not self.machine.times:
            self.counts[number][what] = measured
        return result

    def _graph(self, made, what, compared):
        run = getattr(made, what)

        def work():
            for _ in range(PER_GRAPH):
                result = None       # its memory is the next one's
                result = run()
            return result if compared else None

        return Contender(made.case, what, self.machine.captured(work), compared)


def num_steps(num_cases, num_rounds, warmup, host_rounds):
    """How often a session moves the bar on GPUs, or, without rounds, on the CPU executor."""
    return num_cases * (2 + len(WHATS) * (2 * (warmup + num_rounds if num_rounds else 0)
                                          + host_rounds))
