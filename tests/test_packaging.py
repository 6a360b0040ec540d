# SPDX-License-Identifier: MIT
"""What the sdist and the wheel hold.  `make wheel` builds the wheel from the sdist, checks it and
runs the demo from it; here are its checks."""

import importlib.util
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OF_THE_CLONE = {".ci/run", ".gitignore"}


@pytest.fixture(scope="module")
def make_wheel():
    """tools/make_wheel.py as a module."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        spec = importlib.util.spec_from_file_location("make_wheel", ROOT / "tools/make_wheel.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def test_sdist_is_the_tree(make_wheel, tmp_path):
    """So it builds, and its tests find all that they read."""
    pytest.importorskip("build")
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: nothing says what belongs to the tree")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    assert listed.returncode == 0 and tracked > OF_THE_CLONE
    with tarfile.open(make_wheel.make_sdist(ROOT, tmp_path)) as archive:
        names = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
    assert not tracked - OF_THE_CLONE - names
    made = ("ptx/gen/", "cysrc/gen/", "deepep_ptx/_ptx/", *OF_THE_CLONE)
    assert not [name for name in names if name.startswith(made) or name.endswith((".so", ".pyc"))]


# -- the checks of make wheel -----------------------------------------------------------------

MODULE = b"\x7fELF\0.dynsym\0"
WITH_SYMBOLS = b"\x7fELF\0.dynsym\0.symtab\0"
NAME = "deepep_ptx-0.1.0-cp311-cp311-manylinux_2_34_x86_64.whl"


@pytest.fixture
def tree(tmp_path):
    """A built tree of three files."""
    package = tmp_path / "tree/deepep_ptx"
    (package / "_ptx").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__init__.pyc").write_text("")
    (package / "_ptx/variants.json").write_text("{}")
    (package / "_emu.so").write_bytes(WITH_SYMBOLS)
    return package.parent


def a_wheel(folder, name=NAME, **changes):
    """A wheel of `tree` in which some files have other contents, or none."""
    contents = {"deepep_ptx/__init__.py": "", "deepep_ptx/_ptx/variants.json": "{}",
                "deepep_ptx/_emu.so": MODULE, "deepep_ptx-0.1.0.dist-info/METADATA": ""}
    with zipfile.ZipFile(folder / name, "w") as archive:
        for path, content in (contents | changes).items():
            if content is not None:
                archive.writestr(path, content)
    return folder / name


def test_a_right_wheel(make_wheel, tree, tmp_path):
    assert make_wheel.faults(a_wheel(tmp_path), tree) == []


@pytest.mark.parametrize("path, content, fault", [
    ("deepep_ptx/_emu.so", WITH_SYMBOLS, "deepep_ptx/_emu.so: has symbols"),
    ("deepep_ptx/_emu.so", None, "deepep_ptx/_emu.so: is missing"),
    ("deepep_ptx/_ptx/variants.json", None, "deepep_ptx/_ptx/variants.json: is missing"),
    ("tests/conftest.py", "", "tests/conftest.py: does not belong there"),
    ("deepep_ptx.libs/libz.so", MODULE, "deepep_ptx.libs/libz.so: does not belong there"),
    ("deepep_ptx/_ptx/variants.json", bytes(5_000_001), "5,000,"),
])
def test_a_wrong_wheel(path, content, fault, make_wheel, tree, tmp_path):
    found = make_wheel.faults(a_wheel(tmp_path, **{path: content}), tree)
    assert len(found) == 1 and found[0].startswith(fault)


def test_a_wheel_without_a_glibc(make_wheel, tree, tmp_path):
    name = NAME.replace("manylinux_2_34", "linux")
    assert make_wheel.faults(a_wheel(tmp_path, name), tree) == [f"{name}: not tagged for a glibc"]


def test_a_step_that_fails_shows_its_output(make_wheel, tmp_path):
    with pytest.raises(make_wheel.WheelError, match="of this"):
        make_wheel.run(sys.executable, "-c", "raise SystemExit('of this')", cwd=tmp_path)


# -- pyproject.toml ---------------------------------------------------------------------------

@pytest.mark.parametrize("folder", ["", "compat"])
def test_what_users_install_is_not_pinned_by_tests(folder):
    """Extras and needs of a package leave its users' torch alone; pcpp renders, which is done."""
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    assert project["license"] == "MIT"
    assert not [line for line in project["classifiers"] if line.startswith("License")]
    needs = project["dependencies"]
    assert not [line for line in needs if "pcpp" in line or "==" in line]
    extras = project.get("optional-dependencies", {})
    assert extras.get("torch", ["torch"]) == ["torch"]
