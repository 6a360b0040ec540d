# SPDX-License-Identifier: MIT
"""Ranks as threads of this process."""

import contextlib
import math
import os
import signal
import threading
import time

from deepep_ptx._cuda import device_count
from deepep_ptx._emu import MAX_RANKS, World
from deepep_ptx._emu_executor import EmuExecutor
from deepep_ptx.checks import as_int, check_choice
from deepep_ptx.comm import RankComm
from deepep_ptx.cuda_ranks import CudaWorld
from deepep_ptx.errors import Aborted, KernelFault, RaceError, RankError

ARCHS = ("sm_80", "sm_90")
EXECUTORS = (None, "emu", "cuda")

# Seconds between two looks at signals, and at exceptions set from outside, while ranks run.
_LOOK_S = 0.1
# Seconds that ranks have for their end once they were told to stop.
_GRACE_S = 5.0


def run_ranks(
    fn,
    num_ranks,
    *args,
    executor=None,
    seed=0,
    scheduler="rr",
    arch=None,
    timeout_s=None,
    devices=None,
    ranks_per_node=None,
    checks="all",
    check=None,
    memory="sc",
):
    """Run `fn(comm, *args)` on each of `num_ranks` ranks; returns their results in rank order.

    comm: a `RankComm` (rank, size, executor, allgather, barrier).
    num_ranks: in [1, 64].  executor: "emu", "cuda", or None: DEEPEP_PTX_EXECUTOR, else "cuda" where
    a GPU is usable, else "emu".  seed, scheduler: fix a run on the CPU executor.  arch: "sm_80" or
    "sm_90", the target whose kernels run; None = the best that runs.  timeout_s: limit of host
    waits that name none, in (virtual) seconds; None = no limit.  devices: one GPU per rank, several
    ranks may share one, None = in turn; on the CPU executor each rank has a virtual GPU of its own
    whatever it says.  ranks_per_node: ranks of one NVLink domain, a divisor of num_ranks; None =
    all of them.  checks: "all", or "off" to leave out the check for uninitialised reads.
    check, memory: as of `World`, for the CPU executor: "races" looks for accesses that nothing
    orders, memory="weak" lets loads see what nothing orders behind them late (docs/verifier.md).

    Threads.  Every rank is a thread.  On GPUs they run side by side.  On the CPU executor exactly
    one runs at a time: a rank runs until it waits, in
    `comm.allgather`, `comm.barrier` or for a stream or a word of host memory, then the next one in
    rank order that can go on.  `fn` needs no locks.  Kernels run while all ranks wait; virtual time
    passes only then, and jumps to the next time limit when nothing else can happen.
    A run is reproducible: same arguments and `fn`, same order, virtual times, counters and results.
    A rank that waits in any other way for another rank (a lock, a queue) waits until Ctrl-C.
    Runs may be nested: the outer one stands still meanwhile.

    Errors.  The first rank to fail raises `RankError` here, with what it raised as `__cause__`; a
    kernel's fault is charged to the kernel's rank.  The others get `Aborted` from their next call.
    Ranks that wait for each other, or for one that has returned, get a `DeepEPError` that names
    each rank and what it waits in (`DeepEPTimeoutError` where the wait has a limit).  All threads
    have ended when this returns.  Ctrl-C stops all ranks and raises `KeyboardInterrupt`; a thread
    that hears of nothing (it waits for a lock, say) is left behind after seconds, and named in a
    note of the exception.
    Races that `check` found are a `RaceError` when all ranks are through, or notes of the
    `RankError`.  Bad arguments are `ValueError` or `TypeError`; `DeepEPError` for an executor that
    is not there.
    """
    if not callable(fn):
        raise TypeError(f"fn: expected a function of (comm, *args), got {type(fn).__name__}")
    check_choice(executor, "executor", EXECUTORS)
    check_choice(arch, "arch", (None, *ARCHS))
    if executor is None:
        executor = os.environ.get("DEEPEP_PTX_EXECUTOR") or ("cuda" if device_count() else "emu")
        check_choice(executor, "DEEPEP_PTX_EXECUTOR", EXECUTORS[1:])
    # Also on GPUs: it checks the arguments that both take.
    world = World(num_ranks, scheduler=scheduler, checks=checks, seed=seed, timeout_s=timeout_s,
                  check=check, memory=memory)
    num_ranks = world.num_ranks
    devices = _checked_devices(devices, num_ranks)
    ranks_per_node = _checked_node(ranks_per_node, num_ranks)
    if executor == "cuda":
        if check is not None or memory != "sc":
            raise ValueError("check, memory: are for the CPU executor, this run is on GPUs")
        world = CudaWorld(num_ranks, devices=devices, arch=arch, timeout_s=timeout_s)
        executors = world.executors
    else:
        executors = [EmuExecutor(world, rank, arch or ARCHS[-1]) for rank in range(num_ranks)]
    comms = [RankComm(executor, num_ranks, ranks_per_node) for executor in executors]
    outcomes = [None] * num_ranks
    _run_threads(world, fn, comms, args, outcomes)
    races = world.races() if check is not None else []
    try:
        _raise_failure(world, outcomes)
    except RankError as error:
        for race in races:
            error.add_note(race.text)
        raise
    results = [result for result, _ in outcomes]
    if races:
        raise RaceError("\n".join(race.text for race in races), races=races, results=results)
    return results


