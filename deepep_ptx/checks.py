# SPDX-License-Identifier: MIT
"""Checks of arguments that several modules take.  The text of an error begins with the name.

What they return is what is used: a NumPy integer overflows where an int does not.
"""

import numbers


def as_int(value, name):
    """`value` as an int; `TypeError` for what is no integer (a bool is none)."""
    # An int is known at once, what else is an integral number takes ten times as long.
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: must be an integer, got {type(value).__name__}")
    return int(value)


def check_int(value, name, low, high=None):
    """`value` as an int in [low, high]; high None: no upper limit.

    `TypeError` as above, `ValueError` outside of the range.
    """
    number = as_int(value, name)
    if number < low or (high is not None and number > high):
        accepted = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name}: must be {accepted}, got {number}")
    return number


def check_choice(value, name, accepted):
    """`value`, which is one of `accepted`, texts or None; else `ValueError`."""
    if not (value is None or isinstance(value, str)) or value not in accepted:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(map(repr, accepted))}")
    return value


def as_bool(value, name):
    """`value` as a bool; `TypeError` for what is neither true nor false, as an array."""
    if value is True or value is False:
        return value
    try:
        return bool(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: must be True or False, got {type(value).__name__}: "
                        f"{error}") from error


def check_shape(value, name):
    """`value` as a tuple of ints, each at least 0; errors as above."""
    try:
        lengths = tuple(value)
    except TypeError:
        raise TypeError(f"{name}: must be None or a sequence of integers, "
                        f"got {type(value).__name__}") from None
    return tuple(check_int(length, name, 0) for length in lengths)


MAX_ELEMENTS = 1 << 32      # of the rows that a tool makes for all ranks: 8 GiB of bfloat16


def check_size(names, num_ranks, num_tokens, hidden, extra_rows=0):
    """Raise ValueError unless a tool can make num_tokens rows of `hidden` elements for each rank,
    and `extra_rows`.

    names: what num_tokens and hidden are called; the larger one gets the blame.
    """
    rows = num_ranks * num_tokens + extra_rows
    if rows * hidden <= MAX_ELEMENTS:
        return
    most = max(0, MAX_ELEMENTS // hidden - extra_rows) // num_ranks, MAX_ELEMENTS // rows
    name, value, most = max(zip(names, (num_tokens, hidden), most, strict=True),
                            key=lambda argument: argument[1])
    raise ValueError(f"{name}: must be at most {most} with so much of the rest, got {value}; the "
                     f"rows of all ranks may have {MAX_ELEMENTS} elements")
