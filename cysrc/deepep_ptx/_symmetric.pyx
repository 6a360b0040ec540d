# SPDX-License-Identifier: MIT
"""What a buffer's ranks do together, by cysrc/core/symmetric.c over the caller's group.

The core calls the group back with bytes, and says in codes what has failed; here they become
exceptions.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from deepep_ptx._buffer cimport (
    CoreBuffer, symmetric_connect, symmetric_create, symmetric_end, symmetric_ensure_landing,
    symmetric_ensure_low_latency, symmetric_failure, symmetric_free, symmetric_grow,
    symmetric_number, symmetric_reset,
)
from deepep_ptx._core cimport (
    EP_FAILED_CALLER, EP_FAILED_ELSEWHERE, EP_FAILED_HERE, EP_FAILED_MISMATCH, EP_FAILED_NOT,
    EP_FAILED_PEER, EP_GROWTH_STEP, EP_IN_END, EP_IN_EPOCH, EP_IN_GROWTH, EP_IN_MEMORY,
    EP_IN_MEMORY_MAPPING, EP_IN_RECYCLING, EP_IN_RESET, EP_IN_RESET_END, EP_IN_ROOM, EP_IN_SHAPE,
    EP_NUM_SAID, EP_REASON_BYTES, ep_connection,
    ep_failure, ep_group, ep_heard, ep_hooks, ep_symmetric,
)
from deepep_ptx._errors cimport check
from deepep_ptx._executor cimport EP_ERR_CALLER, EP_OK, Executor, ep_dptr_t
from deepep_ptx._low_latency cimport Shape

from deepep_ptx._calls import CoreCalls
from deepep_ptx.arrays.library import give_back_caches
from deepep_ptx.errors import DeepEPError, RankMismatchError

GROWTH_STEP = EP_GROWTH_STEP    # bytes: segments that an arena gets later are multiples of it

# What a rank takes part in, of buffer {}.  Who is elsewhere while others make a buffer or a segment
# has left a collective that these are still in, or its group lies.
cdef dict COLLECTIVES = {
    EP_IN_GROWTH: "growth of the arena of buffer {}",
    EP_IN_RECYCLING: "growth of the arena of buffer {}",
    EP_IN_ROOM: "making room in buffer {}",
    EP_IN_SHAPE: "the first low-latency call of a shape with buffer {}",
    EP_IN_MEMORY: "making low-latency memory of buffer {}",
    EP_IN_MEMORY_MAPPING: "making low-latency memory of buffer {}",
    EP_IN_RESET: "a reset of buffer {}",
    EP_IN_EPOCH: "a reset of buffer {}",
    EP_IN_RESET_END: "a reset of buffer {}",
    EP_IN_END: "the end of buffer {}",
}


@cython.final
cdef class Symmetric:
    """One rank's part in the symmetric memory of a buffer.  All methods are collective.

    group: a `CheckedGroup` with an executor.

    Attributes:
        core: the rank's `CoreCalls`, once it is connected.
        number: of the buffer, equal on all ranks; no other buffer of these processes has it.
    """

    cdef ep_symmetric *own          # owned
    cdef readonly CoreBuffer core
    cdef object group
    # Exceptions of the call that runs: what this rank has failed with, what a hook has raised that
    # is to become it, and what the group's functions have raised last.
    cdef object failure, raised, gathering, waiting

    def __cinit__(self, group not None):
        cdef Executor executor = group.executor
        cdef ep_group c_group
        cdef ep_hooks hooks
        self.group = group
        c_group.self = hooks.self = <void *>self
        c_group.rank = group.rank
        c_group.size = group.size
        c_group.allgather = allgather
        c_group.barrier = barrier
        hooks.added = segment_added
        hooks.dropped = segment_dropped
        hooks.give_back = give_back
        hooks.describe = describe
        check(symmetric_create(executor.table, &c_group, &hooks, &self.own), None)

    def __dealloc__(self):
        symmetric_free(self.own)

    @property
    def number(self):
        return symmetric_number(self.own)

    def connect(self, uint64_t num_nvl_bytes, uint64_t limit, uint64_t timeout_ns,
                dict kernels not None):
        """Make this rank's `core` and join it to those of all ranks; how many share its device.

        num_nvl_bytes: of its arena at the start.  limit: 0, or the arena's size, which does not
        grow then.  kernels: name -> (row of the table, text).
        """
        cdef ep_connection connection
        cdef CoreBuffer core = None
        cdef bytes name = b"", place = b""
        cdef uint32_t num_here = 0
        cdef int code
        executor = self.group.executor
        connection.buffer = NULL
        connection.made = EP_OK
        connection.growth_step = GROWTH_STEP
        try:
            core = CoreCalls(executor, self.group.rank, self.group.size, timeout_ns, limit == 0)
            for kernel, (variant, text) in kernels.items():
                core.load_kernel(kernel, variant, text)
            name, place = executor.device_name.encode(), repr(executor.place).encode()
            self.core = core
            connection.buffer = core.core
        except BaseException as error:
            self.raised = error
            connection.made = EP_ERR_CALLER
        connection.start_bytes = num_nvl_bytes
        connection.limit_bytes = limit
        connection.device_name = name
        connection.place = place
        with nogil:
            code = symmetric_connect(self.own, &connection, &num_here)
        try:
            self.finish(code)
        except BaseException:
            self.core = None
            raise
        return num_here

    def grow(self, uint64_t needed):
        """Room for the call that has just found none: a segment as large as all before it.

        Once there are as many as there can be, those in which no rank holds anything go first.
        """
        cdef int code
        with nogil:
            code = symmetric_grow(self.own, needed)
        self.finish(code)

    def ensure_landing(self, uint64_t nbytes, *said):
        """Landing of `nbytes`, which need not be the same on all ranks.

        Returns for each number that the ranks have said the least and the most of them.
        """
        cdef ep_heard heard
        cdef uint64_t numbers[EP_NUM_SAID]
        cdef int code
        fill(numbers, said)
        with nogil:
            code = symmetric_ensure_landing(self.own, nbytes, numbers, &heard)
        self.finish(code)
        return [(heard.least[i], heard.most[i]) for i in range(len(said))]

    def ensure_low_latency(self, Shape shape not None, uint64_t nbytes, uintptr_t stream=0):
        """Low-latency memory of at least `nbytes`, for calls of `shape`, behind what is queued on
        `stream`.

        Raises RankMismatchError where ranks have different ones.
        """
        cdef int code
        with nogil:
            code = symmetric_ensure_low_latency(self.own, &shape.shape, nbytes, <void *>stream)
        self.finish(code)

    def reset(self, *said):
        """Make the buffer usable again, whatever its ranks were in.  Returns as `ensure_landing`
        does."""
        cdef ep_heard heard
        cdef uint64_t numbers[EP_NUM_SAID]
        cdef int code
        fill(numbers, said)
        with nogil:
            code = symmetric_reset(self.own, numbers, &heard)
        self.finish(code)
        return [(heard.least[i], heard.most[i]) for i in range(len(said))]

    def end(self):
        """Nobody maps anybody's memory any more: `core` may be closed."""
        cdef int code
        with nogil:
            code = symmetric_end(self.own)
        self.finish(code)

    # -- errors --------------------------------------------------------------------------------

    cdef object error_of(self, const ep_failure *failure):
        """The exception for what ended the call."""
        if failure.what == EP_FAILED_HERE:
            return self.own_error(failure)
        if failure.what == EP_FAILED_PEER:
            return DeepEPError(f"rank {failure.rank} failed: {text_of(failure.reason)}")
        if failure.what == EP_FAILED_MISMATCH:
            return mismatch_error(failure)
        if failure.what == EP_FAILED_ELSEWHERE and failure.collective in COLLECTIVES:
            return DeepEPError(f"rank {failure.rank} takes no part in "
                               f"{COLLECTIVES[failure.collective].format(failure.buffer)}: its "
                               "call was another one, or had other arguments; call reset() on all "
                               "ranks")
        text = f"a record ({text_of(failure.reason)}) of rank {failure.rank}"
        if failure.what == EP_FAILED_ELSEWHERE:
            text += ", which is in another collective"
        return self.group.refusal(text)

    cdef object own_error(self, const ep_failure *failure):
        cdef Executor executor = self.group.executor
        try:
            check(failure.code, executor)
        except MemoryError as error:
            if failure.bytes:
                return MemoryError(f"rank {failure.rank}: no memory for {failure.bytes} more bytes "
                                   f"of the arena: {error}")
            return error
        except BaseException as error:
            return error

    cdef int finish(self, int code) except -1:
        cdef const ep_failure *failure = symmetric_failure(self.own)
        error, gathering, waiting = self.failure, self.gathering, self.waiting
        self.failure = self.raised = self.gathering = self.waiting = None
        if code == EP_OK:
            return 0
        if not failure.described:
            if failure.what != EP_FAILED_CALLER:
                error = self.error_of(failure)
            else:                       # an exception may count as false
                error = waiting if gathering is None else gathering
        try:
            if failure.untold != EP_FAILED_NOT:
                note(error, self.group.refusal("what no rank gave") if gathering is None
                     else gathering, "the other ranks were not told")
            if failure.kept != EP_FAILED_NOT:
                note(error, waiting, "the segment was not given back")
            raise error
        finally:
            error = gathering = waiting = None      # their tracebacks have this frame


