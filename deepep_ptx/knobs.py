# SPDX-License-Identifier: MIT
"""Launch parameters of the bulk kernels that `Buffer` and tuning files may set.

stages: of each ring through which a CTA's rows go, one load each; what shared memory has no room
for is given up.  stage_bytes: of a load.  Kernels of other data paths have no rings.
"""

from .checks import check_int

KNOBS = "stages", "stage_bytes"


def values_of(knob):
    """The range of its values; the largest stage_bytes that a call can have is its kernel's."""
    from ._limits import MAX_SMEM, MIN_STAGES, ROW_ALIGN  # commands that need no core load none
    if knob == "stages":
        return range(MIN_STAGES, MAX_SMEM + 1)
    return range(ROW_ALIGN, MAX_SMEM + 1, ROW_ALIGN)


def accepted(knob):
    """Its values in words."""
    values = values_of(knob)
    multiple = f"a multiple of {values.step} " if values.step > 1 else ""
    return f"{multiple}in [{values.start}, {values[-1]}]"


def check_knobs(**given):
    """Those that are not None, name -> int.

    `TypeError` for what is no integer, `ValueError` for what a knob cannot be.
    """
    knobs = {}
    for knob, value in given.items():
        if value is not None:
            values = values_of(knob)
            number = check_int(value, knob, values.start, values[-1])
            if number not in values:
                raise ValueError(f"{knob}: must be {accepted(knob)}, got {number}")
            knobs[knob] = number
    return knobs
