#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Renders every variant of ptx/variants.toml into deepep_ptx/_ptx, after what it depends on."""

import argparse

import _tree

from deepep_ptx.toolchain.generate import generate


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for path in generate(_tree.ROOT):
        did = "wrote" if path.exists() else "removed"
        print(f"ptxgen: {did} {path.relative_to(_tree.ROOT)}")
    return 0


if __name__ == "__main__":
    _tree.run(main)
