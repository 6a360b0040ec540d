# SPDX-License-Identifier: MIT
"""Results in the arena as torch's own tensors.

A view of the arena is not a tensor as torch's allocator makes it: `record_stream` is ignored, and
`untyped_storage().resize_(0)` raises.  So the extent of a result is lent to the caching allocator,
as the one segment of a `torch.cuda.MemPool` of its own: the tensor over it is torch's, torch
decides when its memory is free, and it stays in memory that peers map.  When torch has done with
it the pool ends, which gives the segment back.

Nothing tells that a pool's block is free.  So when a call begins, those whose storage has died are
asked for again: torch gives the block if it is free, also of all streams that it was told of
(`record_stream`), and otherwise asks for a segment, which it gets at an address without memory.
(`torch.cuda.memory_snapshot` says it as well, and crashes torch 2.11 after some hundred calls.)
"""

import contextlib
import functools
import math
import sys
import weakref

from .. import _lending
from .._executor import Event

# torch's large segments are multiples of it from ten of them on; smaller requests share segments of
# 2 and 20 MiB.  Both are constants of its allocator (kRoundLarge, kMinLargeAlloc).
SEGMENT_STEP = 2 << 20
LEAST_BYTES = 10 << 20

# Set in an address where no memory is: above all that devices have, so torch prefers what is free.
NOWHERE = 1 << 60

# Tensors that have outlived their buffer.
_left = []


def in_segments(nbytes):
    """Bytes of the segment that torch asks for to hold `nbytes`, of which there are many."""
    return -(-nbytes // SEGMENT_STEP) * SEGMENT_STEP


@functools.cache
def _allocator():
    """What makes a pool's segments; None where torch has no pools or another allocator."""
    torch = sys.modules["torch"]
    if not hasattr(torch.cuda, "MemPool") or torch.cuda.get_allocator_backend() != "native":
        return None
    made = torch.cuda.memory.CUDAPluggableAllocator(_lending.__file__, _lending.ALLOC,
                                                    _lending.FREE)
    return made.allocator()


class Loan:
    """Bytes of the arena that torch uses for one tensor.

    nbytes: from `address` on.  library: torch's.  device: ordinal of the GPU.  stream: the number
    of the stream for which torch has allocated it.  pool: of that one segment.  tensor: until
    `LentSlots.keep`.  slot: of the arena, from then on.  over: torch has no use for it any more.
    cooled: an event behind its last use, from then on.
    """

    def __init__(self, library, device, stream, address, nbytes, pool, tensor):
        self.library = library
        self.device = device
        self.stream = stream
        self.address = address
        self.nbytes = nbytes
        self.pool = pool
        self.tensor = tensor
        self.storage = weakref.ref(tensor.untyped_storage())
        self.slot = self.cooled = None
        self.over = False

    def close(self):
        """Of a tensor that nobody has used: it goes before its pool, which gives the bytes back."""
        self.tensor = None
        self.pool = None
        _lending.returned(self.address)
        self.over = True

    def __del__(self):
        if self.tensor is not None:
            self.close()

    def is_over(self):
        """Whether torch has no use for it any more, not on any stream that it was told of."""
        if self.pool is not None:
            storage = self.storage()
            if storage is not None and storage.nbytes() and storage.data_ptr() == self.address:
                return False
            del storage
            # Pools do not end, and blocks do not become free, while something is captured.
            if sys.modules["torch"].cuda.is_current_stream_capturing() or not self._is_free():
                return False
            self.pool = None
        self.over = self.over or _lending.returned(self.address)
        return self.over

    def _is_free(self):
        _lending.offer_nothing(NOWHERE | self.address)
        try:
            with _allocating(self.library, self.stream, self.device, self.pool):
                found = sys.modules["torch"].UntypedStorage(self.nbytes,
                                                            device=f"cuda:{self.device}")
        finally:
            _lending.withdraw()
        return found.data_ptr() == self.address


@contextlib.contextmanager
def _allocating(library, stream, device, pool=None):
    """What this thread allocates comes from `pool`, None: a new one, for `stream`."""
    cuda = sys.modules["torch"].cuda
    with cuda.device(device), library.on(stream, device):
        pool = pool or cuda.MemPool(_allocator())
        with cuda.use_mem_pool(pool, device):
            yield pool


def _collect_left():
    # Each by one thread alone, whichever they are.
    kept = []
    for _ in range(len(_left)):
        try:
            loan = _left.pop()
        except IndexError:
            break
        if not loan.is_over():
            kept.append(loan)
    _left.extend(kept)


class LentSlots(list):
    """Those of one buffer."""

    def __init__(self, core):
        super().__init__()
        self._core = core
        self._fits = True

    def lend(self, call, address, room, shape, dtype):
        """A `Loan` with a tensor at `address`, of which the next `room` bytes are free, for the
        stream on which the call's results are; None where torch cannot take it."""
        nbytes = math.prod(shape) * dtype.itemsize
        segment = in_segments(nbytes)
        if not (self._fits and nbytes >= LEAST_BYTES and segment <= room and _allocator()):
            return None
        device = self._core.executor.device
        _lending.offer(address, room)
        try:
            with _allocating(call.library, call.results_on, device) as pool:
                tensor = call.library.make(shape, dtype, device)
        except RuntimeError:        # OutOfMemoryError is one
            # It asks for larger segments than its defaults, or takes none from others:
            # PYTORCH_CUDA_ALLOC_CONF.
            self._fits = False
            _lending.returned(address)
            return None
        finally:
            _lending.withdraw()
        if tensor.data_ptr() != address:        # another pool is in use in this thread
            self._fits = False
            return None
        return Loan(call.library, device, call.results_on, address, segment, pool, tensor)

    def keep(self, loan, slot):
        """The tensor of `loan`, whose bytes are the first of `slot`, for the caller."""
        loan.slot = slot
        self.append(loan)
        tensor, loan.tensor = loan.tensor, None
        return tensor

    def collect(self, stream, follows):
        """Give back what torch has done with.

        stream: the caller's, of a call that is about to begin.  follows: it comes after all that
        `stream` has queued.
        """
        _collect_left()
        if self:
            self[:] = [lent for lent in self if not self._give_back(lent, stream, follows)]

    def _give_back(self, lent, stream, follows):
        """Whether the slot could go.  Nothing may wait here for what its stream has queued since:
        with a `previous_event` the call need not come after that, and another rank's call may be
        what it waits for."""
        if lent.cooled is not None:
            lent.slot.settled = lent.cooled.done
            return lent.slot.settled
        # While its stream is captured nothing can be asked for there, and no event recorded.
        if self._core.look(lent.stream) or not lent.is_over():
            return False
        if lent.stream == self._core.stream:
            lent.slot.settled = True
            return True
        if follows and lent.stream == stream:
            return True
        lent.cooled = Event(self._core.executor)
        lent.cooled.record(lent.stream)
        lent.slot.settled = lent.cooled.done
        return lent.slot.settled

    def leave(self):
        """The buffer ends before the tensors do."""
        _left.extend(self)
        self.clear()

    def __del__(self):
        self.leave()
