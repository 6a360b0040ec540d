# SPDX-License-Identifier: MIT
"""A wrong store in dispatch: every tool that compares results finds it at its defaults, and says
that it is dispatch's; and what a tool's defaults come to."""

import pytest

from deepep_ptx import _emu, cli, runtime, select
from deepep_ptx.emu.coverage import coverage
from deepep_ptx.emu.isa import Op
from deepep_ptx.emu.kernel import load_image
from tests.weakened import ROOT, Reader, copy_sources, weaken

STORE = "    AT(a_dst, a_dst, r, 16)\n"        # of the loop that moves UNROLL vectors a lane
EMU = ["--executor", "emu"]
AB = ["--policy", "ld_na,ld_nc_na", "--no-check", *EMU]


@pytest.fixture
def shifted(monkeypatch, tmp_path):
    """dispatch_vec stores 16 bytes behind where it should, in its main loop alone."""
    sources = copy_sources(tmp_path)
    weaken(sources, "ptx/src/dispatch_vec.ptx", STORE, STORE + "    add.u64 a_dst, a_dst, 16;\n")
    monkeypatch.setattr(select, "read_text", Reader(sources))


@pytest.mark.parametrize(("argv", "where"), [
    (["ab", "dispatch", *AB], "WRONG  ld_na: rank 0: recv_x: first bad row 0"),
    (["ab", "combine", *AB], "recv_x of the dispatch before it: first bad row 0"),
    (["bench", "intranode", *EMU],
     "WRONG  dispatch bf16, 40 tokens uniform, fast, 2 SMs: rank 0: recv_x: first bad row 0"),
    (["bench", "intranode", "--what", "combine-pull", *EMU],
     "rank 0: recv_x of the dispatch before it: first bad row 0"),
    (["demo", *EMU, "--ranks", "2", "--tokens", "8", "--hidden", "4096"],
     "rank 0: recv_x row 0, column 0 is"),
], ids=["ab dispatch", "ab combine", "bench", "bench of a combine", "demo"])
def test_a_wrong_store_of_dispatch_is_found(shifted, argv, where, capsys):
    assert cli.main(argv) == 1
    captured = capsys.readouterr()
    assert where in captured.out and captured.err == ""
    assert "combined_x" not in captured.out


def test_the_demo_stops_before_combine(shifted, capsys):
    for compare in [[], ["--compare-dtypes"]]:
        assert cli.main(["demo", *EMU, "--ranks", "2", "--tokens", "8", "--hidden", "4096",
                         *compare]) == 1
        out = capsys.readouterr().out
        assert "rank 0: recv_x row 0" in out and "combined_x" not in out
        assert compare or "combine       not run" in out


# -- what defaults come to -------------------------------------------------------------------------

MOVE_ROWS = ["dispatch_vec.ptx", "dispatch_bulk.ptx", "push_rows_vec.inc", "push_rows_bulk.inc",
             "sum_rows_vec.inc", "sum_rows_bulk.inc", "open_pump.inc", "pump_row.inc"]
# A bulk load that does not come, and those under way when a CTA gives up; more stages than two.
NOT_BY_DEFAULT = ("$full", "$drain", "$next_load", "$more", "$first_chunks")


def loops_not_entered(worlds):
    """(symbol, statement, line) of backward branches in files that move rows, of which no copy was
    taken in any of the worlds."""
    runs = [world.ran() for world in worlds]
    found = coverage(*runs)
    for symbol, text in {key for run in runs for key in run}:
        image = load_image(text, symbol)
        for at, insn in enumerate(image.insns):
            line = image.lines[insn["line"]]
            place = image.files[line["file"]].decode(), int(line["line"])
            back = insn["op"] == Op.BRA and insn["target"] <= at
            if (back and symbol in found and place in found[symbol].nowhere
                    and place[0].rpartition("/")[2] in MOVE_ROWS):
                yield symbol, image.texts[at].decode(), place


@pytest.mark.parametrize("argv", [
    ["ab", "dispatch", "--no-check", "--policy", "ld_na,bulk", *EMU],
    ["ab", "combine", "--no-check", "--combine", "push", "--policy", "ld_na,bulk", *EMU],
    ["bench", "intranode", "--policy", "fast,bulk", *EMU],
], ids=" ".join)
def test_defaults_enter_every_loop_that_moves_rows(monkeypatch, argv, capsys):
    worlds = []

    class Recorded(_emu.World):
        def __init__(self, *args, **kwargs):
            worlds.append(self)

    monkeypatch.setattr(runtime, "World", Recorded)
    assert cli.main(argv) == 0
    assert [loop for loop in loops_not_entered(worlds)
            if not loop[1].rstrip(";").endswith(NOT_BY_DEFAULT)] == []
    assert "the results say nothing about these lines:" in capsys.readouterr().out


def test_small_shapes_say_which_loop_they_leave_out(capsys):
    source = (ROOT / "ptx/src/dispatch_vec.ptx").read_text()
    store = source.splitlines().index("    REPEAT(UNROLL, ST_ROW_VEC)") + 1
    argv = ["ab", "dispatch", "--no-check", "--policy", "ld_na,safe", *EMU, "--hidden", "16"]
    assert cli.main(argv) == 0
    said = capsys.readouterr().out.partition("not executed")[2].replace("\n", " ")
    numbers = next(word for word in said.split() if word.startswith("ptx/src/dispatch_vec.ptx:"))
    spans = [span.split("-") for span in numbers.rpartition(":")[2].split(",")]
    assert any(int(span[0]) <= store <= int(span[-1]) for span in spans)
