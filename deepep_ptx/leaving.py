# SPDX-License-Identifier: MIT
"""Cores of buffers that were left without the other ranks: what these may still use stays."""

# Core -> the calls in flight whose arrays its kernels may use: of executors whose memory, code and
# context stay until the process ends.  What ends with a run is kept by the run's groups.
_lasting = {}


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
    if comm.executor.ends_with_run:
        return getattr(comm.group, "__dict__", {}).setdefault("_deepep_ptx_left", {})
    return _lasting
