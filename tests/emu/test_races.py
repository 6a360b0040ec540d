# SPDX-License-Identifier: MIT
"""The race checker: what orders two accesses, what does not, and what a report says."""

import numpy as np
import pytest
from machine import FILE, Machine, kernel, line_of, param_block, queue

from deepep_ptx import RaceError, RankError, run_ranks
from deepep_ptx._emu_executor import EmuExecutor
from deepep_ptx.emu.races import KINDS

SCHEDULERS = ["rr", "random", "late-async"]
SEEDS = range(3)
MODES = [(scheduler, seed) for scheduler in SCHEDULERS for seed in SEEDS]


class Checked(Machine):
    """A machine under the checker, with zeroed words that all ranks see."""

    def __init__(self, num_ranks=1, **options):
        super().__init__(num_ranks, sms_per_rank=8, **({"check": "races"} | options))

    def words(self, count, rank=0, name="words"):
        """Addresses of `count` u64 of `rank`, on each rank."""
        va = self.array(np.zeros(count, np.uint64), rank=rank, name=name)
        return [va if r == rank else self.world.map_peer(r, rank, va)
                for r in range(self.world.num_ranks)]

    def kinds(self):
        """Kinds of the races found, each once."""
        return sorted({race.kind for race in self.world.races()})


def race_of(world, kind, mark=None, body=None):
    """The only race that was found, which is of that kind; its second access is at the mark."""
    race, = world.races()
    assert race.kind == kind, race.text
    assert KINDS[kind] in race.text and race.fix in race.text
    if mark:
        assert (race.second.file, race.second.line) == (FILE, line_of(body, mark)), race.text
    return race


# -- messages --------------------------------------------------------------------------------------

SEND = """\
st.global.u64 [d0], 7;                    // DATA
{before}
{flag} [d1], 1;                           // FLAG
"""
RECEIVE = """\
$poll:
{poll} d4, [d1];                          // POLL
setp.ne.u64 q0, d4, 1;
@q0 bra $poll;
{after}
ld.global.u64 d5, [d0];                   // READ
st.global.u64 [d2], d5;
"""

RELEASE, ACQUIRE = "st.release.sys.global.u64", "ld.acquire.sys.global.u64"
RELAXED, POLL = "st.relaxed.sys.global.u64", "ld.relaxed.sys.global.u64"
FENCE = "fence.acq_rel.sys;"

# flag, before it, poll, behind it; the kind of race on two GPUs, and for two CTAs of one.
MESSAGES = {
    "release, acquire": (RELEASE, "", ACQUIRE, "", None, None),
    "fences": (RELAXED, FENCE, POLL, FENCE, None, None),
    "fence, acquire": (RELAXED, FENCE, ACQUIRE, "", None, None),
    "release, fence": (RELEASE, "", POLL, FENCE, None, None),
    "fence.sc": (RELAXED, "fence.sc.sys;", POLL, "fence.sc.sys;", None, None),
    "atomics": ("red.release.sys.global.add.u64", "", ACQUIRE, "", None, None),
    "no release": (RELAXED, "", ACQUIRE, "", "order", "order"),
    "no acquire": (RELEASE, "", POLL, "", "order", "order"),
    "neither": (RELAXED, "", POLL, "", "order", "order"),
    "volatile": (RELAXED, "", "ld.volatile.global.u64", "", "order", "order"),
    "fence behind": (RELAXED, "", ACQUIRE, FENCE, "order", "order"),
    "gpu": ("st.release.gpu.global.u64", "", "ld.acquire.gpu.global.u64", "", "scope", None),
    "gpu fences": (RELAXED, "fence.acq_rel.gpu;", POLL, "fence.acq_rel.gpu;", "scope", None),
    "gpu fence": (RELAXED, "fence.acq_rel.gpu;", ACQUIRE, "", "scope", None),
    "cta": ("st.release.cta.global.u64", "", "ld.acquire.cta.global.u64", "", "scope", "scope"),
    "cta fence": (RELAXED, "fence.acq_rel.cta;", ACQUIRE, "", "scope", "scope"),
}


def send_and_receive(machine, message, ranks):
    """Rank ranks[0] sends to ranks[1] through memory of the latter."""
    flag, before, poll, after, *_ = message
    sender, receiver = ranks
    data, flags = machine.words(1, receiver, "data"), machine.words(1, receiver, "flag")
    out = machine.words(1, receiver)
    machine.launch(SEND.format(flag=flag, before=before), data[sender], flags[sender],
                   rank=sender, block=1)
    machine.launch(RECEIVE.format(poll=poll, after=after), data[receiver], flags[receiver],
                   out[receiver], rank=receiver, block=1)
    assert machine.world.run()
    return machine.fetch(out[receiver], np.uint64, 1, receiver)[0]