class _RankThread(threading.Thread):
    """The thread of a rank; `ended` is set at its end.

    (A `join` that Ctrl-C interrupts takes one that runs for one that has ended, until Python 3.13.)
    """

    def __init__(self, rank, target, args):
        # A daemon, so that one that is left behind does not keep the process.
        super().__init__(target=target, args=args, name=f"rank {rank}", daemon=True)
        self.ended = threading.Event()

    def run(self):
        try:
            super().run()
        finally:
            self.ended.set()


def _run_threads(world, fn, comms, args, outcomes):
    """Fill `outcomes` with (result, error) by rank; every thread has ended on return."""
    threads = [
        _RankThread(comm.rank, world.run_rank, (comm.rank, fn, (comm, *args), outcomes))
        for comm in comms
    ]
    num_started = 0
    world.start_ranks()
    try:
        with _interrupts_held():
            for thread in threads:
                thread.start()
                num_started += 1
        _join(threads)
    except BaseException as error:
        world.stop_ranks()
        for rank in range(num_started, len(threads)):
            world.skip_rank(rank)
        left = _end(world, threads[:num_started])
        if left:
            error.add_note(f"did not stop within {_GRACE_S:g} s, and left behind: "
                           + ", ".join(left))
        raise


@contextlib.contextmanager
def _interrupts_held():
    """Ctrl-C waits until the end of the block: inside, a thread could start and not be counted."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is None:
        yield
        return
    held = []
    signal.signal(signal.SIGINT, lambda *args: held.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held and callable(handler):
        handler(*held[0])


def _join(threads, limit_s=math.inf):
    """Whether all have ended within `limit_s`."""
    end = time.monotonic() + limit_s
    for thread in threads:
        while not thread.ended.wait(_LOOK_S):
            if time.monotonic() > end:
                return False
        thread.join()
    return True


def _end(world, threads):
    """Wait for the end of ranks that were told to stop; names of those that do not hear it."""
    waited_for = list(threads)
    while not _join(waited_for, _GRACE_S):
        rank = world.pass_over()
        if rank is None:
            break
        waited_for.remove(threads[rank])
    return [thread.name for thread in threads if not thread.ended.is_set()]


def _raise_failure(world, outcomes):
    rank, fault = world.failure()
    if rank is None:
        return
    cause = outcomes[rank][1]
    if fault is not None and type(cause) is not type(fault):
        # What the rank made of the fault, if it still ran, is the context of the fault.
        fault.__context__ = cause
        cause = fault
    failure = RankError(f"rank {rank}: {type(cause).__name__}: {cause}", rank=rank)
    for other, (_, error) in enumerate(outcomes):
        if other != rank and error is not None and not isinstance(error, (Aborted, KernelFault)):
            failure.add_note(f"then rank {other}: {type(error).__name__}: {error}")
    try:
        raise failure from cause
    finally:
        del failure, cause, fault, error     # else the traceback and its frame keep each other


def _checked_devices(devices, num_ranks):
    if devices is None:
        return None
    try:
        numbers = [as_int(device, "devices") for device in devices]
    except TypeError:
        raise TypeError(
            f"devices: expected {num_ranks} device indices, one per rank, or None; got {devices!r}"
        ) from None
    if len(numbers) != num_ranks or min(numbers) < 0:
        raise ValueError(
            f"devices: must be {num_ranks} device indices >= 0, one per rank; got {numbers}"
        )
    return numbers


def _checked_node(ranks_per_node, num_ranks):
    if ranks_per_node is None:
        return num_ranks
    number = as_int(ranks_per_node, "ranks_per_node")
    if not 1 <= number <= num_ranks or num_ranks % number:
        raise ValueError(f"ranks_per_node: must divide num_ranks = {num_ranks}, got {number}")
    return number


__all__ = ["ARCHS", "EXECUTORS", "MAX_RANKS", "run_ranks"]
