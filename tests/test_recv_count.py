# SPDX-License-Identifier: MIT
"""How many rows a worst-case dispatch has received: on the device, and for the host afterwards."""

import numpy as np
import pytest

from deepep_ptx import Buffer, run_ranks
from deepep_ptx.errors import CapacityError, DestroyedError
from tests.array_libraries import DeviceArrays, NumPyArrays, PretendGpu, TorchArrays
from tests.test_buffer_life import dispatch, tokens

R, WORST = 2, 64


def calls(comm, arrays, use, *, rounds=3, **options):
    """use(buffer, arrays, number of rows, handle, event) of dispatches of ever fewer tokens."""
    with Buffer(comm, 1 << 18) as buffer:
        for i in range(rounds):
            x, idx, weights = tokens(comm.rank, 12 - 3 * i)
            wanted = dispatch(buffer, x, idx, weights)[4].num_recv
            given = [arrays.give(array) for array in (x, idx, weights)]
            *_, handle, event = dispatch(buffer, *given, num_worst_tokens=WORST, **options)
            use(buffer, arrays, wanted, handle, event)


def counted(buffer, arrays, wanted, handle, event):
    count = arrays.get(handle.recv_count)
    assert count.dtype == np.int32 and count.tolist() == [wanted]
    assert handle.num_recv == WORST != buffer.count_received(handle) == wanted
    assert type(buffer.count_received(handle)) is int


@pytest.mark.parametrize("kind", [NumPyArrays, TorchArrays])
def test_of_host_memory(kind):
    if kind is TorchArrays:
        pytest.importorskip("torch")
    run_ranks(lambda comm: calls(comm, kind(comm.executor), counted), R, executor="emu")


def test_of_device_memory():
    def main(comm):
        comm = PretendGpu.of(comm)
        arrays = DeviceArrays(comm.executor)
        with Buffer(comm, 1 << 18) as buffer:
            x, idx, weights = map(arrays.give, tokens(comm.rank))
            wanted = dispatch(buffer, x, idx, weights)[4].num_recv
            *_, handle, event = dispatch(buffer, x, idx, weights, num_worst_tokens=WORST)
            counted(buffer, arrays, wanted, handle, event)
            assert handle.recv_count.address == handle[0].address + 4 * (R + comm.rank)

    run_ranks(main, R, executor="emu")


def test_the_host_waits_for_the_call():
    """Which is not over when it returns."""
    def use(buffer, arrays, wanted, handle, event):
        assert buffer.count_received(handle) == wanted
        assert handle.recv_count.tolist() == [wanted]
        event.current_stream_wait()

    run_ranks(lambda comm: calls(comm, NumPyArrays(comm.executor), use, async_finish=True), R,
              executor="emu")


def test_it_is_a_view():
    def use(buffer, arrays, wanted, handle, event):
        assert np.shares_memory(handle.recv_count, handle[0])
        assert not handle.recv_count.flags.writeable

    run_ranks(lambda comm: calls(comm, NumPyArrays(comm.executor), use), R, executor="emu")


def test_of_a_dispatch_that_was_refused():
    def main(comm):
        x, idx, weights = tokens(comm.rank)
        with Buffer(comm, 1 << 18) as buffer:
            *_, handle, _ = dispatch(buffer, x, idx, weights, num_worst_tokens=1,
                                     async_finish=True)
            with pytest.raises(ValueError, match="^handle: must be of a dispatch that was carr"):
                buffer.count_received(handle)
            with pytest.raises(CapacityError, match=r"^num_worst_tokens: must be at least"):
                buffer.check()

    run_ranks(main, R, executor="emu")


def test_bad_handles():
    def main(comm):
        inputs = tokens(comm.rank)
        with Buffer(comm) as buffer, Buffer(comm) as other:
            handle = dispatch(other, *inputs)[4]
            with pytest.raises(ValueError, match="^handle: must be of a dispatch of this buffer"):
                buffer.count_received(handle)
            for wrong in (None, 3, (), (1, 2)):
                with pytest.raises(TypeError, match="^handle: must be what dispatch returned"):
                    buffer.count_received(wrong)
        with pytest.raises(DestroyedError):
            buffer.count_received(handle)

    run_ranks(main, R, executor="emu")


# -- errors about the rows of a worst-case result -------------------------------------------------

def refused(comm, worst, limit):
    x, idx, weights = tokens(comm.rank)
    buffer = Buffer(comm, arena_limit_bytes=limit)
    try:
        dispatch(buffer, x, idx, weights, num_worst_tokens=worst[comm.rank])
    except CapacityError as error:
        return str(error), error.needed_bytes
    return None


def test_no_room_names_the_rows_that_are_to_be_held():
    """Not those that come, which may be far fewer."""
    for text, needed in run_ranks(refused, R, (600, 600), 1 << 14, executor="emu"):
        assert text.startswith("arena_limit_bytes: rank 0 has no room for 600 rows to be received;")
        assert run_ranks(refused, R, (600, 600), needed, executor="emu") == [None] * R


def test_too_few_worst_case_rows_are_told_first():
    """Where there is no room for the rows either: more room would not help."""
    for text, needed in run_ranks(refused, R, (1, 1), 1 << 7, executor="emu"):
        assert text.startswith("num_worst_tokens: must be at least ")
        assert needed is None


