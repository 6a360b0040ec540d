# SPDX-License-Identifier: MIT
"""Where the calls of one rank run: arrays, what goes before a measured call, and what is measured
of it."""

import contextlib
import time
from dataclasses import dataclass

import numpy as np

from deepep_ptx._cuda import TimedEvent
from deepep_ptx._executor import Memory
from deepep_ptx.arrays import DeviceArray
from deepep_ptx.arrays.dtypes import BY_NAME

FLUSH_BYTES = 1 << 28           # more than the L2 cache of any GPU
FLUSHES = 2                     # before a call: half a millisecond for the host to queue the call
FLUSHES_BESIDE = 6              # before a call and a GEMM: in half a millisecond hosts came late
PER_THREAD_STREAM = 2           # CU_STREAM_PER_THREAD: of the rank's thread alone
MAX_LAUNCHES = 16               # of one call, and of what goes before it
SMALL_BYTES, SMALL_ARRAYS = 1 << 20, 16     # what torch's allocator keeps apart from larger arrays


def machine_of(executor, torch=None):
    """The machine of a rank.  torch: the module, if arrays shall be its tensors."""
    if not executor.keeps_time:
        return Emu(executor)
    return Gpu(executor) if torch is None else TorchGpu(executor, torch)


@contextlib.contextmanager
def own_stream(executor, torch=None):
    """In the block this thread's GPU is the executor's, and its current stream of torch one that
    can be captured; nothing without torch."""
    if torch is None:
        yield
        return
    torch.cuda.set_device(executor.device)
    with torch.cuda.stream(torch.cuda.Stream(executor.device)):
        yield


@dataclass(frozen=True)
class Timing:
    """What a GPU took for one call.

    us: microseconds.  late: the host had not queued all of the call when the device began it, so
    that host time is in them.  launches: (symbol, microseconds) of its kernels, in order, where
    each was timed.
    """

    us: float
    late: bool
    launches: tuple = ()


class Gpu:
    """One rank's GPU, with arrays that are of no library; a measured call gives a `Timing`.

    A measured call begins after a flush and `align`, which are queued before the device has
    anything of the call, and of which the host does not wait.

    times: True.  stream: the caller's, a number; all that is queued here is queued on it.
    """

    times = True
    stream = PER_THREAD_STREAM

    def __init__(self, executor):
        self.executor = executor
        self.flushed = [Memory(executor, FLUSH_BYTES, "flush", self.stream) for _ in range(2)]
        self.begin, self.end = TimedEvent(executor), TimedEvent(executor)
        self.synchronize()          # the memory is there for other streams too
        for memory in self.flushed:
            executor.fill(memory.address, 0xA5, FLUSH_BYTES)

    def give(self, array):
        """A copy of a NumPy array on the GPU."""
        memory = Memory(self.executor, array.nbytes, "measure", self.stream)
        memory.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return DeviceArray(memory, self.executor, memory.address, array.shape, array.dtype,
                           self.stream)

    def get(self, array):
        """An array, which may be NumPy's already, as a NumPy array."""
        return array if isinstance(array, np.ndarray) else array.numpy()

    def same(self, array, want):
        """True if the rows of `array` that `want` has are `want`'s; False: to be looked at."""
        return False

    def address(self, array):
        """Of its first byte."""
        return array.address

    def store(self, array, rows):
        """Queue a copy of `rows` over the first of `array`."""
        if rows.nbytes:
            self.executor.copy_array(self.address(array), self.address(rows), rows.nbytes,
                                     self.stream)

    def reserve(self, nbytes):
        """Have the pool of arrays hold memory for so many bytes, as `TorchGpu.reserve` does."""
        Memory(self.executor, nbytes, "measure", self.stream)

    def spoil(self, array):
        """Overwrite a right result, so that nobody finds it again in memory used anew."""
        if not isinstance(array, np.ndarray) and array.nbytes:
            self.synchronize()
            self.executor.fill(self.address(array), 0xA5, array.nbytes)

    def flush(self, times=FLUSHES):
        """Queue writes of so many bytes that nothing older is left in the L2 cache."""
        to, source = (memory.address for memory in self.flushed)
        for _ in range(times):
            self.executor.copy_array(to, source, FLUSH_BYTES, self.stream)

    def synchronize(self):
        """Wait for all that was queued."""
        self.end.record(self.stream)
        self.end.synchronize()

    def measure(self, align, call):
        """(what `call` returned, the `Timing` of its kernels): events around each launch."""
        self.executor.profile(MAX_LAUNCHES)
        result, late = self._queued(align, call)
        self.end.synchronize()
        launches = self.executor.launch_times()[align.num_launches:]
        self.executor.profile(0)
        return result, Timing(sum(us for _, us in launches), late, tuple(launches))

    def measure_whole(self, align, call):
        """(what `call` returned, its `Timing`): two events around it on the caller's stream, and
        none inside, which it would have to wait for."""
        result, late = self._queued(align, call)
        return result, Timing(self.end.since(self.begin), late)

    def _queued(self, align, call):
        """(what `call` returned, whether the host was late): it is between `begin` and `end`."""
        self.flush()
        align()
        self.begin.record(self.stream)
        result = call()
        self.end.record(self.stream)
        return result, self.begin.done

    def beside(self, align, call, work):
        """(microseconds of the call's kernels, of `work`, late), NaN for what is None: `call`, of
        a buffer, is queued with `async_finish` and `work` after it on the caller's stream, both to
        begin when `align` has ended."""
        nothing = float("nan")
        self.executor.profile(MAX_LAUNCHES)
        self.flush(FLUSHES_BESIDE)
        align()
        result = call(async_finish=True) if call else None
        self.begin.record(self.stream)
        if work:
            work()
        self.end.record(self.stream)
        late = self.begin.done
        work_us = self.end.since(self.begin) if work else nothing
        if call:
            result["event"].current_stream_wait()
            self.synchronize()
        launches = self.executor.launch_times()[align.num_launches:]
        self.executor.profile(0)
        return sum(us for _, us in launches) if call else nothing, work_us, late

    def host_us(self, call):
        """(what `call` returned, microseconds that it kept the host)."""
        self.synchronize()
        began = time.perf_counter()
        result = call()
        return result, (time.perf_counter() - began) * 1e6


