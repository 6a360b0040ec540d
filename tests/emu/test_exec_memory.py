# SPDX-License-Identifier: MIT
"""Loads, stores and atomics: every width and shape, and every access that must be reported."""

import numpy as np
import pytest
from machine import Machine, fault_of, line_of

from deepep_ptx.errors import KernelFault

# d4 := d0 + 4 * thread, d5 := d1 + 4 * thread
WORDS = "mad.wide.u32 d4, r1, 4, d0;\nmad.wide.u32 d5, r1, 4, d1;\n"


def copy_kernel(space, type_, vec, size, stride):
    """Each thread moves one vector from d0 to d1, by way of shared memory if `space` is that."""
    letters = {("b32", 1): "r4", ("b64", 1): "d6", ("b32", 2): "w0", ("b32", 4): "v0",
               ("b64", 2): "x0", ("b8", 1): "r4", ("b16", 1): "r4", ("b8", 4): "{r4, r5, r6, r7}",
               ("b16", 2): "{r4, r5}", ("b128", 1): "z0"}
    data, shape = letters[type_, vec], f".v{vec}" if vec > 1 else ""
    body = [f"mad.wide.u32 d4, r1, {stride}, d0;", f"mad.wide.u32 d5, r1, {stride}, d1;",
            f"ld.global{shape}.{type_} {data}, [d4];"]
    if space == "parts":
        body += ["mov.b128 {d6, d7}, z0;", "mov.b128 {_, d8}, z0;", "mov.b128 z1, {d6, d8};",
                 "mov.b128 {d9, _}, z1;", "mov.b128 z0, {d9, d7};"]
    elif space == "shared":
        body += [f"mul.lo.u32 r10, r0, {size};", f"st.shared{shape}.{type_} [r10], {data};",
                 "bar.sync 0;", f"ld.shared{shape}.{type_} {data}, [r10];"]
    return "\n".join([*body, f"st.global{shape}.{type_} [d5], {data};"])


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("gap", [0, 16])
@pytest.mark.parametrize(("type_", "vec"), [
    ("b8", 1), ("b16", 1), ("b32", 1), ("b64", 1), ("b32", 2), ("b64", 2), ("b32", 4), ("b8", 4),
    ("b16", 2)])
def test_copy(type_, vec, gap, space):
    """Side by side and apart, for whole warps and a partial one."""
    copy(type_, vec, gap, space)


@pytest.mark.parametrize("space", ["global", "parts"])
@pytest.mark.parametrize("gap", [0, 16])
def test_copy_of_16_bytes_as_one(gap, space):
    copy("b128", 1, gap, space)


def copy(type_, vec, gap, space):
    size = int(type_[1:]) // 8 * vec
    stride, threads = size + gap, 80
    rows = np.random.default_rng(0).integers(0, 256, (threads, stride), dtype="u1")
    machine = Machine()
    out = machine.array(np.full((threads, stride), 0xEE, "u1"))
    machine.run(copy_kernel(space, type_, vec, size, stride), machine.array(rows), out,
                block=threads, smem=threads * size)
    got = machine.fetch(out, "u1", rows.size).reshape(rows.shape)
    assert np.array_equal(got[:, :size], rows[:, :size])
    assert (got[:, size:] == 0xEE).all()


@pytest.mark.parametrize(("type_", "dtype"), [("u8", "u1"), ("s8", "i1"), ("u16", "u2"),
                                              ("s16", "i2")])
def test_narrow_loads_extend(type_, dtype):
    machine = Machine()
    source = np.arange(-16, 16).astype(dtype)
    out = machine.space(128)
    machine.run(f"mad.wide.u32 d4, r1, {source.itemsize}, d0;\nmad.wide.u32 d5, r1, 4, d1;\n"
                f"ld.global.{type_} r4, [d4];\nst.global.b32 [d5], r4;", machine.array(source), out)
    assert np.array_equal(machine.fetch(out, "i4", 32), source.astype("i4"))


def test_one_address_for_all_lanes():
    machine = Machine()
    out = machine.space(32 * 16)
    machine.run("mad.wide.u32 d5, r1, 16, d1;\nld.global.v4.b32 v0, [d0];\n"
                "st.global.v4.b32 [d5], v0;", machine.array(np.arange(4, dtype="u4")), out)
    assert np.array_equal(machine.fetch(out, "u4", 128), np.tile(np.arange(4), 32))


