# SPDX-License-Identifier: MIT
"""`deepep-ptx demo` on GPUs: right bits in both modes, and times where dtypes are compared."""

import pytest

from deepep_ptx.cli import demo

pytestmark = pytest.mark.gpu

SMALL = {"num_ranks": 2, "num_tokens": 40, "hidden": 1024, "num_experts": 16, "num_groups": 4,
         "num_topk_groups": 2, "num_topk": 4, "executor": "cuda"}
MODES = [{}, {"combine": "push"}, {"mode": "ll", "reduce": "exact"},
         {"mode": "ll", "reduce": "rank"}]


@pytest.mark.parametrize("change", MODES, ids=str)
@pytest.mark.parametrize("dtype", demo.DTYPES)
def test_bit_exact(dtype, change):
    report = demo.run(**SMALL, **change, dtype=dtype)
    assert report.bit_exact, [str(m) for m in report.mismatches]
    assert report.executor == "cuda" and not report.median_us


@pytest.mark.parametrize("change", MODES, ids=str)
def test_compared_dtypes(change):
    report = demo.compare_dtypes(**SMALL, **change)
    assert report.bit_exact, str(report)
    assert report.errors["bf16"].rms < 0.01 < report.errors["fp8"].rms < 0.1
    for one in report.reports.values():
        assert one.median_us.keys() == {"dispatch", "combine"}
        assert all(0 < us < 1e6 for us in one.median_us.values())
    assert "dispatch us" in str(report)
