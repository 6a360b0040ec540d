# SPDX-License-Identifier: MIT
"""Times of a job's calls on GPUs: many calls, of arrays that are there already."""

from deepep_ptx.cli.measure.garbage import collected
from deepep_ptx.cli.measure.machine import machine_of

WARMUP = 3          # rounds before those that count
TIMEOUT_S = 10.0    # of each wait for another rank


def measured(comm, buffer, job, calls_of, y, rounds):
    """Phase -> microseconds of this rank in each of so many rounds; collective.

    Between events around the call on the caller's stream, ranks aligned on the device before it.
    Arrays are the GPU's own, so that no copy from or to the host is in the times.
    y: what the rank's experts made, of NumPy.
    """
    machine = machine_of(comm.executor)
    calls = calls_of(comm, buffer, job, machine)

    def times_of(call, align):
        found = []
        for _ in range(WARMUP + rounds):
            comm.barrier()
            found.append(machine.measure_whole(align, call)[1].us)      # the results are gone
        return found[WARMUP:]

    with collected(), calls.aligner(TIMEOUT_S) as align:
        found = {"dispatch": times_of(calls.dispatch, align)}
        # Held from here on only: an arena of worst-case mode has room for one result.
        comm.barrier()
        received = calls.dispatch()
        placed = calls.placed(received, y)
        found["combine"] = times_of(lambda: calls.combine(received, placed), align)
        machine.synchronize()
        comm.barrier()      # what frees memory waits for kernels of ranks that share the GPU
    return found
