# SPDX-License-Identifier: MIT
"""Group-limited gating against its formula, token by token."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepep_ptx.cli.demo.gating import check_settings, group_limited_topk


def by_hand(x, vectors, num_topk, num_groups, num_topk_groups, scaling):
    """One token in plain Python: [(expert, weight)], best first."""
    scores = [np.float32(1 / (1 + math.exp(-float(np.dot(x, v))))) for v in vectors]
    size = len(vectors) // num_groups
    group_scores = [sum(sorted(scores[g * size:(g + 1) * size])[-2:]) for g in range(num_groups)]
    groups = sorted(range(num_groups), key=lambda g: (-group_scores[g], g))[:num_topk_groups]
    experts = [e for e in range(len(vectors)) if e // size in groups]
    chosen = sorted(experts, key=lambda e: (-scores[e], e))[:num_topk]
    total = sum(scores[e] for e in chosen)
    return [(e, scaling * scores[e] / total) for e in chosen]


@st.composite
def gates(draw):
    num_groups = draw(st.integers(1, 4))
    num_experts = num_groups * draw(st.integers(1, 4))
    num_topk_groups = draw(st.integers(1, num_groups))
    num_topk = draw(st.integers(1, num_topk_groups * (num_experts // num_groups)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.integers(-3, 4, (draw(st.integers(0, 5)), 4)).astype(np.float64)
    vectors = rng.integers(-3, 4, (num_experts, 4)) / 4  # few values: many ties
    return x, vectors, num_topk, num_groups, num_topk_groups


@given(gates(), st.sampled_from([1.0, 2.5]))
def test_formula(gate, scaling):
    x, vectors, num_topk, num_groups, num_topk_groups = gate
    topk_idx, topk_weights = group_limited_topk(*gate, scaling=scaling)
    assert topk_idx.dtype == np.int64 and topk_weights.dtype == np.float32
    assert topk_idx.shape == topk_weights.shape == (len(x), num_topk)
    for row, token in enumerate(x):
        want = by_hand(token, vectors, num_topk, num_groups, num_topk_groups, scaling)
        assert topk_idx[row].tolist() == [e for e, _ in want]
        assert topk_weights[row] == pytest.approx([w for _, w in want], rel=1e-5)


def test_ties_go_to_the_lowest_index():
    topk_idx, topk_weights = group_limited_topk(np.ones((1, 2)), np.ones((8, 2)), 3, 4, 2)
    assert topk_idx.tolist() == [[0, 1, 2]]
    assert topk_weights[0] == pytest.approx([1 / 3] * 3)


def test_groups_limit_the_choice():
    vectors = np.zeros((8, 1))
    vectors[[0, 2, 4, 6]] = [[4], [3], [2], [1]]  # the best of each pair
    topk_idx, _ = group_limited_topk(np.ones((1, 1)), vectors, 4, 4, 2)
    assert topk_idx.tolist() == [[0, 2, 1, 3]], "groups 0 and 1 only, best first"


def test_hopeless_scores_give_no_nan():
    _, topk_weights = group_limited_topk(np.full((1, 1), -1e6), np.ones((4, 1)), 2)
    assert np.isfinite(topk_weights).all()


def test_bfloat16_tokens():
    x = np.eye(4, dtype=ml_dtypes.bfloat16)
    topk_idx, _ = group_limited_topk(x, 5 * np.eye(4, dtype=np.float32), 1)
    assert topk_idx[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("settings, name", [
    ((8, 1, 3, 1), "num_groups"), ((8, 1, 0, 1), "num_groups"), ((8, 1, 4, 5), "num_topk_groups"),
    ((8, 1, 4, 0), "num_topk_groups"), ((8, 5, 4, 2), "num_topk"), ((8, 0, 4, 2), "num_topk"),
    ((64, 33, 1, 1), "num_topk"),
])
def test_impossible_settings(settings, name):
    with pytest.raises(ValueError, match=f"^{name}: must "):
        check_settings(*settings)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64])
def test_numpy_integers(kind):
    rng = np.random.default_rng(2)
    x, experts = rng.standard_normal((5, 4)), rng.standard_normal((224, 4))
    want = group_limited_topk(x, experts, 8, 8, 4)
    for got, expected in zip(group_limited_topk(x, experts, kind(8), kind(8), kind(4)), want,
                             strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("settings", [(8, 1.0, 4, 2), (8, 1, "4", 2), (8, 1, 4, True),
                                      (8.0, 1, 4, 2)])
def test_settings_that_are_no_integers(settings):
    with pytest.raises(TypeError, match=r"^num_\w+: must be an integer, got"):
        check_settings(*settings)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="^expert_vectors: must "):
        group_limited_topk(np.ones((1, 2)), np.ones((4, 3)), 1)
