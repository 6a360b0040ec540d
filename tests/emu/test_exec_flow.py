# SPDX-License-Identifier: MIT
"""Divergence, `.sync` operations, barriers: what they compute, and what they report."""

import numpy as np
import pytest
from machine import HEADER, Machine, fault_of

from deepep_ptx.errors import KernelFault

STORE = "\nmad.wide.u32 d4, r1, 4, d0;\nst.global.u32 [d4], r4;"
LANES = np.arange(32)


def lanes(body, block=32, **options):
    """r4 of every thread after `body`."""
    machine = Machine(**options)
    out = machine.space(4 * block)
    machine.run(body + STORE, out, block=block)
    return machine.fetch(out, "u4", block), machine


# -- calls -------------------------------------------------------------------------------------

FUNCTIONS = """\
.shared .align 4 .b32 s_calls;
.func twice(.reg .b64 d0, .reg .b32 r4)
{
    .reg .b32 r1; .reg .pred q0;
    setp.lt.u32 q0, r4, 5;
    @q0 ret;
    add.u32 r1, r4, r4;
    st.global.u32 [d0], r1;
    red.relaxed.cta.shared.add.u32 [s_calls], 1;
    ret;
}
.func both(.reg .b64 d0, .reg .b64 d1, .reg .b32 r0)
{
    call twice, (d0, r0);
    call twice, (d1, 9);
}
"""


def test_an_argument_of_16_bits(monkeypatch):
    function = """\
.func twice(.reg .b64 d0, .reg .b16 h0)
{
    .reg .b32 r1;
    mov.b32 r1, {h0, h0};
    st.global.u32 [d0], r1;
}
"""
    monkeypatch.setattr("machine.HEADER", HEADER.replace(".visible", function + ".visible"))
    machine = Machine()
    out = machine.space(8)
    machine.run("""\
mov.u32 r4, 0x12345;
{ .reg .b16 h; mov.b32 {h, _}, r4; call twice, (d0, h); }
add.u64 d1, d0, 4;
call twice, (d1, -2);
""", out, block=1)
    assert machine.fetch(out, "u4", 2).tolist() == [0x23452345, 0xFFFEFFFE]


def test_calls(monkeypatch):
    """Arguments are copies, names are a function's own, and a return ends the innermost call."""
    monkeypatch.setattr("machine.HEADER", HEADER.replace(".visible", FUNCTIONS + ".visible"))
    machine = Machine()
    first, second, third = (machine.space(4 * 32) for _ in range(3))
    machine.run("""\
setp.eq.u32 q0, r0, 0;
@q0 st.shared.u32 [s_calls], 0;
bar.sync 0;
mov.u32 r4, 7;
mad.wide.u32 d4, r0, 4, d0;
mad.wide.u32 d5, r0, 4, d1;
mad.wide.u32 d6, r0, 4, d2;
setp.lt.u32 q0, r0, 2;
@q0 bra $none;
call both, (d4, d5, r0);
$none:
bar.sync 0;
ld.shared.u32 r5, [s_calls];
add.u32 r4, r4, r5;
st.global.u32 [d6], r4;
""", first, second, third)
    assert (machine.fetch(third, "u4", 32) == 7 + 27 + 30).all()
    assert (machine.fetch(second, "u4", 32)[2:] == 18).all()
    assert np.array_equal(machine.fetch(first, "u4", 32)[5:], 2 * np.arange(5, 32))


# -- divergence ----------------------------------------------------------------------------------

def test_nested_branches():
    got, _ = lanes("""\
mov.u32 r4, 0;
and.b32 r5, r0, 1;
setp.eq.u32 q0, r5, 0;
@q0 bra $even;
add.u32 r4, r4, 1;
setp.lt.u32 q1, r0, 16;
@q1 bra $join;
add.u32 r4, r4, 10;
bra $join;
$even:
add.u32 r4, r4, 100;
$join:
add.u32 r4, r4, 1000;
""")
    want = np.where(LANES % 2 == 0, 100, np.where(LANES < 16, 1, 11)) + 1000
    assert np.array_equal(got, want)


