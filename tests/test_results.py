# SPDX-License-Identifier: MIT
"""What results are: views, tensors of torch's own, copies; and what outlives them."""

import gc
import warnings
import weakref

import numpy as np
import pytest

from deepep_ptx import Buffer, _results, _symmetric, reference, run_ranks
from deepep_ptx._limits import MAX_SEGMENTS
from deepep_ptx.arrays import DeviceArray, library
from deepep_ptx.arrays.device_array import Device
from deepep_ptx.config import staging_bytes
from deepep_ptx.errors import CapacityError, DeepEPError, RankMismatchError
from tests.array_libraries import TorchArrays
from tests.faults import short_of_memory
from tests.test_async import Side
from tests.test_buffer_life import E, H, K, T, dispatch, first, pulled_bytes, raised, tokens
from tests.test_room import arena, assert_bits, combined_of, inputs_of, received_of

ON = [pytest.param(False, id="emu"), pytest.param(True, id="gpu")]
LAYERS = 58
MANY = 1 << 15         # hidden, of which a few rows are as large as the smallest arena


# -- torch ------------------------------------------------------------------------------------

def test_torch_results_are_ordinary_tensors():
    """Each can be freed by its storage, and the others stay; views are for who asks for them."""
    torch = pytest.importorskip("torch")

    def main(comm, zero_copy):
        arrays = TorchArrays(comm.executor)
        received = received_of(inputs_of(comm.size))[comm.rank]
        with Buffer(comm, zero_copy=zero_copy) as buffer:
            results = dispatch(buffer, *map(arrays.give, tokens(comm.rank)))
            again = buffer.dispatch(arrays.give(tokens(comm.rank)[0]), handle=results[4])[0]
            tensors = [*results[:3], results[4].recv_src_idx, again]
            wanted = [received.recv_x, received.recv_topk_idx, received.recv_topk_weights,
                      received.recv_src_idx, received.recv_x]
            for tensor, want in zip(tensors, wanted, strict=True):
                assert_bits(arrays.get(tensor.clone()), want)
            resizable = [tensor.untyped_storage().resizable() for tensor in tensors]
            if zero_copy is None:
                while tensors:
                    freed, _ = tensors.pop(), wanted.pop()
                    freed.untyped_storage().resize_(0)
                    for tensor, want in zip(tensors, wanted, strict=True):
                        assert_bits(arrays.get(tensor.clone()), want)
            return resizable, buffer.stats()["copied_bytes"]

    for resizable, copied in run_ranks(main, 2, None, executor="emu"):
        assert all(resizable) and copied > 0
    for resizable, copied in run_ranks(main, 2, True, executor="emu"):
        assert resizable == [False] * 3 + [True, False] and copied == 0
    assert torch.__version__


@pytest.mark.parametrize("num_scales", [1, 3, 45])
@pytest.mark.parametrize("later", [{}, {"async_finish": True}], ids=["wait", "event"])
def test_copies_of_rows_of_any_size(later, num_scales):
    """Whole vectors, and the bytes behind the last one."""
    def main(comm):
        _, idx, weights = tokens(comm.rank)
        rng = np.random.default_rng(comm.rank)
        x = (rng.integers(0, 256, (T, 48), np.uint8),
             rng.integers(0, 256, (T, 2 * num_scales), np.uint8))
        everybody = comm.allgather((x, idx, weights))
        received = reference.dispatch(*map(list, zip(*everybody, strict=True)), E)[comm.rank]
        with Buffer(comm, zero_copy=False) as buffer:
            for _ in range(2):          # without a guess how many rows there will be, and with one
                recv_x, recv_idx, recv_weights, _, handle, event = dispatch(
                    buffer, x, idx, weights, **later)
                event.current_stream_wait()
                again, *_, event = buffer.dispatch(x, handle=handle, **later)
                event.current_stream_wait()
                for got in (recv_x, again):
                    for part, want in zip(got, received.recv_x, strict=True):
                        np.testing.assert_array_equal(part, want)
                np.testing.assert_array_equal(recv_idx, received.recv_topk_idx)
                np.testing.assert_array_equal(recv_weights, received.recv_topk_weights)
                np.testing.assert_array_equal(handle.recv_src_idx, received.recv_src_idx)

    run_ranks(main, 3, executor="emu")


