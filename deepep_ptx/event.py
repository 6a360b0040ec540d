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
        self._started = None

    @classmethod
    def _of(cls, event, current, wait_on_host=None, started=None):
        """A handle of an `Event` of a buffer's, the end of a call.

        current(): number of the stream that `current_stream_wait` makes wait.  wait_on_host(): what
        it does instead on the CPU executor, where the caller's work is the host's.  started: the
        `Event` of the call's start, None where nobody waits for one.
        """
        handle = cls.__new__(cls)
        handle._event, handle._current, handle._wait_on_host = event, current, wait_on_host
        handle._started = started
        return handle

    def current_stream_wait(self):
        """Make the current stream wait for the point."""
        if self._wait_on_host is not None:
            self._wait_on_host()
        elif self._event is not None:
            self._event.wait(self._current())

    def current_stream_wait_start(self):
        """Make the current stream wait until the call runs; see `EventOverlap`."""
        if self._started is not None:
            self._started.wait(self._current())


class EventOverlap:
    """What a call returns last; in a `with` statement, the end of the block waits.

    event: an `EventHandle`, or None: the caller's stream waits already, or the call is complete.
    extra_tensors: kept alive as long as this object, or until a wait that releases them.
    hook_after_wait: None, or a function without arguments that the next wait calls when it has
    queued its wait, also where `event` is None; once.
    """

    def __init__(self, event=None, extra_tensors=None, hook_after_wait=None):
        if not (event is None or hasattr(event, "current_stream_wait")
                or hasattr(event, "cuda_event")):
            raise TypeError("event: must be None, an EventHandle or an event with cuda_event, got "
                            f"{type(event).__name__}")
        self.event = event
        self.extra_tensors = extra_tensors
        self.hook_after_wait = None
        self._releases = False
        if hook_after_wait is not None:
            self.register_hook_after_wait(hook_after_wait)

    def __call__(self, release_handle=False):
        """This object, for `with event(release_handle=True):`, whose end waits like that."""
        self._releases = bool(release_handle)
        return self

    def current_stream_wait(self, release_handle=False):
        """Make the current stream wait for the call; nothing where `event` is None.

        release_handle: then let go of `event` and `extra_tensors`; later waits find nothing.
        """
        if self.event is not None:
            self.event.current_stream_wait()
        hook, self.hook_after_wait = self.hook_after_wait, None
        if hook is not None:
            hook()
        if release_handle:
            self.event = self.extra_tensors = None

    def current_stream_wait_start(self):
        """Make the current stream wait until the kernel of a dispatch or combine runs on all its
        CTAs, so that what is queued behind, a GEMM, does not take the SMs from it.

        A hint, best effort of the driver's: the stream may go on as late as at the call's end, and
        nothing may count on its going on earlier.  It orders no memory: results are there, and
        arguments free, behind `current_stream_wait` alone.  Of a captured call, the current stream
        becomes part of the capture, which it must join again, and the wait is made before that
        ends.

        Nothing, where there is no such start: `event` is None or not of an asynchronous `dispatch`
        or `combine`, and on the CPU executor.  No hook is called, and nothing released.

        Raises:
            DeepEPError: the driver does not take the wait.
        """
        if isinstance(self.event, (EventHandle, EventOverlap)):
            self.event.current_stream_wait_start()

    def register_hook_after_wait(self, hook):
        """`hook()` is called by the next wait, once.

        Raises:
            TypeError: it cannot be called.
            ValueError: another one has not been called yet.
        """
        if not callable(hook):
            raise TypeError("hook: must be a function without arguments, got "
                            f"{type(hook).__name__}")
        if self.hook_after_wait is not None:
            raise ValueError("hook: must be one at a time, another has not been called yet")
        self.hook_after_wait = hook

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.current_stream_wait(self._releases)
