# SPDX-License-Identifier: MIT
"""Slots, growth, errors that the device finds, abort and reset, the end."""

import contextlib
import gc

import ml_dtypes
import numpy as np
import pytest

from deepep_ptx import Buffer, leaving, reference, run_ranks, select
from deepep_ptx._emu_executor import EmuExecutor
from deepep_ptx.config import slot_bytes
from deepep_ptx.errors import (
    CapacityError,
    DeepEPError,
    DeepEPTimeoutError,
    DestroyedError,
    RankMismatchError,
)
from tests.faults import short_of_memory
from tests.weakened import Reader, copy_sources, weaken

BF16 = ml_dtypes.bfloat16
H, K, E, T = 64, 4, 12, 12
WIDE = 4096      # hidden of rows in several chunks


def tokens(rank, num_tokens=T, hidden=H, num_topk=K):
    """x, topk_idx and topk_weights of a rank."""
    rng = np.random.default_rng(rank)
    idx = np.argsort(rng.random((num_tokens, E)), axis=1)[:, :num_topk].copy()
    return (rng.standard_normal((num_tokens, hidden)).astype(BF16), idx,
            rng.random((num_tokens, num_topk), dtype=np.float32))


def dispatch(buffer, x, idx, weights, **changes):
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, E)
    arguments = {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank,
                 "num_tokens_per_expert": per_expert, "topk_idx": idx, "topk_weights": weights}
    return buffer.dispatch(x, **(arguments | changes))


def check_round(buffer, num_ranks, hidden=H):
    """One dispatch and combine, right on this rank."""
    inputs = [tokens(rank, hidden=hidden) for rank in range(num_ranks)]
    recv_x, recv_idx, recv_weights, _, handle, _ = dispatch(buffer, *inputs[buffer.rank])
    received = reference.dispatch(*map(list, zip(*inputs, strict=True)), E)
    np.testing.assert_array_equal(recv_x, received[buffer.rank].recv_x)
    np.testing.assert_array_equal(recv_idx, received[buffer.rank].recv_topk_idx)
    out, _, _ = buffer.combine(recv_x, handle)
    want = reference.combine([r.recv_x for r in received], received)
    np.testing.assert_array_equal(out.view(np.uint16), first(want[buffer.rank]).view(np.uint16))


def pulled_bytes(comm):
    """What kernels of this rank have loaded from other ranks' memory: rows that were pulled."""
    return comm.executor.counters()["peer_load_bytes"]


def first(result):
    return result[0] if isinstance(result, tuple) else result


def raised(call, *args, **kwargs):
    """The error of a call that must fail."""
    try:
        call(*args, **kwargs)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


# -- slots and growth -------------------------------------------------------------------------

def test_slot_is_free_when_its_last_view_dies():
    def main(comm):
        with Buffer(comm) as buffer:
            recv_x, recv_idx, recv_weights, _, handle, _ = dispatch(buffer, *tokens(comm.rank))
            used = [buffer.stats()["arena_used_bytes"]]
            row = recv_x[1:2].reshape(-1)[:3]
            del recv_x, recv_idx, recv_weights, handle
            gc.collect()
            used.append(buffer.stats()["arena_used_bytes"])
            del row
            used.append(buffer.stats()["arena_used_bytes"])
            return used

    for used in run_ranks(main, 2):
        assert used[0] > 0 and used[1] == used[0] and used[2] == 0


