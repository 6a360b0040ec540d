# SPDX-License-Identifier: MIT
"""run_ranks, the host side of the CPU executor, and groups."""

import _thread
import gc
import struct
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from deepep_ptx import _emu, errors, run_ranks, runtime
from deepep_ptx._cuda import device_count
from deepep_ptx._emu_executor import EmuExecutor
from deepep_ptx.comm import as_comm

HEAD = """.version 8.3
.target sm_80
.address_size 64
.file 1 "ptx/src/test.ptx"
"""


def entry(name, registers, body, param_bytes=32):
    """One kernel; body lines that start with a number are at that source line."""
    lines = []
    for line in body.strip().splitlines():
        number, _, statement = line.strip().partition("| ")
        lines.append(f"    .loc 1 {number} 0\n    {statement}" if statement else f"    {number}")
    return (
        f"{HEAD}.visible .entry {name}(.param .align 8 .b8 p[{param_bytes}])\n{{\n"
        f"{registers}\n" + "\n".join(lines) + "\n}\n"
    )


# word[0] = word[0] * factor + 1
STEP = entry(
    "step",
    ".reg .b64 a; .reg .b32 v, f;",
    """
    ld.param.u64 a, [p];
    ld.param.u32 f, [p + 8];
    ld.global.u32 v, [a];
    mul.lo.u32 v, v, f;
    add.u32 v, v, 1;
    st.global.u32 [a], v;
    ret;
    """,
)

# Store value at data, then flag := want with release.
SEND = entry(
    "send",
    ".reg .b64 a_data, a_flag, want; .reg .b32 v;",
    """
    ld.param.u64 a_data, [p];
    ld.param.u64 a_flag, [p + 8];
    ld.param.u64 want, [p + 16];
    ld.param.u32 v, [p + 24];
    st.global.u32 [a_data], v;
    st.release.sys.global.u64 [a_flag], want;
    ret;
    """,
)

# Poll flag until it is want, without a limit; then out := data.
RECEIVE = entry(
    "receive",
    ".reg .b64 a_data, a_flag, a_out, want, seen; .reg .b32 v; .reg .pred p_ready;",
    """
    10| ld.param.u64 a_data, [p];
    11| ld.param.u64 a_flag, [p + 8];
    12| ld.param.u64 want, [p + 16];
    13| ld.param.u64 a_out, [p + 24];
    $poll:
    15| ld.acquire.sys.global.u64 seen, [a_flag];
    16| setp.eq.u64 p_ready, seen, want;
    17| @!p_ready bra $poll;
    18| ld.global.u32 v, [a_data];
    19| st.global.u32 [a_out], v;
    20| ret;
    """,
)

# Poll flag for at most limit ns; then out := the time it took, 0 if the flag came.
TIMED = entry(
    "timed",
    ".reg .b64 a_flag, a_out, want, seen, limit, since, now, took; .reg .pred p_over;",
    """
    ld.param.u64 a_flag, [p];
    ld.param.u64 want, [p + 8];
    ld.param.u64 limit, [p + 16];
    ld.param.u64 a_out, [p + 24];
    mov.u64 since, %globaltimer;
    add.u64 limit, limit, since;
    $poll:
    ld.relaxed.sys.global.u64 seen, [a_flag];
    setp.eq.u64 p_over, seen, want;
    @p_over bra $came;
    mov.u64 now, %globaltimer;
    setp.lt.u64 p_over, now, limit;
    @p_over bra $poll;
    sub.u64 took, now, since;
    st.global.u64 [a_out], took;
    ret;
    $came:
    mov.u64 took, 0;
    st.global.u64 [a_out], took;
    ret;
    """,
)

OUT_OF_BOUNDS = entry(
    "beyond",
    ".reg .b64 a; .reg .b32 v;",
    """
    30| ld.param.u64 a, [p];
    31| mov.u32 v, 7;
    32| st.global.u32 [a + 64], v;
    33| ret;
    """,
)


