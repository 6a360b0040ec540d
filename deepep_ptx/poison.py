# SPDX-License-Identifier: MIT
"""A debug mode: slots of the arena that die are filled with bytes of 255, which are NaN or -1."""

import os

VARIABLE = "DEEPEP_PTX_POISON"


def is_asked_for(environ=None):
    """Whether `VARIABLE` says so; `ValueError` where it is neither 0 nor 1."""
    value = (os.environ if environ is None else environ).get(VARIABLE)
    if value not in (None, "", "0", "1"):
        raise ValueError(f"{VARIABLE}: must be 0 or 1, got {value!r}")
    return value == "1"