def test_slot_has_exactly_its_rows():
    def main(comm):
        with Buffer(comm, num_nvl_bytes=1 << 20) as buffer:
            recv_x, *rest = dispatch(buffer, *tokens(comm.rank))
            return len(recv_x), buffer.stats()["arena_used_bytes"]

    for rows, used in run_ranks(main, 2):
        sizes = rows * H * 2, rows * K * 8, rows * K * 4, rows * 4
        assert used == sum(-(-size // 128) * 128 for size in sizes)


def test_views_outlive_the_buffer_and_the_run():
    def main(comm):
        with Buffer(comm) as buffer:
            recv_x = dispatch(buffer, *tokens(comm.rank))[0]
            return recv_x, np.array(recv_x)

    for view, copy in run_ranks(main, 2):
        gc.collect()
        np.testing.assert_array_equal(view, copy)


def test_arena_grows():
    def main(comm):
        with Buffer(comm) as buffer:
            assert buffer.stats()["arena_bytes"] == 0
            kept = [dispatch(buffer, *tokens(comm.rank, hidden=4096))[0] for _ in range(24)]
            assert buffer.stats()["arena_segments"] > 1
            check_round(buffer, comm.size)
            return len(kept)

    assert run_ranks(main, 2) == [24, 24]


@pytest.mark.parametrize("step", ["alloc", "import_memory", "copy_in"])
def test_a_growth_that_one_rank_cannot_do_leaves_nothing(step):
    def main(comm):
        with Buffer(comm) as buffer:
            check_round(buffer, comm.size)
            before = buffer.stats()
            with contextlib.ExitStack() as stack:
                if comm.rank == 1:
                    stack.enter_context(short_of_memory(comm.executor, step))
                with pytest.raises((MemoryError, DeepEPError)) as caught:
                    buffer._symmetric.grow(1 << 22)
            assert buffer.stats() == before
            check_round(buffer, comm.size)
            kept = dispatch(buffer, *tokens(comm.rank, hidden=1 << 16))     # and it grows after all
            assert buffer.stats()["arena_segments"] > before["arena_segments"]
            return type(caught.value), str(caught.value), len(kept)

    ours, theirs = run_ranks(main, 2)
    assert ours[0] is DeepEPError and ours[1].startswith("rank 1 failed: MemoryError: ")
    assert theirs[0] is MemoryError
    for text in ours[1], theirs[1]:
        assert text.endswith("no memory")
        assert step != "alloc" or "no memory for 4194304 more bytes of the arena" in text


def test_without_zero_copy_results_are_copies():
    def main(comm):
        with Buffer(comm, zero_copy=False) as buffer:
            check_round(buffer, comm.size)
            stats = buffer.stats()
            assert pulled_bytes(comm) == 0
            return stats["arena_used_bytes"], stats["copied_bytes"]

    for used, copied in run_ranks(main, 2):
        assert used == 0 and copied > 0


@pytest.mark.parametrize("switch, form", [("1", "ld_relaxed_sys"), ("0", "ld_nc_na")])
def test_last_launch_names_the_variants(switch, form, monkeypatch):
    """DeepEP's switch is about load forms: a combine that pulls keeps its bulk copies."""
    monkeypatch.delenv("DEEPEP_PTX_POLICY", raising=False)
    monkeypatch.setenv("DISABLE_AGGRESSIVE_PTX_INSTRS", switch)

    def main(comm):
        with Buffer(comm) as buffer:
            recv_x, _, _, _, handle, _ = dispatch(buffer, *tokens(comm.rank))
            after_dispatch = buffer.last_launch
            buffer.combine(recv_x, handle)
            after_pull = buffer.last_launch
            buffer.combine(recv_x.copy(), handle)
            return after_dispatch, after_pull, buffer.last_launch

    for after_dispatch, after_pull, after_push in run_ranks(main, 2):
        # recv_src_idx, which the handle keeps, is copied
        assert after_dispatch == (f"ep_dispatch_vec_{form}", "ep_copy")
        assert after_pull == ("ep_combine_bulk",)
        assert after_push == (f"ep_combine_vec_{form}",)


# -- no room ----------------------------------------------------------------------------------

def test_capacity_error_says_what_would_do():
    def main(comm, limit):
        with Buffer(comm, arena_limit_bytes=limit) as buffer:
            if limit > 128:
                check_round(buffer, comm.size)
                return None
            error = raised(dispatch, buffer, *tokens(comm.rank))
            assert isinstance(error, CapacityError), error
            assert str(error).startswith("arena_limit_bytes: ")
            # Still usable: a call that needs no room.
            assert len(dispatch(buffer, *tokens(comm.rank, num_tokens=0))[0]) == 0
            return error.needed_bytes

    needed = run_ranks(main, 3, 128)
    assert len(set(needed)) == 1
    # Pull combine needs no staging, so dispatch's bytes do for both.
    run_ranks(main, 3, needed[0])


def test_an_arena_of_fixed_size_serves_any_number_of_live_results():
    """A result stays while as much room is left as it takes; else it is copied out."""
    def main(comm):
        x, idx, weights = tokens(comm.rank)
        with Buffer(comm, num_nvl_bytes=1 << 20) as buffer:
            kept = dispatch(buffer, x, idx, weights)
            slot = max(comm.allgather(buffer.stats()["arena_used_bytes"]))
        copied = []
        with Buffer(comm, arena_limit_bytes=2 * slot) as buffer:
            for _ in range(4):
                result = dispatch(buffer, x, idx, weights)
                copied.append(buffer.stats()["copied_bytes"])
                out = buffer.combine(np.array(result[0]), result[4])[0]     # pushed
                np.testing.assert_array_equal(
                    out, buffer.combine(result[0], result[4])[0])
                np.testing.assert_array_equal(result[0], kept[0])
                kept = [*kept, result]
        return copied

    for first, *others in run_ranks(main, 2):
        assert first == 0 < others[0] < others[1] < others[2]


def test_staging_too_small():
    """Worst-case results stay whatever is left."""
    def main(comm):
        x, idx, weights = tokens(comm.rank)
        slot = slot_bytes(2 * T, H, 4, 2, 0, 8)
        with Buffer(comm, arena_limit_bytes=slot) as buffer:
            recv_x, _, _, _, handle, _ = dispatch(buffer, x, idx, weights, num_worst_tokens=2 * T)
            error = raised(buffer.combine, np.array(recv_x), handle)
            assert isinstance(error, CapacityError), error
            buffer.combine(recv_x, handle)                # pulled: no staging
            return error.needed_bytes, buffer.arena_limit_bytes

    for needed, limit in run_ranks(main, 2):
        assert needed > limit


@pytest.mark.parametrize("num_worst_tokens", [1, 5])
def test_worst_tokens_too_few(num_worst_tokens):
    def main(comm):
        with Buffer(comm, num_nvl_bytes=1 << 20) as buffer:
            error = raised(dispatch, buffer, *tokens(comm.rank), num_worst_tokens=num_worst_tokens)
            assert isinstance(error, CapacityError), error
            assert buffer.stats()["arena_used_bytes"] == 0
            check_round(buffer, comm.size)
            return str(error)

    for text in run_ranks(main, 2):
        assert text.startswith("num_worst_tokens: must be at least ")


def test_growth_on_one_rank_only():
    def main(comm):
        return raised(Buffer, comm, arena_limit_bytes=128 if comm.rank else None)

    for error in run_ranks(main, 2):
        assert isinstance(error, RankMismatchError) and error.argument == "arena_limit_bytes"


@pytest.mark.parametrize("starts", [(0, 128), (1 << 16, 1 << 15)])
def test_arenas_start_with_the_most_that_any_rank_asks_for(starts):
    def main(comm):
        with Buffer(comm, num_nvl_bytes=starts[comm.rank]) as buffer:
            assert buffer.num_nvl_bytes == starts[comm.rank]
            sizes = buffer.stats()["arena_bytes"]
            check_round(buffer, comm.size)
            return sizes

    assert run_ranks(main, 2) == [max(starts)] * 2


def test_arena_limit_is_checked():
    def main(comm):
        for limit, text in ((100, "a multiple of 128"), (0, "at least num_nvl_bytes, 256"),
                            (128, "at least num_nvl_bytes, 256")):
            error = raised(Buffer, comm, 256, arena_limit_bytes=limit)
            assert isinstance(error, ValueError), error
            assert str(error).startswith(f"arena_limit_bytes: must be {text}"), error

    run_ranks(main, 1)


# -- ranks that disagree ----------------------------------------------------------------------

@pytest.mark.parametrize(("argument", "values", "change"), [
    ("hidden", ("128 bytes", "256 bytes"), {"hidden": 128}),
    ("num_topk", (4, 3), {"num_topk": 3}),
])
def test_different_shapes(argument, values, change):
    def main(comm):
        with Buffer(comm) as buffer:
            error = raised(dispatch, buffer, *tokens(comm.rank, **(change if comm.rank else {})))
            assert isinstance(error, RankMismatchError), error
            check_round(buffer, comm.size)
            return error.argument, error.ranks, error.values

    assert run_ranks(main, 2) == [(argument, (0, 1), values), (argument, (1, 0), values[::-1])]


def test_different_calls():
    def main(comm):
        with Buffer(comm) as buffer:
            recv_x, _, _, _, handle, _ = dispatch(buffer, *tokens(comm.rank))
            if comm.rank:
                error = raised(buffer.combine, recv_x, handle)
            else:
                error = raised(dispatch, buffer, *tokens(comm.rank))
            assert isinstance(error, RankMismatchError), error
            check_round(buffer, comm.size)
            return error.argument, error.values

    assert run_ranks(main, 2) == [("call", ("dispatch", "combine")),
                                  ("call", ("combine", "dispatch"))]


def test_handles_of_different_calls():
    def main(comm):
        with Buffer(comm) as buffer:
            results = [dispatch(buffer, *tokens(comm.rank)) for _ in range(2)]
            recv_x, _, _, _, handle, _ = results[comm.rank]
            error = raised(buffer.combine, recv_x, handle)
            assert isinstance(error, RankMismatchError), error
            return error.argument

    assert run_ranks(main, 2) == ["handle", "handle"]


# -- contents that only the device sees -------------------------------------------------------

@pytest.mark.parametrize("expert", [E, -2, 1 << 40])
def test_expert_out_of_range(expert):
    def main(comm):
        with Buffer(comm) as buffer:
            _, idx, _ = tokens(comm.rank)
            idx[5, 2] = expert
            error = raised(buffer.get_dispatch_layout, idx, E)
            check_round(buffer, comm.size)
            return error

    for error in run_ranks(main, 2):
        assert isinstance(error, ValueError)
        assert str(error) == (f"topk_idx: row 5 has expert {expert}, accepted are -1 and [0, {E})")


def test_wrong_rank_counts():
    def main(comm):
        with Buffer(comm) as buffer:
            x, idx, weights = tokens(comm.rank)
            changes = {}
            if comm.rank == 1:
                per_rank = buffer.get_dispatch_layout(idx, E)[0]
                changes["num_tokens_per_rank"] = per_rank + np.array([0, 0, 1], np.int32)
            error = raised(dispatch, buffer, x, idx, weights, **changes)
            check_round(buffer, comm.size)
            return type(error), str(error)

    results = run_ranks(main, 3)
    assert results[1][0] is ValueError and results[1][1].startswith("num_tokens_per_rank: ")
    for rank in (0, 2):
        assert results[rank][0] is DeepEPError and "rank 1 reported" in results[rank][1]


# -- a rank that does not come ----------------------------------------------------------------

def test_timeout_and_reset():
    def main(comm):
        with Buffer(comm, timeout_s=0.5) as buffer:
            check_round(buffer, comm.size)
            error = again = None
            if comm.rank != 1:
                start = comm.executor.now
                error = raised(dispatch, buffer, *tokens(comm.rank))
                waited = comm.executor.now - start
                assert 0.4e9 < waited < 1.5e9, waited
                again = raised(dispatch, buffer, *tokens(comm.rank))
            buffer.reset()
            assert buffer.stats()["arena_used_bytes"] == 0
            check_round(buffer, comm.size)
            return error, again

    results = run_ranks(main, 3)
    for rank in (0, 2):
        error, again = results[rank]
        assert isinstance(error, DeepEPTimeoutError)
        assert (error.rank, error.peer, error.wait) == (rank, 1, "call record")
        assert isinstance(again, DeepEPError) and "reset()" in str(again)


@pytest.mark.parametrize("scheduler", ["rr", "random", "late-async"])
@pytest.mark.parametrize("call", ["dispatch", "cached dispatch", "combine"])
def test_late_rank_learns_of_the_abort(call, scheduler):
    """While some of its warps have only begun, others may find out: they leave together."""
    def main(comm):
        with Buffer(comm, timeout_s=0.5) as buffer:
            inputs = tokens(comm.rank)
            recv_x, _, _, _, handle, _ = dispatch(buffer, *inputs)
            if comm.rank:
                comm.barrier()
            if call == "dispatch":
                error = raised(dispatch, buffer, *inputs)
            elif call == "cached dispatch":
                error = raised(buffer.dispatch, inputs[0], handle=handle)
            else:
                error = raised(buffer.combine, recv_x, handle)
            if not comm.rank:
                comm.barrier()
            del recv_x, handle
            buffer.reset()
            check_round(buffer, comm.size)
            return error

    for error in run_ranks(main, 2, scheduler=scheduler):
        assert isinstance(error, DeepEPTimeoutError)


@pytest.mark.parametrize("scheduler", ["rr", "random", "late-async"])
@pytest.mark.parametrize("with_weights", [False, True])
@pytest.mark.parametrize("policy", ["ld_na", "bulk"])
def test_rows_that_are_never_pushed(monkeypatch, tmp_path, policy, with_weights, scheduler):
    """Who waits for them gives up at the time limit, all hear of it, and reset() helps.  Rows of
    rank 2 are pulled: loads of them may be under way then."""
    sources = copy_sources(tmp_path)
    weaken(sources, "ptx/role/combine/open_push.inc",
           "    selp.b32        n_longest, n_longest, 0, q;\n"
           "    sub.u32         r, n_ranks", "    setp.ne.and.u32 q, i_rank, 1, q;\n"
           "    selp.b32        n_longest, n_longest, 0, q;\n    sub.u32         r, n_ranks")
    read_text, lazy = select.read_text, Reader(sources)
    monkeypatch.setattr(select, "read_text", lambda variant: (
        lazy if variant["kernel"] == "combine" else read_text)(variant))

    def main(comm):
        with Buffer(comm, timeout_s=0.5, policy=policy) as buffer:
            recv_x, _, recv_weights, _, handle, _ = dispatch(
                buffer, *tokens(comm.rank, 64, WIDE, 1))
            y = recv_x if comm.rank == 2 else np.array(recv_x)
            error = raised(buffer.combine, y, handle, num_sms=1,
                           topk_weights=np.array(recv_weights) if with_weights else None)
            del recv_x, recv_weights, handle, y
            buffer.reset()
            check_round(buffer, comm.size)
            return error

    errors = run_ranks(main, 3, scheduler=scheduler)
    assert all(isinstance(error, DeepEPTimeoutError) for error in errors), errors
    waits = {(error.rank, error.wait, error.peer) for error in errors}
    assert {(0, "pushed rows", 1), (2, "pushed rows", 1)} & waits


def test_host_error_inside_a_call_aborts_the_peers():
    """Rank 1 cannot launch dispatch; the others hear of it at once, not at the time limit."""
    def main(comm):
        with Buffer(comm, timeout_s=100.0) as buffer:
            check_round(buffer, comm.size)
            if comm.rank == 1:
                load_dispatch(buffer, threads=2048)
            start = comm.executor.now
            error = raised(dispatch, buffer, *tokens(comm.rank))
            waited = comm.executor.now - start
            if comm.rank == 1:
                load_dispatch(buffer)
            buffer.reset()
            check_round(buffer, comm.size)
            return error, waited

    results = run_ranks(main, 3)
    assert not isinstance(results[1][0], DeepEPTimeoutError)
    assert "2048" in str(results[1][0])
    for error, waited in (results[0], results[2]):
        assert isinstance(error, DeepEPTimeoutError) and error.peer == 1
        assert error.wait == "call record" and waited < 10e9


def test_a_host_that_gives_up_ends_its_call_without_a_launch():
    """Which may queue behind the call.  Hosts' waits have a limit here, those of kernels none."""
    def main(comm):
        buffer = Buffer(comm, timeout_s=None)
        x, idx, weights = tokens(comm.rank)
        handle = dispatch(buffer, x, idx, weights)[4]
        if comm.rank == 1:
            return buffer                   # it does not come
        if comm.rank == 0:
            variant = buffer.variants["abort"] | {"threads": 2048}
            buffer._core.load_kernel("abort", variant, select.read_text(variant))
            error = raised(buffer.dispatch, x, handle=handle)
            start = comm.executor.now
            assert isinstance(raised(buffer.check), DeepEPError)
            return error, comm.executor.now - start
        word, _ = comm.executor.host_alloc(8)
        raised(comm.executor.wait_word, word, 1, timeout_s=0.2)
        event = buffer.dispatch(x, handle=handle, async_finish=True)[5]
        return raised(event.current_stream_wait), buffer

    (error, waited), _, (told, _) = run_ranks(main, 3, timeout_s=0.5)
    assert isinstance(error, DeepEPTimeoutError), error
    assert waited < 1e6
    assert isinstance(told, DeepEPTimeoutError) and told.peer == 0, told


def load_dispatch(buffer, **changes):
    variant = buffer.variants["dispatch"] | changes
    buffer._core.load_kernel("dispatch", variant, select.read_text(variant))


# -- ranks that leave ---------------------------------------------------------------------------

@pytest.mark.parametrize("scheduler", ["rr", "random", "late-async"])
@pytest.mark.parametrize("call", ["dispatch", "cached dispatch", "combine"])
def test_a_call_without_a_rank_that_has_returned(call, scheduler):
    """Its memory has gone, but for what the others write to: they learn at once who left."""
    def main(comm):
        buffer = Buffer(comm, timeout_s=None)
        inputs = tokens(comm.rank)
        recv_x, _, _, _, handle, _ = dispatch(buffer, *inputs)
        if comm.rank == 1:
            return None
        if call == "dispatch":
            error = raised(dispatch, buffer, *inputs)
        elif call == "cached dispatch":
            error = raised(buffer.dispatch, inputs[0], handle=handle)
        else:
            error = raised(buffer.combine, recv_x, handle)
        assert isinstance(raised(dispatch, buffer, *inputs), DeepEPError)
        return error

    errors = run_ranks(main, 3, scheduler=scheduler)
    assert errors[1] is None
    for rank in (0, 2):
        assert isinstance(errors[rank], DeepEPTimeoutError), errors[rank]
        assert (errors[rank].rank, errors[rank].peer) == (rank, 1)
    assert "rank 1, which has given up or left" in f"{errors[0]} {errors[2]}"


def test_a_rank_that_returns_during_its_call():
    """Nobody has waited for its end."""
    def main(comm):
        buffer = Buffer(comm, timeout_s=None)
        inputs = tokens(comm.rank)
        handle = dispatch(buffer, *inputs)[4]
        if comm.rank == 1:
            return buffer.dispatch(inputs[0], handle=handle, async_finish=True)[5]
        return raised(lambda: [buffer.dispatch(inputs[0], handle=handle) for _ in range(2)])

    error, _ = run_ranks(main, 2)
    assert isinstance(error, DeepEPTimeoutError) and error.peer == 1, error


@pytest.mark.parametrize("finding", [False, True])
def test_destroy_without_a_rank_that_has_returned(finding):
    """It raises, first of all what the device has found, and the buffer is gone all the same."""
    def main(comm):
        buffer = Buffer(comm, timeout_s=0.5)
        inputs = tokens(comm.rank)
        handle = dispatch(buffer, *inputs)[4]
        if comm.rank == 1:
            return None
        if finding:
            buffer.dispatch(inputs[0], handle=handle, async_finish=True)
        error = raised(buffer.destroy)
        buffer.destroy()
        assert isinstance(raised(buffer.stats), DestroyedError)
        return error

    errors = run_ranks(main, 3)
    for rank in (0, 2):
        if finding:
            assert isinstance(errors[rank], DeepEPTimeoutError) and errors[rank].peer == 1
            assert "rank 1 has returned" in str(errors[rank].__cause__)
        else:
            assert type(errors[rank]) is DeepEPError
            assert "rank 1 has returned" in str(errors[rank])


class OtherGroup:
    """One of the caller's, over the run's."""

    def __init__(self, comm, executor=None):
        self.rank, self.size = comm.rank, comm.size
        self.executor = executor or comm.executor
        self.comm = comm
        self.interrupted = None             # number of the collective from now on that Ctrl-C ends

    def allgather(self, obj):
        self.meet()
        return self.comm.allgather(obj)

    def barrier(self):
        self.meet()
        self.comm.barrier()

    def meet(self):
        if self.interrupted is not None:
            self.interrupted -= 1
            if self.interrupted == 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize("collective", [1, 2])
def test_ctrl_c_during_destroy(collective):
    """Also then the buffer is gone, and nothing that it leaves touches what is unmapped."""
    def main(comm):
        group = OtherGroup(comm)
        buffer = Buffer(group)
        group.interrupted = collective
        with pytest.raises(KeyboardInterrupt):
            buffer.destroy()
        assert isinstance(raised(buffer.stats), DestroyedError)
        comm.barrier()
        with Buffer(comm) as another:       # runs what was queued
            dispatch(another, *tokens(comm.rank))

    run_ranks(main, 2)


@pytest.mark.parametrize("each_its_own", [False, True], ids=["one executor", "one per buffer"])
def test_dropped_buffers_are_not_kept(each_its_own, monkeypatch):
    """Beyond the newest, whose peers may not have left yet.  Groups of torch and MPI make an
    executor for each buffer."""
    kept = {}
    monkeypatch.setattr(leaving, "_kept", lambda comm: kept.setdefault(comm.rank, {}))

    def main(comm):
        for _ in range(5):
            own = EmuExecutor(comm.executor.world, comm.rank) if each_its_own else None
            buffer = Buffer(OtherGroup(comm, own))
            dispatch(buffer, *tokens(comm.rank))
            comm.barrier()
            del buffer
            gc.collect()
            comm.barrier()
            assert len(kept[comm.rank]) <= 1

    run_ranks(main, 2)


# -- the end ----------------------------------------------------------------------------------

def test_use_after_destroy():
    def main(comm):
        buffer = Buffer(comm)
        buffer.destroy()
        buffer.destroy()
        x, idx, weights = tokens(comm.rank)
        return [raised(buffer.get_dispatch_layout, idx, E), raised(buffer.dispatch, x),
                raised(buffer.combine, x, None), raised(buffer.reset), raised(buffer.stats)]

    for errors in run_ranks(main, 2):
        assert all(isinstance(error, DestroyedError) for error in errors)


def test_explicitly_destroy_warns():
    def main(comm):
        return Buffer(comm, explicitly_destroy=True)

    buffers = run_ranks(main, 1)
    with pytest.warns(ResourceWarning, match="was not destroyed"):
        buffers.clear()
        gc.collect()
