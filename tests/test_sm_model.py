# SPDX-License-Identifier: MIT
"""The model of how many SMs a call needs: against what two H100s measured, and its rules."""

from dataclasses import replace

import pytest

from deepep_ptx.sm_model import (
    OPS,
    RATES,
    TOLERANCE,
    UNKNOWN,
    Work,
    choose_sms,
    predicted_us,
    ranks_per_token,
    rates_from_link,
    rates_of,
)

H100 = "NVIDIA H100 80GB HBM3"
# Probe kernels that move the rows and nothing else, 4096 tokens and 2 ranks, each token to both:
# SMs -> microseconds.  At 24 SMs every kernel that stores is slower than at 16; the model does not
# know why, and names no such number (docs/tuning.md).
MEASURED = {
    ("dispatch", 14336): {1: 2271, 2: 1138, 4: 572, 6: 384, 8: 296, 12: 200, 16: 191, 24: 207,
                          64: 172, 132: 165},
    ("dispatch", 7424): {1: 1170, 2: 588, 4: 297, 6: 201, 8: 155, 12: 106, 16: 102, 24: 110, 64: 90,
                         132: 91},
    ("combine_pull", 14336): {2: 973, 4: 496, 6: 339, 8: 262, 12: 189, 16: 184, 24: 183, 48: 186,
                              132: 181},
}


def work(op="dispatch", tokens=4096, row_bytes=14336, ranks=2, ranks_here=1, num_topk=8, **more):
    return Work(op, tokens, row_bytes, ranks, ranks_here, ranks_per_token(ranks, num_topk), **more)


@pytest.mark.parametrize("op, row_bytes", MEASURED)
def test_predictions_hold_against_measurements(op, row_bytes):
    rates = replace(rates_of(H100), fixed_us=0.0)       # the probe has no flags and no metadata
    both = replace(work(op, row_bytes=row_bytes), rows_per_token=2.0)
    for num_sms, measured in MEASURED[op, row_bytes].items():
        error = predicted_us(both, rates, num_sms) / measured - 1
        limit = 0.20 if num_sms == 24 else 0.15
        assert abs(error) < limit, f"{num_sms} SMs: {100 * error:.1f} %"


@pytest.mark.parametrize("op, row_bytes, num_sms", [
    ("dispatch", 14336, 13), ("dispatch", 7424, 13), ("combine_pull", 14336, 11),
])
def test_choice_on_two_h100s(op, row_bytes, num_sms):
    """At the knee of the measured tables, between 8 and 16 SMs."""
    assert choose_sms(work(op, row_bytes=row_bytes), rates_of(H100), 132) == num_sms


def test_choice_is_the_smallest_within_three_percent():
    for op in OPS:
        for tokens in (1, 3, 8, 64, 100, 512, 4096):
            for ranks, ranks_here in ((1, 1), (2, 1), (8, 1), (8, 4)):
                one = work(op, tokens, ranks=ranks, ranks_here=ranks_here)
                times = [predicted_us(one, rates_of(H100), n) for n in range(1, 133)]
                chosen = choose_sms(one, rates_of(H100), 132)
                assert times[chosen - 1] <= TOLERANCE * min(times)
                assert all(time > TOLERANCE * min(times) for time in times[:chosen - 1])


@pytest.mark.parametrize("tokens", [1, 2, 5, 8])
def test_small_calls_take_a_cta_per_token(tokens):
    assert choose_sms(work(tokens=tokens), rates_of(H100), 132) == tokens


def test_never_more_than_the_limit():
    assert choose_sms(work("combine_push"), rates_of(H100), 132) > 7
    assert choose_sms(work("combine_push"), rates_of(H100), 7) == 7
    assert choose_sms(work(), rates_of(H100), 1) == 1


def test_ranks_per_token():
    assert ranks_per_token(1, 8) == 1
    assert ranks_per_token(2, 8) == pytest.approx(8169 / 4096, rel=2e-3)     # sent in a real run
    assert ranks_per_token(8, 8) == pytest.approx(5.25, abs=0.01)
    assert ranks_per_token(64, 1) == pytest.approx(1)


def test_what_crosses_the_link_and_what_does_not():
    rates = replace(rates_of(H100), fixed_us=0.0)
    # Ranks on one GPU share nothing with anybody: memory is the limit, not the link.
    alone = predicted_us(work(ranks=2, ranks_here=2), rates, 132)
    apart = predicted_us(work(ranks=2, ranks_here=1), rates, 132)
    rows = 4096 * ranks_per_token(2, 8) * 14336
    assert alone == pytest.approx(2 * rows / 1395e3) and apart == pytest.approx(rows / 2 / 341e3)
    # Ranks that share a GPU share its link, and fewer rows cross it.
    assert predicted_us(work(ranks=8, ranks_here=4), rates, 132) == pytest.approx(
        4 * 4096 * ranks_per_token(8, 8) * 14336 / 2 / 341e3)


def test_vec_reduction_needs_more_sms():
    bulk, vec = (choose_sms(work("combine_pull", path=path), rates_of(H100), 132)
                 for path in ("bulk", "vec"))
    assert bulk < 16 < vec


def test_a_kind_of_gpu_that_nobody_measured():
    assert rates_of("CPU executor") is rates_of("NVIDIA B400") is UNKNOWN
    assert all(rate == UNKNOWN.link["store"] / 8 for rate in UNKNOWN.sm.values())
    # The choice depends on the ratio of the rates, hardly on the rate.
    choices = {choose_sms(work(), rates_from_link(link, ""), 132) for link in (100, 240, 800)}
    assert choices <= {15, 16}


def test_every_figure_names_its_source():
    assert all(rates.source for rates in [*RATES.values(), UNKNOWN])
