# SPDX-License-Identifier: MIT
"""Kernels from sources in which something is changed that should not be."""

import shutil
from pathlib import Path

from deepep_ptx.toolchain import params, render, variants

ROOT = Path(__file__).resolve().parents[1]


def copy_sources(to):
    """Copies all that variants are rendered from to the directory `to`; returns it."""
    for name in ("ptx", "deepep_ptx/include"):
        shutil.copytree(ROOT / name, to / name)
    return to


def weaken(root, file, old, new):
    """In `file` below the directory `root`: `new` in the place of `old`, wherever that is."""
    path = root / file
    text = path.read_text()
    assert old in text, f"{file} has no {old!r}"
    path.write_text(text.replace(old, new))


class Reader:
    """Reads variants as `select.read_text` does, rendered from the sources in `root`."""

    def __init__(self, root):
        self.root = root
        self.variants = {v.file: v for v in variants.load(root, params.load(root)).variants}
        self.texts = {}

    def __call__(self, variant):
        file = variant["file"]
        if file not in self.texts:
            self.texts[file] = render.render(self.variants[file], self.root)
        return self.texts[file]
