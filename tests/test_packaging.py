# SPDX-License-Identifier: MIT
"""The package as a user gets it: built from the sdist, installed alone, run from elsewhere."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMO = "--ranks 2 --tokens 8 --hidden 128 --experts 8 --groups 2 --topk-groups 1 --topk 2"

pytestmark = pytest.mark.slow


def run(*command, cwd):
    """Run a command outside of this tree's influence; its output, or a failure that shows it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DEEPEP_"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """(sdist, wheel); the wheel is built from the sdist, by this interpreter's build packages."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def test_sdist_holds_sources_only(dist):
    with tarfile.open(dist[0]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"ptx/variants.toml", "ptx/variants.lock", "Makefile", "LICENSE", "setup.py"} <= names
    made = ("ptx/gen/", "cysrc/gen/", "deepep_ptx/_ptx/")
    assert not [name for name in names if name.startswith(made) or name.endswith((".so", ".pyc"))]


def test_wheel_holds_what_runs(dist):
    with zipfile.ZipFile(dist[1]) as archive:
        names = set(archive.namelist())
    modules = {name.split(".")[0] for name in names if name.endswith(".so")}
    pyx = {path.stem for path in (ROOT / "cysrc/deepep_ptx").glob("*.pyx")}
    assert modules == {f"deepep_ptx/{name}" for name in pyx}
    assert "deepep_ptx/include/deepep_ptx/params.h" in names
    assert "deepep_ptx/_ptx/variants.json" in names
    stubs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "deepep_ptx").rglob("*.pyi")}
    assert stubs and stubs | {"deepep_ptx/py.typed"} <= names
    ptx = {path.relative_to(ROOT).as_posix() for path in (ROOT / "deepep_ptx/_ptx").rglob("*.ptx")}
    assert ptx and ptx <= names
    assert not [name for name in names if name.startswith(("tests", "tools", "cysrc", "ptx/"))]


def test_demo_from_an_empty_environment(dist, tmp_path):
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin/python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, dist[1], cwd=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run(python, "-c", "import deepep_ptx; print(deepep_ptx.__file__)", cwd=elsewhere)
    assert str(environment) in where
    print(run(environment / "bin/deepep-ptx", "demo", *DEMO.split(), cwd=elsewhere))
