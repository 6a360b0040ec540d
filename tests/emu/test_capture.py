# SPDX-License-Identifier: MIT
"""Capture of streams into graphs, and their replay.  What is an error and what is not, and which
errors break a capture, is what CUDA 13 does on an H100."""

import gc
import struct
import threading
import weakref

import pytest
from machine import AWAIT, RAISE, STEP, queue, word, words

from deepep_ptx import run_ranks
from deepep_ptx._emu import World
from deepep_ptx._emu_executor import EmuExecutor
from deepep_ptx._emu_graph import EmuGraph
from deepep_ptx.errors import Aborted, DeepEPError, KernelFault, RankError


@pytest.fixture
def ex():
    return EmuExecutor(World(1), 0)


class Thing:
    """Something to keep."""


def kept_by(graph, log):
    """Makes `graph` keep a thing; `log` grows when that is gone."""
    thing = Thing()
    weakref.finalize(thing, log.append, "gone")
    graph.keep(thing)


# -- what a graph holds ----------------------------------------------------------------------------


def test_nothing_runs_before_a_replay(ex):
    cell = words(ex)
    with ex.capture() as graph:
        assert ex.captured()
        queue(ex, STEP, cell, 2)
        ex.fill(cell + 4, 0, 4)
    assert not ex.captured()
    assert word(ex, cell) == 0
    assert ex.counters()["warp_instructions"] == 0
    graph.replay()
    assert word(ex, cell) == 1


@pytest.mark.parametrize("scheduler", ["rr", "random", "late-async"])
@pytest.mark.parametrize("own_stream", [False, True])
def test_replays_with_new_data_in_between(scheduler, own_stream):
    ex = EmuExecutor(World(1, scheduler=scheduler), 0)
    stream = ex.stream_create() if own_stream else 0
    cell = words(ex)
    with ex.capture(stream) as graph:
        queue(ex, STEP, cell, 2, stream=stream)
        queue(ex, STEP, cell, 10, stream=stream)
    for value in range(5):
        ex.copy_in(cell, struct.pack("<Q", value), stream=stream)
        graph.replay(stream)
        assert word(ex, cell, stream=stream) == (value * 2 + 1) * 10 + 1


def test_replays_queue_up(ex):
    """They return at once, run in order, and on any stream."""
    flag, cell, other = words(ex), words(ex), ex.stream_create()
    queue(ex, AWAIT, flag, 1, stream=other)
    with ex.capture() as graph:
        queue(ex, STEP, cell, 3)
    for _ in range(4):
        graph.replay(other)
    ex.synchronize()
    assert word(ex, cell) == 0
    queue(ex, RAISE, flag, 1)
    assert word(ex, cell, stream=other) == 1 + 3 + 9 + 27


def test_fills_and_copies_are_captured_with_their_bytes(ex):
    cells = words(ex, 2)
    source = bytearray(struct.pack("<Q", 7))
    with ex.capture() as graph:
        ex.copy_in(cells, source)
        ex.fill(cells + 8, 1, 1)
        ex.fill(cells, 9, 0)
        queue(ex, STEP, cells, 2)
    source[:] = bytes(8)
    for _ in range(2):
        ex.fill(cells, 0xff, 16)
        graph.replay()
        assert struct.unpack("<QQ", ex.copy_out(cells, 16)) == (15, 0xffffffffffffff01)
    ex.free(cells)
    with pytest.raises(ValueError, match="dst: not an address range"), ex.capture():
        ex.fill(cells, 0, 8)


def test_work_queued_before_a_capture_still_runs(ex):
    flag, cell, other = words(ex), words(ex), ex.stream_create()
    queue(ex, AWAIT, flag, 1)
    queue(ex, STEP, cell, 1)
    with ex.capture() as graph:
        queue(ex, STEP, cell, 5)
        queue(ex, RAISE, flag, 1, stream=other)
        ex.synchronize(other)
    assert word(ex, cell) == 1
    graph.replay()
    assert word(ex, cell) == 6


