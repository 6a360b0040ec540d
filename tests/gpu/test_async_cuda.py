# SPDX-License-Identifier: MIT
"""Calls that do not wait: order on streams, events, lifetimes, errors that come later."""

import contextlib
import gc
import time

import pytest

torch = pytest.importorskip("torch")

from deepep_ptx import Buffer, EventHandle, EventOverlap, run_ranks  # noqa: E402
from deepep_ptx._cuda import device_count  # noqa: E402
from deepep_ptx.errors import DeepEPError, DeepEPTimeoutError, RankMismatchError  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

T, H, K, E = 128, 1024, 4, 16
SLEEP = 200_000_000                 # cycles: a tenth of a second


def make(rank, seed=0):
    generator = torch.Generator(device="cuda").manual_seed(1000 * seed + rank)
    device = torch.device("cuda", torch.cuda.current_device())
    x = torch.randint(-8, 9, (T, H), generator=generator, device=device).bfloat16()
    weights, idx = torch.rand(T, E, generator=generator, device=device).topk(K)
    return x, idx, weights


def on_ranks(main, devices=(0, 1), **buffer):
    def rank_main(comm):
        torch.cuda.set_device(comm.executor.device)
        with Buffer(comm, **({"timeout_s": 20.0} | buffer)) as made:
            return main(comm, made)

    return run_ranks(rank_main, len(devices), executor="cuda",
                     devices=[device % device_count() for device in devices])


def layout_of(buffer, idx, **how):
    per_rank, _, per_expert, in_rank, event = buffer.get_dispatch_layout(idx, E, **how)
    return {"num_tokens_per_rank": per_rank, "num_tokens_per_expert": per_expert,
            "is_token_in_rank": in_rank}, event


def arguments_of(buffer):
    """x, and the other arguments of a rank's dispatch."""
    x, idx, weights = make(buffer.rank)
    return x, layout_of(buffer, idx)[0] | {"topk_idx": idx, "topk_weights": weights}


def dispatched(buffer):
    """The arguments of a rank's dispatch, and the rows and the handle that it returns."""
    x, arguments = arguments_of(buffer)
    recv_x, _, _, _, handle, _ = buffer.dispatch(x, **arguments)
    return x, arguments, recv_x, handle


def assert_combined(out, x, arguments, times=1):
    """What combine makes of received rows, each multiplied by `times`."""
    copies = arguments["is_token_in_rank"].sum(1, keepdim=True)
    assert torch.equal(out.float(), times * copies * x.float())