@pytest.mark.parametrize("sizes", [(2, 64, 2, 3), (64, 2, 60, 66, 1, 0, 5)])
@pytest.mark.parametrize("zero_copy", [None, False])
def test_a_wrong_guess_of_the_rows(sizes, zero_copy):
    """What was made for more rows, or for fewer, is made again."""
    def main(comm):
        with Buffer(comm, zero_copy=zero_copy) as buffer:
            for num_tokens in sizes:
                inputs = inputs_of(comm.size, num_tokens=num_tokens)
                received = received_of(inputs)[comm.rank]
                recv_x, recv_idx, _, _, handle, _ = dispatch(buffer, *inputs[comm.rank])
                assert_bits(recv_x, received.recv_x)
                np.testing.assert_array_equal(recv_idx, received.recv_topk_idx)
                np.testing.assert_array_equal(handle.recv_src_idx, received.recv_src_idx)

    run_ranks(main, 2, executor="emu")


# -- handles ----------------------------------------------------------------------------------

@pytest.mark.parametrize("on_gpu", ON)
@pytest.mark.parametrize("start", [0, 1 << 18])
def test_handles_keep_nothing_of_the_arena(start, on_gpu):
    """Each layer keeps the handle of its last dispatch, through passes of few tokens and many."""
    def main(comm):
        side, handles = Side(comm, on_gpu), [None] * LAYERS
        with Buffer(side.comm, start) as buffer:
            for num_tokens in (2, 48, 2):
                inputs = inputs_of(comm.size, num_tokens=num_tokens)
                combined = combined_of(received_of(inputs))[comm.rank]
                for layer in range(LAYERS):
                    recv_x, _, _, _, handles[layer], _ = side.dispatch(buffer, *inputs[comm.rank])
                    out = buffer.combine(recv_x, handles[layer])[0]
                    del recv_x
                assert_bits(side.arrays.get(out), combined)
                gc.collect()
                assert buffer.stats()["arena_used_bytes"] == 0
            return arena(buffer)

    one = 2 * 2 * 48 * (2 * H + 12 * K + 4)         # rows of both ranks, and as many in landing
    for nbytes, segments in run_ranks(main, 2, executor="emu"):
        assert nbytes <= max(2 * start, 4 * one + (4 << 20)) and segments <= 3


@pytest.mark.parametrize("on_gpu", ON)
@pytest.mark.parametrize("kind", ["cached", "combine"])
@pytest.mark.parametrize("old", ["alive", "destroyed"])
def test_a_handle_of_another_buffer(old, kind, on_gpu):
    """Of the same group: room is made for it on all ranks."""
    def main(comm):
        side = Side(comm, on_gpu)
        inputs = inputs_of(comm.size, num_tokens=64, hidden=512)
        received = received_of(inputs)
        before = Buffer(side.comm)
        recv_x, _, _, _, handle, _ = side.dispatch(before, *inputs[comm.rank])
        y = side.arrays.give(side.arrays.get(recv_x))
        if old == "destroyed":
            before.destroy()
        with Buffer(side.comm) as buffer:
            for _ in range(2):
                if kind == "cached":
                    again = buffer.dispatch(side.give(inputs[comm.rank][0])[0], handle=handle,
                                            **side.later)[0]
                    buffer.check()
                    assert_bits(side.arrays.get(again), received[comm.rank].recv_x)
                else:
                    out = buffer.combine(y, handle, **side.later)[0]
                    buffer.check()
                    assert_bits(side.arrays.get(out), combined_of(received)[comm.rank])
            size = arena(buffer)
        if old == "alive":
            before.destroy()
        return size

    sizes = run_ranks(main, 2, executor="emu")
    assert sizes[0] == sizes[1] and sizes[0][1] == 1


@pytest.mark.parametrize("kind", ["cached", "combine"])
def test_handles_of_different_buffers(kind):
    """Of the first call of each, with as many rows: ranks that mix them up find out."""
    def main(comm):
        x, idx, weights = tokens(comm.rank)
        with Buffer(comm) as one, Buffer(comm) as two, Buffer(comm) as buffer:
            handles = [dispatch(one, x, idx, weights)[4], dispatch(two, x, idx[::-1].copy(),
                                                                   weights)[4]]

            def call(handle):
                if kind == "cached":
                    return buffer.dispatch(x, handle=handle)
                return buffer.combine(np.ones((handle.num_recv, H), x.dtype), handle)

            error = raised(call, handles[comm.rank])
            assert isinstance(error, RankMismatchError) and error.argument == "handle", error
            call(handles[0])

    run_ranks(main, 2, executor="emu")