def test_an_empty_graph(ex):
    with ex.capture() as graph:
        pass
    graph.replay()
    ex.synchronize()
    assert isinstance(graph, EmuGraph)


def test_a_graph_in_a_graph(ex):
    log, cell = [], words(ex)
    with ex.capture() as inner:
        queue(ex, STEP, cell, 2)
        kept_by(inner, log)
    with ex.capture() as outer:
        inner.replay()
        inner.replay()
        queue(ex, STEP, cell, 10)
    inner.close()
    assert log == []
    outer.replay()
    assert word(ex, cell) == 3 * 10 + 1
    outer.close()
    assert log == ["gone"]


# -- streams that join ---------------------------------------------------------------------------


def test_fork_and_join_through_events(ex):
    cells = words(ex, 2)
    other, fork, join = ex.stream_create(), ex.event_create(), ex.event_create()
    with ex.capture() as graph:
        queue(ex, STEP, cells, 1)
        ex.event_record(fork)
        assert not ex.captured(other)
        ex.event_wait(fork, other)
        assert ex.captured(other)
        queue(ex, STEP, cells, 10, stream=other)
        ex.event_record(join, other)
        queue(ex, STEP, cells + 8, 1)
        ex.event_wait(join)
        queue(ex, STEP, cells, 3)
        ex.event_destroy(join)
    assert not ex.captured(other)
    queue(ex, STEP, cells, 5, stream=other)
    assert word(ex, cells, stream=other) == 1
    graph.replay()
    assert word(ex, cells) == ((1 * 1 + 1) * 10 + 1) * 3 + 1
    assert word(ex, cells + 8) == 1


def test_fork_and_join_through_streams_that_wait(ex):
    """As the core does around each of its calls, on a stream of its own."""
    cell, own = words(ex), ex.stream_create()
    with ex.capture() as graph:
        for factor in (2, 10):
            queue(ex, STEP, cell, 1)
            ex.stream_wait(own, 0)
            queue(ex, STEP, cell, factor, stream=own)
            ex.stream_wait(0, own)
            ex.stream_wait(own, own)
    for _ in range(2):
        ex.fill(cell, 0, 8)
        graph.replay()
        assert word(ex, cell) == ((1 * 2 + 1) + 1) * 10 + 1


def test_a_stream_joined_through_another(ex):
    cell = words(ex)
    one, two, event = ex.stream_create(), ex.stream_create(), ex.event_create()
    with ex.capture() as graph:
        for waiter, waited in ((one, 0), (two, one)):
            ex.stream_wait(waiter, waited)
        queue(ex, STEP, cell, 1, stream=two)
        ex.stream_wait(one, two)
        ex.event_record(event, one)
        ex.event_wait(event)
    graph.replay()
    assert word(ex, cell) == 1


def test_a_joined_stream_may_be_destroyed(ex):
    cell, other = words(ex), ex.stream_create()
    with ex.capture() as graph:
        ex.stream_wait(other, 0)
        queue(ex, STEP, cell, 1, stream=other)
        ex.stream_wait(0, other)
        ex.stream_destroy(other)
    graph.replay()
    assert word(ex, cell) == 1
    stream = ex.stream_create()
    with ex.capture(stream), pytest.raises(ValueError, match="its capture must end first"):
        ex.stream_destroy(stream)


def test_a_destroyed_stream_whose_earlier_work_ends_in_the_capture(ex):
    flag, cell, other = words(ex), words(ex), ex.stream_create()
    queue(ex, AWAIT, flag, 1, stream=other)
    with ex.capture() as graph:
        ex.stream_wait(other, 0)
        queue(ex, STEP, cell, 1, stream=other)
        ex.stream_wait(0, other)
        ex.stream_destroy(other)
        raising = ex.stream_create()
        queue(ex, RAISE, flag, 1, stream=raising)
        ex.synchronize(raising)
        ex.yield_()
    graph.replay()
    assert word(ex, cell) == 1


