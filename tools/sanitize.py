#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs tests of the C code under AddressSanitizer and UndefinedBehaviorSanitizer.

Builds the package with both into build/sanitize, proves that both work in the environment of the
tests (a planted fault of either kind must end its process), and runs the tests on it.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import _tree

FOLDER = _tree.ROOT / "build/sanitize"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all"
# The executor's core, what calls it, and the host side of the buffer; not what measures time.
TESTS = [
    "tests/emu", "tests/fuzz", "tests/test_arena.py", "tests/test_alignment.py",
    "tests/test_buffer_life.py", "tests/test_lifetimes.py", "--deselect",
    "tests/emu/test_decode.py::test_decoding_is_quick", "--deselect",
    "tests/emu/test_address_space.py::test_more_mappings_than_the_address_space_has_room_for",
]
PLANTED = """\
#include <stdlib.h>
int overflow(int n) { char *p = malloc(n); int byte = p[n]; free(p); return byte; }
int shift(int n) { return 1 << n; }
"""
# What each finds, and what its report says.
PROOFS = {"overflow": "AddressSanitizer: heap-buffer-overflow", "shift": "runtime error: shift"}


def runtime(cc: list[str], name: str) -> str:
    """Path of one of the compiler's libraries."""
    path = subprocess.run([*cc, f"-print-file-name={name}"], check=True, capture_output=True,
                          text=True).stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"sanitize: {shlex.join(cc)} has no {name}: install its sanitizers")
    return path


def environment(cc: list[str]) -> dict[str, str]:
    """That of a Python which loads sanitized extensions, and the package from FOLDER.

    The sanitizer's library comes first, then C++'s, whose exceptions it wraps.  Python's objects
    come from malloc, one by one, so that a use of a freed one is seen.  What tests compile of the
    core takes CFLAGS.
    """
    return {
        **os.environ,
        "CFLAGS": FLAGS,
        "LD_PRELOAD": ":".join(runtime(cc, name) for name in ("libasan.so", "libstdc++.so")),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=16",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": f"{FOLDER / 'lib'}:{_tree.ROOT}",     # before the tree's own package
        "PYTHONSAFEPATH": "1",
    }


def build(cc: list[str]) -> None:
    subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", "--quiet", "build_ext", "--sanitize", FLAGS,
         "build", "--build-base", FOLDER, "--build-lib", FOLDER / "lib"],
        cwd=_tree.ROOT, check=True, env={**os.environ, "CC": shlex.join(cc)})


def prove(cc: list[str], env: dict[str, str]) -> None:
    """Ends unless planted faults are found, and what the tests import is built to find them."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "planted.c", Path(folder) / "planted.so"
        source.write_text(PLANTED)
        subprocess.run([*cc, *FLAGS.split(), "-shared", "-fPIC", source, "-o", library], check=True)
        for function, says in PROOFS.items():
            call = f"import ctypes; ctypes.CDLL({str(library)!r}).{function}(99)"
            done = subprocess.run([sys.executable, "-c", call], env=env, capture_output=True,
                                  text=True)
            if done.returncode == 0 or says not in done.stderr:
                sys.exit(f"sanitize: a planted {function} was not reported:\n{done.stderr}")
    modules = sorted((FOLDER / "lib/deepep_ptx").glob("*.so"))
    for module in modules:
        if not all(symbol in module.read_bytes() for symbol in (b"__asan_report", b"__ubsan_h")):
            sys.exit(f"sanitize: {module} was built without the sanitizers")
    where = "import deepep_ptx._emu; print(deepep_ptx._emu.__file__)"
    found = subprocess.run([sys.executable, "-c", where], env=env, check=True, capture_output=True,
                           text=True).stdout.strip()
    if Path(found) not in modules:
        sys.exit(f"sanitize: the tests would import {found}, not what is in {FOLDER}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cc", default="gcc", help="the compiler (default: gcc)")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, behind --")
    args = parser.parse_args()
    cc = shlex.split(args.cc)
    env = environment(cc)
    build(cc)
    prove(cc, env)
    print(f"sanitize: {FLAGS}: both found what was planted")
    return subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *TESTS,
                           *args.pytest], cwd=_tree.ROOT, env=env).returncode


if __name__ == "__main__":
    _tree.run(main)