# Count for ever.
COUNT = entry(
    "count",
    ".reg .b64 a; .reg .b32 v;",
    """
    ld.param.u64 a, [p];
    mov.u32 v, 0;
    $again:
    add.u32 v, v, 1;
    st.global.u32 [a], v;
    bra $again;
    """,
)


def params(*words):
    """A parameter block of 32 bytes."""
    return struct.pack(f"<{len(words)}Q", *words).ljust(32, b"\0")


def word_of(executor, dptr):
    return int.from_bytes(executor.copy_out(dptr, 8), "little")


def words(executor, count=1):
    """Device memory of `count` zeroed u64."""
    dptr = executor.alloc(8 * count)
    executor.fill(dptr, 0, 8 * count)
    return dptr


# -- results and order -----------------------------------------------------------------------


@pytest.mark.parametrize("num_ranks", [1, 2, 5, 64])
def test_results_are_in_rank_order(num_ranks):
    assert run_ranks(lambda comm, k: comm.rank * k, num_ranks, 3) == [
        3 * r for r in range(num_ranks)
    ]


def test_allgather_is_by_rank_and_by_reference():
    objects = [object() for _ in range(4)]

    def rank_main(comm):
        first = comm.allgather(objects[comm.rank])
        comm.barrier()
        return first, comm.allgather(comm.rank)

    for first, second in run_ranks(rank_main, 4):
        assert all(a is b for a, b in zip(first, objects, strict=True))
        assert second == [0, 1, 2, 3]


def test_one_rank_runs_at_a_time_in_rank_order():
    log, inside = [], []

    def rank_main(comm):
        for turn in range(3):
            inside.append(comm.rank)
            assert inside == [comm.rank]
            log.append((turn, comm.rank))
            time.sleep(0.001)
            inside.remove(comm.rank)
            comm.barrier()

    run_ranks(rank_main, 3)
    # A barrier's last rank need not wait: it goes on, the others follow in order.
    assert log == [
        *((0, r) for r in (0, 1, 2)),
        *((1, r) for r in (2, 0, 1)),
        *((2, r) for r in (1, 2, 0)),
    ]


def exchange(comm):
    """Each rank sends a word to the next one's memory; returns what came, and the figures."""
    ex = comm.executor
    mine = words(ex, 3)                     # data, flag, out
    handles = comm.allgather(ex.export_memory(mine))
    peer = ex.import_memory(handles[(comm.rank + 1) % comm.size])
    send, receive = ex.load("send", SEND, 32), ex.load("receive", RECEIVE, 32)
    out_stream = ex.stream_create()
    ex.synchronize()
    ex.launch(receive, params(mine, mine + 8, 5, mine + 16), 1, 32)
    ex.launch(send, params(peer, peer + 8, 5, 100 + comm.rank), 1, 32, stream=out_stream)
    ex.stream_destroy(out_stream)
    came = word_of(ex, mine + 16)
    comm.barrier()
    ex.release_memory(peer)
    return came, ex.now, ex.counters(), peer != mine


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_message_through_peer_memory(num_ranks):
    results = run_ranks(exchange, num_ranks)
    assert [r[0] for r in results] == [100 + (r - 1) % num_ranks for r in range(num_ranks)]
    assert all(r[3] == (num_ranks > 1) for r in results)
    if num_ranks > 1:
        assert all(r[2]["peer_store_bytes"] > 0 for r in results)


def test_a_run_is_reproducible():
    assert run_ranks(exchange, 3, seed=11) == run_ranks(exchange, 3, seed=11)


# -- failures ----------------------------------------------------------------------------------