@pytest.mark.parametrize(("scheduler", "seed"), MODES)
@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("ranks", [(0, 1), (0, 0)], ids=["two GPUs", "one GPU"])
def test_messages(name, ranks, scheduler, seed):
    machine = Checked(2, scheduler=scheduler, seed=seed)
    if ranks == (0, 0):         # side by side: on streams of their own
        machine.launch = launch_beside(machine)
    assert send_and_receive(machine, MESSAGES[name], ranks) == 7
    wanted = MESSAGES[name][4 + (ranks == (0, 0))]
    assert machine.kinds() == ([wanted] if wanted else []), [r.text for r in machine.world.races()]


def launch_beside(machine):
    """A `launch` that puts each kernel on a stream of its own."""
    executor = EmuExecutor(machine.world, 0, "sm_90")
    machine.executor = executor

    def launch(body, *params, rank, block):
        executor.launch(machine.world.load(kernel(body)), param_block(params), 1, block,
                        stream=executor.stream_create())
    return launch


# One lane takes what many have released, and fences once.
def test_a_fence_behind_many_flags():
    flags = 96
    machine = Checked(2)
    data, flag = machine.words(flags), machine.words(flags)
    machine.launch("".join(f"""\
$poll{i}:
ld.relaxed.sys.global.u64 d4, [d1 + {8 * i}];
setp.ne.u64 q0, d4, 1;
@q0 bra $poll{i};
""" for i in range(flags)) + "fence.acq_rel.sys;\n" + "".join(
        f"ld.global.u64 d5, [d0 + {8 * i}];\n" for i in range(flags)), data[0], flag[0], block=1)
    machine.launch("""\
mad.wide.u32 d4, r0, 8, d0;
mad.wide.u32 d5, r0, 8, d1;
st.global.u64 [d4], 7;
st.release.sys.global.u64 [d5], 1;
""", data[1], flag[1], rank=1, block=flags)
    assert machine.world.run()
    assert machine.kinds() == []


# All threads count; the last one reads what each of them stored before.
@pytest.mark.parametrize(("scheduler", "seed"), MODES)
@pytest.mark.parametrize(("count", "behind", "races"), [
    ("atom.acq_rel.gpu", "", False),
    ("fence.acq_rel.gpu;\natom.relaxed.gpu", "fence.acq_rel.gpu;", False),
    ("atom.release.gpu", "", True),
])
def test_many_count(count, behind, races, scheduler, seed):
    machine = Checked(scheduler=scheduler, seed=seed)
    data, counter = machine.words(256)[0], machine.words(1)[0]
    machine.launch(f"""\
mad.wide.u32 d4, r1, 8, d0;
st.global.u64 [d4], 7;
{count}.global.add.u64 d5, [d1], 1;
{behind}
setp.ne.u64 q0, d5, 255;
@q0 bra $end;
mov.u32 r5, 0;
$next:
mad.wide.u32 d4, r5, 8, d0;
ld.global.u64 d5, [d4];
add.u32 r5, r5, 1;
setp.lt.u32 q1, r5, 256;
@q1 bra $next;
$end:
""", data, counter, grid=4, block=64)
    assert machine.world.run()
    assert bool(machine.kinds()) == races


# A strong access takes nothing back of what the same lane did weakly, or at a narrower scope.
@pytest.mark.parametrize(("scheduler", "seed"), MODES)
@pytest.mark.parametrize(("before", "kinds"), [
    ("", set()),
    ("st.relaxed.sys.global.u64 [d0], 2;", set()),
    ("st.relaxed.cta.global.u64 [d0], 2;", {"scope"}),
    ("st.global.u64 [d0], 2;", {"unordered", "order"}),
    ("ld.global.u64 d4, [d0];", set()),
])
def test_weak_before_strong(before, kinds, scheduler, seed):
    machine = Checked(2, scheduler=scheduler, seed=seed)
    word = machine.words(1)
    machine.launch(before + "\nst.relaxed.sys.global.u64 [d0], 3;\n", word[0], rank=0, block=1)
    machine.launch("ld.relaxed.sys.global.u64 d4, [d0];\n" * 3, word[1], rank=1, block=1)
    assert machine.world.run()
    assert set(machine.kinds()) <= kinds and bool(machine.kinds()) == bool(kinds)


# What comes behind a release in the program is not released by it.
@pytest.mark.parametrize(("scheduler", "seed"), MODES)
@pytest.mark.parametrize("flag", [
    "st.release.sys.global.u64 [d1], 1;", "red.release.sys.global.add.u64 [d1], 1;",
    "atom.acq_rel.sys.global.add.u64 d5, [d1], 1;"])
@pytest.mark.parametrize(("late", "other"), [
    ("st.global.u64 [d0], 7;", "ld.global.u64 d5, [d0];"),
    ("ld.global.u64 d6, [d0];", "st.global.u64 [d0], 7;")])
