# SPDX-License-Identifier: MIT
"""C: no circles of files, nothing below that includes what is above, headers that stand alone."""

import re
import shutil
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
C_FILES = [path for path in sorted((ROOT / "cysrc").rglob("*.[ch]"))
           if path.parent.name != "deepep_ptx"]        # there: what Cython writes
INCLUDED_FROM = ("cysrc", "cysrc/gen", "deepep_ptx/include")

# Folders of cysrc, and those that they may include besides.
BELOW = {
    "core": {"gen", "include"},
    "cuda": {"gen", "include"},
    "emu/device": {"gen"},
    "emu/race": {"emu/device", "gen"},
    "emu/host": {"emu/device", "emu/race", "include"},
    "lending": set(),
}


def code_of(path):
    """The text without comments and strings."""
    text = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.S)
    return re.sub(r'"(\\.|[^"\\\n])*"', '""', text)


def name_of(path):
    """Its path from the folder that it is included from."""
    path = path.resolve()
    inside = ROOT / "deepep_ptx/include"
    if path.is_relative_to(inside):
        return f"include/{path.relative_to(inside).as_posix()}"
    return path.relative_to(ROOT / "cysrc").as_posix()


def folder_of(name):
    return "include" if name.startswith("include/") else name.rpartition("/")[0]


def included(path):
    """Names of the files of the tree that `path` includes."""
    for name in re.findall(r'^#include "(.*)"', path.read_text(), re.M):
        places = [path.parent, *(ROOT / folder for folder in INCLUDED_FROM)]
        found = [place / name for place in places if (place / name).exists()]
        assert found, f"{path}: there is no {name}"
        yield name_of(found[0])


def functions_of(code):
    """Names of the functions that a C file defines for others."""
    heads = re.findall(r"^(?!static|typedef)([A-Za-z_][^;{}()=#]*?)\b(\w+)\([^;{}]*\)\s*\n\{",
                       code, re.M)
    return {name for before, name in heads if not {"static", "EMU_INLINE"} & {*before.split()}}


def calls():
    """C file -> C files whose functions it names."""
    codes = {name_of(path): code_of(path) for path in C_FILES if path.suffix == ".c"}
    defined_in = {}
    for file, code in codes.items():
        for function in functions_of(code):
            assert function not in defined_in, f"{function}: in {file} and {defined_in[function]}"
            defined_in[function] = file
    return {file: {defined_in[word] for word in set(re.findall(r"(?<![.>\w])\w+", code))
                   if word in defined_in} - {file}
            for file, code in codes.items()}


def test_functions_are_found():
    assert {"one", "two"} == functions_of(
        "int one(int a,\n        int b)\n{\n}\nstatic int hidden(void)\n{\n}\n"
        "struct x *two(void)\n{\n}\nint declared(void);\n")
    called = calls()
    assert "emu/device/fault.c" in called["emu/device/access.c"]
    assert "emu/host/failure.c" in called["emu/host/world.c"]           # a function's address
    assert "emu/device/access.c" not in called["emu/device/fault.c"]


def test_no_circles_of_calls():
    assert set(TopologicalSorter(calls()).static_order()) == calls().keys()  # CycleError names it


def test_no_circles_of_includes():
    includes = {name_of(path): set(included(path)) for path in C_FILES}
    assert set(TopologicalSorter(includes).static_order()) >= includes.keys()


def test_c_files_include_what_is_below_them():
    wrong = [f"{name_of(path)} includes {name}"
             for path in C_FILES if path.parent.name != "gen" for name in included(path)
             if folder_of(name) not in {folder_of(name_of(path)), *BELOW[folder_of(name_of(path))]}]
    assert not wrong


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


def test_who_reads_the_core_s_own_headers():
    """The core; everybody else has deepep_ptx.h and executor.h."""
    files = [path for folder in ("cysrc", "tests") for path in (ROOT / folder).rglob("*.*")
             if path.suffix in (".c", ".h", ".pyx", ".pxd") and "gen" not in path.parts]
    readers = {path.relative_to(ROOT).as_posix() for path in files
               if re.search(r'["<]core/\w+\.h[">]', path.read_text())}
    assert {name for name in readers if not name.startswith("cysrc/core/")} == {
        "tests/arena.c", "tests/symmetric.c"}
