# SPDX-License-Identifier: MIT
"""One process per GPU over a gloo group: peers mapped with CUDA IPC; a peer that is killed."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from deepep_ptx import Buffer  # noqa: E402
from deepep_ptx.errors import DeepEPTimeoutError  # noqa: E402
from tests.gpu.processes import spawn  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import moe_layer  # noqa: E402

TIMEOUT_S = 2.0


def rounds(rank, group, policy):
    with Buffer(group, policy=policy, timeout_s=20.0) as buffer:
        for seed in range(20):
            assert moe_layer.run(buffer, torch.device("cuda"), seed) == 0


def survive(rank, group, policy):
    buffer = Buffer(group, policy=policy, timeout_s=TIMEOUT_S)
    assert moe_layer.run(buffer, torch.device("cuda")) == 0
    if rank == 1:
        os._exit(9)
    began = time.monotonic()
    with pytest.raises(DeepEPTimeoutError) as info:
        moe_layer.run(buffer, torch.device("cuda"))
    assert info.value.peer == 1
    assert time.monotonic() - began < 3 * TIMEOUT_S
    ones = torch.ones(1 << 20, device="cuda")          # the context still runs kernels
    assert ones.sum().item() == 1 << 20
    idx = torch.zeros(4, 1, dtype=torch.int64, device="cuda")
    assert ones.device.index == rank and idx.sum().item() == 0


def interrupt(rank, group, policy):
    buffer = Buffer(group, policy=policy, timeout_s=60.0)
    assert moe_layer.run(buffer, torch.device("cuda")) == 0
    if rank == 1:
        time.sleep(6)                 # never comes
        return
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        moe_layer.run(buffer, torch.device("cuda"))
    assert 0.5 < time.monotonic() - began < 4


def test_ctrl_c_ends_a_wait():
    assert spawn(interrupt, "fast") == [0, 0]


@pytest.mark.parametrize("policy", ["fast", "bulk"])
def test_rounds(policy):
    assert spawn(rounds, policy) == [0, 0]


def test_killed_peer():
    assert spawn(survive, "fast") == [0, 9]
