# SPDX-License-Identifier: MIT
"""Events of DeepEP's API."""

from ._cuda import ContextEvent, has_context
from .arrays.streams import current_stream


class EventHandle:
    """A point in a stream's work: what the current stream has queued by now.

    The current stream is torch's or CuPy's of this thread, where one of them is loaded, else the
    legacy default stream.  Without a CUDA context, as on the CPU executor alone, the point has
    passed.
    """

    def __init__(self):
        self._event = ContextEvent(current_stream()) if has_context() else None
        self._current = current_stream
        self._wait_on_host = None

    @classmethod
    def _of(cls, event, current, wait_on_host=None):
        """A handle of an `Event` of a buffer's.

        current(): number of the stream that `current_stream_wait` makes wait.  wait_on_host(): what
        it does instead on the CPU executor, where the caller's work is the host's.
        """
        handle = cls.__new__(cls)
        handle._event, handle._current, handle._wait_on_host = event, current, wait_on_host
        return handle

    def current_stream_wait(self):
        """Make the current stream wait for the point."""
        if self._wait_on_host is not None:
            self._wait_on_host()
        elif self._event is not None:
            self._event.wait(self._current())


class EventOverlap:
    """What a call returns last; in a `with` statement, the end of the block waits.

    event: an `EventHandle`, or None: the caller's stream waits already, or the call is complete.
    extra_tensors: kept alive as long as this object.
    """

    def __init__(self, event=None, extra_tensors=None):
        self.event = event
        self.extra_tensors = extra_tensors

    def current_stream_wait(self):
        """Make the current stream wait for the call; nothing where `event` is None."""
        if self.event is not None:
            self.event.current_stream_wait()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.current_stream_wait()
