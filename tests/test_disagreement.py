# SPDX-License-Identifier: MIT
"""Ranks whose calls differ, or are of different buffers: a typed error on all of them, and what
comes behind it is right."""

import threading

import pytest

from deepep_ptx import Buffer, run_ranks
from deepep_ptx.errors import DeepEPError, DeepEPTimeoutError, RankMismatchError
from tests.test_buffer_life import H, T, check_round, dispatch, raised, tokens

LIMIT_S = 1e-3
LARGE = 50 * T          # rows that need more than an arena starts with


def in_its_order(comm, buffers):
    return buffers if comm.rank == 0 else buffers[::-1]


@pytest.mark.parametrize("checks", ["all", "off"])
def test_growth_of_one_buffer_is_no_other_buffers(checks):
    """It would map the one's segment in the other's place."""
    def main(comm):
        buffers = [Buffer(comm, timeout_s=LIMIT_S) for _ in range(2)]
        errors = [raised(dispatch, buffer, *tokens(comm.rank), num_worst_tokens=LARGE)
                  for buffer in in_its_order(comm, buffers)]
        assert all(type(error) is DeepEPError and "takes no part in making room" in str(error)
                   for error in errors), errors
        for buffer in buffers:
            buffer.reset()
            check_round(buffer, comm.size)
            buffer.destroy()

    run_ranks(main, 2, checks=checks)


def test_calls_of_different_buffers_that_have_room():
    def main(comm):
        buffers = [Buffer(comm, 1 << 20) for _ in range(2)]
        calls = [dispatch(buffer, *tokens(comm.rank), num_worst_tokens=2 * T, async_finish=True)
                 for buffer in in_its_order(comm, buffers)]
        for call in calls:
            call[-1].current_stream_wait()
        for buffer in buffers:
            check_round(buffer, comm.size)

    run_ranks(main, 2)


def test_the_end_of_one_buffer_is_no_other_buffers():
    def main(comm):
        a, b = (Buffer(comm, timeout_s=LIMIT_S) for _ in range(2))
        mine, other = (a, b) if comm.rank == 0 else (b, a)
        error = raised(mine.destroy)
        assert type(error) is DeepEPError and "takes no part in the end of buffer" in str(error)
        comm.barrier()
        error = raised(dispatch, other, *tokens(comm.rank))
        assert isinstance(error, DeepEPTimeoutError) and error.peer == 1 - comm.rank
        other._leave()
        with Buffer(comm) as another:
            check_round(another, comm.size)

    run_ranks(main, 2)


DIFFERENT = {
    "num_worst_tokens": lambda rank: ({}, {"num_worst_tokens": (LARGE, 10 * LARGE)[rank]}),
    "hidden": lambda rank: ({"hidden": (H, 8 * H)[rank]}, {"num_worst_tokens": LARGE}),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_a_refused_call_has_made_room_for(what):
    """All ranks go on from the same numbers, whatever each had asked for."""
    def main(comm):
        inputs, arguments = DIFFERENT[what](comm.rank)
        with Buffer(comm, timeout_s=LIMIT_S) as buffer:
            error = raised(dispatch, buffer, *tokens(comm.rank, **inputs), **arguments)
            assert isinstance(error, RankMismatchError) and error.argument == what
            for more in (1, 10, 20):
                dispatch(buffer, *tokens(comm.rank, hidden=8 * H), num_worst_tokens=more * LARGE)
            check_round(buffer, comm.size)

    run_ranks(main, 2)


@pytest.mark.parametrize("kind", ["worst against handle", "handles"])
def test_handles_of_another_buffer(kind):
    """Of which one rank passes another one, or none."""
    def main(comm):
        with Buffer(comm) as other, Buffer(comm, timeout_s=LIMIT_S) as buffer:
            made = [dispatch(other, *tokens(comm.rank, n * T, 8 * H)) for n in (1, 4)]
            recv_x, _, _, _, handle, _ = made[comm.rank if kind == "handles" else 0]
            if kind == "handles" or comm.rank:
                error = raised(buffer.combine, recv_x, handle)
            else:
                error = raised(dispatch, buffer, *tokens(comm.rank), num_worst_tokens=LARGE)
            assert isinstance(error, RankMismatchError), error
            for recv_x, _, _, _, handle, _ in made:
                buffer.combine(recv_x, handle)
            dispatch(buffer, *tokens(comm.rank), num_worst_tokens=2 * LARGE)
            check_round(buffer, comm.size)

    run_ranks(main, 2)


def test_a_buffer_for_each_of_a_ranks_threads():
    """On the CPU executor one of them waits at a time."""
    def main(comm):
        buffers = [Buffer(comm) for _ in range(3)]
        errors = []

        def work(buffer):
            try:
                for _ in range(10):
                    check_round(buffer, 1)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(buffer,)) for buffer in buffers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        for buffer in buffers:
            buffer.destroy()

    run_ranks(main, 1)
