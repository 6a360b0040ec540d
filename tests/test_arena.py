# SPDX-License-Identifier: MIT
"""The arena's bookkeeping against a plain model."""

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from ctypes import POINTER, byref, c_int, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deepep_ptx._limits import SLOT_ALIGN

ROOT = Path(__file__).resolve().parent.parent
LINES = st.integers(1, 40)


class Place(ctypes.Structure):
    _fields_ = [("segment", c_uint64), ("offset", c_uint64), ("nbytes", c_uint64)]

    def __iter__(self):
        return iter((self.segment, self.offset, self.nbytes))


@cache
def library():
    """core/arena.c behind tests/arena.c; CFLAGS has what tools/sanitize.py wants of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "arena.so")
        subprocess.run(
            [shutil.which("cc") or "gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror",
             *shlex.split(os.environ.get("CFLAGS", "")), "-shared", "-fPIC",
             f"-I{ROOT / 'cysrc'}", f"-I{ROOT / 'deepep_ptx/include'}", "-o", path,
             ROOT / "tests/arena.c", ROOT / "cysrc/core/arena.c"], check=True)
        lib = ctypes.CDLL(str(path))
    for name, result, *arguments in (
        ("arena_create", c_void_p),
        ("arena_destroy", None, c_void_p),
        ("arena_add", c_int, c_void_p, c_uint64, c_uint64),
        ("arena_reserve", c_void_p, c_void_p, c_uint64, POINTER(Place)),
        ("arena_reserve_largest", c_void_p, c_void_p, POINTER(Place)),
        ("arena_trim", c_uint64, c_void_p, c_void_p, c_uint64),
        ("ep_arena_release", None, c_void_p, c_void_p),
        ("ep_arena_find", c_int, c_void_p, c_uint64, c_uint64, POINTER(c_uint32),
         POINTER(c_uint64)),
        ("arena_withdraw", None, c_void_p, c_uint32),
        ("arena_totals", None, c_void_p, POINTER(c_uint64)),
        ("arena_free_extent", c_int, c_void_p, c_uint32, POINTER(Place)),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class Arena:
    """`struct ep_arena`, without memory behind it.  Extents are (segment, offset, nbytes)."""

    def __init__(self):
        self.lib = library()
        self.arena = self.lib.arena_create()
        self.blocks = {}

    def __del__(self):
        self.lib.arena_destroy(self.arena)

    def add_segment(self, nbytes, view=0):
        """Whether there was a place for a free segment whose arrays begin at address `view`."""
        return bool(self.lib.arena_add(self.arena, view, nbytes))

    def remember(self, block, place):
        if block is None:
            return None
        self.blocks[place.segment, place.offset] = block
        return tuple(place)

    def reserve(self, nbytes):
        """First fit, or None."""
        place = Place()
        return self.remember(self.lib.arena_reserve(self.arena, nbytes, byref(place)), place)

    def reserve_largest(self):
        """The largest free extent, or None."""
        place = Place()
        return self.remember(self.lib.arena_reserve_largest(self.arena, byref(place)), place)

    def trim(self, segment, offset, nbytes):
        """Keep the first `nbytes` of a reserved extent; returns what it has now."""
        return self.lib.arena_trim(self.arena, self.blocks[segment, offset], nbytes)

    def release(self, segment, offset):
        """Give a reserved extent back."""
        self.lib.ep_arena_release(self.arena, self.blocks.pop((segment, offset)))

    def find(self, view, nbytes):
        """(segment, offset) of [view, view + nbytes), or None."""
        segment, offset = c_uint32(), c_uint64()
        if self.lib.ep_arena_find(self.arena, view, nbytes, byref(segment), byref(offset)):
            return segment.value, offset.value
        return None

    def totals(self):
        """Bytes of all segments, of reserved extents, and of the largest free one."""
        totals = (c_uint64 * 3)()
        self.lib.arena_totals(self.arena, totals)
        return tuple(totals)

    def free_extents(self):
        """All, by address."""
        extents, place = [], Place()
        while self.lib.arena_free_extent(self.arena, len(extents), byref(place)):
            extents.append(tuple(place))
        return extents


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
        assert self.arena.add_segment(lines * SLOT_ALIGN)
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
        assert self.arena.totals() == (sum(self.segments), sum(self.held.values()),
                                       max((gap[2] for gap in gaps), default=0))


TestArena = ArenaMachine.TestCase


def test_segments_are_limited():
    arena = Arena()
    for _ in range(8):
        assert arena.add_segment(SLOT_ALIGN)
    assert not arena.add_segment(SLOT_ALIGN)


@pytest.mark.parametrize("nbytes", [SLOT_ALIGN + 1, 1 << 63, 2**64 - SLOT_ALIGN, 2**64 - 1])
def test_more_than_there_is(nbytes):
    """No number of bytes passes the end of what 64 bits hold."""
    arena = Arena()
    assert arena.add_segment(SLOT_ALIGN)
    assert arena.reserve(nbytes) is None


def test_nothing_is_reserved_in_a_segment_that_is_withdrawn():
    arena = Arena()
    assert arena.add_segment(4 * SLOT_ALIGN, 1 << 10) and arena.add_segment(SLOT_ALIGN, 1 << 16)
    assert arena.reserve(SLOT_ALIGN)[0] == 0
    arena.lib.arena_withdraw(arena.arena, 0)
    assert arena.reserve(SLOT_ALIGN)[0] == 1
    assert arena.reserve(SLOT_ALIGN) is None and arena.reserve_largest() is None
    arena.release(0, 0)
    assert arena.reserve_largest() is None


@given(st.integers(0, 1 << 20), st.integers(0, 1 << 20))
def test_find_is_inside_one_segment(view, nbytes):
    arena = Arena()
    first, second = (1 << 10, 4 * SLOT_ALIGN), (1 << 16, 1 << 14)
    for base, size in (first, second):
        assert arena.add_segment(size, base)
    expected = None
    for segment, (base, size) in enumerate((first, second)):
        if base <= view and view + nbytes <= base + size:
            expected = segment, view - base
    assert arena.find(view, nbytes) == expected
