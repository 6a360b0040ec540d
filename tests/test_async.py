# SPDX-License-Identifier: MIT
"""Calls that nobody waits for: order on streams, events, what is kept alive, errors found later.

A GPU's streams are those of the CPU executor (`PretendGpu`), on which nothing runs before the host
waits and a kernel that waits for a flag holds a stream for as long as a test likes.
"""

import gc
import weakref
from contextlib import contextmanager

import numpy as np
import pytest

from deepep_ptx import Buffer, EventOverlap, reference, run_ranks
from deepep_ptx._executor import Event
from deepep_ptx.arrays.device_array import Device
from deepep_ptx.errors import (
    CapacityError,
    DeepEPError,
    DeepEPTimeoutError,
    DestroyedError,
    RankMismatchError,
)
from deepep_ptx.event import EventHandle
from tests.array_libraries import DeviceArrays, NumPyArrays, PretendGpu
from tests.emu.machine import AWAIT, RAISE, STEP, queue, word, words
from tests.test_buffer_life import BF16, E, H, K, T, first, raised, tokens

ROOM = 1 << 20
WORST = 2 * T       # rows of two ranks in worst-case mode

# For d0 nanoseconds.
DELAY = """\
mov.u64 d4, %globaltimer;
add.u64 d4, d4, d0;
$next:
mov.u64 d5, %globaltimer;
setp.lt.u64 q0, d5, d4;
@q0 bra $next;
"""

# d2 words from d1 to d0.
COPY = """\
$next:
ld.global.u64 d4, [d1];
st.global.u64 [d0], d4;
add.u64 d0, d0, 8;
add.u64 d1, d1, 8;
sub.u64 d2, d2, 1;
setp.ne.u64 q0, d2, 0;
@q0 bra $next;
"""


class Side:
    """A rank with its arrays, on a GPU that is none or on the CPU executor."""

    def __init__(self, comm, on_gpu=True):
        self.comm = PretendGpu.of(comm) if on_gpu else comm
        self.executor = self.comm.executor
        self.arrays = (DeviceArrays if on_gpu else NumPyArrays)(self.executor)
        # What makes a call one that nobody waits for.
        self.later = {} if on_gpu else {"async_finish": True}

    def give(self, *arrays):
        return [self.arrays.give(array) for array in arrays]

    def inputs(self, buffer, x, idx, weights, **layout):
        """x and the other arguments of its dispatch."""
        x, idx, weights = self.give(x, idx, weights)
        per_rank, _, per_expert, in_rank, event = buffer.get_dispatch_layout(idx, E, **layout)
        if "async_finish" in layout:
            event.current_stream_wait()
        return x, {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank,
                   "num_tokens_per_expert": per_expert, "topk_idx": idx, "topk_weights": weights}

    def dispatch(self, buffer, *arrays, **changes):
        x, arguments = self.inputs(buffer, *(arrays or tokens(self.comm.rank)))
        return buffer.dispatch(x, **(arguments | changes))

    def check_round(self, buffer):
        """A dispatch and a combine whose results are right."""
        received = received_by(self.comm.size)
        recv_x, _, _, _, handle, _ = self.dispatch(buffer)
        out = buffer.combine(recv_x, handle)[0]
        np.testing.assert_array_equal(bits(self.arrays.get(recv_x)),
                                      bits(received[buffer.rank].recv_x))
        want = first(reference.combine([r.recv_x for r in received], received)[buffer.rank])
        np.testing.assert_array_equal(bits(self.arrays.get(out)), bits(want))

    # -- streams ----------------------------------------------------------------------------

    def event(self, stream):
        """An `EventOverlap` of what `stream` has queued."""
        event = Event(self.executor)
        event.record(stream)
        return EventOverlap(EventHandle._of(event, lambda: stream))

    @contextmanager
    def blocked(self, stream):
        """In the block, what is queued on `stream` waits."""
        idle = self.executor.stream_create()
        flag = self.executor.alloc(8)
        self.executor.fill(flag, 0, 8, stream=idle)
        queue(self.executor, AWAIT, flag, 1, stream=stream)
        yield
        queue(self.executor, RAISE, flag, 1, stream=idle)

    def copied(self, array, stream):
        """A function that gives the array as a copy queued on `stream` now finds it."""
        va = self.executor.alloc(array.nbytes)
        queue(self.executor, COPY, va, array.address, array.nbytes // 8, stream=stream)

        def look():
            data = self.executor.copy_out(va, array.nbytes, stream=stream)
            return np.frombuffer(data, array.dtype).reshape(array.shape)

        return look


def received_by(num_ranks):
    """Every rank's result of a dispatch of everybody's `tokens`, by the reference."""
    inputs = [tokens(rank) for rank in range(num_ranks)]
    return reference.dispatch(*map(list, zip(*inputs, strict=True)), E)


def bits(array):
    return np.asarray(array).view(np.uint16)


def done(event):
    return event.event._event.done


def let_run(executor, rounds=200):
    """Enough for every kernel that can go on."""
    for _ in range(rounds):
        executor.yield_()


def on_ranks(main, *args, num_ranks=2, on_gpu=True, **kwargs):
    """What main(side, buffer) returns on each rank; the other arguments are the buffer's."""
    def rank_main(comm):
        side = Side(comm, on_gpu)
        with Buffer(side.comm, *args, **kwargs) as buffer:
            return main(side, buffer)

    return run_ranks(rank_main, num_ranks, executor="emu")


def alone(main, **kwargs):
    """What main(side, buffer) returns on the only rank, with a GPU."""
    return on_ranks(main, num_ranks=1, **kwargs)[0]


# -- order on streams -------------------------------------------------------------------------

KINDS = ["layout", "dispatch", "cached", "combine"]


def prepared(side, buffer, kind, **options):
    """call(**arguments) -> (array, event), and what the array will be.  One rank: all rows come
    back."""
    x, idx, weights = tokens(0)
    rows, arguments = side.inputs(buffer, x, idx, weights)
    if kind == "layout":
        def call(**later):
            _, _, counts, _, event = buffer.get_dispatch_layout(arguments["topk_idx"], E,
                                                                **options, **later)
            return counts, event
        return call, np.bincount(idx.ravel(), minlength=E).astype(np.int32)
    if kind == "dispatch":
        def call(**later):
            result = buffer.dispatch(rows, **arguments, num_worst_tokens=T, **options, **later)
            return result[0], result[-1]
        return call, x
    recv_x, _, _, _, handle, _ = buffer.dispatch(rows, **arguments)
    if kind == "cached":
        def call(**later):
            result = buffer.dispatch(rows, handle=handle, **options, **later)
            return result[0], result[-1]
        return call, x

    def call(**later):
        out, _, event = buffer.combine(recv_x, handle, **options, **later)
        return out, event
    return call, x


@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_stream_waits_and_the_host_does_not(kind):
    def main(side, buffer):
        ex, stream = side.executor, side.executor.stream_create()
        call, want = prepared(side, buffer, kind)
        ex.synchronize()
        with side.blocked(stream):
            before = ex.counters()
            array, event = call(stream=stream)      # a host that waits never gets here
            look = side.copied(array, stream)
            assert ex.counters() == before          # no kernel has run
            assert event.event is None
            let_run(ex)
            assert not done(side.event(stream))
        np.testing.assert_array_equal(look(), want)

    alone(main, num_nvl_bytes=ROOM)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["wait", "with"])
