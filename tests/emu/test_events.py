# SPDX-License-Identifier: MIT
"""Events: points in the work of streams that streams and the host wait for."""

import threading

import pytest
from machine import AWAIT, RAISE, STEP, queue, word, words

from deepep_ptx import run_ranks
from deepep_ptx._emu import World
from deepep_ptx._emu_executor import EmuExecutor
from deepep_ptx.errors import DeepEPTimeoutError, KernelFault, RankError

# Counts d1 down, then raises flag d0 to 1.
COUNT = """\
$again:
sub.u64 d1, d1, 1;
setp.ne.u64 q0, d1, 0;
@q0 bra $again;
mov.u64 d1, 1;
""" + RAISE


@pytest.fixture
def ex():
    return EmuExecutor(World(1), 0)


def blocked(ex, flag, stream):
    """Makes `stream` wait for `flag`, which `release` raises."""
    queue(ex, AWAIT, flag, 1, stream=stream)


def release(ex, flag):
    queue(ex, RAISE, flag, 1, stream=ex.stream_create())


@pytest.mark.parametrize("scheduler", ["rr", "random", "late-async"])
def test_a_stream_runs_after_the_event(scheduler):
    ex = EmuExecutor(World(1, scheduler=scheduler), 0)
    flag, cell = words(ex), words(ex)
    first, second, event = ex.stream_create(), ex.stream_create(), ex.event_create()
    blocked(ex, flag, first)
    queue(ex, STEP, cell, 10, stream=first)
    ex.event_record(event, first)
    ex.event_wait(event, second)
    queue(ex, STEP, cell, 3, stream=second)
    release(ex, flag)
    assert word(ex, cell, stream=second) == (0 * 10 + 1) * 3 + 1


def test_without_the_event_streams_do_not_wait(ex):
    flag, cell = words(ex), words(ex)
    first, second = ex.stream_create(), ex.stream_create()
    blocked(ex, flag, first)
    queue(ex, STEP, cell, 10, stream=first)
    queue(ex, STEP, cell, 3, stream=second)
    assert word(ex, cell, stream=second) == 1
    release(ex, flag)
    assert word(ex, cell, stream=first) == 11


def test_an_event_is_the_work_before_its_record(ex):
    """What the stream queues behind it is not waited for; stream 0 is the default stream."""
    flag, cell = words(ex), words(ex)
    event, other = ex.event_create(), ex.stream_create()
    queue(ex, STEP, cell, 10)
    ex.event_record(event)
    blocked(ex, flag, 0)
    queue(ex, STEP, cell, 5)
    ex.event_synchronize(event)
    ex.event_wait(event, other)
    queue(ex, STEP, cell, 3, stream=other)
    assert word(ex, cell, stream=other) == 1 * 3 + 1
    release(ex, flag)
    assert word(ex, cell) == 4 * 5 + 1


def test_a_later_record_replaces_an_event_but_not_for_who_waits(ex):
    flags, cell = [words(ex), words(ex)], words(ex)
    streams, waiter = [ex.stream_create(), ex.stream_create()], ex.stream_create()
    event = ex.event_create()
    for flag, stream in zip(flags, streams, strict=True):
        blocked(ex, flag, stream)
    ex.event_record(event, streams[0])
    ex.event_wait(event, waiter)
    queue(ex, STEP, cell, 1, stream=waiter)
    ex.event_record(event, streams[1])
    release(ex, flags[0])
    assert word(ex, cell, stream=waiter) == 1
    assert not ex.event_query(event)
    release(ex, flags[1])
    ex.event_synchronize(event)
    assert ex.event_query(event)


def test_an_event_that_was_never_recorded_is_complete(ex):
    event, cell = ex.event_create(), words(ex)
    ex.event_synchronize(event)
    ex.event_wait(event)
    queue(ex, STEP, cell, 1)
    assert ex.event_query(event)
    assert word(ex, cell) == 1


def test_an_event_of_an_idle_stream_is_complete(ex):
    event = ex.event_create()
    ex.event_record(event)
    assert ex.event_query(event)
    ex.event_synchronize(event)


def test_a_stream_may_wait_for_its_own_event(ex):
    event, cell = ex.event_create(), words(ex)
    queue(ex, STEP, cell, 1)
    ex.event_record(event)
    ex.event_wait(event)
    queue(ex, STEP, cell, 2)
    assert word(ex, cell) == 3


