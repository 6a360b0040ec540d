# SPDX-License-Identifier: MIT
"""Several CTAs and ranks that wait for each other, virtual time, and waits that nothing ends."""

import re

import numpy as np
import pytest
from machine import FILE, Machine, fault_of, kernel, line_of

from deepep_ptx.errors import KernelFault

# Writes 32 words at d0 and raises the flag d1 to d2.
SEND = """\
mad.wide.u32 d4, r0, 4, d0;
cvt.u32.u64 r4, d2;
mad.lo.u32 r4, r4, 100, r0;
st.global.u32 [d4], r4;
bar.warp.sync -1;
setp.eq.u32 q0, r0, 0;
@q0 st.release.sys.global.u64 [d1], d2;
"""

# Waits for flag d1 = d2, then copies 32 words from d0 to d3.
RECV = """\
$poll:
ld.acquire.sys.global.u64 d5, [d1];
setp.ne.u64 q0, d5, d2;
@q0 bra $poll;
mad.wide.u32 d4, r0, 4, d0;
mad.wide.u32 d6, r0, 4, d3;
ld.global.u32 r4, [d4];
st.global.u32 [d6], r4;
"""


def test_message_between_two_ranks():
    machine = Machine(2)
    inbox = machine.space(128, rank=1, name="inbox")
    flag = machine.array(np.zeros(1, "u8"), rank=1, name="flag")
    out = machine.space(128, rank=1)
    there = [machine.world.map_peer(0, 1, va) for va in (inbox, flag)]
    machine.launch(RECV, inbox, flag, 7, out, rank=1)
    assert not machine.world.run(max_virtual_ns=10_000)
    machine.launch(SEND, *there, 7, rank=0)
    assert machine.world.run()
    assert np.array_equal(machine.fetch(out, "u4", 32, rank=1), 700 + np.arange(32))
    assert machine.world.counters(0)["peer_store_bytes"] == 128 + 8
    assert machine.world.counters(1)["peer_load_bytes"] == 0


def test_ring_of_ranks():
    """Each rank waits for the one before it."""
    ranks = 5
    machine = Machine(ranks)
    inbox = [machine.space(128, rank=r) for r in range(ranks)]
    flag = [machine.array(np.zeros(1, "u8"), rank=r) for r in range(ranks)]
    for r in range(ranks):
        after = (r + 1) % ranks
        body = RECV + SEND.replace("d0", "d8").replace("d1;", "d9;").replace("[d1]", "[d9]")
        head = "ld.param.u64 d8, [p + 32];\nld.param.u64 d9, [p + 40];\n"
        machine.launch(head + body, inbox[r], flag[r], 3, machine.space(128, rank=r),
                       machine.world.map_peer(r, after, inbox[after]),
                       machine.world.map_peer(r, after, flag[after]), rank=r)
    assert not machine.world.run(max_virtual_ns=10_000)
    machine.launch(SEND, inbox[0], flag[0], 3, rank=0)
    assert machine.world.run()


def test_ticket_of_many_ctas():
    """The last CTA to arrive sees what all others wrote."""
    machine = Machine()
    cells = machine.array(np.zeros(66, "u4"))
    machine.run("""\
setp.ne.u32 q0, r0, 0;
@q0 exit;
mad.wide.u32 d4, r2, 4, d0;
add.u32 r4, r2, 1;
st.global.u32 [d4], r4;
atom.acq_rel.gpu.global.inc.u32 r5, [d0 + 256], 63;
setp.ne.u32 q0, r5, 63;
@q0 exit;
mov.u32 r6, 0;
mov.u32 r7, 0;
$sum:
mad.wide.u32 d4, r6, 4, d0;
ld.global.u32 r8, [d4];
add.u32 r7, r7, r8;
add.u32 r6, r6, 1;
setp.lt.u32 q0, r6, 64;
@q0 bra $sum;
st.global.u32 [d0 + 260], r7;
""", cells, grid=64, block=128)
    got = machine.fetch(cells, "u4", 66)
    assert got[64] == 0 and got[65] == 64 * 65 // 2


# -- residency -----------------------------------------------------------------------------------

