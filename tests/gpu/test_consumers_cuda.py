# SPDX-License-Identifier: MIT
"""The consumers' programs, one process per GPU by torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepep_ptx._cuda import device_count

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]

sys.path.insert(0, str(ROOT / "compat"))
from tests.consumers import megatron, sglang, tensorrt_llm, vllm  # noqa: E402


@pytest.mark.parametrize("module", [megatron, sglang, vllm, tensorrt_llm],
                         ids=lambda module: module.__name__.rpartition(".")[2])
def test_programs(module):
    """All of a consumer in one run, since each takes ten seconds to start."""
    consumer, num_ranks = module.__name__.rpartition(".")[2], max(2, min(device_count(), 8))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(num_ranks), "tests/consumers/torchrun_main.py", consumer],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=200)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    for name in module.PROGRAMS:
        assert done.stdout.count(f"{consumer}, {name}: bit-exact") == num_ranks, name