def test_the_event_waits_in_place_of_the_callers_stream(kind, how):
    def main(side, buffer):
        ex, stream, before, cell = (side.executor, side.executor.stream_create(),
                                    side.executor.stream_create(), words(side.executor))
        call, want = prepared(side, buffer, kind)
        ex.synchronize()
        with side.blocked(before):
            array, event = call(stream=stream, previous_event=side.event(before),
                                async_finish=True)
            queue(ex, STEP, cell, 1, stream=stream)
            assert word(ex, cell, stream=stream) == 1       # the stream goes on
            assert not done(event)
            if how == "wait":
                event.current_stream_wait()
            else:
                with event as entered:
                    queue(ex, STEP, cell, 1, stream=stream)
                    assert word(ex, cell, stream=stream) == 2 and entered is event
            look = side.copied(array, stream)
            let_run(ex)
            assert not done(event) and not done(side.event(stream))
        np.testing.assert_array_equal(look(), want)
        assert done(event)

    alone(main, num_nvl_bytes=ROOM)


@pytest.mark.parametrize("kind", KINDS)
def test_previous_event_replaces_the_callers_stream(kind):
    """Neither what the stream has queued since the event, nor what it queues later, counts."""
    def main(side, buffer):
        ex, stream = side.executor, side.executor.stream_create()
        call, want = prepared(side, buffer, kind)
        ex.synchronize()
        start = side.event(stream)
        with side.blocked(stream):
            array, event = call(stream=stream, previous_event=start, async_finish=True)
            event.event._event.synchronize()                # while the stream is held
            look = side.copied(array, ex.stream_create())
            np.testing.assert_array_equal(look(), want)
            assert not done(side.event(stream))
        ex.synchronize(stream)

    alone(main, num_nvl_bytes=ROOM)


def test_a_call_without_previous_event_runs_after_the_callers_stream():
    def main(side, buffer):
        stream = side.executor.stream_create()
        call, _ = prepared(side, buffer, "dispatch")
        with side.blocked(stream):
            _, event = call(stream=stream, async_finish=True)
            let_run(side.executor)
            assert not done(event)
        event.event._event.synchronize()

    alone(main, num_nvl_bytes=ROOM)


