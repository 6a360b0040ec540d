# SPDX-License-Identifier: MIT
"""`deep_ep` from the tree, without installing it."""

import sys
from pathlib import Path

COMPAT = Path(__file__).resolve().parents[2] / "compat"

sys.path.insert(0, str(COMPAT))
