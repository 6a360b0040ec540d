# SPDX-License-Identifier: MIT
"""DeepSeek-V3's group-limited gating in NumPy: which experts each token goes to.

For a token x, expert vectors v_e, experts in G consecutive groups of equal size:

    s_e     = 1 / (1 + exp(-<x, v_e>))                   score of expert e
    S_g     = sum of the two largest s_e of group g      score of a group (one, if it has one)
    kept    = the `num_topk_groups` groups with the largest S_g
    chosen  = the `num_topk` experts with the largest s_e in kept groups, best first
    w_e     = scaling * s_e / (sum of s over the chosen + 1e-20)

Ties go to the lower index.  DeepSeek-V3 adds a learned balancing bias to s_e while choosing; there
is none here, so the load is as skewed as the tokens are.  Groups that coincide with ranks or nodes
bound how many of them a token can reach: that is what they are for.
"""

import numpy as np

from deepep_ptx.checks import check_int
from deepep_ptx.reference import MAX_TOPK


def group_limited_topk(x, expert_vectors, num_topk, num_groups=1, num_topk_groups=None,
                       scaling=1.0):
    """Choose each token's experts and their weights.

    Args:
        x: [T, H], any real dtype; computed with as float64, scores are float32.
        expert_vectors: [E, H].
        num_topk: experts per token, 1..32.
        num_groups: G, divides E.
        num_topk_groups: groups kept per token, 1..G; None = all.
        scaling: factor of all weights.

    Returns:
        topk_idx int64 [T, K] (best first, no expert twice), topk_weights float32 [T, K].

    Raises:
        ValueError: settings that cannot be met.  TypeError: one that is no integer.
    """
    if num_topk_groups is None:
        num_topk_groups = num_groups
    if expert_vectors.ndim != 2 or x.ndim != 2 or x.shape[1] != expert_vectors.shape[1]:
        raise ValueError(f"expert_vectors: must be [experts, hidden] with the hidden size of x "
                         f"{x.shape}, got {expert_vectors.shape}")
    num_topk, num_groups, num_topk_groups = check_settings(len(expert_vectors), num_topk,
                                                           num_groups, num_topk_groups)
    scores = _scores(x, expert_vectors)
    allowed = np.repeat(_kept_groups(scores, num_groups, num_topk_groups),
                        len(expert_vectors) // num_groups, axis=1)
    topk_idx = _largest(np.where(allowed, scores, -np.inf), num_topk)
    chosen = np.take_along_axis(scores, topk_idx, axis=1)
    total = chosen.sum(axis=1, keepdims=True) + np.float32(1e-20)  # all scores may be 0
    topk_weights = chosen / total * np.float32(scaling)
    return topk_idx, topk_weights


def check_settings(num_experts, num_topk, num_groups, num_topk_groups):
    """The last three as ints; `ValueError` unless a token can choose `num_topk` experts under these
    settings, `TypeError` for what is no integer."""
    num_experts = check_int(num_experts, "num_experts", 1)
    num_groups = check_int(num_groups, "num_groups", 1)
    if num_experts % num_groups:
        raise ValueError(f"num_groups: must divide the number of experts ({num_experts}), "
                         f"got {num_groups}")
    num_topk_groups = check_int(num_topk_groups, "num_topk_groups", 1, num_groups)
    num_topk = check_int(num_topk, "num_topk", 1)
    most = min(MAX_TOPK, num_topk_groups * (num_experts // num_groups))
    if num_topk > most:
        raise ValueError(f"num_topk: must be 1..{most} ({num_topk_groups} groups of "
                         f"{num_experts // num_groups} experts, at most {MAX_TOPK}), "
                         f"got {num_topk}")
    return num_topk, num_groups, num_topk_groups


def _scores(x, expert_vectors):
    # float64 sums, so that the order in which a BLAS adds does not decide about an expert
    logits = x.astype(np.float64) @ expert_vectors.astype(np.float64).T
    with np.errstate(over="ignore"):  # exp(-logit) = inf gives score 0, as it should
        return (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)


def _kept_groups(scores, num_groups, num_topk_groups):
    """bool [T, G]: the groups a token may choose from."""
    by_group = scores.reshape(len(scores), num_groups, scores.shape[1] // num_groups)
    group_scores = np.sort(by_group, axis=2)[:, :, -2:].sum(axis=2)
    kept = np.zeros(group_scores.shape, dtype=bool)
    np.put_along_axis(kept, _largest(group_scores, num_topk_groups), True, axis=1)
    return kept


def _largest(values, count):
    """Columns of each row's `count` largest values, best first, ties to the lower column."""
    return np.argsort(-values, axis=1, kind="stable")[:, :count].astype(np.int64)
