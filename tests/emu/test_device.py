# SPDX-License-Identifier: MIT
"""The device half of the CPU executor, built without its host half: what an observer hears of
memory, registers of devices, and agents that join a world."""

import ctypes
import os
import shlex
import shutil
import subprocess
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

import numpy as np
import pytest

from deepep_ptx.emu.isa import Proxy, Scope, Sem, Space
from deepep_ptx.emu.kernel import load_image
from tests.emu.machine import kernel, line_of, param_block

ROOT = Path(__file__).resolve().parents[2]
CC = shutil.which("cc") or "gcc"
FLAGS = ["-std=gnu11", "-O0", "-g", "-Wall", "-Wextra", "-Werror",
         *shlex.split(os.environ.get("CFLAGS", ""))]

IDLE, RUNNING, STALLED, FAULTED = range(4)              # enum emu_progress
LOAD, STORE, ATOMIC, BULK_READ, BULK_WRITE = range(5)   # enum emu_access_kind
LANES, COPY, HOST = range(3)                            # enum who of device.c
RR, RANDOM, LATE_ASYNC = range(3)                       # enum emu_scheduler
SCHEDULERS = {"rr": RR, "random": RANDOM, "late-async": LATE_ASYNC}
ALL = 0xffffffff
FOREVER = 2**64 - 1

