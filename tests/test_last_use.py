# SPDX-License-Identifier: MIT
"""Results that die between two calls: whoever gets their memory comes after what had been queued on
their stream by then, and after no more than that."""

import gc
from types import SimpleNamespace

import numpy as np
import pytest

from deepep_ptx import Buffer, run_ranks
from deepep_ptx.arrays.device_array import Device
from deepep_ptx.errors import DeepEPError
from tests.emu.machine import AWAIT, RAISE, queue
from tests.test_async import BF16, ROOM, H, Side, bits, done, let_run
from tests.test_buffer_life import T, tokens

OLD, NEW = np.ones((T, H), BF16), np.full((T, H), 2, BF16)


class Flag:
    """What a stream waits for, until it is raised."""

    def __init__(self, executor, stream):
        self.executor = executor
        self.idle = executor.stream_create()
        self.address = executor.alloc(8)
        executor.fill(self.address, 0, 8, stream=self.idle)
        queue(executor, AWAIT, self.address, 1, stream=stream)

    def raise_(self):
        queue(self.executor, RAISE, self.address, 1, stream=self.idle)


def reading(side, array, stream):
    """`Side.copied` that does not keep the array."""
    return side.copied(SimpleNamespace(address=array.address, nbytes=array.nbytes,
                                       dtype=array.dtype, shape=array.shape), stream)


class Series:
    """Calls on one stream, after which a result has died; reads of it are still queued there,
    behind `before`, and other work behind the reads, which `after` holds."""

    def __init__(self, side, buffer, stream):
        self.side, self.buffer, self.stream = side, buffer, stream
        x, arguments = side.inputs(buffer, *tokens(0))
        self.handle = buffer.dispatch(x, **arguments, stream=stream)[4]
        self.rows, old = side.give(NEW, OLD)
        dying = self.dispatch(old, stream=stream)[0]
        side.executor.synchronize(stream)
        self.before = Flag(side.executor, stream)
        self.read = reading(side, dying, stream)
        self.address = dying.address
        del dying
        gc.collect()
        self.after = Flag(side.executor, stream)

    def dispatch(self, x, **options):
        result = self.buffer.dispatch(x, handle=self.handle, **options)
        return result[0], result[-1]

    def check(self, array, ended):
        """`array`, whose contents are there after `ended`, lies where the dead one lay, and came
        when that had been read."""
        assert array.address == self.address
        let_run(self.side.executor)
        assert not done(ended)
        self.before.raise_()
        ended.event._event.synchronize()            # while `after` holds the stream
        self.after.raise_()
        self.check_read()

    def forget(self):
        """Nothing of the calls is left but what is queued."""
        self.handle = None
        gc.collect()

    def let_go(self):
        """Nothing holds the stream any more."""
        self.before.raise_()
        self.after.raise_()

    def check_read(self):
        """The reads found the dead one's rows."""
        np.testing.assert_array_equal(bits(self.read()), bits(OLD))


LASTING = pytest.mark.parametrize("lasting", [False, True], ids=["any", "lasting"])


def alone(monkeypatch, lasting, main):
    monkeypatch.setattr(Device, "lasting", lasting)

    def rank_main(comm):
        side = Side(comm)
        stream = side.executor.stream_create()
        with Buffer(side.comm, ROOM) as buffer:
            main(side, buffer, stream)

    run_ranks(rank_main, 1, executor="emu")


@LASTING
def test_a_call_on_the_same_stream(monkeypatch, lasting):
    def main(side, buffer, stream):
        series = Series(side, buffer, stream)
        array, event = series.dispatch(series.rows, stream=stream, async_finish=True)
        series.after.raise_()                       # it comes after all of the stream
        series.check(array, event)
        np.testing.assert_array_equal(bits(array.numpy()), bits(NEW))

    alone(monkeypatch, lasting, main)


@LASTING
@pytest.mark.parametrize("how", ["event", "stream", "stream and event"])
def test_a_call_that_does_not_follow_the_stream(monkeypatch, lasting, how):
    def main(side, buffer, stream):
        other = side.executor.stream_create()
        series = Series(side, buffer, stream)
        options = {"stream": other if "stream" in how else stream}
        if "event" in how:
            options["previous_event"] = side.event(other)
        array, event = series.dispatch(series.rows, async_finish=True, **options)
        series.check(array, event)

    alone(monkeypatch, lasting, main)


