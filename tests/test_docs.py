# SPDX-License-Identifier: MIT
"""What the README shows is what the program prints; what examples/ has for every machine runs."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from deepep_ptx import cli, run_ranks

ROOT = Path(__file__).resolve().parents[1]


def block(holding):
    """The one fenced block of README.md that has the text `holding`, without its fences."""
    fenced = re.findall(r"^```\w*\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    (found,) = (text for text in fenced if holding in text)
    return found


def missing(shown, printed):
    """The lines of `shown` that do not come in `printed` in that order; `...` is any lines."""
    rest = iter(printed)
    return [line for line in shown if line.strip() != "..." and line not in rest]


def test_missing_lines_are_found():
    assert not missing(["a", " ...", "c", "..."], ["a", "b", "c", "d"])
    assert missing(["a", "x", "c"], ["a", "b", "c"])[0] == "x"
    assert missing(["c", "a"], ["a", "c"]) == ["a"]


def test_the_table_of_the_readme_is_that_of_the_demo(monkeypatch, capsys):
    """`make demo` without options; a kernel that changed gives the README other figures."""
    for name in ("DEEPEP_PTX_POLICY", "DISABLE_AGGRESSIVE_PTX_INSTRS", "DEEPEP_PTX_TUNING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEEPEP_PTX_EXECUTOR", "emu")
    assert cli.main(["demo"]) == 0
    printed = capsys.readouterr().out.splitlines()
    shown = block("warp instr").splitlines()
    assert len(shown) > 5
    assert not missing(shown, printed), "README.md shows other lines than:\n" + "\n".join(printed)


def test_the_program_of_the_readme(tmp_path):
    program = block("def rank_main")
    expected = re.search(r"^print\(.*# (.+)$", program, re.M)[1]
    (tmp_path / "layer.py").write_text(program)
    done = subprocess.run([sys.executable, tmp_path / "layer.py"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("example", ["numpy_layer.py", "numpy_decode.py"])
def test_the_numpy_examples(example, num_ranks):
    rank_main = runpy.run_path(str(ROOT / "examples" / example))["rank_main"]
    results = run_ranks(rank_main, num_ranks, executor="emu")
    assert all(rows > 0 and same for rows, same in results) and len(results) == num_ranks


def test_the_numpy_example_needs_no_torch():
    code = ("import sys, runpy; sys.modules['torch'] = sys.modules['cupy'] = None; "
            "sys.argv = ['numpy_layer.py', '--executor', 'emu', '--ranks', '2']; "
            "runpy.run_path('examples/numpy_layer.py', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bit-exact") == 2
