# SPDX-License-Identifier: MIT
"""What a group returns is checked: an error that names its method, and nothing stored anywhere."""

import contextlib
import re

import numpy as np
import pytest

from deepep_ptx import Buffer, RankError, run_ranks
from deepep_ptx._emu import World
from deepep_ptx._emu_executor import EmuExecutor
from deepep_ptx.comm import all_or_none
from deepep_ptx.errors import DeepEPError
from tests.faults import short_of_memory
from tests.hostile_groups import LISTS, RECORD, VALUES, Group, contents, is_record
from tests.test_buffer_life import check_round, raised

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
            group.calls_left = 1                            # behind the first of growth
            buffer._symmetric.grow(1 << 16)

    error = failure(main)
    assert type(error) is TypeError and str(error).startswith(RETURNED), str(error)


def of_peer(change):
    """`change` of what the others gave in a record: its rank's own is as it was."""
    def of(everybody):
        return [everybody[0], *((rank, change(value)) for rank, value in everybody[1:])]
    return of


def replaced(**changes):
    """A record with another number of a segment, or another handle."""
    def change(record):
        assert is_record(record)
        fields = list(RECORD.unpack(record))
        fields[5] = changes.get("index", fields[5])
        fields[-2] = changes.get("handle", fields[-2])
        return RECORD.pack(*fields)
    return change


def unquoted(record):
    """Without the bytes, of a handle's process say, for which repr() takes other quotes."""
    return record.replace(b"'", b"-")


@pytest.mark.parametrize(("change", "kind", "text"), [
    (replaced(index=8), TypeError, RETURNED + r"returned a record \(.* 8 0 0 0 0 0\) of rank 1"),
    (replaced(index=1 << 63), TypeError, RETURNED + r"returned a record \(.*\) of rank 1"),
    (lambda record: unquoted(record[:-1]), TypeError, RETURNED + r"returned b'.*"),
    (lambda record: unquoted(record + b"0"), TypeError, RETURNED + r"returned b'.*"),
    (lambda record: bytes(len(record)), TypeError,
     RETURNED + r"returned a record \(collective 0 of buffer 0.*\) of rank 1"),
    (replaced(handle=bytes(128)), ValueError, "handle: not a handle of the CPU executor"),
], ids=["index", "number", "short", "long", "zeros", "handle"])
def test_segments_that_cannot_be(change, kind, text):
    """A peer's, as it says to rank 0 alone."""
    def main(comm):
        group = Group(comm)
        buffer = Buffer(group, 1 << 16)
        group.calls_left = 1                                # behind the first of growth
        group.change = of_peer(change) if comm.rank == 0 else None
        error = raised(buffer._symmetric.grow, 1 << 16)
        buffer._leave()
        return error

    own, told = run_ranks(main, R, executor="emu")
    assert type(own) is kind and re.match(text, str(own)), str(own)
    assert type(told) is DeepEPError, repr(told)


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
                buffer._symmetric.grow(3)
            else:
                buffer._symmetric.ensure_landing(3)

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
                 lambda: EmuExecutor(world, rank)):
        with pytest.raises(ValueError, match=r"^rank: must be in \[0, 1\], got "):
            call()
    with pytest.raises(TypeError, match=r"^rank: must be an integer"):
        world.skip_rank("1")


class Growing(list):
    """More every time that it is walked, for one and the same length."""

    walks = 0

    def __iter__(self):
        self.walks += 1
        yield from super().__iter__()
        for rank in range(R, R + 1000 * (self.walks - 1)):
            yield rank, self[0][1]


def test_a_list_that_changes_while_it_is_looked_at():
    """What was checked is what is used: nothing is written past the records of the ranks."""
    def main(comm):
        with Buffer(Group(comm, Growing, 1), 1 << 14) as buffer:
            check_round(buffer, R)

    run_ranks(main, R, executor="emu")


def test_an_exception_that_counts_as_false():
    class Falsy(Exception):
        def __bool__(self):
            return False

    def fail(everybody):
        raise Falsy

    error = failure(lambda comm: Buffer(Group(comm, fail, 2), 1 << 14))
    assert type(error) is Falsy


@pytest.mark.parametrize("short", range(R))
def test_ctrl_c_in_the_barrier_of_a_growth_that_fails(short):
    """It ends the growth, which is not tried once more with less."""
    class Interrupted(Group):
        armed = False

        def barrier(self):
            self.comm.barrier()
            if self.armed and self.rank == 0:
                self.armed = False
                raise KeyboardInterrupt

    def main(comm):
        group = Interrupted(comm)
        buffer = Buffer(group, 1 << 22)
        group.armed = True
        with (short_of_memory(comm.executor, above=3 << 20) if comm.rank == short
              else contextlib.nullcontext()):
            if comm.rank == 0:
                with pytest.raises(KeyboardInterrupt):
                    buffer._symmetric.grow(1 << 20)
                comm.allgather(None)            # what rank 1 tries again fails
            else:
                with pytest.raises((TypeError, DeepEPError)):
                    buffer._symmetric.grow(1 << 20)
        buffer._leave()

    run_ranks(main, R, executor="emu")


def test_a_segment_that_could_not_be_given_back_is_not_used():
    """After an abort and a reset too: not all ranks map it."""
    class Once(Group):
        num_calls, fails = 0, None

        def allgather(self, obj):
            everybody = self.comm.allgather(obj)
            self.num_calls += 1
            if self.num_calls == self.fails:
                raise RuntimeError("once")
            return everybody

    def main(comm):
        group = Once(comm)
        buffer = Buffer(group, 1 << 14)
        group.num_calls = 0
        if comm.rank == 1:
            group.fails = 2                     # of a dispatch's growth: its segment is there
        with pytest.raises(RuntimeError if comm.rank else TypeError) as caught:
            check_round(buffer, R, hidden=4096)
        assert "the segment was not given back" in "".join(caught.value.__notes__)
        buffer.reset()
        check_round(buffer, R, hidden=4096)
        buffer._leave()

    run_ranks(main, R, executor="emu", timeout_s=20)