def test_an_event_destroyed_while_streams_wait_for_it(ex):
    flag, cell = words(ex), words(ex)
    first, second, event = ex.stream_create(), ex.stream_create(), ex.event_create()
    blocked(ex, flag, first)
    queue(ex, STEP, cell, 10, stream=first)
    ex.event_record(event, first)
    ex.event_wait(event, second)
    queue(ex, STEP, cell, 3, stream=second)
    ex.event_destroy(event)
    ex.stream_destroy(first)
    release(ex, flag)
    assert word(ex, cell, stream=second) == 1 * 3 + 1


def test_an_event_destroyed_by_another_thread_while_the_host_waits_for_it():
    """The other thread may come before, in or after the wait: each is well-defined."""
    def rank_main(comm):
        ex = comm.executor
        flag, event = words(ex), ex.event_create()
        blocked(ex, flag, 0)
        ex.event_record(event)
        queue(ex, COUNT, flag, 20_000, stream=ex.stream_create())
        thread = threading.Thread(target=ex.event_destroy, args=[event])
        thread.start()
        try:
            ex.event_synchronize(event)
        except ValueError as error:
            assert "event: not an event" in str(error)
        thread.join()

    for _ in range(5):
        run_ranks(rank_main, 2)


def test_a_run_may_end_with_events_and_waits_left():
    def rank_main(comm):
        ex = comm.executor
        event, other = ex.event_create(), ex.stream_create()
        ex.event_create()
        blocked(ex, words(ex), 0)
        ex.event_record(event)
        ex.event_wait(event, other)

    run_ranks(rank_main, 2)


def test_ranks_take_turns_in_event_synchronize():
    """Each rank's event is behind a kernel that waits for the next rank's host."""
    def rank_main(comm):
        ex = comm.executor
        mine = words(ex)
        handles = comm.allgather(ex.export_memory(mine))
        event, sending = ex.event_create(), ex.stream_create()
        there = ex.import_memory(handles[(comm.rank + 1) % comm.size])
        comm.barrier()
        queue(ex, AWAIT, mine, 7)
        ex.event_record(event)
        if comm.rank:
            queue(ex, RAISE, there, 7, stream=sending)
        ex.event_synchronize(event)
        if not comm.rank:
            queue(ex, RAISE, there, 7, stream=sending)
        comm.barrier()
        return ex.now

    first = run_ranks(rank_main, 3, scheduler="random", seed=4)
    assert first == run_ranks(rank_main, 3, scheduler="random", seed=4)


def test_a_livelock_report_names_the_wait():
    def rank_main(comm):
        ex = comm.executor
        if comm.rank:
            return comm.barrier()
        event = ex.event_create()
        blocked(ex, words(ex), 0)
        ex.event_record(event)
        ex.event_synchronize(event)

    with pytest.raises(RankError) as info:
        run_ranks(rank_main, 2)
    assert isinstance(info.value.__cause__, KernelFault)
    assert "rank 0 waits in event_synchronize; rank 1 waits in barrier" in str(info.value.__cause__)


def test_a_time_limit_names_the_wait():
    ex = EmuExecutor(World(1, timeout_s=2.0), 0)
    event, flag = ex.event_create(), words(ex)
    blocked(ex, flag, 0)
    ex.event_record(event)
    text = "event_synchronize: not over after 2 s of virtual time: rank 0 waits in event_sync"
    with pytest.raises(DeepEPTimeoutError, match=text) as info:
        ex.event_synchronize(event)
    assert info.value.wait == "event_synchronize"
    with pytest.raises(DeepEPTimeoutError, match="stream_synchronize: not over after 2 s"):
        ex.synchronize()
    release(ex, flag)
    ex.event_synchronize(event)


def test_what_is_not_an_event(ex):
    event, other = ex.event_create(), EmuExecutor(World(1), 0)
    ex.event_destroy(event)
    for bad in (0, 12345, event, other.event_create()):
        for act in (ex.event_destroy, ex.event_record, ex.event_wait, ex.event_synchronize,
                    ex.event_query):
            with pytest.raises(ValueError, match="event: not an event of rank 0"):
                act(bad)
    event = ex.event_create()
    for act in (ex.event_record, ex.event_wait):
        with pytest.raises(ValueError, match="stream: not a stream of rank 0"):
            act(event, 12345)