def test_behind_a_release(late, other, flag, scheduler, seed):
    machine = Checked(2, scheduler=scheduler, seed=seed)
    data, flags = machine.words(1), machine.words(1)
    machine.launch(f"{flag}\n{late}\n", data[0], flags[0], rank=0, block=1)
    machine.launch(f"""\
$poll:
ld.acquire.sys.global.u64 d4, [d1];
setp.ne.u64 q0, d4, 1;
@q0 bra $poll;
{other}
""", data[1], flags[1], rank=1, block=1)
    assert machine.world.run()
    assert machine.kinds() == ["unordered"]


def test_a_report_names_all_of_it():
    machine = Checked(2)
    send_and_receive(machine, MESSAGES["no release"], (0, 1))
    race = race_of(machine.world, "order", "READ", RECEIVE)
    assert (race.first.what, race.first.rank, race.first.line) == ("store", 0,
                                                                   line_of(SEND, "DATA"))
    assert (race.first.cta, race.first.warp, race.first.lanes) == (0, 0, 1)
    assert race.first.statement.startswith("st.global.u64")
    assert (race.second.what, race.second.rank) == ("load", 1)
    assert (race.memory, race.owner, race.offset, race.bytes, race.count) == ("data", 1, 0, 8, 1)
    link, = race.chain
    assert (link.first.line, link.second.line) == (line_of(SEND, "FLAG"), line_of(RECEIVE, "POLL"))
    assert link.lacks == "no release"
    assert f"{FILE}:{line_of(SEND, 'FLAG')}" in race.fix and "release" in race.fix
    for part in ("rank 0, CTA 0, warp 0, lane 0", "data + 0x0 of rank 1", "<- no release"):
        assert part in race.text
    assert race.as_dict()["chain"][0]["lacks"] == "no release"


def test_races_are_grouped_by_statements():
    body = "mad.wide.u32 d4, r0, 8, d0;\nst.global.u64 [d4], d1;\n"
    machine = Checked(2)
    there = machine.words(64)
    for rank in range(2):
        machine.launch(body, there[rank], 1, rank=rank, block=64)
    assert machine.world.run()
    race = race_of(machine.world, "unordered")
    assert race.count == 64
    assert "barrier" in race.fix and not race.chain


# -- CTAs and warps --------------------------------------------------------------------------------

# Thread i reads what thread ntid - 1 - i stored, in shared memory.
SWAP = """\
mov.u32 r4, smem;
mad.lo.u32 r5, r0, 4, r4;
st.shared.u32 [r5], r0;
{sync}
sub.u32 r6, r3, 1;
sub.u32 r6, r6, r0;
mad.lo.u32 r6, r6, 4, r4;
ld.shared.u32 r7, [r6];                   // READ
"""


@pytest.mark.parametrize(("scheduler", "seed"), MODES)
@pytest.mark.parametrize(("sync", "block", "kind"), [
    ("bar.sync 0;", 128, None),
    ("bar.sync 3, 128;", 128, None),
    ("bar.warp.sync -1;", 32, None),
    ("fence.acq_rel.cta;", 128, "unordered"),
    ("bar.warp.sync -1;", 128, "unordered"),
    ("", 32, "unordered"),
    ("vote.sync.any.pred q0, q1, -1;", 32, "unordered"),       # it waits, and orders nothing
])
def test_barriers(sync, block, kind, scheduler, seed):
    body = "setp.eq.u32 q1, r0, 0;\n" + SWAP.format(sync=sync)
    machine = Checked(scheduler=scheduler, seed=seed)
    machine.launch(body, block=block, smem=4 * block)
    try:
        machine.world.run()
    except RuntimeError as error:               # some orders read what nobody has written yet
        assert kind and error.kind == "uninitialised"
        return
    if kind:
        assert machine.kinds() == [kind]
    else:
        assert machine.kinds() == []


# Half of the warp stores, the other half reads: they meet before and behind, or not.
HALVES = """\
mov.u32 r4, smem;
mad.lo.u32 r5, r0, 4, r4;
st.shared.u32 [r5], r0;
bar.warp.sync -1;
setp.lt.u32 q0, r0, 16;
@q0 xor.b32 r6, r0, 1;
@!q0 mov.u32 r6, r0;
@q0 bra $low;
st.shared.u32 [r5], 5;
bar.warp.sync 0xffff0000;
bra $end;
$low:
mad.lo.u32 r6, r6, 4, r4;
st.shared.u32 [r5], 9;
{sync}
ld.shared.u32 r7, [r6];                   // READ
$end:
"""


@pytest.mark.parametrize(("scheduler", "seed"), MODES)
@pytest.mark.parametrize(("sync", "kinds"), [("bar.warp.sync 0xffff;", []), ("", ["unordered"])])
def test_lanes_that_are_apart(sync, kinds, scheduler, seed):
    machine = Checked(scheduler=scheduler, seed=seed)
    machine.run(HALVES.format(sync=sync), smem=128)
    assert machine.kinds() == kinds


