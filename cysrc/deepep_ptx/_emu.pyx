# SPDX-License-Identifier: MIT
# cython: language_level=3
"""The CPU executor: virtual GPUs that run the rendered PTX, and the threads of their ranks.

`World` is one run's set of virtual GPUs, `EmuExecutor` one rank of it as the core sees a machine,
`EmuGraph` work that was captured instead of run.
`deepep_ptx.run_ranks` makes both; using them directly is for tests and embedders.

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
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from deepep_ptx._executor cimport (
    EP_ERR_ABORTED, EP_ERR_ARGUMENT, EP_ERR_MEMORY, EP_ERR_TIMEOUT, EP_HANDLE_BYTES, EP_OK,
)

from deepep_ptx.checks import check_choice, check_int
from deepep_ptx.errors import Aborted, DeepEPError, DeepEPTimeoutError, KernelFault

cdef extern from "Python.h":
    int PyThreadState_SetAsyncExc(unsigned long identifier, PyObject *exception)

MAX_RANKS = 64                      # of one world
SCHEDULERS = {"rr": EMU_SCHED_RR, "random": EMU_SCHED_RANDOM,
              "late-async": EMU_SCHED_LATE_ASYNC}
CHECKS = {"all": EMU_CHECK_UNINIT, "off": 0}
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


def _generation(arch):
    return int(arch.removeprefix("sm_").rstrip("af"))


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


cdef class _Mapping:
    """Holds a Python buffer while a rank has it mapped."""
    cdef Py_buffer view
    cdef bint held

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


cdef Kernel wrap_kernel(World world, host_kernel *kernel, str symbol, int param_bytes, str target):
    cdef Kernel self = Kernel.__new__(Kernel)
    self.world = world
    self.kernel = kernel
    self.symbol = symbol
    self.param_bytes = param_bytes
    self.target = target
    return self


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

    `ValueError` or `TypeError` for a bad argument, `MemoryError` when there is no memory.
    """

    def __cinit__(self, num_ranks, *, sms_per_rank=132, cta_smem=CTA_SMEM, scheduler="rr",
                  checks="all", seed=0, stall_limit=STALL_LIMIT,
                  instruction_limit=INSTRUCTION_LIMIT, timeout_s=None):
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
        self.host = host_create(&options, limit_ns("timeout_s", timeout_s))
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

    def executor(self, rank, *, arch="sm_90"):
        """The `EmuExecutor` of one rank; `arch` is the target whose kernels it takes."""
        return EmuExecutor(self, rank, arch)

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
        cdef _Mapping mapping = _Mapping(buffer, writable)
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
        cdef _Mapping mapping = _Mapping(data, False)
        self.check(host_copy_in(self.host, r, va, mapping.view.buf, mapping.view.len, NULL), r)

    # -- kernels --------------------------------------------------------------------------------

    def load(self, text, symbol=None):
        """Decode PTX `text` and load its entry `symbol` (None: its only one).

        The same text and symbol give the same code.  Raises `PtxError` naming file and line.
        """
        found = self.kernels.get((symbol, text))
        if found is None:
            found = load_kernel(self, text, symbol)
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
        fill_launch(&launch, self, kernel, params, grid, block, smem)
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


cdef int fill_launch(ep_launch *launch, World world, Kernel kernel, bytes params, grid, block,
                     smem) except -1:
    if kernel.world is not world:
        raise ValueError("kernel: was loaded into another world")
    memset(launch, 0, sizeof(launch[0]))        # no attributes
    launch.kernel = kernel.kernel
    launch.params = PyBytes_AS_STRING(params)
    launch.param_bytes = len(params)
    launch.grid = check_int(grid, "grid", 1, MAX_U32)
    launch.block = check_int(block, "block", 1, 1024)
    launch.smem = check_int(smem, "smem", 0, MAX_U32)
    return 0


cdef class _Strings:
    """A C array of C strings; `texts` (bytes) stay with it."""
    cdef const char **items
    cdef tuple texts

    def __cinit__(self, tuple texts not None):
        self.texts = texts
        self.items = <const char **>calloc(len(texts) + 1, sizeof(char *))
        if self.items == NULL:
            raise MemoryError("texts: no memory")
        for i, text in enumerate(texts):
            self.items[i] = PyBytes_AS_STRING(text)

    def __dealloc__(self):
        free(self.items)


