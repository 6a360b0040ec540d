# SPDX-License-Identifier: MIT
"""Checks of environment variables, by the table that `deepep-ptx env` shows."""

from deepep_ptx.cli import environment as table
from deepep_ptx.cli.doctor.result import OK, PROBLEM, WARNING, Result


def environment(machine):
    """The variables that have an effect here, those that are set."""
    set_ones = [variable for variable in table.VARIABLES if variable.name in machine.environ]
    for variable in set_ones:
        value = machine.environ[variable.name]
        finding = table.judge(variable, machine.environ)
        if finding:
            yield Result("environment", finding.severity, f"{variable.name}: {finding.text}",
                         finding.fix)
        elif (variable.name, value) == ("DEEPEP_PTX_EXECUTOR", "cuda") and not machine.gpus:
            yield Result("environment", PROBLEM, f"{variable.name}: 'cuda', and no GPU is usable",
                         "unset it, or set it to emu")
        else:
            yield Result("environment", OK, f"{variable.name}: {value!r}")
    if not set_ones:
        yield Result("environment", OK, "none of the variables of `deepep-ptx env` is set")


def without_effect(machine):
    """The variables of DeepEP and NVSHMEM that somebody may expect to have one."""
    for name, why in table.without_effect(machine.environ):
        yield Result("environment", WARNING, f"{name} has no effect: {why}",
                     "unset it, or ignore this line")