# Lane 0 releases what all lanes have stored.
ROW = """\
mad.wide.u32 d4, r0, 16, d0;
mov.u32 r4, 1;
st.global.v4.b32 [d4], {{r4, r4, r4, r4}};        // ROW
{sync}
setp.eq.u32 q0, r0, 0;
@q0 st.release.sys.global.u64 [d1], 1;
"""
ROW_READER = """\
$poll:
ld.acquire.sys.global.u64 d4, [d1];
setp.ne.u64 q0, d4, 1;
@q0 bra $poll;
mad.wide.u32 d4, r0, 16, d0;
ld.global.v4.b32 {r4, r5, r6, r7}, [d4];          // READ
"""


@pytest.mark.parametrize(("scheduler", "seed"), MODES)
@pytest.mark.parametrize("sync", ["bar.warp.sync -1;", ""])
def test_one_lane_releases_for_its_warp(sync, scheduler, seed):
    machine = Checked(2, scheduler=scheduler, seed=seed)
    data, flag = machine.words(64, 1, "data"), machine.words(1, 1, "flag")
    machine.launch(ROW.format(sync=sync), data[0], flag[0], rank=0)
    machine.launch(ROW_READER, data[1], flag[1], rank=1)
    assert machine.world.run()
    if sync:
        assert machine.kinds() == []
    else:
        race = race_of(machine.world, "unordered", "READ", ROW_READER)
        assert "bar.warp.sync" in race.fix and f"{FILE}:{line_of(ROW, 'ROW')}" in race.fix


# Each lane what it has accessed itself, of fewer than 16 bytes.
@pytest.mark.parametrize(("scheduler", "seed"), MODES)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_lanes_side_by_side_in_16_bytes(size, scheduler, seed):
    register = "d5" if size == 8 else "r5"
    body = (f"mad.wide.u32 d4, r0, {size}, d0;\nld.global.u{8 * size} {register}, [d4];\n"
            f"st.global.u{8 * size} [d4], {register};\nld.global.u{8 * size} {register}, [d4];\n")
    machine = Checked(scheduler=scheduler, seed=seed)
    machine.run(body, machine.words(32)[0])
    assert machine.kinds() == []
    neighbour = f"xor.b32 r6, r0, 1;\nmad.wide.u32 d6, r6, {size}, d0;\n"
    machine.run(body + neighbour + f"ld.global.u{8 * size} {register}, [d6];\n",
                machine.words(32)[0])
    assert machine.kinds() == ["unordered"]


# -- three bugs of kinds that were seen in public --------------------------------------------------

# Thread 0 waits for the flag, a barrier, and all read.
GATHER = """\
setp.ne.u32 q0, r0, 0;
@q0 bra $meet;
$poll:
{poll} d4, [d1];                          // POLL
setp.ne.u64 q1, d4, 1;
@q1 bra $poll;
$meet:
bar.sync 0;
ld.global.u64 d5, [d0];                   // READ
"""


@pytest.mark.parametrize(("scheduler", "seed"), MODES)
@pytest.mark.parametrize(("poll", "kind"), [(ACQUIRE, None), (POLL, "order"),
                                            ("ld.volatile.global.u64", "order")])
def test_an_acquire_is_missing_after_the_poll_of_a_barrier(poll, kind, scheduler, seed):
    machine = Checked(2, scheduler=scheduler, seed=seed)
    data, flag = machine.words(1, 1), machine.words(1, 1)
    body = GATHER.format(poll=poll)
    machine.launch(SEND.format(flag=RELEASE, before=""), data[0], flag[0], rank=0, block=1)
    machine.launch(body, data[1], flag[1], rank=1, block=96)
    assert machine.world.run()
    if not kind:
        assert machine.kinds() == []
        return
    race = race_of(machine.world, kind, "READ", body)
    assert f"{FILE}:{line_of(body, 'POLL')}" in race.fix and "acquire" in race.fix
    assert [link.lacks for link in race.chain if link.lacks] == ["no acquire"]


# A ring of one stage: bulk load, all lanes read it, bulk load into it again.
REFILL = """\
mov.u32 r4, smem;
setp.ne.u32 q0, r0, 0;
@q0 bra $ready;
mbarrier.init.shared.b64 [smem], 1;
fence.proxy.async.shared::cta;            // INIT
$ready:
bar.warp.sync -1;
mov.u32 r5, 0;
$next:
setp.ne.u32 q0, r0, 0;
@q0 bra $wait;
mbarrier.arrive.expect_tx.shared.b64 _, [smem], 512;
add.u32 r6, r4, 128;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r6], [d0], 512, [smem]; // LOAD
$wait:
{phase}mbarrier.try_wait.parity.shared.b64 q1, [smem], r5;
{phase}@!q1 bra $wait;
mad.lo.u32 r7, r0, 16, r4;
ld.shared.v4.b32 {{r8, r9, r10, r11}}, [r7 + 128];  // READ
{fence}
{meet}
add.u32 r5, r5, 1;
setp.lt.u32 q2, r5, 2;
@q2 bra $next;
"""
PROXY = "fence.proxy.async.shared::cta;"


