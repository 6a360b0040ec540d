# SPDX-License-Identifier: MIT
"""Calls whose end nobody waits for."""

import functools
import time
from collections import deque

from ._executor import Event
from .event import EventHandle, EventOverlap


class Flight:
    """Such a call.

    mappings: what maps arrays of host memory.  arrays: alive until it has ended.
    captured: it is recorded, and runs with its graph.
    started: the `Event` of its start, or None.
    """

    def __init__(self, core, mappings, arrays, captured=False, started=None):
        self.core = core
        self.mappings = []
        self.keep(mappings)
        self.arrays = arrays
        self.captured = captured
        self.started = started
        self.event = None

    def keep(self, mappings):
        """Mappings that stay until the call has ended, if there are any."""
        if mappings is not None:
            self.mappings.append(mappings)

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
        for mappings in self.mappings:
            mappings.close()
        self.arrays = []


class Flights(deque):
    """Those of one buffer, oldest first.

    core: the buffer's, None once that is gone.
    """

    def __init__(self, core):
        super().__init__()
        self.core = core

    def depart(self, launch, call, mappings, arrays):
        """The `Flight` of a call that has been launched, with its arguments `arrays`."""
        arrays = [array for array in arrays if array is not None]
        flight = Flight(self.core, mappings, arrays, launch.captured, launch.started)
        if not flight.captured:
            self.append(flight)
            # A reference keeps an array, but not the memory of one that is freed by its storage.
            if call.lend(arrays, self.core.stream):
                self.core.keep_stream()
        return flight

    def announce(self, flight, call, results):
        """The `EventOverlap` of the end of `flight`, with its results there."""
        results = [array for array in results if array is not None]
        call.share(results)
        flight.arrays += results
        flight.record()
        wait, started = None, flight.started
        if not call.executor.takes_streams:     # the host's work takes no SMs from the call
            started = None
            if not flight.captured:
                wait = functools.partial(self._wait_on_host, flight.event)
        handle = EventHandle._of(flight.event, call.current, wait, started)
        # Of a captured call, whoever has the event keeps the arrays.
        return EventOverlap(handle, flight.arrays if flight.captured else None)

    def forget_finished(self):
        """Let go of those that have ended."""
        while self and self[0].is_over():
            self.popleft().close()

    def is_busy(self):
        """Whether one of them, or work of another call, has not ended."""
        self.forget_finished()
        return bool(self) or not Flight(self.core, None, []).ends_within(0.01)

    def end(self):
        """The buffer is gone, and nobody waits for its calls any more."""
        self.clear()
        self.core = None

    def _wait_on_host(self, event):
        event.synchronize()
        self.forget_finished()
        if self.core is not None and self.core.has_news:
            self.core.check()
