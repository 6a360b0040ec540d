# SPDX-License-Identifier: MIT
"""Check of tuning files: those that buffers on this machine would take."""

from deepep_ptx import tuning, tuning_files
from deepep_ptx.cli.doctor.result import OK, WARNING, Result
from deepep_ptx.errors import TuningError

CHECK = "tuning files"


def files(machine):
    """The file that the variable names, and the user's, each with what it is for."""
    named = machine.environ.get(tuning_files.VARIABLE)
    paths = sorted(tuning_files.folder(machine.environ).glob("*.json"))
    if named:
        yield _judge(machine, named, f"{tuning_files.VARIABLE}: ")
    for path in paths:
        yield _judge(machine, path, "not looked at beside the variable: " if named else "")
    if not named and not paths:
        yield Result(CHECK, OK, "none: a model says how many SMs a call takes; `deepep-ptx tune` "
                                "measures it")


def _judge(machine, path, start):
    try:
        header = tuning.load(path).header
    except TuningError as error:
        return Result(CHECK, WARNING, f"{start}{error}", "measure again, or remove the file")
    text = (f"{start}{path}: for {header.ranks} ranks on {header.gpu}, by {header.package} on "
            f"{header.date}")
    names = {gpu["name"] for gpu in machine.gpus}
    if names and header.gpu not in names:
        return Result(CHECK, WARNING, f"{text}; here is {', '.join(sorted(names))}",
                      "measure here: `deepep-ptx tune`")
    return Result(CHECK, OK, text)
