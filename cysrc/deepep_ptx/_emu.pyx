# SPDX-License-Identifier: MIT
# cython: language_level=3
"""The CPU executor: virtual GPUs that run the rendered PTX, and the threads of their ranks.

`World` is one run's set of virtual GPUs; `_emu_executor` has one rank of it as the core sees a
machine, `_emu_graph` work that was captured instead of run.  This module alone calls the C code of
cysrc/emu.  `deepep_ptx.run_ranks` makes a world; using it directly is for tests and embedders.

Threads: under `run_ranks` exactly one rank's thread runs at a time, from one wait to the next; a
world without rank threads is for one thread.  No wait holds the GIL.  Determinism: what runs when
is a function of num_ranks, scheduler, seed and of what the rank functions do; two runs of the same
give the same virtual times, counters and bytes.
"""

import threading

import numpy as np

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from deepep_ptx._emu_host cimport (
    EMU_CHECK_UNINIT, EMU_SCHED_LATE_ASYNC, EMU_SCHED_RANDOM, EMU_SCHED_RR, HOST_FAULT, HOST_RACES,
    HOST_RUN_FAILED, HOST_RUN_IDLE, HOST_RUN_MORE, HOST_STRICT, HOST_WEAK, emu_counters,
    emu_executor_create, emu_executor_destroy, emu_executor_table, emu_fault, emu_options,
    host_abort, host_alloc, host_capture_begin, host_capture_end, host_capture_of, host_copy_in,
    host_copy_out, host_counters, host_create, host_destroy, host_enter, host_failure, host_fault,
    host_free, host_graph, host_graph_destroy, host_graph_keep, host_graph_replay, host_holder,
    host_kernel, host_kernel_load, host_kernel_ran, host_last_error, host_launch, host_leave,
    host_map, host_map_peer, host_now, host_pin, host_races, host_races_whole, host_report,
    host_run, host_start, host_stream, host_stream_create, host_stream_destroy, host_synchronize,
    host_unmap, host_unmap_peer, host_unpin, host_wait_word, host_written, host_yield, race_found,
    race_place,
)
from deepep_ptx._emu_image cimport Image
from deepep_ptx._executor cimport (
    EP_ERR_ABORTED, EP_ERR_ARGUMENT, EP_ERR_MEMORY, EP_ERR_TIMEOUT, EP_OK, ep_dptr_t, ep_launch,
)

from deepep_ptx.checks import check_choice, check_int
from deepep_ptx.errors import Aborted, DeepEPError, DeepEPTimeoutError, KernelFault

cdef extern from "Python.h":
    int PyThreadState_SetAsyncExc(unsigned long identifier, PyObject *exception)

MAX_RANKS = 64                      # of one world
SCHEDULERS = {"rr": EMU_SCHED_RR, "random": EMU_SCHED_RANDOM,
              "late-async": EMU_SCHED_LATE_ASYNC}
CHECKS = {"all": EMU_CHECK_UNINIT, "off": 0}
RACE_CHECKS = {None: 0, "races": HOST_RACES, "races-strict": HOST_RACES | HOST_STRICT}
MEMORIES = {"sc": 0, "weak": HOST_WEAK}
STALL_LIMIT = 1 << 22               # warp instructions of a group while nothing changes
# Warp instructions of one launch: a minute or more of one core, a hundred times what a launch for
# 8192 tokens of 14 KiB executes.
INSTRUCTION_LIMIT = 1 << 32
CTA_SMEM = 227 << 10                # bytes of shared memory that a CTA of sm_90 can have

cdef uint64_t FOREVER = <uint64_t>-1
# Steps of World.run() between two looks at signals.
cdef uint32_t ROUNDS_PER_LOOK = 256
# A kernel's parameter block, and shared memory, are far below.
cdef uint64_t MAX_U32 = 0xffffffff


