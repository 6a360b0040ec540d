# SPDX-License-Identifier: MIT
"""Runs side by side, each in a process: the CPU executor takes one core."""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from deepep_ptx.errors import DeepEPError

# Below, a process costs more than it brings: to start one takes as long as some runs.
RUNS_OF_PROCESS = 24


def cores():
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def results(runs, jobs):
    """(run, its `Result`) of each of `runs`, in their order; jobs: processes at most.

    Raises:
        DeepEPError: a process ended.
    """
    # A bar only on a terminal.
    with tqdm(total=len(runs), unit="run", delay=1, leave=False, disable=None) as bar:
        found = []
        for run, result in zip(runs, _results(runs, min(jobs, len(runs) // RUNS_OF_PROCESS)),
                               strict=True):
            found.append((run, result))
            bar.update()
    return found


def _results(runs, jobs):
    if jobs < 2:
        yield from map(_result_of, runs)
        return
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _ignore_interrupts)
    try:
        yield from pool.map(_result_of, runs, chunksize=4)
    except BrokenProcessPool as error:
        raise DeepEPError("a process that ran kernels has ended; out of memory? --jobs 1 takes "
                          "least") from error
    except BaseException:
        # What runs may never end.
        for process in list(pool._processes.values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _result_of(run):
    return run.result()


def _ignore_interrupts():
    """Ctrl-C is for the process that the others work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