MEET = """\
setp.ne.u32 q0, r0, 0;
@q0 exit;
mov.u32 r4, %nctaid.x;
red.relaxed.gpu.global.add.u32 [d0], 1;
$wait:
ld.relaxed.gpu.global.u32 r5, [d0];   // BUG
setp.lt.u32 q0, r5, r4;
@q0 bra $wait;
"""


def test_ctas_of_a_grid_that_fits_run_together():
    machine = Machine(sms_per_rank=4)
    cell = machine.array(np.zeros(1, "u4"))
    machine.run(MEET, cell, grid=8, block=1024)
    assert machine.fetch(cell, "u4", 1)[0] == 8


@pytest.mark.parametrize(("grid", "block", "smem"), [(9, 1024, 0), (5, 32, 120_000),
                                                     (129, 32, 0)])
def test_ctas_that_do_not_fit_wait_for_a_free_sm(grid, block, smem):
    """A grid that needs all its CTAs at once never ends on a smaller device."""
    machine = Machine(sms_per_rank=4)
    cell = machine.array(np.zeros(1, "u4"), name="arrived")
    fault = fault_of(MEET, cell, kind="livelock", machine=machine, grid=grid, block=block,
                     smem=smem)
    assert "1 of" in str(fault) and "wait for a free SM" in str(fault)
    assert "'arrived' + 0 (4 bytes)" in str(fault)


def test_more_ctas_than_fit_run_in_waves():
    machine = Machine(sms_per_rank=2)
    cell = machine.array(np.zeros(1, "u4"))
    machine.run("red.relaxed.gpu.global.add.u32 [d0], 1;", cell, grid=40, block=1024)
    assert machine.fetch(cell, "u4", 1)[0] == 40 * 1024


def test_launch_that_no_device_takes():
    machine = Machine()
    loaded = machine.world.load(kernel(""))
    with pytest.raises(ValueError):
        machine.world.launch(0, loaded, bytes(64), 1, 32, 240_000)
    with pytest.raises(ValueError):
        machine.world.launch(0, loaded, bytes(32), 1, 32)


# -- time ----------------------------------------------------------------------------------------

# Polls [d0] until it is 1 or d1 ns have gone by; the time it took goes to [d2].
TIMED = """\
mov.u64 d4, %globaltimer;
add.u64 d5, d4, d1;
$poll:
ld.relaxed.sys.global.u32 r4, [d0];
setp.eq.u32 q0, r4, 1;
@q0 bra $end;
mov.u64 d6, %globaltimer;
setp.lt.u64 q0, d6, d5;
@q0 bra $poll;
sub.u64 d7, d6, d4;
st.global.u64 [d2], d7;
$end:
"""


def test_time_limit_ends_at_the_right_time():
    machine = Machine()
    flag = machine.array(np.zeros(1, "u4"))
    out = machine.space(8)
    machine.run(TIMED, flag, 100 * 10**9, out)
    assert 0 <= machine.fetch(out, "u8", 1)[0] - 100 * 10**9 < 10_000
    assert machine.world.now < 101 * 10**9
    assert machine.world.counters(0)["warp_instructions"] < 20_000


def test_the_earliest_time_limit_comes_first():
    """The wait with the shorter limit raises the flag that the longer one polls."""
    machine = Machine(2)
    flags = [machine.array(np.zeros(1, "u4"), rank=r) for r in range(2)]
    outs = [machine.array(np.full(1, 9, "u8"), rank=r) for r in range(2)]
    there = machine.world.map_peer(0, 1, flags[1])
    machine.launch(TIMED, flags[1], 5 * 10**9, outs[1], rank=1)
    machine.launch(TIMED.replace("$end:", "st.release.sys.global.u32 [d3], 1;\n$end:"), flags[0],
                   10**9, outs[0], there, rank=0)
    assert machine.world.run()
    assert 0 <= machine.fetch(outs[0], "u8", 1)[0] - 10**9 < 10_000
    assert machine.fetch(outs[1], "u8", 1, rank=1)[0] == 9
    assert machine.world.now < 2 * 10**9