def limit_ns(name, seconds):
    """Nanoseconds of a time limit given in seconds; None = no limit (2**64 - 1)."""
    if seconds is None:
        return FOREVER
    try:
        value = float(seconds)
    except OverflowError:
        value = float("inf")
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected seconds or None, got {seconds!r}") from None
    if not 0 < value < 1e10:
        raise ValueError(f"{name}: must be > 0 and below 1e10 s, or None; got {seconds!r}")
    return max(1, round(value * 1e9))


cdef class Mapping:
    """Holds a Python buffer while a rank has it mapped."""

    def __cinit__(self, buffer, bint writable):
        PyObject_GetBuffer(buffer, &self.view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        self.held = True

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


@cython.no_gc_clear     # __dealloc__ uses the world
cdef class _HostView:
    """Buffer over device memory; pins it and keeps its world alive."""
    cdef World world
    cdef void *address
    cdef Py_ssize_t nbytes
    cdef uint32_t owner
    cdef ep_dptr_t pin
    cdef bint pinned

    def __cinit__(self, World world not None, uint32_t rank, uint64_t va, uint64_t nbytes):
        self.world = world
        self.nbytes = <Py_ssize_t>nbytes
        world.check(host_pin(world.host, rank, va, nbytes, &self.address, &self.owner, &self.pin),
                    rank)
        self.pinned = True

    def __dealloc__(self):
        if self.pinned:
            with nogil:
                host_unpin(self.world.host, self.owner, self.pin)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.address, self.nbytes, 0, flags)


@cython.no_gc_clear     # who uses it in a __dealloc__ needs its world there
cdef class RankTable:
    """The core's table of one rank of a world."""

    def __cinit__(self, World world not None, uint32_t rank):
        self.world = world
        self.own = emu_executor_create(world.host, rank)
        if self.own == NULL:
            raise MemoryError("rank: no memory for its executor")
        self.table = emu_executor_table(self.own)

    def __dealloc__(self):
        emu_executor_destroy(self.own)


cdef class _Collective:
    """One allgather or barrier: who has come, with what."""
    cdef str kind
    cdef list values
    cdef list here
    cdef uint64_t arrived

    def __cinit__(self, str kind, int num_ranks):
        self.kind = kind
        self.values = [None] * num_ranks
        self.here = [False] * num_ranks


cdef class Kernel:
    """A loaded kernel; lives as long as its world, which it keeps alive.

    symbol: its entry's name.  param_bytes: size of its parameter block.  target: "sm_90".
    """

    def __init__(self):
        raise TypeError("Kernel: made by World.load() and EmuExecutor.load() only")

    @property
    def handle(self):
        """What launches name the kernel by."""
        return <uint64_t><size_t>self.kernel

    cdef int fill_launch(self, World world, ep_launch *launch, bytes params, grid, block,
                         smem) except -1:
        """A launch of it by `world`, without a stream."""
        if self.world is not world:
            raise ValueError("kernel: was loaded into another world")
        memset(launch, 0, sizeof(launch[0]))        # no attributes
        launch.kernel = self.kernel
        launch.params = PyBytes_AS_STRING(params)
        launch.param_bytes = len(params)
        launch.grid = check_int(grid, "grid", 1, MAX_U32)
        launch.block = check_int(block, "block", 1, 1024)
        launch.smem = check_int(smem, "smem", 0, MAX_U32)
        return 0


cdef Kernel wrap_kernel(World world, host_kernel *kernel, str symbol, int param_bytes, str target):
    cdef Kernel self = Kernel.__new__(Kernel)
    self.world = world
    self.kernel = kernel
    self.symbol = symbol
    self.param_bytes = param_bytes
    self.target = target
    return self


cdef _access(const race_place *place):
    from deepep_ptx.emu.races import Access

    return Access(
        what=place.what.decode(), statement=place.statement.decode(errors="replace"),
        file=place.file.decode(errors="replace"), line=place.line, ptx_line=place.ptx_line,
        kernel=place.kernel.decode(errors="replace"), rank=place.rank, cta=place.cta,
        warp=place.warp, lanes=place.lanes)