@pytest.mark.parametrize(("scheduler", "seed"), MODES)
@pytest.mark.parametrize(("fence", "meet", "kinds"), [
    (PROXY, "bar.warp.sync -1;", []),
    ("fence.proxy.async;", "bar.warp.sync -1;", []),
    ("", "bar.warp.sync -1;", ["proxy"]),
    ("fence.proxy.async.global;", "bar.warp.sync -1;", ["proxy"]),
    ("", "bar.warp.sync -1;\n" + PROXY, []),           # by the lane that issues
])
def test_a_stage_is_refilled(fence, meet, kinds, scheduler, seed):
    body = REFILL.format(fence=fence, meet=meet, phase="")
    machine = Checked(scheduler=scheduler, seed=seed)
    machine.run(body, machine.array(np.zeros(64, np.uint64)), smem=1024)
    assert machine.kinds() == kinds
    if kinds:
        race = race_of(machine.world, "proxy", "LOAD", body)
        assert race.first.line == line_of(body, "READ") and race.second.what == "bulk write"
        assert "fence.proxy.async.shared::cta" in race.fix


@pytest.mark.parametrize("fence", ["fence.mbarrier_init.release.cluster;",
                                   "fence.proxy.async.shared::cta;", "fence.proxy.async;"])
def test_fences_behind_which_bulk_copies_use_an_mbarrier(fence):
    body = REFILL.format(fence=PROXY, meet="bar.warp.sync -1;", phase="").replace(
        "fence.proxy.async.shared::cta;            // INIT", fence)
    machine = Checked()
    machine.run(body, machine.array(np.zeros(64, np.uint64)), smem=1024)
    assert machine.kinds() == []


@pytest.mark.parametrize(("scheduler", "seed"), MODES)
def test_an_mbarrier_is_made_behind_a_proxy_fence(scheduler, seed):
    body = REFILL.format(fence=PROXY, meet="bar.warp.sync -1;", phase="").replace(
        "fence.proxy.async.shared::cta;            // INIT", "")
    machine = Checked(scheduler=scheduler, seed=seed)
    machine.run(body, machine.array(np.zeros(64, np.uint64)), smem=1024)
    race = race_of(machine.world, "proxy")
    assert "mbarrier.init" in race.first.statement and race.second.what == "bulk copy's arrival"


def test_the_lanes_that_read_a_stage_must_meet_before_it_is_refilled():
    body = REFILL.format(fence=PROXY, meet="", phase="")
    machine = Checked(scheduler="random", seed=1)
    machine.run(body, machine.array(np.zeros(64, np.uint64)), smem=1024)
    assert "unordered" in machine.kinds()


# A bulk store, and a flag behind it.
PUBLISH = """\
mov.u32 r4, smem;
add.u32 r4, r4, 128;
mad.lo.u32 r5, r0, 16, r4;
mov.u32 r6, 3;
st.shared.v4.b32 [r5], {{r6, r6, r6, r6}};
{fence}
bar.warp.sync -1;
setp.ne.u32 q0, r0, 0;
@q0 bra $end;
cp.async.bulk.global.shared::cta.bulk_group [d0], [r4], 512;     // STORE
cp.async.bulk.commit_group;
{wait}
st.release.sys.global.u64 [d1], 1;
cp.async.bulk.wait_group 0;
$end:
"""


@pytest.mark.parametrize(("scheduler", "seed"), MODES)
@pytest.mark.parametrize(("wait", "kinds"), [
    ("cp.async.bulk.wait_group 0;", []),
    ("cp.async.bulk.wait_group 1;", ["completion"]),
    ("cp.async.bulk.wait_group.read 0;", ["completion"]),
    ("", ["completion"]),
])
def test_a_flag_is_published_before_the_copy_has_ended(wait, kinds, scheduler, seed):
    body = PUBLISH.format(wait=wait, fence=PROXY)
    machine = Checked(2, scheduler=scheduler, seed=seed)
    data, flag = machine.words(64, 1), machine.words(1, 1)
    machine.launch(body, data[0], flag[0], rank=0, smem=1024)
    machine.launch(ROW_READER, data[1], flag[1], rank=1)
    assert machine.world.run()
    # Where the reader was first, it is the copy that finds it.
    assert machine.kinds() == kinds or (kinds and set(machine.kinds()) <= {"unordered", *kinds}
                                        and machine.world.races())
    for race in machine.world.races():
        assert "bulk write" in (race.first.what, race.second.what), race.text


@pytest.mark.parametrize(("scheduler", "seed"), MODES)
def test_the_source_of_a_bulk_store_needs_a_proxy_fence(scheduler, seed):
    body = PUBLISH.format(wait="", fence="")
    machine = Checked(scheduler=scheduler, seed=seed)
    machine.run(body, machine.words(64)[0], machine.words(1)[0], smem=1024)
    race = race_of(machine.world, "proxy", "STORE", body)
    assert (race.first.what, race.second.what) == ("store", "bulk read")