def test_a_fork_without_work_need_not_be_joined(ex):
    other = ex.stream_create()
    with ex.capture():
        ex.stream_wait(other, 0)
    ex.synchronize(other)


@pytest.mark.parametrize("early", [False, True])
def test_a_stream_that_is_not_joined(ex, early):
    """Not at all, or before its last work."""
    cell, other, event = words(ex), ex.stream_create(), ex.event_create()
    text = "other streams of its capture are not joined"
    with pytest.raises(DeepEPError, match=text), ex.capture() as graph:
        ex.stream_wait(other, 0)
        queue(ex, STEP, cell, 1, stream=other)
        if early:
            ex.event_record(event, other)
            queue(ex, STEP, cell, 1, stream=other)
            ex.event_wait(event)
    with pytest.raises(ValueError, match="graph: not a graph of rank 0"):
        graph.replay()
    for stream in (0, other):                              # both are as before
        assert not ex.captured(stream)
        queue(ex, STEP, cell, 2, stream=stream)
        ex.synchronize(stream)
    assert word(ex, cell) == 3


# -- what no capture may have --------------------------------------------------------------------


def breaks(ex, act, text, kind=DeepEPError):
    """`act` in a capture is an error, and so is the capture's end."""
    end = pytest.raises(DeepEPError, match="an error broke its capture")
    with end, ex.capture(), pytest.raises(kind, match=text):
        act()
    assert not ex.captured()
    ex.synchronize()


def test_host_waits_for_captured_work(ex):
    cell, event = words(ex), ex.event_create()
    text = "stream_synchronize: the work is captured"
    breaks(ex, ex.synchronize, text)
    breaks(ex, lambda: ex.copy_out(cell, 8), text)
    for wait in (ex.event_synchronize, ex.event_query):
        def act(wait=wait):
            ex.event_record(event)
            wait(event)

        breaks(ex, act, f"{wait.__name__}: the work is captured")


def test_waits_for_work_outside_of_the_capture(ex):
    """Also for work that is done: nothing in a graph may depend on when it was captured."""
    other, event = ex.stream_create(), ex.event_create()
    with ex.capture():
        ex.event_wait(event)                               # never recorded: complete
    ex.event_record(event, other)
    text = "stream: is captured and cannot wait for work outside of its capture"
    breaks(ex, lambda: ex.event_wait(event), text)
    breaks(ex, lambda: ex.stream_wait(0, other), text)


def test_two_captures_do_not_merge(ex):
    other = ex.stream_create()
    with pytest.raises(DeepEPError, match="an error broke its capture"), ex.capture(other):
        breaks(ex, lambda: ex.stream_wait(0, other), "cannot wait for work of another capture")


def test_an_event_of_a_capture_that_is_over(ex):
    cell, event, other = words(ex), ex.event_create(), ex.stream_create()
    text = "event: was recorded in a capture, which is over"
    with ex.capture():
        queue(ex, STEP, cell, 1)
        ex.event_record(event)
    for act in (ex.event_query, ex.event_synchronize, lambda e: ex.event_wait(e, other)):
        with pytest.raises(ValueError, match=text):
            act(event)
    breaks(ex, lambda: ex.event_wait(event), text, ValueError)
    ex.event_record(event, other)
    ex.event_synchronize(event)
    ex.event_wait(event)


def test_a_free_cannot_be_captured(ex):
    cell, other = words(ex), ex.stream_create()
    with ex.capture() as graph:
        queue(ex, STEP, cell, 1)
        with pytest.raises(DeepEPError, match="stream: is captured, and a free cannot be"):
            ex.free(cell)
    graph.replay()                                         # this does not break a capture
    assert word(ex, cell) == 1
    with ex.capture():
        ex.free(cell, stream=other)


