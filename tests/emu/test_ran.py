# SPDX-License-Identifier: MIT
"""Which instructions of a kernel some lane has executed: `World.ran`."""

import struct

import numpy as np
import pytest

from deepep_ptx import run_ranks
from deepep_ptx._emu import World

TEXT = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry some(.param .align 8 .b8 p[8])
{
    .reg .b32 i, n;  .reg .pred q;
    ld.param.u32    n, [p];
    mov.u32         i, %tid.x;
    setp.eq.u32     q, i, n;
    @q add.u32      i, i, 1;
    @!q bra         $end;
    add.u32         i, i, 2;
$end:
    ret;
}
"""


def ran(world):
    (name, text), flags = next(iter(world.ran().items()))
    assert (name, text) == ("some", TEXT)
    assert flags.dtype == bool
    return flags.tolist()


def launch(world, rank, n, block=32):
    world.launch(rank, world.load(TEXT), struct.pack("<I4x", n), grid=1, block=block)
    world.run()


def test_nothing_ran_before_a_launch():
    world = World(1)
    assert world.ran() == {}
    world.load(TEXT)
    assert not any(ran(world))


@pytest.mark.parametrize(("n", "block", "skipped"), [
    (99, 32, [3, 5]),       # no lane: its guard is false, and what is behind the branch
    (5, 32, []),            # one lane of a warp
    (0, 1, [4]),            # the branch that nobody takes
])
def test_a_false_guard_is_no_execution(n, block, skipped):
    world = World(1)
    launch(world, 0, n, block)
    assert np.flatnonzero(~np.array(ran(world))).tolist() == skipped


def test_runs_of_all_ranks_add_up():
    world = World(2)
    launch(world, 0, 99)
    launch(world, 1, 0, block=1)
    assert all(ran(world))


def test_through_an_executor():
    def main(comm):
        world = comm.executor.world
        if comm.rank == 0:
            world.load(TEXT)
        comm.barrier()
        return world.ran().keys()

    assert [list(keys) for keys in run_ranks(main, 2, executor="emu")] == [[("some", TEXT)]] * 2
