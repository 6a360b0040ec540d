#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compiles the plain C sources with every warning an error; writes nothing."""

import argparse
import shlex
import subprocess

import _tree

from deepep_ptx.toolchain import cuda
from deepep_ptx.toolchain.generate import generate

FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cc", default="cc", help="the compiler (default: cc)")
    compiler = shlex.split(parser.parse_args().cc)
    root = _tree.ROOT
    generate(root)
    includes = [root / "cysrc", root / "cysrc/gen", root / "deepep_ptx/include", cuda.include()]
    sources = sorted(root.glob("cysrc/**/*.c"))
    failed = 0
    for source in sources:
        command = [*compiler, *FLAGS, *(f"-I{folder}" for folder in includes), "-c",
                   source.relative_to(root), "-o", "/dev/null"]
        failed += subprocess.run(command, cwd=root).returncode != 0
    print(f"lint_c: {len(sources)} sources, {failed} with findings")
    return 1 if failed else 0


if __name__ == "__main__":
    _tree.run(main)
