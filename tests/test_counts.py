# SPDX-License-Identifier: MIT
"""Instructions and memory transactions per row stay within what tests/counts.json records."""

import json

import counts
import pytest

PATHS = counts.data_paths()


@pytest.mark.parametrize("of", PATHS, ids=[f"{arch}-{path}" for arch, path, _ in PATHS])
def test_no_call_costs_more_than_recorded(of):
    now = counts.counted(*of)
    recorded = {name: found for name, found in json.loads(counts.RECORD.read_text()).items()
                if name in now or name.startswith(f"{of[0]} {of[1]} ")}
    assert counts.drifts(now, recorded) == []


def test_every_recorded_path_is_there():
    paths = {f"{arch} {path}" for arch, path, _ in PATHS}
    assert {" ".join(name.split()[:2]) for name in json.loads(counts.RECORD.read_text())} == paths


@pytest.mark.parametrize(("count", "words"), [
    (100, None), (101.9, None), (102.1, "grew from 100 to 102.1; if it is meant, `make counts`"),
    (90.5, None), (89, "shrank from 100 to 89: record it, `make counts`")])
def test_bounds(count, words):
    found = counts.drifts({"a": {"loads": count}}, {"a": {"loads": 100}})
    assert found == ([f"a: loads per row {words}"] if words else [])


def test_calls_that_come_and_go():
    assert counts.drifts({"b": {}}, {"a": {}}) == ["a: is gone; `make counts`",
                                                   "b: is new; `make counts`"]
