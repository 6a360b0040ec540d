# SPDX-License-Identifier: MIT
"""Cores of buffers that were left without the other ranks: what these may still use stays."""

# Of GPUs: their memory, code and context stay until the process ends.  On the CPU executor they end
# with the run, whose groups keep them.
_on_gpus = []


def keep(comm, core, flights=()):
    """Keep `core`, and what calls in flight hold, which its kernels may still use."""
    _kept(comm).append((core, flights))
    forget(comm)


def forget(comm):
    """Let go of cores of this rank that all ranks have left by now."""
    kept = _kept(comm)
    kept[:] = [(core, flights) for core, flights in kept
               if core.executor is not comm.executor or not core.is_last]


def _kept(comm):
    if comm.executor.name == "cuda":
        return _on_gpus
    return getattr(comm.group, "__dict__", {}).setdefault("left", [])