@pytest.mark.parametrize("kind", ["cached", "combine"])
def test_ranks_of_which_one_makes_room(kind):
    """Where their rows differ in width, and one rank's have room: both get errors, and a reset
    makes the buffer usable."""
    def main(comm):
        x, idx, weights = tokens(comm.rank)
        wide = 64 * H if comm.rank else H
        with Buffer(comm, timeout_s=0.05) as buffer:
            *_, handle, _ = dispatch(buffer, x, idx, weights)
            if kind == "cached":
                error = raised(buffer.dispatch, np.zeros((T, wide), x.dtype), handle)
            else:
                error = raised(buffer.combine, np.zeros((handle.num_recv, wide), x.dtype), handle)
            assert isinstance(error, DeepEPError), error
            buffer.reset()
            recv_x = dispatch(buffer, x, idx, weights)[0]
            assert_bits(recv_x, received_of(inputs_of(comm.size))[comm.rank].recv_x)
            return type(error).__name__

    assert run_ranks(main, 2, executor="emu") == ["DeepEPTimeoutError", "DeepEPError"]


def test_room_that_cannot_be_made_leaves_the_buffer_as_it_was():
    def main(comm):
        inputs = inputs_of(comm.size)
        with Buffer(comm) as buffer:
            dispatch(buffer, *inputs[comm.rank])
            with short_of_memory(comm.executor, above=1 << 22):
                error = raised(dispatch, buffer, *inputs[comm.rank], combine_hidden=1 << 20)
            assert isinstance(error, (MemoryError, DeepEPError)), error
            assert "more bytes of the arena" in str(error)
            for _ in range(3):
                recv_x = dispatch(buffer, *inputs[comm.rank])[0]
                assert_bits(recv_x, received_of(inputs)[comm.rank].recv_x)

    run_ranks(main, 2, executor="emu")


@pytest.mark.parametrize("on_gpu", ON)
@pytest.mark.parametrize("hint", [0, 4 * H], ids=["learned", "hint"])
def test_combine_of_wider_rows(hint, on_gpu):
    """Room is made once, by a collective or by the hint; later dispatches make it themselves."""
    collectives = []

    class Counting:
        """The symmetric memory of a buffer, which takes down who makes room."""

        def __init__(self, symmetric):
            self.symmetric = symmetric

        def __getattr__(self, name):
            return getattr(self.symmetric, name)

        def ensure_landing(self, nbytes, *said):
            collectives.append(said)
            return self.symmetric.ensure_landing(nbytes, *said)

    def main(comm):
        side = Side(comm, on_gpu)
        inputs = inputs_of(comm.size)
        wide = [np.concatenate([r.recv_x] * 4, axis=1) for r in received_of(inputs)]
        want = first(reference.combine(wide, received_of(inputs))[comm.rank])
        with Buffer(side.comm) as buffer:
            buffer._room._symmetric = Counting(buffer._symmetric)
            for _ in range(3):
                handle = side.dispatch(buffer, *inputs[comm.rank], combine_hidden=hint)[4]
                y, = side.give(wide[comm.rank])
                out = buffer.combine(y, handle, **side.later)[0]
                buffer.check()
                assert_bits(side.arrays.get(out), want)
            assert buffer.stats()["landing_bytes"] >= staging_bytes(T, 4 * H, K, comm.size)

    run_ranks(main, 2, executor="emu")
    assert len(collectives) == (0 if hint else 2)           # one, of two ranks


def test_combine_hidden_is_the_same_on_all_ranks():
    def main(comm):
        with Buffer(comm) as buffer:
            error = raised(dispatch, buffer, *tokens(comm.rank), combine_hidden=comm.rank and 4 * H)
            assert isinstance(error, RankMismatchError), error
            dispatch(buffer, *tokens(comm.rank))
            return error.argument, error.values

    assert run_ranks(main, 2, executor="emu") == [("combine_hidden", (0, 4 * H)),
                                                  ("combine_hidden", (4 * H, 0))]


def test_segments_that_go_are_not_in_use(monkeypatch):
    """Room for wider rows is made behind a combine that nobody has waited for."""
    monkeypatch.setattr(_symmetric, "GROWTH_STEP", 128)

    def main(comm):
        side = Side(comm, on_gpu=True)
        inputs = inputs_of(comm.size, num_tokens=64, hidden=1024)
        received = received_of(inputs)
        with Buffer(side.comm) as buffer:
            handle = side.dispatch(buffer, *inputs[comm.rank])[4]
            gc.collect()
            outs = []
            for times in (4, 160):
                while buffer.stats()["arena_segments"] < MAX_SEGMENTS:
                    buffer._symmetric.grow(1)
                rows = [np.concatenate([r.recv_x] * times, axis=1) for r in received]
                y, = side.give(rows[comm.rank])
                outs.append((buffer.combine(y, handle)[0],
                             first(reference.combine(rows, received)[comm.rank])))
            buffer.check()
            for out, want in outs:
                assert_bits(side.arrays.get(out), want)

    run_ranks(main, 2, executor="emu")