@pytest.mark.parametrize("every", [1, 64])
def test_clock_that_is_read_now_and_then(every):
    """A loop that looks at the clock every 64 polls, and sleeps between them."""
    machine = Machine()
    flag = machine.array(np.zeros(1, "u4"))
    machine.run(f"""\
mov.u64 d4, %globaltimer;
add.u64 d5, d4, d1;
mov.u32 r5, 0;
$poll:
ld.relaxed.sys.global.u32 r4, [d0];
setp.eq.u32 q0, r4, 1;
@q0 bra $end;
nanosleep.u32 100;
add.u32 r5, r5, 1;
and.b32 r6, r5, {every - 1};
setp.ne.u32 q0, r6, 0;
@q0 bra $poll;
mov.u64 d6, %globaltimer;
setp.ge.u64 q0, d6, d5;
@!q0 bra $poll;
$end:
""", flag, 10**11)
    assert 10**11 <= machine.world.now < 10**11 + 10**6


def test_time_limit_of_one_warp_while_others_wait_at_a_barrier():
    machine = Machine()
    flag = machine.array(np.zeros(1, "u4"))
    out = machine.space(8)
    machine.run("setp.ge.u32 q1, r0, 32;\n@q1 bra $end;\n" + TIMED + "bar.sync 0;", flag, 10**10,
                out, block=256)
    assert machine.fetch(out, "u8", 1)[0] >= 10**10


def test_time_limit_by_way_of_a_barrier():
    """One warp polls, all warps look at its verdict behind a barrier, in every turn of the loop."""
    machine = Machine()
    flag = machine.array(np.zeros(1, "u4"))
    machine.run("""\
mov.u64 d4, %globaltimer;
add.u64 d5, d4, d1;
$loop:
setp.ne.u32 q1, r0, 0;
@q1 bra $meet;
ld.relaxed.sys.global.u32 r4, [d0];
mov.u64 d6, %globaltimer;
setp.ge.u64 q0, d6, d5;
selp.b32 r4, 1, r4, q0;
st.shared.u32 [smem], r4;
$meet:
bar.sync 0;
ld.shared.u32 r5, [smem];
bar.sync 0;
setp.eq.u32 q0, r5, 0;
@q0 bra $loop;
""", flag, 10**9, block=64, smem=16)
    assert 10**9 <= machine.world.now < 2 * 10**9


def test_nanosleep():
    machine = Machine()
    out = machine.space(16)
    machine.run("mov.u64 d4, %globaltimer;\nnanosleep.u32 1000000;\nmov.u64 d5, %globaltimer;\n"
                "sub.u64 d5, d5, d4;\nst.global.u64 [d0], d5;", out)
    assert 10**6 <= machine.fetch(out, "u8", 1)[0] < 10**6 + 1000


# -- waits that nothing ends -----------------------------------------------------------------------

def test_livelock_on_a_flag_nobody_sets():
    machine = Machine(2)
    flag = machine.array(np.array([5], "u4"), rank=1, name="flag")
    there = machine.world.map_peer(0, 1, flag)
    fault = fault_of("""\
$poll:
ld.acquire.sys.global.u32 r4, [d0];   // BUG
setp.ne.u32 q0, r4, 6;
@q0 bra $poll;
""", there, kind="livelock", machine=machine)
    assert "'flag' of rank 1 + 0 (4 bytes) = 0x5" in str(fault)
    assert "rank 0, CTA 0, warp 0: lanes 0xffffffff poll" in str(fault)


def test_livelock_lists_barriers_too():
    machine = Machine()
    cells = machine.array(np.zeros(64, "u4"), name="flags")
    fault = fault_of("""\
setp.ge.u32 q0, r0, 3;
@q0 bra $meet;
mad.wide.u32 d4, r0, 8, d0;
$poll:
ld.relaxed.sys.global.u32 r4, [d4];   // BUG
setp.eq.u32 q0, r4, 0;
@q0 bra $poll;
$meet:
bar.sync 1, 64;
""", cells, kind="livelock", machine=machine, block=64)
    text = str(fault)
    assert "'flags' + 0 (256 bytes) = 0" in text and "'flags' + 0x10 (256 bytes) = 0" in text
    assert "lanes 0xfffffff8 wait for lanes 0x7 of their warp at test.ptx:9" in text
    assert "warp 1: lanes 0xffffffff wait at barrier 1 (32 of 64 threads are there" in text