# The copy reads its source at once, or as late as can be.
@pytest.mark.parametrize(("scheduler", "seed"), MODES)
def test_the_source_of_a_bulk_store_is_overwritten_too_soon(scheduler, seed):
    body = PUBLISH.format(wait="st.shared.u32 [r4], 1;                    // LATE", fence=PROXY)
    machine = Checked(scheduler=scheduler, seed=seed)
    machine.run(body, machine.words(64)[0], machine.words(1)[0], smem=1024)
    race = race_of(machine.world, "completion")
    assert {race.first.line, race.second.line} == {line_of(body, "LATE"), line_of(body, "STORE")}
    assert f"{FILE}:{line_of(body, 'STORE')}" in race.fix


# The last of many CTAs reads what all have stored, each behind a fence (threadFenceReduction).
LAST = """\
mad.wide.u32 d4, r2, 8, d0;
st.global.u64 [d4], 1;
fence.acq_rel.gpu;
atom.global.add.u32 r4, [d1], 1;
mov.u32 r5, %nctaid.x;
sub.u32 r5, r5, 1;
setp.ne.u32 q0, r4, r5;
@q0 bra $end;
{fence}
mov.u32 r6, 0;
$next:
mad.wide.u32 d4, r6, 8, d0;
ld.global.u64 d5, [d4];
add.u32 r6, r6, 1;
setp.le.u32 q0, r6, r5;
@q0 bra $next;
$end:
"""


@pytest.mark.parametrize("num_ctas", [60, 150])
@pytest.mark.parametrize(("fence", "kinds"), [("fence.acq_rel.gpu;", []), ("", ["order"])])
def test_the_last_of_many_ctas(num_ctas, fence, kinds):
    machine = Checked(scheduler="random")
    machine.run(LAST.format(fence=fence), machine.words(num_ctas)[0], machine.words(1)[0],
                grid=num_ctas, block=1)
    assert set(machine.kinds()) <= {"unordered", *kinds} and bool(kinds) == bool(machine.kinds())


# -- ld.global.nc ----------------------------------------------------------------------------------

def test_nc_reads_what_is_written_while_its_grid_runs():
    body = RECEIVE.format(poll=ACQUIRE, after="").replace("ld.global.u64 d5", "ld.global.nc.u64 d5")
    machine = Checked(2)
    data, flag, out = machine.words(1, 1), machine.words(1, 1), machine.words(1, 1)
    machine.launch(SEND.format(flag=RELEASE, before=""), data[0], flag[0], rank=0, block=1)
    machine.launch(body, data[1], flag[1], out[1], rank=1, block=1)
    assert machine.world.run()
    race_of(machine.world, "nc", "READ", body)


def test_nc_has_read_what_is_written_while_its_grid_runs():
    body = "ld.global.nc.u64 d5, [d0];                // READ\nst.global.u64 [d0], 8;\n"
    machine = Checked()
    machine.run(body, machine.words(1)[0], block=1)
    race = race_of(machine.world, "nc")
    assert race.first.line == line_of(body, "READ") and f"{FILE}:{race.first.line}" in race.fix


def test_nc_reads_what_an_earlier_kernel_has_written():
    machine = Checked()
    data, out = machine.words(1)[0], machine.words(1)[0]
    machine.run("st.global.u64 [d0], 7;\n", data, block=1)
    machine.run("ld.global.nc.u64 d5, [d0];\nst.global.u64 [d1], d5;\n", data, out, block=1)
    machine.run("st.global.u64 [d0], 8;\n", data, block=1)
    assert machine.kinds() == []


# -- streams, events and the host ------------------------------------------------------------------

# Kernels may poll flags of the host's; more of it than a line is not accessed as such.
@pytest.mark.parametrize(("nbytes", "kinds"), [(8, []), (128, []), (144, ["unordered"])])
def test_a_fill_beside_a_strong_store(nbytes, kinds):
    machine = Checked()
    executor = EmuExecutor(machine.world, 0, "sm_90")
    store = machine.world.load(kernel("st.relaxed.sys.global.u64 [d0], 1;\n"))
    filled, other = machine.words(18)[0], machine.words(1)[0]
    streams = [executor.stream_create() for _ in range(2)]
    for stream, va in zip(streams, (filled, other), strict=True):
        executor.launch(store, param_block((va,)), 1, 1, stream=stream)
    executor.fill(filled, 0, nbytes, stream=streams[1])       # behind the kernel of its stream
    assert machine.world.run()
    assert machine.kinds() == kinds


STORE = "st.global.u64 [d0], d1;\n"
LOAD = "ld.global.u64 d4, [d0];\nst.global.u64 [d1], d4;\n"


def run_one_rank(main, **options):
    """The races of `main(executor)` as a rank; [] where there are none."""
    try:
        run_ranks(lambda comm: main(comm.executor), 1, executor="emu", check="races", **options)
    except RaceError as error:
        assert error.results == [None] and str(error).startswith("RACE (")
        return list(error.races)
    return []


