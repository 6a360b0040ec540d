# SPDX-License-Identifier: MIT
"""`zero_copy` of low-latency combine: rows come from the handle's own array, not from x."""

import copy
import gc
import weakref

import numpy as np
import pytest

from deepep_ptx import Buffer, reference, run_ranks
from deepep_ptx.arrays import BFLOAT16
from deepep_ptx.errors import DeepEPError, DestroyedError
from deepep_ptx.handle import LowLatencyHandle
from tests.array_libraries import DeviceArrays, NumPyArrays, PretendGpu, TorchArrays
from tests.low_latency import expert_output, make_inputs
from tests.test_buffer_life import raised

R, M, H, K, E = 2, 4, 128, 2, 4     # ranks, most tokens, hidden, choices, experts
SHAPE = E // R, R * M, H
LIBRARIES = {"NumPy": NumPyArrays, "torch": TorchArrays, "DeviceArray": DeviceArrays}


class Sent:
    """A dispatch of one rank, what its experts make of it, and what combine has to give."""

    def __init__(self, comm, buffer, library=NumPyArrays, seed=0):
        xs, idxs, weights = make_inputs(np.random.default_rng(seed), (M, M - 1), H, E, K)
        self.buffer, self.rank, self.arrays = buffer, comm.rank, library(comm.executor)
        self.idx, self.weights = (self.arrays.give(made[self.rank]) for made in (idxs, weights))
        self.nothing = self.arrays.give(np.zeros(SHAPE, BFLOAT16))
        _, _, self.handle, _, _ = buffer.low_latency_dispatch(
            self.arrays.give(xs[self.rank]), self.idx, M, E)
        received = reference.low_latency_dispatch(xs, idxs, M, E)
        ys = [expert_output(one.recv_x, one) for one in received]
        self.y = ys[self.rank]
        self.want = reference.low_latency_combine(ys, received, idxs, weights,
                                                  buffer.reduce)[self.rank]

    def fill(self, handle=None):
        """The array of the handle, with the experts' output in it."""
        made = self.buffer.get_next_low_latency_combine_buffer(handle or self.handle)
        self.arrays.store(made, self.y)
        return made

    def combine(self, handle=None, **options):
        """With an x of zeros."""
        return self.buffer.low_latency_combine(self.nothing, self.idx, self.weights,
                                               handle or self.handle, **options)

    def check(self, out):
        np.testing.assert_array_equal(self.arrays.get(out).view(np.uint16),
                                      self.want.view(np.uint16))


def on_ranks(main, library=NumPyArrays, num_ranks=R, **options):
    """main(comm, buffer) on every rank."""
    def rank_main(comm):
        comm = PretendGpu.of(comm) if library is DeviceArrays else comm
        with Buffer(comm, **{"low_latency_mode": True, "timeout_s": 1.0} | options) as buffer:
            return main(comm, buffer)

    return run_ranks(rank_main, num_ranks, executor="emu")


@pytest.mark.parametrize("library", LIBRARIES)
def test_rows_come_from_the_array_of_the_handle(library):
    if library == "torch":
        pytest.importorskip("torch")
    library = LIBRARIES[library]

    def main(comm, buffer):
        sent = Sent(comm, buffer, library)
        made = sent.fill()
        assert type(made) is type(sent.nothing) and tuple(made.shape) == SHAPE
        for options in ({}, {"return_recv_hook": True}, {"async_finish": True}):
            out, event, hook = sent.combine(zero_copy=True, **options)
            if hook is not None:
                hook()
            event.current_stream_wait()
            sent.check(out)
        # Without it they come from x, whatever was asked for.
        out, _, _ = sent.combine()
        assert not sent.arrays.get(out).astype(np.float32).any()
        # The array itself is as good an x as any.
        out, _, _ = buffer.low_latency_combine(made, sent.idx, sent.weights, sent.handle)
        sent.check(out)

    on_ranks(main, library)


def test_one_array_for_each_handle():
    """Whatever has become of the handle since."""
    def main(comm, buffer):
        first, second = Sent(comm, buffer, seed=1), Sent(comm, buffer, seed=2)
        made, other = first.fill(), second.fill()
        assert made is not other
        again = (first.handle, tuple(first.handle), list(first.handle), copy.copy(first.handle),
                 copy.deepcopy(tuple(first.handle)), LowLatencyHandle(first.handle),
                 (None, *first.handle[1:]))
        for handle in again:
            assert buffer.get_next_low_latency_combine_buffer(handle) is made
            first.check(first.combine(handle, zero_copy=True)[0])
        # Asked for of the items alone.
        third = Sent(comm, buffer, seed=3)
        third.fill(tuple(third.handle))
        third.check(third.combine(zero_copy=True)[0])
        second.check(second.combine(zero_copy=True)[0])

    on_ranks(main)


