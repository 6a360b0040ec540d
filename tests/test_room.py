# SPDX-License-Identifier: MIT
"""Room for rows: landing, growth, recycled segments, hard limits, arrays in the arena, no leaks."""

import ctypes
import gc
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

from deepep_ptx import Buffer, _symmetric, reference, run_ranks
from deepep_ptx._limits import MAX_SEGMENTS, MAX_TOPK
from deepep_ptx.config import get_size_hint, slot_bytes, staging_bytes
from deepep_ptx.errors import CapacityError
from tests.array_libraries import DeviceArrays, NumPyArrays, PretendGpu, TorchArrays
from tests.test_async import Side, bits
from tests.test_buffer_life import (
    BF16,
    E,
    H,
    K,
    T,
    dispatch,
    first,
    pulled_bytes,
    raised,
    tokens,
)

WIDE = 1024     # hidden of rows of which few fill a segment


def inputs_of(num_ranks, **shape):
    return [tokens(rank, **shape) for rank in range(num_ranks)]


def received_of(inputs):
    return reference.dispatch(*map(list, zip(*inputs, strict=True)), E)


def combined_of(received):
    """Every rank's combine of the rows as they came."""
    return [first(out) for out in reference.combine([r.recv_x for r in received], received)]


def assert_bits(got, want):
    np.testing.assert_array_equal(bits(got), bits(want))


def arena(buffer):
    stats = buffer.stats()
    return stats["arena_bytes"], stats["arena_segments"]


# -- an arena that grows ----------------------------------------------------------------------

@pytest.mark.parametrize(("on_gpu", "later"), [
    (False, {}), (False, {"async_finish": True}), (True, {}), (True, {"async_finish": True}),
], ids=["emu", "emu-event", "gpu", "gpu-event"])
def test_calls_with_a_handle_never_need_growth(on_gpu, later):
    """Whatever lives by then: results that find no room are copied out, pushed rows land."""
    def main(comm):
        side = Side(comm, on_gpu)
        inputs = inputs_of(comm.size, hidden=WIDE)
        received, mine = received_of(inputs), inputs[comm.rank]
        combined = combined_of(received)[comm.rank]
        with Buffer(side.comm) as buffer:
            x, arguments = side.inputs(buffer, *mine)
            recv_x, _, _, _, handle, _ = buffer.dispatch(x, **arguments)
            y = side.arrays.give(side.arrays.get(recv_x))       # elsewhere: it is pushed
            before, held = arena(buffer), []
            for _ in range(30):
                again, *_, event = buffer.dispatch(x, handle=handle, **later)
                held.append((again, event))
                out, _, event = buffer.combine(y, handle, **later)
                assert arena(buffer) == before
                held.append((out, event))
            assert buffer.stats()["copied_bytes"] > 0
            buffer.check()                                      # nothing was refused
            assert pulled_bytes(comm) == 0
            for i, (array, event) in enumerate(held):
                event.current_stream_wait()
                assert_bits(side.arrays.get(array), combined if i % 2
                            else received[comm.rank].recv_x)

    run_ranks(main, 2, executor="emu")


def test_landing_takes_the_most_that_a_handle_may_push():
    """Every token to as many ranks as it has choices, with the largest top-k's weights."""
    def main(comm):
        with Buffer(comm) as buffer:
            for num_tokens, hidden in ((3, 64), (T, 64), (4 * T, 512), (T, 64)):
                recv_x, *_ = dispatch(buffer, *tokens(comm.rank, num_tokens, hidden))
                landing = buffer.stats()["landing_bytes"]
                assert landing >= staging_bytes(num_tokens, hidden, K, comm.size)
            # and never becomes smaller while segments stay
            assert landing >= staging_bytes(4 * T, 512, K, comm.size)

    run_ranks(main, 2, executor="emu")


