# SPDX-License-Identifier: MIT
"""The arena's bookkeeping against a plain model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deepep_ptx._buffer import SLOT_ALIGN, Arena
from deepep_ptx.errors import CapacityError

LINES = st.integers(1, 40)


def align(nbytes):
    return -(-nbytes // SLOT_ALIGN) * SLOT_ALIGN


class ArenaMachine(RuleBasedStateMachine):
    """Reserved extents never overlap, and free ones are exactly the rest, merged."""

    @initialize(lines=LINES)
    def first_segment(self, lines):
        self.arena = Arena()
        self.segments = []
        self.held = {}
        self.add_segment(lines)

    @precondition(lambda self: len(self.segments) < 8)
    @rule(lines=LINES)
    def add_segment(self, lines):
        self.arena.add_segment(lines * SLOT_ALIGN)
        self.segments.append(lines * SLOT_ALIGN)

    def gaps(self):
        """Free extents as the held ones leave them."""
        free = []
        for segment, size in enumerate(self.segments):
            at = 0
            for (_, offset), nbytes in sorted(
                item for item in self.held.items() if item[0][0] == segment
            ):
                if offset > at:
                    free.append((segment, at, offset - at))
                at = offset + nbytes
            if at < size:
                free.append((segment, at, size - at))
        return free

    @rule(nbytes=st.integers(1, 20 * SLOT_ALIGN))
    def reserve(self, nbytes):
        fitting = [gap for gap in self.gaps() if gap[2] >= align(nbytes)]
        got = self.arena.reserve(nbytes)
        if not fitting:
            assert got is None
            return
        assert got == (*fitting[0][:2], align(nbytes))
        self.held[got[:2]] = got[2]

    @rule()
    def reserve_largest(self):
        gaps = self.gaps()
        got = self.arena.reserve_largest()
        if not gaps:
            assert got is None
            return
        assert got in gaps and got[2] == max(gap[2] for gap in gaps)
        self.held[got[:2]] = got[2]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def trim(self, data):
        where = data.draw(st.sampled_from(sorted(self.held)))
        nbytes = data.draw(st.integers(1, self.held[where]))
        assert self.arena.trim(*where, nbytes) == align(nbytes)
        self.held[where] = align(nbytes)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        where = data.draw(st.sampled_from(sorted(self.held)))
        self.arena.release(*where)
        del self.held[where]

    @invariant()
    def free_is_the_rest(self):
        gaps = self.gaps()
        assert self.arena.free_extents() == gaps
        assert self.arena.largest_free == max((gap[2] for gap in gaps), default=0)
        assert self.arena.total == sum(self.segments)
        assert self.arena.used == sum(self.held.values())


TestArena = ArenaMachine.TestCase


def test_segments_are_limited():
    arena = Arena()
    for _ in range(8):
        arena.add_segment(SLOT_ALIGN)
    with pytest.raises(CapacityError):
        arena.add_segment(SLOT_ALIGN)


@given(st.integers(0, 1 << 20), st.integers(0, 1 << 20))
def test_find_is_inside_one_segment(view, nbytes):
    arena = Arena()
    first, second = (1 << 10, 4 * SLOT_ALIGN), (1 << 16, 1 << 14)
    for base, size in (first, second):
        arena.add_segment(size, base)
    expected = None
    for segment, (base, size) in enumerate((first, second)):
        if base <= view and view + nbytes <= base + size:
            expected = segment, view - base
    assert arena.find(view, nbytes) == expected