@pytest.mark.parametrize("on_gpu", [True, False], ids=["gpu", "emu"])
@pytest.mark.parametrize("allocate", [False, True], ids=["caller", "comm"])
def test_a_chain_of_events(on_gpu, allocate):
    """Layout, dispatch, cached dispatch and combine, each behind the one before; one wait."""
    def main(comm):
        side = Side(comm, on_gpu)
        later = {"async_finish": True, "allocate_on_comm_stream": allocate}
        received = received_by(comm.size)
        with Buffer(side.comm, ROOM) as buffer:
            x, idx, weights = side.give(*tokens(comm.rank))
            event = Buffer.capture()
            per_rank, _, per_expert, in_rank, event = buffer.get_dispatch_layout(
                idx, E, previous_event=event, **later)
            recv_x, recv_idx, _, _, handle, event = buffer.dispatch(
                x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                num_tokens_per_expert=per_expert, topk_idx=idx, topk_weights=weights,
                num_worst_tokens=WORST, previous_event=event, **later)
            again, *_, event = buffer.dispatch(x, handle=handle, previous_event=event, **later)
            out, _, event = buffer.combine(again, handle, previous_event=event.event, **later)
            event.current_stream_wait()
            num = received[comm.rank].num_recv
            recv_x, recv_idx, again, out = map(side.arrays.get, (recv_x, recv_idx, again, out))
            np.testing.assert_array_equal(bits(recv_x[:num]), bits(received[comm.rank].recv_x))
            np.testing.assert_array_equal(bits(again[:num]), bits(received[comm.rank].recv_x))
            np.testing.assert_array_equal(recv_idx[:num], received[comm.rank].recv_topk_idx)
            assert (recv_idx[num:] == -1).all()
            want = first(reference.combine([r.recv_x for r in received], received)[comm.rank])
            np.testing.assert_array_equal(bits(out), bits(want))

    run_ranks(main, 2, executor="emu")


@pytest.mark.parametrize("shares", [True, False])
def test_results_are_allocated_for_the_comm_stream(monkeypatch, shares):
    """So nothing that the caller's stream has queued has to be over: it is held all the time.  A
    library that cannot tell an array's memory of a second stream allocates for the caller's."""
    monkeypatch.setattr(Device, "shares", shares)

    def main(side, buffer):
        stream = side.executor.stream_create()
        call, want = prepared(side, buffer, "combine")
        start = side.event(stream)
        with side.blocked(stream):
            for allocate in (False, True):
                array, event = call(stream=stream, previous_event=start, async_finish=True,
                                    allocate_on_comm_stream=allocate)
                assert array.stream == (buffer.get_comm_stream().cuda_stream
                                        if allocate and shares else stream)
                event.event._event.synchronize()
                look = side.copied(array, side.executor.stream_create())
                np.testing.assert_array_equal(look(), want)

    alone(main)