def test_first_exception_wins_and_others_are_aborted():
    seen = {}

    def rank_main(comm):
        try:
            if comm.rank == 1:
                raise KeyError("mine")
            comm.barrier()
        except errors.Aborted as error:
            seen[comm.rank] = str(error)
            raise

    with pytest.raises(errors.RankError, match="rank 1: KeyError: 'mine'") as info:
        run_ranks(rank_main, 3)
    assert info.value.rank == 1
    assert isinstance(info.value.__cause__, KeyError)
    # Rank 2 had not begun.
    assert seen == {0: "rank 1 failed and this rank was stopped"}


def test_aborted_stays():
    codes = []

    def rank_main(comm):
        if comm.rank == 1:
            raise RuntimeError("stop")
        for act in (comm.barrier, lambda: comm.executor.alloc(8), comm.executor.synchronize):
            with pytest.raises(errors.Aborted):
                act()
            codes.append(1)
        return "kept going"

    with pytest.raises(errors.RankError):
        run_ranks(rank_main, 2)
    assert len(codes) == 3


def test_later_errors_are_notes():
    def rank_main(comm):
        if comm.rank == 1:
            raise KeyError("first")
        try:
            comm.barrier()
        except errors.Aborted:
            raise ValueError("second") from None

    with pytest.raises(errors.RankError) as info:
        run_ranks(rank_main, 2)
    assert info.value.__notes__ == ["then rank 0: ValueError: second"]


def test_rank_that_returned_is_named_in_the_deadlock():
    with pytest.raises(errors.RankError) as info:
        run_ranks(lambda comm: comm.rank == 1 or comm.barrier(), 3)
    cause = info.value.__cause__
    assert info.value.rank == 0
    assert type(cause) is errors.DeepEPError
    assert str(cause) == (
        "no rank can go on: rank 0 waits in barrier; rank 1 has returned; rank 2 waits in barrier"
    )


def test_host_wait_with_a_limit_times_out_in_virtual_time():
    def rank_main(comm):
        if comm.rank == 0:
            with pytest.raises(errors.DeepEPTimeoutError, match="rank 1 has returned") as info:
                comm.barrier()
            assert (info.value.rank, info.value.peer, info.value.wait) == (0, 1, "barrier")
            return comm.executor.now

    since = time.monotonic()
    assert run_ranks(rank_main, 2, timeout_s=100.0)[0] >= 100e9
    assert time.monotonic() - since < 5


def test_different_collectives():
    def rank_main(comm):
        return comm.barrier() if comm.rank else comm.allgather(1)

    with pytest.raises(errors.RankError) as info:
        run_ranks(rank_main, 2)
    assert info.value.rank == 1
    text = "barrier: rank 1 called barrier while rank 0 is in allgather"
    assert str(info.value.__cause__) == text


def test_kernel_fault_is_charged_to_its_rank():
    def rank_main(comm):
        ex = comm.executor
        if comm.rank == 1:
            kernel = ex.load("beyond", OUT_OF_BOUNDS, 32)
            ex.launch(kernel, params(ex.alloc(64, name="small")), 1, 32)
        comm.barrier() if comm.rank != 1 else ex.synchronize()

    with pytest.raises(errors.RankError) as info:
        run_ranks(rank_main, 3)
    fault = info.value.__cause__
    assert isinstance(fault, errors.KernelFault)
    assert (info.value.rank, fault.rank, fault.kernel) == (1, 1, "beyond")
    assert (fault.file, fault.line) == ("ptx/src/test.ptx", 32)
    assert "small" in str(fault)
    assert "rank 0 waits in barrier; rank 1 waits in stream_synchronize" in str(fault)


def test_kernel_fault_of_a_rank_that_returned():
    def rank_main(comm):
        ex = comm.executor
        if comm.rank == 1:
            ex.launch(ex.load("beyond", OUT_OF_BOUNDS, 32), params(ex.alloc(64)), 1, 32)
        else:
            comm.executor.yield_()
            comm.barrier()

    with pytest.raises(errors.RankError) as info:
        run_ranks(rank_main, 2)
    assert info.value.rank == 1
    assert isinstance(info.value.__cause__, errors.KernelFault)