cdef load_kernel(World world, str text, symbol):
    """Decode and load; returns (handle, symbol, parameter bytes, target)."""
    from deepep_ptx.emu.kernel import load_image

    image = load_image(text, symbol)
    cdef emu_kernel_image c_image
    cdef const uint8_t[::1] insns = np.ascontiguousarray(image.insns).view(np.uint8)
    cdef const uint8_t[::1] constants = np.ascontiguousarray(image.constants)
    cdef const uint8_t[::1] lines = np.ascontiguousarray(image.lines).view(np.uint8)
    cdef _Strings files = _Strings(image.files)
    cdef _Strings texts = _Strings(image.texts)
    cdef bytes name = image.symbol.encode()
    cdef host_kernel *kernel
    memset(&c_image, 0, sizeof(c_image))
    c_image.symbol = name
    c_image.num_insns = insns.shape[0] // sizeof(emu_insn)
    if c_image.num_insns:
        c_image.insns = <const emu_insn *>&insns[0]
    c_image.constant_bytes = constants.shape[0]
    if constants.shape[0]:
        c_image.constants = &constants[0]
    c_image.register_bytes = image.register_bytes
    c_image.num_predicates = image.num_predicates
    c_image.param_bytes = image.param_bytes
    c_image.shared_bytes = image.shared_bytes
    c_image.local_bytes = image.local_bytes
    c_image.max_threads = image.max_threads
    c_image.files = files.items
    c_image.num_files = len(image.files)
    c_image.num_lines = lines.shape[0] // sizeof(emu_line)
    if c_image.num_lines:
        c_image.lines = <const emu_line *>&lines[0]
    c_image.texts = texts.items
    kernel = host_kernel_load(world.host, &c_image)
    if kernel == NULL:
        raise MemoryError(f"text: no memory to load {image.symbol}")
    return <uint64_t><size_t>kernel, image.symbol, image.param_bytes, image.target


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
        self.executor = emu_executor_create(world.host, self.rank)
        if self.executor == NULL:
            raise MemoryError("rank: no memory for its executor")
        self.table = emu_executor_table(self.executor)

    def __dealloc__(self):
        emu_executor_destroy(self.executor)

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
        cdef ep_dptr_t va = 0
        cdef size_t where = address
        if nbytes:
            self.world.check(host_map(self.world.host, self.rank, <void *>where,
                                      check_int(nbytes, f"{name}: bytes", 1, 2**48), writable,
                                      name.encode(), &va), self.rank)
        return va

    def unmap(self, dptr):
        """Undo `map_array`, at once: a kernel that still uses the array is a `KernelFault`."""
        if dptr:
            self.world.check(host_unmap(self.world.host, self.rank, dptr), self.rank)

    def error(self, code):
        """The exception for `code`, which a function of `table` has just returned."""
        return self.world.error(code, self.rank)

    def host_view(self, dptr, nbytes):
        """A NumPy uint8 array [nbytes] over device memory of this rank, a peer's, or pinned.

        It keeps the memory and the world alive, also after a free.  Reading it does not wait for
        kernels: synchronize first.  After storing to bytes that no kernel has written, say so with
        `written`.
        """
        if not nbytes:
            return np.empty(0, np.uint8)
        return np.frombuffer(_HostView(self.world, self.rank, dptr, nbytes), np.uint8)

    def written(self, dptr, nbytes):
        """These bytes were stored through a `host_view`: kernels may read them."""
        self.world.check(host_written(self.world.host, self.rank, dptr,
                                      check_int(nbytes, "nbytes", 0, 2**40)), self.rank)

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
        cdef _Mapping source = _Mapping(data, False)
        self.call(self.table.copy_in(self.table.self, dptr, source.view.buf, source.view.len,
                                     <void *><size_t>stream))

    def copy_out(self, dptr, nbytes, *, stream=0):
        """Wait for `stream`, then return `nbytes` bytes of device memory."""
        cdef Py_ssize_t size = check_int(nbytes, "nbytes", 0, 2**40)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, size)
        cdef char *dst = PyBytes_AS_STRING(out)
        cdef ep_dptr_t src = dptr
        cdef host_stream *c_stream = <host_stream *><size_t>stream
        cdef int code
        with nogil:
            code = host_copy_out(self.world.host, self.rank, dst, src, size, c_stream)
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
        cdef host_stream *c_stream = <host_stream *><size_t>stream
        cdef int code
        with nogil:
            code = host_synchronize(self.world.host, self.rank, c_stream)
        self.call(code)

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
        return new_graph(self, stream)

    def captured(self, stream=0):
        """Whether `stream` is being captured."""
        cdef void *graph = NULL
        self.call(self.table.capture(self.table.self, <void *><size_t>stream, &graph))
        return graph != NULL

    def launch(self, Kernel kernel not None, bytes params not None, grid, block, smem=0, *,
               stream=0):
        """Queue a launch of `grid` CTAs of `block` threads; see `World.launch`."""
        cdef ep_launch launch
        fill_launch(&launch, self.world, kernel, params, grid, block, smem)
        launch.stream = <void *><size_t>stream
        self.call(self.table.launch(self.table.self, &launch))

    def wait_word(self, address, want, timeout_s=None):
        """Wait until the u64 at host `address` is `want`; `DeepEPTimeoutError` after `timeout_s`
        of virtual time (None: the world's limit)."""
        cdef const uint64_t *word = <const uint64_t *><size_t>address
        cdef uint64_t c_want = want
        cdef uint64_t limit = limit_ns("timeout_s", timeout_s)
        cdef int code
        with nogil:
            code = host_wait_word(self.world.host, self.rank, word, c_want, limit, "wait_word")
        self.call(code)

    def yield_(self):
        """Let every other rank, and the kernels, go on once: for host loops that poll."""
        cdef int code
        with nogil:
            code = host_yield(self.world.host, self.rank)
        self.call(code)

    def max_resident(self, Kernel kernel not None, block, smem=0):
        """CTAs of `kernel` that run on this rank's device at the same time."""
        cdef uint32_t ctas = 0
        self.call(self.table.max_resident(self.table.self, kernel.kernel,
                                          check_int(block, "block", 1, 1024),
                                          check_int(smem, "smem", 0, MAX_U32), &ctas))
        return ctas

    cdef int call(self, int code) except -1:
        return self.world.check(code, self.rank)


