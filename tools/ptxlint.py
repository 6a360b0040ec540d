#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks the PTX sources, assembles every variant and checks the machine code it became."""

import argparse

import _tree

from deepep_ptx.toolchain import lint, params, ptxas, variants
from deepep_ptx.toolchain.generate import generate


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    root = _tree.ROOT
    generate(root)
    tools = ptxas.find()
    table = variants.load(root, params.load(root))
    findings = [*lint.check_sources(root), *lint.check_variants(table, root, tools)]
    for finding in findings:
        print(finding)
    print(
        f"ptxlint: {len(table.variants)} variants, ptxas {tools.ptxas_version}, "
        f"{len(findings)} findings"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    _tree.run(main)
