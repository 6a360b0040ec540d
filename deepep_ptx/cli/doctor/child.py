# SPDX-License-Identifier: MIT
"""Questions for a process of its own: a driver, a kernel or an extension may hang, or crash."""

import contextlib
import json
import signal
import subprocess
import sys

_DEATH_S = 2


class ChildError(Exception):
    """The process gave no answer; the text says what became of it."""


def ask(name, *args, limit_s):
    """What `probe.<name>(*args)` returns, through JSON, from a new process with this one's path.

    It is killed after `limit_s` seconds.  Raises ChildError.
    """
    code = (f"import sys; sys.path[:] = {sys.path!r}; "
            f"from deepep_ptx.cli.doctor.probe import main; main({name!r}, *{args!r})")
    process = subprocess.Popen([sys.executable, "-c", code], text=True, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        # A process that the driver holds does not die: nobody waits for that.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_DEATH_S)
        raise ChildError(f"no answer within {limit_s} s") from None
    if process.returncode < 0:
        raise ChildError(f"killed by {signal.Signals(-process.returncode).name}")
    if process.returncode:
        lines = errors.strip().splitlines() or [f"exit code {process.returncode}"]
        raise ChildError(lines[-1])
    return json.loads(output.splitlines()[-1])
