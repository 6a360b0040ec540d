# SPDX-License-Identifier: MIT
"""The tests run on the CPU executor, also where there is a GPU, unless DEEPEP_PTX_EXECUTOR says
otherwise: `DEEPEP_PTX_EXECUTOR=cuda python -m pytest tests/test_roundtrip.py`."""

import os

os.environ.setdefault("DEEPEP_PTX_EXECUTOR", "emu")

pytest_plugins = ["watchdog"]
