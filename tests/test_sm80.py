# SPDX-License-Identifier: MIT
"""The shapes that `make gpu-test` runs with the text for sm_80, smaller, on the CPU executor."""

from dataclasses import replace

import pytest

from deepep_ptx import run_ranks
from tests.api_calls import NumPyHost
from tests.api_shapes import SHAPES, round_trip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bit_exact(shape):
    small = replace(shape, tokens=tuple(min(count, 20) for count in shape.tokens),
                    hidden=min(shape.hidden, 2048))
    run_ranks(round_trip, 2, NumPyHost, small, executor="emu", arch="sm_80")


def test_the_shapes_cover_what_they_should():
    counts = [count for shape in SHAPES for count in shape.tokens]
    assert (min(counts), max(counts)) == (0, 300) and len(SHAPES) == 24
    assert {shape.num_topk for shape in SHAPES} == set(range(1, 10))
    assert {128, 7168} <= {shape.hidden for shape in SHAPES}
    assert {kind for shape in SHAPES for kind in shape.cached} == {"rows", "others", "pair"}
    assert {shape.num_biases for shape in SHAPES} == {0, 1, 2}