def test_kernels_that_nothing_can_wake():
    def rank_main(comm):
        ex = comm.executor
        mine = words(ex, 3)
        ex.launch(ex.load("receive", RECEIVE, 32), params(mine, mine + 8, 5, mine + 16), 1, 32)
        ex.synchronize()

    with pytest.raises(errors.RankError) as info:
        run_ranks(rank_main, 2)
    fault = info.value.__cause__
    assert isinstance(fault, errors.KernelFault)
    assert "test.ptx:15" in str(fault)


@pytest.fixture
def no_collection():
    """No garbage collection while a Ctrl-C is due: Python drops an exception of a signal handler
    that runs inside of a finaliser or of one of `gc.callbacks` (hypothesis has one)."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_ctrl_c_stops_every_rank(no_collection):
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals come to the main thread")
    ended = []

    def rank_main(comm):
        try:
            if comm.rank == 1:
                comm.barrier()
            comm.executor.yield_()                   # rank 1 is in its barrier now
            _thread.interrupt_main()
            while True:
                time.sleep(0.001)
        except errors.Aborted:
            ended.append(comm.rank)
            raise

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run_ranks(rank_main, 2)
    assert sorted(ended) == [0, 1]
    assert threading.active_count() == before


def test_ctrl_c_stops_kernels(no_collection):
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals come to the main thread")

    def rank_main(comm):
        ex = comm.executor
        ex.launch(ex.load("count", COUNT, 32), params(words(ex)), 1, 1)
        ex.synchronize()

    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_ranks(rank_main, 2)
    timer.join()


def test_ctrl_c_does_not_wait_for_a_rank_that_does_not_hear_it(no_collection, monkeypatch):
    """It waits for something of Python's, in its turn: the others go on without it, and end."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals come to the main thread")
    monkeypatch.setattr(runtime, "_GRACE_S", 2.0)
    heard, ended = threading.Event(), []

    def rank_main(comm):
        try:
            comm.barrier()
            if comm.rank == 1:
                threading.Timer(0.5, _thread.interrupt_main).start()
                heard.wait()
            comm.barrier()
        finally:
            ended.append(comm.rank)

    before = threading.active_count()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as caught:
        run_ranks(rank_main, 3)
    assert time.monotonic() - began < 30
    assert caught.value.__notes__ == ["did not stop within 2 s, and left behind: rank 1"]
    assert sorted(ended) == [0, 2]
    heard.set()                                      # it ends like the others after all
    while threading.active_count() > before:
        time.sleep(0.01)
    assert sorted(ended) == [0, 1, 2]