cdef class World:
    """`num_ranks` virtual GPUs of one run.

    sms_per_rank: SMs of each.  cta_smem: bytes of shared memory that a CTA can have, at most 227
    KiB; an SM has 1 KiB more.  scheduler: "rr" (every warp in turn; bulk copies are done at the end
    of the round), "random" (any order and pace, of copies and CTAs too) or "late-async" (like "rr",
    but bulk copies are as late as they may be); in the last two, lanes that came apart stay so
    until a `.sync` instruction brings them together.  checks: "all", or "off" to leave out the
    check for uninitialised reads (bounds, alignment, masks, barriers and mbarriers are always
    checked).  seed: fixes the run.  stall_limit: warp instructions that a group may execute while
    nothing in the world changes, before its kernel is reported as never ending.
    instruction_limit: warp instructions that one launch may execute, before it is reported as never
    ending whatever it changes.  timeout_s: limit, in virtual seconds, of host waits that name none;
    None = no limit.

    check: "races" collects races (`races()`), "races-strict" takes no grid's begin for a proxy
    fence.  memory: "sc", every store is seen by everybody at once, or "weak", a load that nothing
    orders behind a store may read what was there before (docs/verifier.md).

    `ValueError` or `TypeError` for a bad argument, `MemoryError` when there is no memory.
    """

    def __cinit__(self, num_ranks, *, sms_per_rank=132, cta_smem=CTA_SMEM, scheduler="rr",
                  checks="all", seed=0, stall_limit=STALL_LIMIT,
                  instruction_limit=INSTRUCTION_LIMIT, timeout_s=None, check=None, memory="sc"):
        cdef emu_options options
        memset(&options, 0, sizeof(options))
        options.num_ranks = check_int(num_ranks, "num_ranks", 1, MAX_RANKS)
        options.sms_per_rank = check_int(sms_per_rank, "sms_per_rank", 1, 1024)
        options.cta_smem = check_int(cta_smem, "cta_smem", 0, CTA_SMEM)
        options.scheduler = SCHEDULERS[check_choice(scheduler, "scheduler", SCHEDULERS)]
        options.checks = CHECKS[check_choice(checks, "checks", CHECKS)]
        options.seed = check_int(seed, "seed", 0, 2**64 - 1)
        options.stall_limit = check_int(stall_limit, "stall_limit", 1, 2**63)
        options.instruction_limit = check_int(instruction_limit, "instruction_limit", 1, 2**63)
        self.num_ranks = options.num_ranks
        self.cta_smem = options.cta_smem
        self.scheduler = scheduler
        self.checks = checks
        self.seed = seed
        self.kernels = {}
        self.mappings = {}
        self.threads = {}
        self.host = host_create(&options, limit_ns("timeout_s", timeout_s),
                                RACE_CHECKS[check_choice(check, "check", RACE_CHECKS)] |
                                MEMORIES[check_choice(memory, "memory", MEMORIES)])
        if self.host == NULL:
            raise MemoryError(f"num_ranks: no memory for a world of {num_ranks} ranks")

    def __dealloc__(self):
        if self.host != NULL:
            with nogil:
                host_destroy(self.host)

    def error(self, int code, rank):
        """The exception for what the host side just returned to `rank`."""
        cdef int failed_rank = 0
        cdef str text = host_last_error().decode(errors="replace")
        if code == EP_ERR_ARGUMENT:
            return ValueError(text)
        if code == EP_ERR_MEMORY:
            return MemoryError(text)
        if code == EP_ERR_ABORTED:
            return Aborted(text)
        if code == EP_ERR_TIMEOUT:
            return DeepEPTimeoutError(text, rank=rank, peer=-1, wait=text.partition(":")[0])
        if host_failure(self.host, &failed_rank) == HOST_FAULT and failed_rank == rank:
            return self.fault()
        return DeepEPError(text)

    cdef int check(self, int code, uint32_t rank) except -1:
        if code != EP_OK:
            raise self.error(code, rank)
        return 0

    cdef uint32_t valid_rank(self, rank) except? 0xffffffff:
        return check_int(rank, "rank", 0, self.num_ranks - 1)

    def fault(self):
        """The `KernelFault` that ended the run, or None."""
        cdef const emu_fault *fault = host_fault(self.host)
        if fault == NULL:
            return None
        text = fault.text.decode(errors="replace")
        if self.threads:
            text = f"{text.rstrip()}\nhost: {host_report(self.host).decode()}"
        return KernelFault(
            text, kind=fault.kind.decode(), kernel=fault.kernel.decode(errors="replace"),
            file=fault.file.decode(errors="replace"), line=fault.line, rank=fault.rank,
            cta=fault.cta, warp=fault.warp, lane=fault.lane)

    # -- raw memory, for tests ---------------------------------------------------------------

    def alloc(self, rank, nbytes, *, name="alloc"):
        """`nbytes` of uninitialised device memory of `rank`; returns its address there."""
        cdef uint32_t r = self.valid_rank(rank)
        cdef ep_dptr_t va = 0
        self.check(host_alloc(self.host, r, check_int(nbytes, "nbytes", 1, 2**40), name.encode(),
                              &va), r)
        return va

    def map_host(self, rank, buffer, writable=True, *, name="host"):
        """Map a contiguous Python buffer for `rank`'s kernels; returns its address there.

        The buffer is held until `unmap`.
        """
        cdef uint32_t r = self.valid_rank(rank)
        cdef Mapping mapping = Mapping(buffer, writable)
        cdef ep_dptr_t va = 0
        if mapping.view.len == 0:
            raise ValueError("buffer: must have at least 1 byte, got 0")
        self.check(host_map(self.host, r, mapping.view.buf, mapping.view.len, writable,
                            name.encode(), &va), r)
        self.mappings[r, va] = mapping
        return va

    def map_peer(self, rank, owner, va):
        """Map `owner`'s allocation that starts at its address `va`; returns the address on
        `rank`."""
        cdef uint32_t r = self.valid_rank(rank)
        cdef ep_dptr_t out = 0
        self.check(host_map_peer(self.host, r, check_int(owner, "owner", 0, self.num_ranks - 1),
                                 va, 0, &out), r)
        return out

    def unmap(self, rank, va):
        """Undo `alloc`, `map_host` or `map_peer`; a kernel that still uses `va` is a fault."""
        cdef uint32_t r = self.valid_rank(rank)
        if (r, va) in self.mappings:
            self.check(host_unmap(self.host, r, va), r)
            del self.mappings[r, va]
        elif host_free(self.host, r, va, NULL) != EP_OK:
            self.check(host_unmap_peer(self.host, r, va), r)

    def read(self, rank, va, nbytes):
        """`nbytes` bytes at `va` of `rank`, as the kernels left them so far."""
        cdef uint32_t r = self.valid_rank(rank)
        cdef Py_ssize_t size = check_int(nbytes, "nbytes", 0, 2**40)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, size)
        self.check(host_copy_out(self.host, r, PyBytes_AS_STRING(out), va, size, NULL), r)
        return out

    def write(self, rank, va, data):
        """Store `data` (bytes or a contiguous buffer) at `va` of `rank`."""
        cdef uint32_t r = self.valid_rank(rank)
        cdef Mapping mapping = Mapping(data, False)
        self.check(host_copy_in(self.host, r, va, mapping.view.buf, mapping.view.len, NULL), r)

    # -- what a rank's executor has beside its table ---------------------------------------------

    def map_address(self, rank, size_t address, nbytes, writable, str name not None):
        """Map the caller's memory [address, address + nbytes) for `rank`, until `unmap_address`;
        returns its address there."""
        cdef uint32_t r = self.valid_rank(rank)
        cdef ep_dptr_t va = 0
        self.check(host_map(self.host, r, <void *>address,
                            check_int(nbytes, f"{name}: bytes", 1, 2**48), writable,
                            name.encode(), &va), r)
        return va

    def unmap_address(self, rank, va):
        """Undo `map_address`, at once."""
        cdef uint32_t r = self.valid_rank(rank)
        self.check(host_unmap(self.host, r, va), r)

    def host_view(self, rank, va, nbytes):
        """A NumPy uint8 array [nbytes] over memory at `va` of `rank`, which it pins."""
        if not nbytes:
            return np.empty(0, np.uint8)
        return np.frombuffer(_HostView(self, self.valid_rank(rank), va, nbytes), np.uint8)

    def written(self, rank, va, nbytes):
        """The host has stored `nbytes` bytes at `va` of `rank`: kernels may read them."""
        cdef uint32_t r = self.valid_rank(rank)
        self.check(host_written(self.host, r, va, check_int(nbytes, "nbytes", 0, 2**40)), r)

    def synchronize(self, rank, size_t stream):
        """Wait until all work queued on `stream` is done."""
        cdef uint32_t r = self.valid_rank(rank)
        cdef int code
        with nogil:
            code = host_synchronize(self.host, r, <host_stream *>stream)
        self.check(code, r)

    def yield_(self, rank):
        """Let every other rank, and the kernels, go on once."""
        cdef uint32_t r = self.valid_rank(rank)
        cdef int code
        with nogil:
            code = host_yield(self.host, r)
        self.check(code, r)

    cdef host_graph *capture_begin(self, uint32_t rank, host_stream *stream) except NULL:
        cdef host_graph *graph = NULL
        self.check(host_capture_begin(self.host, rank, stream), rank)
        self.check(host_capture_of(self.host, rank, stream, &graph), rank)
        return graph

    cdef int capture_end(self, uint32_t rank, host_stream *stream, host_graph **out) noexcept:
        cdef int code
        with nogil:
            code = host_capture_end(self.host, rank, stream, out)
        return code

    cdef int graph_replay(self, uint32_t rank, host_graph *graph, host_stream *stream) except -1:
        return self.check(host_graph_replay(self.host, rank, graph, stream), rank)

    cdef int graph_keep(self, uint32_t rank, host_graph *graph, void *what,
                        void (*release)(void *what) noexcept nogil) except -1:
        return self.check(host_graph_keep(self.host, rank, graph, what, release), rank)

    cdef void graph_destroy(self, uint32_t rank, host_graph *graph) noexcept:
        with nogil:
            host_graph_destroy(self.host, rank, graph)

    # -- kernels --------------------------------------------------------------------------------

    def load(self, text, symbol=None, name="<ptx>"):
        """Decode PTX `text` and load its entry `symbol` (None: its only one).

        name: what errors and reports call the text where no `.loc` names a source file.
        The same text and symbol give the same code.  Raises `PtxError` naming file and line.
        """
        from deepep_ptx.emu.kernel import load_image

        cdef Image image
        cdef host_kernel *kernel
        found = self.kernels.get((symbol, text))
        if found is None:
            decoded = load_image(text, symbol, name)
            image = Image(decoded)
            kernel = host_kernel_load(self.host, &image.image)
            if kernel == NULL:
                raise MemoryError(f"text: no memory to load {decoded.symbol}")
            found = <size_t>kernel, decoded.symbol, decoded.param_bytes, decoded.target
            self.kernels[symbol, text] = found
        handle, name, param_bytes, target = found
        return wrap_kernel(self, <host_kernel *><size_t>handle, name, param_bytes, target)

    def launch(self, rank, Kernel kernel not None, bytes params not None, grid, block, smem=0):
        """Launch `grid` CTAs of `block` threads, beside everything else that runs on `rank`.

        params: the parameter block, exactly as long as the kernel says.  smem: bytes of dynamic
        shared memory.
        """
        cdef uint32_t r = self.valid_rank(rank)
        cdef host_stream *stream = NULL
        cdef ep_launch launch
        kernel.fill_launch(self, &launch, params, grid, block, smem)
        self.check(host_stream_create(self.host, r, &stream), r)
        launch.stream = stream
        try:
            self.check(host_launch(self.host, r, &launch), r)
        finally:
            host_stream_destroy(self.host, r, stream)

    def run(self, max_virtual_ns=None):
        """Step until no kernel runs; time jumps when all of them wait for it.

        Returns whether the world is idle: False when `max_virtual_ns` went by before.  Without that
        limit kernels that nothing can wake are a `KernelFault`, as every other fault is.
        Not for worlds whose ranks have threads.
        """
        cdef uint64_t until = FOREVER
        cdef int result, touched = 1
        if host_holder(self.host) >= 0:
            raise RuntimeError("World.run: ranks of this world have threads")
        if max_virtual_ns is not None:
            until = host_now(self.host) + check_int(max_virtual_ns, "max_virtual_ns", 0, 2**62)
        while True:
            with nogil:
                result = host_run(self.host, until, ROUNDS_PER_LOOK, touched)
            touched = 0
            if result == HOST_RUN_FAILED:
                raise self.fault() or DeepEPError(host_report(self.host).decode())
            if result != HOST_RUN_MORE:
                return result == HOST_RUN_IDLE
            PyErr_CheckSignals()

    @property
    def now(self):
        """Virtual time, in ns."""
        return host_now(self.host)

    def counters(self, rank):
        """Totals of `rank`'s kernels: warp_instructions, thread_instructions and bytes loaded from
        and stored to global memory, of which peer memory, and transactions: 32-byte sectors that
        one warp instruction touches, counted anew where the next active lane is in another one;
        those of a bulk copy."""
        cdef emu_counters counters
        host_counters(self.host, self.valid_rank(rank), &counters)
        return counters

    def ran(self):
        """(symbol, text) of each loaded kernel -> bool [instructions]: whether any lane of any rank
        has executed the instruction, its guard being true.  Instructions are those of
        `deepep_ptx.emu.kernel.load_image`, without the exit that it adds to the text."""
        from deepep_ptx.emu.kernel import load_image

        cdef uint8_t[::1] flags
        found = {}
        for (asked, text), (handle, symbol, _, _) in self.kernels.items():
            flags = np.zeros(len(load_image(text, asked).insns), np.uint8)
            host_kernel_ran(self.host, <host_kernel *><size_t>handle, &flags[0])
            found[symbol, text] = np.asarray(flags[:-1]).astype(bool)
        return found

    def races(self):
        """What `check` has found so far: `deepep_ptx.emu.races.Race`, the first ones first.

        `MemoryError` if there was no memory to check all of it.
        """
        from deepep_ptx.emu.races import KINDS, Link, Race

        cdef const race_found *found = host_races(self.host)
        if not host_races_whole(self.host):
            raise MemoryError("check: no memory to check all accesses")
        kinds, races = list(KINDS), []
        while found != NULL:
            races.append(Race(
                kind=kinds[found.kind], first=_access(&found.first),
                second=_access(&found.second), count=found.count,
                memory=found.memory.decode(errors="replace"), owner=found.owner,
                offset=found.offset, bytes=found.nbytes, fix=found.fix.decode(errors="replace"),
                chain=tuple([Link(first=_access(&found.links[i].first),
                                  second=_access(&found.links[i].second),
                                  by=found.links[i].by.decode(),
                                  lacks=found.links[i].lacks.decode())
                             for i in range(found.num_links)])))
            found = found.next
        return races

    # -- ranks as threads: what run_ranks is made of ----------------------------------------------

    def start_ranks(self):
        """Makes every rank one that will have a thread; rank 0 goes first."""
        host_start(self.host)

    def run_rank(self, rank, fn, args, outcomes):
        """Body of a rank's thread: `outcomes[rank]` becomes (fn(*args), None) or (None, error).

        Compiled, so that an exception set from outside (`stop_ranks`) is raised inside of `fn`.
        """
        cdef uint32_t r = self.valid_rank(rank)
        cdef int code, failed = 0
        with nogil:
            code = host_enter(self.host, r)
        try:
            self.check(code, r)
            self.threads[rank] = threading.get_ident()
            outcomes[rank] = (fn(*args), None)
        except BaseException as error:
            outcomes[rank] = (None, error)
            failed = 1
        finally:
            identifier = self.threads.get(rank, 0)
            self.threads[rank] = 0
            if identifier:
                PyThreadState_SetAsyncExc(identifier, NULL)
            with nogil:
                host_leave(self.host, r, failed)

    def skip_rank(self, rank):
        """The thread of `rank` could not be made: it counts as failed."""
        host_leave(self.host, self.valid_rank(rank), 1)

    def pass_over(self):
        """The rank whose turn it is does not end, though the run has been stopped: the others go on
        without it.  Returns its number; None: nobody has the turn."""
        cdef int rank = host_holder(self.host)
        if rank < 0:
            return None
        with nogil:
            host_leave(self.host, rank, 1)
        return rank

    def stop_ranks(self):
        """Stop the run from outside: waits raise `Aborted`, and so does running Python code."""
        host_abort(self.host)
        identifier = self.threads.get(host_holder(self.host), 0)
        if identifier:
            PyThreadState_SetAsyncExc(identifier, <PyObject *>Aborted)

    def failure(self):
        """(rank, KernelFault or None) of the run's first failure; rank is None if there was none
        or it is nobody's."""
        cdef int rank = 0
        cdef int kind = host_failure(self.host, &rank)
        if kind == HOST_FAULT:
            fault = self.fault()
            return (fault.rank if fault.rank >= 0 else rank), fault
        return (rank if rank >= 0 else None), None

    def collect(self, rank, str kind, value):
        """A collective of all ranks: waits until every rank is in it, returns their values.

        kind: "allgather" or "barrier".  `DeepEPError` if a rank is in a collective of another kind,
        or if all wait for a rank that has returned; `DeepEPTimeoutError` at the time limit;
        `Aborted` when another rank failed.
        """
        cdef uint32_t r = self.valid_rank(rank)
        cdef _Collective collective = self.collective
        cdef bytes what = kind.encode()
        cdef const char *c_what = what
        cdef const uint64_t *word
        cdef uint64_t want = self.num_ranks
        cdef int code
        if collective is None:
            self.collective = collective = _Collective(kind, self.num_ranks)
        if collective.here[r]:
            raise DeepEPError(f"{kind}: rank {r} is in a {collective.kind} in another thread")
        if collective.kind != kind:
            raise DeepEPError(f"{kind}: rank {r} called {kind} while rank "
                              f"{collective.here.index(True)} is in {collective.kind}")
        collective.values[r] = value
        collective.here[r] = True
        collective.arrived += 1
        if collective.arrived == want:
            self.collective = None          # the next collective is a new one
        word = &collective.arrived
        with nogil:
            code = host_wait_word(self.host, r, word, want, FOREVER, c_what)
        if code == EP_OK:
            return list(collective.values)
        missing = collective.here.index(False) if False in collective.here else -1
        if collective.arrived != want:
            collective.values[r] = None
            collective.here[r] = False
            collective.arrived -= 1
            if collective.arrived == 0 and self.collective is collective:
                self.collective = None
        if code == EP_ERR_TIMEOUT:
            raise DeepEPTimeoutError(host_last_error().decode(errors="replace"),
                                     rank=rank, peer=missing, wait=kind)
        self.check(code, r)