def test_livelock_of_a_loop_over_several_flags():
    """Each turn of the outer loop polls 20 words; none of them ever changes."""
    machine = Machine()
    cells = machine.array(np.zeros(20, "u4"))
    body = """\
$all:
mov.u32 r5, 0;
mov.u32 r6, 0;
$next:
mad.wide.u32 d4, r5, 4, d0;
ld.relaxed.sys.global.u32 r4, [d4];   // BUG
add.u32 r6, r6, r4;
add.u32 r5, r5, 1;
setp.lt.u32 q0, r5, 20;
@q0 bra $next;
setp.ne.u32 q0, r6, 20;
@q0 bra $all;
"""
    fault_of(body, cells, kind="livelock", machine=machine)


def test_livelock_of_failing_compare_and_swap():
    machine = Machine()
    cells = machine.array(np.ones(1, "u4"), name="lock")
    fault_of("$try:\natom.acquire.gpu.global.cas.b32 r4, [d0], 0, 1;   // BUG\n"
             "setp.ne.u32 q0, r4, 0;\n@q0 bra $try;", cells, kind="livelock", machine=machine)


def test_polls_that_give_up_by_themselves_are_no_livelock():
    machine = Machine()
    flag = machine.array(np.zeros(1, "u4"))
    machine.run("""\
mov.u32 r5, 0;
$poll:
ld.acquire.sys.global.u32 r4, [d0];
setp.ne.u32 q0, r4, 0;
@q0 bra $end;
add.u32 r5, r5, 1;
setp.lt.u32 q0, r5, 5000;
@q0 bra $poll;
$end:
""", flag)


def test_strong_loads_of_a_long_loop_are_no_livelock():
    """Sums 40,000 words, each with a strong load, and stores once."""
    machine = Machine()
    count = 40_000
    data = machine.array(np.ones(count, "u4"))
    out = machine.space(4)
    machine.run(f"""\
mov.u32 r5, 0;
mov.u32 r6, 0;
$loop:
mad.wide.u32 d4, r5, 4, d0;
ld.volatile.global.u32 r4, [d4];
add.u32 r6, r6, r4;
add.u32 r5, r5, 1;
setp.lt.u32 q0, r5, {count};
@q0 bra $loop;
st.global.u32 [d1], r6;
""", data, out)
    assert machine.fetch(out, "u4", 1)[0] == count


def test_never_ending_loop():
    body = """\
mov.u32 r4, 0;
$loop:
add.u32 r4, r4, 1;
setp.ne.u32 q0, r0, 99;
@q0 bra $loop;
"""
    with pytest.raises(KernelFault) as raised:
        Machine(stall_limit=100_000).run(body)
    fault = raised.value
    assert fault.kind == "never-ending" and fault.file == FILE and 3 <= fault.line <= 5
    assert (fault.rank, fault.cta, fault.warp, fault.lane) == (0, 0, 0, -1)


def test_never_ending_poll_of_weak_loads():
    """The wrong load for a flag: the report shows where the lanes are, and the others' waits."""
    machine = Machine(stall_limit=100_000)
    flag = machine.array(np.zeros(1, "u4"))
    body = """\
setp.ge.u32 q0, r0, 32;
@q0 bra $meet;
$poll:
ld.global.u32 r4, [d0];
setp.eq.u32 q0, r4, 0;
@q0 bra $poll;
$meet:
bar.sync 0;
"""
    with pytest.raises(KernelFault) as raised:
        machine.run(body, flag, block=64)
    fault = raised.value
    assert fault.kind == "never-ending" and fault.warp == 0 and 4 <= fault.line <= 6
    assert "warp 1: lanes 0xffffffff wait at barrier 0" in str(fault)