def test_offsets_may_be_negative():
    machine = Machine()
    data = machine.array(np.arange(32, dtype="u4"))
    machine.run("ld.global.u32 r4, [d0 + -8];\nst.global.u32 [d0], r4;", data + 64)
    assert machine.fetch(data, "u4", 32)[16] == 14


def test_store_of_constants():
    machine = Machine()
    out = machine.space(512)
    machine.run("mad.wide.u32 d5, r1, 16, d0;\nst.global.v4.b32 [d5], {r1, 7, -1, r0};", out)
    got = machine.fetch(out, "i4", 128).reshape(32, 4)
    assert np.array_equal(got, np.stack([np.arange(32), np.full(32, 7), np.full(32, -1),
                                         np.arange(32)], axis=1))


# -- atomics -------------------------------------------------------------------------------------

@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(("op", "type_", "start", "operand", "want"), [
    ("add", "u32", 5, "r1", 5 + sum(range(256))),
    ("add", "u64", 2**40, "d6", 2**40 + sum(range(256))),
    ("min", "s32", 0, "r11", -255), ("min", "u32", 2**32 - 1, "r1", 0),
    ("max", "s32", -3, "r11", 0), ("max", "u32", 3, "r1", 255),
    ("max", "u64", 3, "d6", 255),
    ("and", "b32", 0xFFFF, "r12", 0xFF00), ("or", "b32", 0x10000, "r1", 0x100FF),
    ("xor", "b32", 0, "r1", 0), ("exch", "b32", 9, "7", 7),
    ("inc", "u32", 0, "99", 256 % 100), ("dec", "u32", 0, "99", 100 - 256 % 100),
])
def test_atomics_of_many_ctas(op, type_, start, operand, want, space):
    size = int(type_[1:]) // 8
    machine = Machine()
    cell = machine.array(np.array([start]).astype(f"{'i' if start < 0 else 'u'}{size}"))
    old = machine.space(256 * size)
    data = "d7" if size == 8 else "r4"
    head = f"neg.s32 r11, r1;\nor.b32 r12, r1, 0xff00;\ncvt.u64.u32 d6, r1;\n" \
           f"mad.wide.u32 d5, r1, {size}, d1;\n"
    if space == "global":
        body = f"atom.relaxed.gpu.global.{op}.{type_} {data}, [d0], {operand};"
        shape = {"grid": 8, "block": 32}
    else:
        body = (f"ld.global.b{8 * size} {data}, [d0];\nsetp.eq.u32 q0, r1, 0;\n"
                f"@q0 st.shared.b{8 * size} [smem], {data};\nbar.sync 0;\n"
                f"atom.shared.{op}.{type_} {data}, [smem], {operand};\nbar.sync 0;\n"
                f"ld.shared.b{8 * size} {'d8' if size == 8 else 'r5'}, [smem];\n"
                f"@q0 st.global.b{8 * size} [d0], {'d8' if size == 8 else 'r5'};")
        shape = {"grid": 1, "block": 256, "smem": 16}
    machine.run(head + body + f"\nst.global.b{8 * size} [d5], {data};", cell, old, **shape)
    assert machine.fetch(cell, f"u{size}", 1)[0] == want % 2**(8 * size)
    if op == "add":
        olds = np.sort(machine.fetch(old, f"u{size}", 256))
        assert olds[0] == start and len(set(olds.tolist())) >= 255     # thread 0 adds nothing


@pytest.mark.parametrize("op", ["add.u32", "add.u64", "min.s32", "max.u32", "or.b32", "xor.b64"])
def test_red(op):
    size = int(op[-2:]) // 8
    machine = Machine()
    cell = machine.array(np.array([1], f"u{size}"))
    operand = "d6" if size == 8 else "r1"
    machine.run(f"cvt.u64.u32 d6, r1;\nred.relaxed.gpu.global.{op} [d0], {operand};", cell, grid=2)
    numbers = range(64)
    want = {"add": 1 + sum(numbers), "min": 0, "max": 63, "or": 63, "xor": 1}[op.split(".")[0]]
    assert machine.fetch(cell, f"u{size}", 1)[0] == want


def test_cas_takes_turns():
    """A lock of compare-and-swap: every thread adds 1 to a plain counter."""
    machine = Machine()
    cells = machine.array(np.zeros(2, "u4"))
    machine.run("""\
$try:
atom.acquire.gpu.global.cas.b32 r4, [d0], 0, 1;
setp.ne.u32 q0, r4, 0;
@q0 bra $try;
ld.relaxed.gpu.global.u32 r5, [d0 + 4];
add.u32 r5, r5, 1;
st.relaxed.gpu.global.u32 [d0 + 4], r5;
st.release.gpu.global.u32 [d0], 0;
""", cells, grid=6, block=40)
    assert list(machine.fetch(cells, "u4", 2)) == [0, 240]


