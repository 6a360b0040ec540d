# SPDX-License-Identifier: MIT
"""The CUDA driver as an executor: one GPU for one rank."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

import numpy as np

from deepep_ptx._executor cimport (
    EP_ERR_ABORTED,
    EP_ERR_ARGUMENT,
    EP_HANDLE_BYTES,
    EP_OK,
    Event,
    Executor,
    ep_dptr_t,
    ep_launch,
)

from deepep_ptx.errors import Aborted, DeepEPError

MIN_DRIVER = CUDA_MIN_DRIVER    # 1000 * major + 10 * minor, as `driver_version`


def device_count():
    """GPUs that the driver shows; 0 without a driver.  See `why_not`."""
    cdef const char *why = NULL
    return max(0, cuda_device_count(&why))


def why_not():
    """Why no GPU can be used, or None where one can."""
    cdef const char *why = NULL
    cdef int count = cuda_device_count(&why)
    if count > 0:
        return None
    return why.decode() if count < 0 else "the driver shows no GPU"


def driver_version():
    """1000 * major + 10 * minor of the CUDA that the driver supports; None without a driver."""
    cdef const char *why = NULL
    return cuda_driver_version(&why) or None


def describe_device(int device):
    """{"name", "arch", "memory"} of a GPU: 10 * major + minor of its compute capability, bytes.

    Nothing is allocated on the GPU.  Raises `DeepEPError`.
    """
    cdef const char *why = NULL
    cdef cuda_device_facts facts
    if cuda_describe_device(device, &facts, &why) != 0:
        raise DeepEPError(f"GPU {device}: {why.decode()}")
    return {"name": facts.name.decode(), "arch": facts.arch, "memory": facts.memory}


def describe_link(int origin, int peer):
    """{"access", "atomics", "rank"}: whether kernels on GPU `origin` can use memory of GPU `peer`,
    also with atomics, which PCIe has not, and the driver's performance rank of the way there.

    Nothing is allocated on the GPUs.  Raises `DeepEPError`.
    """
    cdef const char *why = NULL
    cdef cuda_link_facts facts
    if cuda_describe_link(origin, peer, &facts, &why) != 0:
        raise DeepEPError(f"GPU {origin} to GPU {peer}: {why.decode()}")
    return {"access": bool(facts.access), "atomics": bool(facts.atomics), "rank": facts.rank}


@cython.final
cdef class ContextEvent(Event):
    """A point in the work of a stream of the driver's current context, of no executor."""

    cdef bint is_lent
    cdef object owner       # whose the event is, if it is lent

    def __init__(self, size_t stream):
        require(cuda_event_create(&self.handle))
        self.record(stream)

    @staticmethod
    def lent(size_t handle, owner):
        """A CUevent of another library, which `owner` keeps."""
        cdef ContextEvent event = ContextEvent.__new__(ContextEvent)
        event.is_lent, event.owner, event.handle = True, owner, <void *>handle
        return event

    def __dealloc__(self):
        if self.handle != NULL and not self.is_lent:
            cuda_event_destroy(self.handle)

    def record(self, size_t stream):
        require(cuda_event_record(self.handle, <void *>stream))

    def wait(self, size_t stream):
        require(cuda_event_wait(self.handle, <void *>stream))

    def synchronize(self):
        cdef const char *error
        with nogil:
            error = cuda_event_synchronize(self.handle)
        require(error)

    @property
    def done(self):
        cdef int done = 0
        require(cuda_event_query(self.handle, &done))
        return done != 0


cdef int require(const char *error) except -1:
    if error != NULL:
        raise DeepEPError(error.decode())
    return 0


def has_context():
    """Whether the driver has a current context in this thread."""
    return bool(cuda_has_context())


cdef int interrupted() noexcept nogil:
    # Ctrl-C, in the main thread; the handler's exception waits for the end of the call.
    with gil:
        try:
            PyErr_CheckSignals()
        except BaseException:
            return 1
    return 0


@cython.final
@cython.no_gc_clear         # __dealloc__ uses the executor
cdef class TimedEvent(Event):
    """A point in the work of an executor's GPU that keeps its time."""

    def __init__(self, CudaExecutor executor not None):
        self.executor = executor
        self.call(cuda_executor_timed_event(executor.own, &self.handle))

    def __dealloc__(self):
        if self.handle != NULL:
            cuda_executor_timed_event_destroy((<CudaExecutor>self.executor).own, self.handle)
            self.handle = NULL

    def since(self, TimedEvent begin not None):
        """Microseconds from `begin`, recorded too, to this one; waits for it on the host."""
        cdef CudaExecutor executor = <CudaExecutor>self.executor
        cdef float microseconds = 0
        cdef int code
        with nogil:
            code = cuda_executor_elapsed(executor.own, begin.handle, self.handle, &microseconds)
        self.call(code)
        return microseconds


@cython.final
@cython.no_gc_clear         # __dealloc__ uses the executor
cdef class CudaKernel:
    """A loaded kernel; `handle` goes into launches."""

    def __dealloc__(self):
        if self.kernel != NULL:
            with nogil:
                cuda_executor_unload(self.executor.own, self.kernel)

    @property
    def handle(self):
        return <size_t>self.kernel


