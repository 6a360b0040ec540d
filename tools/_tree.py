# SPDX-License-Identifier: MIT
"""Lets a tool import deepep_ptx.toolchain of this source tree, built or not.

The package's own __init__ may come to import extension modules, which do not exist before the
tools have run: a bare namespace stands in for it.
"""

import sys
import types
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if "deepep_ptx" not in sys.modules:
    package = types.ModuleType("deepep_ptx")
    package.__path__ = [str(ROOT / "deepep_ptx")]
    sys.modules["deepep_ptx"] = package


def run(main: Callable[[], int]) -> None:
    """Exit with what `main` returns, or with 1 and one line where its input is bad."""
    from deepep_ptx.toolchain.errors import ToolchainError

    try:
        sys.exit(main())
    except ToolchainError as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")