# -- reports -------------------------------------------------------------------------------------

def test_out_of_bounds():
    machine = Machine(2)
    data = machine.array(np.zeros(40, "u4"), name="counts")
    fault = fault_of(WORDS + "ld.global.u32 r4, [d4];   // BUG", data, kind="out-of-bounds",
                     machine=machine, block=64)
    assert (fault.rank, fault.cta, fault.warp, fault.lane) == (0, 0, 1, 8)
    assert "'counts' + 0xa0, 0 bytes behind its end (160 bytes)" in str(fault)
    assert "load of 4 bytes" in str(fault)
    assert "ld.global.u32 r4, [d4];" in str(fault)


@pytest.mark.parametrize("form", [
    "ld.global.v4.b32 v0, [d4];", "st.global.v4.b32 [d4], {r1, r1, r1, r1};",
    "atom.relaxed.gpu.global.add.u32 r4, [d4], 1;"])
def test_out_of_bounds_of_any_access(form):
    machine = Machine()
    data = machine.array(np.zeros(32 * 16 - 4, "u1"))
    fault = fault_of(f"mad.wide.u32 d4, r1, 16, d0;\nadd.u64 d4, d4, 4096;\n{form}   // BUG", data,
                     kind="out-of-bounds", machine=machine)
    assert fault.lane == 0


def test_out_of_bounds_before_the_start():
    machine = Machine()
    data = machine.array(np.zeros(8, "u4"))
    fault_of("ld.global.u32 r4, [d0 + -4];   // BUG", data, kind="out-of-bounds", machine=machine)


def test_null():
    fault = fault_of("ld.global.u32 r4, [d0];   // BUG", 0, kind="out-of-bounds")
    assert "no address of rank 0" in str(fault)


def test_an_address_of_another_rank():
    machine = Machine(2)
    theirs = machine.array(np.zeros(8, "u4"), rank=1, name="inbox")
    fault = fault_of("ld.global.u32 r4, [d0];   // BUG", theirs, kind="out-of-bounds",
                     machine=machine)
    assert "rank 1 has 'inbox' there" in str(fault)


def test_peers_see_memory_at_another_address():
    machine = Machine(3)
    theirs = machine.array(np.zeros(8, "u4"), rank=1, name="inbox")
    ours = {theirs, *(machine.world.map_peer(r, 1, theirs) for r in (0, 2))}
    assert len(ours) == 3
    mapped = machine.world.map_peer(0, 1, theirs)
    fault = fault_of("ld.global.u32 r4, [d0 + 32];   // BUG", mapped, kind="out-of-bounds",
                     machine=machine)
    assert "'inbox' of rank 1 + 0x20" in str(fault)


@pytest.mark.parametrize("form", ["ld.global.u32 r4, [d4];", "ld.global.v2.b32 w0, [d0 + 4];",
                                  "st.global.u64 [d0 + 12], d0;", "ld.global.v4.b32 v0, [d0 + 8];"])
def test_misaligned(form):
    machine = Machine()
    data = machine.array(np.zeros(64, "u4"))
    fault_of(f"mad.wide.u32 d4, r1, 3, d0;\n{form}   // BUG", data, kind="misaligned",
             machine=machine)


def test_misaligned_shared():
    fault = fault_of("ld.shared.u32 r4, [smem + 2];   // BUG", kind="misaligned", smem=16)
    assert "0x2 of 16 bytes of shared memory" in str(fault)


def test_out_of_bounds_shared():
    fault = fault_of("shl.b32 r4, r0, 2;\nst.shared.u32 [r4], r0;   // BUG", kind="out-of-bounds",
                     smem=100)
    assert fault.lane == 25


def test_use_after_free():
    machine = Machine(2)
    data = machine.array(np.zeros(8, "u4"), name="slot")
    peer = machine.world.map_peer(1, 0, data)
    machine.world.unmap(0, data)
    fault = fault_of("ld.global.u32 r4, [d0];   // BUG", data, kind="use-after-free",
                     machine=machine)
    assert "'slot'" in str(fault) and "unmapped" in str(fault)

    machine = Machine(2)
    data = machine.array(np.zeros(8, "u4"), name="slot")
    peer = machine.world.map_peer(1, 0, data)
    machine.world.unmap(0, data)
    fault = fault_of("st.global.u32 [d0], r0;   // BUG", peer, kind="use-after-free",
                     machine=machine, rank=1)
    assert "'slot' of rank 0" in str(fault) and "its owner freed it" in str(fault)