def test_an_error_is_its_threads():
    """Also where another thread, which uses this rank too, meets one of its own."""
    def rank_main(comm):
        ex, stop, texts = comm.executor, threading.Event(), set()

        def meet_others():
            while not stop.is_set():
                try:
                    ex.free(8)
                except ValueError as error:
                    texts.add(str(error))

        threads = [threading.Thread(target=meet_others) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(2000):
                with pytest.raises(ValueError, match="^src: "):
                    ex.copy_out(8, 8)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert len(texts) == 1 and not texts.pop().startswith("src: ")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        run_ranks(rank_main, 1)
    finally:
        sys.setswitchinterval(interval)


def test_runs_nest():
    def inner(comm, base):
        return sum(comm.allgather(base + comm.rank))

    def outer(comm):
        mine = run_ranks(inner, 3, 10 * comm.rank)
        return comm.allgather(mine)

    want = [[3, 3, 3], [33, 33, 33]]
    assert run_ranks(outer, 2) == [want, want]


def test_a_nested_failure_stops_the_outer_run():
    def outer(comm):
        comm.barrier()
        run_ranks(lambda inner: inner.rank or 1 / 0, 2)

    with pytest.raises(errors.RankError) as info:
        run_ranks(outer, 2)
    assert isinstance(info.value.__cause__, errors.RankError)
    assert isinstance(info.value.__cause__.__cause__, ZeroDivisionError)


def test_worlds_die_with_what_came_out_of_them():
    worlds = []

    def rank_main(comm):
        worlds.append(weakref.ref(comm.executor.world))
        ex = comm.executor
        dptr = words(ex)
        ex.fill(dptr, comm.rank + 1, 8)
        ex.synchronize()
        view = ex.host_view(dptr, 8)
        ex.free(dptr)
        return view

    views = run_ranks(rank_main, 2)
    gc.collect()
    assert worlds[0]() is not None
    assert [view.tolist() for view in views] == [[1] * 8, [2] * 8]
    del views
    gc.collect()
    assert worlds[0]() is None
    with pytest.raises(errors.RankError):
        run_ranks(lambda comm: worlds.append(weakref.ref(comm.executor.world)) or 1 / 0, 2)
    gc.collect()
    assert worlds[-1]() is None


# -- streams and waits ---------------------------------------------------------------------------


def test_a_stream_is_in_order():
    def rank_main(comm):
        ex = comm.executor
        step = ex.load("step", STEP, 32)
        mine = words(ex, 2)
        stream = ex.stream_create()
        ex.copy_in(mine, struct.pack("<Q", 3), stream=stream)
        for factor in (2, 10, 3):
            ex.launch(step, params(mine, factor), 1, 1, stream=stream)
        source = bytearray(struct.pack("<Q", 1000))
        ex.copy_in(mine + 8, source, stream=stream)
        source[:] = bytes(8)                                   # the copy has been taken
        ex.launch(step, params(mine + 8, 1), 1, 1, stream=stream)
        first = int.from_bytes(ex.copy_out(mine, 8, stream=stream), "little")
        ex.fill(mine, 0, 4, stream=stream)
        ex.launch(step, params(mine, 9), 1, 1, stream=stream)
        ex.free(mine, stream=stream)
        second = ex.copy_out(mine, 16, stream=0)               # not waited for: still there
        ex.synchronize(stream)
        with pytest.raises(ValueError, match="src"):
            ex.copy_out(mine, 8)
        return first, struct.unpack("<QQ", second)[1]

    assert run_ranks(rank_main, 1) == [(((3 * 2 + 1) * 10 + 1) * 3 + 1, 1001)]


def test_streams_of_a_rank_run_beside_each_other():
    def rank_main(comm):
        ex = comm.executor
        mine = words(ex, 3)
        waiting, sending = ex.stream_create(), ex.stream_create()
        ex.launch(ex.load("receive", RECEIVE, 32), params(mine, mine + 8, 5, mine + 16), 1, 1,
                  stream=waiting)
        ex.launch(ex.load("send", SEND, 32), params(mine, mine + 8, 5, 77), 1, 1, stream=sending)
        ex.synchronize(waiting)
        return word_of(ex, mine + 16)

    assert run_ranks(rank_main, 1) == [77]


def test_a_stream_waits_for_another():
    def rank_main(comm):
        ex = comm.executor
        mine = words(ex, 3)
        step = ex.load("step", STEP, 32)
        first, second, sending = (ex.stream_create() for _ in range(3))
        ex.stream_wait(second, first)                          # nothing there to wait for
        ex.stream_wait(second, second)
        ex.launch(ex.load("receive", RECEIVE, 32), params(mine, mine + 8, 5, mine + 16), 1, 1,
                  stream=first)
        ex.stream_wait(second, first)
        ex.stream_wait(0, second)
        ex.launch(step, params(mine + 16, 2), 1, 1, stream=second)
        ex.stream_destroy(first)
        ex.launch(ex.load("send", SEND, 32), params(mine, mine + 8, 5, 77), 1, 1, stream=sending)
        ex.synchronize(second)
        with pytest.raises(ValueError, match="stream: not a stream of rank 0"):
            ex.stream_wait(0, 12345)
        return word_of(ex, mine + 16)

    assert run_ranks(rank_main, 1) == [77 * 2 + 1]


def test_a_run_may_end_while_a_stream_waits():
    def rank_main(comm):
        ex = comm.executor
        mine = words(ex)
        ex.launch(ex.load("count", COUNT, 32), params(mine), 1, 1, stream=ex.stream_create())
        busy, idle = ex.stream_create(), ex.stream_create()
        ex.launch(ex.load("count", COUNT, 32), params(mine), 1, 1, stream=busy)
        ex.stream_wait(idle, busy)

    run_ranks(rank_main, 1)


def test_wait_word():
    def rank_main(comm):
        ex = comm.executor
        host, dptr = ex.host_alloc(64)
        data = words(ex)
        with pytest.raises(errors.DeepEPTimeoutError, match="wait_word: not over after 2 s"):
            ex.wait_word(host, 9, timeout_s=2.0)
        late = ex.now
        ex.launch(ex.load("send", SEND, 32), params(data, dptr, 9, 1), 1, 1)
        ex.wait_word(host, 9, timeout_s=2.0)
        ex.synchronize()
        ex.host_free(host)
        return late, ex.now

    (late, end), = run_ranks(rank_main, 1)
    assert 2e9 <= late <= end < 2.1e9


def test_kernel_limits_end_before_host_limits():
    def rank_main(comm):
        ex = comm.executor
        mine = words(ex, 2)
        ex.launch(ex.load("timed", TIMED, 32), params(mine, 1, 3_000_000, mine + 8), 1, 1)
        ex.synchronize()
        return word_of(ex, mine + 8)

    took = run_ranks(rank_main, 2, timeout_s=10)
    assert all(3_000_000 <= ns < 4_000_000 for ns in took)


def test_a_host_that_polls_lets_kernels_run():
    def rank_main(comm):
        ex = comm.executor
        host, dptr = ex.host_alloc(8)
        flag = ex.host_view(dptr, 8)
        data = words(ex)
        ex.launch(ex.load("send", SEND, 32), params(data, dptr, 3, 1), 1, 1)
        polls = 0
        while flag[0] != 3:
            ex.yield_()
            polls += 1
        return polls

    assert all(0 < polls < 100 for polls in run_ranks(rank_main, 2))


def test_a_host_that_polls_for_ever_sees_time_pass():
    def rank_main(comm):
        while comm.executor.now < 50_000:
            comm.executor.yield_()
        return True

    assert run_ranks(rank_main, 2) == [True, True]


def test_calls_that_do_not_fit_are_refused():
    def rank_main(comm):
        ex = comm.executor
        step = ex.load("step", STEP, 32)
        mine = words(ex)
        handle_bytes = len(ex.export_memory(mine))
        for bad, text in [
            (lambda: ex.launch(step, b"", 1, 1), "params: step takes 32 bytes, got 0"),
            (lambda: ex.launch(step, params(mine), 0, 1), "grid: must be in"),
            (lambda: ex.launch(step, params(mine), 1, 2048), "block: must be in"),
            (lambda: ex.launch(step, params(mine), 1, 32, 1 << 20), "block: step does not fit"),
            (lambda: ex.launch(step, params(mine), 1, 32, stream=12345), "stream: not a stream"),
            (lambda: ex.copy_in(mine + 4, bytes(8)), "dst: not an address range"),
            (lambda: ex.copy_out(5, 8), "src: not an address range"),
            (lambda: ex.free(mine + 1), "ptr: .* not the start"),
            (lambda: ex.unmap(mine), "dptr: .* not a mapped array"),
            (lambda: ex.host_free(1), "host: not pinned memory"),
            (lambda: ex.alloc(0), "nbytes: must be in"),
            (lambda: ex.import_memory(bytes(handle_bytes)), "handle: not a handle"),
            (lambda: ex.import_memory(b""), f"handle: must have {handle_bytes} bytes"),
            (lambda: ex.host_view(mine, 9), "dptr: .* not device memory"),
        ]:
            with pytest.raises(ValueError, match=text):
                bad()
        with pytest.raises(errors.DeepEPError, match="takes 32 parameter bytes, params.h says 16"):
            ex.load("step", STEP, 16)
        assert ex.max_resident(step, 1024) == 2 * 132
        assert ex.map_array(0, 0, False, "empty") == 0

    run_ranks(rank_main, 1)


def test_a_handle_of_another_run_is_refused():
    def rank_main(comm, handle=None):
        if handle:
            with pytest.raises(ValueError, match="handle: of another run"):
                comm.executor.import_memory(handle)
        return comm.executor.export_memory(comm.executor.alloc(8))

    (handle,) = run_ranks(rank_main, 1)
    run_ranks(rank_main, 1, handle)


def test_a_target_above_the_executor_is_refused():
    def rank_main(comm):
        with pytest.raises(errors.DeepEPError, match="is for sm_90, this executor is sm_80"):
            comm.executor.load("step", STEP.replace("sm_80", "sm_90"), 32)

    run_ranks(rank_main, 1, arch="sm_80")


def test_stores_through_a_view_count_once_they_are_said():
    def rank_main(comm, said):
        ex = comm.executor
        mine = ex.alloc(8)
        ex.host_view(mine, 4)[:] = 1
        if said:
            ex.written(mine, 4)
        ex.launch(ex.load("step", STEP, 32), params(mine, 1), 1, 1)
        return int.from_bytes(ex.copy_out(mine, 4), "little")

    assert run_ranks(rank_main, 1, True) == [0x01010102]
    assert run_ranks(rank_main, 1, False, checks="off") == [0x01010102]
    with pytest.raises(errors.RankError) as info:
        run_ranks(rank_main, 1, False)
    assert info.value.__cause__.kind == "uninitialised"


def test_mapped_arrays_are_the_callers_memory():
    def rank_main(comm):
        ex = comm.executor
        array = np.array([5, 0], np.uint32)
        dptr = ex.map_array(array.ctypes.data, array.nbytes, True, "array")
        ex.launch(ex.load("step", STEP, 32), params(dptr, 4), 1, 1)
        ex.synchronize()
        ex.unmap(dptr)
        return array[0]

    assert run_ranks(rank_main, 1) == [21]


# -- raw worlds ------------------------------------------------------------------------------------


def test_world_runs_without_rank_threads():
    world = _emu.World(2, scheduler="rr", checks="all", seed=3)
    flag = world.alloc(0, 24, name="flag")
    world.write(0, flag, bytes(24))
    peer = world.map_peer(1, 0, flag)
    assert peer != flag
    receive, send = world.load(RECEIVE), world.load(SEND, "send")
    assert (receive.symbol, receive.param_bytes, receive.target) == ("receive", 32, "sm_80")
    world.launch(0, receive, params(flag, flag + 8, 5, flag + 16), 1, 32)
    assert not world.run(max_virtual_ns=100_000)
    world.launch(1, send, params(peer, peer + 8, 5, 42), 1, 32)
    assert world.run()
    assert world.read(0, flag + 16, 4) == struct.pack("<I", 42)
    assert world.counters(1)["peer_store_bytes"] > 0
    world.unmap(1, peer)
    world.unmap(0, flag)
    with pytest.raises(ValueError):
        world.read(0, flag, 8)


def test_world_reports_faults():
    world = _emu.World(1)
    data = np.zeros(16, np.uint32)
    va = world.map_host(0, data, True)
    world.launch(0, world.load(OUT_OF_BOUNDS), params(va), 1, 32)
    with pytest.raises(errors.KernelFault) as info:
        world.run()
    assert (info.value.line, info.value.rank) == (32, 0)


def test_world_executor_waits_in_the_callers_thread():
    world = _emu.World(1)
    ex = EmuExecutor(world, 0)
    mine = words(ex)
    ex.launch(ex.load("step", STEP, 32), params(mine, 1), 1, 1)
    assert word_of(ex, mine) == 1
    host, _ = ex.host_alloc(8)
    with pytest.raises(errors.DeepEPError, match="no rank can go on: rank 0 waits in wait_word"):
        ex.wait_word(host, 1)


# -- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keywords, kind, text",
    [
        ({"scheduler": "chaos"}, ValueError, "scheduler: 'chaos' is not one of 'rr'"),
        ({"arch": "sm_70"}, ValueError, "arch: 'sm_70' is not one of None, 'sm_80', 'sm_90'"),
        ({"checks": "some"}, ValueError, "checks: 'some' is not one of 'all', 'off'"),
        ({"executor": "hip"}, ValueError, "executor: 'hip' is not one of None, 'emu', 'cuda'"),
        ({"timeout_s": 0}, ValueError, "timeout_s: must be > 0"),
        ({"timeout_s": "x"}, TypeError, "timeout_s: expected seconds"),
        ({"seed": -1}, ValueError, "seed: must be in"),
        ({"devices": [0]}, ValueError, "devices: must be 2 device indices"),
        ({"devices": 3}, TypeError, "devices: expected 2 device indices"),
        ({"ranks_per_node": 3}, ValueError, "ranks_per_node: must divide num_ranks = 2"),
        ({"ranks_per_node": 0.5}, TypeError, "ranks_per_node: must be an integer"),
    ],
)
def test_bad_arguments(keywords, kind, text):
    with pytest.raises(kind, match=text):
        run_ranks(lambda comm: None, 2, **keywords)


