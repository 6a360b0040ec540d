# SPDX-License-Identifier: MIT
# cython: language_level=3
"""A rank of the CPU executor, as the core sees a machine."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t

from deepep_ptx._emu cimport Kernel, Mapping, RankTable, World
from deepep_ptx._emu_graph cimport new_graph
from deepep_ptx._executor cimport EP_HANDLE_BYTES, Executor, ep_dptr_t, ep_launch

from deepep_ptx._emu import limit_ns
from deepep_ptx.checks import check_int
from deepep_ptx.errors import DeepEPError

# A kernel's parameter block, and shared memory, are far below.
cdef uint64_t MAX_U32 = 0xffffffff


def _generation(arch):
    return int(arch.removeprefix("sm_").rstrip("af"))


@cython.no_gc_clear     # who uses it in a __dealloc__ needs its world there
cdef class EmuExecutor(Executor):
    """One rank of a `World`, as the core sees a machine.

    Work of one stream runs in order; streams and ranks run beside each other.  Launches, fills,
    copies to the device and frees are asynchronous; `copy_out`, `synchronize`, `event_synchronize`
    and `wait_word` wait, and only there another rank or a kernel runs.  Addresses are device
    addresses of this rank.

    Every method raises `Aborted` once another rank of the run has failed, `KernelFault` where a
    kernel of this rank ended it, `ValueError` for an address, stream, event or size that is not
    this rank's.
    """

    def __cinit__(self, World world not None, rank, arch="sm_90"):
        self.world = world
        self.rank = world.valid_rank(rank)
        self.name = "emu"
        self.in_host_memory = True
        self.ends_with_run = True
        self.arch = arch
        self.cta_smem = world.cta_smem
        self.own = RankTable(world, self.rank)
        self.table = self.own.table

    def load(self, str symbol not None, str text not None, param_bytes):
        """Load entry `symbol` of PTX `text`.  `DeepEPError` unless it takes `param_bytes` bytes of
        parameters and its target is not above this executor's; `PtxError` for what the CPU executor
        does not execute."""
        kernel = self.world.load(text, symbol)
        if _generation(kernel.target) > _generation(self.arch):
            raise DeepEPError(f"{symbol}: is for {kernel.target}, this executor is {self.arch}")
        if kernel.param_bytes != param_bytes:
            raise DeepEPError(f"{symbol}: the text takes {kernel.param_bytes} parameter bytes, "
                              f"params.h says {param_bytes}; render it again")
        return kernel

    def map_array(self, address, nbytes, writable, name):
        """Map the caller's memory [address, address + nbytes); returns its device address, 0 for
        0 bytes.

        The memory must stay until `unmap`.
        """
        return self.world.map_address(self.rank, address, nbytes, writable, name) if nbytes else 0

    def unmap(self, dptr):
        """Undo `map_array`, at once: a kernel that still uses the array is a `KernelFault`."""
        if dptr:
            self.world.unmap_address(self.rank, dptr)

    def error(self, code):
        """The exception for `code`, which a function of `table` has just returned."""
        return self.world.error(code, self.rank)

    def host_view(self, dptr, nbytes):
        """A NumPy uint8 array [nbytes] over device memory of this rank, a peer's, or pinned.

        It keeps the memory and the world alive, also after a free.  Reading it does not wait for
        kernels: synchronize first.  After storing to bytes that no kernel has written, say so with
        `written`.
        """
        return self.world.host_view(self.rank, dptr, nbytes)

    def written(self, dptr, nbytes):
        """These bytes were stored through a `host_view`: kernels may read them."""
        self.world.written(self.rank, dptr, nbytes)

    @property
    def place(self):
        """The rank: each has a device of its own."""
        return self.rank

    def counters(self):
        """Totals of this rank's kernels since the run began, see `World.counters`."""
        return self.world.counters(self.rank)

    def ran(self):
        """Of all ranks of the run, see `World.ran`."""
        return self.world.ran()

    @property
    def now(self):
        """Virtual time of the run, in ns."""
        return self.world.now

    # -- the table's functions, for tests and embedders ------------------------------------------

    def alloc(self, nbytes, *, name="alloc"):
        """`nbytes` of uninitialised device memory; returns its address."""
        return self.world.alloc(self.rank, nbytes, name=name)

    def free(self, dptr, *, stream=0):
        """Free what `alloc` gave, when the work now queued on `stream` is done."""
        self.call(self.table.free(self.table.self, dptr, <void *><size_t>stream))

    def host_alloc(self, nbytes, *, name="pinned"):
        """`nbytes` of zeroed host memory that kernels see; returns (host address, device address).
        """
        cdef void *host = NULL
        cdef ep_dptr_t va = 0
        self.call(self.table.host_alloc(self.table.self, check_int(nbytes, "nbytes", 1, 2**40),
                                        name.encode(), &host, &va))
        return <uint64_t><size_t>host, va

    def host_free(self, address):
        """Free what `host_alloc` gave, by its host address."""
        self.call(self.table.host_free(self.table.self, <void *><size_t>address))

    def copy_in(self, dptr, data, *, stream=0):
        """Copy bytes or a contiguous buffer to the device, in stream order."""
        cdef Mapping source = Mapping(data, False)
        self.call(self.table.copy_in(self.table.self, dptr, source.view.buf, source.view.len,
                                     <void *><size_t>stream))

    def copy_out(self, dptr, nbytes, *, stream=0):
        """Wait for `stream`, then return `nbytes` bytes of device memory."""
        cdef Py_ssize_t size = check_int(nbytes, "nbytes", 0, 2**40)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, size)
        cdef char *dst = PyBytes_AS_STRING(out)
        cdef ep_dptr_t src = dptr
        cdef void *c_stream = <void *><size_t>stream
        cdef int code
        with nogil:
            code = self.table.copy_out(self.table.self, dst, src, size, c_stream)
        self.call(code)
        return out

    def fill(self, dptr, value, nbytes, *, stream=0):
        """Set `nbytes` bytes to `value` in [0, 255], in stream order."""
        self.call(self.table.fill(self.table.self, dptr, check_int(value, "value", 0, 255),
                                  check_int(nbytes, "nbytes", 0, 2**40), <void *><size_t>stream))

    def export_memory(self, dptr):
        """A handle (bytes) of the allocation that starts at `dptr`."""
        cdef bytes handle = PyBytes_FromStringAndSize(NULL, EP_HANDLE_BYTES)
        self.call(self.table.export_memory(self.table.self, dptr, PyBytes_AS_STRING(handle)))
        return handle

    def import_memory(self, bytes handle not None):
        """Address here of another rank's allocation; one's own handle gives one's own address."""
        cdef ep_dptr_t va = 0
        if len(handle) != EP_HANDLE_BYTES:
            raise ValueError(f"handle: must have {EP_HANDLE_BYTES} bytes, got {len(handle)}")
        self.call(self.table.import_memory(self.table.self, PyBytes_AS_STRING(handle), &va))
        return va

    def release_memory(self, dptr):
        """Undo `import_memory`."""
        self.call(self.table.release_memory(self.table.self, dptr))

    def stream_create(self):
        """A new stream (int); 0 is the default stream, which is like any other."""
        cdef void *stream = NULL
        self.call(self.table.stream_create(self.table.self, &stream))
        return <uint64_t><size_t>stream

    def stream_destroy(self, stream):
        """Forget a stream; work queued on it still runs."""
        self.call(self.table.stream_destroy(self.table.self, <void *><size_t>stream))

    def synchronize(self, stream=0):
        """Wait until all work queued on `stream` is done."""
        self.world.synchronize(self.rank, stream)

    def event_create(self):
        """A new event (int): a point in the work of a stream.  Until it is recorded it is complete.
        """
        cdef void *event = NULL
        self.call(self.table.event_create(self.table.self, &event))
        return <uint64_t><size_t>event

    def event_destroy(self, event):
        """Forget an event; who waits for it still does."""
        self.call(self.table.event_destroy(self.table.self, <void *><size_t>event))

    def event_record(self, event, stream=0):
        """Make `event` the end of what `stream` has queued now, instead of what it was."""
        self.call(self.table.event_record(self.table.self, <void *><size_t>event,
                                          <void *><size_t>stream))

    def event_wait(self, event, stream=0):
        """What is queued on `stream` from now on runs after what `event` is now."""
        self.call(self.table.event_wait(self.table.self, <void *><size_t>stream,
                                        <void *><size_t>event))

    def event_synchronize(self, event):
        """Wait until the work before `event` is done."""
        cdef void *c_event = <void *><size_t>event
        cdef int code
        with nogil:
            code = self.table.event_synchronize(self.table.self, c_event)
        self.call(code)

    def event_query(self, event):
        """Whether the work before `event` is done.  Nothing runs meanwhile: a loop that polls has
        to `yield_`."""
        cdef int done = 0
        self.call(self.table.event_query(self.table.self, <void *><size_t>event, &done))
        return bool(done)

    def capture(self, stream=0):
        """A context that yields an `EmuGraph`: what `stream` and the streams that wait for it queue
        inside of it is recorded instead of run; see `EmuGraph`."""
        return new_graph(self.world, self.rank, stream)

    def captured(self, stream=0):
        """Whether `stream` is being captured."""
        cdef void *graph = NULL
        self.call(self.table.capture(self.table.self, <void *><size_t>stream, &graph))
        return graph != NULL

    def launch(self, Kernel kernel not None, bytes params not None, grid, block, smem=0, *,
               stream=0):
        """Queue a launch of `grid` CTAs of `block` threads; see `World.launch`."""
        cdef ep_launch launch
        kernel.fill_launch(self.world, &launch, params, grid, block, smem)
        launch.stream = <void *><size_t>stream
        self.call(self.table.launch(self.table.self, &launch))

    def will_read(self, address, nbytes):
        """Tells the race checker that the host reads pinned memory at its `address`, behind the
        wait that orders it with what kernels wrote there."""
        self.table.will_read(self.table.self, <const void *><size_t>address,
                             check_int(nbytes, "nbytes", 1, 2**40))

    def wait_word(self, address, want, timeout_s=None):
        """Wait until the u64 at host `address` is `want`; `DeepEPTimeoutError` after `timeout_s`
        of virtual time (None: the world's limit)."""
        cdef const uint64_t *word = <const uint64_t *><size_t>address
        cdef uint64_t c_want = want
        cdef uint64_t limit = limit_ns("timeout_s", timeout_s)
        cdef int code
        with nogil:
            code = self.table.wait_word(self.table.self, NULL, word, c_want, limit)
        self.call(code)

    def yield_(self):
        """Let every other rank, and the kernels, go on once: for host loops that poll."""
        self.world.yield_(self.rank)

    def max_resident(self, Kernel kernel not None, block, smem=0):
        """CTAs of `kernel` that run on this rank's device at the same time."""
        cdef uint32_t ctas = 0
        self.call(self.table.max_resident(self.table.self, kernel.kernel,
                                          check_int(block, "block", 1, 1024),
                                          check_int(smem, "smem", 0, MAX_U32), &ctas))
        return ctas

    cdef int call(self, int code) except -1:
        return self.world.check(code, self.rank)
