# SPDX-License-Identifier: MIT
"""Everything that is generated and not committed, in the order in which it depends."""

from pathlib import Path

from deepep_ptx.toolchain import isa_header, kernels, lock, params, render, variants
from deepep_ptx.toolchain.files import write_if_changed


def generate(root: Path, figures: bool = True) -> list[Path]:
    """Bring the generated files of the source tree `root` up to date; return those rewritten or
    removed.

    figures: of the lock as well, which has to be whole for it.
    """
    root = Path(root)
    changed = params.generate(root)
    table = variants.load(root, params.load(root))
    headers = {"isa.h": isa_header.header_text(), "kernels.h": kernels.header_text(table)}
    changed += [root / "cysrc/gen" / name for name, text in headers.items()
                if write_if_changed(root / "cysrc/gen" / name, text)]
    changed += render.generate(root)
    return changed + lock.ship(root) if figures else changed