@pytest.mark.parametrize("later", [{}, {"async_finish": True}], ids=["wait", "event"])
@pytest.mark.parametrize("kind", ["dispatch", "cached"])
def test_copies_are_made_behind_the_call(monkeypatch, kind, later):
    """zero_copy=False: a copy that the caller's stream makes at once finds old bytes."""
    monkeypatch.setattr(PretendGpu, "copy_array",
                        lambda ex, dst, src, nbytes, stream:
                        queue(ex, COPY, dst, src, nbytes // 8, stream=stream))

    def main(side, buffer):
        ex, stream, before = (side.executor, side.executor.stream_create(),
                              side.executor.stream_create())
        call, want = prepared(side, buffer, kind)
        ex.synchronize()
        with side.blocked(before):
            array, event = call(stream=stream, previous_event=side.event(before), **later)
            event.current_stream_wait()
            look = side.copied(array, stream)
            let_run(ex)
        np.testing.assert_array_equal(look(), want)
        assert buffer.stats()["arena_used_bytes"] == 0

    alone(main, num_nvl_bytes=ROOM, zero_copy=False)


def test_capture_is_what_is_queued_by_now():
    """Without a CUDA context the point has passed: nothing to wait for, and a call takes it."""
    with Buffer.capture() as event:
        assert isinstance(event, EventOverlap) and isinstance(event.event, EventHandle)

    def main(side, buffer):
        call, want = prepared(side, buffer, "dispatch")
        array, event = call(previous_event=Buffer.capture(), async_finish=True)
        event.current_stream_wait()
        np.testing.assert_array_equal(array.numpy(), want)

    alone(main, num_nvl_bytes=ROOM)


# -- what a call keeps alive ------------------------------------------------------------------

def test_inputs_dropped_at_once_live_until_the_call_has_ended():
    def main(side, buffer):
        before = side.executor.stream_create()
        x, idx, weights = tokens(0)
        rows, arguments = side.inputs(buffer, x, idx, weights)
        side.executor.synchronize()
        with side.blocked(before):
            recv_x, *_, handle, event = buffer.dispatch(
                rows, **arguments, num_worst_tokens=T, previous_event=side.event(before),
                async_finish=True)
            refs = [weakref.ref(array) for name, array in arguments.items()
                    if name != "is_token_in_rank"] + [weakref.ref(rows)]
            del rows, arguments
            gc.collect()
            let_run(side.executor)
            assert all(ref() is not None for ref in refs)
        event.current_stream_wait()
        np.testing.assert_array_equal(recv_x.numpy(), x)
        assert done(event)
        buffer.check()                      # where the buffer finds out
        gc.collect()
        assert [ref() for ref in refs] == [None] * 5
        assert handle.is_token_in_rank.shape == (T, 1)      # the handle keeps that one

    alone(main, num_nvl_bytes=ROOM)


def test_inputs_of_combine_live_until_it_has_ended():
    def main(side, buffer):
        before = side.executor.stream_create()
        recv_x, _, weights, _, handle, _ = side.dispatch(buffer)
        y, bias = side.give(np.ones((T, H), BF16), np.ones((T, H), BF16))
        side.executor.synchronize()
        with side.blocked(before):
            out, _, event = buffer.combine(y, handle, topk_weights=weights, bias=bias,
                                           previous_event=side.event(before), async_finish=True)
            refs = [weakref.ref(array) for array in (y, bias, weights, handle.pos)]
            del y, bias, weights, handle, recv_x
            gc.collect()
            assert all(ref() is not None for ref in refs)
            assert buffer.stats()["arena_used_bytes"] > 0   # of the weights, which it pulls
        event.current_stream_wait()
        np.testing.assert_array_equal(out.numpy(), np.full((T, H), 2, BF16))
        buffer.check()
        gc.collect()
        assert [ref() for ref in refs] == [None] * 4
        assert buffer.stats()["arena_used_bytes"] == 0

    alone(main)


@pytest.mark.parametrize("on_gpu", [True, False], ids=["gpu", "emu"])
def test_results_dropped_before_the_end(on_gpu):
    """Their slot is not free before the rows of this call have come."""
    def main(side, buffer):
        x, arguments = side.inputs(buffer, *tokens(buffer.rank))
        for _ in range(3):
            buffer.dispatch(x, **arguments, num_worst_tokens=WORST, async_finish=True)
        gc.collect()
        assert buffer.stats()["arena_used_bytes"] >= 3 * WORST * H * 2
        side.comm.barrier()                 # nobody waits for the calls
        buffer.check()
        gc.collect()
        assert buffer.stats()["arena_used_bytes"] == 0
        side.check_round(buffer)

    on_ranks(main, ROOM, on_gpu=on_gpu)


def test_a_buffer_dropped_with_a_call_in_flight():
    """Its arrays stay as long as kernels use them: on the CPU executor, to the end of the run."""
    def main(comm):
        side = Side(comm, on_gpu=False)
        buffer = Buffer(comm)
        buffer.get_dispatch_layout(tokens(0)[1], E, async_finish=True)
        del buffer
        gc.collect()
        let_run(side.executor)

    run_ranks(main, 2, executor="emu")


def test_a_buffer_left_with_a_call_in_flight():
    """By an exception; the other rank's call ends with an error, and no kernel faults."""
    def main(comm):
        side = Side(comm, on_gpu=False)
        with pytest.raises(KeyError), Buffer(comm, ROOM, timeout_s=0.5) as buffer:
            side.check_round(buffer)
            if comm.rank:
                let_run(comm.executor)
            else:
                side.dispatch(buffer, num_worst_tokens=WORST, async_finish=True)
                raise KeyError
            error = raised(side.dispatch, buffer)
            assert isinstance(error, DeepEPTimeoutError) and error.peer == 0, error
            raise KeyError
        del buffer
        gc.collect()
        let_run(comm.executor)
        comm.barrier()

    run_ranks(main, 2, executor="emu")


# -- the CPU executor: the wait is the host's -------------------------------------------------

def test_several_calls_in_flight():
    """Nothing has run when they return; each event ends its own call and those before."""
    def main(side, buffer):
        received = received_by(side.comm.size)[buffer.rank]
        x, arguments = side.inputs(buffer, *tokens(buffer.rank))
        before, start = side.comm.executor.counters(), side.comm.executor.now
        calls = [buffer.dispatch(x, **arguments, num_worst_tokens=WORST, async_finish=True)
                 for _ in range(5)]
        # this rank's kernels have not run an instruction, whatever the other rank's did
        assert side.comm.executor.counters() == before and side.comm.executor.now == start
        assert not any(done(call[-1]) for call in calls)
        side.comm.barrier()
        calls[2][-1].current_stream_wait()
        assert [done(call[-1]) for call in calls[:3]] == [True] * 3
        calls[4][-1].current_stream_wait()
        for recv_x, *_ in calls:
            np.testing.assert_array_equal(bits(recv_x[:received.num_recv]),
                                          bits(received.recv_x))

    on_ranks(main, ROOM, on_gpu=False)


def test_mappings_end_with_the_call():
    """Arrays of NumPy are mapped while a kernel may use them, and no longer."""
    def main(comm):
        side = Side(comm, on_gpu=False)
        mapped = set()

        class Watching(type(comm.executor)):
            def map_array(self, *args):
                dptr = super().map_array(*args)
                mapped.add(dptr)
                return dptr

            def unmap(self, dptr):
                mapped.remove(dptr)
                super().unmap(dptr)

        comm.executor = Watching(comm.executor.world, comm.rank, arch=comm.executor.arch)
        with Buffer(comm, ROOM) as buffer:
            x, arguments = side.inputs(buffer, *tokens(comm.rank))
            assert not mapped                           # layout has ended
            recv_x, *_, handle, event = buffer.dispatch(
                x, **arguments, num_worst_tokens=WORST, async_finish=True)
            held = len(mapped)
            # x, top-k twice, membership, counts twice, pos, rank_prefix, the handle's recv_src_idx
            assert held == 9
            out, _, last = buffer.combine(recv_x, handle, async_finish=True)
            assert len(mapped) == held + 3
            event.current_stream_wait()
            assert len(mapped) <= 3
            last.current_stream_wait()
            assert not mapped
            # what the call used may go: no kernel looks at it any more
            del x, arguments, handle, out, recv_x
            gc.collect()
            side.check_round(buffer)
            assert not mapped
            side.dispatch(buffer, num_worst_tokens=WORST, async_finish=True)
            comm.barrier()
        assert not mapped                               # destroy() waits

    run_ranks(main, 2, executor="emu")


def test_layout_results_are_complete_after_the_wait():
    def main(comm):
        with Buffer(comm) as buffer:
            idx = tokens(comm.rank)[1]
            want = buffer.get_dispatch_layout(idx, E)
            assert want[-1].event is None
            *got, event = buffer.get_dispatch_layout(idx, E, async_finish=True)
            assert not done(event)
            with event:
                pass
            for a, b in zip(got, want[:-1], strict=True):
                np.testing.assert_array_equal(a, b)

    run_ranks(main, 2, executor="emu")


def test_events_of_a_buffer_that_is_gone():
    def main(comm):
        side = Side(comm, on_gpu=False)
        with Buffer(comm, ROOM) as buffer:
            recv_x, *_, event = side.dispatch(buffer, num_worst_tokens=WORST, async_finish=True)
        event.current_stream_wait()
        num = received_by(comm.size)[comm.rank].num_recv
        np.testing.assert_array_equal(bits(recv_x[:num]),
                                      bits(received_by(comm.size)[comm.rank].recv_x))

    run_ranks(main, 2, executor="emu")


# -- errors that a later call raises ----------------------------------------------------------

ON = [pytest.param(True, id="gpu"), pytest.param(False, id="emu")]


def combine_of_different_handles(side, buffer):
    results = [side.dispatch(buffer) for _ in range(2)]
    recv_x, _, _, _, handle, _ = results[side.comm.rank]
    buffer.combine(recv_x, handle, **side.later)
    return RankMismatchError, "handle: "


def cached_dispatch_of_different_handles(side, buffer):
    handles = [side.dispatch(buffer)[4] for _ in range(2)]
    buffer.dispatch(*side.give(tokens(0)[0]), handle=handles[side.comm.rank], **side.later)
    return RankMismatchError, "handle: "


def worst_case_of_different_hidden(side, buffer):
    hidden = H << side.comm.rank
    side.dispatch(buffer, *tokens(side.comm.rank, hidden=hidden), num_worst_tokens=WORST,
                  **side.later)
    return RankMismatchError, "hidden: "


def worst_cases_of_different_size(side, buffer):
    side.dispatch(buffer, num_worst_tokens=WORST + side.comm.rank, **side.later)
    return RankMismatchError, "num_worst_tokens: "


def worst_case_too_small(side, buffer):
    side.dispatch(buffer, num_worst_tokens=1, **side.later)
    return CapacityError, "num_worst_tokens: must be at least "


def worst_case_without_room(side, buffer):
    side.dispatch(buffer, num_worst_tokens=1000 * T, **side.later)
    return CapacityError, "arena_limit_bytes: "


def cached_dispatch_without_room(side, buffer):
    handle = side.dispatch(buffer)[4]
    held = buffer.get_combine_buffer((ROOM - buffer.stats()["arena_used_bytes"]) // H // 2, H)
    buffer.dispatch(*side.give(tokens(0)[0]), handle=handle, **side.later)
    del held
    return CapacityError, "arena_limit_bytes: "


def combine_without_room(side, buffer):
    recv_x, _, _, _, handle, _ = side.dispatch(buffer)
    held = buffer.get_combine_buffer((ROOM - buffer.stats()["arena_used_bytes"]) // H // 2, H)
    buffer.combine(*side.give(np.zeros(recv_x.shape, BF16)), handle, **side.later)
    del held
    return CapacityError, "arena_limit_bytes: "


FAILING = [combine_of_different_handles, cached_dispatch_of_different_handles,
           worst_case_of_different_hidden, worst_cases_of_different_size, worst_case_too_small,
           worst_case_without_room,
           cached_dispatch_without_room, combine_without_room]


@pytest.mark.parametrize("on_gpu", ON)
@pytest.mark.parametrize("told_by", ["dispatch", "check", "destroy"])
@pytest.mark.parametrize("fail", FAILING, ids=lambda f: f.__name__)
def test_all_ranks_learn_alike(fail, told_by, on_gpu):
    def main(comm):
        side = Side(comm, on_gpu)
        buffer = Buffer(side.comm, arena_limit_bytes=ROOM)
        x, arguments = side.inputs(buffer, *tokens(comm.rank))
        kind, text = fail(side, buffer)             # raises nothing
        gc.collect()
        if told_by == "dispatch":
            error = raised(buffer.dispatch, x, **arguments)
            assert buffer.last_launch == ()         # by the call that raised
        else:
            error = raised(getattr(buffer, told_by))
        assert type(error) is kind and str(error).startswith(text), error
        if kind is CapacityError:
            assert (error.needed_bytes is None) == text.startswith("num_worst"), error
        if told_by != "destroy":
            buffer.check()                          # told once
            side.check_round(buffer)
            buffer.destroy()
        assert isinstance(raised(buffer.check), DestroyedError)
        buffer.destroy()

    run_ranks(main, 2, executor="emu")


@pytest.mark.parametrize("on_gpu", ON)
def test_results_of_a_refused_call_are_as_large_as_asked_for(on_gpu):
    """And not past the end of a slot that was too small for them."""
    def main(side, buffer):
        x, arguments = side.inputs(buffer, *tokens(buffer.rank))
        recv_x, recv_idx, *_ = buffer.dispatch(x, **arguments, num_worst_tokens=1000 * T,
                                               **side.later)
        assert (recv_x.shape, recv_idx.shape) == ((1000 * T, H), (1000 * T, K))
        assert buffer.stats()["arena_used_bytes"] == 0
        assert isinstance(raised(buffer.check), CapacityError)

    on_ranks(main, arena_limit_bytes=ROOM, on_gpu=on_gpu)


@pytest.mark.parametrize("told_by", ["dispatch", "combine"])
def test_an_arena_that_grows_does_not_swallow_an_earlier_error(told_by):
    """The call that waits may find room by growth, but not for the one before."""
    def main(side, buffer):
        x, arguments = side.inputs(buffer, *tokens(buffer.rank))
        recv_x, _, _, _, handle, _ = buffer.dispatch(x, **arguments)
        before = buffer.stats()["arena_bytes"]
        buffer.dispatch(x, **arguments, num_worst_tokens=1, async_finish=True)
        if told_by == "dispatch":
            error = raised(buffer.dispatch, x, **arguments)
        else:
            error = raised(buffer.combine, recv_x, handle)
        assert isinstance(error, CapacityError), error
        assert buffer.stats()["arena_bytes"] == before
        side.check_round(buffer)

    on_ranks(main, on_gpu=False)


@pytest.mark.parametrize("on_gpu", ON)
def test_calls_between_the_error_and_its_report_are_carried_out(on_gpu):
    """A refused call moves no row and is over; those behind it are calls like any other."""
    def main(side, buffer):
        received = received_by(side.comm.size)
        x, arguments = side.inputs(buffer, *tokens(buffer.rank))
        recv_x, _, _, _, handle, _ = buffer.dispatch(x, **arguments)
        buffer.dispatch(x, **arguments, num_worst_tokens=1, **side.later)
        out, _, event = buffer.combine(recv_x, handle, **side.later)
        assert isinstance(raised(buffer.dispatch, x, **arguments), CapacityError)
        want = first(reference.combine([r.recv_x for r in received], received)[buffer.rank])
        np.testing.assert_array_equal(bits(side.arrays.get(out)), bits(want))
        side.check_round(buffer)

    on_ranks(main, ROOM, on_gpu=on_gpu)


def test_the_wait_for_an_event_raises_on_the_cpu_executor():
    def main(side, buffer):
        event = side.dispatch(buffer, num_worst_tokens=1, async_finish=True)[-1]
        with pytest.raises(CapacityError), event:
            pass
        side.check_round(buffer)

    on_ranks(main, ROOM, on_gpu=False)


def test_what_raises_in_the_block_counts_more():
    """The wait at the block's end comes all the same."""
    def main(side, buffer):
        event = side.dispatch(buffer, num_worst_tokens=WORST, async_finish=True)[-1]
        with pytest.raises(KeyError), event:
            raise KeyError
        assert done(event)

    on_ranks(main, ROOM, on_gpu=False)


def with_bad_expert(rank, bad_rank):
    x, idx, weights = tokens(rank)
    if rank == bad_rank:
        idx[5, 2] = E
    return x, idx, weights


TOPK = f"topk_idx: row 5 has expert {E}, accepted are -1 and [0, {E})"
FAULT = "rank 1 reported bad arguments; no rows were moved"


@pytest.mark.parametrize("on_gpu", ON)
@pytest.mark.parametrize("between", ["nothing", "combine"])
def test_bad_expert_of_a_layout_nobody_waited_for(between, on_gpu):
    """This rank's next dispatch says what, and the others' that."""
    def main(side, buffer):
        recv_x, _, _, _, handle, _ = side.dispatch(buffer)
        x, idx, weights = side.give(*with_bad_expert(buffer.rank, 1))
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, E, **side.later)
        if between == "combine":
            buffer.combine(recv_x, handle, **side.later)
        error = raised(buffer.dispatch, x, num_tokens_per_rank=per_rank,
                       is_token_in_rank=in_rank, num_tokens_per_expert=per_expert,
                       topk_idx=idx, topk_weights=weights)
        buffer.check()
        side.check_round(buffer)
        return type(error), str(error)

    results = on_ranks(main, ROOM, on_gpu=on_gpu, num_ranks=3)
    assert results == [(DeepEPError, FAULT), (ValueError, TOPK), (DeepEPError, FAULT)]


@pytest.mark.parametrize("on_gpu", ON)
@pytest.mark.parametrize("told_by", ["dispatch", "check"])
def test_bad_expert_that_a_worst_case_dispatch_has_told(told_by, on_gpu):
    """All ranks have something to raise then: none may go on alone into the next dispatch."""
    def main(side, buffer):
        x, idx, weights = side.give(*with_bad_expert(buffer.rank, 1))
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, E, **side.later)
        buffer.dispatch(x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                        num_tokens_per_expert=per_expert, topk_idx=idx, topk_weights=weights,
                        num_worst_tokens=3 * T, **side.later)
        error = raised(side.dispatch if told_by == "dispatch" else Buffer.check, buffer)
        assert not getattr(error, "__notes__", []), error.__notes__
        side.check_round(buffer)
        return type(error), str(error)

    results = on_ranks(main, ROOM, timeout_s=0.5, on_gpu=on_gpu, num_ranks=3)
    assert results == [(DeepEPError, FAULT), (ValueError, TOPK), (DeepEPError, FAULT)]


def bad_layout(side, buffer, idx, num_worst_tokens=0):
    """A layout, and a dispatch by it that tells the other ranks."""
    idx, = side.give(idx)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, E)
    if num_worst_tokens:
        x, _, weights = side.give(*tokens(side.comm.rank))
        buffer.dispatch(x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                        num_tokens_per_expert=per_expert, topk_idx=idx, topk_weights=weights,
                        num_worst_tokens=num_worst_tokens)


def test_bad_experts_told_and_untold():
    """The first layout's were told, so this rank raises with the others; then the second's are."""
    def main(comm):
        side, errors = Side(comm), []
        with Buffer(side.comm, ROOM, timeout_s=0.5) as buffer:
            bad = with_bad_expert(comm.rank, 1)[1]
            bad_layout(side, buffer, bad, WORST)
            bad_layout(side, buffer, bad)
            for _ in range(2):
                error = raised(side.dispatch, buffer)
                assert not getattr(error, "__notes__", []), error.__notes__
                errors.append((type(error), str(error)))
            side.check_round(buffer)
            return errors

    ours, theirs = run_ranks(main, 2, executor="emu")
    assert ours == [(DeepEPError, FAULT)] * 2 and theirs == [(ValueError, TOPK)] * 2


def test_many_bad_experts_leave_room_for_what_all_ranks_must_learn():
    """Of one layout, more than there are records: a mismatch behind them is still told here."""
    def main(comm):
        side, errors = Side(comm), []
        with Buffer(side.comm, ROOM, timeout_s=0.5) as buffer:
            recv_x, handle = zip(*[side.dispatch(buffer)[:5:4] for _ in range(2)], strict=True)
            idx = tokens(comm.rank)[1]
            bad_layout(side, buffer, idx + E if comm.rank else idx)
            buffer.combine(recv_x[comm.rank], handle[comm.rank])
            for _ in range(2):
                errors.append(type(raised(side.dispatch, buffer)))
            side.check_round(buffer)
            return errors

    assert run_ranks(main, 2, executor="emu") == [[RankMismatchError, DeepEPError],
                                                  [RankMismatchError, ValueError]]


def test_bad_expert_found_by_check_is_not_told_again():
    """check() is local: who raises there has said it, and no dispatch tells the others."""
    def main(side, buffer):
        buffer.get_dispatch_layout(*side.give(with_bad_expert(buffer.rank, 1)[1]), E)
        if buffer.rank == 1:
            error = raised(buffer.check)
            assert isinstance(error, ValueError) and str(error) == TOPK
        side.check_round(buffer)

    on_ranks(main, ROOM)


@pytest.mark.parametrize("on_gpu", ON)
def test_wrong_counts_of_a_worst_case_dispatch(on_gpu):
    def main(side, buffer):
        x, arguments = side.inputs(buffer, *tokens(buffer.rank))
        if buffer.rank == 1:
            counts = side.arrays.get(arguments["num_tokens_per_rank"])
            counts[0] += 1
            arguments["num_tokens_per_rank"] = side.arrays.give(counts)
        buffer.dispatch(x, **arguments, num_worst_tokens=WORST, **side.later)
        error = raised(side.dispatch, buffer)
        side.check_round(buffer)
        return type(error), str(error)[:21]

    assert on_ranks(main, ROOM, on_gpu=on_gpu) == [
        (DeepEPError, "rank 1 reported bad a"), (ValueError, "num_tokens_per_rank: ")]


# -- a rank that does not come ----------------------------------------------------------------

LIMIT_S = 1e-4
SECOND = 1_000_000_000      # in nanoseconds


def wait_for_the_limit(executor):
    until = executor.now + int(3e9 * LIMIT_S)
    while executor.now < until:
        executor.yield_()


@pytest.mark.parametrize("on_gpu", ON)
@pytest.mark.parametrize("kind", ["worst", "cached", "combine"])
@pytest.mark.parametrize("told_by", ["dispatch", "combine", "layout", "check"])
def test_timeout(told_by, kind, on_gpu):
    def main(side, buffer):
        recv_x, _, _, _, handle, _ = side.dispatch(buffer)
        x, arguments = side.inputs(buffer, *tokens(buffer.rank))
        side.executor.synchronize()
        calls = {
            "worst": lambda: buffer.dispatch(x, **arguments, num_worst_tokens=WORST,
                                             **side.later),
            "cached": lambda: buffer.dispatch(x, handle=handle, **side.later),
            "combine": lambda: buffer.combine(recv_x, handle, **side.later),
            "layout": lambda: buffer.get_dispatch_layout(arguments["topk_idx"], E,
                                                         **side.later),
            "dispatch": lambda: buffer.dispatch(x, **arguments),
            "check": buffer.check,
        }
        if buffer.rank == 0:
            calls[kind]()                       # returns
            if told_by in ("combine", "layout"):
                wait_for_the_limit(side.comm.executor)
            error = raised(calls[told_by])
            assert isinstance(error, DeepEPTimeoutError), error
            assert (error.rank, error.peer, error.wait) == (0, 1, "call record")
            if told_by != "check":
                assert buffer.last_launch == ()
            error = raised(calls["layout"])
            assert type(error) is DeepEPError and "reset()" in str(error)
        gc.collect()
        buffer.reset()
        buffer.check()
        side.check_round(buffer)
        buffer.combine(recv_x, handle)          # older results still serve
        recv_x = handle = calls = None
        gc.collect()
        buffer.check()
        assert buffer.stats()["arena_used_bytes"] == 0

    on_ranks(main, ROOM, timeout_s=LIMIT_S, on_gpu=on_gpu)


def test_the_limit_begins_when_the_call_runs():
    """What the callers' streams had queued before is nobody's delay."""
    def main(side, buffer):
        x, arguments = side.inputs(buffer, *tokens(buffer.rank))
        before = side.comm.executor.now
        queue(side.executor, DELAY, 4 * SECOND)
        recv_x = buffer.dispatch(x, **arguments)[0]
        assert side.comm.executor.now - before > 4 * SECOND
        np.testing.assert_array_equal(bits(side.arrays.get(recv_x)),
                                      bits(received_by(2)[buffer.rank].recv_x))

    on_ranks(main, ROOM, timeout_s=LIMIT_S)


def test_a_call_that_does_not_run_yet_learns_that_a_peer_has_given_up():
    def main(side, buffer):
        x, arguments = side.inputs(buffer, *tokens(buffer.rank))
        if buffer.rank == 1:
            queue(side.executor, DELAY, 4 * SECOND)
        error = raised(buffer.dispatch, x, **arguments)
        assert isinstance(error, DeepEPTimeoutError), error
        assert (error.rank, error.peer) == (buffer.rank, 1)
        buffer.reset()
        side.check_round(buffer)

    on_ranks(main, ROOM, timeout_s=LIMIT_S)


@pytest.mark.parametrize("on_gpu", ON)
@pytest.mark.parametrize("waiting", [0, 1])
def test_ranks_of_which_one_waits_for_the_totals(waiting, on_gpu):
    """Only that one could grow the arena, so it does not begin to."""
    def main(side, buffer):
        x, arguments = side.inputs(buffer, *tokens(buffer.rank))
        held = []
        while buffer.stats()["copied_bytes"] == 0:      # until nothing is free but landing
            held.append(side.dispatch(buffer, num_worst_tokens=WORST)[0])
        before = buffer.stats()["arena_bytes"]
        if buffer.rank == waiting:
            error = raised(buffer.dispatch, x, **arguments)
            assert buffer.stats()["arena_bytes"] == before
        else:
            buffer.dispatch(x, **arguments, num_worst_tokens=WORST, **side.later)
            error = raised(buffer.check)
        assert isinstance(error, RankMismatchError), error
        assert error.argument == "num_worst_tokens" and set(error.values) == {0, WORST}
        side.check_round(buffer)

    on_ranks(main, ROOM, on_gpu=on_gpu)


@pytest.mark.parametrize("on_gpu", ON)
@pytest.mark.parametrize("waiting", [0, 1])
def test_ranks_of_which_one_makes_room_before_the_call(waiting, on_gpu):
    """By a collective, to which the other does not come: its reset() ends the wait."""
    def main(side, buffer):
        x, arguments = side.inputs(buffer, *tokens(buffer.rank))
        if buffer.rank == waiting:
            assert isinstance(raised(buffer.dispatch, x, **arguments), DeepEPTimeoutError)
        else:
            error = raised(buffer.dispatch, x, **arguments, num_worst_tokens=WORST,
                           **side.later)
            assert type(error) is DeepEPError and "making room in buffer" in str(error)
        buffer.reset()
        side.check_round(buffer)

    on_ranks(main, timeout_s=LIMIT_S, on_gpu=on_gpu)


def test_destroy_raises_what_was_never_raised():
    """A timeout too; the buffer is gone all the same."""
    def main(comm):
        side = Side(comm, on_gpu=False)
        buffer = Buffer(comm, ROOM, timeout_s=LIMIT_S)
        if comm.rank == 0:
            side.dispatch(buffer, num_worst_tokens=WORST, async_finish=True)
            assert isinstance(raised(buffer.destroy), DeepEPTimeoutError)
        else:
            buffer.destroy()                        # made no call
        assert isinstance(raised(buffer.check), DestroyedError)

    def told(comm):
        side = Side(comm, on_gpu=False)
        buffer = Buffer(comm, ROOM, timeout_s=LIMIT_S)
        if comm.rank == 0:
            assert isinstance(raised(side.dispatch, buffer), DeepEPTimeoutError)
        buffer.reset()
        buffer.destroy()                            # nothing is left to say

    run_ranks(main, 2, executor="emu")
    run_ranks(told, 2, executor="emu")


def test_the_end_of_a_with_block_raises_it_too():
    def main(comm):
        side = Side(comm, on_gpu=False)
        with pytest.raises(CapacityError), Buffer(comm, ROOM) as buffer:
            side.dispatch(buffer, num_worst_tokens=1, async_finish=True)
        assert isinstance(raised(buffer.check), DestroyedError)
        # what ended the block counts more
        with pytest.raises(KeyError), Buffer(comm, ROOM) as buffer:
            side.dispatch(buffer, num_worst_tokens=1, async_finish=True)
            raise KeyError

    run_ranks(main, 2, executor="emu")
