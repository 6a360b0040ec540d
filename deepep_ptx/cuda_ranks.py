# SPDX-License-Identifier: MIT
"""Ranks as threads of this process on GPUs: several may share one."""

import os
import threading

from deepep_ptx._cuda import CudaExecutor, device_count, why_not
from deepep_ptx.errors import Aborted, DeepEPError, DeepEPTimeoutError


def ask_for_queues():
    """Before a GPU's context is made: kernels that wait for each other need hardware queues of
    their own."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")


class CudaWorld:
    """The GPUs of one run: what `_emu.World` is to the CPU executor, as far as ranks see it.

    devices: GPU per rank, None = in turn.  timeout_s: limit of collectives, None = no limit.
    """

    def __init__(self, num_ranks, *, devices=None, arch=None, timeout_s=None):
        available = device_count()
        if not available:
            raise DeepEPError(f"executor: 'cuda' cannot be used: {why_not()}")
        if devices is None:
            devices = [rank % available for rank in range(num_ranks)]
        if max(devices) >= available:
            raise ValueError(f"devices: must be below {available}, the GPUs there are; got "
                             f"{list(devices)}")
        if num_ranks > len(set(devices)):
            ask_for_queues()
        self.num_ranks = num_ranks
        self.timeout_s = timeout_s
        self.executors = [CudaExecutor(devices[rank], arch=arch, rank=rank, world=self)
                          for rank in range(num_ranks)]
        for own in self.executors:
            for peer in self.executors:
                own.enable_peer(peer)
        self.changed = threading.Condition()
        self.collective = None
        self.failures = []               # (rank, error), in the order in which they came
        self.left = set()

    # -- ranks ---------------------------------------------------------------------------------

    def start_ranks(self):
        """Nothing to prepare: threads run side by side."""

    def run_rank(self, rank, fn, args, outcomes):
        """Body of a rank's thread, see `_emu.World.run_rank`."""
        try:
            outcomes[rank] = (fn(*args), None)
        except BaseException as error:
            outcomes[rank] = (None, error)
            self.stop_ranks(rank, error)
        finally:
            with self.changed:
                self.left.add(rank)
                self.changed.notify_all()

    def skip_rank(self, rank):
        self.stop_ranks(rank, Aborted(f"rank {rank} was never started"))

    def stop_ranks(self, rank=None, error=None):
        """End the other ranks' waits; kernels end by their abort words and time limits."""
        with self.changed:
            self.failures.append((rank, error))
            self.changed.notify_all()
        for executor in self.executors:
            executor.stop()

    def pass_over(self):
        """None: no rank waits for another one's turn to end."""

    def failure(self):
        """(rank, None) of the run's first failure; rank is None if there was none or it is
        nobody's."""
        return (self.failures[0][0] if self.failures else None), None

    # -- collectives ---------------------------------------------------------------------------

    def collect(self, rank, kind, value):
        """A collective of all ranks, see `_emu.World.collect`."""
        with self.changed:
            if self.collective is None:
                self.collective = _Collective(kind)
            collective = self.collective
            if collective.kind != kind:
                raise DeepEPError(f"{kind}: rank {rank} called {kind} while rank "
                                  f"{min(collective.values)} is in {collective.kind}")
            collective.values[rank] = value
            if len(collective.values) == self.num_ranks:
                self.collective = None
                self.changed.notify_all()
            done = self.changed.wait_for(lambda: self._is_over(collective), self.timeout_s)
            if len(collective.values) == self.num_ranks:
                return [collective.values[r] for r in range(self.num_ranks)]
            if self.failures:
                raise Aborted(f"rank {self.failures[0][0]} failed and this rank was stopped")
            missing = min(set(range(self.num_ranks)) - set(collective.values))
            if self.collective is collective:
                self.collective = None       # whoever tries again begins a new one
            why = f"rank {missing} has returned" if done else f"rank {missing} did not come"
            error = DeepEPError if done else DeepEPTimeoutError
            details = {} if done else {"rank": rank, "peer": missing, "wait": kind}
            raise error(f"{kind}: rank {rank} waits for ever: {why}", **details)

    def _is_over(self, collective):
        here = set(collective.values)
        return (len(here) == self.num_ranks or bool(self.failures)
                or bool(self.left - here))


class _Collective:
    def __init__(self, kind):
        self.kind = kind
        self.values = {}         # by rank