cdef EmuGraph new_graph(EmuExecutor executor, stream):
    cdef EmuGraph self = EmuGraph.__new__(EmuGraph)
    self.executor = executor
    self.stream = <host_stream *><size_t>stream
    return self


cdef void drop_object(void *what) noexcept with gil:
    Py_DECREF(<object>what)


@cython.no_gc_clear     # __dealloc__ uses the executor
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
        cdef void *graph = NULL
        cdef EmuExecutor ex = self.executor
        if self.graph != NULL:
            raise ValueError("capture: one block for one graph")
        ex.call(host_capture_begin(ex.world.host, ex.rank, self.stream))
        self.capturing = True
        ex.call(ex.table.capture(ex.table.self, self.stream, &graph))
        self.graph = <host_graph *>graph
        return self

    def __exit__(self, kind, error, traceback):
        cdef int code = self.end()
        if kind is not None:
            self.close()
        else:
            self.executor.call(code)

    def __dealloc__(self):
        if self.capturing:
            self.end()
        self.close()

    cdef int end(self) noexcept:
        """Ends the capture; an error leaves no graph."""
        cdef EmuExecutor ex = self.executor
        cdef int code
        self.capturing = False
        self.graph = NULL
        with nogil:
            code = host_capture_end(ex.world.host, ex.rank, self.stream, &self.graph)
        return code

    def replay(self, stream=0):
        """Queue the work on `stream`, in the order in which it was captured; returns at once.

        Memory that it uses must still be there when it runs, as for any launch.  On a stream that
        is captured, it becomes a part of that capture.  `ValueError` before the end of the capture
        and after `close`.
        """
        cdef EmuExecutor ex = self.executor
        ex.call(host_graph_replay(ex.world.host, ex.rank, self.graph,
                                  <host_stream *><size_t>stream))

    def keep(self, what):
        """Keep the object `what` until the graph is closed and its replays are over."""
        cdef EmuExecutor ex = self.executor
        ex.call(ex.table.graph_keep(ex.table.self, self.graph, <void *>what, drop_object))
        Py_INCREF(what)

    def close(self):
        """Forget the work; replays already queued still run.  Closing twice does nothing."""
        cdef EmuExecutor ex = self.executor
        cdef host_graph *graph = self.graph
        self.graph = NULL
        if graph != NULL:
            with nogil:
                host_graph_destroy(ex.world.host, ex.rank, graph)
