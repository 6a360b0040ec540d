# SPDX-License-Identifier: MIT
"""The table of the public API: that nothing is missing in it, and its rows on the CPU executor."""

import pytest

from deepep_ptx import run_ranks
from tests.api_calls import DevicePretend, NumPyHost, NumPyPretend, TorchHost
from tests.api_table import TABLE, Member, groups, missing, public_members, run_group
from tests.array_libraries import PretendGpu

LIBRARIES = [NumPyHost, TorchHost, NumPyPretend, DevicePretend]


def test_the_table_has_everything():
    lines = missing(TABLE, public_members())
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def test_what_is_missing_is_named():
    members = {"A": ["n"], "A.f": ["a", "b", "c"], "A.g": [], "A.h": ["a", "b"]}
    table = {"A": Member(None, [{"n": 1}]), "A.gone": Member(None),
             "A.f": Member(None, [{}, {"a": 1, "b": 2}, {"d": 3}], {"a": {"b"}}),
             "A.h": Member(None, [{}, {"a": 1}, {"b": 1}])}
    assert missing(table, members) == [
        "A.g: no Member in tests/api_table.py",
        "A.gone: in tests/api_table.py, but not public",
        "A: no row without an option",
        "A.f: has no optional parameter d",
        "A.f: no row with b alone",
        "A.f: no row with c alone",
        "A.h: no row with all compatible options",
    ]


def test_optional_parameters_are_found():
    members = public_members()
    assert "async_finish" in members["Buffer.combine"] and "policy" in members["Buffer"]
    assert "copy" in members["DeviceArray.__dlpack__"] and members["Buffer.rank"] == []
    assert {"EPHandle.num_recv", "EventOverlap.event", "Config.num_sms"} <= set(members)


@pytest.mark.parametrize(("library", "group"), [
    pytest.param(library, group, id=f"{library.__name__}-{group}")
    for library in LIBRARIES for group in groups(library is DevicePretend)])
def test_rows(library, group):
    if library is TorchHost:
        pytest.importorskip("torch")

    def main(comm):
        pretend = library in (NumPyPretend, DevicePretend)
        run_group(PretendGpu.of(comm) if pretend else comm, library, group)

    run_ranks(main, 2, executor="emu")
