# SPDX-License-Identifier: MIT
"""Source lines that a run did not execute: `deepep_ptx.emu.coverage`."""

import struct

import pytest

from deepep_ptx._emu import World
from deepep_ptx.emu.coverage import coverage, ranges

# Line 20 stands for a macro of two statements, lines 30 and 31 for a file that is included twice.
TEXT = """
.version 8.0
.target sm_90
.address_size 64
.file 1 "a.ptx"
.file 2 "b.inc"
.visible .entry k(.param .align 8 .b8 p[8])
{
    .reg .b32 i, n;  .reg .pred q;
    .loc 1 10 0
    ld.param.u32    n, [p];
    .loc 1 11 0
    mov.u32         i, %tid.x;
    .loc 1 20 0
    setp.eq.u32     q, i, n;
    @q add.u32      i, i, 1;
    .loc 2 30 0
    @!q bra         $behind;
    .loc 2 31 0
    add.u32         i, i, 2;
$behind:
    .loc 2 30 0
    @q bra          $end;
    .loc 2 31 0
    add.u32         i, i, 2;
$end:
    .loc 1 40 0
    ret;
}
"""


def ran(n, threads):
    world = World(1)
    world.launch(0, world.load(TEXT), struct.pack("<I4x", n), grid=1, block=threads)
    world.run()
    return world.ran()


def test_a_kernel_that_did_not_run_is_not_told():
    world = World(1)
    world.load(TEXT)
    assert coverage(world.ran()) == {}


@pytest.mark.parametrize(("n", "threads", "missed", "nowhere"), [
    (0, 1, [("b.inc", 30), ("b.inc", 31)], [("b.inc", 30)]),
    (1, 1, [("a.ptx", 20), ("b.inc", 30), ("b.inc", 31)], [("a.ptx", 20), ("b.inc", 30)]),
    (1, 2, [], []),
])
def test_lines(n, threads, missed, nowhere):
    found = coverage(ran(n, threads))["k"]
    assert sorted(found.missed) == missed
    assert sorted(found.nowhere) == nowhere
    assert found.lines == {("a.ptx", 10), ("a.ptx", 11), ("a.ptx", 20), ("b.inc", 30),
                           ("b.inc", 31), ("a.ptx", 40)}
    assert found.num_instructions == 9


def test_runs_add_up():
    assert coverage(ran(0, 1), ran(1, 1))["k"].missed == frozenset()
    assert coverage(ran(1, 1), ran(1, 1))["k"].num_missed == 3


def test_ranges():
    lines = [("b", 9), ("a", 4), ("a", 3), ("a", 5), ("a", 8)]
    assert ranges(lines) == ["a:3-5,8", "b:9"]
    assert ranges([]) == []
