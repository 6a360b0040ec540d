# SPDX-License-Identifier: MIT
"""What a rank sent and received, in numbers."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Traffic:
    """Of one rank, its own share included.

    num_sent: rows that its tokens became, one for each rank that a token goes to.
    recv_from: int64 [R], such rows from each rank.
    expert_load: int64 [L], choices that reached each of its experts.
    payload_from: int64 [R], payload bytes received from each rank and given back to it.
    """

    num_sent: int
    recv_from: np.ndarray
    expert_load: np.ndarray
    payload_from: np.ndarray