@pytest.mark.parametrize("scheduler", ["rr", "random", "late-async"])
@pytest.mark.parametrize("step", [
    "atom.global.add.u32 r4, [d0], 1;",          # each changes a byte of the world
    "red.global.add.u32 [d0], 1;",
    "add.u32 r5, r5, 1; st.global.u32 [d0], r5;",
    "add.u32 r5, r5, 1; st.shared.u32 [smem], r5;",
])
def test_a_loop_that_stores_for_ever(step, scheduler):
    machine = Machine(2, instruction_limit=100_000, scheduler=scheduler)
    word = machine.array(np.zeros(1, "u4"))
    with pytest.raises(KernelFault) as raised:
        machine.run(f"mov.u32 r5, 0;\n$loop:\n{step}\nbra $loop;", word, block=1, smem=16)
    fault = raised.value
    assert fault.kind == "never-ending" and fault.file == FILE and 3 <= fault.line <= 4
    assert (fault.kernel, fault.rank, fault.cta, fault.warp, fault.lane) == ("k", 0, 0, 0, -1)
    assert "a launch of k on rank 0 executed " in str(fault)
    assert "instruction_limit is 100000" in str(fault)


def where(fault):
    """The lines of a report behind the first, without the numbers of rendered lines."""
    return re.sub(r" \(line \d+ of the rendered text\)", "", str(fault)).splitlines()[1:]


ROLES = """\
shr.u32 r4, r0, 5;
setp.eq.u32 q0, r4, 3;
@q0 bra $poll;
setp.lt.u32 q0, r0, 64;
@q0 bra $add;
setp.eq.u32 q1, r2, 2;
@q1 exit;
bar.sync 1, 128;
$add:
red.global.add.u32 [d0], 1; bra $add;
$poll:
ld.relaxed.sys.global.u32 r4, [d0 + 4]; bra $poll;
"""


def test_a_never_ending_launch_says_where_all_warps_are():
    """Warps and CTAs that are alike are one line; other grids come behind."""
    machine = Machine(2, instruction_limit=30_000, sms_per_rank=20)
    words = machine.array(np.zeros(2, "u4"), rank=1)
    machine.launch("$loop:\nred.global.add.u32 [d0], 1; bra $loop;",
                   machine.world.map_peer(0, 1, words))
    with pytest.raises(KernelFault, match="never-ending: a launch of k on rank 1") as raised:
        machine.run(ROLES, words, rank=1, grid=20, block=192)
    last, *same, other = where(raised.value)
    assert re.fullmatch(rf"  the last by warp \d of CTA \d+, at test.ptx:{raised.value.line}: .*;",
                        last)
    at = "lanes 0xffffffff run at test.ptx:"
    patterns = [
        rf"  k, rank 1, CTA 0 to 19, warp 0 to 1: {at}10: .*;",
        rf"  k, rank 1, CTA 0 to 19, warp 3: {at}12: .*;",
        "  k, rank 1, CTA 0 to 1, warp 2, 4 to 5; CTA 3 to 19, warp 2, 4 to 5: lanes 0xffffffff "
        r"wait at barrier 1 \(96 of 128 threads are there, 0 warps have exited\), test.ptx:8: .*;"]
    assert [sum(bool(re.fullmatch(p, line)) for line in same) for p in patterns] == [1, 1, 1]
    assert len(same) == 3 and re.fullmatch(rf"  k, rank 0, CTA 0, warp 0: {at}2: .*;", other)


@pytest.mark.parametrize("scheduler", ["rr", "random"])
def test_a_report_of_many_groups_is_short(scheduler):
    """Each lane at an instruction of its own: some are shown, the others are counted."""
    machine = Machine(2, stall_limit=30_000, scheduler=scheduler, sms_per_rank=8)
    body = "\n".join(["mov.u32 r4, %laneid;", *(f"setp.eq.u32 q0, r4, {i}; @q0 bra $l{i};"
                                                for i in range(32)),
                      *(f"$l{i}:\n add.u32 r5, r4, 1; bra $l{i};" for i in range(32))])
    machine.launch(body, rank=1, grid=3, block=64)
    with pytest.raises(KernelFault, match="never-ending") as raised:
        machine.run(body, grid=5, block=96)
    fault = raised.value
    at, *lines, left = where(fault)
    assert re.fullmatch(rf"  they are at test.ptx:{fault.line}: \w.*;", at)
    assert len(lines) == 16
    assert re.match(rf"  k, rank {fault.rank}, CTA [0-4 to]+, warp [0-2, to]+[;:].* run at ",
                    lines[0])
    count = int(re.fullmatch(r"  \.\.\. and (\d+) more groups of lanes", left)[1])
    groups = 32 * (5 * 3 + 3 * 2)
    assert count == groups - 16 * 5 * 3 if scheduler == "rr" else 0 < count < groups