RECORD = np.dtype([(name, "u8") for name in (
    "kind", "space", "sem", "scope", "proxy", "rank", "va", "bytes", "host", "who", "cta", "warp",
    "lanes", "lane_bytes", "pc")])


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The device half alone: -z defs fails where it needs anything of the host half."""
    path = tmp_path_factory.mktemp("device") / "device.so"
    include = [f"-I{ROOT / folder}" for folder in ("cysrc", "cysrc/gen")]
    sources = [ROOT / "tests/emu/device.c", *sorted((ROOT / "cysrc/emu/device").glob("*.c"))]
    subprocess.run([CC, *FLAGS, *include, "-shared", "-fPIC", "-Wl,-z,defs", "-o", path, *sources,
                    "-lm"], check=True)
    found = ctypes.CDLL(str(path))
    pointer64 = ctypes.POINTER(c_uint64)
    for name, result, *arguments in (
            ("device_create", c_void_p, c_uint32, c_uint32, c_uint64, c_int),
            ("device_destroy", None, c_void_p),
            ("device_world", c_void_p, c_void_p),
            ("device_records", c_void_p, c_void_p, ctypes.POINTER(c_size_t)),
            ("device_fault", c_char_p, c_void_p),
            ("device_load", c_void_p, c_void_p, c_char_p, c_void_p, c_uint32, c_void_p, c_uint32,
             c_uint32, c_uint32, c_uint32, c_uint32),
            ("device_counters", None, c_void_p, c_uint32, pointer64),
            ("late_word_join", c_void_p, c_void_p, c_uint64, c_uint64),
            ("late_word_steps", c_int, c_void_p),
            ("registers_map", c_void_p, c_void_p, c_uint32, pointer64),
            ("registers_stores", c_int, c_void_p, c_void_p),
            ("emu_unmap", c_int, c_void_p, c_uint32, c_uint64),
            ("emu_alloc", c_int, c_void_p, c_uint32, c_uint64, c_char_p, pointer64, c_void_p),
            ("emu_map_peer", c_int, c_void_p, c_uint32, c_uint32, c_uint64, pointer64),
            ("emu_host_write", c_int, c_void_p, c_uint32, c_uint64, c_char_p, c_uint64),
            ("emu_host_fill", c_int, c_void_p, c_uint32, c_uint64, ctypes.c_uint8, c_uint64),
            ("emu_host_read", c_int, c_void_p, c_uint32, c_void_p, c_uint64, c_uint64),
            ("emu_launch", c_int, c_void_p, c_uint32, c_void_p, c_char_p, c_uint32, c_uint32,
             c_uint32, c_uint32, ctypes.POINTER(c_void_p)),
            ("emu_step", c_int, c_void_p),
            ("emu_now", c_uint64, c_void_p)):
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


class Device:
    """A world of one or more GPUs whose host is the test."""

    def __init__(self, library, num_ranks=1, scheduler=RR, seed=0, observed=True):
        self.c = library
        self.device = library.device_create(num_ranks, scheduler, seed, observed)
        self.world = library.device_world(self.device)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.c.device_destroy(self.device)

    def alloc(self, nbytes, rank=0, fill=None):
        va = c_uint64()
        assert self.c.emu_alloc(self.world, rank, nbytes, b"data", va, None) == 0
        if fill is not None:
            assert self.c.emu_host_fill(self.world, rank, va, fill, nbytes) == 0
        return va.value

    def write(self, va, data, rank=0):
        assert self.c.emu_host_write(self.world, rank, va, bytes(data), len(bytes(data))) == 0

    def read(self, va, nbytes, rank=0):
        out = ctypes.create_string_buffer(nbytes)
        assert self.c.emu_host_read(self.world, rank, out, va, nbytes) == 0
        return out.raw

    def launch(self, body, *params, rank=0, grid=1, block=32, smem=0):
        image = load_image(kernel(body))
        loaded = self.c.device_load(
            self.device, image.symbol.encode(), image.insns.ctypes.data, len(image.insns),
            image.constants.ctypes.data, image.constants.nbytes, image.register_bytes,
            image.num_predicates, image.param_bytes, image.shared_bytes)
        assert loaded
        assert self.c.emu_launch(self.world, rank, loaded, param_block(params), image.param_bytes,
                                 grid, block, smem, c_void_p()) == 0
        return image

    def run(self):
        """Steps until that finds something else than EMU_RUNNING; what it is."""
        for _ in range(100_000):
            found = self.c.emu_step(self.world)
            if found != RUNNING:
                return found
        raise AssertionError("runs for ever")

    def records(self, **want):
        """What the observer has heard so far, of those with these values."""
        count = c_size_t()
        at = self.c.device_records(self.device, count)
        if not count.value:
            return np.empty(0, RECORD)
        raw = ctypes.string_at(at, count.value * RECORD.itemsize)
        found = np.frombuffer(raw, RECORD)
        for name, value in want.items():
            found = found[found[name] == value]
        return found

    def counters(self, rank=0):
        out = (c_uint64 * 8)()
        self.c.device_counters(self.device, rank, out)
        return list(out)

    @property
    def fault(self):
        return (self.c.device_fault(self.device) or b"").decode()


def told(records, *names):
    return [tuple(int(record[name]) for name in names) for record in records]


# -- what an observer hears ------------------------------------------------------------------------

LANES_BODY = """\
mul.wide.u32 d4, r0, 16;
add.u64 d4, d0, d4;
ld.global.v4.b32 v0, [d4];                      // SIDE BY SIDE
ld.relaxed.gpu.global.u32 r4, [d1 + 8];         // ONE ADDRESS
setp.lt.u32 q0, r0, 2;
mul.wide.u32 d5, r0, 64;
add.u64 d5, d1, d5;
@q0 st.release.sys.global.u32 [d5], r4;         // TWO LANES
@q0 atom.acq_rel.gpu.global.add.u32 r5, [d1 + 4], r4;   // ATOMIC
shl.b32 r6, r0, 2;
st.shared.u32 [r6], r0;                         // SHARED
setp.eq.u32 q1, r0, 5;
@q1 ld.acquire.sys.global.u64 d1, [d1];         // OWN ADDRESS
"""


def test_accesses_of_lanes(library):
    with Device(library) as device:
        table, words = device.alloc(512, fill=3), device.alloc(128, fill=0)
        heard = len(device.records())
        image = device.launch(LANES_BODY, table, words, smem=128)
        assert device.run() == IDLE, device.fault
        records = device.records()[heard:]
        assert set(records["who"]) == {LANES} and set(records["proxy"]) == {Proxy.GENERIC}
        assert {*records["cta"], *records["warp"], *records["rank"]} == {0}
        names = ("kind", "space", "va", "bytes", "lane_bytes", "lanes", "sem", "scope")
        g, s = Space.GLOBAL, Space.SHARED
        assert told(records, *names) == [
            (LOAD, g, table, 512, 16, ALL, Sem.WEAK, Scope.NONE),
            (LOAD, g, words + 8, 4, 4, ALL, Sem.RELAXED, Scope.GPU),
            (STORE, g, words, 4, 4, 1, Sem.RELEASE, Scope.SYS),
            (STORE, g, words + 64, 4, 4, 2, Sem.RELEASE, Scope.SYS),
            (ATOMIC, g, words + 4, 4, 4, 1, Sem.ACQ_REL, Scope.GPU),
            (ATOMIC, g, words + 4, 4, 4, 2, Sem.ACQ_REL, Scope.GPU),
            (STORE, s, 0, 128, 4, ALL, Sem.WEAK, Scope.NONE),
            (LOAD, g, words, 8, 8, 1 << 5, Sem.ACQUIRE, Scope.SYS),
        ]
        lines = [image.lines[image.insns[pc]["line"]]["line"] for pc in records["pc"]]
        marks = ("SIDE BY SIDE", "ONE ADDRESS", "TWO LANES", "TWO LANES", "ATOMIC", "ATOMIC",
                 "SHARED", "OWN ADDRESS")
        assert lines == [line_of(LANES_BODY, mark) for mark in marks]


def test_a_byte_is_the_same_for_all_ranks(library):
    """Each rank sees it at an address of its own."""
    body = "st.relaxed.sys.global.u32 [d0 + 4], r0;"
    with Device(library, num_ranks=2) as device:
        mine, theirs = device.alloc(16, fill=0), c_uint64()
        assert library.emu_map_peer(device.world, 1, 0, mine, theirs) == 0
        device.launch(body, mine, block=1)
        device.launch(body, theirs.value, rank=1, block=1)
        assert device.run() == IDLE, device.fault
        first, second = device.records(who=LANES)
        assert [first["rank"], second["rank"]] == [0, 1]
        assert [first["va"], second["va"]] == [mine + 4, theirs.value + 4]
        assert first["va"] != second["va"] and first["host"] == second["host"]


BULK_BODY = """\
setp.ne.u32 q0, r0, 0;
mov.u32 r4, 1024;
mov.u32 r5, 1;
@q0 bra $wait;
mbarrier.init.shared.b64 [r4], r5;
mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [r4], 512;
mov.u32 r6, 0;
mov.u32 r7, 512;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r6], [d0], r7, [r4];
$again:
mbarrier.try_wait.parity.shared.b64 q1, [r4], 0;
@!q1 bra $again;
cp.async.bulk.global.shared::cta.bulk_group [d1], [r6], r7;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;
$wait:
"""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_accesses_of_bulk_copies_and_mbarriers(library, scheduler, seed):
    with Device(library, scheduler=SCHEDULERS[scheduler], seed=seed) as device:
        source, target = device.alloc(512, fill=7), device.alloc(512)
        device.launch(BULK_BODY, source, target, smem=2048)
        assert device.run() == IDLE, device.fault
        assert device.read(target, 512) == bytes([7]) * 512

        copies = device.records(who=COPY)
        assert set(copies["lanes"]) == {1} and {*copies["cta"], *copies["warp"]} == {0}
        assert set(copies["proxy"]) == {Proxy.ASYNC}
        ways = [(BULK_READ, Space.GLOBAL, source), (BULK_WRITE, Space.SHARED, 0),
                (BULK_READ, Space.SHARED, 0), (BULK_WRITE, Space.GLOBAL, target)]
        for kind, space, start in ways:
            pieces = copies[(copies["kind"] == kind) & (copies["space"] == space)]
            covered = [va + i - start for va, n in told(pieces, "va", "bytes") for i in range(n)]
            assert sorted(covered) == list(range(512))          # every byte once

        lanes = device.records(who=LANES)
        object_ = told(lanes[lanes["va"] == 1024], "kind", "bytes", "sem", "scope")
        assert object_[:2] == [(STORE, 8, Sem.NONE, Scope.NONE),
                               (ATOMIC, 8, Sem.RELEASE, Scope.CTA)]
        assert set(object_[2:]) == {(LOAD, 8, Sem.ACQUIRE, Scope.CTA)}      # polls
        arrived = copies[copies["kind"] == ATOMIC]
        assert told(arrived, "va", "bytes", "sem", "scope") == \
            [(1024, 8, Sem.RELAXED, Scope.CLUSTER)]
        # The bytes come before the phase that they complete, the last poll after it.
        order = device.records()
        loaded = np.flatnonzero((order["kind"] == BULK_WRITE) & (order["space"] == Space.SHARED))
        completed = np.flatnonzero((order["who"] == COPY) & (order["kind"] == ATOMIC))
        polled = np.flatnonzero((order["who"] == LANES) & (order["kind"] == LOAD))
        assert loaded.max() < completed[0] < polled.max()


def test_accesses_of_the_host(library):
    with Device(library, num_ranks=2) as device:
        va = device.alloc(64, rank=1)
        device.write(va + 8, b"12345", rank=1)
        assert library.emu_host_fill(device.world, 1, va, 9, 4) == 0
        assert device.read(va + 8, 5, rank=1) == b"12345"
        records = device.records()
        assert told(records, "who", "kind", "space", "rank", "va", "bytes") == [
            (HOST, STORE, Space.GLOBAL, 1, va + 8, 5), (HOST, STORE, Space.GLOBAL, 1, va, 4),
            (HOST, LOAD, Space.GLOBAL, 1, va + 8, 5)]
        assert records["host"][0] - records["host"][1] == 8


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_observing_changes_nothing(library, scheduler):
    found = []
    for observed in (False, True):
        with Device(library, scheduler=SCHEDULERS[scheduler], seed=5, observed=observed) as device:
            table, words, target = (device.alloc(n, fill=1) for n in (512, 128, 512))
            device.launch(LANES_BODY, table, words, smem=128, grid=3)
            device.launch(BULK_BODY, table, target, smem=2048)
            assert device.run() == IDLE, device.fault
            assert (len(device.records()) > 30) == observed
            found.append((library.emu_now(device.world), device.counters(),
                          device.read(words, 128), device.read(target, 512)))
    assert found[0] == found[1]


def test_what_is_out_of_bounds_is_not_heard_of(library):
    with Device(library) as device:
        device.launch("ld.global.u32 r4, [d0 + 64];", device.alloc(64, fill=0), block=1)
        assert device.run() == FAULTED
        assert device.fault.startswith("out-of-bounds: load of 4 bytes")
        assert not len(device.records(who=LANES))


# -- registers of devices --------------------------------------------------------------------------


def map_registers(device, rank=0):
    """(handle, address) of 64 bytes of them."""
    va = c_uint64()
    return device.c.registers_map(device.device, rank, va), va.value


def stores_to(device, handle):
    """(offset, bytes, value) of each store so far."""
    out = np.zeros((64, 3), np.uint64)
    count = device.c.registers_stores(handle, out.ctypes.data)
    return [tuple(map(int, row)) for row in out[:count]]


@pytest.mark.parametrize("observed", [False, True])
def test_a_store_rings_a_doorbell(library, observed):
    body = """\
