# SPDX-License-Identifier: MIT
"""Whether a buffer's arena has room for a call, and how it gets it.

An arena that grows keeps an extent free of results, *landing* (docs/protocols.md, "Room"): rows
that a combine pushes land there, and so does a result for which nothing else is free.  A dispatch
whose host waits for the totals is refused where there is no room, on all ranks alike, and is made
again behind a growth.
Other calls must find room, since no rank could tell the others that it has none: landing is made
large enough before them, by a collective of the group, whenever they need more than is assured.
What is assured depends only on what is equal on all ranks, so all of them come to that collective,
or none.
"""

from ._limits import MAX_TOPK, SLOT_ALIGN
from .config import COMBINE_ITEMSIZE
from .errors import CapacityError, DeepEPError
from .slot_size import bytes_of_arrays

# Bytes that the arrays of a slot may take beside their rows, each starting on a line, and a row's
# source token.
_SLOT_EXTRA = 3 * (SLOT_ALIGN - 1) + 4


# Set in the number of a handle of another buffer.
FOREIGN = 1 << 31


class Room:
    """That of one buffer.

    symmetric: its connected `Symmetric`.  limit: bytes of an arena of fixed size, 0: it grows.

    Attributes:
        number: of this buffer, equal on all ranks; no other buffer of these processes has it.
    """

    def __init__(self, symmetric, num_ranks, limit):
        self.number = symmetric.number
        self._symmetric = symmetric
        self._core = core = symmetric.core
        self._num_ranks = num_ranks
        self._grows = not limit
        self._row_bytes = 0         # the widest rows that a combine has had, or was said to have
        # Bytes of landing on every rank.  Arenas start alike, so no rank has to be asked.
        self._assured = 0
        if self._grows and core.arena_bytes:
            self._assured = core.arena_bytes // 2 // SLOT_ALIGN * SLOT_ALIGN
            core.make_landing(self._assured)

    def of_row(self, hidden, row_bytes, scale_bytes, combine_hidden=0):
        """Bytes of landing for a row of a dispatch: such rows of combine and of a cached dispatch
        have room then with its handle."""
        return max(hidden * COMBINE_ITEMSIZE, _row_need(row_bytes, scale_bytes), self._row_bytes,
                   combine_hidden * COMBINE_ITEMSIZE)

    def of_handle(self, of_row, captured):
        """What a handle keeps of its dispatch's room: buffer -> bytes of landing for a row."""
        return {} if captured else {self.number: of_row}

    def number_of(self, number, buffer_number):
        """What ranks compare: of the call that made a handle, and of its buffer if that is another
        one."""
        if buffer_number == self.number:
            return number
        return FOREIGN | ((number * 0x9E3779B1 ^ buffer_number * 0x85EBCA77) & (FOREIGN - 1))

    def reset(self):
        """That of the buffer.  Ranks may have left a call at different points, and agree again."""
        widths, assured = self._symmetric.reset(self._row_bytes, self._assured)
        self._row_bytes, self._assured = widths[1], assured[0]

    # -- calls whose host waits ------------------------------------------------------------------

    def with_growth(self, run, *arguments, undo=None):
        """`run(*arguments)`, again with a larger arena while it has no room and may grow.

        All ranks get the same verdict, so all of them grow, or none.  Each turn adds a segment, of
        which there are few.  Where no memory is left results are copied out of landing.
        undo(): gives back what a turn that was refused has made.
        """
        failure = None
        try:
            while True:
                try:
                    return run(*arguments)
                except CapacityError as error:
                    if not self._core.may_grow:         # or it is an earlier call's
                        raise
                    if failure is not None:
                        raise failure from error
                    needed = error.needed_bytes
                if undo is not None:
                    undo()
                failure = self._grow(needed)
                self._core.land_results(failure is not None)
        finally:
            failure = None          # its traceback has this frame, and what the call was given

    def _grow(self, needed):
        try:
            self._symmetric.grow(needed)
        except (MemoryError, CapacityError, DeepEPError) as error:      # on all ranks
            self._assured = self._row_bytes = 0
            return error.with_traceback(None)
        return None

    # -- calls whose host does not wait ------------------------------------------------------------

    def for_worst(self, num_tokens, num_rows, num_topk, of_row, row_sizes, captured):
        """Before a dispatch with num_worst_tokens `num_rows`, the same on all ranks.

        of_row: as `of_row` says.  row_sizes: bytes of a row of each array of the result.
        """
        ranks = self._num_ranks
        each = min(ranks, num_topk or ranks)
        pushed = -(-num_rows // ranks) * each
        needed = max(bytes_of_arrays(num_rows, row_sizes),
                     landing_bytes(max(num_rows, pushed), of_row))
        if captured or not self._grows or needed <= self._assured:
            return
        self._ensure(max(needed, landing_bytes(num_tokens * each, of_row)), needed)

    def for_combine(self, handle, row_bytes, captured):
        """Before a combine of rows of so many bytes with `handle`, of any buffer of the group.
        Returns what `made` is to be told."""
        return self._for_handle(handle, row_bytes, captured)

    def for_cached(self, handle, row_bytes, scale_bytes, captured):
        """Before a cached dispatch of such rows; likewise."""
        return self._for_handle(handle, _row_need(row_bytes, scale_bytes), captured)

    def made(self, handle, of_row):
        """The call has been made, by all ranks alike as far as is known: it has that room."""
        if of_row:
            handle.room[self.number] = of_row

    def _for_handle(self, handle, of_row, captured):
        if captured or not self._grows or handle.room.get(self.number, 0) >= of_row:
            return 0
        pushed = handle.num_tokens * min(self._num_ranks, handle.num_topk or self._num_ranks)
        return self._ensure(landing_bytes(max(pushed, handle.num_recv), of_row), of_row=of_row,
                            handle=self.number_of(handle.placement.handle, handle.buffer_number))

    def _ensure(self, nbytes, assured=0, of_row=0, handle=0):
        """Returns the `of_row` that all ranks have made room for with that handle."""
        try:
            assured, of_row, handles = self._symmetric.ensure_landing(nbytes, assured, of_row,
                                                                      handle)
        except BaseException:           # on all ranks
            self._assured = self._row_bytes = 0
            raise
        # Ranks whose calls differ come here too, and must go on from the same numbers: the least.
        self._assured = max(self._assured, assured[0])
        self._row_bytes = max(self._row_bytes, of_row[0])
        return of_row[0] if handles[0] == handles[1] else 0


def landing_bytes(num_rows, row_bytes):
    """Landing for rows with weights of the largest top-k."""
    return bytes_of_arrays(num_rows, (row_bytes, 4 * MAX_TOPK))


def _row_need(row_bytes, scale_bytes):
    # Of landing, which has 4 * MAX_TOPK bytes more for each row.
    if not scale_bytes:
        return row_bytes
    return row_bytes + scale_bytes + max(0, _SLOT_EXTRA - 4 * MAX_TOPK)