def test_a_rank_without_tokens_has_landing_for_what_it_receives():
    """A cached dispatch may have to land there."""
    def main(comm):
        inputs = [tokens(0, hidden=WIDE), tokens(1, num_tokens=0, hidden=WIDE)]
        received = received_of(inputs)
        with Buffer(comm) as buffer:
            recv_x, _, _, _, handle, _ = dispatch(buffer, *inputs[comm.rank])
            before = arena(buffer)
            held = [buffer.dispatch(inputs[comm.rank][0], handle=handle)[0] for _ in range(60)]
            for again in held:
                assert_bits(again, received[comm.rank].recv_x)
            assert arena(buffer) == before
            return buffer.stats()["copied_bytes"]

    copied = run_ranks(main, 2, executor="emu")
    assert copied[1] > 0


@pytest.mark.parametrize("drop", ["each", "some"])
def test_segments_are_recycled(monkeypatch, drop):
    """Growing sizes, more of them than there can be segments, while results are dropped."""
    monkeypatch.setattr(_symmetric, "GROWTH_STEP", 128)      # so few tokens need so many
    sizes = [2 << i for i in range(MAX_SEGMENTS + 4)]

    def main(comm):
        kept, seen = [], []
        with Buffer(comm) as buffer:
            for i, num_tokens in enumerate(sizes):
                inputs = inputs_of(comm.size, num_tokens=num_tokens)
                result = dispatch(buffer, *inputs[comm.rank])
                received = received_of(inputs)[comm.rank]
                assert_bits(result[0], received.recv_x)
                kept.append((result, received))
                if drop == "each" or i % 3:
                    kept.pop(0)
                del result, received
                seen.append(arena(buffer))
            for result, received in kept:
                assert_bits(result[0], received.recv_x)
        return seen

    largest = slot_bytes(2 * sizes[-1], H, K, 2, 0, 8) + staging_bytes(sizes[-1], H, K, 2)
    for seen in run_ranks(main, 2, executor="emu", checks="off"):
        segments = [number for _, number in seen]
        assert max(segments) <= MAX_SEGMENTS
        assert any(b < a for a, b in zip(segments, segments[1:], strict=False)), segments
        # What was too small stays below what is needed, and each segment is as large as all before.
        assert seen[-1][0] <= 6 * largest, (seen, largest)