@LASTING
def test_an_array_in_the_arena_for_another_stream(monkeypatch, lasting):
    def main(side, buffer, stream):
        other = side.executor.stream_create()
        series = Series(side, buffer, stream)
        array = buffer.get_combine_buffer(T, H, stream=other)
        series.check(array, side.event(other))

    alone(monkeypatch, lasting, main)


@LASTING
def test_an_array_in_the_arena_for_the_same_stream(monkeypatch, lasting):
    def main(side, buffer, stream):
        series = Series(side, buffer, stream)
        assert buffer.get_combine_buffer(T, H, stream=stream).address == series.address
        series.let_go()
        series.check_read()

    alone(monkeypatch, lasting, main)


@LASTING
def test_the_end_of_the_buffer(monkeypatch, lasting):
    """Its memory goes when it has been read."""
    def main(side, buffer, stream):
        series = Series(side, buffer, stream)
        series.forget()
        series.let_go()
        buffer.destroy()
        series.check_read()

    alone(monkeypatch, lasting, main)


@LASTING
def test_a_segment_that_is_recycled(monkeypatch, lasting):
    def main(side, buffer, stream):
        series, core = Series(side, buffer, stream), buffer._core
        series.forget()
        assert core.idle_segments() == 1
        core.unmap_segment(0)
        core.drop_segment(0)
        series.let_go()
        series.check_read()

    alone(monkeypatch, lasting, main)


@LASTING
def test_the_stream_is_destroyed_before_the_next_call(monkeypatch, lasting):
    """What it had queued still runs."""
    def main(side, buffer, stream):
        series = Series(side, buffer, stream)
        series.after.raise_()
        end = side.event(stream)
        side.executor.stream_destroy(stream)
        array, event = series.dispatch(series.rows, stream=side.executor.stream_create(),
                                       async_finish=True)
        assert array.address == series.address
        let_run(side.executor)
        assert not done(event) and not done(end)
        series.before.raise_()
        event.event._event.synchronize()

    alone(monkeypatch, lasting, main)


def test_a_capture_of_the_stream(monkeypatch):
    """Nothing can wait for it then: a call elsewhere is refused before it launches anything."""
    def main(side, buffer, stream):
        series = Series(side, buffer, stream)
        other = side.executor.stream_create()
        with side.executor.capture(stream):
            with pytest.raises(DeepEPError, match="^stream: is being captured, and would have to"):
                series.dispatch(series.rows, stream=other)
            assert buffer.last_launch == ()
            with pytest.raises(DeepEPError, match="^stream: is being captured, and would have to"):
                buffer.get_combine_buffer(T, H, stream=other)
        array, event = series.dispatch(series.rows, stream=other, async_finish=True)
        series.check(array, event)

    alone(monkeypatch, True, main)


def test_a_death_in_a_capture_without_calls(monkeypatch):
    """An event that was recorded then is of no use afterwards."""
    def main(side, buffer, stream):
        other = side.executor.stream_create()
        x, arguments = side.inputs(buffer, *tokens(0))
        handle = buffer.dispatch(x, **arguments, stream=stream)[4]
        new, old = side.give(NEW, OLD)
        dying = buffer.dispatch(old, handle=handle, stream=stream)[0]
        held, read = Flag(side.executor, stream), reading(side, dying, stream)
        with side.executor.capture(stream):
            del dying
            gc.collect()
        array, *_, event = buffer.dispatch(new, handle=handle, stream=other, async_finish=True)
        let_run(side.executor)
        assert not done(event)
        held.raise_()
        event.event._event.synchronize()
        np.testing.assert_array_equal(bits(read()), bits(OLD))
        np.testing.assert_array_equal(bits(array.numpy()), bits(NEW))

    alone(monkeypatch, True, main)


def test_a_capture_takes_what_died_before_it(monkeypatch):
    """An arena has as much room for a captured call as for another one."""
    monkeypatch.setattr(Device, "captures", True)

    def main(side, buffer, _):
        series = Series(side, buffer, 0)
        series.let_go()
        with side.executor.capture() as graph:
            array, _ = series.dispatch(series.rows)
        assert array.address == series.address
        graph.replay()
        series.check_read()
        np.testing.assert_array_equal(bits(array.numpy()), bits(NEW))

    alone(monkeypatch, True, main)