@pytest.mark.parametrize("options", [{"async_finish": True}, {"return_recv_hook": True}])
def test_it_lives_until_the_call_has_ended(options):
    def main(comm, buffer):
        sent = Sent(comm, buffer)
        made = weakref.ref(sent.fill())
        gc.collect()
        assert made() is not None           # the handle has it
        out, event, hook = sent.combine(zero_copy=True, **options)
        sent.handle = None
        gc.collect()
        assert made() is not None
        if hook is not None:
            hook()
        event.current_stream_wait()
        sent.check(out)
        del hook
        gc.collect()
        assert made() is None

    on_ranks(main)


def test_a_graph_reads_what_is_there_when_it_runs():
    def main(comm, buffer):
        sent = Sent(comm, buffer)
        sent.combine()
        made = sent.fill()
        made[...] = 0
        with comm.executor.capture() as graph:
            out, _, _ = sent.combine(zero_copy=True)
        sent.handle = None
        for fill in (True, False, True):
            made[...] = sent.y if fill else 0
            graph.replay()
            comm.executor.synchronize()
            if fill:
                sent.check(out)
            else:
                assert not out.astype(np.float32).any()
        buffer.check()

    on_ranks(main)


def test_asked_for_while_a_hook_is_due():
    """It is local."""
    def main(comm, buffer):
        sent = Sent(comm, buffer)
        _, _, handle, _, hook = buffer.low_latency_dispatch(
            np.zeros((1, H), BFLOAT16), np.zeros((1, K), np.int64) - 1, M, E,
            return_recv_hook=True)
        assert buffer.get_next_low_latency_combine_buffer(handle).shape == SHAPE
        sent.fill()
        hook()
        sent.check(sent.combine(zero_copy=True)[0])

    on_ranks(main)


def refused(error, text, call, *arguments, **options):
    caught = raised(call, *arguments, **options)
    assert type(caught) is error and str(caught).startswith(text), repr(caught)


def test_handles_that_are_none():
    def main(comm, buffer):
        sent = Sent(comm, buffer)
        take = buffer.get_next_low_latency_combine_buffer
        for handle in (None, (1, 2), sent.handle[:-1], sent.y):
            refused(TypeError, "handle: must be what low_latency_dispatch", take, handle)
        foreign = comm.allgather(sent.handle)[1 - comm.rank]
        refused(ValueError, f"handle: made by rank {1 - comm.rank}", take, foreign)
        sent.fill()
        buffer.reset()
        for call in (take, lambda handle: sent.combine(handle, zero_copy=True)):
            refused(DeepEPError, "handle: its dispatch came before a reset()", call, sent.handle)
        with Buffer(comm) as other:
            refused(ValueError, "low_latency_mode: must be True",
                    other.get_next_low_latency_combine_buffer, Sent(comm, buffer).handle)
        refused(DestroyedError, "the buffer was used after destroy()",
                other.get_next_low_latency_combine_buffer, sent.handle)

    on_ranks(main)


def test_of_another_group():
    def alone(comm, buffer):
        return buffer.low_latency_dispatch(np.zeros((1, H), BFLOAT16),
                                           np.zeros((1, K), np.int64) - 1, M, E)[2]

    handle, = on_ranks(alone, num_ranks=1)

    def main(comm, buffer):
        refused(ValueError, "handle: made by 1 ranks on executor 'emu', this buffer has 2",
                buffer.get_next_low_latency_combine_buffer, handle)

    on_ranks(main)


def test_x_is_checked_all_the_same():
    torch = pytest.importorskip("torch")

    def main(comm, buffer):
        sent = Sent(comm, buffer)
        sent.fill()
        for x, error, text in (
                (np.zeros(SHAPE, np.float32), TypeError, "x: dtype must be bfloat16"),
                (np.zeros((*SHAPE[:2], 2 * H), BFLOAT16), ValueError, "x: shape must be [2, 8, 1"),
                (None, TypeError, "x: takes a NumPy array")):
            sent.nothing = x
            refused(error, text, sent.combine, zero_copy=True)
        # The rows are of the library of the dispatch.
        for name in ("nothing", "idx", "weights"):
            setattr(sent, name, TorchArrays(comm.executor).give(
                getattr(Sent(comm, buffer), name)))
        refused(TypeError, "zero_copy: is a NumPy array while x is a torch array", sent.combine,
                zero_copy=True)

        sent = Sent(comm, buffer, TorchArrays)
        sent.fill().untyped_storage().resize_(0)
        refused(TypeError, "zero_copy: torch.Tensor has no memory", sent.combine, zero_copy=True)
        assert torch.is_tensor(sent.nothing)

    on_ranks(main)
