# SPDX-License-Identifier: MIT
"""Every instruction of every shipped kernel is executed by tests/executed.py, or
tests/unexecuted.toml says why not."""

import dataclasses

import executed
import pytest

from deepep_ptx import select
from deepep_ptx.emu.coverage import Coverage

FORMS = executed.forms()


@pytest.mark.parametrize(("arch", "policy"), FORMS, ids=["-".join(form) for form in FORMS])
def test_every_instruction_is_executed(arch, policy):
    found = executed.executed(arch, policy)
    shipped = executed.symbols(arch, policy)
    assert shipped <= found.keys()
    table = executed.exemptions()
    assert [text for symbol in sorted(shipped)
            for text in executed.complaints(found[symbol], table)] == []


def test_the_forms_are_all_that_ships():
    shipped = {(v["arch"], v["symbol"]) for v in select.load_table()["variants"]}
    assert shipped == {(arch, symbol) for arch, policy in FORMS
                       for symbol in executed.symbols(arch, policy)}


def test_every_reason_is_about_a_kernel():
    symbols = [variant["symbol"] for variant in select.load_table()["variants"]]
    for entry in executed.exemptions():
        for start in entry.of:
            assert any(symbol.startswith(start) for symbol in symbols), entry


def test_the_docs_have_every_reason():
    text = " ".join((executed.ROOT / "docs/coverage.md").read_text().split())
    for entry in executed.exemptions():
        assert f"`{entry.file}`" in text and " ".join(entry.reason.split()) in text, entry


# -- the judgement itself ---------------------------------------------------------------------

SOURCE = """\
// a comment
$start:
    add.u32         r, r, 1;        // one more
    @q bra          $end;
    sub.u32         r, r, 1;
    @q bra          $end;
$end:
"""
LINES = frozenset(("a.ptx", number) for number in range(3, 7))
SECOND = "sub.u32 r, r, 1;\n@q bra $end;"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a.ptx").write_text(SOURCE)
    return tmp_path


def found(*missed):
    missed = frozenset(("a.ptx", number) for number in missed)
    return Coverage("ep_a_one", LINES, missed, frozenset(), 4, len(missed))


def exempt(*lines, of=("ep_a",)):
    return executed.Exemption(of, "a.ptx", lines, "a reason")


@pytest.mark.parametrize(("missed", "table", "expected"), [
    ([], [], []),
    ([3], [exempt("add.u32  r, r, 1;")], []),
    ([6], [exempt(SECOND)], []),
    ([4, 6], [exempt("@q bra $end;")], []),
    ([4, 5], [], ["a.ptx:4-5: ep_a_one does not execute it: add a run to tests/executed.py, or the "
                  "reason to unexecuted.toml"]),
    ([4, 6], [exempt(SECOND)], ["a.ptx:4: ep_a_one does not execute it: add a run to "
                                "tests/executed.py, or the reason to unexecuted.toml"]),
    ([6], [exempt("@q bra $end;")],
     ["unexecuted.toml: a.ptx:4: ep_a_one executes it: take it out"]),
    ([], [exempt("add.u32 r, r, 2;")],
     ["unexecuted.toml: a.ptx: ep_a_one has no line 'add.u32 r, r, 2;'"]),
    ([3], [exempt("add.u32 r, r, 1;", of=("ep_b",))],
     ["a.ptx:3: ep_a_one does not execute it: add a run to tests/executed.py, or the reason to "
      "unexecuted.toml"]),
])
def test_both_ways(root, missed, table, expected):
    assert executed.complaints(found(*missed), table, root) == expected


def test_one_copy_of_a_shared_line_is_enough():
    line = (executed.SHARED[0], 3)
    some = Coverage("ep_a", frozenset([line]), frozenset([line]), frozenset(), 2, 1)
    assert executed.unexecuted(some) == set()
    assert executed.unexecuted(dataclasses.replace(some, nowhere=frozenset([line]))) == {line}


@pytest.mark.parametrize("entry", [
    {"of": ["ep_a"], "file": "a.ptx", "lines": ["x"]},
    {"of": ["ep_a"], "file": "a.ptx", "lines": ["x"], "reason": " "},
    {"of": ["ep_a"], "file": "a.ptx", "lines": ["x"], "reason": "y", "line": 3},
])
def test_an_entry_needs_a_reason(entry):
    with pytest.raises(ValueError, match="must have of, file, lines and reason"):
        executed.Exemption.read(entry)
