# SPDX-License-Identifier: MIT
"""The tests run on the CPU executor, also where there is a GPU, unless DEEPEP_PTX_EXECUTOR says
otherwise: `DEEPEP_PTX_EXECUTOR=cuda python -m pytest tests/test_roundtrip.py`."""

import os

import hypothesis
import pytest

os.environ.setdefault("DEEPEP_PTX_EXECUTOR", "emu")

pytest_plugins = ["watchdog"]

# No test is timed: what runs first may compile, and machines are shared.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_configure(config):
    """Tests of rendered text that is not what ptx/ holds would say yes to something else."""
    from deepep_ptx.cli import catalogue

    if catalogue.is_stale():
        raise pytest.UsageError(f"{catalogue.STALE}: make gen")
