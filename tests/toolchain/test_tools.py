# SPDX-License-Identifier: MIT
"""The command lines of tools/, and the environment that the Makefile makes."""

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted(path.name for path in (ROOT / "tools").glob("[a-z]*.py"))


def run(python, *command, cwd=ROOT):
    return subprocess.run([python, *command], cwd=cwd, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("tool", TOOLS)
def test_help_is_help(tool):
    done = run(sys.executable, f"tools/{tool}", "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {tool}")


def make(*arguments):
    return subprocess.run(["make", "VENV=0", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_make_without_python():
    done = make("PYTHON=no/such/python", "gen")
    assert done.returncode and "no/such/python: not found" in done.stderr


def test_make_with_a_python_that_lacks_packages(tmp_path):
    venv.create(tmp_path / "venv", symlinks=True)
    done = make(f"PYTHON={tmp_path / 'venv/bin/python'}", "demo")
    assert done.returncode and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "lacks " in line]
    assert "Cython, numpy" in line and "VENV=0" in line


def test_make_installs_what_a_target_needs(tmp_path):
    """The demo's set alone for the demo, and pip says what it does."""
    def commands(target):
        done = subprocess.run(["make", "-n", f"VENV={tmp_path}/venv", target], cwd=ROOT,
                              capture_output=True, text=True)
        assert done.returncode == 0 and "pip install" in done.stdout, done.stderr
        assert not [line for line in done.stdout.splitlines()
                    if "pip install" in line and ("-q" in line or "--quiet" in line)]
        return done.stdout

    for target in ("demo", "build", "gen"):
        assert "--group build" in commands(target)
        assert "--group dev" not in commands(target)
    for target in ("test", "lint", "check-gen", "wheel"):
        assert "--group dev" in commands(target)
    for target in ("demo", "test", "sanitize"):
        assert commands(target).index("build_ext --inplace") < commands(target).index("--editable")


def test_groups_repeat_what_cannot_be_included():
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = document["dependency-groups"]
    assert groups["build"] == document["build-system"]["requires"]
    assert groups["ptxas"] == document["project"]["optional-dependencies"]["ptxas"]
