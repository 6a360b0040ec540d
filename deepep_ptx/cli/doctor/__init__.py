# SPDX-License-Identifier: MIT
"""What `deepep-ptx doctor` looks at: a list of small checks, each with the fix in words."""

import os

from deepep_ptx.cli.doctor import gpu, install, selftest, tuning, variables
from deepep_ptx.cli.doctor.machine import Machine
from deepep_ptx.cli.doctor.result import OK, PROBLEM, STATUSES, WARNING, Result

# Each is a function of a `Machine` that gives `Result`s; they run, and are shown, in this order.
CHECKS = (
    install.python,
    install.packages,
    install.optional_packages,
    install.extensions,
    install.kernels,
    install.assembler,
    variables.environment,
    variables.without_effect,
    gpu.driver,
    gpu.gpus,
    gpu.peers,
    gpu.nvlink,
    gpu.ipc,
    gpu.shared_memory,
    gpu.rdma,
    tuning.files,
    selftest.cpu,
    selftest.gpu,
)


def examine(machine=None, checks=CHECKS):
    """Yield the `Result`s of all checks, each as soon as it is there.

    A check that fails itself is a problem like any other: the ones behind it still run.
    """
    machine = machine or Machine(os.environ)
    for check in checks:
        try:
            yield from check(machine)
        except Exception as error:
            yield Result(check.__name__, PROBLEM, f"the check failed: {type(error).__name__}: "
                                                  f"{error}", "report this line")


__all__ = ["CHECKS", "OK", "PROBLEM", "STATUSES", "WARNING", "Machine", "Result", "examine"]
