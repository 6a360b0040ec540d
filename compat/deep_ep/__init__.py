# SPDX-License-Identifier: MIT
"""The names of DeepEP V1's normal and low-latency modes over deepep_ptx.

Importing it needs neither a GPU nor torch, and says nothing.
"""

from deepep_ptx import Config, EventHandle, EventOverlap

from . import _names
from .buffer import Buffer

__version__ = _names.VERSION
__all__ = ["Buffer", "Config", "EventHandle", "EventOverlap"]


def __getattr__(name):
    if name == "topk_idx_t":
        return _names.topk_idx_t()
    _names.raise_missing(__name__, name, _names.LATER_IN_PACKAGE)
