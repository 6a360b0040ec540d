# SPDX-License-Identifier: MIT
"""Failures on GPUs.  One that breaks the context has a process of its own."""

import subprocess
import sys
import time

import numpy as np
import pytest

from deepep_ptx import Buffer, RankError, leaving, run_ranks
from deepep_ptx.arrays import BFLOAT16
from deepep_ptx.errors import DeepEPTimeoutError

CALLERS_KERNEL = """
import numpy as np
from deepep_ptx import Buffer, run_ranks
from deepep_ptx.errors import DeepEPError

STRAY = '''.version 7.8
.target sm_90
.address_size 64
.visible .entry stray(.param .align 8 .b8 p[8])
{
    .reg .b64 a;
    ld.param.u64 a, [p];
    st.global.u64 [a], a;
    ret;
}
'''

def main(comm):
    buffer = Buffer(comm)
    executor = comm.executor
    kernel = executor.load("stray", STRAY, 8)
    try:
        executor.launch(kernel, (4096).to_bytes(8, "little"), 1, 1)
        return "the stray kernel ran"
    except DeepEPError as error:
        assert "CUDA_ERROR_ILLEGAL_ADDRESS" in str(error), error
    try:
        buffer.get_dispatch_layout(np.zeros((4, 1), np.int64), 4)
    except DeepEPError as error:
        return str(error)
    return "no error"

print(run_ranks(main, 1, executor="cuda")[0])
"""


def test_the_callers_failed_kernel_is_not_ours():
    done = subprocess.run([sys.executable, "-c", CALLERS_KERNEL], capture_output=True, text=True,
                          timeout=100)
    assert done.stdout.startswith("an earlier kernel or copy of the caller on GPU 0 failed: "
                                  "CUDA_ERROR_ILLEGAL_ADDRESS"), done.stdout + done.stderr


def dispatch(buffer):
    idx = np.zeros((4, 1), np.int64)
    layout = buffer.get_dispatch_layout(idx, 4)
    buffer.dispatch(np.zeros((4, 8), BFLOAT16), num_tokens_per_rank=layout[0],
                    is_token_in_rank=layout[3], num_tokens_per_expert=layout[2],
                    topk_idx=idx, topk_weights=np.zeros((4, 1), np.float32), num_worst_tokens=8)


def test_a_failed_rank_stops_the_others():
    def main(comm):
        buffer = Buffer(comm, timeout_s=100.0)
        if comm.rank == 0:
            time.sleep(0.5)                  # rank 1 waits in its call by now
            raise ValueError("rank 0 gives up")
        dispatch(buffer)

    began = time.monotonic()
    with pytest.raises(RankError, match="rank 0 gives up"):
        run_ranks(main, 2, executor="cuda", devices=[0, 0])
    assert time.monotonic() - began < 20


def test_a_rank_that_has_returned_is_named():
    """At once, and its heap is still there."""
    def main(comm):
        buffer = Buffer(comm, 1 << 22, timeout_s=20.0)
        comm.barrier()
        if comm.rank == 1:
            return None
        time.sleep(0.5)
        began = time.monotonic()
        with pytest.raises(DeepEPTimeoutError) as caught:
            dispatch(buffer)
        assert time.monotonic() - began < 10
        return caught.value.peer

    assert run_ranks(main, 2, executor="cuda", devices=[0, 0]) == [1, None]


def test_dropped_buffers_leave_nothing():
    """But for a moment, until all ranks have dropped theirs."""
    def main(comm):
        for _ in range(3):
            buffer = Buffer(comm, 1 << 22)
            del buffer
            comm.barrier()
        with Buffer(comm):
            return sum(core.executor is comm.executor for core in leaving._lasting)

    assert run_ranks(main, 2, executor="cuda", devices=[0, 0]) == [0, 0]
