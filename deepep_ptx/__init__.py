# SPDX-License-Identifier: MIT
"""DeepEP in hand-written PTX: MoE dispatch and combine across GPUs, or on the CPU executor."""

import importlib

__version__ = "0.1.0"

# Public name -> module.  Loaded at first use, so that the toolchain imports without extensions.
_PUBLIC = {
    "Buffer": "buffer",
    "Config": "config",
    "DeviceArray": "arrays",
    "EPHandle": "handle",
    "EventHandle": "event",
    "EventOverlap": "event",
    "LowLatencyHandle": "handle",
    "run_ranks": "runtime",
    "Aborted": "errors",
    "CapacityError": "errors",
    "DeepEPError": "errors",
    "DeepEPTimeoutError": "errors",
    "DestroyedError": "errors",
    "KernelFault": "errors",
    "PtxError": "errors",
    "QueuePairError": "errors",
    "RaceError": "errors",
    "RankError": "errors",
    "RankMismatchError": "errors",
    "TuningError": "errors",
}

__all__ = [*_PUBLIC, "reference"]


def __getattr__(name):
    if name == "reference":
        return importlib.import_module(".reference", __name__)
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
