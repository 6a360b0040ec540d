# SPDX-License-Identifier: MIT
"""mbarriers and bulk copies: what they do under each scheduler, and what mistakes look like."""

import numpy as np
import pytest
from machine import Machine, fault_of, line_of

from deepep_ptx.errors import KernelFault

SCHEDULERS = ["rr", "random", "late-async"]
SEEDS = range(6)
STAGE = 1024                              # bytes of a stage

# CTA c copies rows c, c + grid, ... of d0 to d1 through a ring of two stages; there are d3 rows of
# STAGE bytes.  mbarrier of stage s: smem + 8 * s; bytes of stage s: smem + 128 + STAGE * s.  r16
# counts loads, r17 stores.  Thread 0 does it all; then it raises the flag at d2.
RING = """\
cvt.u32.u64 r8, d3;
mov.u32 r9, %nctaid.x;
setp.ne.u32 q0, r0, 0;
@q0 bra $end;
mbarrier.init.shared.b64 [smem], 1;
mbarrier.init.shared.b64 [smem + 8], 1;
fence.mbarrier_init.release.cluster;
mov.u32 r16, 0;
mov.u32 r17, 0;
mov.u32 r18, r2;                          // row to load
mov.u32 r19, r2;                          // row to store
$load:
setp.ge.u32 q1, r18, r8;
@q1 bra $take;
sub.u32 r10, r16, r17;
setp.ge.u32 q1, r10, 2;
@q1 bra $take;
and.b32 r11, r16, 1;
mov.u32 r12, smem;
mad.lo.u32 r12, r11, 8, r12;
mov.u32 r13, smem;
mad.lo.u32 r13, r11, 1024, r13;
mul.wide.u32 d4, r18, 1024;
add.u64 d4, d0, d4;
cp.async.bulk.wait_group.read 0;          // FREE
mbarrier.arrive.expect_tx.shared.b64 _, [r12], 1024;    // EXPECT
add.u32 r15, r13, 128;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r15], [d4], 1024, [r12]; // LOAD
add.u32 r16, r16, 1;
add.u32 r18, r18, r9;
bra $load;
$take:
setp.ge.u32 q1, r19, r8;
@q1 bra $done;
and.b32 r11, r17, 1;
shr.u32 r14, r17, 1;
and.b32 r14, r14, 1;
mov.u32 r12, smem;
mad.lo.u32 r12, r11, 8, r12;
mov.u32 r13, smem;
mad.lo.u32 r13, r11, 1024, r13;
$poll:
mbarrier.try_wait.parity.shared.b64 q2, [r12], r14;     // WAIT
@!q2 bra $poll;
mul.wide.u32 d5, r19, 1024;
add.u64 d5, d1, d5;
cp.async.bulk.global.shared::cta.bulk_group [d5], [r13 + 128], 1024;
cp.async.bulk.commit_group;
add.u32 r17, r17, 1;
add.u32 r19, r19, r9;
bra $load;
$done:
cp.async.bulk.wait_group 0;               // ALL
$flag:
red.release.sys.global.add.u32 [d2], 1;
$end:
"""

# Waits until the flag d1 is d2, then adds up the words d0[0..d3) into d4.
READER = """\
ld.param.u64 d8, [p + 32];
$poll:
ld.acquire.sys.global.u32 r4, [d1];
cvt.u64.u32 d5, r4;
setp.lt.u64 q0, d5, d2;
@q0 bra $poll;
cvt.u32.u64 r8, d3;
mov.u32 r5, r0;
mov.u32 r6, 0;
$sum:
mad.wide.u32 d4, r5, 4, d0;
ld.global.u32 r7, [d4];
add.u32 r6, r6, r7;
add.u32 r5, r5, 32;
setp.lt.u32 q1, r5, r8;
@q1 bra $sum;
red.relaxed.gpu.global.add.u32 [d8], r6;
"""


