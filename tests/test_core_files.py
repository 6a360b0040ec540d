# SPDX-License-Identifier: MIT
"""The core as a library: its public header, and the order of its files."""

import re
import shutil
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "cysrc/core"
INCLUDE = [f"-I{ROOT / folder}" for folder in ("cysrc", "cysrc/gen", "deepep_ptx/include")]
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


@pytest.mark.parametrize(("compiler", "language"), [("cc", "c11"), ("c++", "c++17")])
@pytest.mark.parametrize("header", ["deepep_ptx", "executor", "params", "symmetric"])
def test_headers_compile_on_their_own(header, compiler, language, tmp_path):
    """As programs without Python include them, in whatever order."""
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    source = tmp_path / f"alone.{'c' if compiler == 'cc' else 'cpp'}"
    source.write_text(f'#include "deepep_ptx/{header}.h"\n#include "deepep_ptx/{header}.h"\n')
    subprocess.run([compiler, f"-std={language}", *STRICT, "-fsyntax-only",
                    f"-I{ROOT / 'deepep_ptx/include'}", source], check=True)


def symbols_of(source, folder):
    """(those that it defines, those that it needs)."""
    made = folder / f"{source.stem}.o"
    subprocess.run([shutil.which("cc") or "gcc", "-std=gnu11", "-c", *INCLUDE, "-o", made, source],
                   check=True)
    lines = subprocess.run(["nm", "-g", "-P", made], check=True, capture_output=True,
                           text=True).stdout.splitlines()
    kinds = [line.split()[:2] for line in lines]
    return ({name for name, kind in kinds if kind != "U"},
            {name for name, kind in kinds if kind == "U"})


def test_no_circle_of_files(tmp_path):
    """Of sources that call each other, nor of headers that include each other."""
    symbols = {source.name: symbols_of(source, tmp_path) for source in sorted(CORE.glob("*.c"))}
    home = {name: file for file, (defined, _) in symbols.items() for name in defined}
    assert home["ep_buffer_destroy"] in symbols
    calls = {file: {home[name] for name in needed if name in home}
             for file, (_, needed) in symbols.items()}
    includes = {header.name: re.findall(r'#include "core/(.*)"', header.read_text())
                for header in sorted(CORE.glob("*.h"))}
    for files in calls, includes:
        assert set(TopologicalSorter(files).static_order()) == set(files)   # CycleError names it


def test_who_reads_the_core_s_own_headers():
    """The core; everybody else has deepep_ptx.h and executor.h."""
    files = [path for folder in ("cysrc", "tests") for path in (ROOT / folder).rglob("*.*")
             if path.suffix in (".c", ".h", ".pyx", ".pxd") and "gen" not in path.parts]
    readers = {path.relative_to(ROOT).as_posix() for path in files
               if re.search(r'["<]core/\w+\.h[">]', path.read_text())}
    assert {name for name in readers if not name.startswith("cysrc/core/")} == {
        "tests/arena.c", "tests/symmetric.c"}