def test_a_stream_is_captured_once(ex):
    with ex.capture() as graph:
        with pytest.raises(ValueError, match="stream: is captured already"), ex.capture():
            pass
        with pytest.raises(ValueError, match="graph: its capture is not over"):
            graph.replay()
    graph.replay()
    with pytest.raises(ValueError, match="one block for one graph"), graph:
        pass
    with pytest.raises(ValueError, match="stream: not a stream of rank 0"), ex.capture(12345):
        pass
    with pytest.raises(ValueError, match="stream: not a stream of rank 0"):
        ex.captured(12345)
    with pytest.raises(TypeError, match="made by EmuExecutor.capture"):
        EmuGraph()


def test_an_exception_drops_the_capture(ex):
    cell, log, other = words(ex), [], ex.stream_create()
    with pytest.raises(KeyError), ex.capture() as graph:
        kept_by(graph, log)
        queue(ex, STEP, cell, 1)
        ex.stream_wait(other, 0)
        queue(ex, STEP, cell, 1, stream=other)
        raise KeyError
    assert log == ["gone"]
    with pytest.raises(ValueError, match="graph: not a graph of rank 0"):
        graph.replay()
    queue(ex, STEP, cell, 1, stream=other)
    assert word(ex, cell, stream=other) == 1


def test_memory_that_is_gone_when_a_replay_runs(ex):
    cell = words(ex)
    with ex.capture() as graph:
        queue(ex, STEP, cell, 1)
    ex.free(cell)
    graph.replay()
    with pytest.raises(KernelFault, match="use-after-free"):
        ex.synchronize()
    with pytest.raises(KernelFault):
        graph.replay()
    other = EmuExecutor(World(1), 0)
    cell = words(other)
    with other.capture() as graph:
        other.fill(cell, 0, 8)
    other.free(cell)
    graph.replay()
    with pytest.raises(DeepEPError, match="rank 0: a queued fill no longer fitted"):
        other.synchronize()


# -- lifetimes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "collect"])
def test_what_is_kept_goes_after_the_last_replay(ex, how):
    flag, cell, log = words(ex), words(ex), []
    with ex.capture() as graph:
        queue(ex, AWAIT, flag, 1)
        queue(ex, STEP, cell, 2)
        kept_by(graph, log)
    kept_by(graph, log)                                    # after the capture's end too
    other = ex.stream_create()
    graph.replay()
    graph.replay(other)
    queue(ex, STEP, cell, 2, stream=other)
    if how == "close":
        graph.close()
        graph.close()
        with pytest.raises(ValueError, match="graph: not a graph of rank 0"):
            graph.replay()
    del graph
    gc.collect()
    assert log == []
    raising = ex.stream_create()
    queue(ex, RAISE, flag, 1, stream=raising)
    ex.synchronize(raising)
    ex.synchronize()
    ex.synchronize(other)
    assert log == ["gone", "gone"]
    assert word(ex, cell) == 7


def test_what_is_kept_stays_with_a_graph_without_replays(ex):
    log = []
    with ex.capture() as graph:
        kept_by(graph, log)
    ex.synchronize()
    assert log == []
    graph.close()
    assert log == ["gone"]


def test_what_is_kept_may_use_the_executor_when_it_goes(ex):
    cell = words(ex)
    with ex.capture() as graph:
        thing = Thing()
        weakref.finalize(thing, ex.free, cell)
        graph.keep(thing)
        del thing
        queue(ex, STEP, cell, 1)
    graph.replay()
    graph.close()
    ex.synchronize()
    with pytest.raises(ValueError, match="src"):
        ex.copy_out(cell, 8)


def test_a_graph_keeps_its_world():
    log = []
    world = World(1)
    ref, ex = weakref.ref(world), EmuExecutor(world, 0)
    with ex.capture() as graph:
        queue(ex, STEP, ex.alloc(8), 1)
        kept_by(graph, log)
    del world, ex
    gc.collect()
    assert ref() is not None
    graph.replay()                                         # the world ends before this does
    del graph
    gc.collect()
    assert ref() is None
    assert log == ["gone"]