@pytest.mark.parametrize("num_ranks", [0, 65, -1])
def test_bad_num_ranks(num_ranks):
    with pytest.raises(ValueError, match=r"num_ranks: must be in \[1, 64\]"):
        run_ranks(lambda comm: None, num_ranks)


def test_bad_function_and_count():
    with pytest.raises(TypeError, match="fn: "):
        run_ranks(3, 2)
    with pytest.raises(TypeError, match="num_ranks: must be an integer"):
        run_ranks(lambda comm: None, "2")


def test_groups():
    class Group:
        rank, size = 0, 1

        def allgather(self, obj):
            return [obj]

        def barrier(self):
            pass

    class ProcessGroup(Group):
        def rank(self):
            return 0

    group = Group()
    assert as_comm(group) is group
    for other in (None, 3, ProcessGroup()):
        with pytest.raises(TypeError, match="group: expected the comm object that run_ranks"):
            as_comm(other)
    group.rank = 1
    with pytest.raises(ValueError, match=r"group: rank must be in \[0, 1\), got 1"):
        as_comm(group)

    def rank_main(comm):
        assert as_comm(comm) is comm
        return comm.ranks_per_node

    assert run_ranks(rank_main, 4, ranks_per_node=2, devices=[0, 1, 0, 1]) == [2] * 4


def test_cuda_without_a_driver_says_what_is_missing():
    if device_count():
        pytest.skip("there is a GPU")
    with pytest.raises(errors.DeepEPError, match="executor: 'cuda' cannot be used: .*libcuda"):
        run_ranks(lambda comm: None, 2, executor="cuda")


def test_the_best_executor_there_is(monkeypatch):
    monkeypatch.delenv("DEEPEP_PTX_EXECUTOR")
    names = run_ranks(lambda comm: comm.executor.name, 1)
    assert names == ["cuda" if device_count() else "emu"]
    monkeypatch.setenv("DEEPEP_PTX_EXECUTOR", "tpu")
    with pytest.raises(ValueError, match="DEEPEP_PTX_EXECUTOR: 'tpu' is not one of 'emu', 'cuda'"):
        run_ranks(lambda comm: None, 1)
