# SPDX-License-Identifier: MIT
"""Buffers, groups and results that only the garbage collector can free, in any order it likes."""

import subprocess
import sys

import pytest

SCRIPT = """
import gc
import sys

import ml_dtypes
import numpy as np

from deepep_ptx import Buffer, run_ranks

KEPT, CALLS = sys.argv[1:]


def rank_main(comm):
    x = np.full((3, 16), comm.rank, ml_dtypes.bfloat16)
    topk_idx = np.array([[0, 3], [1, 2], [-1, 0]])
    buffer = Buffer(comm)
    things = {"comm": comm, "buffer": buffer}
    cycle = []
    cycle.append(cycle)
    if CALLS == "called":
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(topk_idx, 4)
        things["recv_x"], _, _, _, handle, _ = buffer.dispatch(
            x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert, topk_idx=topk_idx,
            topk_weights=np.ones((3, 2), np.float32))
        buffer.combine(things["recv_x"], handle)
    elif CALLS == "in flight":
        buffer.get_dispatch_layout(topk_idx, 4, async_finish=True)
    if KEPT == "error":
        try:
            buffer.dispatch(x, num_tokens_per_rank=None)
        except TypeError as error:
            kept = error                # its traceback holds this frame, which holds it
    else:
        cycle.append(things[KEPT])


gc.disable()
for _ in range(20):
    run_ranks(rank_main, 2, executor="emu")
assert gc.collect() > 0
print("alive")
"""


@pytest.mark.parametrize("kept, calls", [
    ("buffer", "called"), ("comm", "called"), ("recv_x", "called"), ("error", "called"),
    ("buffer", "new"), ("comm", "new"), ("error", "new"),
    ("buffer", "in flight"), ("comm", "in flight"), ("error", "in flight"),
])
def test_a_cycle_that_the_collector_breaks(kept, calls):
    done = subprocess.run([sys.executable, "-c", SCRIPT, kept, calls],
                          capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]
