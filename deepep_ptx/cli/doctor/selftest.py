# SPDX-License-Identifier: MIT
"""Checks that run the main job, small, and compare it bit for bit."""

from deepep_ptx.cli.doctor.child import ChildError
from deepep_ptx.cli.doctor.gpu import needs_gpu
from deepep_ptx.cli.doctor.result import OK, PROBLEM, Result

_CPU_LIMIT_S = 60
_GPU_LIMIT_S = 180       # the driver compiles every kernel the first time
_MAX_RANKS = 64


def cpu(machine):
    """A round trip of two ranks on the CPU executor."""
    return _round_trip(machine, "cpu self test", "emu", 2, _CPU_LIMIT_S)


@needs_gpu
def gpu(machine):
    """A round trip over all GPUs, or of two ranks on one."""
    ranks = min(_MAX_RANKS, max(2, len(machine.gpus)))
    return _round_trip(machine, "gpu self test", "cuda", ranks, _GPU_LIMIT_S)


def _round_trip(machine, name, executor, num_ranks, limit_s):
    try:
        found = machine.ask("round_trip", executor, num_ranks, limit_s=limit_s)
    except ChildError as error:
        yield Result(name, PROBLEM, f"{num_ranks} ranks: {error}",
                     "see the problems above; without any, report this line")
        return
    wrong = found["mismatches"]
    if wrong:
        yield Result(name, PROBLEM, f"{num_ranks} ranks: {wrong[0]}, and {len(wrong) - 1} more",
                     "report this line with what `deepep-ptx info` prints")
    else:
        yield Result(name, OK, f"{num_ranks} ranks, dispatch and combine, bit-exact")
