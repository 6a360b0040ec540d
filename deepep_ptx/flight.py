# SPDX-License-Identifier: MIT
"""Calls on their way."""

import time

from ._executor import Event


class Flight:
    """A call whose end nobody waits for.

    mappings: None, or what maps arrays of host memory.  arrays: alive until it has ended.
    captured: it is recorded, and runs with its graph.
    """

    def __init__(self, core, mappings, arrays, captured=False):
        self.core = core
        self.mappings = mappings
        self.arrays = arrays
        self.captured = captured
        self.event = None

    def record(self):
        """What the buffer's stream has queued by now is the call."""
        event = Event(self.core.executor)
        event.record(self.core.stream)
        self.event = event

    def is_over(self):
        """Whether the call has ended."""
        if self.event is None:          # what made its results failed
            self.record()
        return self.event.done

    def ends_within(self, seconds):
        """Whether it is over by then; a stream without work says so a moment late."""
        end = time.monotonic() + seconds
        while not self.is_over():
            if time.monotonic() > end:
                return False
        return True

    def close(self):
        """Let go of everything."""
        if self.mappings is not None:
            self.mappings.close()
        self.arrays = []