@pytest.mark.parametrize("how", ["stream", "event", "torch event", "comm stream"])
def test_a_layer_that_never_waits(how):
    """Everything is queued behind a long kernel; only the last line waits."""
    def main(comm, buffer):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for number in range(20):
                x, idx, weights = make(comm.rank, number)
                torch.cuda._sleep(SLEEP // 20)
                later = {}
                if how != "stream":
                    later = {"previous_event": EventOverlap(EventHandle()), "async_finish": True,
                             "allocate_on_comm_stream": how == "comm stream"}
                layout, event = layout_of(buffer, idx, **later)
                if later:
                    later["previous_event"] = event
                recv_x, _, recv_weights, counts, handle, event = buffer.dispatch(
                    x, **layout, topk_idx=idx, topk_weights=weights, **later)
                if later:
                    event.current_stream_wait()
                recv_x.mul_(2)
                if later:
                    later["previous_event"] = buffer.capture()
                if how == "torch event":
                    later["previous_event"] = torch.cuda.current_stream().record_event()
                out, out_weights, event = buffer.combine(recv_x, handle, topk_weights=recv_weights,
                                                         **later)
                if later:
                    later["previous_event"] = event
                again, _, _, _, nothing, event2 = buffer.dispatch(x, handle=handle, **later)
                event2.current_stream_wait()
                with event:
                    copies = layout["is_token_in_rank"].sum(1, keepdim=True)
                sums = again.float().sum()
                del recv_x, again
                gc.collect()
            side.synchronize()
            assert torch.equal(out.float(), 2 * copies * x.float())
            torch.testing.assert_close(out_weights, weights)
            assert sum(counts) >= handle.num_recv and nothing is None and sums.isfinite()
        buffer.check()

    on_ranks(main)


def test_the_host_does_not_wait():
    def main(comm, buffer):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            x, arguments, recv_x, handle = dispatched(buffer)
            side.synchronize()
            comm.barrier()
            torch.cuda._sleep(2 * SLEEP)
            y = recv_x * 2
            out, _, _ = buffer.combine(y, handle)
            again, *_ = buffer.dispatch(x, handle=handle)
            waited = side.query()                   # true: everything is over already
            side.synchronize()
            assert_combined(out, x, arguments, times=2)
            assert torch.equal(again, recv_x)
        return waited

    assert on_ranks(main) == [False, False]


def crowd(comm, stack):
    """A buffer that lives as long as `stack`, with calls on all SMs that they can have: those of
    another buffer like it are launched cooperatively then."""
    other = stack.enter_context(Buffer(comm, timeout_s=20.0))
    x, arguments = arguments_of(other)
    other.dispatch(x, **arguments, num_sms=other._max_sms)


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("op", ["dispatch", "combine"])
def test_a_call_has_started_while_it_waits_for_a_rank(op, crowded):
    """Rank 1 comes half a second late, or more."""
    def main(comm, buffer):
        stream, started, ended = (torch.cuda.Stream() for _ in range(3))
        with contextlib.ExitStack() as stack, torch.cuda.stream(stream):
            if crowded:
                crowd(comm, stack)
            sms = {"num_sms": buffer._max_sms} if crowded else {}
            x, arguments, recv_x, handle = dispatched(buffer)
            for other in (stream, started, ended):
                other.synchronize()
            comm.barrier()
            if comm.rank:
                torch.cuda._sleep(10 * SLEEP)
            if op == "dispatch":
                out, *_, event = buffer.dispatch(x, handle=handle, async_finish=True, **sms)
            else:
                out, _, event = buffer.combine(recv_x, handle, async_finish=True, **sms)
            assert buffer._core.is_crowded or not crowded
            with torch.cuda.stream(started):
                event.current_stream_wait_start()
            with torch.cuda.stream(ended):
                event.current_stream_wait()
            limit = time.monotonic() + 10
            while not started.query() and time.monotonic() < limit:
                time.sleep(0.001)
            runs = started.query(), ended.query()
            event.current_stream_wait()
            stream.synchronize()
            if op == "dispatch":
                assert torch.equal(out, recv_x)
            else:
                assert_combined(out, x, arguments)
            buffer.check()
        return runs

    assert on_ranks(main)[0] == (True, False)


def test_a_start_that_is_dropped_behind_its_wait():
    """Events are used again while streams wait for what they were."""
    rounds = 20

    def main(comm, buffer):
        stream, side = torch.cuda.Stream(), torch.cuda.Stream()
        with torch.cuda.stream(stream):
            x, arguments, recv_x, handle = dispatched(buffer)
            counter = torch.zeros(1, device=x.device)
            stream.synchronize()
            for _ in range(rounds):
                if comm.rank:
                    torch.cuda._sleep(SLEEP // 20)
                again, *_, event = buffer.dispatch(x, handle=handle, async_finish=True)
                with torch.cuda.stream(side):
                    event.current_stream_wait_start()
                    del event
                    counter.add_(1)
            buffer.check()
            side.synchronize()
            assert counter.item() == rounds and torch.equal(again, recv_x)

    on_ranks(main)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "float16"])
