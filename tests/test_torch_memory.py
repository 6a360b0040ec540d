# SPDX-License-Identifier: MIT
"""The arena's memory as torch's: against an allocator that does what torch's caching allocator does
with pools, streams and `record_stream`, over the functions that it is given in C."""

import contextlib
import ctypes
import gc
import sys
import types

import numpy as np
import pytest

from deepep_ptx import _lending
from deepep_ptx.arrays import torch_memory
from deepep_ptx.arrays.torch_memory import LEAST_BYTES, SEGMENT_STEP, LentSlots

ROWS = np.dtype(np.uint8)
PLACE = 1 << 40         # of the slot
COMM, CALLERS, OTHER = 7, 1, 2          # streams


class Block:
    def __init__(self, address, nbytes, stream):
        self.address, self.nbytes, self.stream = address, nbytes, stream
        self.used = True
        self.users = set()      # streams that have to pass


class Allocator:
    """torch's, for one device."""

    def __init__(self):
        lib = ctypes.CDLL(_lending.__file__)
        self.alloc = getattr(lib, _lending.ALLOC)
        self.alloc.restype = ctypes.c_void_p
        self.alloc.argtypes = [ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
        self.free = getattr(lib, _lending.FREE)
        self.free.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
        self.stream = CALLERS
        self.busy = set()       # streams
        self.pool = None
        self.asked_for = SEGMENT_STEP
        self.capturing = False

    def allocate(self, nbytes):
        for block in sorted(self.pool.blocks, key=lambda block: (block.nbytes, block.address)):
            block.users &= self.busy
            if (not block.used and not block.users and block.stream == self.stream
                    and block.nbytes >= nbytes):
                block.used = True
                return block
        size = -(-nbytes // self.asked_for) * self.asked_for
        address = self.alloc(size, 0, None)
        if address is None:
            raise MemoryBad("out of memory")
        block = Block(address, size, self.stream)
        self.pool.blocks.append(block)
        return block


class MemoryBad(RuntimeError):
    """As torch.cuda.OutOfMemoryError."""


class Storage:
    def __init__(self, allocator, nbytes):
        self.allocator, self.size, self.block = allocator, nbytes, None
        self.block = allocator.allocate(nbytes)

    def nbytes(self):
        return self.size

    def data_ptr(self):
        return self.block.address if self.block else 0

    def resize_(self, nbytes):
        assert nbytes == 0
        self.release()
        self.size = 0

    def release(self):
        if self.block is not None:
            self.block.used = False
            self.block = None

    def __del__(self):
        self.release()


class Tensor:
    def __init__(self, storage):
        self.storage = storage

    def untyped_storage(self):
        return self.storage

    def data_ptr(self):
        return self.storage.data_ptr()

    def record_stream(self, stream):
        self.storage.block.users.add(stream)


class MemPool:
    def __init__(self, allocator):
        self.allocator, self.blocks = allocator, []

    def __del__(self):
        for block in self.blocks:
            assert not block.used and not block.users, "torch would wait, or keep the segment"
            self.allocator.free(block.address, block.nbytes, 0, None)


class Library:
    def __init__(self, allocator):
        self.allocator = allocator

    @contextlib.contextmanager
    def on(self, stream, device):
        before, self.allocator.stream = self.allocator.stream, stream
        yield
        self.allocator.stream = before

    def make(self, shape, dtype, device):
        return Tensor(Storage(self.allocator, int(np.prod(shape)) * dtype.itemsize))


class FakeEvent:
    def __init__(self, executor):
        self.allocator = executor

    def record(self, stream):
        self.stream = stream

    @property
    def done(self):
        return self.stream not in self.allocator.busy


class Slot:
    settled = False

    def __init__(self, gone):
        self.gone = gone

    def __del__(self):
        self.gone.append(self.settled)


class Bench:
    """A buffer's lent slots over such an allocator."""

    def __init__(self, monkeypatch):
        self.allocator = allocator = Allocator()

        @contextlib.contextmanager
        def use_mem_pool(pool, device):
            before, allocator.pool = allocator.pool, pool
            yield
            allocator.pool = before

        cuda = types.SimpleNamespace(
            MemPool=lambda given: MemPool(allocator), use_mem_pool=use_mem_pool,
            device=lambda device: contextlib.nullcontext(),
            is_current_stream_capturing=lambda: allocator.capturing)
        torch = types.SimpleNamespace(
            cuda=cuda, UntypedStorage=lambda nbytes, device: Storage(allocator, nbytes))
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setattr(torch_memory, "_allocator", lambda: "ours")
        monkeypatch.setattr(torch_memory, "Event", FakeEvent)
        executor = allocator
        executor.device = 0
        self.core = types.SimpleNamespace(executor=executor, stream=COMM, look=lambda stream: 0)
        self.slots = LentSlots(self.core)
        self.library = Library(allocator)
        self.gone = []

    def lend(self, nbytes=LEAST_BYTES + 5, stream=CALLERS, room=1 << 30, address=PLACE):
        call = types.SimpleNamespace(library=self.library, results_on=stream)
        return self.slots.lend(call, address, room, (nbytes,), ROWS)

    def tensor(self, **how):
        return self.slots.keep(self.lend(**how), Slot(self.gone))


@pytest.fixture
def bench(monkeypatch):
    made = Bench(monkeypatch)
    yield made
    made.slots.clear()
    torch_memory._left.clear()


def test_a_tensor_is_where_its_slot_is(bench):
    tensor = bench.tensor()
    assert tensor.data_ptr() == PLACE and len(bench.slots) == 1
    bench.slots.collect(CALLERS, True)
    assert bench.gone == []
    del tensor
    assert bench.gone == []                 # nothing tells
    bench.slots.collect(CALLERS, True)
    assert bench.gone == [False] and not bench.slots    # the next call comes after that stream


@pytest.mark.parametrize("how", ["view", "resize"])
def test_what_keeps_a_block(bench, how):
    tensor = bench.tensor()
    storage = tensor.untyped_storage()
    del tensor
    bench.slots.collect(CALLERS, True)
    assert bench.gone == []
    if how == "resize":
        storage.resize_(0)
    else:
        del storage
    bench.slots.collect(CALLERS, True)
    assert bench.gone == [False]


def test_a_block_waits_for_the_streams_that_torch_was_told_of(bench):
    tensor = bench.tensor()
    bench.allocator.busy = {OTHER}
    tensor.record_stream(OTHER)
    del tensor
    for _ in range(3):                      # asked for each time
        bench.slots.collect(CALLERS, True)
        assert bench.gone == []
    bench.allocator.busy = set()
    bench.slots.collect(CALLERS, True)
    assert bench.gone == [False]


@pytest.mark.parametrize(("stream", "calls_on", "follows", "settled"), [
    (CALLERS, CALLERS, True, False),        # the call comes after that stream
    (COMM, CALLERS, False, True),           # allocated for the buffer's stream
    (CALLERS, CALLERS, False, True),        # an event that has passed
    (CALLERS, OTHER, True, True),
])
def test_order_behind_a_block(bench, stream, calls_on, follows, settled):
    tensor = bench.tensor(stream=stream)
    del tensor
    bench.slots.collect(calls_on, follows)
    assert bench.gone == [settled]


def test_a_call_that_does_not_follow_the_stream_waits_for_no_work_of_it(bench):
    tensor = bench.tensor()
    bench.allocator.busy = {CALLERS}
    del tensor
    for _ in range(2):
        bench.slots.collect(CALLERS, False)
        assert bench.gone == []
    bench.allocator.busy = set()
    bench.slots.collect(CALLERS, False)
    assert bench.gone == [True]


def test_a_loan_that_nobody_takes(bench):
    """Its bytes are free at once, also where it just dies."""
    for _ in range(3):
        bench.lend().close()
        loan = bench.lend()
        del loan
    assert not _lending.returned(PLACE)     # told already
    assert bench.tensor().data_ptr() == PLACE


@pytest.mark.parametrize(("nbytes", "room"), [
    (LEAST_BYTES - 1, 1 << 30), (LEAST_BYTES + 1, LEAST_BYTES + 2)])
def test_what_is_not_lent(bench, nbytes, room):
    assert bench.lend(nbytes=nbytes, room=room) is None
    assert bench.lend() is not None


def test_segments_larger_than_the_room(bench):
    """As PYTORCH_CUDA_ALLOC_CONF may make them: copies from then on."""
    bench.allocator.asked_for = 1 << 28
    assert bench.lend(room=1 << 27) is None
    bench.allocator.asked_for = SEGMENT_STEP
    assert bench.lend() is None


def test_a_pool_of_the_callers_own(bench):
    """Which some releases of torch prefer to one that is entered later."""
    theirs = MemPool(bench.allocator)
    theirs.blocks.append(Block(1 << 41, 1 << 30, CALLERS))
    theirs.blocks[0].used = False
    make = bench.library.make

    def elsewhere(*args):
        bench.allocator.pool = theirs
        return make(*args)

    bench.library.make = elsewhere
    assert bench.lend() is None
    gc.collect()
    theirs.blocks.clear()


def test_nothing_ends_during_a_capture(bench):
    tensor = bench.tensor()
    del tensor
    bench.allocator.capturing = True
    bench.slots.collect(CALLERS, True)
    assert bench.gone == []
    bench.allocator.capturing = False
    bench.core.look = lambda stream: 1
    bench.slots.collect(CALLERS, True)
    assert bench.gone == []
    bench.core.look = lambda stream: 0
    bench.slots.collect(CALLERS, True)
    assert bench.gone == [False]


def test_tensors_outlive_their_buffer(bench):
    tensor = bench.tensor()
    bench.slots.leave()
    other = LentSlots(bench.core)
    other.collect(CALLERS, True)
    assert bench.gone == []
    del tensor
    other.collect(CALLERS, True)
    assert bench.gone == [False] and not torch_memory._left
