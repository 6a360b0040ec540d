# SPDX-License-Identifier: MIT
# cython: language_level=3
"""Work of the CPU executor that was captured instead of run."""

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t

from deepep_ptx._emu cimport World
from deepep_ptx._emu_host cimport host_graph, host_stream


cdef EmuGraph new_graph(World world, uint32_t rank, size_t stream):
    cdef EmuGraph self = EmuGraph.__new__(EmuGraph)
    self.world = world
    self.rank = rank
    self.stream = <host_stream *>stream
    return self


cdef void drop_object(void *what) noexcept with gil:
    Py_DECREF(<object>what)


@cython.no_gc_clear     # __dealloc__ uses the world
cdef class EmuGraph:
    """Work captured by `EmuExecutor.capture`, to be queued as often as one likes.

        with executor.capture(stream) as graph:
            ...                              # recorded, not run
        graph.replay(stream)

    Rules, those of CUDA: launches, fills and copies to the device are recorded, with the parameters
    and bytes that they have then; a stream that waits for captured work (`event_wait`,
    `stream_wait`) joins the capture and must be joined back before its end; nothing in a capture
    waits for work outside of it, and the host for none of its work.  `DeepEPError` where a rule is
    broken, again at the end of the block, and for a free on a captured stream.  The capture is
    dropped when the block raises, or its end does.
    """

    def __init__(self):
        raise TypeError("EmuGraph: made by EmuExecutor.capture() only")

    def __enter__(self):
        if self.graph != NULL:
            raise ValueError("capture: one block for one graph")
        self.graph = self.world.capture_begin(self.rank, self.stream)
        self.capturing = True
        return self

    def __exit__(self, kind, error, traceback):
        cdef int code = self.end()
        if kind is not None:
            self.close()
        else:
            self.world.check(code, self.rank)

    def __dealloc__(self):
        if self.capturing:
            self.end()
        self.close()

    cdef int end(self) noexcept:
        """Ends the capture; an error leaves no graph."""
        self.capturing = False
        self.graph = NULL
        return self.world.capture_end(self.rank, self.stream, &self.graph)

    def replay(self, stream=0):
        """Queue the work on `stream`, in the order in which it was captured; returns at once.

        Memory that it uses must still be there when it runs, as for any launch.  On a stream that
        is captured, it becomes a part of that capture.  `ValueError` before the end of the capture
        and after `close`.
        """
        self.world.graph_replay(self.rank, self.graph, <host_stream *><size_t>stream)

    def keep(self, what):
        """Keep the object `what` until the graph is closed and its replays are over."""
        self.world.graph_keep(self.rank, self.graph, <void *>what, drop_object)
        Py_INCREF(what)

    def close(self):
        """Forget the work; replays already queued still run.  Closing twice does nothing."""
        cdef host_graph *graph = self.graph
        self.graph = NULL
        if graph != NULL:
            self.world.graph_destroy(self.rank, graph)
