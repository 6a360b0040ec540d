# SPDX-License-Identifier: MIT
"""Ranks that begin a call together, whenever their hosts came to it."""

import contextlib

import numpy as np
from ml_dtypes import bfloat16

from deepep_ptx import Buffer, Config

ARENA_BYTES = 1 << 20


def aligner(comm, machine, timeout_s):
    """A context that gives what aligns the ranks of `comm`: an `Aligner`.  On the CPU executor a
    barrier: its ranks go on together, and no kernel runs that nobody asked for."""
    if not machine.times:
        return contextlib.nullcontext(comm.barrier)
    return Aligner(comm, machine, timeout_s)


class Aligner:
    """Calling it queues, on the rank's stream, a call of one token on one SM that ends on all GPUs
    within about a microsecond, since it ends only when all ranks have signalled.

    Made, called and left by all ranks.  num_launches: kernels of it.
    """

    def __init__(self, comm, machine, timeout_s):
        self.machine = machine
        self.config = Config(num_sms=1)
        self.buffer = Buffer(comm, ARENA_BYTES, timeout_s=timeout_s)
        self.x = machine.give(np.zeros((1, 8), bfloat16))
        mine = machine.give(np.full((1, 1), comm.rank, np.int64))
        weight = machine.give(np.ones((1, 1), np.float32))
        per_rank, _, per_expert, in_rank, _ = self.buffer.get_dispatch_layout(
            mine, comm.size, stream=machine.stream)
        self.handle = self.buffer.dispatch(
            self.x, topk_idx=mine, topk_weights=weight, num_tokens_per_rank=per_rank,
            num_tokens_per_expert=per_expert, is_token_in_rank=in_rank, config=self.config,
            stream=machine.stream)[4]
        self()
        self.num_launches = len(self.buffer.last_launch)

    def __call__(self):
        self.buffer.dispatch(self.x, handle=self.handle, config=self.config,
                             stream=self.machine.stream)

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc, traceback):
        self.handle = None
        self.buffer.__exit__(exc_type, exc, traceback)


class LowLatencyAligner:
    """As `Aligner`, on the buffer of the calls themselves: another one on the GPU could make their
    launches cooperative, which no caller's are who has one buffer.

    Calling it queues a low-latency dispatch of one token on one SM, to another rank's expert.
    """

    def __init__(self, comm, machine, buffer):
        self._buffer = buffer
        self._x = machine.give(np.zeros((1, 128), bfloat16))
        self._topk_idx = machine.give(np.full((1, 1), (comm.rank + 1) % comm.size, np.int64))
        self._num_experts = comm.size
        self._stream = machine.stream
        machine.reserve(0)
        comm.barrier()
        self()
        self.num_launches = len(buffer.last_launch)

    def __call__(self):
        self._buffer.low_latency_dispatch(self._x, self._topk_idx, 1, self._num_experts,
                                          use_fp8=False, num_sms=1, stream=self._stream)