def test_a_reset_makes_ranks_agree_on_room():
    """One rank has raised before it was about to make room with the others."""
    def main(comm):
        inputs = inputs_of(comm.size)
        wide = [np.concatenate([r.recv_x] * 8, axis=1) for r in received_of(inputs)]
        with Buffer(comm) as buffer:
            *_, handle, _ = dispatch(buffer, *inputs[comm.rank])
            buffer._room._row_bytes = comm.rank * 2 * 8 * H     # of a call that was left
            buffer.reset()
            *_, handle, _ = dispatch(buffer, *inputs[comm.rank])
            out = buffer.combine(wide[comm.rank], handle)[0]
            assert_bits(out, first(reference.combine(wide, received_of(inputs))[comm.rank]))

    run_ranks(main, 2, executor="emu")


def test_cached_dispatch_of_wider_rows():
    """Of four times the bytes, and with scales that the first had not."""
    def main(comm):
        inputs = inputs_of(comm.size)
        rng = np.random.default_rng(comm.rank)
        x = (rng.integers(0, 255, (T, 8 * H), np.uint8), rng.random((T, 40), np.float32))
        everybody = comm.allgather(x)
        with Buffer(comm) as buffer:
            *_, handle, _ = dispatch(buffer, *inputs[comm.rank])
            held = [buffer.dispatch(x, handle=handle)[0] for _ in range(6)]
            want = reference.cached_dispatch(everybody, received_of(inputs))[comm.rank]
            for got in held:
                for part, right in zip(got, want, strict=True):
                    np.testing.assert_array_equal(part, right)

    run_ranks(main, 2, executor="emu")


# -- room -------------------------------------------------------------------------------------

@pytest.mark.parametrize("on_gpu", ON)
@pytest.mark.parametrize("start", [0, 128, 1 << 12])
def test_worst_case_calls_find_room(start, on_gpu):
    """In an arena that starts with nothing, or too small; with a combine that pushes."""
    def main(comm):
        side = Side(comm, on_gpu)
        inputs = inputs_of(comm.size)
        received = received_of(inputs)
        with Buffer(side.comm, start) as buffer:
            kept = []
            for _ in range(5):
                recv_x, _, _, _, handle, event = side.dispatch(
                    buffer, *inputs[comm.rank], num_worst_tokens=2 * T, **side.later)
                event.current_stream_wait()
                y = side.arrays.give(side.arrays.get(recv_x))
                out = buffer.combine(y, handle, **side.later)[0]
                buffer.check()
                assert_bits(side.arrays.get(out), combined_of(received)[comm.rank])
                kept.append(recv_x)
            for recv_x in kept:
                num = received[comm.rank].num_recv
                assert_bits(side.arrays.get(recv_x)[:num], received[comm.rank].recv_x)

    run_ranks(main, 2, executor="emu")


def test_a_call_that_had_to_copy_makes_the_arena_grow():
    """Cached dispatches cannot grow it; the next call whose host waits does."""
    def main(comm):
        inputs = inputs_of(comm.size, hidden=MANY)
        x = inputs[comm.rank][0]
        with Buffer(comm) as buffer:
            *kept, handle, _ = dispatch(buffer, *inputs[comm.rank])
            copied = []
            for _ in range(6):
                again = buffer.dispatch(x, handle=handle)[0]
                copied.append(buffer.stats()["copied_bytes"])
                del again
                kept = dispatch(buffer, *inputs[comm.rank])[:3]
            return copied, len(kept)

    for copied, _ in run_ranks(main, 2, executor="emu"):
        assert 0 < copied[0] == copied[-1]