def test_read_only():
    machine = Machine()
    data = machine.world.map_host(0, bytes(64), False, name="x")
    fault = fault_of("ld.global.u32 r4, [d0];\nst.global.u32 [d0], r4;   // BUG", data,
                     kind="read-only", machine=machine)
    assert "'x'" in str(fault)


def test_host_memory_is_shared_both_ways():
    machine = Machine()
    data = bytearray(128)
    va = machine.world.map_host(0, data)
    machine.run(WORDS + "st.global.u32 [d4], r1;", va)
    assert np.array_equal(np.frombuffer(data, "u4"), np.arange(32))


def test_uninitialised_global():
    machine = Machine()
    data = machine.space(160, name="staging")
    machine.world.write(0, data, bytes(50))
    fault = fault_of(WORDS + "ld.global.u32 r4, [d4];   // BUG", data, kind="uninitialised",
                     machine=machine)
    assert fault.lane == 12
    assert "'staging' + 0x30" in str(fault) and "byte 2 of it" in str(fault)


@pytest.mark.parametrize("form", [
    "ld.global.v4.b32 v0, [d4];", "ld.volatile.global.u32 r4, [d0];",
    "atom.relaxed.gpu.global.add.u32 r4, [d0], 1;", "red.relaxed.gpu.global.add.u32 [d0], 1;"])
def test_uninitialised_global_of_any_access(form):
    machine = Machine()
    fault_of(f"mad.wide.u32 d4, r1, 16, d0;\n{form}   // BUG", machine.space(512),
             kind="uninitialised", machine=machine)


def test_a_store_initialises():
    machine = Machine()
    data = machine.space(512)
    machine.run("mad.wide.u32 d4, r1, 16, d0;\nst.global.v4.b32 [d4], {r1, r1, r1, r1};\n"
                "ld.global.v4.b32 v0, [d4];\nld.global.u8 r4, [d0 + 511];", data)


def test_uninitialised_shared():
    fault = fault_of("shl.b32 r4, r0, 2;\nsetp.ne.u32 q0, r0, 5;\n@q0 st.shared.u32 [r4], r0;\n"
                     "bar.sync 0;\nld.shared.u32 r5, [r4];   // BUG", kind="uninitialised",
                     smem=128)
    assert fault.lane == 5


def test_shared_memory_is_fresh_in_each_cta():
    """Also where a CTA takes the SM of one that wrote all of it."""
    fault_of("shl.b32 r4, r0, 2;\nsetp.ne.u32 q0, r2, 0;\n@q0 ld.shared.u32 r5, [r4];   // BUG\n"
             "st.shared.u32 [r4], r0;", kind="uninitialised", machine=Machine(sms_per_rank=1),
             grid=2, smem=200_000)


def test_uninitialised_register():
    fault = fault_of("setp.lt.u32 q0, r0, 9;\n@q0 mov.u32 r4, 1;\nadd.u32 r5, r4, r4;   // BUG",
                     kind="uninitialised")
    assert fault.lane == 9
    assert "lanes 0xfffffe00" in str(fault)


@pytest.mark.parametrize("form", [
    "@q4 add.u32 r4, r0, 1;", "selp.b32 r4, r0, r9, q4;", "st.global.u32 [d0], r9;",
    "st.global.v2.b32 [d0], {r0, r9};", "ld.global.u32 r4, [d9];", "fma.rn.f32 f0, f1, f2, f3;",
    "setp.lt.and.u32 q0, r0, 5, q4;", "vote.sync.any.pred q0, q4, -1;",
    "cvt.u64.u32 d4, r9;", "nanosleep.u32 r9;"])
def test_uninitialised_register_of_any_operand(form):
    machine = Machine()
    fault_of(f"{form}   // BUG", machine.array(np.zeros(4, "u4")), kind="uninitialised",
             machine=machine)


def test_selp_reads_what_it_chooses():
    machine = Machine()
    out = machine.space(128)
    machine.run(WORDS + "setp.lt.u32 q0, r0, 9;\n@q0 mov.u32 r4, 1;\nselp.b32 r5, r4, 0, q0;\n"
                "st.global.u32 [d4], r5;", out)
    assert machine.fetch(out, "u4", 32).sum() == 9


