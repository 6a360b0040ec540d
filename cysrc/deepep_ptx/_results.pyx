# SPDX-License-Identifier: MIT
"""The arrays of a dispatch's result: where the ranks have stored them, or in memory of the library.

Three ways, for each array:

* A *view* of its slot of the arena, which it keeps.
* *Lent*: torch's own tensor over the start of the slot (arrays/torch_memory.py).
* A *copy*, made by a kernel behind the dispatch.

torch's allocator promises what views cannot keep, so its results are lent where they are large, and
copied where they are small, unless views are asked for (`zero_copy=True`); those of other libraries
are views.  A handle outlives results: what it holds is copied.

A call whose host waits for the totals does not know how many rows there will be.  What it needs is
made for as many as the call before it had, and a few more: so copies are queued with the call, and
nothing of the driver's is left to do behind the wait.  If that guess was wrong they are made again.

In Cython for the time that it takes: every dispatch makes up to five arrays.
"""

import functools

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from deepep_ptx._array cimport Array
from deepep_ptx._call cimport Call

from deepep_ptx._calls import Copies
from deepep_ptx.arrays import torch_memory
from deepep_ptx.arrays.torch_memory import LentSlots

cdef uint64_t LEAST_BYTES = torch_memory.LEAST_BYTES
cdef uint64_t SEGMENT_STEP = torch_memory.SEGMENT_STEP
cdef list LEFT = torch_memory._left


@cython.final
cdef class Part:
    """One array of a result: `row` is the shape of a row, of row_bytes bytes.

    whole: rows past those received have values too.  in_handle: it belongs to the handle.
    """

    cdef readonly tuple row
    cdef readonly object dtype
    cdef readonly uint64_t row_bytes
    cdef readonly bint whole
    cdef readonly bint in_handle

    def __init__(self, tuple row not None, dtype, bint whole=False, bint in_handle=False):
        cdef uint64_t size = dtype.itemsize
        for length in row:
            size *= <uint64_t>length
        self.row = row
        self.dtype = dtype
        self.row_bytes = size
        self.whole = whole
        self.in_handle = in_handle

    cdef tuple shape(self, uint32_t rows):
        return (rows, *self.row)


@cython.final
cdef class Plan:
    """What is made for a call before it is made.

    parts: of its result, in the order of the slot.  rows: for which it is made.  exact: there will
    be so many.  arrays: what is copied, an `Array` or None for each part.  granule, copies: for
    `CoreCalls.dispatch`.  lends: x is to be lent.  lent: the `torch_memory.Loan` that was made
    before the totals were known.
    """

    cdef readonly list parts
    cdef readonly list arrays
    cdef readonly uint32_t rows
    cdef readonly bint exact
    cdef readonly bint lends
    cdef readonly uint32_t granule
    cdef readonly object copies
    cdef object lent

    def __init__(self, list parts not None, uint32_t rows, bint exact):
        self.parts = parts
        self.rows = rows
        self.exact = exact
        self.arrays = [None] * len(parts)

    def close(self):
        """Of a call that was refused or has failed: its slot is free."""
        loan, self.lent = self.lent, None
        if loan is not None:
            loan.close()

    cdef bint fits(self, uint32_t rows):
        # Whether what was made for it does for so many rows, and is not much larger.
        return self.exact or rows <= self.rows <= rows + rows // 4 + 256