def test_an_arena_that_cannot_grow_copies(monkeypatch):
    """And asks libraries for what they keep, before it gives up."""
    asked = []
    monkeypatch.setattr(_symmetric, "give_back_caches", asked.append)

    def main(comm):
        inputs = inputs_of(comm.size, hidden=MANY)
        received = received_of(inputs)[comm.rank]
        with Buffer(comm) as buffer:
            held = [dispatch(buffer, *inputs[comm.rank])[0]]
            before = arena(buffer)
            with short_of_memory(comm.executor):
                held += [dispatch(buffer, *inputs[comm.rank])[0] for _ in range(4)]
                assert arena(buffer) == before and buffer.stats()["copied_bytes"] > 0
                for recv_x in held:
                    assert_bits(recv_x, received.recv_x)
                x, idx, weights = tokens(comm.rank, hidden=MANY)
                kept = weakref.ref(x)
                gc.disable()            # what a failed growth leaves is no cycle
                try:
                    dispatch(buffer, x, idx, weights)
                    del x
                    assert kept() is None
                finally:
                    gc.enable()
                error = raised(dispatch, buffer, *tokens(comm.rank, hidden=2 * MANY))
                assert isinstance(error, (MemoryError, DeepEPError)) and "no memory" in str(error)
            dispatch(buffer, *tokens(comm.rank, hidden=2 * MANY))       # and it grows after all

    run_ranks(main, 2, executor="emu")
    assert asked


def test_caches_that_libraries_give_back(monkeypatch):
    class Pool:
        freed = 0

        def free_all_blocks(self):
            Pool.freed += 1

    class Module:
        class cuda:
            emptied = 0

            @staticmethod
            def is_initialized():
                return True

            @classmethod
            def empty_cache(cls):
                cls.emptied += 1

        @staticmethod
        def get_default_memory_pool():
            return Pool()

    class Executor:
        in_host_memory = False

    monkeypatch.setitem(library.sys.modules, "torch", Module)
    monkeypatch.setitem(library.sys.modules, "cupy", Module)
    library.give_back_caches(Executor)
    assert (Module.cuda.emptied, Pool.freed) == (1, 1)
    Executor.in_host_memory = True
    library.give_back_caches(Executor)
    assert (Module.cuda.emptied, Pool.freed) == (1, 1)


def test_the_first_part_of_an_arena_stays():
    """get_local_buffer_tensor shows it, however the arena grows."""
    def main(comm):
        with Buffer(comm, 1 << 12) as buffer:
            buffer.get_local_buffer_tensor(np.uint8)[:] = 7
            for num_tokens in (8, 64, 256):
                dispatch(buffer, *tokens(comm.rank, num_tokens=num_tokens))
            assert buffer.stats()["arena_segments"] > 1
            look = buffer.get_local_buffer_tensor(np.uint8)
            assert look.shape == (1 << 12,)
            return (look == 7).any()

    run_ranks(main, 2, executor="emu")


# -- groups, and errors that nobody has raised ---------------------------------------------------

class Group:
    """A group that is neither ours nor equal to a copy of itself."""

    def __init__(self, comm):
        self.rank, self.size, self.executor = comm.rank, comm.size, comm.executor
        self.allgather, self.barrier = comm.allgather, comm.barrier


def test_the_group_is_the_one_that_was_given(monkeypatch):
    from deepep_ptx import comm as comms

    def main(comm):
        group = Group(comm)
        with Buffer(group) as buffer:
            assert buffer.group is group and buffer.group == group
            dispatch(buffer, *tokens(comm.rank))
            buffer.reset()

    run_ranks(main, 2, executor="emu")

    class Foreign:
        """Of torch: `as_comm` makes another object of it."""

        __module__ = "torch.distributed"

    def foreign(comm):
        group = Foreign()
        monkeypatch.setattr(comms, "from_torch", lambda given: comm)
        with Buffer(group) as buffer:
            assert buffer.group is group
            dispatch(buffer, *tokens(comm.rank))
        return True

    assert run_ranks(foreign, 1, executor="emu") == [True]


def refused(comm, **options):
    """A buffer with an error that nobody has raised."""
    buffer = Buffer(comm, **options)
    *_, event = dispatch(buffer, *tokens(comm.rank), num_worst_tokens=1, async_finish=True)
    buffer._core.settle()
    return buffer


def test_destroy_raises_what_nobody_has_raised():
    def main(comm):
        error = raised(refused(comm).destroy)
        assert isinstance(error, CapacityError) and "num_worst_tokens" in str(error)

    run_ranks(main, 2, executor="emu")


def test_a_finaliser_warns_of_what_nobody_has_raised():
    def main(comm):
        buffer = refused(comm)
        comm.barrier()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del buffer
            gc.collect()
        return [str(warning.message) for warning in caught]

    for rank, messages in enumerate(run_ranks(main, 2, executor="emu")):
        assert len(messages) == 1 and f"rank {rank}: " in messages[0], messages
        assert "CapacityError: num_worst_tokens: must be at least " in messages[0]


