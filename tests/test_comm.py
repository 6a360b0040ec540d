# SPDX-License-Identifier: MIT
"""all_or_none: a step that some ranks fail in leaves no rank in the next collective."""

import pytest

from deepep_ptx import RankError, run_ranks
from deepep_ptx.comm import all_or_none
from deepep_ptx.errors import CapacityError, DeepEPError

R = 4


class Alone:
    """A group whose other ranks are gone."""

    rank, size = 0, 2

    def allgather(self, obj):
        raise ConnectionError("peer reset")


def outcomes(step, *args):
    """What each of R ranks got of all_or_none: a list of results, or the error.

    The collective behind it must see every rank, whatever happened.
    """
    def main(comm):
        try:
            got = all_or_none(comm, step, comm.rank, *args)
        except BaseException as error:
            got = error
        assert comm.allgather(comm.rank) == list(range(R))
        return got

    return run_ranks(main, R, executor="emu")


def fail_on(rank, errors):
    if rank in errors:
        raise errors[rank]
    return rank


def test_results_of_all_ranks():
    assert outcomes(lambda rank, factor: rank * factor, 10) == [[0, 10, 20, 30]] * R
    assert outcomes(lambda rank: None) == [[None] * R] * R


@pytest.mark.parametrize("failing", range(R))
def test_one_rank_fails(failing):
    own = CapacityError("no room", needed_bytes=128)
    got = outcomes(fail_on, {failing: own})
    assert got.pop(failing) is own
    for error in got:
        assert type(error) is DeepEPError
        assert str(error) == f"rank {failing} failed: CapacityError: no room"


def test_several_ranks_fail():
    errors = {1: MemoryError("heap"), 3: ValueError("group: wrong")}
    got = outcomes(fail_on, errors)
    assert got[1] is errors[1] and got[3] is errors[3]
    for rank in 0, 2:
        assert type(got[rank]) is DeepEPError
        assert str(got[rank]) == "rank 1 failed: MemoryError: heap"


def test_every_rank_fails():
    errors = {rank: OSError(rank) for rank in range(R)}
    assert outcomes(fail_on, errors) == list(errors.values())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass_on(kind):
    own = kind()
    got = outcomes(fail_on, {2: own})
    assert got.pop(2) is own
    assert {str(error) for error in got} == {f"rank 2 failed: {kind.__name__}: "}


def test_a_failed_run_is_the_failing_ranks_error():
    def main(comm):
        all_or_none(comm, fail_on, comm.rank, {2: MemoryError("heap")})

    with pytest.raises(RankError) as caught:
        run_ranks(main, R, executor="emu")
    # Whoever is first to raise is the run's culprit; what it says names rank 2.
    assert "rank 2" in str(caught.value) and "MemoryError: heap" in str(caught.value)


def test_own_error_is_raised_when_the_others_cannot_be_told():
    def step():
        raise CapacityError("no room")

    with pytest.raises(CapacityError) as caught:
        all_or_none(Alone(), step)
    assert str(caught.value) == "no room"
    assert caught.value.__notes__ == ["and the other ranks were not told: ConnectionError: peer "
                                      "reset"]


def test_gather_fails():
    with pytest.raises(ConnectionError):
        all_or_none(Alone(), int)
