# SPDX-License-Identifier: MIT
"""The command lines of tools/, and the environment that the Makefile makes."""

import subprocess
import sys
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


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The Python of an environment with nothing in it."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", symlinks=True)
    return folder / "venv/bin/python"


def test_missing_requirements_are_one_line(bare):
    done = run(bare, "tools/requirements.py", "--missing", "build", "base")
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "lacks " in done.stderr and "Cython>=" in done.stderr and "numpy>=" in done.stderr


def test_linked_environment_sees_the_clone(bare, tmp_path):
    assert run(bare, "tools/link.py").returncode == 0
    found = run(bare, "-c", "import importlib.util as u; print(u.find_spec('deepep_ptx').origin)",
                cwd=tmp_path)
    assert Path(found.stdout.strip()) == ROOT / "deepep_ptx/__init__.py"
    script = bare.parent / "deepep-ptx"
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith(f"#!{bare}\n")


def make(*arguments):
    return subprocess.run(["make", "VENV=0", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_make_without_python():
    done = make("PYTHON=no/such/python", "gen")
    assert done.returncode and "no/such/python: not found" in done.stderr


def test_make_with_a_python_that_lacks_packages(tmp_path):
    venv.create(tmp_path / "venv", symlinks=True)
    done = make(f"PYTHON={tmp_path / 'venv/bin/python'}", "demo")
    assert done.returncode and "lacks " in done.stderr and "Traceback" not in done.stderr


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
        assert "requirements.py build base >" in commands(target)
        assert "requirements.py dev" not in commands(target)
    for target in ("test", "lint", "check-gen", "wheel"):
        assert "requirements.py dev >" in commands(target)


def test_requirements_of_extras_and_groups():
    assert run(sys.executable, "tools/requirements.py", "tested-torch").stdout.startswith("torch==")
    assert run(sys.executable, "tools/requirements.py", "torch").stdout == "torch\n"
    assert "known: base, build, dev" in run(sys.executable, "tools/requirements.py", "x").stderr