@pytest.mark.parametrize("ordered", ["event", "stream", "wait", "host", None])
def test_streams(ordered):
    def main(executor):
        first, second = executor.stream_create(), executor.stream_create()
        data, out = executor.alloc(8), executor.alloc(8)
        executor.fill(data, 0, 8, stream=first)
        queue(executor, STORE, data, 3, stream=first)
        if ordered == "event":
            event = executor.event_create()
            executor.event_record(event, first)
            executor.event_wait(event, second)
        elif ordered == "wait":
            executor.stream_wait(second, first)
        elif ordered == "host":
            executor.synchronize(first)
        queue(executor, LOAD, data, out, stream=first if ordered == "stream" else second)
        executor.synchronize(second)
        executor.synchronize(first)

    races = run_one_rank(main)
    assert [race.kind for race in races] == ([] if ordered else ["unordered"] * len(races))
    assert bool(races) == (ordered is None)


def test_the_host_stores_while_a_kernel_runs():
    def main(executor):
        data, out = executor.alloc(8), executor.alloc(8)
        first, second = executor.stream_create(), executor.stream_create()
        executor.fill(data, 0, 8, stream=first)
        executor.synchronize(first)
        queue(executor, LOAD, data, out, stream=first)
        executor.fill(data, 1, 8, stream=second)
        executor.synchronize(second)
        executor.synchronize(first)

    races = run_one_rank(main)
    assert {race.kind for race in races} == {"unordered"}
    assert "host write" in (races[0].first.what, races[0].second.what)


@pytest.mark.parametrize(("flag", "kinds"), [
    ("st.release.sys.global.u64", set()), ("st.release.gpu.global.u64", {"scope"}),
    ("st.relaxed.sys.global.u64", {"order"}),
])
def test_the_host_waits_for_a_word(flag, kinds):
    """The host is outside of every GPU, and what it reads behind the word was released."""
    def main(executor):
        host, va = executor.host_alloc(16)
        queue(executor, f"st.global.u64 [d0 + 8], 5;\n{flag} [d0], 1;\n", va,
              stream=executor.stream_create())
        executor.wait_word(host, 1)
        executor.will_read(host + 8, 8)

    assert {race.kind for race in run_one_rank(main)} == kinds


def test_ranks_meet_in_a_collective():
    def main(comm):
        executor = comm.executor
        stream = executor.stream_create()
        if comm.rank == 0:
            data = executor.alloc(8)
            executor.fill(data, 0, 8, stream=stream)
            queue(executor, STORE, data, 3, stream=stream)
            executor.synchronize(stream)
        handle = comm.allgather(executor.export_memory(data) if comm.rank == 0 else None)[0]
        if comm.rank == 1:
            there = executor.import_memory(handle)
            queue(executor, LOAD, there, executor.alloc(8), stream=stream)
            executor.synchronize(stream)
        comm.barrier()

    run_ranks(main, 2, executor="emu", check="races")


# -- weak visibility -------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["no release", "no acquire", "neither", "gpu"])
def test_a_message_that_nothing_orders_may_be_seen_late(name):
    got = {int(send_and_receive(Checked(2, seed=seed, memory="weak", check=None), MESSAGES[name],
                                (0, 1))) for seed in range(12)}
    assert got == {0, 7}


