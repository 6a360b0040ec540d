# SPDX-License-Identifier: MIT
"""Imports go one way: no circles, and nothing of the library knows the command line."""

import ast
import graphlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deepep_ptx

ROOT = Path(deepep_ptx.__file__).parents[1]
PYTHON = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
          for path in (ROOT / "deepep_ptx").rglob("*.py")}
CYTHON = {f"deepep_ptx.{path.stem}": path for path in (ROOT / "cysrc/deepep_ptx").glob("*.pyx")}
CYTHON_IMPORT = re.compile(r"^ *from (deepep_ptx[\w.]*) c?import (\([^)]*\)|.*)", re.MULTILINE)
# What `python -m deepep_ptx` runs is the command.
COMMAND = ("deepep_ptx.cli", "deepep_ptx.__main__")


def named(module):
    """(module, names) of all imports in a file, in functions too."""
    if module in CYTHON:
        for base, names in CYTHON_IMPORT.findall(CYTHON[module].read_text()):
            yield base, re.findall(r"\w+", re.sub("#.*", "", names))
        return
    is_package = PYTHON[module].name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(PYTHON[module].read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield base, [alias.name for alias in node.names]


def imported(module):
    """Modules of the package that run before a module does: what it names, and the packages that
    those lie in, but for those that it lies in itself."""
    found = set()
    for base, names in named(module):
        if base.partition(".")[0] != "deepep_ptx":
            continue
        for name in names or [""]:
            whole = f"{base}.{name}"
            parts = (whole if whole in PYTHON or whole in CYTHON else base).split(".")
            found |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    return {name for name in found if name != module and not module.startswith(f"{name}.")}


def test_imports_are_read():
    assert {"deepep_ptx._call", "deepep_ptx.arrays.library"} <= imported("deepep_ptx.buffer")
    assert {"deepep_ptx._array", "deepep_ptx.arrays"} <= imported("deepep_ptx._call")
    assert "deepep_ptx._limits" in imported("deepep_ptx.knobs"), "of a function"
    assert "deepep_ptx.cli.tables" in imported("deepep_ptx.cli.ab.report")


def test_no_circles():
    """Not even those that an import inside a function would break."""
    graph = {module: imported(module) for module in [*PYTHON, *CYTHON]}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_library_does_not_name_the_command_line():
    library = [module for module in [*PYTHON, *CYTHON] if not module.startswith(COMMAND)]
    assert len(library) > 40
    assert [module for module in library
            if any(name.startswith(COMMAND) for name in imported(module))] == []


def test_the_library_does_not_load_the_command_line():
    code = ("import sys, deepep_ptx; [getattr(deepep_ptx, name) for name in deepep_ptx.__all__]; "
            "print([name for name in sys.modules if name.startswith('deepep_ptx.cli')])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