cdef object note(error, other, str what):
    if not isinstance(other, Exception):        # Ctrl-C: nobody asks for less
        raise other from error
    error.add_note(f"and {what}: {type(other).__name__}: {other}")


cdef object mismatch_error(const ep_failure *failure):
    argument = text_of(failure.argument)
    if argument == "group":         # kernels, links and the model of SMs are those of one kind
        values = text_of(failure.names[0]), text_of(failure.names[1])
        text = (f"rank 0 has a {values[0]}, rank {failure.rank} a {values[1]}; all GPUs must be of "
                "one kind")
    else:
        values = failure.sizes[0], failure.sizes[1]
        text = f"rank 0 has {values[0]}, rank {failure.rank} has {values[1]}; " + (
            "the arena grows (0) on all ranks or on none" if argument == "arena_limit_bytes" else
            "it must be equal on all ranks")
    return RankMismatchError(f"{argument}: {text}", argument=argument, ranks=(0, failure.rank),
                             values=values)


cdef str text_of(const char *text):
    return text.decode(errors="replace")


cdef int fill(uint64_t *numbers, tuple said) except -1:
    for i in range(EP_NUM_SAID):
        numbers[i] = said[i] if i < len(said) else 0
    return 0


# -- what the core calls -------------------------------------------------------------------------

