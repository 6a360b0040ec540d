# SPDX-License-Identifier: MIT
"""Which tuning file a `Buffer` takes."""

import functools
import os
import re
import warnings
from pathlib import Path

from deepep_ptx.errors import TuningError
from deepep_ptx.tuning import load

VARIABLE = "DEEPEP_PTX_TUNING"


def folder(environ=None):
    """Where this user's files are: below XDG_CONFIG_HOME, else ~/.config."""
    environ = os.environ if environ is None else environ
    config = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(config) / "deepep_ptx" / "tuning"


def default_path(gpu, ranks, environ=None):
    """Of the user's file for `ranks` ranks on `gpu`, the name of a device."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return folder(environ) / f"{name}-{ranks}.json"


def find(argument, gpu, ranks, arch, environ=None):
    """The `Tuning` that a `Buffer` takes, or None.

    Args:
        argument: a path; None: DEEPEP_PTX_TUNING, else the user's file for this GPU and number of
            ranks, if there is one; False: no file.
        gpu, ranks, arch: what the file must fit.

    Raises:
        TypeError: the argument is none of these.
        TuningError: the file that the argument or the variable names does not fit.  The user's
            file is ignored then, with one warning.
    """
    environ = os.environ if environ is None else environ
    if argument is False:
        return None
    if argument is not None:
        if not isinstance(argument, str | os.PathLike):
            raise TypeError("tuning: must be a path, None or False, got "
                            f"{type(argument).__name__}")
        return _fitting(argument, "tuning", gpu, ranks, arch)
    if environ.get(VARIABLE):
        return _fitting(environ[VARIABLE], VARIABLE, gpu, ranks, arch)
    path = default_path(gpu, ranks, environ)
    if not path.exists():
        return None
    try:
        return _fitting(path, "tuning", gpu, ranks, arch)
    except TuningError as error:
        _warn_once(f"the file is ignored: {error}")
        return None


def _fitting(path, origin, gpu, ranks, arch):
    tuning = load(path, origin)
    tuning.check(gpu, ranks, arch)
    return tuning


@functools.cache
def _warn_once(text):
    warnings.warn(text, RuntimeWarning, stacklevel=2)