class Rows:
    """Rank 0 copies rows to rank 1, which waits for the flag and adds them up."""

    def __init__(self, num_rows=7, ctas=2, **options):
        self.machine = Machine(2, **options)
        self.num_rows, self.ctas = num_rows, ctas
        rng = np.random.default_rng(num_rows)
        self.rows = rng.integers(0, 1 << 16, (num_rows, STAGE // 4), "u4")
        self.source = self.machine.array(self.rows, name="rows")
        self.there = self.machine.array(np.zeros_like(self.rows), rank=1, name="inbox")
        self.flag = self.machine.array(np.zeros(1, "u4"), rank=1, name="flag")
        self.total = self.machine.array(np.zeros(1, "u4"), rank=1)

    def run(self, body=RING):
        peer = [self.machine.world.map_peer(0, 1, va) for va in (self.there, self.flag)]
        self.machine.launch(READER, self.there, self.flag, self.ctas, self.rows.size, self.total,
                            rank=1)
        self.machine.launch(body, self.source, *peer, self.num_rows, grid=self.ctas,
                            smem=128 + 2 * STAGE)
        assert self.machine.world.run()
        return self

    @property
    def got(self):
        return self.machine.fetch(self.there, "u4", self.rows.size, rank=1).reshape(
            self.rows.shape)

    @property
    def seen(self):
        """What the reader added up."""
        return self.machine.fetch(self.total, "u4", 1, rank=1)[0]

    @property
    def right(self):
        return np.array_equal(self.got, self.rows) and self.seen == self.rows.sum(dtype="u4")


def without(body, mark, instead=""):
    """The body with the marked line replaced; line numbers stay."""
    lines = body.splitlines()
    at, = (i for i, line in enumerate(lines) if line.endswith("// " + mark))
    lines[at] = instead
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_rows_through_a_ring_of_two_stages(scheduler, seed):
    rows = Rows(scheduler=scheduler, seed=seed).run()
    assert rows.right
    counters = rows.machine.world.counters(0)
    assert counters["global_load_bytes"] == rows.rows.nbytes + 4 * rows.ctas
    assert counters["peer_store_bytes"] == rows.rows.nbytes + 4 * rows.ctas
    assert counters["global_load_transactions"] == rows.rows.nbytes // 32 + rows.ctas


# -- planted bugs --------------------------------------------------------------------------------

def test_flag_before_the_copies_are_done():
    """`.read` waits for the source only: the receiver sees the flag and then old bytes."""
    bug = without(RING, "ALL", "cp.async.bulk.wait_group.read 0;")
    assert Rows(scheduler="rr").run(bug).right       # in order nobody notices
    late = Rows(scheduler="late-async").run(bug)
    assert np.array_equal(late.got, late.rows)       # in the end the bytes are there
    assert late.seen != late.rows.sum(dtype="u4")    # but not when the flag was
    assert any(not Rows(scheduler="random", seed=seed).run(bug).right for seed in range(40))


NEVER_WAITS = [                           # what the wait for the phase is replaced by
    "setp.eq.u32 q2, 0, 0;",
    # Parity 1 of a fresh mbarrier counts as over.
    "xor.b32 r14, r14, 1;  mbarrier.try_wait.parity.shared.b64 q2, [r12], r14;",
]


@pytest.mark.parametrize("bug", NEVER_WAITS)
@pytest.mark.parametrize(("num_rows", "kind", "says"), [
    (2, "uninitialised", "'inbox'"), (7, "mbarrier", "more threads arrive than")])
def test_no_wait_for_the_phase(bug, num_rows, kind, says):
    """The receiver gets what the stage held before, bytes that nobody wrote; with more rows than
    stages the next phase begins before this one has ended."""
    with pytest.raises(KernelFault) as raised:
        Rows(num_rows, scheduler="late-async").run(without(RING, "WAIT", bug))
    assert raised.value.kind == kind and says in str(raised.value)


def test_parity_that_never_comes():
    """Waiting for the same parity twice: after the second phase nothing can end it."""
    fault = fault_of("""\
setp.eq.u32 q1, r0, 0;
@q1 mbarrier.init.shared.b64 [smem], 2;
@q1 mbarrier.arrive.shared.b64 _, [smem], 2;
@q1 mbarrier.arrive.shared.b64 d4, [smem];
$poll:
mbarrier.try_wait.parity.shared.b64 q0, [smem], 1;   // BUG
@!q0 bra $poll;
""", kind="livelock", smem=64)
    assert ("poll the mbarrier at 0 of shared memory (phase parity 1, 1 of 2 arrivals pending, "
            "tx-count 0 bytes, 0 bulk copies in flight)") in str(fault)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_fewer_bytes_than_were_announced(scheduler):
    bug = without(RING, "EXPECT", "mbarrier.arrive.expect_tx.shared.b64 _, [r12], 1040;")
    with pytest.raises(KernelFault) as raised:
        Rows(scheduler=scheduler).run(bug)
    fault = raised.value
    assert fault.kind == "livelock" and "tx-count 16 bytes, 0 bulk copies" in str(fault)
    assert "mbarrier.try_wait.parity" in str(fault)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_more_bytes_than_were_announced(scheduler):
    bug = without(RING, "EXPECT", "mbarrier.arrive.expect_tx.shared.b64 _, [r12], 1008;")
    with pytest.raises(KernelFault) as raised:
        Rows(scheduler=scheduler).run(bug)
    fault = raised.value
    assert fault.kind == "mbarrier" and "more bytes have come" in str(fault)
    assert "bulk load of 1024 bytes" in str(fault) and fault.lane == 0
    assert fault.line == line_of(RING, "LOAD")
    assert f"issued at test.ptx:{fault.line} " in str(fault)


def test_stage_refilled_before_it_was_read():
    """Without wait_group.read the next load overtakes the store that still reads the stage."""
    bug = without(RING, "FREE")
    assert Rows(scheduler="rr").run(bug).right
    late = Rows(scheduler="late-async").run(bug)
    assert not np.array_equal(late.got, late.rows)


def one(body, **options):
    """A fault of one thread that has an initialised mbarrier at smem, and d0, d1 to copy."""
    return "setp.ne.u32 q0, r0, 0;\n@q0 exit;\nmbarrier.init.shared.b64 [smem], 1;\n" + body


LOAD = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
STORE = "cp.async.bulk.global.shared::cta.bulk_group"
COMPLETE = """\
$poll:
mbarrier.try_wait.parity.shared.b64 q0, [smem], 0;
@!q0 bra $poll;
"""


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_exit_with_a_load_in_flight(scheduler):
    machine = Machine(scheduler=scheduler)
    data = machine.array(np.zeros(64, "u4"), name="data")
    fault = fault_of(one(f"mbarrier.arrive.expect_tx.shared.b64 _, [smem], 256;\n"
                         f"{LOAD} [smem + 64], [d0], 256, [smem];   // BUG\n"),
                     data, kind="in-flight", machine=machine, smem=512)
    assert "bulk load of 256 bytes" in str(fault) and fault.lane == 0


def test_exit_before_a_store_has_read_its_source():
    machine = Machine(scheduler="late-async")
    out = machine.space(256)
    fault = fault_of(one(f"st.shared.u32 [smem + 64], 1;\n{STORE} [d0], [smem + 64], 256; // BUG\n"
                         "cp.async.bulk.commit_group;\n"),
                     out, kind="in-flight", machine=machine, smem=512)
    assert "exited before it had read its source in their shared memory" in str(fault)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_stores_that_have_read_their_source_end_after_the_kernel(scheduler):
    machine = Machine(scheduler=scheduler)
    out = machine.array(np.zeros(4, "u4"))
    machine.run(one(f"st.shared.v4.b32 [smem + 64], {{1, 2, 3, 4}};\n"
                    f"{STORE} [d0], [smem + 64], 16;\ncp.async.bulk.commit_group;\n"
                    "cp.async.bulk.wait_group.read 0;\n"), out, smem=512)
    assert machine.fetch(out, "u4", 4).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("statement", "kind", "says"), [
    (f"{LOAD} [smem + 64], [d0], 24, [smem];", "misaligned", "24 bytes: the size must be a mult"),
    (f"{LOAD} [smem + 64], [d0], 0, [smem];", "misaligned", "0 bytes"),
    (f"{LOAD} [smem + 72], [d0], 16, [smem];", "misaligned", "0x48 of 1024 bytes of shared"),
    (f"{LOAD} [smem + 64], [d0 + 8], 16, [smem];", "misaligned", "'data' + 0x8"),
    (f"{LOAD} [smem + 512], [d0], 1024, [smem];", "out-of-bounds", "bulk load of 1024 bytes"),
    (f"{LOAD} [smem + 64], [d0 + 512], 528, [smem];", "out-of-bounds", "'data' + 0x200 (1024"),
    (f"{LOAD} [smem + 64], [d0], 16, [smem + 8];", "mbarrier", "no mbarrier is at 0x8"),
    (f"{LOAD} [smem], [d0], 16, [smem];", "mbarrier", "an mbarrier is there"),
    (f"{STORE} [d0 + 1024], [smem + 64], 16;", "out-of-bounds", "bulk store of 16 bytes"),
    (f"{STORE} [d1], [smem + 64], 16;", "read-only", "the memory is read-only"),
    (f"{STORE} [d0], [smem], 64;", "mbarrier", "an mbarrier is there"),
    ("ld.shared.u32 r4, [smem + 4];", "mbarrier", "load of 4 bytes at 0x4 of 1024 bytes"),
    ("st.shared.v4.b32 [smem], {0, 0, 0, 0};", "mbarrier", "which only mbarrier instructions"),
    ("atom.shared.add.u32 r4, [smem], 1;", "mbarrier", "atomic of 4 bytes"),
    ("mbarrier.arrive.shared.b64 _, [smem + 8];", "mbarrier", "mbarrier.init has not been"),
    ("mbarrier.arrive.shared.b64 _, [smem + 4];", "misaligned", "mbarrier operation"),
    ("mbarrier.arrive.shared.b64 _, [smem + 2048];", "out-of-bounds", "0x800"),
    ("mbarrier.arrive.shared.b64 _, [smem], 2;", "mbarrier", "more threads arrive than"),
    ("mbarrier.arrive.shared.b64 _, [smem], 0;", "mbarrier", "at least 1"),
    ("mbarrier.init.shared.b64 [smem], 1;", "mbarrier", "without mbarrier.inval"),
    ("mbarrier.init.shared.b64 [smem + 8], 0;", "mbarrier", "count 0 is not in"),
    ("mbarrier.expect_tx.shared.b64 [smem], 0x100000;", "mbarrier", "above 1048575"),
    ("mbarrier.test_wait.parity.shared.b64 q0, [smem], 2;", "mbarrier", "parity 2 is neither"),
    ("mbarrier.inval.shared.b64 [smem + 8];", "mbarrier", "no mbarrier is at 0x8"),
])
def test_misuse(statement, kind, says):
    machine = Machine()
    data = machine.array(np.zeros(256, "u4"), name="data")
    constant = machine.world.map_host(0, bytes(64), False)
    fault = fault_of(one(f"{statement}   // BUG\n"), data, constant, kind=kind, machine=machine,
                     smem=1024)
    assert says in str(fault), str(fault)


def test_an_invalidated_mbarrier_is_memory_again():
    machine = Machine()
    out = machine.space(4)
    machine.run(one("mbarrier.inval.shared.b64 [smem];\nst.shared.u64 [smem], d0;\n"
                    "ld.shared.u32 r4, [smem + 4];\nmbarrier.init.shared.b64 [smem], 7;\n"
                    "st.global.u32 [d0], r4;"), out, smem=64)
    fault_of(one("mbarrier.inval.shared.b64 [smem];\nld.shared.u32 r4, [smem];   // BUG\n"),
             kind="uninitialised", smem=64)


def test_mbarrier_that_is_invalidated_under_a_load():
    machine = Machine(scheduler="late-async")
    data = machine.array(np.zeros(64, "u4"))
    fault = fault_of(one(f"mbarrier.init.shared.b64 [smem + 8], 1;\n"
                         f"{LOAD} [smem + 64], [d0], 256, [smem];   // BUG\n"
                         "mbarrier.inval.shared.b64 [smem];\n"
                         "$poll:\nmbarrier.try_wait.parity.shared.b64 q0, [smem + 8], 0;\n"
                         "@!q0 bra $poll;"), data, kind="mbarrier", machine=machine, smem=512)
    assert "its mbarrier at 0 of shared memory is no more" in str(fault)


def test_memory_that_is_freed_under_a_copy():
    machine = Machine(scheduler="late-async")
    out = machine.space(256, name="out")
    machine.launch(one(f"st.shared.u32 [smem + 64], 1;\n{STORE} [d0], [smem + 64], 256;\n"
                       "cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;\n"
                       "nanosleep.u32 100000;\n"), out, smem=512)
    assert not machine.world.run(max_virtual_ns=2000)
    machine.world.unmap(0, out)
    with pytest.raises(KernelFault) as raised:
        machine.world.run()
    assert raised.value.kind == "use-after-free" and "freed or unmapped" in str(raised.value)


# -- what is modelled ------------------------------------------------------------------------------

@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_uninitialised_bytes_travel_and_are_found_where_they_are_used(scheduler):
    body = one(f"""\
mbarrier.arrive.expect_tx.shared.b64 _, [smem], 64;
{LOAD} [smem + 64], [d0], 64, [smem];
{COMPLETE}{STORE} [d1], [smem + 64], 64;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;
ld.global.u32 r4, [d1 + 16];
ld.global.u32 r4, [d1 + 48];   // BUG
""")
    machine = Machine(scheduler=scheduler)
    half = machine.space(64, name="half")
    machine.world.write(0, half, bytes(48))
    copy = machine.space(64, name="copy")
    fault = fault_of(body, half, copy, kind="uninitialised", machine=machine, smem=512)
    assert "'copy' + 0x30" in str(fault)


def test_wait_group_counts_the_groups_of_its_own_thread():
    """Lane 0 has three groups, lane 1 none: `wait_group 2` makes sure of lane 0's first."""
    machine = Machine(scheduler="late-async")
    out = machine.array(np.zeros(16, "u4"))
    machine.run(f"""\
setp.ge.u32 q0, r0, 2;
@q0 exit;
setp.eq.u32 q0, r0, 0;
mad.lo.u32 r4, r0, 16, 0;
st.shared.v4.b32 [r4], {{7, 7, 7, 7}};
@q0 {STORE} [d0], [smem], 16;
@q0 cp.async.bulk.commit_group;
@q0 {STORE} [d0 + 16], [smem], 16;
@q0 cp.async.bulk.commit_group;
@q0 {STORE} [d0 + 32], [smem], 16;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 2;
ld.relaxed.gpu.global.u32 r5, [d0];
ld.relaxed.gpu.global.u32 r6, [d0 + 16];
ld.relaxed.gpu.global.u32 r7, [d0 + 32];
@q0 st.global.v4.b32 [d0 + 48], {{r5, r6, r7, 1}};
cp.async.bulk.wait_group 0;
""", out, smem=512)
    got = machine.fetch(out, "u4", 16).reshape(4, 4)
    assert (got[:3] == 7).all() and got[3].tolist() == [7, 0, 0, 1]


def test_partial_data_before_the_phase_ends():
    """At random, the bytes of a load come in pieces: some seed shows the middle without the end."""
    body = one(f"""\
mov.u32 r4, 0;
$clear:
st.shared.v4.b32 [r4 + 64], {{0, 0, 0, 0}};
add.u32 r4, r4, 16;
setp.lt.u32 q0, r4, 512;
@q0 bra $clear;
mbarrier.arrive.expect_tx.shared.b64 _, [smem], 512;
{LOAD} [smem + 64], [d0], 512, [smem];
mov.u32 r6, 0;
$look:
ld.shared.u32 r4, [smem + 64];
ld.shared.u32 r5, [smem + 320];
setp.ne.u32 q1, r4, r5;
selp.u32 r7, 1, 0, q1;
or.b32 r6, r6, r7;
mbarrier.test_wait.parity.shared.b64 q0, [smem], 0;
@!q0 bra $look;
st.global.u32 [d1], r6;
""")
    seen = set()
    for seed in range(20):
        machine = Machine(scheduler="random", seed=seed)
        out = machine.space(4)
        machine.run(body, machine.array(np.ones(128, "u4")), out, smem=1024)
        seen.add(int(machine.fetch(out, "u4", 1)[0]))
    assert seen == {0, 1}


def test_tx_may_come_before_it_is_announced():
    machine = Machine()
    data = machine.array(np.ones(64, "u4"))
    out = machine.space(4)
    machine.run(one(f"{LOAD} [smem + 64], [d0], 256, [smem];\nnanosleep.u32 1000;\n"
                    "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [smem], 256;\n"
                    "mbarrier.arrive.shared.b64 d4, [smem];\n" + COMPLETE +
                    "ld.shared.u32 r4, [smem + 316];\nst.global.u32 [d1], r4;"),
                data, out, smem=512)
    assert machine.fetch(out, "u4", 1)[0] == 1


def test_arrivals_of_many_threads_and_of_two_phases():
    """Each warp arrives with all its lanes; the phase ends once per round, never early."""
    machine = Machine()
    out = machine.array(np.zeros(2, "u4"))
    machine.run("""\
setp.eq.u32 q0, r0, 0;
@q0 mbarrier.init.shared.b64 [smem], 96;
bar.sync 0;
red.relaxed.gpu.global.add.u32 [d0], 1;
mbarrier.arrive.shared.b64 _, [smem];
$first:
mbarrier.try_wait.parity.shared.b64 q1, [smem], 0;
@!q1 bra $first;
ld.relaxed.gpu.global.u32 r4, [d0];
setp.lt.u32 q1, r4, 96;
@q1 red.relaxed.gpu.global.add.u32 [d0 + 4], 1;
mbarrier.arrive.shared.b64 _, [smem];
$second:
mbarrier.try_wait.parity.shared.b64 q1, [smem], 1, 500;
@!q1 bra $second;
""", out, block=96, smem=64)
    assert machine.fetch(out, "u4", 2).tolist() == [96, 0]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_time_limit_ends_a_wait_for_an_mbarrier(scheduler):
    machine = Machine(scheduler=scheduler)
    machine.run(one("""\
mov.u64 d4, %globaltimer;
add.u64 d5, d4, d1;
$poll:
mbarrier.try_wait.parity.shared.b64 q0, [smem], 0;
@q0 bra $end;
mov.u64 d6, %globaltimer;
setp.lt.u64 q0, d6, d5;
@q0 bra $poll;
$end:
"""), 0, 10**9, smem=64)
    assert 10**9 <= machine.world.now < 10**9 + 10**5


def test_late_loads_come_before_time_passes():
    """A wait with a time limit is not made to fail by a copy that is only late."""
    machine = Machine(scheduler="late-async")
    data = machine.array(np.ones(64, "u4"))
    machine.run(one(f"mbarrier.arrive.expect_tx.shared.b64 _, [smem], 256;\n"
                    f"{LOAD} [smem + 64], [d0], 256, [smem];\n" """\
mov.u64 d4, %globaltimer;
add.u64 d5, d4, d1;
$poll:
mbarrier.try_wait.parity.shared.b64 q0, [smem], 0;
@q0 bra $end;
nanosleep.u32 50;
mov.u64 d6, %globaltimer;
setp.lt.u64 q0, d6, d5;
@q0 bra $poll;
$end:
"""), data, 10**9, smem=512)
    assert machine.world.now < 10**5


def test_elect_is_one_lane_and_the_same_for_a_mask():
    leaders = {}
    for scheduler, seed in [("rr", 0)] + [("late-async", s) for s in range(20)]:
        machine = Machine(scheduler=scheduler, seed=seed)
        out = machine.space(8 * 32)
        machine.run("""\
elect.sync r4|q0, -1;
elect.sync _|q1, 0xffffffff;
selp.u32 r5, 1, 0, q0;
selp.u32 r6, 2, 0, q1;
or.b32 r5, r5, r6;
mad.wide.u32 d4, r0, 8, d0;
st.global.v2.b32 [d4], {r4, r5};
""", out)
        got = machine.fetch(out, "u4", 64).reshape(32, 2)
        leader = int(got[0, 0])
        assert (got[:, 0] == leader).all()
        assert np.array_equal(got[:, 1], np.where(np.arange(32) == leader, 3, 0))
        leaders[scheduler, seed] = leader
    assert leaders["rr", 0] == 0 and len(set(leaders.values())) > 5


def test_elect_wants_all_lanes_of_its_mask():
    fault_of("setp.lt.u32 q0, r0, 16;\n@q0 elect.sync _|q1, -1;   // BUG\n", kind="mask-mismatch")


def test_cache_policies_are_taken_and_must_be_defined():
    machine = Machine()
    data = machine.array(np.ones(64, "u4"))
    out = machine.space(256)
    machine.run(one(f"""\
createpolicy.fractional.L2::evict_first.b64 d4;
createpolicy.fractional.L2::evict_last.b64 d5, 0f3F000000;
mbarrier.arrive.expect_tx.shared.b64 _, [smem], 256;
{LOAD}.L2::cache_hint [smem + 64], [d0], 256, [smem], d4;
{COMPLETE}{STORE}.L2::cache_hint [d1], [smem + 64], 256, d5;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;
"""), data, out, smem=512)
    assert (machine.fetch(out, "u4", 64) == 1).all()
    fault_of(one(f"{STORE}.L2::cache_hint [d0], [smem + 64], 16, d5;   // BUG\n"), out,
             kind="uninitialised", machine=machine, smem=512)


# -- schedulers ------------------------------------------------------------------------------------

def history(scheduler, seed):
    rows = Rows(scheduler=scheduler, seed=seed).run()
    return rows.machine.world.now, tuple(rows.machine.world.counters(1).values())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_seed_fixes_the_run(scheduler):
    assert [history(scheduler, s) for s in range(3)] == [history(scheduler, s) for s in range(3)]


def test_seeds_differ():
    assert len({history("random", seed) for seed in range(10)}) > 5
    assert len({history("rr", seed) for seed in range(10)}) == 1


@pytest.mark.parametrize(("scheduler", "breaks"), [("rr", False), ("late-async", True)])
def test_lanes_do_not_meet_by_themselves(scheduler, breaks):
    """After a branch each lane reads what its neighbour wrote, with no .sync between them."""
    machine = Machine(scheduler=scheduler)
    out = machine.space(128)
    machine.run("""\
setp.ne.u32 q0, r0, 0;
shl.b32 r5, r0, 2;
st.shared.u32 [r5], 5;
bar.warp.sync -1;
@q0 bra $join;
mov.u32 r4, 1;
$join:
st.shared.u32 [r5], 9;
xor.b32 r6, r5, 4;
ld.shared.u32 r4, [r6];
mad.wide.u32 d4, r0, 4, d0;
st.global.u32 [d4], r4;
""", out, smem=128)
    assert (machine.fetch(out, "u4", 32) == 5).any() == breaks


def test_ctas_are_placed_in_any_order():
    """The first CTA to run writes its index; with room for one, that is who was placed first."""
    firsts = set()
    for seed in range(20):
        machine = Machine(scheduler="random", seed=seed, sms_per_rank=1)
        cell = machine.array(np.full(1, 2**32 - 1, "u4"))
        machine.run("atom.relaxed.gpu.global.cas.b32 r4, [d0], 0xffffffff, r2;", cell, grid=8,
                    block=1024)
        firsts.add(int(machine.fetch(cell, "u4", 1)[0]))
    assert len(firsts) > 3


@pytest.mark.parametrize("scheduler", ["random", "late-async"])
@pytest.mark.parametrize("seed", range(3))
def test_waits_that_nothing_ends_are_found_under_every_scheduler(scheduler, seed):
    machine = Machine(scheduler=scheduler, seed=seed)
    with pytest.raises(KernelFault, match="deadlock: all of CTA 0"):
        machine.run("setp.lt.u32 q0, r0, 8;\n@q0 bra $low;\nbar.warp.sync -1;\nbra $end;\n"
                    "$low:\nbar.sync 0;\n$end:")
    machine = Machine(scheduler=scheduler, seed=seed)
    flag = machine.array(np.zeros(1, "u4"), name="flag")
    fault = fault_of("$poll:\nld.acquire.sys.global.u32 r4, [d0];   // BUG\n"
                     "setp.ne.u32 q0, r4, 6;\n@q0 bra $poll;", flag, kind="livelock",
                     machine=machine)
    assert "'flag' + 0" in str(fault)


def test_unknown_scheduler():
    with pytest.raises(ValueError, match="scheduler: 'fair' is not one of 'rr', 'random', 'late"):
        Machine(scheduler="fair")
