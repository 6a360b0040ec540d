# SPDX-License-Identifier: MIT
"""Where DeepEP's later versions have their events."""

from deepep_ptx import EventHandle, EventOverlap

__all__ = ["EventHandle", "EventOverlap"]