@pytest.mark.parametrize("name", ["release, acquire", "fences", "atomics", "release, fence"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_message_that_is_ordered_is_seen(name, scheduler):
    for seed in range(12):
        machine = Checked(2, seed=seed, memory="weak", scheduler=scheduler)
        assert send_and_receive(machine, MESSAGES[name], (0, 1)) == 7
        assert machine.kinds() == []


def test_a_vector_comes_in_pieces():
    send = ("mov.u32 r4, 1;\nst.global.v4.b32 [d0], {r4, r4, r4, r4};\n"
            "st.relaxed.sys.global.u64 [d1], 1;\n")
    body = RECEIVE.format(poll=POLL, after="").replace(
        "ld.global.u64 d5, [d0];", "ld.global.v4.b32 {r4, r5, r6, r7}, [d0];").replace(
        "st.global.u64 [d2], d5;", "st.global.v4.b32 [d2], {r4, r5, r6, r7};")
    seen = set()
    for seed in range(24):
        machine = Checked(2, seed=seed, memory="weak", check=None)
        data, flag, out = (machine.words(2, 1) for _ in range(3))
        machine.launch(send, data[0], flag[0], rank=0, block=1)
        machine.launch(body, data[1], flag[1], out[1], rank=1, block=1)
        assert machine.world.run()
        seen.add(tuple(machine.fetch(out[1], np.uint32, 4, 1).tolist()))
    assert len(seen) > 3 and all(set(words) <= {0, 1} for words in seen)


# Rows of 16 bytes, 1 in both halves; and who waits for a word that nothing orders with them.
SEND_ROWS = """\
mov.u64 d6, 1;
mov.b128 z0, {d6, d6};
mad.wide.u32 d4, r0, 16, d0;
st.relaxed.sys.global.b128 [d4], z0;
st.relaxed.sys.global.u64 [d1], 1;
"""
RECEIVE_ROWS = """\
$poll:
ld.relaxed.sys.global.u64 d4, [d1];
setp.ne.u64 q0, d4, 1;
@q0 bra $poll;
mad.wide.u32 d4, r0, 16, d0;
mad.wide.u32 d5, r0, 16, d2;
ld.relaxed.sys.global.b128 z0, [d4];
mov.b128 {d6, d7}, z0;
st.global.v2.u64 [d5], {d6, d7};
"""


@pytest.mark.parametrize("shift", [0, 8])
@pytest.mark.parametrize("lanes", [1, 32])
def test_a_b128_is_never_seen_in_pieces(lanes, shift):
    """Also where memory begins between the 16 bytes that the checker looks at as one."""
    seen = set()
    for seed in range(24):
        machine = Checked(seed=seed, memory="weak")
        launch = launch_beside(machine)
        memory = np.zeros(2 * lanes + 4, np.uint64)
        memory = memory[(shift - memory.ctypes.data) % 16 // 8:]
        rows = machine.world.map_host(0, memory)
        assert rows % 16 == shift
        (flag,), (out,) = machine.words(1), machine.words(2 * lanes)
        launch(SEND_ROWS, rows + shift, flag, rank=0, block=lanes)
        launch(RECEIVE_ROWS, rows + shift, flag, out, rank=0, block=lanes)
        assert machine.world.run()
        assert machine.kinds() == []
        pairs = machine.fetch(out, np.uint64, 2 * lanes).reshape(lanes, 2)
        assert (pairs[:, 0] == pairs[:, 1]).all()
        seen |= set(pairs[:, 0].tolist())
    assert seen == {0, 1}


@pytest.mark.parametrize(("stored", "loaded", "kinds"), [
    (".b128 [d1], z0;", ".b128 z0, [d1];", []),
    (".v2.b64 [d1], {d4, d4};", ".b128 z0, [d1];", ["scope"]),
    (".b128 [d1], z0;", ".v2.b64 {d4, d5}, [d1];", ["scope"]),
    (".b128 [d1], z0;", ".u64 d4, [d1];", ["scope"]),
])
@pytest.mark.parametrize(("scheduler", "seed"), MODES)
def test_a_b128_as_a_flag(stored, loaded, kinds, scheduler, seed):
    """It releases and is acquired as one, and meets only what is of the same bytes."""
    machine = Checked(2, scheduler=scheduler, seed=seed)
    send = SEND.format(flag=RELEASE, before="mov.u64 d4, 1;\nmov.b128 z0, {d4, d4};").replace(
        ".u64 [d1], 1;", stored)
    receive = RECEIVE.format(poll=ACQUIRE, after="").replace(".u64 d4, [d1];", loaded)
    if "z0" in loaded:
        receive = receive.replace("setp", "mov.b128 {_, d4}, z0;\nsetp")
    data, flag, out = machine.words(1, 1), machine.words(2, 1), machine.words(1, 1)
    machine.launch(send, data[0], flag[0], rank=0, block=1)
    machine.launch(receive, data[1], flag[1], out[1], rank=1, block=1)
    assert machine.world.run()
    assert machine.fetch(out[1], np.uint64, 1, 1)[0] == 7
    assert machine.kinds() == kinds


def test_a_seed_replays_what_is_seen():
    def run(seed):
        machine = Checked(2, seed=seed, memory="weak")
        got = send_and_receive(machine, MESSAGES["neither"], (0, 1))
        return int(got), machine.world.now, [race.as_dict() for race in machine.world.races()]

    assert all(run(seed) == run(seed) for seed in range(6))


@pytest.mark.parametrize(("option", "value"), [("check", "race"), ("check", True),
                                               ("memory", "relaxed"), ("memory", None)])
def test_options_are_checked(option, value):
    with pytest.raises((ValueError, TypeError), match=option):
        Checked(**{option: value})


@pytest.mark.parametrize("option", [{"check": "races"}, {"memory": "weak"}])
def test_gpus_have_no_race_checker(option):
    with pytest.raises(ValueError, match="check, memory: are for the CPU executor"):
        run_ranks(lambda comm: None, 1, executor="cuda", **option)


def test_a_run_that_fails_has_its_races_as_notes():
    def main(comm):
        executor = comm.executor
        data, out = executor.alloc(8), executor.alloc(8)
        streams = [executor.stream_create() for _ in range(2)]
        executor.fill(data, 0, 8, stream=streams[0])
        executor.synchronize(streams[0])
        queue(executor, STORE, data, 3, stream=streams[0])
        queue(executor, LOAD, data, out, stream=streams[1])
        for stream in streams:
            executor.synchronize(stream)
        raise RuntimeError("enough")

    with pytest.raises(RankError, match="enough") as raised:
        run_ranks(main, 1, executor="emu", check="races")
    note, = raised.value.__notes__
    assert note.startswith("RACE (unordered)")