cdef int allgather(void *context, const void *mine, void *everybody,
                   uint64_t nbytes) noexcept with gil:
    cdef Symmetric self = <Symmetric>context
    cdef bytes entry
    cdef uint64_t rank
    try:
        for rank, got in enumerate(self.group.allgather((<const char *>mine)[:nbytes])):
            if type(got) is not bytes or <uint64_t>len(got) != nbytes:
                raise self.group.refusal(f"{got!r} of rank {rank}, which is in another collective")
            entry = got
            memcpy(<char *>everybody + rank * nbytes, <const char *>entry, nbytes)
        return EP_OK
    except BaseException as error:
        self.gathering = error
        return EP_ERR_CALLER


cdef int barrier(void *context) noexcept with gil:
    cdef Symmetric self = <Symmetric>context
    try:
        self.group.barrier()
        return EP_OK
    except BaseException as error:
        self.waiting = error
        return EP_ERR_CALLER


cdef int segment_added(void *context, uint32_t index, ep_dptr_t base, uint64_t nbytes,
                       uint64_t *view) noexcept with gil:
    cdef Symmetric self = <Symmetric>context
    try:
        memory = self.group.executor.host_view(base, nbytes)
        if memory is not None:          # else arrays show device addresses
            view[0] = memory.__array_interface__["data"][0]
            self.core.views[index] = memory
        return EP_OK
    except BaseException as error:
        self.raised = error
        return EP_ERR_CALLER


cdef void segment_dropped(void *context, uint32_t index) noexcept with gil:
    cdef Symmetric self = <Symmetric>context
    self.core.views.pop(index, None)


cdef int give_back(void *context) noexcept with gil:
    cdef Symmetric self = <Symmetric>context
    try:
        give_back_caches(self.group.executor)
        return EP_OK
    except BaseException as error:
        self.raised = error
        return EP_ERR_CALLER


cdef void describe(void *context, const ep_failure *failure, char *reason) noexcept with gil:
    cdef Symmetric self = <Symmetric>context
    cdef bytes text
    self.failure, self.raised = self.raised, None
    if self.failure is None:
        self.failure = self.error_of(failure)
    text = f"{type(self.failure).__name__}: {self.failure}".encode()[:EP_REASON_BYTES - 1]
    memcpy(reason, <const char *>text, len(text))