setp.lt.u32 q0, r0, 3;
mul.wide.u32 d4, r0, 8;
add.u64 d4, d0, d4;
mov.b64 d5, 0x1122334455667788;
@q0 st.release.sys.global.u64 [d4], d5;
setp.eq.u32 q1, r0, 7;
mov.b32 w0.x, 0xaabbccdd;
mov.b32 w0.y, 5;
@q1 st.global.v2.b32 [d0 + 24], w0;
@q1 st.global.u8 [d0 + 35], w0.x;
st.relaxed.sys.global.u32 [d0 + 40], r0;
"""
    with Device(library, observed=observed) as device:
        handle, va = map_registers(device)
        device.launch(body, va)
        before = device.counters()
        assert device.run() == IDLE, device.fault
        assert stores_to(device, handle) == [
            *((8 * lane, 8, 0x1122334455667788) for lane in range(3)),
            (24, 4, 0xaabbccdd), (28, 4, 5), (35, 1, 0xdd), *((40, 4, lane) for lane in range(32))]
        assert before[2:] == device.counters()[2:]      # no bytes of memory
        if observed:
            rung = device.records(sem=Sem.RELEASE)
            assert told(rung, "kind", "va", "bytes", "lanes", "host") == \
                [(STORE, va + 8 * lane, 8, 1 << lane, 0) for lane in range(3)]


def test_loads_of_registers(library):
    body = """\