def test_a_shuffled_register_may_be_undefined_where_nobody_asks():
    machine = Machine()
    out = machine.space(128)
    machine.run(WORDS + "setp.eq.u32 q0, r0, 3;\n@q0 mov.u32 r4, 6;\n"
                "shfl.sync.idx.b32 r5, r4, 3, 31, -1;\nst.global.u32 [d4], r5;", out)
    assert (machine.fetch(out, "u4", 32) == 6).all()
    fault = fault_of("setp.eq.u32 q0, r0, 3;\n@q0 mov.u32 r4, 6;\n"
                     "shfl.sync.up.b32 r5, r4, 1, 0, -1;\nadd.u32 r5, r5, 1;   // BUG",
                     kind="uninitialised")
    assert fault.lane == 0


def test_without_checks_uninitialised_is_not_zero():
    machine = Machine(checks="off")
    out = machine.space(128)
    data = machine.space(128)
    machine.run(WORDS + "ld.global.u32 r4, [d5];\nadd.u32 r4, r4, r9;\nst.global.u32 [d4], r4;\n"
                "st.global.u32 [d4], r9;", out, data)
    assert (machine.fetch(data, "u1", 128) != 0).all()
    with pytest.raises(KernelFault, match="out-of-bounds"):
        machine.run("ld.global.u32 r4, [d0 + 128];", out)


def test_fresh_memory_depends_on_the_seed():
    one, same, other = (Machine(seed=s) for s in (1, 1, 2))
    bytes_of = [m.world.read(0, m.space(64), 64) for m in (one, same, other)]
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]


def test_divide_by_zero():
    body = "setp.ne.u32 q0, r0, 7;\nselp.b32 r4, 1, 0, q0;\ndiv.u32 r5, r0, r4;   // BUG"
    fault = fault_of(body, kind="divide-by-zero")
    assert fault.lane == 7


def test_the_report_names_everything():
    machine = Machine()
    body = "mov.u32 r4, 1;\nsetp.ge.u32 q0, r0, 37;\n@q0 ld.global.u32 r5, [d0 + 64];   // BUG"
    data = machine.array(np.zeros(16, "u4"), name="heap")
    with pytest.raises(KernelFault) as raised:
        machine.run(body, data, grid=3, block=64)
    text = str(raised.value)
    assert f"test.ptx:{line_of(body)} (line " in text
    assert "kernel k, rank 0, CTA 0, warp 1, lane 5, active lanes 0xffffffe0" in text


# -- counters ------------------------------------------------------------------------------------

def test_counters():
    machine = Machine(2)
    data = machine.array(np.zeros(512, "u4"))
    theirs = machine.world.map_peer(0, 1, machine.array(np.zeros(512, "u4"), rank=1))
    before = machine.world.counters(0)
    assert set(before.values()) == {0}
    machine.run("mad.wide.u32 d4, r1, 16, d0;\nmad.wide.u32 d5, r1, 16, d1;\n"
                "ld.global.v4.b32 v0, [d4];\nst.global.v4.b32 [d5], v0;\nsetp.lt.u32 q0, r0, 3;\n"
                "@q0 ld.global.u8 r4, [d5];", data, theirs, grid=2)
    got = machine.world.counters(0)
    assert got["global_load_bytes"] == 2 * (512 + 3) and got["peer_load_bytes"] == 6
    assert got["global_store_bytes"] == got["peer_store_bytes"] == 1024
    assert got["global_load_transactions"] == 2 * (512 // 32 + 2), "bytes 0, 16, 32"
    assert got["global_store_transactions"] == 2 * (512 // 32)
    assert got["warp_instructions"] == 2 * (8 + 6 + 1)
    assert got["thread_instructions"] == 2 * (14 * 32 + 3)
    assert set(machine.world.counters(1).values()) == {0}


@pytest.mark.parametrize("apart, transactions", [(0, 1), (4, 4), (8, 8), (32, 32), (100, 32)])
def test_transactions_are_sectors(apart, transactions):
    """32 lanes load 4 bytes each, `apart` bytes apart."""
    machine = Machine(1)
    data = machine.array(np.zeros(1024, "u4"))
    machine.run(f"mad.wide.u32 d4, r1, {apart}, d0;\nld.global.b32 r4, [d4];", data)
    assert machine.world.counters(0)["global_load_transactions"] == transactions
