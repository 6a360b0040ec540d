# SPDX-License-Identifier: MIT
"""What a call asks of the driver, counted by one that does nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A wait between streams is a record and a wait; one asks whether the caller's is captured.
MADE = {"cuLaunchKernelEx": 1, "cuEventRecord": 2, "cuStreamWaitEvent": 2,
        "cuStreamGetCaptureInfo": 1}
# Launches of what makes several: each waits for the caller's stream, and that for it.
LAUNCHES = {"low-latency pair": 2, "low-latency pair, hooks": 4}
# Small results of torch are copies, made by a kernel of their own.
COPIED = ("dispatch, cached", "dispatch, worst case")
# In the thread, without a way into the driver's locks.
CHEAP = {"cuCtxGetCurrent", "cuThreadExchangeStreamCaptureMode"}


def test_driver_calls(tmp_path):
    pytest.importorskip("torch")
    record = tmp_path / "record.json"
    subprocess.run([sys.executable, ROOT / "bench/host_time.py", "--null", "--rounds", "1",
                    "--out", record], check=True, timeout=100, capture_output=True)
    calls = json.loads(record.read_text())["calls"]
    assert {"layout", "dispatch, cached", "dispatch, worst case", "combine", *LAUNCHES} <= (
        calls.keys())
    for name, call in calls.items():
        made = {function: count for function, count in call["driver_calls"].items()
                if function not in CHEAP}
        want = MADE | {"cuLaunchKernelEx": 1 + (name in COPIED)}
        launches = LAUNCHES.get(name, 1)
        assert made == {function: launches * count for function, count in want.items()}, name
