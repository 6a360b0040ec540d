# SPDX-License-Identifier: MIT
"""What DeepEP has in `deep_ep.utils`."""

from .event import EventHandle, EventOverlap

__all__ = ["EventHandle", "EventOverlap", "check_nvlink_connections"]


def check_nvlink_connections(group):
    """Nothing: construction of a `Buffer` maps the memory of all ranks, or says which it cannot."""