def test_an_arena_whose_segments_are_all_in_use_cannot_grow():
    def main(comm):
        with Buffer(comm) as buffer:
            held = []
            for _ in range(MAX_SEGMENTS):
                buffer._symmetric.grow(1)
                held.append(buffer._core.reserve(buffer.stats()["arena_bytes"] // 2, 0))
            assert buffer.stats()["arena_segments"] == MAX_SEGMENTS
            with pytest.raises(CapacityError, match="all the segments that it can have"):
                buffer._symmetric.grow(1)
            assert buffer.stats()["arena_segments"] == MAX_SEGMENTS
            held.pop()
            buffer._symmetric.grow(1)
            dispatch(buffer, *tokens(comm.rank))

    run_ranks(main, 2, executor="emu")


def test_an_old_handle_finds_landing_after_segments_were_recycled():
    """The dispatch of few rows that comes first makes landing for the many of the handle."""
    def main(comm):
        many = inputs_of(comm.size, num_tokens=64, hidden=WIDE)
        with Buffer(comm) as buffer:
            handle = dispatch(buffer, *many[comm.rank])[4]
            handle = without_slot(handle)
            gc.collect()
            landing = buffer.stats()["landing_bytes"]
            for _ in range(MAX_SEGMENTS + 1):
                buffer._symmetric.grow(1)
            assert buffer.stats()["arena_segments"] < MAX_SEGMENTS     # recycled
            few = dispatch(buffer, *tokens(comm.rank, hidden=WIDE))
            assert buffer.stats()["landing_bytes"] >= landing
            # all that is free goes, as results that live would take it
            held = []
            for step in (1 << 20, 1 << 14, 128):
                while True:
                    try:
                        held.append(buffer._core.reserve(step << 6, 0))
                    except CapacityError:
                        break
            before = arena(buffer)
            again = buffer.dispatch(many[comm.rank][0], handle=handle)[0]
            assert_bits(again, received_of(many)[comm.rank].recv_x)
            assert arena(buffer) == before and few[4].num_recv > 0

    def without_slot(handle):
        """recv_src_idx is a view into the arena."""
        return type(handle)._of(handle[0], vars(handle) | {
            "recv_src_idx": np.array(handle.recv_src_idx)})

    run_ranks(main, 2, executor="emu")


# -- a hard limit -----------------------------------------------------------------------------

NUM_RANKS, EVERY = 3, 32        # experts: as many as the largest top-k has choices


def to_every_rank(rank, num_tokens, hidden):
    """x, topk_idx of 32 choices on 33 experts of 3 ranks, and weights."""
    rng = np.random.default_rng(rank)
    idx = np.tile(np.arange(MAX_TOPK), (num_tokens, 1))
    return (rng.standard_normal((num_tokens, hidden)).astype(BF16), idx,
            rng.random(idx.shape, dtype=np.float32))


@pytest.mark.parametrize("on_gpu", [False, True], ids=["emu", "gpu"])
@pytest.mark.parametrize("short", [0, 128])
def test_the_size_hint_is_what_the_worst_case_takes(short, on_gpu):
    """Every token to every rank, all rows and the weights of 32 choices pushed: no byte less."""
    num_tokens, hidden, num_experts = 5, 136, 33
    inputs = [to_every_rank(rank, num_tokens, hidden) for rank in range(NUM_RANKS)]
    limit = get_size_hint(num_tokens, hidden, MAX_TOPK, NUM_RANKS)

    def main(comm):
        side = Side(comm, on_gpu)
        received = reference.dispatch(*map(list, zip(*inputs, strict=True)), num_experts)
        with Buffer(side.comm, arena_limit_bytes=limit - short) as buffer:
            x, idx, weights = side.give(*inputs[comm.rank])
            per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, num_experts)
            recv_x, _, recv_weights, _, handle, _ = buffer.dispatch(
                x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                num_tokens_per_expert=per_expert, topk_idx=idx, topk_weights=weights,
                num_worst_tokens=NUM_RANKS * num_tokens)
            y, y_weights = side.give(*map(side.arrays.get, (recv_x, recv_weights)))
            assert_bits(side.arrays.get(recv_x), received[comm.rank].recv_x)
            try:
                out, out_weights, _ = buffer.combine(y, handle, topk_weights=y_weights)
                buffer.check()
            except CapacityError as error:
                return error.needed_bytes
            assert pulled_bytes(comm) == 0
            want = reference.combine([r.recv_x for r in received], received,
                                     [r.recv_topk_weights for r in received])[comm.rank]
            assert_bits(side.arrays.get(out), want[0])
            np.testing.assert_array_equal(side.arrays.get(out_weights), want[1])
            return None

    assert run_ranks(main, NUM_RANKS, executor="emu") == [limit if short else None] * NUM_RANKS


def test_a_worst_case_slot_that_just_does_not_fit():
    def main(comm, nbytes):
        with Buffer(comm, arena_limit_bytes=nbytes) as buffer:
            try:
                dispatch(buffer, *tokens(comm.rank), num_worst_tokens=2 * T)
            except CapacityError as error:
                return error.needed_bytes
            return None

    slot = slot_bytes(2 * T, H, K, 2, 0, 8)
    assert run_ranks(main, 2, slot, executor="emu") == [None] * 2
    assert run_ranks(main, 2, slot - 128, executor="emu") == [slot] * 2


@pytest.mark.parametrize("on_gpu", [False, True], ids=["emu", "gpu"])
def test_a_hard_limit_serves_any_number_of_live_results(on_gpu):
    """Of calls of one size, in any order of death."""
    def main(comm):
        side, rng, held = Side(comm, on_gpu), np.random.default_rng(8), []
        inputs = inputs_of(comm.size)
        received = received_of(inputs)
        with Buffer(side.comm, arena_limit_bytes=get_size_hint(T, H, K, comm.size)) as buffer:
            for _ in range(25):
                result = side.dispatch(buffer, *inputs[comm.rank])
                y = side.arrays.give(side.arrays.get(result[0]))
                out = buffer.combine(y, result[4])[0]
                assert_bits(side.arrays.get(out), combined_of(received)[comm.rank])
                held.append((result, received[comm.rank].recv_x))
                if rng.random() < 0.3:
                    held.pop(int(rng.integers(len(held))))
            for result, want in held:
                assert_bits(side.arrays.get(result[0]), want)
            assert buffer.stats()["copied_bytes"] > 0
            assert arena(buffer) == (buffer.arena_limit_bytes, 1)
            del result, held
            gc.collect()
            assert buffer.stats()["arena_used_bytes"] == 0

    run_ranks(main, 2, executor="emu")


# -- arrays in the arena ----------------------------------------------------------------------

LIBRARIES = [pytest.param(NumPyArrays, False, id="numpy"),
             pytest.param(TorchArrays, False, id="torch"),
             pytest.param(DeviceArrays, True, id="device")]


def on(comm, library, on_gpu):
    """(group, arrays) of a library."""
    if library is TorchArrays:
        pytest.importorskip("torch")
    comm = PretendGpu.of(comm) if on_gpu else comm
    return comm, library(comm.executor)


def give_and_dispatch(buffer, arrays, rank):
    return dispatch(buffer, *map(arrays.give, tokens(rank)))


@pytest.mark.parametrize(("library", "on_gpu"), LIBRARIES)
@pytest.mark.parametrize("like", [False, True], ids=["newest", "like"])
def test_combine_buffer(library, on_gpu, like):
    """Of the newest call's library; combine reads it where it is; the last view frees it."""
    if library is TorchArrays:
        pytest.importorskip("torch")

    def main(comm):
        comm, arrays = on(comm, library, on_gpu)
        received = received_of(inputs_of(comm.size))
        with Buffer(comm, 1 << 20) as buffer:
            recv_x, _, _, _, handle, _ = give_and_dispatch(buffer, arrays, comm.rank)
            rows = arrays.get(recv_x)
            del recv_x
            used = buffer.stats()["arena_used_bytes"]
            y = buffer.get_combine_buffer(*rows.shape,
                                          like=arrays.give(rows[:1].copy()) if like else None)
            nbytes = -(-rows.nbytes // 128) * 128
            assert buffer.stats()["arena_used_bytes"] == used + nbytes
            assert type(y) is type(arrays.give(rows)) and tuple(y.shape) == rows.shape
            arrays.store(y, rows)
            out = buffer.combine(y, handle)[0]
            assert_bits(arrays.get(out), combined_of(received)[comm.rank])
            assert pulled_bytes(comm) > 0
            view = y[1:2] if hasattr(y, "__getitem__") else y
            del y
            gc.collect()
            assert buffer.stats()["arena_used_bytes"] == used + nbytes
            del view
            gc.collect()
            assert buffer.stats()["arena_used_bytes"] == used

    run_ranks(main, 2, executor="emu")


def test_combine_buffer_without_room_says_what_would_do():
    """That size carries the same sequence of calls."""
    def main(comm, nbytes):
        with Buffer(comm, arena_limit_bytes=nbytes) as buffer:
            recv_x, _, _, _, handle, _ = dispatch(buffer, *tokens(comm.rank))
            rows, used = len(recv_x), buffer.stats()["arena_used_bytes"]
            try:
                y = buffer.get_combine_buffer(60, H)
            except CapacityError as error:
                assert str(error).startswith("arena_limit_bytes: ")
                needed = max(comm.allgather(error.needed_bytes))
                buffer.combine(np.array(recv_x), handle)    # an ordinary array does
                return needed
            y[:rows] = recv_x
            buffer.combine(y[:rows], handle)
            assert pulled_bytes(comm) > 0 and used > 0
            return None

    limit = 2 * slot_bytes(2 * T, H, K, 2, 0, 8)        # the result stays
    needed = run_ranks(main, 2, limit, executor="emu")
    assert needed[0] > limit
    assert run_ranks(main, 2, needed[0], executor="emu") == [None, None]


def test_combine_buffer_in_an_arena_that_grows():
    """It takes what is free and never lands; without a segment there is no room."""
    def main(comm):
        with Buffer(comm) as buffer:
            error = raised(buffer.get_combine_buffer, 1, H)
            assert isinstance(error, CapacityError) and error.needed_bytes == 128
            assert buffer.get_combine_buffer(0, H).shape == (0, H)
            recv_x, _, _, _, handle, _ = dispatch(buffer, *tokens(comm.rank))
            y = buffer.get_combine_buffer(*recv_x.shape)
            y[:] = recv_x
            out = buffer.combine(y, handle)[0]
            assert_bits(out, combined_of(received_of(inputs_of(comm.size)))[comm.rank])
            free = buffer.stats()["arena_bytes"] // (2 * H)
            assert isinstance(raised(buffer.get_combine_buffer, free, H), CapacityError)

    run_ranks(main, 2, executor="emu")


@pytest.mark.parametrize(("library", "on_gpu"), [LIBRARIES[0], LIBRARIES[2]])
def test_local_buffer_tensor(library, on_gpu):
    """It looks at the bytes where results lie, and holds no slot."""
    def main(comm):
        comm, arrays = on(comm, library, on_gpu)
        with Buffer(comm, 1 << 16) as buffer:
            recv_x, *rest = give_and_dispatch(buffer, arrays, comm.rank)
            want = arrays.get(recv_x)
            first = buffer.stats()["landing_bytes"]         # the first result is behind it
            look = buffer.get_local_buffer_tensor(BF16, want.shape, first)
            assert look.dtype == BF16 and tuple(look.shape) == want.shape
            if not on_gpu:          # elsewhere nobody has written the rest yet
                assert_bits(look, want)
                assert np.shares_memory(look, recv_x)
                recv_x[0, 0] = 3
                assert look[0, 0] == 3
            second = buffer.get_local_buffer_tensor(BF16, (H,), offset=first + 2 * H)
            assert_bits(arrays.get(second), want[1])
            everything = buffer.get_local_buffer_tensor("uint8")
            assert everything.shape == (1 << 16,)
            assert buffer.get_local_buffer_tensor(np.int64, offset=8).shape == ((1 << 13) - 1,)
            assert buffer.get_local_buffer_tensor(np.int64, offset=1 << 16).shape == (0,)
            del recv_x, rest
            gc.collect()
            assert buffer.stats()["arena_used_bytes"] == 0

    run_ranks(main, 2, executor="emu")


@pytest.mark.parametrize(("library", "on_gpu"), LIBRARIES)
def test_every_view_keeps_the_slot(library, on_gpu):
    if library is TorchArrays:
        pytest.importorskip("torch")

    def main(comm):
        comm, arrays = on(comm, library, on_gpu)
        with Buffer(comm, zero_copy=True) as buffer:
            for keep in range(3):
                recv_x, recv_idx, recv_weights, _, handle, _ = give_and_dispatch(
                    buffer, arrays, comm.rank)
                ref = weakref.ref(recv_x)
                kept = [recv_x, recv_idx, recv_weights][keep]
                del recv_x, recv_idx, recv_weights, handle
                gc.collect()
                assert buffer.stats()["arena_used_bytes"] > 0
                assert (ref() is None) == (keep != 0)
                if library is NumPyArrays:
                    kept = memoryview(kept.view(np.uint8)[1:])
                elif library is TorchArrays:
                    kept = kept[1:].flatten()
                gc.collect()
                assert buffer.stats()["arena_used_bytes"] > 0
                del kept
                gc.collect()
                assert buffer.stats()["arena_used_bytes"] == 0

    run_ranks(main, 2, executor="emu")


# -- nothing is left behind -------------------------------------------------------------------

class mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]


def allocated_bytes():
    """What C and Python have allocated, as glibc counts it; 0 where there is no such count."""
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        return 0
    function.restype = mallinfo2
    return function().uordblks


class Ledger:
    """What a rank has allocated, less what the CPU executor keeps of each mapping that is gone: it
    never uses an address again."""

    def __init__(self, comm):
        self.comm = comm
        self.last = 0
        data = np.zeros(8, np.uint8)
        address = data.__array_interface__["data"][0]
        allocated = [allocated_bytes()]
        for _ in range(4):
            for _ in range(500):
                comm.executor.unmap(comm.executor.map_array(address, 8, True, "num_tokens"))
            allocated.append(allocated_bytes())
        # some time a table doubles
        self.each = min(np.diff(allocated)) / 500
        self.step = comm.executor.alloc(8)
        self.step = comm.executor.alloc(8) - self.step
        self.mark()

    def mark(self):
        """Bytes since the last mark, of all ranks; collective."""
        gc.collect()
        self.comm.barrier()
        va = self.comm.executor.alloc(8)
        self.comm.executor.free(va)
        num_mapped = sum(self.comm.allgather(va // self.step))
        now = allocated_bytes() - self.each * num_mapped
        self.comm.barrier()
        since, self.last = now - self.last, now
        return since


def rounds(buffer, inputs, count, *, on_result=lambda result: None):
    """Layout, dispatch, cached dispatch and combines, pulled and pushed, waited for or not."""
    x, idx, weights = inputs
    for i in range(count):
        later = {"async_finish": True} if i % 2 else {}
        *layout, event = buffer.get_dispatch_layout(idx, E, **later)
        event.current_stream_wait()
        recv_x, recv_idx, recv_weights, _, handle, event = buffer.dispatch(
            x, num_tokens_per_rank=layout[0], is_token_in_rank=layout[3],
            num_tokens_per_expert=layout[2], topk_idx=idx, topk_weights=weights, **later)
        again, *_, event = buffer.dispatch(x, handle=handle, previous_event=event, **later)
        out, _, event = buffer.combine(again, handle, previous_event=event, **later)
        out, _, event = buffer.combine(out[:0] if len(again) == 0 else np.array(recv_x), handle,
                                       topk_weights=recv_weights, previous_event=event, **later)
        if i % 3 == 0:
            event.current_stream_wait()     # else a later call finds out
        on_result((recv_x, recv_idx, again, handle, out))


@pytest.mark.parametrize(("num_ranks", "count"), [(1, 1200), (2, 320)])
def test_many_calls_leave_nothing(num_ranks, count):
    """Neither slots, nor segments, nor an event, a block or a mapping of each call."""
    def main(comm):
        inputs = tokens(comm.rank, num_tokens=2, hidden=8, num_topk=1)
        with Buffer(comm) as buffer:
            rounds(buffer, inputs, 20)
            before, ledger, since = arena(buffer), Ledger(comm), []
            for _ in range(4):
                rounds(buffer, inputs, count // 4)
                buffer.check()
                since.append(ledger.mark() / (comm.size * count // 4))
                assert buffer.stats()["arena_used_bytes"] == 0
                assert not buffer._in_flight and arena(buffer) == before
            return since

    for since in run_ranks(main, num_ranks, executor="emu", checks="off"):
        assert min(since) < 64, since


def test_python_keeps_nothing_of_calls():
    def main(comm):
        inputs = tokens(comm.rank, num_tokens=2, hidden=8, num_topk=1)
        with Buffer(comm) as buffer:
            rounds(buffer, inputs, 10)
            buffer.check()
            gc.collect()
            tracemalloc.start()
            try:
                before = tracemalloc.get_traced_memory()[0]
                rounds(buffer, inputs, 400)
                buffer.check()
                gc.collect()
                return tracemalloc.get_traced_memory()[0] - before
            finally:
                tracemalloc.stop()

    (grown,) = run_ranks(main, 1, executor="emu", checks="off")
    assert grown < 32 * 400


@pytest.mark.parametrize("by", ["any order", "another thread"])
def test_results_that_die_late(by):
    """Results of many calls, dropped in any order while calls go on; all slots are free then."""
    def main(comm):
        rng, held = np.random.default_rng(comm.rank), []
        pile, stop = [], threading.Event()

        def drop():
            while not stop.wait(1e-4):
                while pile:
                    pile.pop()
            pile.clear()

        def on_result(result):
            held.extend(result)
            while len(held) > 40:
                dying = held.pop(int(rng.integers(len(held))))
                if by == "another thread":
                    pile.append(dying)

        thread = threading.Thread(target=drop)
        thread.start()
        try:
            with Buffer(comm) as buffer:
                rounds(buffer, tokens(comm.rank, hidden=256), 150, on_result=on_result)
                held.clear()
                stop.set()
                thread.join()
                buffer.check()
                gc.collect()
                assert buffer.stats()["arena_used_bytes"] == 0
                assert buffer.stats()["arena_segments"] <= MAX_SEGMENTS
                assert buffer.stats()["arena_bytes"] <= 1 << 23
                received = received_of(inputs_of(comm.size, hidden=256))
                recv_x = dispatch(buffer, *tokens(comm.rank, hidden=256))[0]
                assert_bits(recv_x, received[comm.rank].recv_x)
        finally:
            stop.set()
            thread.join()

    run_ranks(main, 2, executor="emu", checks="off")


def test_buffers_leave_nothing():
    """Made, used, and destroyed or dropped, one after the other in one run."""
    def main(comm):
        def some(count):
            for i in range(count):
                buffer = Buffer(comm, (i % 2) << 20)
                rounds(buffer, tokens(comm.rank, hidden=64), 2)
                buffer.check()
                comm.barrier()
                if i % 3:
                    buffer.destroy()
                del buffer

        some(6)
        ledger, since = Ledger(comm), []
        for _ in range(4):
            some(6)
            since.append(ledger.mark() / (6 * comm.size))
        return since

    for since in run_ranks(main, 2, executor="emu", checks="off"):
        assert min(since) < 1024, since


# -- small results and large ones ----------------------------------------------------------------

def test_small_results_leave_room_for_the_largest_seen():
    """In a hard limit for one large call and its combine, many small results live beside it."""
    large, small, hidden = 24, 2, 64
    def main(comm):
        with Buffer(comm, arena_limit_bytes=get_size_hint(large, hidden, K, 2)) as buffer:
            kept = [dispatch(buffer, *tokens(comm.rank, large, hidden))[4]]
            for _ in range(60):
                kept.append(dispatch(buffer, *tokens(comm.rank, small, hidden))[0])
            recv_x, _, _, _, handle, _ = dispatch(buffer, *tokens(comm.rank, large, hidden))
            rows = np.array(recv_x)
            out = buffer.combine(rows, handle)[0]
            return len(kept), np.array(out), buffer.stats()["copied_bytes"] > 0

    inputs = [tokens(rank, large, hidden) for rank in range(2)]
    received = reference.dispatch(*map(list, zip(*inputs, strict=True)), E)
    want = reference.combine([r.recv_x for r in received], received)
    for rank, (number, out, copied) in enumerate(run_ranks(main, 2, executor="emu")):
        assert number == 61 and copied
        assert_bits(out, first(want[rank]))