@cython.final
cdef class Results:
    """Makes those of one buffer.

    zero_copy: True: views of any library; False: copies; None: what the library's arrays promise.

    Attributes:
        copied_bytes: of results that did not stay in the arena.
    """

    cdef object core
    cdef object zero_copy
    cdef object lent                # `LentSlots`
    cdef uint32_t expected          # rows of the next result, as far as can be guessed
    cdef readonly uint64_t copied_bytes

    def __init__(self, core, zero_copy):
        self.core = core
        self.zero_copy = zero_copy
        self.lent = LentSlots(core)

    def begin(self, Call call not None, bint follows):
        """A call begins that comes after all that its stream has queued, if it `follows` that."""
        if self.lent or LEFT:
            self.lent.collect(call.stream, follows)

    def end(self):
        """The buffer is gone; what is lent stays as long as it is used."""
        self.lent.leave()

    def plan(self, Call call not None, launch, list parts not None, rows):
        """The `Plan` of a call.  rows: of its result, None: its host waits for that number."""
        cdef Plan plan = Plan(parts, self.expected if rows is None else rows, rows is not None)
        cdef Part part
        cdef Py_ssize_t i
        cdef bint copies = False, is_view, lends, captured = launch.captured
        if call.copies:
            return plan
        is_view, lends = self.shows(call, captured), self.may_lend(call, captured)
        if not (is_view or captured) and launch.detached:   # the caller's stream does not wait
            call.allocate_on(self.core.stream)
        if plan.rows == 0:
            plan.granule = SEGMENT_STEP if lends else 0     # it may be large
            return plan
        for i in range(len(parts)):
            part = parts[i]
            if part is None or (is_view and (captured or not part.in_handle)):
                continue
            if i == 0 and lends and part.row_bytes * plan.rows >= LEAST_BYTES:
                plan.lends = True
                continue
            plan.arrays[i] = call.empty(part.shape(plan.rows), part.dtype)
            copies = True
        if copies:
            plan.copies = copies_of(parts, plan.rows, plan.arrays)
        plan.granule = SEGMENT_STEP if plan.lends else 0
        return plan

    def ahead(self, Call call not None, Plan plan not None):
        """What `CoreCalls.dispatch` calls while it waits for the totals, None for nothing."""
        return functools.partial(self.lend_ahead, call, plan) if plan.lends else None

    def lend_ahead(self, Call call not None, Plan plan not None, uint64_t address, uint64_t nbytes):
        """See `ahead`; at `address` is an extent of `nbytes` for the result."""
        cdef Part part = plan.parts[0]
        plan.close()                    # of a turn before this one
        plan.lent = self.lent.lend(call, address, nbytes, part.shape(plan.rows), part.dtype)
        return 0 if plan.lent is None else plan.lent.nbytes

    def make(self, Call call not None, launch, received, rank_prefix, Plan plan not None):
        """(arrays of the library for the parts of `plan`, what must stay until the call has ended).

        received: what the call has found.  rank_prefix: the `Array` of its handle.
        """
        cdef uint32_t rows = received.rows
        cdef list late = None, arrays = []
        cdef bint is_view, fits, captured, is_lent = False
        cdef Py_ssize_t i
        cdef Part part
        cdef Array made
        cdef tuple offsets
        slot = received.slot
        if not plan.exact:
            self.expected = rows + rows // 16
        if slot is None:
            for part in plan.parts:
                arrays.append(part and (<Array>call.empty(part.shape(rows), part.dtype)).owner)
            return arrays, None
        offsets = received.offsets
        captured = launch.captured
        is_view = call.copies or (self.shows(call, captured) and not received.landed)
        fits = plan.fits(rows)
        if call.copies:                 # to the host, where the library's arrays are
            self.copied_bytes += slot.nbytes
        elif is_view:
            call.show(slot)
        for i in range(len(plan.parts)):
            part = plan.parts[i]
            array = None
            if part is None:
                pass
            elif is_view and (call.copies or captured or not part.in_handle):
                array = call.part(slot, offsets[i], part.shape(rows), part.dtype)
            elif i == 0 and not is_view:
                array = self.lend(call, received, plan, captured)
                is_lent = array is not None
            if array is None and part is not None:
                made = plan.arrays[i] if fits else None
                if made is None:
                    made = call.empty(part.shape(rows), part.dtype)
                    if late is None:
                        late = [None] * len(plan.parts)
                    late[i] = made
                    array = made.owner
                elif rows != plan.rows:
                    array = call.library.first_rows(made, rows)
                else:
                    array = made.owner
                if not part.in_handle:
                    self.copied_bytes += rows * part.row_bytes
            arrays.append(array)
        mappings = None
        if late is not None:
            mappings = self.core.copy_out(slot, rows, copies_of(plan.parts, rows, late),
                                          rank_prefix, launch)
        if not (is_view or is_lent):
            slot.settled = True         # the copies are behind the call on its stream
        return arrays, mappings

    def combine_buffer(self, Call call not None, rows, hidden, dtype):
        """An array [rows, hidden] in the arena, for the caller."""
        cdef uint64_t nbytes = rows * hidden * dtype.itemsize
        cdef bint lends = nbytes >= LEAST_BYTES and self.may_lend(
            call, self.core.look(call.stream) != 0)
        slot = self.core.reserve(nbytes, call.stream, SEGMENT_STEP if lends else 0)
        if lends:
            loan = self.lent.lend(call, slot.address, slot.nbytes, (rows, hidden), dtype)
            if loan is not None:
                return self.lent.keep(loan, slot)
        call.show(slot)
        return call.part(slot, 0, (rows, hidden), dtype)

    cdef bint shows(self, Call call, bint captured) except -1:
        # Whether results are views where they stay in the arena.
        if self.zero_copy is None:
            return captured or not call.library.ordinary
        return self.zero_copy

    cdef bint may_lend(self, Call call, bint captured) except -1:
        return (self.zero_copy is None and not captured and call.library.lends
                and not self.core.executor.in_host_memory)

    cdef object lend(self, Call call, received, Plan plan, bint captured):
        # x of a result, if it is lent.
        cdef Part part = plan.parts[0]
        cdef uint32_t rows = received.rows
        slot = received.slot
        loan, plan.lent = plan.lent, None
        if loan is not None:
            if loan.address == slot.address and plan.fits(rows) and not received.landed:
                tensor = self.lent.keep(loan, slot)
                return call.library.first_rows(tensor, rows)
            loan.close()
        if (received.landed or part.row_bytes * rows < LEAST_BYTES
                or not self.may_lend(call, captured)):
            return None
        loan = self.lent.lend(call, slot.address, slot.nbytes, part.shape(rows), part.dtype)
        return loan and self.lent.keep(loan, slot)


cdef object copies_of(list parts, uint32_t rows, list arrays):
    # `Copies` into `arrays`, of which there are some.
    cdef Part part
    cdef list entries = []
    for part, array in zip(parts, arrays, strict=True):
        entries.append(None if part is None else (array, part.row_bytes, part.whole))
    return Copies(rows, entries)
