#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Fails when ptx/variants.lock is not what the tree gives; with --write, rewrites it instead."""

import argparse

import _tree

from deepep_ptx.toolchain import lock, params, ptxas, variants
from deepep_ptx.toolchain.files import write_if_changed
from deepep_ptx.toolchain.generate import generate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="rewrite the lock (make lock)")
    root, write = _tree.ROOT, parser.parse_args().write
    generate(root, figures=not write)
    table = variants.load(root, params.load(root))
    if write:
        changed = write_if_changed(root / lock.LOCK, lock.text_of(table, root, ptxas.find()))
        lock.ship(root)
        print(f"check_gen: {lock.LOCK} {'rewritten' if changed else 'is current'}")
        return 0
    try:
        tools = ptxas.find()
    except ptxas.ToolError:
        tools = None
    drifts, note = lock.check(table, root, tools)
    for drift in drifts:
        print(f"{lock.LOCK}: {drift}")
    if note:
        print(f"check_gen: hashes only: {note}")
    advice = "; if they are meant, run `make lock`" if drifts else ""
    print(f"check_gen: {len(table.variants)} variants, {len(drifts)} drifts{advice}")
    return 1 if drifts else 0


if __name__ == "__main__":
    _tree.run(main)
