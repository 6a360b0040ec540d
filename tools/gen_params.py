#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""params.h -> ptx/gen/params.inc, cysrc/gen/{params.pxd,params_check.h,heap_layout.h}."""

import argparse

import _tree

from deepep_ptx.toolchain import params


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for path in params.generate(_tree.ROOT):
        print(f"gen_params: wrote {path.relative_to(_tree.ROOT)}")
    return 0


if __name__ == "__main__":
    _tree.run(main)
