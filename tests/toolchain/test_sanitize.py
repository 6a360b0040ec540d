# SPDX-License-Identifier: MIT
"""`tools/sanitize.py` fails where the sanitizers would find nothing."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deepep_ptx

TOOLS = Path(__file__).resolve().parents[2] / "tools"
CC = ["gcc"]


def has_sanitizers():
    """gcc names the whole path of a library that it has."""
    return shutil.which("gcc") is not None and "/" in subprocess.run(
        [*CC, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout


pytestmark = pytest.mark.skipif(not has_sanitizers(), reason="needs gcc's sanitizers")


@pytest.fixture
def sanitize(monkeypatch, tmp_path):
    """The tool, with a folder of its own that holds this tree's modules, built without."""
    monkeypatch.syspath_prepend(TOOLS)
    spec = importlib.util.spec_from_file_location("sanitize", TOOLS / "sanitize.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.delitem(sys.modules, "_tree")
    monkeypatch.setattr(tool, "FOLDER", tmp_path)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/deepep_ptx").symlink_to(Path(deepep_ptx.__file__).parent)
    return tool


@pytest.mark.parametrize("function", ["overflow", "shift"])
def test_a_planted_fault_that_is_not_found(sanitize, monkeypatch, function):
    found = {"overflow": "address", "shift": "undefined"}[function]
    others = sanitize.FLAGS.replace(f"{found},", "").replace(f",{found}", "")
    monkeypatch.setattr(sanitize, "FLAGS", others)
    with pytest.raises(SystemExit, match=f"a planted {function} was not reported"):
        sanitize.prove(CC, sanitize.environment(CC))


def test_a_finding_that_does_not_end_the_process(sanitize, monkeypatch):
    monkeypatch.setattr(sanitize, "FLAGS", "-fsanitize=address,undefined")
    with pytest.raises(SystemExit, match="a planted shift was not reported"):
        sanitize.prove(CC, sanitize.environment(CC))


def test_modules_that_were_built_without(sanitize):
    with pytest.raises(SystemExit, match="was built without the sanitizers"):
        sanitize.prove(CC, sanitize.environment(CC))


def test_a_compiler_without_sanitizers(sanitize):
    with pytest.raises(SystemExit, match="gcc has no libno.so: install its sanitizers"):
        sanitize.runtime(CC, "libno.so")
