# SPDX-License-Identifier: MIT
"""The model of how many SMs a call needs: against what two H100s and two H200s measured, and its
rules."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deepep_ptx.sm_model import (
    CROWD,
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
ROOT = Path(__file__).resolve().parents[1]
RECORDS = {name: ROOT / "bench" / "results" / name for name in (
    "h100-sxm-x2/2026-11-25-intranode-sms.json", "h100-sxm-x2/2026-11-25-intranode-sizes.json",
    "h200-sxm-x2/2026-11-25-intranode.json")}
BY_SMS, BY_TOKENS, OF_H200 = RECORDS
# A dispatch with the handle of an earlier one: what the host and the numbering of tokens add to
# others is not the payload's.
OP_OF = {"cached": "dispatch", "combine-pull": "combine_pull", "combine-push": "combine_push"}


def work(op="dispatch", tokens=4096, row_bytes=14336, ranks=2, ranks_here=1, num_topk=8, **more):
    return Work(op, tokens, row_bytes, ranks, ranks_here, ranks_per_token(ranks, num_topk), **more)


def measured(name):
    """Of each case of a record that the model speaks of: (op, dtype, path), tokens, SMs,
    microseconds, and what the model says of it divided by that, less 1."""
    made = json.loads(RECORDS[name].read_text())
    rates = rates_of(made["machine"]["gpus"][0])
    for case in made["cases"]:
        if case["what"] in OP_OF:
            key = (OP_OF[case["what"]], case["dtype"],
                   "bulk" if case["launched"][0].endswith("_bulk") else "vec")
            call = work(key[0], case["tokens"], case["bytes"]["row"], path=key[2])
            us = case["kernel"]["median_us"]
            yield (key, case["tokens"], case["sms"], us,
                   predicted_us(call, rates, case["sms"]) / us - 1)


@pytest.mark.parametrize("name, num_cases, worst", [
    (BY_SMS, 84, 0.086), (BY_TOKENS, 24, 0.058), (OF_H200, 16, 0.085)])
def test_predictions_hold_against_measurements(name, num_cases, worst):
    errors = [(abs(error), key, tokens, num_sms)
              for key, tokens, num_sms, _, error in measured(name)]
    assert len(errors) == num_cases
    assert max(errors)[0] == pytest.approx(worst, abs=1e-3), max(errors)


@pytest.mark.parametrize("name, column", [(BY_SMS, 2), (BY_TOKENS, 1), (OF_H200, 2)])
def test_documentation_has_the_measured_times_and_the_deviations(name, column):
    rows = {}
    for case in measured(name):
        key, us, error = case[0], case[3], case[4]
        # Of several policies with one data path, the first of the record.
        rows.setdefault(key, {}).setdefault(case[column], f"{us:.0f} ({round(100 * error):+d})")
    text = (ROOT / "docs" / "tuning.md").read_text().replace("\N{MINUS SIGN}", "-")
    for (op, dtype, path), cells in rows.items():
        line = f"| {op} {dtype} `{path}` | {' | '.join(cells.values())} |"
        assert line in text, line


@pytest.mark.parametrize("op, row_bytes, path, num_sms", [
    ("dispatch", 14336, "vec", 16), ("dispatch", 14336, "bulk", 16),
    ("dispatch", 7168, "vec", 16), ("dispatch", 7168, "bulk", 16),
    ("combine_pull", 14336, "vec", 23), ("combine_pull", 14336, "bulk", 16),
    ("combine_push", 14336, "vec", 22), ("combine_push", 14336, "bulk", 16),
])
def test_choice_on_two_h100s(op, row_bytes, path, num_sms):
    assert choose_sms(work(op, row_bytes=row_bytes, path=path), rates_of(H100), 132) == num_sms


def test_choices_hold_against_measurements():
    """What a choice costs against the quickest number measured, and against no more SMs than it.

    Combines with `vec` take numbers between two that were measured, and are left out.
    """
    times = {}
    for key, _, num_sms, us, _ in measured(BY_SMS):
        times.setdefault(key, {}).setdefault(num_sms, us)
    assert len(times) == 8
    for (op, dtype, path), us in times.items():
        row_bytes = 14336 if dtype == "bf16" else 7168
        chosen = choose_sms(work(op, row_bytes=row_bytes, path=path), rates_of(H100), 132)
        if chosen not in us:
            assert op in ("combine_pull", "combine_push") and path == "vec"
            continue
        assert us[chosen] == min(us[number] for number in us if number <= chosen)
        # A pushing combine of bulk copies gains a sixth on 64 SMs, and little before.
        assert us[chosen] <= (1.22 if op == "combine_push" else 1.09) * min(us.values())
        assert us[chosen] <= ((1.12 if op == "combine_push" else 1.07)
                              * min(us[number] for number in us if number in CROWD))


@pytest.mark.parametrize("gpu", [H100, "another"])
def test_choice_is_the_quickest_of_those_that_are_enough(gpu):
    rates = rates_of(gpu)
    at_rest = replace(rates, crowded={})
    for op in OPS:
        for tokens in (1, 3, 8, 64, 100, 512, 4096):
            for ranks, ranks_here in ((1, 1), (2, 1), (8, 1), (8, 4)):
                call = work(op, tokens, ranks=ranks, ranks_here=ranks_here)
                times = [predicted_us(call, at_rest, number) for number in range(1, 133)]
                enough = choose_sms(call, at_rest, 132)
                assert times[enough - 1] <= TOLERANCE * min(times)
                assert all(time > TOLERANCE * min(times) for time in times[:enough - 1])
                times = [predicted_us(call, rates, number) for number in range(1, enough + 1)]
                assert choose_sms(call, rates, 132) == 1 + times.index(min(times))


def test_crowded_links_are_slower_and_only_where_they_are_crowded():
    """More SMs are no way out of it: the choice does not jump over the crowd, to 49."""
    call, rates = work("combine_push", path="bulk"), rates_of(H100)
    at_rest = replace(rates, crowded={})
    for number in range(1, 133):
        slower = predicted_us(call, rates, number) > predicted_us(call, at_rest, number)
        assert slower == (number in CROWD), number
    assert choose_sms(call, at_rest, 132) == 22 and choose_sms(call, rates, 132) == 16
    # Ranks that share a GPU crowd its link together.
    shared = work("combine_push", ranks=8, ranks_here=4)
    assert predicted_us(shared, rates, 8) > predicted_us(shared, at_rest, 8)


@pytest.mark.parametrize("op, chosen", [
    ("dispatch", [1, 8, 16, 16]), ("combine_pull", [1, 8, 13, 16]),
    ("combine_push", [1, 8, 22, 23]),
])
def test_small_calls_take_fewer(op, chosen):
    """None without a token, and none for what the fixed time hides."""
    path = "bulk" if op == "combine_pull" else "vec"
    assert [choose_sms(work(op, tokens, path=path), rates_of(H100), 132)
            for tokens in (1, 8, 64, 512)] == chosen


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
    rates = replace(rates_of(H100), fixed_us=dict.fromkeys(OPS, 0.0))
    # Ranks on one GPU share nothing with anybody: memory is the limit, not the link.
    alone = predicted_us(work(ranks=2, ranks_here=2), rates, 132)
    apart = predicted_us(work(ranks=2, ranks_here=1), rates, 132)
    rows = 4096 * ranks_per_token(2, 8) * 14336
    assert alone == pytest.approx(2 * rows / 1395e3) and apart == pytest.approx(rows / 2 / 347e3)
    # Ranks that share a GPU share its link, and fewer rows cross it.
    assert predicted_us(work(ranks=8, ranks_here=4), rates, 132) == pytest.approx(
        4 * 4096 * ranks_per_token(8, 8) * 14336 / 2 / 347e3)


def test_vec_reduction_needs_more_sms():
    bulk, vec = (choose_sms(work("combine_pull", path=path), rates_of(H100), 132)
                 for path in ("bulk", "vec"))
    assert bulk == 16 < vec


def test_a_kind_of_gpu_that_nobody_measured():
    assert rates_of("CPU executor") is rates_of("NVIDIA B400") is UNKNOWN
    assert UNKNOWN.link["dispatch"] == 240 and not UNKNOWN.crowded
    # The choice depends on the ratio of the rates, hardly on the rate.
    choices = {choose_sms(work(), rates_from_link(link, ""), 132) for link in (100, 240, 800)}
    assert choices <= {15, 16}


def test_every_figure_names_its_source():
    assert all(rates.source for rates in [*RATES.values(), UNKNOWN])
