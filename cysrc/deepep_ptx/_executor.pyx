# SPDX-License-Identifier: MIT
# cython: language_level=3
"""What every executor offers: a table of C functions for the core, some methods for Python."""

cimport cython
from libc.stdint cimport uint8_t, uint64_t

from deepep_ptx.errors import DeepEPError


cdef class Executor:
    """One rank's machine.  Subclasses fill the attributes, which _executor.pxd declares, and define
    the methods.  What an executor can is asked of these; its name is for users."""

    @property
    def place(self):
        """What the ranks on one device have in common, and no others."""
        raise NotImplementedError

    @property
    def device_name(self):
        """The kind of device."""
        return "CPU executor"

    @property
    def table_address(self):
        """Where the table of C functions (struct ep_executor) is, for C code beside this package;
        valid while this object lives."""
        return <size_t>self.table

    def load(self, symbol, text, param_bytes):
        """Load kernel `symbol` from PTX `text`; its parameter block takes `param_bytes` bytes.

        Returns an object whose `.handle` (int) goes into launches and which keeps the code loaded.
        """
        raise NotImplementedError

    cdef int alloc_array(self, uint64_t nbytes, const char *name, void *stream,
                         ep_dptr_t *out) noexcept nogil:
        return self.table.alloc(self.table.self, nbytes, name, out)

    cdef int free_array(self, ep_dptr_t dptr, void *stream) noexcept nogil:
        return self.table.free(self.table.self, dptr, stream)

    def copy_array(self, dst, src, nbytes, stream):
        """Copy within device memory, in the order of `stream` (a number)."""
        raise NotImplementedError

    def map_array(self, address, nbytes, writable, name):
        """Map host bytes [address, address + nbytes) for the kernels; returns a device address.

        `name` appears in error reports.  On a GPU, device memory passes through unchanged.
        """
        raise NotImplementedError

    def unmap(self, dptr):
        """Undo `map_array`."""
        raise NotImplementedError

    def host_view(self, dptr, nbytes):
        """A NumPy uint8 array over device memory [dptr, dptr + nbytes) of this rank; None where
        device memory has no address on the host."""
        raise NotImplementedError

    def written(self, dptr, nbytes):
        """The host stores to device memory [dptr, dptr + nbytes) through a `host_view`."""

    def read(self, dptr, nbytes, stream=0):
        """A copy of device memory [dptr, dptr + nbytes), as `stream` leaves it, as a NumPy uint8
        array."""
        return self.host_view(dptr, nbytes).copy()

    def device_of(self, address):
        """Ordinal of the GPU whose memory `address` is, -1 for any other address."""
        return -1

    def stream_wait(self, waiter, waited):
        """What is queued on stream `waiter` from now on runs after all that is queued on `waited`
        now.  Both are numbers, 0 = the default stream."""
        cdef void *c_waiter = <void *><size_t>waiter
        cdef void *c_waited = <void *><size_t>waited
        cdef int code
        with nogil:
            code = self.table.stream_wait(self.table.self, c_waiter, c_waited)
        if code != EP_OK:
            raise self.error(code)

    def error(self, code):
        """The exception for `code`, which a function of `table` has just returned.

        Subclasses know more than the text of last_error(): which kernel faulted and where, or
        that another rank failed first (`Aborted`).
        """
        reason = self.table.last_error(self.table.self).decode()
        if code == EP_ERR_MEMORY:
            return MemoryError(reason)
        return DeepEPError(reason)

    def counters(self):
        """A dict of this rank's totals: warp instructions, bytes loaded and stored, ..."""
        raise NotImplementedError

    def ran(self):
        """Which instructions of its kernels have been executed, as `World.ran` has it; None where
        nobody looks."""
        return None

    @property
    def now(self):
        """Virtual time, in ns; None where time is the clock's."""
        return None


@cython.no_gc_clear     # __dealloc__ uses the executor
cdef class Event:
    """A point in the work of `executor`'s streams, which are numbers."""

    def __init__(self, Executor executor not None):
        self.executor = executor
        self.call(executor.table.event_create(executor.table.self, &self.handle))

    def __dealloc__(self):
        if self.executor is not None and self.handle != NULL:
            with nogil:
                self.executor.table.event_destroy(self.executor.table.self, self.handle)

    cdef int call(self, int code) except -1:
        if code != EP_OK:
            raise self.executor.error(code)
        return 0

    @property
    def executor_name(self):
        """"emu" or "cuda"."""
        # As Python sees it: a subclass may say otherwise.
        return "cuda" if self.executor is None else getattr(self.executor, "name")  # noqa: B009

    def record(self, size_t stream):
        """The point is what `stream` has queued by now."""
        cdef int code
        with nogil:
            code = self.executor.table.event_record(self.executor.table.self, self.handle,
                                                    <void *>stream)
        self.call(code)

    def wait(self, size_t stream):
        """What is queued on `stream` from now on runs after the point."""
        cdef int code
        with nogil:
            code = self.executor.table.event_wait(self.executor.table.self, <void *>stream,
                                                  self.handle)
        self.call(code)

    def synchronize(self):
        """Wait on the host."""
        cdef int code
        with nogil:
            code = self.executor.table.event_synchronize(self.executor.table.self, self.handle)
        self.call(code)

    @property
    def done(self):
        """Whether the point has passed."""
        cdef int done = 0
        self.call(self.executor.table.event_query(self.executor.table.self, self.handle, &done))
        return done != 0


@cython.final
@cython.no_gc_clear     # __dealloc__ uses the executor
cdef class Memory:
    """`nbytes` of device memory for use on `stream` (a number), which outlives it; freed with this
    object.  `name` appears in error reports.

    address: its device address, 0 without bytes.
    """

    def __cinit__(self, Executor executor not None, uint64_t nbytes, str name not None,
                  size_t stream=0):
        cdef bytes text = name.encode()
        cdef const char *c_name = text
        cdef int code = EP_OK
        self.executor = executor
        self.nbytes = nbytes
        self.stream = <void *>stream
        if nbytes:
            with nogil:
                code = executor.alloc_array(nbytes, c_name, self.stream, &self.address)
        if code != EP_OK:
            raise executor.error(code)

    def __dealloc__(self):
        if self.address:
            with nogil:
                self.executor.free_array(self.address, self.stream)

    def copy_from(self, ep_dptr_t source):
        """Fill it with as many bytes of device memory, in the order of its stream."""
        self.executor.copy_array(self.address, source, self.nbytes, <size_t>self.stream)

    def write(self, const uint8_t[::1] data):
        """Fill it with `data`, of as many bytes."""
        cdef const uint8_t *source
        cdef int code
        if <uint64_t>data.shape[0] != self.nbytes:
            raise ValueError(f"data: must have {self.nbytes} bytes, got {data.shape[0]}")
        if self.nbytes == 0:
            return
        source = &data[0]
        with nogil:
            code = self.executor.table.copy_in(self.executor.table.self, self.address, source,
                                               self.nbytes, self.stream)
            if code == EP_OK:
                code = self.executor.table.stream_synchronize(self.executor.table.self,
                                                              self.stream)
        if code != EP_OK:
            raise self.executor.error(code)
