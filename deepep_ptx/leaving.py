# SPDX-License-Identifier: MIT
"""Cores of buffers that were left without the other ranks: what these may still use stays."""

# Core -> the calls in flight whose arrays its kernels may use.  Of GPUs: memory, code and context
# stay until the process ends.  On the CPU executor they end with the run, whose groups keep them.
_on_gpus = {}


def keep(comm, core, flights=()):
    """Keep `core`, and what calls in flight hold."""
    _kept(comm)[core] = flights
    forget(comm)


def forget(comm):
    """Let go of cores of this rank that all ranks have left by now."""
    kept = _kept(comm)
    for core in list(kept):
        if core.executor.place == comm.executor.place and core.is_last:
            kept.pop(core, None)        # a finaliser in another thread may have been first


def _kept(comm):
    if comm.executor.name == "cuda":
        return _on_gpus
    return getattr(comm.group, "__dict__", {}).setdefault("_deepep_ptx_left", {})
