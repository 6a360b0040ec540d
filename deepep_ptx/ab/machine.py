# SPDX-License-Identifier: MIT
"""Where the calls run: arrays, what goes before a measured call, and what is measured of it."""

import numpy as np

from deepep_ptx._executor import Memory
from deepep_ptx.arrays import DeviceArray
from deepep_ptx.errors import DeepEPError

FLUSH_BYTES = 1 << 28           # more than the L2 cache of any GPU
PER_THREAD_STREAM = 2           # CU_STREAM_PER_THREAD: of the rank's thread alone
MAX_LAUNCHES = 16               # of one call


def machine_of(executor):
    """The machine of a rank."""
    return (Gpu if executor.name == "cuda" else Emu)(executor)


class Gpu:
    """One rank's GPU; a measured call gives the microseconds of one kernel."""

    stream = PER_THREAD_STREAM

    def __init__(self, executor):
        self.executor = executor
        self.flushed = self.give(np.zeros(FLUSH_BYTES, np.uint8))

    def give(self, array):
        """A copy of a NumPy array on the GPU."""
        memory = Memory(self.executor, array.nbytes, "ab", self.stream)
        memory.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return DeviceArray(memory, self.executor, memory.address, array.shape, array.dtype,
                           self.stream)

    def get(self, array):
        """A copy of an array as a NumPy array."""
        return array.numpy()

    def store(self, array, rows):
        """Copy `rows`, of as many bytes as `array`, over it."""
        self.executor.time_copy(array.address, rows.address, rows.nbytes, 1)

    def flush(self):
        """Nothing of the last call is left in the L2 cache."""
        self.executor.fill(self.flushed.address, 0xA5, FLUSH_BYTES)

    def finish(self, call):
        """(what `call` returned, [(symbol, microseconds)] of its launches), once they are done."""
        self.executor.profile(MAX_LAUNCHES)
        result = call()
        launches = self.executor.launch_times()
        self.executor.profile(0)
        return result, launches

    def measure(self, call, symbol):
        """(what `call` returned, microseconds of its launch of `symbol`)."""
        result, launches = self.finish(call)
        times = [time for launched, time in launches if launched == symbol]
        if len(times) != 1:
            raise DeepEPError(f"{symbol}: launched {len(times)} times in a call that has it once: "
                              f"{', '.join(launched for launched, _ in launches)}")
        return result, times[0]


class Emu:
    """A rank of the CPU executor; a measured call gives what all its kernels counted."""

    stream = None

    def __init__(self, executor):
        self.executor = executor

    def give(self, array):
        """The array itself: results are NumPy's then."""
        return array

    def get(self, array):
        """A copy of an array."""
        return np.array(array)

    def store(self, array, rows):
        """Copy `rows` over `array`."""
        array[...] = rows

    def flush(self):
        """There is no cache."""

    def finish(self, call):
        """(what `call` returned, counter -> what this rank's kernels added to it), once they are
        done."""
        before = self.executor.counters()
        result = call()
        self.executor.synchronize()
        return result, {name: total - before[name]
                        for name, total in self.executor.counters().items()}

    def measure(self, call, symbol):
        """As `finish`: counts of single kernels are not kept."""
        return self.finish(call)
