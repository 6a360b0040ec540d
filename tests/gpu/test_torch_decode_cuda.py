# SPDX-License-Identifier: MIT
"""examples/torch_decode.py, one process per GPU by torchrun: bits, times, picture."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepep_ptx._cuda import device_count

pytest.importorskip("torch")
pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]


def test_torchrun(two_gpus, tmp_path):
    num_ranks, path = min(device_count(), 8), tmp_path / "steps.png"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(num_ranks), "examples/torch_decode.py", "--picture", str(path)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    assert done.stdout.count("bit-exact") == num_ranks
    assert done.stdout.count("µs (median of 21 steps of 2 layers)") == 2
    if importlib.util.find_spec("matplotlib"):
        assert path.read_bytes().startswith(b"\x89PNG")
    else:
        assert f"{path}: not drawn, which takes matplotlib" in done.stdout