def test_a_block_that_an_exception_leaves_tells_of_both():
    def main(comm):
        try:
            with refused(comm) as buffer:
                assert pulled_bytes(comm) == 0 and buffer is not None
                raise KeyError("mine")
        except KeyError as error:
            return error.__notes__

    for notes in run_ranks(main, 2, executor="emu"):
        assert len(notes) == 1 and "num_worst_tokens: must be at least " in notes[0]


# -- lent results -----------------------------------------------------------------------------

ROW = 1 << 16           # hidden of rows of 128 KiB, 80 of which are lent


class StandIn:
    """A loan: a `DeviceArray` in place of torch's tensor."""

    def __init__(self, slots, array):
        self.slots, self.array = slots, array
        self.address, self.nbytes = array.address, array.nbytes

    def close(self):
        self.slots.closed += 1


class StandIns:
    """`torch_memory.LentSlots` for `DeviceArray`s."""

    of = {}             # rank -> the newest

    def __init__(self, core):
        self.core, self.closed, self.lent, self.slots = core, 0, [], []
        StandIns.of[core.rank] = self

    def collect(self, stream, follows):
        pass

    def leave(self):
        self.slots.clear()

    def lend(self, call, address, room, shape, dtype):
        array = DeviceArray(None, self.core.executor, address, shape, dtype)
        assert array.nbytes <= room
        self.lent.append(shape[0])
        return StandIn(self, array)

    def keep(self, loan, slot):
        assert slot.address == loan.address and slot.nbytes >= loan.nbytes
        self.slots.append(slot)
        return loan.array


@pytest.fixture
def lending(monkeypatch):
    monkeypatch.setattr(Device, "lends", True, raising=False)
    monkeypatch.setattr(Device, "ordinary", True)
    monkeypatch.setattr(_results, "LentSlots", StandIns)


def to_both(rank, num_tokens):
    """Every token to both of two ranks."""
    rng = np.random.default_rng(rank)
    idx = np.tile(np.array([0, E - 1]), (num_tokens, 1))
    return (rng.integers(0, 1 << 15, (num_tokens, ROW), np.int16), idx,
            np.ones(idx.shape, np.float32))


def test_large_results_are_lent(lending):
    """Before the totals are known if the guess does, else behind them; the rest are copies."""
    def main(comm):
        side = Side(comm, on_gpu=True)
        with Buffer(side.comm) as buffer:
            slots = StandIns.of[comm.rank]
            for num_tokens, lent, closed in ((48, [96], 0), (48, [102], 0), (60, [102, 120], 1),
                                             (8, [127], 1), (8, [], 1)):
                inputs = [to_both(rank, num_tokens) for rank in range(2)]
                want = received_of(inputs)[comm.rank]
                recv_x, recv_idx, _, _, handle, _ = side.dispatch(buffer, *inputs[comm.rank])
                assert (slots.lent, slots.closed) == (lent, closed), num_tokens
                np.testing.assert_array_equal(side.arrays.get(recv_x), want.recv_x)
                np.testing.assert_array_equal(side.arrays.get(recv_idx), want.recv_topk_idx)
                np.testing.assert_array_equal(side.arrays.get(handle.recv_src_idx),
                                              want.recv_src_idx)
                slots.slots.clear()
                if num_tokens == 60:
                    again = buffer.dispatch(*side.give(inputs[comm.rank][0]), handle=handle)[0]
                    assert slots.lent == [*lent, 120]
                    np.testing.assert_array_equal(side.arrays.get(again), want.recv_x)
                slots.lent.clear()
                slots.slots.clear()
            buffer.check()

    run_ranks(main, 2, executor="emu", checks="off")


def test_a_loan_of_a_call_that_is_refused_ends_with_it(lending):
    def main(comm):
        side = Side(comm, on_gpu=True)
        with Buffer(side.comm, arena_limit_bytes=30 << 20) as buffer:
            slots = StandIns.of[comm.rank]
            side.dispatch(buffer, *to_both(comm.rank, 48))
            slots.slots.clear()
            error = raised(side.dispatch, buffer, *to_both(comm.rank, 200))
            assert isinstance(error, CapacityError), error
            assert (slots.lent, slots.closed) == ([96, 102], 1)

    run_ranks(main, 2, executor="emu", checks="off")
