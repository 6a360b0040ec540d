# SPDX-License-Identifier: MIT
"""Checks of arguments that several modules take.  The text of an error begins with the name."""

import numbers


def check_int(value, name, low, high=None):
    """`value` as an int in [low, high]; high None: no upper limit.

    `TypeError` for what is no integer (a bool is none), `ValueError` outside of the range.
    """
    # An int is known at once, what else is an integral number takes ten times as long.
    if type(value) is not int and (isinstance(value, bool)
                                   or not isinstance(value, numbers.Integral)):
        raise TypeError(f"{name}: must be an integer, got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        accepted = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name}: must be {accepted}, got {value}")
    return int(value)


def check_shape(value, name):
    """`value` as a tuple of ints, each at least 0; errors as above."""
    try:
        lengths = tuple(value)
    except TypeError:
        raise TypeError(f"{name}: must be None or a sequence of integers, "
                        f"got {type(value).__name__}") from None
    return tuple(check_int(length, name, 0) for length in lengths)