class TorchGpu(Gpu):
    """A GPU with torch's tensors, on the stream that is torch's current one."""

    def __init__(self, executor, torch):
        self.torch = torch
        self.stream = torch.cuda.current_stream(executor.device).cuda_stream
        self.device = f"cuda:{executor.device}"
        self.wanted = {}        # id -> the array, which keeps the id, and its copy on the GPU
        self._pool = None       # of graphs
        super().__init__(executor)

    def give(self, array):
        """A copy of a NumPy array on the GPU."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        tensor = self.torch.from_numpy(data).to(self.device)
        return tensor.view(getattr(self.torch, str(array.dtype))).reshape(array.shape)

    def get(self, array):
        """An array, which may be NumPy's already, as a NumPy array."""
        if isinstance(array, np.ndarray):
            return array
        dtype = BY_NAME[str(array.dtype).removeprefix("torch.")]
        return self._bytes(array).cpu().numpy().view(dtype).reshape(tuple(array.shape))

    def same(self, array, want):
        """True if the rows of `array` that `want` has are `want`'s; False: to be looked at."""
        if isinstance(array, np.ndarray) or len(array) < len(want):
            return False
        if id(want) not in self.wanted:
            self.wanted[id(want)] = want, self.give(want)
        want = self.wanted[id(want)][1]
        rows = array[:len(want)]
        return (rows.shape == want.shape and rows.dtype == want.dtype
                and self.torch.equal(self._bytes(rows), self._bytes(want)))

    def address(self, array):
        """Of its first byte."""
        return array.data_ptr()

    def reserve(self, nbytes):
        """Have torch's allocator hold memory for so many bytes of arrays, and for small ones.

        Before ranks meet for a call: it asks the driver for none then, which would wait for the
        kernels of ranks that share the GPU, and these for the call.
        """
        sizes = [SMALL_BYTES] * SMALL_ARRAYS + [max(1, nbytes)]
        held = [self.torch.empty(size, dtype=self.torch.uint8, device=self.device)
                for size in sizes]
        del held

    def captured(self, work):
        """A function that queues a graph of what `work` queues, and returns what `work` returned.
        It may not run beside another one of this machine.  The current stream is `own_stream`'s.

        Waits for the GPU: no rank that shares it may be in a call.
        """
        if self._pool is None:
            self._pool = self.torch.cuda.graph_pool_handle()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph, pool=self._pool,
                                   stream=self.torch.cuda.current_stream(self.executor.device),
                                   capture_error_mode="thread_local"):
            result = work()

        def replay():
            graph.replay()
            return result

        return replay

    def _bytes(self, tensor):
        return tensor.contiguous().reshape(-1).view(self.torch.uint8)


class Emu:
    """A rank of the CPU executor; a measured call gives what all its kernels counted.

    times: False.
    """

    times = False
    stream = None

    def __init__(self, executor):
        self.executor = executor

    def give(self, array):
        """The array itself: results are NumPy's then."""
        return array

    def get(self, array):
        """A copy of an array."""
        return np.array(array)

    def same(self, array, want):
        """False: to be looked at."""
        return False

    def store(self, array, rows):
        """Copy `rows` over the first of `array`."""
        array[:len(rows)] = rows

    def reserve(self, nbytes):
        """Nothing: an allocation waits for nobody."""

    def spoil(self, array):
        """Overwrite a right result, if it can be."""
        if array.flags.writeable:
            array.view(np.uint8)[...] = 0xA5

    def synchronize(self):
        """Wait for all that was queued."""
        self.executor.synchronize()

    def measure(self, align, call):
        """(what `call` returned, counter -> what this rank's kernels added to it), once they are
        done."""
        align()
        before = self.executor.counters()
        result = call()
        self.executor.synchronize()
        return result, {name: total - before[name]
                        for name, total in self.executor.counters().items()}
