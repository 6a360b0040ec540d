# SPDX-License-Identifier: MIT
"""How many bytes arrays take side by side in a slot (cysrc/core/slot.h has the same)."""

from ._limits import SLOT_ALIGN


def bytes_of_arrays(num_rows, row_sizes):
    """Of arrays of as many rows, of these sizes in bytes, each starting on a line."""
    return sum(-(-num_rows * nbytes // SLOT_ALIGN) * SLOT_ALIGN for nbytes in row_sizes)
