# SPDX-License-Identifier: MIT
"""What a group returns is checked: an error that names its method, and nothing stored anywhere."""

import numpy as np
import pytest

from deepep_ptx import Buffer, RankError, run_ranks
from deepep_ptx._buffer import CoreBuffer
from deepep_ptx._emu import World
from deepep_ptx.comm import all_or_none
from deepep_ptx.errors import DeepEPError
from deepep_ptx.symmetric import add_segment, gather
from tests.hostile_groups import LISTS, VALUES, Group, contents
from tests.test_buffer_life import check_round

R = 2
RETURNED = "group.allgather: must return a list of what each of the 2 ranks gave, in rank order; "


def failure(main):
    """What the first rank to fail raised."""
    with pytest.raises(RankError) as caught:
        run_ranks(main, R, executor="emu")
    return caught.value.__cause__


def num_allgathers(use):
    """How many of them a rank's buffer makes in `use(buffer)`, construction included."""
    def main(comm):
        group = Group(comm)
        with Buffer(group, 1 << 16) as buffer:
            use(buffer)
            return -group.calls_left            # without the end's

    return run_ranks(main, R, executor="emu")[0]


@pytest.mark.parametrize("what", LISTS)
def test_what_is_no_list_of_the_ranks(what):
    """From each of construction's collectives on."""
    for when in range(num_allgathers(lambda buffer: None)):
        error = failure(lambda comm, when=when: Buffer(Group(comm, LISTS[what], when), 1 << 16))
        assert type(error) is TypeError and str(error).startswith(RETURNED), str(error)


@pytest.mark.parametrize("what", VALUES)
def test_what_ranks_did_not_give(what):
    num_refused = 0
    for when in range(num_allgathers(lambda buffer: None)):
        group = lambda comm, when=when: Group(comm, contents(VALUES[what]), when)    # noqa: E731
        try:
            run_ranks(lambda comm, make=group: Buffer(make(comm), 1 << 16), R, executor="emu")
        except RankError as caught:
            assert_named(caught.__cause__)
            num_refused += 1
    assert num_refused


def assert_named(error):
    """Of the group's method, or of the handle that the executor refuses."""
    text = str(error)
    assert isinstance(error, (TypeError, ValueError, DeepEPError)), repr(error)
    assert text.startswith((RETURNED, "handle: ", "rank 0 failed: ", "rank 1 failed: ")), text


@pytest.mark.parametrize("what", [*LISTS, *VALUES])
def test_reset(what):
    """`reset()` gathers the ranks' epochs."""
    change = LISTS[what] if what in LISTS else contents(VALUES[what])

    def main(comm):
        group = Group(comm)
        with Buffer(group, 1 << 16) as buffer:
            check_round(buffer, R)
            group.change, group.calls_left = change, 1      # behind the meeting
            buffer.reset()
            group.change = None

    if "handles" in what:
        run_ranks(main, R, executor="emu")                  # of which there are none
    else:
        error = failure(main)
        assert type(error) is TypeError and str(error).startswith(RETURNED), str(error)


@pytest.mark.parametrize("index", [0, 7, 8, 99, -1, 1 << 40, None, "0"])
def test_a_segment_of_another_number(index):
    """A peer's segment 99 was written behind the table of segments."""
    def main(comm):
        group = Group(comm)
        with Buffer(group, 1 << 16) as buffer:
            group.change = contents(lambda value: index if value == 1 else value)
            group.calls_left = 0
            add_segment(buffer._comm, buffer._core, 1 << 16)

    error = failure(main)
    assert type(error) is TypeError and str(error).startswith(RETURNED), str(error)


@pytest.mark.parametrize(("rank", "index", "handle", "text"), [
    (2, 0, bytes(128), r"rank: must be in \[0, 1\], got 2"),
    (1, 8, bytes(128), r"index: must be in \[0, 7\], got 8"),
    (1, 0, bytes(127), "handle: must be of 128 bytes, rank 1 gave 127"),
    (1, 0, b"", "handle: must be of 128 bytes, rank 1 gave 0"),
    (1, 0, bytes(128), "handle: not a handle of the CPU executor"),
])
def test_segments_that_cannot_be(rank, index, handle, text):
    core = CoreBuffer(World(2).executor(0), 0, 2, 1000)
    with pytest.raises(ValueError, match=text):
        core.open_segment(rank, index, handle)


def test_growth():
    """A collective in the middle of a call."""
    for change in (LISTS["too few"], contents(VALUES["negative numbers"])):
        def main(comm, change=change):
            group = Group(comm)
            with Buffer(group, 1 << 14) as buffer:
                group.change, group.calls_left = change, 0
                check_round(buffer, R, hidden=4096)

        error = failure(main)
        assert type(error) is TypeError and str(error).startswith(RETURNED), str(error)


@pytest.mark.parametrize("what", ["None", "too few", "another order"])
def test_all_or_none(what):
    error = failure(lambda comm: all_or_none(Group(comm, LISTS[what]), int))
    assert type(error) is TypeError and str(error).startswith(RETURNED), str(error)


def test_another_collective_is_named():
    def main(comm):
        group = Group(comm)
        with Buffer(group) as buffer:
            if comm.rank:
                gather(buffer._comm, "one thing", 3)
            else:
                gather(buffer._comm, "another thing", 3)

    assert "takes no part in" in str(failure(main))


@pytest.mark.parametrize("integer", [np.int8, np.uint8, np.int64])
def test_ranks_as_numpy_integers(integer):
    def main(comm):
        with Buffer(Group(comm, integer=integer), 1 << 14) as buffer:
            assert type(buffer.rank) is type(buffer.group_size) is int
            check_round(buffer, R)
            check_round(buffer, R, hidden=4096)

    run_ranks(main, R, executor="emu")


@pytest.mark.parametrize("rank", [2, 1 << 20, 1 << 40, -1])
def test_a_rank_that_a_world_does_not_have(rank):
    world = World(2)
    world.start_ranks()
    outcomes = [None, None]
    for call in (lambda: world.skip_rank(rank), lambda: world.run_rank(rank, int, (), outcomes),
                 lambda: world.collect(rank, "barrier", None), lambda: world.counters(rank),
                 lambda: world.executor(rank)):
        with pytest.raises(ValueError, match=r"^rank: must be in \[0, 1\], got "):
            call()
    with pytest.raises(TypeError, match=r"^rank: must be an integer"):
        world.skip_rank("1")
