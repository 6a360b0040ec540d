# SPDX-License-Identifier: MIT
"""Tests that need GPUs, `make gpu-test`: all are marked `gpu`, and skip without one."""

import gc
import os
from pathlib import Path

import pytest

from deepep_ptx._cuda import device_count, why_not

HERE = Path(__file__).parent

# Ranks that share a GPU need hardware queues of their own, also where an earlier test has made the
# context for ranks that share none.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")


def pytest_collection_modifyitems(items):
    reason = why_not()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def two_gpus():
    """For tests that ranks which share a GPU cannot pass."""
    if device_count() < 2:
        pytest.skip(f"needs two GPUs, there is {device_count()}")


@pytest.fixture(autouse=True)
def collected():
    """What a run of ranks as threads has left ends here, and not in a later test, where the driver
    may stand still in it while another rank's kernel waits for this one."""
    yield
    gc.collect()
