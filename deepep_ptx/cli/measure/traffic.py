# SPDX-License-Identifier: MIT
"""How many payload bytes a call moves, and over which links.

rows: int [R, R], [s, d] = rows that rank s sends to rank d; combine brings as many back.
"""

import numpy as np

from deepep_ptx.reference import BF16_BYTES, FP8_GROUP


def row_bytes(hidden, dtype):
    """Payload bytes of a row: "bf16", or "fp8" with its float32 scales."""
    return hidden + 4 * (hidden // FP8_GROUP) if dtype == "fp8" else hidden * BF16_BYTES


def busiest_link(rows, devices):
    """Rows over the links of the busiest GPU, in its busier direction; combine's are the same, the
    other way.

    devices: GPU of each rank; what stays on a GPU crosses no link.
    """
    place = np.asarray(devices)
    crossing = rows * (place[:, None] != place)
    return max(int(crossing.sum(axis=axis)[place == gpu].sum())
               for axis in (0, 1) for gpu in set(devices))


def busiest_rank(rows):
    """Rows that the rank which receives most receives, its own included."""
    return int(rows.sum(axis=0).max())