def test_a_livelock_of_many_flags_shows_some_of_them():
    """Each CTA polls a word of its own: eight are shown, then where the others are."""
    machine = Machine(sms_per_rank=20)
    flags = machine.array(np.zeros(20, "u4"), name="flags")
    fault = fault_of("""\
mad.wide.u32 d4, r2, 4, d0;
$poll:
ld.relaxed.sys.global.u32 r4, [d4];   // BUG
setp.eq.u32 q0, r4, 0;
@q0 bra $poll;
""", flags, kind="livelock", machine=machine, grid=20, block=128)
    lines = where(fault)
    assert [line.partition(": ")[0] for line in lines] == [
        *(f"  k, rank 0, CTA {cta}, warp 0 to 3" for cta in range(8)),
        "  k, rank 0, CTA 8 to 19, warp 0 to 3"]
    assert all(f"'flags' + {hex(4 * cta)} " in line or not cta
               for cta, line in enumerate(lines[:-1]))
    assert ": more lanes at test.ptx:3: ld.relaxed.sys.global.u32 r4, [d4];" in lines[-1]


def test_the_instruction_limit_is_that_of_each_launch():
    """Ten launches of less than 1000 warp instructions, and one of more."""
    machine = Machine(instruction_limit=1000)
    word = machine.array(np.zeros(1, "u4"))
    body = "\n".join(60 * ["red.global.add.u32 [d0], 1;"])
    for _ in range(10):
        machine.run(body, word, grid=5)
    assert machine.fetch(word, "u4", 1)[0] == 10 * 5 * 32 * 60
    with pytest.raises(KernelFault, match="a launch of k on rank 0"):
        machine.run(body, word, grid=20)


def test_a_fault_is_final():
    machine = Machine()
    body = "ld.global.u32 r4, [d0];   // BUG"
    fault = fault_of(body, 0, kind="out-of-bounds", machine=machine)
    assert fault.line == line_of(body)
    with pytest.raises(Exception, match="out-of-bounds"):
        machine.run("mov.u32 r4, 0;")


# -- reproducibility -------------------------------------------------------------------------------

def test_two_runs_are_equal():
    def run():
        machine = Machine(3, seed=4)
        flag = machine.array(np.zeros(1, "u4"))
        for rank in range(3):
            machine.launch("red.relaxed.sys.global.add.u32 [d0], r1;",
                           machine.world.map_peer(rank, 0, flag) if rank else flag, rank=rank,
                           grid=7, block=96)
        machine.world.run()
        return machine.world.now, machine.world.counters(1), machine.fetch(flag, "u4", 1)[0]

    assert run() == run()


@pytest.mark.parametrize("scheduler", ["rr", "random", "late-async"])
def test_a_run_does_not_depend_on_what_an_output_held(scheduler):
    """A poll loop that stores: whether the first store changes a byte is nobody's business."""
    def run(held):
        machine = Machine(scheduler=scheduler)
        flag = machine.array(np.zeros(1, "u4"))
        output = np.full(4, held, "u4")
        machine.run("""\
mov.u32 r5, 0;
$poll:
ld.relaxed.sys.global.u32 r4, [d0];
st.global.u32 [d1], 7;
add.u32 r5, r5, 1;
setp.lt.u32 q0, r5, 50;
@q0 bra $poll;
""", flag, machine.world.map_host(0, output), block=256)
        return machine.world.now, machine.world.counters(0)

    assert run(0) == run(7)
