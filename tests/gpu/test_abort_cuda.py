# SPDX-License-Identifier: MIT
"""A rank that gives up ends its own call, also where its streams share one hardware queue, which
Megatron asks for: then the launch that tells the others may stand behind the call's kernel.

One GPU is enough.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 30        # of a process, whose kernels have none

SCRIPT = """
import sys
import time

import torch

from deepep_ptx import Buffer, RankError, run_ranks
from deepep_ptx._executor import Event

T, H, E = 64, 512, 4


class GivesUp(Exception):
    pass


def dispatch(buffer, **changes):
    idx = torch.arange(T, device="cuda").reshape(T, 1) % E
    x = torch.ones((T, H), dtype=torch.bfloat16, device="cuda")
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, E)
    return buffer.dispatch(x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                           num_tokens_per_expert=per_expert, topk_idx=idx,
                           topk_weights=torch.ones((T, 1), device="cuda"), **changes)


def leaves(comm, buffer):
    # Rank 0 leaves by an exception while its kernel waits for rank 1.
    core, event = buffer._core, Event(comm.executor)
    try:
        with buffer:
            dispatch(buffer, num_worst_tokens=2 * T)
            event.record(core.stream)
            time.sleep(0.2)
            assert not event.done
            raise GivesUp
    except GivesUp:
        pass
    began = time.monotonic()
    while not event.done:
        assert time.monotonic() - began < 10, "the kernel still waits"
        time.sleep(0.001)


def is_stopped(comm, buffer):
    # Its host waits for the totals, and is stopped, for rank 1 has failed.
    dispatch(buffer)


def main(comm, give_up):
    torch.cuda.set_device(0)
    with torch.cuda.stream(torch.cuda.Stream()):
        buffer = Buffer(comm, 1 << 22, timeout_s=None)
        comm.barrier()
        if comm.rank == 0:
            give_up(comm, buffer)
        elif give_up is is_stopped:
            time.sleep(0.5)
            raise GivesUp("rank 1 gives up")
        comm.barrier()


give_up = {"leaves": leaves, "is_stopped": is_stopped}[sys.argv[1]]
try:
    run_ranks(main, 2, give_up, executor="cuda", devices=[0, 0])
    assert give_up is leaves
except RankError as error:
    assert give_up is is_stopped and "rank 1 gives up" in str(error), error
print("ended")
"""


@pytest.mark.parametrize("connections", ["1", "32"])
@pytest.mark.parametrize("how", ["leaves", "is_stopped"])
def test_the_call_of_a_rank_that_gives_up_ends(how, connections):
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], cwd=ROOT, timeout=LIMIT_S,
                          env=os.environ | {"CUDA_DEVICE_MAX_CONNECTIONS": connections},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "ended\n"