st.global.u32 [d0 + 8], r0;
ld.relaxed.sys.global.u64 d4, [d0 + 8];
ld.global.v2.b32 w0, [d0];
ld.global.u8 r5, [d0 + 9];
st.global.u64 [d1], d4;
st.global.v2.b32 [d1 + 8], w0;
st.global.u32 [d1 + 16], r5;
"""
    with Device(library) as device:
        handle, va = map_registers(device)
        out = device.alloc(20)
        device.launch(body, va, out, block=1)
        assert device.run() == IDLE, device.fault
        assert stores_to(device, handle) == [(8, 4, 0)]
        assert np.frombuffer(device.read(out, 8), np.uint64) == [1 << 40]
        assert [*np.frombuffer(device.read(out + 8, 12), np.uint32)] == [0, 1, 1]


def test_a_poll_of_a_register_ends(library):
    body = "$poll:\nld.relaxed.sys.global.u32 r4, [d0];\nsetp.lt.u32 q0, r4, 3000;\n@q0 bra $poll;"
    with Device(library) as device:
        device.launch(body, map_registers(device)[1], block=1)
        assert device.run() == IDLE, device.fault


@pytest.mark.parametrize(("statement", "text"), [
    ("atom.relaxed.sys.global.add.u32 r4, [d0], r0;", "mmio: atomic of 4 bytes"),
    ("cp.async.bulk.global.shared::cta.bulk_group [d0], [r0], r1;", "mmio: bulk store of 32 bytes"),
    ("ld.relaxed.sys.global.b128 z0, [d0];", "mmio: load of 16 bytes"),
    ("mov.b128 z0, {d0, d0};\nst.global.b128 [d0], z0;", "mmio: store of 16 bytes"),
    ("st.global.u32 [d0 + 2], r0;", "misaligned: store of 4 bytes"),
    ("ld.global.u32 r4, [d0 + 64];", "out-of-bounds: load of 4 bytes"),
])
def test_what_registers_do_not_take(library, statement, text):
    with Device(library) as device:
        handle, va = map_registers(device)
        device.launch(f"mov.u32 r1, 32;\n{statement}", va, block=1, smem=64)
        assert device.run() == FAULTED
        assert device.fault.startswith(text)
        assert "'doorbell'" in device.fault
        assert ("registers of a device are there" in device.fault) == text.startswith("mmio")
        assert stores_to(device, handle) == []


def test_registers_are_no_memory_of_the_host_or_a_peer(library):
    with Device(library, num_ranks=2) as device:
        handle, va = map_registers(device)
        assert library.emu_host_write(device.world, 0, va, b"1", 1) != 0
        assert library.emu_map_peer(device.world, 1, 0, va, c_uint64()) != 0
        assert library.emu_unmap(device.world, 0, va) == 0
        device.launch("st.global.u32 [d0], r0;", va, block=1)
        assert device.run() == FAULTED
        assert device.fault.startswith("use-after-free: store of 4 bytes")
        assert stores_to(device, handle) == []


# -- agents ----------------------------------------------------------------------------------------

POLL = """\
$poll:
ld.acquire.sys.global.u64 d4, [d0];
setp.eq.u64 q0, d4, 0;
@q0 bra $poll;
st.global.u64 [d0 + 8], d4;
"""


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("when", [500_000, FOREVER], ids=["at its time", "forced"])
def test_an_agent_ends_the_waiting_of_a_kernel(library, scheduler, when):
    """Nothing else can: time goes to where the agent acts, or it has to."""
    with Device(library, scheduler=SCHEDULERS[scheduler]) as device:
        va = device.alloc(16, fill=0)
        late = library.late_word_join(device.device, va, when)
        device.launch(POLL, va, block=1)
        assert device.run() == IDLE, device.fault
        assert device.read(va + 8, 8) == (1).to_bytes(8, "little")
        now, steps = library.emu_now(device.world), library.late_word_steps(late)
        assert (500_000 <= now < 510_000) if when != FOREVER else now < 100_000
        assert 1 < steps < 20_000


def test_without_the_agent_the_world_stands_still(library):
    with Device(library) as device:
        device.launch(POLL, device.alloc(16, fill=0), block=1)
        assert device.run() == STALLED


def test_a_world_is_not_idle_while_an_agent_is_live(library):
    with Device(library) as device:
        va = device.alloc(16, fill=0)
        library.late_word_join(device.device, va, 1000)
        assert device.run() == IDLE
        assert device.read(va, 8) == (1).to_bytes(8, "little")
        assert library.emu_now(device.world) >= 1000
