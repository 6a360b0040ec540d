# SPDX-License-Identifier: MIT
"""How the calls of a buffer begin: on which streams, who waits for whom, on how many SMs."""

from libc.stdint cimport uint32_t

from deepep_ptx._arguments cimport Launch, as_flag
from deepep_ptx._buffer cimport CoreBuffer
from deepep_ptx._call cimport Call
from deepep_ptx._executor cimport Event

from deepep_ptx.arguments import event_of
from deepep_ptx.checks import check_int


cdef class Launcher:
    """That of one buffer.

    in_flight, results: its `Flights` and `Results`.  max_sms: CTAs that a call can have beside
    those of the `ranks_here` ranks that share the GPU.  is_thread: ranks are threads of a process.

    Attributes:
        library: of the newest call, None before the first.
        last_num_sms: likewise, what it was given.
    """

    def __init__(self, CoreBuffer core not None, in_flight, results, uint32_t max_sms,
                 uint32_t ranks_here, bint is_thread):
        self.core = core
        self.in_flight = in_flight
        self.results = results
        self.max_sms = max_sms
        self.ranks_here = ranks_here
        self.is_thread = is_thread

    cpdef Launch launch(self, Call call, num_sms, tuple ring, previous_event, async_finish,
                        allocate_on_comm_stream, bint has_start=True):
        """The `Launch` of a call, whose results `call` then allocates.

        has_start: an asynchronous one has an event of its start.
        """
        cdef Launch launch = Launch.__new__(Launch)
        cdef bint is_async = as_flag(async_finish, "async_finish")
        cdef bint on_comm_stream = as_flag(allocate_on_comm_stream, "allocate_on_comm_stream")
        if previous_event is not None:
            launch.previous = event_of(previous_event, self.core.executor)
        if on_comm_stream and (previous_event is None or not is_async):
            raise ValueError("allocate_on_comm_stream: must be False without previous_event and "
                             "async_finish")
        launch.graph = self.core.look(call.stream)
        if launch.graph:
            if call.copies or not call.library.captures:
                raise ValueError(f"{call.name}: must be an array of torch or CuPy on the GPU while "
                                 "the stream is captured")
        else:
            launch.wait = self.host_waits(call, is_async)
        if on_comm_stream and not launch.wait:      # the caller's stream is told of them
            call.allocate_on(self.core.stream)
        if not launch.graph:
            if self.in_flight:
                self.in_flight.forget_finished()
            self.results.begin(call, launch.previous is None)
        self.library = call.library
        self.last_num_sms = num_sms
        launch.stream = call.stream
        launch.num_sms = num_sms
        launch.detached = is_async and not launch.wait
        launch.stages, launch.stage_bytes = ring
        if launch.detached and has_start:
            launch.started = Event(self.core.executor)
        return launch

    cdef bint host_waits(self, Call call, bint async_finish) except -1:
        # Whether the host waits for the end of a call that is not captured.
        if call.copies:
            return True
        if not call.takes_streams:
            return not async_finish
        # A rank that is a thread could keep another one from being served: by an event on a stream
        # that they share, or by a library's call that waits for a device on which this rank's
        # kernels wait for the other.
        return self.is_thread and (call.library.blocks
                                   or (self.ranks_here > 1 and call.stream == 0))

    def fitting_sms(self, num_sms):
        """`num_sms`, of a caller, as an int that fits."""
        num_sms = check_int(num_sms, "num_sms", 1)
        if num_sms > self.max_sms:
            raise ValueError(
                f"num_sms: must be in [1, {self.max_sms}], the CTAs per rank that "
                f"{self.ranks_here} rank(s) on one GPU can have side by side; got {num_sms}")
        return num_sms
