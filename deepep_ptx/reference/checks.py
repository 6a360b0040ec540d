# SPDX-License-Identifier: MIT
"""Checks of arguments that both modes take."""

import numpy as np

from ..checks import check_int

MAX_TOPK = 32


def check_experts(num_experts, num_ranks):
    """Both as ints, and experts of a rank."""
    num_ranks = check_int(num_ranks, "num_ranks", 1)
    num_experts = check_int(num_experts, "num_experts", 1)
    if num_experts % num_ranks:
        raise ValueError(f"num_experts: must be a positive multiple of the number of ranks "
                         f"({num_ranks}), got {num_experts}")
    return num_experts, num_ranks, num_experts // num_ranks


def check_topk_idx(topk_idx, num_experts):
    topk_idx = np.asarray(topk_idx)
    if topk_idx.dtype not in (np.int32, np.int64):
        raise ValueError(f"topk_idx: must be int32 or int64, got {topk_idx.dtype}")
    if topk_idx.ndim != 2 or not 1 <= topk_idx.shape[1] <= MAX_TOPK:
        raise ValueError(f"topk_idx: must be [tokens, 1..{MAX_TOPK}], got {topk_idx.shape}")
    if topk_idx.size and (topk_idx.min() < -1 or topk_idx.max() >= num_experts):
        raise ValueError(f"topk_idx: must be in [-1, {num_experts}), got "
                         f"{topk_idx.min()} to {topk_idx.max()}")
    return topk_idx


def check_entries(name, arrays, num_ranks):
    if len(arrays) != num_ranks:
        raise ValueError(f"{name}: must have one entry per rank ({num_ranks}), got {len(arrays)}")


def check_rows(name, arrays, want):
    rows = [len(a) for a in arrays]
    if rows != want:
        raise ValueError(f"{name}: must have the rows of xs per rank ({want}), got {rows}")


def check_equal_shapes(name, arrays, like):
    shapes, want = [a.shape for a in arrays], [a.shape for a in like]
    if shapes != want:
        raise ValueError(f"{name}: must have the shapes of topk_idxs ({want}), got {shapes}")
