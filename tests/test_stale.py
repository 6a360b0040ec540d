# SPDX-License-Identifier: MIT
"""Rendered text that is older than its sources: whoever reports correctness or figures says so."""

import shutil

import pytest

from deepep_ptx import cli
from deepep_ptx.cli import catalogue
from tests.weakened import ROOT, weaken

WARNING = ("deepep-ptx: warning: the rendered PTX is not what ptx/ holds now, and all of this is "
           "about the older text: `make gen`\n")
SMALL = ["--ranks", "2", "--tokens", "3", "--hidden", "16", "--experts", "4", "--topk", "2"]
EMU = ["--executor", "emu"]


@pytest.fixture
def clone(tmp_path):
    """A tree with sources, and with the text that was rendered from them."""
    for name in ("ptx", "deepep_ptx/include", "deepep_ptx/_ptx"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def test_an_edit_makes_the_text_stale(clone):
    assert not catalogue.is_stale(clone)
    weaken(clone, "ptx/src/dispatch_vec.ptx", "a_row", "a_rows")
    assert catalogue.is_stale(clone)


def test_a_file_that_is_gone_or_damaged_makes_it_stale(clone):
    (clone / "deepep_ptx/_ptx/variants.json").write_text("{")
    assert catalogue.is_stale(clone)


def test_without_sources_nothing_is_stale(clone):
    shutil.rmtree(clone / "ptx")
    assert not catalogue.is_stale(clone)


@pytest.mark.parametrize("argv", [
    ["demo", *SMALL, "--groups", "2", "--topk-groups", "1", *EMU],
    ["ab", "dispatch", "--no-check", "--policy", "ld_na,safe", *SMALL, *EMU],
    ["bench", "intranode", "--what", "layout", "--dtype", "bf16", *SMALL, *EMU],
    ["tune", "--dry-run"], ["variants"], ["render", "ep_abort"], ["info"],
], ids=lambda argv: argv[0])
def test_every_command_says_it(argv, monkeypatch, capsys):
    monkeypatch.setattr(catalogue, "is_stale", lambda: False)
    assert cli.main(argv) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(catalogue, "is_stale", lambda: True)
    assert cli.main(argv) == 0
    captured = capsys.readouterr()
    assert captured.err == WARNING and captured.out


def test_a_command_that_fails_says_it_too(monkeypatch, capsys):
    monkeypatch.setattr(catalogue, "is_stale", lambda: True)
    assert cli.main(["demo", *SMALL, "--hidden", "12"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(WARNING) and "--hidden: must be" in err


def test_doctor_says_it_in_its_own_line():
    assert "doctor" in cli.LOOK_FOR_THEMSELVES      # tests/test_doctor.py has the line
