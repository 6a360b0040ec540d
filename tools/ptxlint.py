#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks the PTX sources, assembles every variant and checks the machine code it became."""

import argparse

import _tree

from deepep_ptx.toolchain import lint, params, ptxas, roles, variants
from deepep_ptx.toolchain.generate import generate


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    root = _tree.ROOT
    generate(root)
    tools = ptxas.find()
    work = lint.rendered_variants(variants.load(root, params.load(root)), root)
    findings = [
        *lint.check_sources(root),
        *roles.check_roles(root, [rendered for _, rendered in work]),
        *lint.check_variants(work, root, tools),
    ]
    for finding in findings:
        print(finding)
    print(
        f"ptxlint: {len(work)} variants, ptxas {tools.ptxas_version}, "
        f"{len(findings)} findings"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    _tree.run(main)
