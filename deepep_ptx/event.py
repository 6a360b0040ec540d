# SPDX-License-Identifier: MIT
"""Events of DeepEP's API.

Every call of this release is complete when it returns, so an event has nothing to wait for.
"""


class EventHandle:
    """A point in the current stream's work, which is complete."""

    def current_stream_wait(self):
        """Make the current stream wait for the point."""


class EventOverlap:
    """What a call returns last; in a `with` statement, the end of the block waits.

    event: an `EventHandle`, or None when the call is complete.  extra_tensors: kept alive as long
    as this object.
    """

    def __init__(self, event=None, extra_tensors=None):
        self.event = event
        self.extra_tensors = extra_tensors

    def current_stream_wait(self):
        """Make the current stream wait for the call; a complete call needs none."""
        if self.event is not None:
            self.event.current_stream_wait()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.current_stream_wait()
