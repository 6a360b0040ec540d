# SPDX-License-Identifier: MIT
"""Executors of the CPU that are short of memory, as the core sees them (faults.c)."""

import contextlib
import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CC = shutil.which("cc") or "gcc"
INCLUDE = [f"-I{ROOT / folder}" for folder in ("cysrc", "cysrc/gen", "deepep_ptx/include")]
FLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", *INCLUDE]


@functools.cache
def _library():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "faults.so"
        subprocess.run([CC, *FLAGS, "-O1", "-shared", "-fPIC", "-o", path, ROOT / "tests/faults.c"],
                       check=True)
        library = ctypes.CDLL(path)
    library.faults_plant.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64
    library.faults_remove.argtypes = (ctypes.c_void_p,)
    return library


@contextlib.contextmanager
def short_of_memory(executor, function="alloc", above=0):
    """Within the block, `function` of the table has no memory: "alloc" none for more than `above`
    bytes of an arena, "import_memory" none for a peer's, "copy_in" none at all."""
    assert _library().faults_plant(executor.table_address, function.encode(), above)
    try:
        yield
    finally:
        _library().faults_remove(executor.table_address)
