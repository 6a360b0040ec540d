# SPDX-License-Identifier: MIT
"""Writing generated files."""

from pathlib import Path


def write_if_changed(path: Path, text: str) -> bool:
    """Write `text` to `path` (UTF-8) unless it holds just that; return whether it was written.

    An untouched file keeps its time stamp, so that nothing that depends on it is built again.
    """
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return True
