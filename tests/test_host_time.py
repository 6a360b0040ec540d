# SPDX-License-Identifier: MIT
"""What a call asks of the driver, counted by one that does nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A wait between streams is a record and a wait; the end of results is one more.  Queries: whether
# the streams are captured, and whether the caller's work has failed.
MOST = {"cuLaunchKernelEx": 1, "cuEventRecord": 3, "cuStreamWaitEvent": 3,
        "cuStreamGetCaptureInfo": 3, "cuStreamQuery": 1}
# In the thread, without a way into the driver's locks.
CHEAP = {"cuCtxGetCurrent", "cuThreadExchangeStreamCaptureMode"}


def test_driver_calls(tmp_path):
    pytest.importorskip("torch")
    record = tmp_path / "record.json"
    subprocess.run([sys.executable, ROOT / "bench/host_time.py", "--null", "--rounds", "1",
                    "--out", record], check=True, timeout=100, capture_output=True)
    calls = json.loads(record.read_text())["calls"]
    assert {"layout", "dispatch, cached", "dispatch, worst case", "combine"} <= calls.keys()
    for name, call in calls.items():
        made = {function: count for function, count in call["driver_calls"].items()
                if function not in CHEAP}
        assert made["cuLaunchKernelEx"] == 1
        assert all(count <= MOST.get(function, 0) for function, count in made.items()), (name, made)