def test_a_run_may_end_in_a_capture():
    def rank_main(comm):
        ex = comm.executor
        block = ex.capture()
        kept_by(block.__enter__(), log)
        event, other = ex.event_create(), ex.stream_create()
        ex.event_record(event)
        ex.event_wait(event, other)
        ex.fill(ex.alloc(8), 0, 8, stream=other)

    log = []
    run_ranks(rank_main, 2)
    gc.collect()
    assert log == ["gone", "gone"]


def test_closed_by_another_thread_while_replays_run():
    def rank_main(comm):
        ex, log = comm.executor, []
        cell = words(ex)
        with ex.capture() as graph:
            kept_by(graph, log)
            for _ in range(200):
                queue(ex, STEP, cell, 1)
        graph.replay()
        thread = threading.Thread(target=graph.close)
        thread.start()
        value = word(ex, cell)
        thread.join()
        return value, log

    for _ in range(5):
        assert run_ranks(rank_main, 2) == [(200, ["gone"])] * 2


# -- ranks ---------------------------------------------------------------------------------------


def ping_pong(comm):
    """A graph per rank whose kernels wait for the other rank's, replayed with new data; returns
    what came and when."""
    ex, other = comm.executor, 1 - comm.rank
    box = words(ex, 3)                          # flag, data, what came
    own = ex.stream_create()
    there = ex.import_memory(comm.allgather(ex.export_memory(box))[other])
    source = ex.alloc(8)
    # Data, then flag := 1; then wait for the own flag, take the data and put the flag back.
    send = "ld.global.u64 d4, [d0];\nst.global.u64 [d1 + 8], d4;\nmov.u64 d0, d1;\nmov.u64 d1, 1;\n"
    take = "ld.global.u64 d5, [d0 + 8];\nst.global.u64 [d0 + 16], d5;\nst.global.u64 [d0], 0;\n"
    with ex.capture() as graph:
        queue(ex, send + RAISE, source, there)
        ex.stream_wait(own, 0)
        queue(ex, AWAIT + take, box, 1, stream=own)
        ex.stream_wait(0, own)
    came = []
    for turn in range(4):
        ex.copy_in(source, struct.pack("<Q", 100 * comm.rank + turn))
        graph.replay()
        came.append(word(ex, box + 16))
        comm.barrier()
    return came, ex.now, ex.counters()


@pytest.mark.parametrize("scheduler", ["rr", "random", "late-async"])
def test_captured_kernels_of_two_ranks_wait_for_each_other(scheduler):
    first = run_ranks(ping_pong, 2, scheduler=scheduler, seed=5)
    assert [r[0] for r in first] == [[100, 101, 102, 103], [0, 1, 2, 3]]
    assert first == run_ranks(ping_pong, 2, scheduler=scheduler, seed=5)


def test_a_replay_without_its_peer_is_a_livelock():
    def rank_main(comm):
        ex = comm.executor
        flag = words(ex)
        with ex.capture() as graph:
            queue(ex, AWAIT, flag, 1)
        if comm.rank == 0:
            graph.replay()
            ex.synchronize()
        else:
            comm.barrier()

    with pytest.raises(RankError) as info:
        run_ranks(rank_main, 2)
    assert "rank 0 waits in stream_synchronize; rank 1 waits in barrier" in str(
        info.value.__cause__)


def test_a_capture_of_a_rank_that_is_stopped():
    ended = []

    def rank_main(comm):
        ex = comm.executor
        cell = words(ex)
        if comm.rank:
            raise RuntimeError("stop")
        with pytest.raises(Aborted), ex.capture() as graph:
            queue(ex, STEP, cell, 1)
            kept_by(graph, ended)
            comm.barrier()
        for act in (ex.captured, graph.replay, lambda: ex.capture().__enter__()):
            with pytest.raises(Aborted):
                act()

    with pytest.raises(RankError, match="rank 1: RuntimeError: stop"):
        run_ranks(rank_main, 2)
    assert ended == ["gone"]