@cython.final
cdef class CudaExecutor(Executor):
    """GPU `device` for rank `rank` of `world`, a run of threads (None: of another kind of group).

    arch: "sm_80" or "sm_90", whose kernels run; None = the GPU's.  NumPy arrays are copied in
    before a call and, where it writes them, out after it.
    Raises `DeepEPError` that says what is missing.
    """

    def __cinit__(self, int device=0, *, arch=None, int rank=0, world=None):
        cdef const char *why = NULL
        cdef int code
        with nogil:
            self.own = cuda_executor_create(device, &why)
        if self.own == NULL:
            raise DeepEPError(f"the cuda executor cannot use GPU {device}: {why.decode()}")
        self.table = cuda_executor_table(self.own)
        cuda_executor_ask(self.own, interrupted)
        self.mapped = {}
        self.symbols = {}
        self.rank = rank
        self.world = world
        self.device = device
        self.kind = cuda_executor_device_name(self.own).decode()
        self.cta_smem = cuda_executor_cta_smem(self.own)
        self.name = "cuda"
        self.takes_streams = True
        self.keeps_time = True
        capability = cuda_executor_arch(self.own)
        if capability < 80:
            raise DeepEPError(f"GPU {device} ({self.kind}): compute capability "
                              f"{capability / 10} is below 8.0")
        self.arch = arch or ("sm_90" if capability >= 90 else "sm_80")
        with nogil:
            code = self.table.stream_create(self.table.self, &self.stream)
        self.call(code)

    def __dealloc__(self):
        if self.own != NULL:
            with nogil:
                if self.stream != NULL:
                    self.table.stream_destroy(self.table.self, self.stream)
                cuda_executor_destroy(self.own)

    cdef int call(self, int code) except -1:
        if code != EP_OK:
            raise self.error(code)
        return 0

    @property
    def device_name(self):
        """As the driver names the GPU."""
        return self.kind

    @property
    def place(self):
        """The GPU's UUID: 16 bytes that no other GPU of any host has."""
        cdef char uuid[16]
        self.call(cuda_executor_uuid(self.own, uuid))
        return uuid[:16]

    def enable_peer(self, CudaExecutor peer not None):
        """Let kernels here use memory of `peer`, a rank of this process."""
        self.call(cuda_executor_enable_peer(self.own, peer.own))

    def stop(self):
        """End host waits of this rank with `Aborted`: another rank of this process has failed."""
        cuda_executor_stop(self.own)

    def error(self, code):
        if code == EP_ERR_ABORTED:
            return Aborted("another rank failed and this rank was stopped")
        return Executor.error(self, code)

    def load(self, symbol, text, param_bytes):
        cdef bytes c_text = text.encode(), c_symbol = symbol.encode()
        cdef const char *image = c_text
        cdef const char *name = c_symbol
        cdef uint32_t size = param_bytes
        cdef CudaKernel kernel = CudaKernel()
        cdef int code
        kernel.executor = self
        with nogil:
            code = cuda_executor_load(self.own, image, name, size, &kernel.kernel)
        self.call(code)
        self.symbols[<size_t>kernel.kernel] = symbol
        return kernel

    cdef int alloc_array(self, uint64_t nbytes, const char *name, void *stream,
                         ep_dptr_t *out) noexcept nogil:
        return cuda_executor_alloc_async(self.own, nbytes, stream, out)

    cdef int free_array(self, ep_dptr_t dptr, void *stream) noexcept nogil:
        return cuda_executor_free_async(self.own, dptr, stream)

    def copy_array(self, dst, src, nbytes, stream):
        self.call(cuda_executor_copy(self.own, dst, src, nbytes, <void *><size_t>stream))

    def device_of(self, address):
        return cuda_executor_device_of(self.own, address)

    def map_array(self, address, nbytes, writable, name):
        """A copy of host bytes [address, address + nbytes) in device memory; see `unmap`."""
        cdef ep_dptr_t dptr = 0
        cdef const void *source = <const void *><size_t>address
        cdef uint64_t size = nbytes
        cdef int code
        if not nbytes:
            return 0
        with nogil:
            # Host memory has no stream: the default one stands for what the caller did before.
            code = self.table.stream_wait(self.table.self, self.stream, NULL)
            if code == EP_OK:
                code = cuda_executor_alloc_async(self.own, size, self.stream, &dptr)
            if code == EP_OK:
                code = self.table.copy_in(self.table.self, dptr, source, size, self.stream)
            if code == EP_OK:
                code = self.table.stream_synchronize(self.table.self, self.stream)
            if code != EP_OK and dptr:
                cuda_executor_free_async(self.own, dptr, self.stream)
        self.call(code)
        self.mapped[dptr] = (address, nbytes, writable)
        return dptr

    def unmap(self, dptr):
        """Free what `map_array` gave; where it was writable, copy it back to the host first."""
        cdef ep_dptr_t device = dptr
        cdef void *target
        cdef uint64_t size
        cdef bint copy
        cdef int code = EP_OK, freed
        if not dptr:
            return
        address, nbytes, copy = self.mapped.pop(dptr)
        target = <void *><size_t>address
        size = nbytes
        with nogil:
            if copy:
                code = self.table.copy_out(self.table.self, target, device, size, self.stream)
            freed = cuda_executor_free_async(self.own, device, self.stream)
        self.call(code)
        self.call(freed)

    def host_view(self, dptr, nbytes):
        """None: device memory has no address on the host; see `read`."""
        return None

    def read(self, dptr, nbytes, size_t stream=0):
        """A copy of device memory [dptr, dptr + nbytes), as `stream` leaves it, as a NumPy uint8
        array."""
        out = np.empty(nbytes, np.uint8)
        cdef uint8_t[::1] view = out
        cdef void *target = &view[0] if nbytes else NULL
        cdef ep_dptr_t device = dptr
        cdef uint64_t size = nbytes
        cdef int code = EP_OK
        if nbytes:
            with nogil:
                code = self.table.stream_wait(self.table.self, self.stream, <void *>stream)
                if code == EP_OK:
                    code = self.table.copy_out(self.table.self, target, device, size, self.stream)
        self.call(code)
        return out

    def counters(self):
        """Empty: a GPU counts nothing for us."""
        return {}

    # -- memory of other processes ---------------------------------------------------------------

    def export_memory(self, dptr):
        """The handle with which another process imports what `alloc` gave."""
        cdef char handle[EP_HANDLE_BYTES]
        memset(handle, 0, EP_HANDLE_BYTES)
        self.call(self.table.export_memory(self.table.self, dptr, handle))
        return handle[:EP_HANDLE_BYTES]

    def import_memory(self, bytes handle not None):
        """The address here of memory that another process exported; see `release_memory`."""
        cdef ep_dptr_t dptr = 0
        if len(handle) != EP_HANDLE_BYTES:
            raise ValueError(f"handle: must have {EP_HANDLE_BYTES} bytes, got {len(handle)}")
        self.call(self.table.import_memory(self.table.self, <const char *>handle, &dptr))
        return dptr

    def release_memory(self, dptr):
        """Undo `import_memory`."""
        self.call(self.table.release_memory(self.table.self, dptr))

    # -- measuring -------------------------------------------------------------------------------

    def profile(self, uint32_t max_launches):
        """Time every launch of this rank from now on, up to `max_launches`; 0 stops and forgets."""
        self.call(cuda_executor_profile(self.own, max_launches))

    def launch_times(self):
        """[(symbol, microseconds)] of the launches since `profile`; waits for them."""
        cdef void *kernel = NULL
        cdef float microseconds = 0
        cdef uint32_t index = 0
        cdef int code
        times = []
        while True:
            with nogil:
                code = cuda_executor_launch_time(self.own, index, &kernel, &microseconds)
            if code == EP_ERR_ARGUMENT:
                return times
            self.call(code)
            times.append((self.symbols[<size_t>kernel], microseconds))
            index += 1

    def alloc(self, nbytes):
        """Device memory that peers of this process can reach; returns its address."""
        cdef ep_dptr_t dptr = 0
        cdef uint64_t size = nbytes
        cdef int code
        with nogil:
            code = self.table.alloc(self.table.self, size, b"alloc", &dptr)
        self.call(code)
        return dptr

    def free(self, dptr):
        """Free what `alloc` gave; no kernel of this process may be waiting for another."""
        cdef ep_dptr_t device = dptr
        cdef int code
        with nogil:
            code = self.table.free(self.table.self, device, NULL)
        self.call(code)

    def fill(self, dptr, uint8_t value, nbytes):
        """Set bytes and wait until they are set."""
        cdef ep_dptr_t device = dptr
        cdef uint64_t size = nbytes
        cdef int code
        with nogil:
            code = self.table.fill(self.table.self, device, value, size, self.stream)
            if code == EP_OK:
                code = self.table.stream_synchronize(self.table.self, self.stream)
        self.call(code)

    def launch(self, CudaKernel kernel not None, bytes params not None, uint32_t grid,
               uint32_t block, uint32_t smem=0):
        """Launch and wait."""
        cdef ep_launch launch
        cdef int code
        memset(&launch, 0, sizeof(launch))      # no attributes
        launch.kernel = kernel.kernel
        launch.params = <const char *>params
        launch.param_bytes = len(params)
        launch.grid, launch.block, launch.smem = grid, block, smem
        launch.stream = self.stream
        with nogil:
            code = self.table.launch(self.table.self, &launch)
            if code == EP_OK:
                code = self.table.stream_synchronize(self.table.self, self.stream)
        self.call(code)

    def time_copy(self, dst, src, nbytes, uint32_t times=10):
        """Microseconds that the copy engine takes for `nbytes` from `src` to `dst`, any GPUs."""
        cdef ep_dptr_t to = dst, origin = src
        cdef uint64_t size = nbytes
        cdef float microseconds = 0
        cdef int code
        with nogil:
            code = cuda_executor_time_copy(self.own, to, origin, size, times, self.stream,
                                           &microseconds)
        self.call(code)
        return microseconds