def test_rows_of_other_types(dtype):
    def main(comm, buffer):
        x, idx, weights = make(comm.rank)
        bits = torch.randint(-128, 128, (T, H * (2 if dtype == "float16" else 1)), device=x.device,
                             dtype=torch.int8)
        rows = bits.view(getattr(torch, dtype))
        scales = torch.randn(H // 128, T, device=x.device).t()       # column-major
        pair = (rows, scales) if rows.element_size() == 1 else rows
        layout, _ = layout_of(buffer, idx)
        recv, _, _, _, handle, _ = buffer.dispatch(pair, **layout, topk_idx=idx,
                                                   topk_weights=weights)
        if rows.element_size() == 1:
            recv, recv_scales = recv
            assert recv_scales.is_contiguous() and recv_scales.dtype == scales.dtype
        mine = slice(int(handle[0][comm.rank - 1, comm.rank]) if comm.rank else 0,
                     int(handle[0][comm.rank, comm.rank]))
        tokens = handle.recv_src_idx[mine].long()
        assert torch.equal(recv[mine].view(torch.uint8), rows[tokens].view(torch.uint8))
        if rows.element_size() == 1:
            assert torch.equal(recv_scales[mine], scales[tokens])
        return recv.dtype == rows.dtype

    assert on_ranks(main) == [True, True]


def test_errors_come_later_and_to_all(two_gpus):
    def main(comm, buffer):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            x, arguments, recv_x, handle = dispatched(buffer)
            y = recv_x[:, :H // 2].contiguous() if comm.rank else recv_x
            buffer.combine(y, handle)               # hidden differs: refused by all, later
            with pytest.raises(RankMismatchError, match="^hidden: "):
                buffer.dispatch(x, **arguments)
            bad = arguments["topk_idx"].clone()
            bad[3, 1] = E if comm.rank else 0
            layout_of(buffer, bad)
            error = ValueError if comm.rank else DeepEPError
            with pytest.raises(error):
                buffer.dispatch(x, **arguments)
            recv_x, _, _, _, handle, _ = buffer.dispatch(x, **arguments)
            out, _, _ = buffer.combine(recv_x, handle)
            side.synchronize()
            assert_combined(out, x, arguments)

    on_ranks(main)


def test_a_rank_that_does_not_come():
    def main(comm, buffer):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            x, arguments, recv_x, handle = dispatched(buffer)
            side.synchronize()
            if comm.rank == 0:
                buffer.combine(recv_x, handle)
                with pytest.raises(DeepEPTimeoutError) as caught:
                    buffer.check()
                assert caught.value.peer == 1
                with pytest.raises(DeepEPError, match="reset"):
                    buffer.combine(recv_x, handle)
            comm.barrier()
            buffer.reset()
            out, _, _ = buffer.combine(recv_x, handle)
            side.synchronize()
            assert_combined(out, x, arguments)

    on_ranks(main, timeout_s=0.5)


def test_ranks_that_share_a_gpu_and_the_legacy_stream():
    def main(comm, buffer):
        x, arguments = arguments_of(buffer)
        for _ in range(10):
            recv_x, _, _, _, handle, event = buffer.dispatch(x, **arguments, async_finish=True)
            event.current_stream_wait()
            out, _, event = buffer.combine(recv_x, handle, async_finish=True)
            event.current_stream_wait()
        assert_combined(out, x, arguments)

    on_ranks(main, devices=(0, 0, 0, 0))


def test_ten_thousand_calls_leave_nothing(two_gpus):
    def main(comm, buffer):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            x, idx, weights = make(comm.rank)
            x = x[:, :64].contiguous()
            layout, _ = layout_of(buffer, idx)
            kept, marks = [], []
            for number in range(10_000 // 4):
                recv_x, _, _, _, handle, _ = buffer.dispatch(x, **layout, topk_idx=idx,
                                                             topk_weights=weights)
                out, _, _ = buffer.combine(recv_x, handle)
                again, *_ = buffer.dispatch(x, handle=handle)
                pushed, _, _ = buffer.combine(again.clone(), handle)
                kept = [*kept[-3:], (recv_x, again)]
                if number % 500 == 499:
                    side.synchronize()
                    # The driver may stand still in the question for memory while the other rank's
                    # next kernel waits for this one: both are threads of one process.
                    comm.barrier()
                    marks.append((torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0],
                                  buffer.stats()["arena_used_bytes"]))
                    comm.barrier()
            assert torch.equal(out, pushed)
            del kept, recv_x, again, handle
            gc.collect()
            side.synchronize()
        return marks[1:], buffer.stats()["arena_used_bytes"]

    for marks, left in on_ranks(main):
        assert left == 0 and len(set(marks)) == 1, marks