def test_loop_of_different_lengths():
    got, _ = lanes("""\
mov.u32 r4, 0;
mov.u32 r5, 0;
$loop:
add.u32 r4, r4, r5;
add.u32 r5, r5, 1;
setp.le.u32 q0, r5, r0;
@q0 bra $loop;
""")
    assert np.array_equal(got, LANES * (LANES + 1) // 2)


def test_lanes_meet_again_after_a_branch():
    """The instructions behind the branch run once for the whole warp."""
    _, machine = lanes("""\
mov.u32 r4, 0;
setp.lt.u32 q0, r0, 7;
@q0 bra $skip;
add.u32 r4, r4, 1;
$skip:
add.u32 r4, r4, 1;
add.u32 r4, r4, 1;
""")
    assert machine.world.counters(0)["warp_instructions"] == 8 + 4 + 2 + 2 + 1


def test_exit_of_some_lanes():
    machine = Machine()
    out = machine.array(np.zeros(32, "u4"))
    machine.run("mov.u32 r4, 1;\nsetp.ge.u32 q0, r0, 20;\n@q0 exit;\nbar.warp.sync 0xfffff;\n"
                "vote.sync.all.pred q1, q0, -1;" + STORE, out)
    assert np.array_equal(machine.fetch(out, "u4", 32), LANES < 20)


def test_a_spinning_lane_does_not_starve_the_one_that_frees_it():
    """Lane 0 spins at a low pc on a flag that lane 1, further on, sets."""
    machine = Machine()
    flag = machine.array(np.zeros(1, "u4"))
    machine.run("""\
setp.ne.u32 q0, r0, 0;
@q0 bra $set;
$spin:
ld.relaxed.cta.global.u32 r4, [d0];
setp.eq.u32 q1, r4, 0;
@q1 bra $spin;
bra $end;
$set:
st.relaxed.cta.global.u32 [d0], 1;
$end:
""", flag)


def test_a_spin_of_weak_instructions_does_not_starve_either():
    machine = Machine()
    flag = machine.array(np.zeros(1, "u4"))
    machine.run("""\
setp.ne.u32 q0, r0, 0;
@q0 bra $set;
$spin:
ld.global.u32 r4, [d0];
setp.eq.u32 q1, r4, 0;
@q1 bra $spin;
bra $end;
$set:
st.global.u32 [d0], 1;
$end:
""", flag)


def test_branch_to_the_next_instruction():
    got, _ = lanes("mov.u32 r4, 5;\nsetp.lt.u32 q0, r0, 3;\n@q0 bra $next;\n$next:\n")
    assert (got == 5).all()


def test_uniform_branch_that_is_not():
    fault_of("setp.lt.u32 q0, r0, 3;\n@q0 bra.uni $next;   // BUG\nmov.u32 r4, 1;\n$next:",
             kind="mask-mismatch")


# -- shfl, vote ----------------------------------------------------------------------------------

def shuffled(mode, b, c):
    """(source lane, predicate) of every lane, as the manual writes it."""
    source, inside = [], []
    for lane in range(32):
        clamp, segment = c & 31, c >> 8 & 31
        low = lane & segment
        high = low | (clamp & ~segment)
        j, ok = {
            "idx": (low | (b & ~segment & 31), None), "up": (lane - b, None),
            "down": (lane + b, None), "bfly": (lane ^ b, None)}[mode]
        ok = j >= high if mode == "up" else j <= high
        source.append(j if ok else lane)
        inside.append(ok)
    return np.array(source), np.array(inside)


@pytest.mark.parametrize(("mode", "b", "c"), [
    ("idx", 0, 31), ("idx", 5, 31), ("idx", 2, 0x1C03), ("up", 1, 0), ("up", 8, 0x1800),
    ("down", 1, 31), ("down", 3, 0x181F), ("bfly", 16, 31), ("bfly", 1, 31), ("bfly", 31, 31),
    ("bfly", 4, 0x1003), ("up", 0, 0), ("down", 31, 31)])
def test_shfl(mode, b, c):
    got, _ = lanes(f"mul.lo.u32 r5, r0, 3;\nshfl.sync.{mode}.b32 r4|q0, r5, {b}, {c}, -1;\n"
                   "selp.b32 r5, 1000, 0, q0;\nadd.u32 r4, r4, r5;")
    source, inside = shuffled(mode, b, c)
    assert np.array_equal(got, 3 * source + 1000 * inside)


def test_shfl_of_half_a_warp():
    got, _ = lanes("""\
mov.u32 r4, 77;
setp.ge.u32 q0, r0, 16;
@q0 bra $end;
shfl.sync.bfly.b32 r4, r0, 1, 31, 0xffff;
$end:
""")
    assert np.array_equal(got, np.where(LANES < 16, LANES ^ 1, 77))


def test_two_halves_with_masks_of_their_own_at_one_instruction():
    got, _ = lanes("""\
setp.lt.u32 q0, r0, 16;
selp.b32 r5, 0xffff, 0xffff0000, q0;
vote.sync.ballot.b32 r4, q0, r5;
shfl.sync.bfly.b32 r6, r0, 8, 31, r5;
add.u32 r4, r4, r6;
""")
    assert np.array_equal(got, np.where(LANES < 16, 0xFFFF, 0) + (LANES ^ 8))


def test_shfl_gathers_lanes_that_come_apart():
    """Lanes arrive at the instruction one by one and leave it together."""
    got, machine = lanes("""\
mov.u32 r5, 0;
$loop:
add.u32 r5, r5, 1;
setp.le.u32 q0, r5, r0;
@q0 bra $loop;
shfl.sync.idx.b32 r4, r5, 31, 31, -1;
""")
    assert (got == 32).all()


@pytest.mark.parametrize(("mode", "want"), [("all", [1, 0, 0, 0]), ("any", [1, 1, 1, 0]),
                                            ("uni", [1, 0, 0, 1])])
def test_vote(mode, want):
    for bound, expected in zip((32, 31, 1, 0), want, strict=True):
        got, _ = lanes(f"setp.lt.u32 q0, r0, {bound};\nvote.sync.{mode}.pred q1, q0, -1;\n"
                       "selp.b32 r4, 1, 0, q1;")
        assert (got == expected).all()


def test_ballot():
    got, _ = lanes("and.b32 r5, r0, 3;\nsetp.eq.u32 q0, r5, 1;\n"
                   "vote.sync.ballot.b32 r4, !q0, -1;")
    assert (got == 0xDDDDDDDD).all()


def test_partial_last_warp():
    """Lanes beyond the block are like lanes that have exited."""
    got, _ = lanes("setp.ge.u32 q0, r0, 0;\nvote.sync.ballot.b32 r4, q0, -1;\nbar.sync 0;", 40)
    assert (got[:32] == 2**32 - 1).all() and (got[32:] == 255).all()


# -- mask errors ---------------------------------------------------------------------------------

def test_lane_that_is_not_in_its_mask():
    fault = fault_of("shfl.sync.idx.b32 r4, r0, 0, 31, 0xffff;   // BUG", kind="mask-mismatch")
    assert fault.lane == 16


def test_lane_in_the_mask_with_its_guard_off():
    fault = fault_of("setp.lt.u32 q0, r0, 30;\n@q0 bar.warp.sync -1;   // BUG",
                     kind="mask-mismatch")
    assert fault.lane == 30 and "0xc0000000" in str(fault)


def test_lanes_of_one_mask_at_different_instructions():
    fault = fault_of("""\
setp.lt.u32 q0, r0, 8;
@q0 bra $low;
shfl.sync.idx.b32 r4, r0, 0, 31, -1;
bra $end;
$low:
shfl.sync.idx.b32 r4, r0, 1, 31, -1;   // BUG
$end:
""", kind="mask-mismatch")
    assert "test.ptx:3 " in str(fault)


def test_lanes_that_name_different_masks():
    fault_of("setp.lt.u32 q0, r0, 8;\nselp.b32 r5, -1, 0xffffff00, q0;\n"
             "bar.warp.sync r5;   // BUG", kind="mask-mismatch")


def test_bar_warp_meets_at_different_instructions():
    got, _ = lanes("""\
mov.u32 r4, 1;
setp.lt.u32 q0, r0, 8;
@q0 bra $low;
bar.warp.sync -1;
bra $end;
$low:
add.u32 r4, r4, 1;
bar.warp.sync -1;
$end:
""")
    assert np.array_equal(got, np.where(LANES < 8, 2, 1))


def test_mask_of_lanes_that_never_come():
    fault = fault_of("""\
setp.lt.u32 q0, r0, 8;
@q0 bra $low;
bar.warp.sync -1;   // BUG
bra $end;
$low:
bar.sync 0;
$end:
""", kind="deadlock")
    assert "wait for lanes 0xff at test.ptx:3" in str(fault)
    assert "wait for lanes 0xffffff00 of their warp at test.ptx:6" in str(fault)


# -- barriers ------------------------------------------------------------------------------------

def test_barrier_orders_shared_memory():
    """Each thread reads what the opposite thread wrote, over and over."""
    machine = Machine()
    out = machine.space(4 * 256)
    machine.run("""\
shl.b32 r5, r0, 2;
sub.u32 r6, 255, r0;
shl.b32 r6, r6, 2;
mov.u32 r4, r0;
mov.u32 r7, 0;
$loop:
st.shared.u32 [r5], r4;
bar.sync 0;
ld.shared.u32 r4, [r6];
add.u32 r4, r4, 1;
bar.sync 0;
add.u32 r7, r7, 1;
setp.lt.u32 q0, r7, 9;
@q0 bra $loop;
""" + STORE, out, block=256, smem=1024)
    assert np.array_equal(machine.fetch(out, "u4", 256), 255 - np.arange(256) + 9)


def test_named_barriers_of_two_halves():
    """Each half of the CTA has a barrier of its own and a different number of rounds."""
    machine = Machine()
    out = machine.space(4 * 128)
    machine.run("""\
shr.u32 r5, r0, 6;
add.u32 r6, r5, 1;
mad.lo.u32 r7, r5, 5, 3;
mov.u32 r4, 0;
$loop:
bar.sync r6, 64;
add.u32 r4, r4, 1;
setp.lt.u32 q0, r4, r7;
@q0 bra $loop;
bar.sync 0;
""" + STORE, out, block=128)
    assert np.array_equal(machine.fetch(out, "u4", 128), np.where(np.arange(128) < 64, 3, 8))


def test_warp_gathers_before_the_barrier():
    """Halves of a warp that arrive at different times count once."""
    machine = Machine()
    out = machine.space(4 * 64)
    machine.run("""\
mov.u32 r4, 0;
and.b32 r5, r0, 1;
setp.eq.u32 q0, r5, 0;
@q0 bra $join;
mov.u32 r4, 1;
bar.warp.sync 0xaaaaaaaa;
$join:
bar.sync 0;
add.u32 r4, r4, 2;
bar.sync 0;
""" + STORE, out, block=64)
    assert np.array_equal(machine.fetch(out, "u4", 64), 2 + np.arange(64) % 2)


@pytest.mark.parametrize(("form", "what"), [
    ("bar.sync 16;", "barrier 16"), ("bar.sync 1, 48;", "thread count 48"),
    ("bar.sync 1, 0;", "thread count 0"), ("bar.sync 1, 128;", "thread count 128"),
    ("bar.sync r0;", "different barriers"),
    ("@q0 bar.sync 0;", "skip bar.sync")])
def test_barrier_misuse(form, what):
    fault = fault_of(f"setp.lt.u32 q0, r0, 3;\n{form}   // BUG", kind="barrier", block=64)
    assert what in str(fault)


def test_barrier_with_two_counts():
    fault = fault_of("""\
setp.lt.u32 q0, r0, 32;
@q0 bra $low;
bar.sync 1, 96;   // BUG
bra $end;
$low:
bar.sync 1, 64;
$end:
""", kind="barrier", block=96)
    assert "test.ptx:6" in str(fault) and "96" in str(fault) and "64" in str(fault)


def test_one_warp_at_two_barriers():
    fault = fault_of("""\
setp.lt.u32 q0, r0, 8;
@q0 bra $low;
bar.sync 0;
bra $end;
$low:
bar.sync 0;   // BUG
$end:
""", kind="barrier")
    assert "test.ptx:3" in str(fault)


def test_deadlock_at_a_barrier_some_warps_left():
    fault = fault_of("""\
setp.ge.u32 q0, r0, 96;
@q0 exit;
bar.sync 0;   // BUG
""", kind="deadlock", block=128)
    assert "warp 0 to 2: lanes 0xffffffff wait at barrier 0 (96 of 128 threads are there" \
        in str(fault)
    assert "1 warps have exited" in str(fault)


def test_deadlock_of_two_barriers():
    fault = fault_of("""\
setp.lt.u32 q0, r0, 32;
@q0 bra $low;
bar.sync 2, 64;
bra $end;
$low:
bar.sync 1, 64;   // BUG
$end:
""", kind="deadlock", block=64)
    assert "barrier 1 (32 of 64" in str(fault) and "barrier 2 (32 of 64" in str(fault)


def test_deadlock_of_one_cta_while_others_go_on():
    """A CTA whose warps all wait for each other is reported though another one is busy."""
    machine = Machine()
    flag = machine.array(np.zeros(1, "u4"))
    fault = fault_of("""\
setp.eq.u32 q0, r2, 0;
@q0 bra $poll;
setp.lt.u32 q0, r0, 32;
@q0 exit;
bar.sync 0;   // BUG
$poll:
ld.relaxed.gpu.global.u32 r4, [d0];
setp.eq.u32 q0, r4, 0;
@q0 bra $poll;
""", flag, kind="deadlock", machine=machine, grid=2, block=64)
    assert fault.cta == 1


def test_a_poll_of_16_bytes_is_reported_whole():
    machine = Machine()
    word = machine.array(np.array([5, 3], "u8"))
    with pytest.raises(KernelFault, match="livelock") as raised:
        machine.run("$poll:\nld.relaxed.sys.global.b128 z0, [d0];\nmov.b128 {d4, d5}, z0;\n"
                    "setp.ne.u64 q0, d4, 1;\n@q0 bra $poll;", word, block=1)
    assert "= 0x30000000000000005" in str(raised.value)
