# SPDX-License-Identifier: MIT
"""What the C core is given: operands, constants, places, branches, and what is refused."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
from statements import FIRST_LINE, kernel

import deepep_ptx
from deepep_ptx.emu.decode import MOST_UNKNOWN, NONE
from deepep_ptx.emu.isa import (
    AtomOp,
    Cmp,
    Flag,
    Op,
    Scope,
    Sem,
    ShflMode,
    Space,
    Sreg,
    Type,
    VoteMode,
)
from deepep_ptx.emu.kernel import load_image
from deepep_ptx.emu.parse import MAX_SHOWN
from deepep_ptx.errors import PtxError

RENDERED = sorted((Path(deepep_ptx.__file__).parent / "_ptx").glob("sm_*/*.ptx"))


def decode(*statements, **options):
    """The image, and its instructions without the two at the end (ret and the implied exit)."""
    image = load_image(kernel(*statements, **options))
    assert list(image.insns["op"][-2:]) == [Op.EXIT, Op.EXIT]
    return image, image.insns[:-2]


def constant(image, place, dtype):
    """The value of a constant operand, which all 32 lanes must have."""
    lanes = image.constants[~place:~place + 32 * np.dtype(dtype).itemsize].view(dtype)
    assert lanes.size == 32 and len(set(lanes)) == 1
    return int(lanes[0])


def operands(insn, name, count):
    """The first `count` of dst or src; the others are absent."""
    assert all(insn[name][count:] == NONE)
    return [int(x) for x in insn[name][:count]]


def fields(insn, *names):
    return tuple(int(insn[n]) for n in names)


def test_registers_get_their_own_places_at_first_use():
    image, insns = decode("add.u32 r3, r1, r3;", "add.u64 d5, d0, d5;", "mov.pred q2, q1;",
                          "mov.b32 r7, r1;")
    assert operands(insns[0], "dst", 1) == [0]
    assert operands(insns[0], "src", 2) == [128, 0]
    assert operands(insns[1], "dst", 1) == [256]
    assert operands(insns[1], "src", 2) == [512, 256]
    assert (operands(insns[2], "dst", 1), operands(insns[2], "src", 1)) == ([0], [1])
    assert (operands(insns[3], "dst", 1), operands(insns[3], "src", 1)) == ([768], [128])
    assert (image.register_bytes, image.num_predicates) == (896, 2)


def test_constants_are_32_equal_lanes_each_stored_once():
    image, insns = decode("add.u32 r0, r0, 7;", "add.s32 r0, r0, -1;", "add.u64 d0, d0, 7;",
                          "add.u64 d0, d0, -1;", "mov.f32 f0, 0f3F800000;",
                          "max.u32 r0, r0, 0xffffffff;", "shl.b64 d0, d0, 7;")
    places = [int(i["src"][1]) for i in insns if i["op"] != Op.MOV]
    assert [constant(image, p, d) for p, d in
            zip(places, ("u4", "u4", "u8", "u8", "u4", "u4"), strict=True)] \
        == [7, 2 ** 32 - 1, 7, 2 ** 64 - 1, 2 ** 32 - 1, 7]
    assert constant(image, insns[4]["src"][0], "u4") == 0x3F800000
    assert places[0] == places[5] and places[1] == places[4]
    assert image.constants.size == 128 * 3 + 256 * 2


def test_narrow_constants_are_extended_as_their_type_says():
    image, insns = decode("st.global.u8 [d0], 255;", "st.global.s8 [d0], 255;",
                          "st.global.s8 [d0], -1;", "st.global.b16 [d0], -2;")
    assert [constant(image, i["dst"][0], "u4") for i in insns] \
        == [0xFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFE]


def test_guards():
    _, insns = decode("mov.u32 r0, 1;", "@q3 mov.u32 r0, 1;", "@!q3 ret;")
    assert [fields(i, "pred", "flags") for i in insns] == [(-1, 0), (0, 0), (0, Flag.PRED_NEG)]


def test_load_of_a_vector_keeps_strength_scope_space_and_hints():
    _, (insn,) = decode("ld.global.L1::no_allocate.L2::256B.v4.b32 v1, [d0 + 3 * 512];")
    assert fields(insn, "op", "type", "vec", "space", "sem", "scope", "proxy", "imm") == (
        Op.LD, Type.B32, 4, Space.GLOBAL, Sem.WEAK, Scope.NONE, 0, 1536)
    assert insn["flags"] == Flag.L1_NO_ALLOCATE | Flag.L2_256B
    assert len(set(operands(insn, "dst", 4))) == 4
    assert operands(insn, "src", 1)[0] not in insn["dst"]

    _, (insn,) = decode("ld.acquire.sys.global.u64 d0, [d1 + -8];")
    assert fields(insn, "type", "vec", "sem", "scope", "imm", "flags") == (
        Type.U64, 1, Sem.ACQUIRE, Scope.SYS, -8, 0)
    _, (insn,) = decode("ld.volatile.global.u32 r0, [d1];")
    assert fields(insn, "space", "sem", "scope", "flags") == (
        Space.GLOBAL, Sem.VOLATILE, Scope.SYS, 0)
    _, (insn,) = decode("ld.shared.u32 r0, [r1];")
    assert fields(insn, "space", "sem", "scope", "flags") == (
        Space.SHARED, Sem.WEAK, Scope.NONE, Flag.ADDR32)
    _, (insn,) = decode("ld.global.nc.v2.u32 w0, [d1];")
    assert fields(insn, "vec", "sem", "flags") == (2, Sem.WEAK, Flag.NC)


def test_elements_of_vectors_are_registers():
    _, insns = decode("ld.global.v4.b32 v0, [d0];", "add.u32 r0, v0.x, v0.w;",
                      "st.global.v2.b32 [d0], {v0.y, r0};")
    v0 = [int(x) for x in insns[0]["dst"]]
    assert operands(insns[1], "src", 2) == [v0[0], v0[3]]
    assert operands(insns[2], "dst", 2) == [v0[1], int(insns[1]["dst"][0])]


def test_a_store_reads_its_dst():
    image, (insn,) = decode("st.release.gpu.global.v4.u32 [d0 + 16], {r0, 5, r2, -1};")
    assert fields(insn, "op", "sem", "scope", "vec", "imm") == (
        Op.ST, Sem.RELEASE, Scope.GPU, 4, 16)
    data = operands(insn, "dst", 4)
    assert data[0] >= 0 and data[2] >= 0
    assert constant(image, data[1], "u4") == 5 and constant(image, data[3], "u4") == 2 ** 32 - 1


def test_shared_variables_lie_in_order_and_dynamic_memory_behind_them():
    image, insns = decode(
        ".shared .align 1 .b8 s_bytes[3];", ".shared .align 8 .b64 s_words[2];",
        "mov.u32 r0, s_bytes;", "mov.u32 r0, s_words + 4;", "mov.u64 d0, smem;",
        "ld.shared.u32 r0, [s_words + 8];", "st.shared.u32 [d1 + 4], r0;")
    assert image.shared_bytes == 32                   # 3, pad, 16 from 8 on, pad to 16
    assert [constant(image, insns[i]["src"][0], d) for i, d in ((0, "u4"), (1, "u4"), (2, "u8"))] \
        == [0, 12, 32]
    assert constant(image, insns[3]["src"][0], "u4") == 8
    assert fields(insns[3], "imm", "flags") == (8, Flag.ADDR32)
    assert fields(insns[4], "imm", "flags") == (4, 0)  # a 64-bit register may address .shared


def test_parameters_have_the_offsets_of_a_c_structure():
    text = kernel("ld.param.u64 d0, [b + 8];", "ld.param.v2.u32 w0, [b];",
                  "ld.param.u8 r0, [a];").replace(
        ".param .align 16 .b8 p[128]", ".param .u32 a, .param .align 16 .b8 b[24]")
    image = load_image(text)
    assert image.param_bytes == 40
    assert [int(i["imm"]) for i in image.insns[:3]] == [24, 16, 0]
    assert all(image.insns["src"][0] == NONE)
    assert image.max_threads == 256


def test_atomics():
    _, (insn,) = decode("atom.acquire.sys.global.cas.b64 d0, [d1 + 8], d2, d3;")
    assert fields(insn, "op", "type", "space", "sem", "scope", "sub", "imm") == (
        Op.ATOM, Type.B64, Space.GLOBAL, Sem.ACQUIRE, Scope.SYS, AtomOp.CAS, 8)
    assert operands(insn, "dst", 1) == [0]
    assert operands(insn, "src", 3) == [256, 512, 768]
    _, (insn,) = decode("red.shared.add.u32 [r0], 1;")
    assert fields(insn, "op", "sem", "scope", "sub", "flags") == (
        Op.RED, Sem.RELAXED, Scope.GPU, AtomOp.ADD, Flag.ADDR32)
    assert operands(insn, "dst", 0) == []


def test_warp_and_barrier_operands():
    image, insns = decode(
        "shfl.sync.bfly.b32 r0|q0, r1, 16, 31, 0xffffffff;", "shfl.sync.idx.b32 r0, r1, r2, 0, r3;",
        "vote.sync.any.pred q1, !q0, r3;", "vote.sync.ballot.b32 r0, q1, -1;",
        "bar.sync 3, r0;", "bar.sync 0;", "bar.warp.sync r3;", "nanosleep.u32 r0;",
        "fence.acq_rel.gpu;")
    shfl, idx, any_, ballot, bar, bar0, warp, sleep, fence = insns
    assert fields(shfl, "op", "sub", "type") == (Op.SHFL, ShflMode.BFLY, Type.B32)
    assert operands(shfl, "dst", 2)[1] == 0
    assert [constant(image, p, "u4") for p in operands(shfl, "src", 4)[1:]] == [16, 31, 2 ** 32 - 1]
    assert operands(idx, "dst", 1) == operands(shfl, "dst", 2)[:1]
    assert fields(any_, "op", "sub", "flags") == (Op.VOTE, VoteMode.ANY, Flag.SRC_PRED_NEG)
    assert operands(any_, "dst", 1) == [1]
    assert list(any_["src"][:3]) == [0, NONE, NONE] and any_["src"][3] == idx["src"][3]
    assert fields(ballot, "sub", "type", "flags") == (VoteMode.BALLOT, Type.B32, 0)
    assert constant(image, ballot["src"][3], "u4") == 2 ** 32 - 1
    assert fields(bar, "op") == (Op.BAR_SYNC,)
    assert operands(bar, "src", 2)[1] == operands(sleep, "src", 1)[0]
    assert constant(image, bar["src"][0], "u4") == 3 and bar0["src"][1] == NONE
    assert list(warp["src"][:3]) == [NONE] * 3 and warp["op"] == Op.BAR_WARP
    assert sleep["op"] == Op.NANOSLEEP
    assert fields(fence, "op", "sem", "scope") == (Op.FENCE, Sem.ACQ_REL, Scope.GPU)


def test_setp_selp_and_predicate_logic():
    _, insns = decode("setp.lt.s32 q0, r0, r1;", "setp.ge.and.u64 q1|q2, d0, d1, !q0;",
                      "setp.eq.u32 q1|_, r0, r1;", "selp.b64 d2, d0, d1, q2;",
                      "xor.pred q3, q1, q2;")
    assert fields(insns[0], "op", "type", "sub", "flags") == (Op.SETP, Type.S32, Cmp.LT, 0)
    assert (operands(insns[0], "dst", 1), operands(insns[0], "src", 2)) == ([0], [0, 128])
    assert fields(insns[1], "sub", "flags") == (Cmp.GE, Flag.BOOL_AND | Flag.SRC_PRED_NEG)
    assert operands(insns[1], "dst", 2) == [1, 2] and insns[1]["src"][2] == 0
    assert operands(insns[2], "dst", 1) == [1]
    assert fields(insns[3], "op", "type") == (Op.SELP, Type.B64) and insns[3]["src"][2] == 2
    assert fields(insns[4], "op", "type") == (Op.XOR, Type.PRED)
    assert (operands(insns[4], "dst", 1), operands(insns[4], "src", 2)) == ([3], [1, 2])


def test_conversions_and_special_registers():
    _, insns = decode("cvt.s64.s32 d0, r0;", "cvt.u32.u8 r1, r0;", "cvt.rn.bf16x2.f32 r0, f0, f1;",
                      "mov.u32 r0, %lanemask_lt;", "mov.u64 d0, %globaltimer;")
    assert [fields(i, "op", "type", "type2") for i in insns[:3]] == [
        (Op.CVT, Type.S64, Type.S32), (Op.CVT, Type.U32, Type.U8),
        (Op.CVT, Type.BF16X2, Type.F32)]
    assert len(set(operands(insns[2], "src", 2))) == 2
    assert [fields(i, "op", "sub", "type") for i in insns[3:]] == [
        (Op.MOV_SREG, Sreg.LANEMASK_LT, Type.U32), (Op.MOV_SREG, Sreg.GLOBALTIMER, Type.U64)]


@pytest.mark.parametrize(("statement", "want"), [
    ("ld.global.s32 d0, [d1];", [(Op.LD, Type.S32, 0), (Op.CVT, Type.S64, Type.S32)]),
    ("@!q0 ld.global.u8 d0, [d1];", [(Op.LD, Type.U8, 0), (Op.CVT, Type.U64, Type.U8)]),
    ("ld.global.f32 d0, [d1];", [(Op.LD, Type.F32, 0), (Op.CVT, Type.U64, Type.U32)]),
    ("st.global.u16 [d1], d0;", [(Op.CVT, Type.U32, Type.U64), (Op.ST, Type.U16, 0)]),
    ("cvt.s32.s64 d0, d1;", [(Op.CVT, Type.S32, Type.S64), (Op.CVT, Type.S64, Type.S32)]),
    ("cvt.u64.u8 d0, d1;", [(Op.CVT, Type.U32, Type.U64), (Op.CVT, Type.U64, Type.U8)]),
])
def test_a_wide_register_of_a_narrow_ld_st_or_cvt_goes_through_a_temporary(statement, want):
    image, insns = decode(statement)
    assert [fields(i, "op", "type", "type2") for i in insns] == want
    assert len({fields(i, "pred", "line") for i in insns}) == 1
    assert {t.decode() for t in image.texts[:2]} == {statement}
    first, second = insns
    temporary = first["dst"][0]
    assert temporary == (second["dst"][0] if second["op"] == Op.ST else second["src"][0])


def test_a_vector_of_wide_registers():
    _, insns = decode("ld.global.v2.s32 {d0, r0}, [d1];")
    assert [fields(i, "op", "vec") for i in insns] == [(Op.LD, 2), (Op.CVT, 1)]
    assert insns[1]["src"][0] == insns[0]["dst"][0] != insns[0]["dst"][1]


def test_labels_are_local_to_their_scope():
    _, insns = decode(
        "$loop: mov.u32 r0, 0;",                             # 0
        "{ $poll: mov.u32 r0, 1; @q0 bra $poll; }",          # 1, 2 -> 1
        "{ $poll: mov.u32 r0, 2; @q0 bra $poll; $out: }",    # 3, 4 -> 3
        "bra.uni $loop;", "bra $end;")                       # 5 -> 0, 6 -> 7
    branches = insns[insns["op"] == Op.BRA]
    assert list(branches["target"]) == [1, 3, 0, 7]
    assert list(branches["flags"]) == [0, 0, Flag.UNIFORM, 0]
    assert all(insns["target"][insns["op"] != Op.BRA] == -1)


def test_an_inner_register_hides_the_outer_one():
    _, insns = decode("mov.u32 r0, 1;", "{ .reg .b64 r0; mov.u64 r0, 1; }", "mov.u32 r0, 2;")
    assert [fields(i, "type") for i in insns] == [(Type.U32,), (Type.U64,), (Type.U32,)]
    assert insns[0]["dst"][0] == insns[2]["dst"][0] != insns[1]["dst"][0]


def test_line_table_and_statement_texts():
    text = kernel('.file 1 "ptx/src/dispatch.ptx"', '.file 2 "ptx/role/enter.inc"', ".loc 1 40 0",
                  "mov.u32   r0,", "  1;", ".loc 2 9 0", "@q0 bra $end;")
    image = load_image(text)
    assert image.files == (b"ptx/src/dispatch.ptx", b"ptx/role/enter.inc")
    lines = [tuple(image.lines[i]) for i in image.insns["line"]]
    assert lines[:2] == [(0, 40, FIRST_LINE + 3), (1, 9, FIRST_LINE + 6)]
    assert image.texts[:2] == (b"mov.u32 r0, 1;", b"@q0 bra $end;")
    assert image.texts[-1] == b"}" and image.insns["op"][-1] == Op.EXIT
    assert len(image.texts) == len(image.insns)


@pytest.mark.parametrize(("statements", "flags", "compare"), [
    (["mov.u64 d0, %globaltimer;", "setp.ge.u64 q0, d0, d1;"], Flag.CLOCK_CMP, Cmp.GE),
    (["mov.u64 d0, %globaltimer;", "setp.lt.u64 q0, d1, d0;"], Flag.CLOCK_CMP, Cmp.GT),
    (["mov.u64 d0, %globaltimer;", "setp.ge.or.u64 q0, d0, d1, q1;"],
     Flag.CLOCK_CMP | Flag.BOOL_OR, Cmp.GE),
    (["mov.u64 d0, %globaltimer;", "add.u64 d0, d0, 1;", "setp.ge.u64 q0, d0, d1;"], 0, Cmp.GE),
    (["mov.u64 d0, %clock64;", "setp.ge.u64 q0, d0, d1;"], 0, Cmp.GE),
    (["mov.u64 d0, %globaltimer;", "setp.ge.u32 q0, r0, r1;"], 0, Cmp.GE),
])
def test_comparisons_of_the_clock_are_marked(statements, flags, compare):
    _, insns = decode(*statements)
    clock, setp = insns[0]["dst"][0], insns[-1]
    assert fields(setp, "flags", "sub") == (flags, compare)
    if flags:
        assert setp["src"][0] == clock


@pytest.mark.parametrize(("statement", "says"), [
    ("ld.global.acquire.u32 r0, [d0];", "no such form of 'ld'"),
    ("frob.u32 r0;", "no instruction 'frob'"),
    ("add.u32 r0, r1;", "the operands do not fit 'add.TYPE d, a, b'"),
    ("add.u32 r0, %tid.x, 1;", "the operands do not fit"),
    ("mov.u32 r0, [d0];", "the operands do not fit 'mov.TYPE d, a' or 'mov.TYPE d, sreg'"),
    ("and.pred q0, q1, !q2;", "the operands do not fit"),
    ("mov.b64 d0, {r0, r1, r2};", "a .b64 has two parts of .b32 here: {a, b}"),
    ("mov.b64 d0, {d1, r1};", "'d1' is a .b64 register, which does not fit .b32"),
    ("mov.b64 r0, {r1, r2};", "'r0' is a .b32 register, which does not fit .b64"),
    ("mov.b64 {r0, 7}, d0;", "the destination must be a register"),
    ("mov.b64 {_, _}, d0;", "the parts of a destination must be registers of one type"),
    ("mov.b64 {r0, f0}, d0;", "the parts of a destination must be registers of one type"),
    ("mov.u64 d0, {r0, r1};", "the operands do not fit 'mov.TYPE d, a'"),
    ("mov.b128 d0, {d0, d1};", "a .b128 register is needed"),
    ("mov.b128 z0, {r0, r1};", "'r0' is a .b32 register, which does not fit .b64"),
    ("mov.b128 z0, z1;", "the operands do not fit 'mov.TYPE d, {a,b}:b64'"),
    ("mov.b128 {z1, d0}, z0;", "'z1' is a .b128 register, which does not fit .b64"),
    ("mov.b64 d0, z0;", "'z0' is a .b128 register, which does not fit .b64"),
    ("add.u64 d0, z0, 1;", "'z0' is a .b128 register, which does not fit .u64"),
    ("ld.global.b128 d0, [d1];", "a .b128 register is needed"),
    ("ld.global.b128 {d2, d3}, [d1];", "a .b128 register is needed"),
    ("ld.global.b64 z0, [d1];", "'z0' is a .b128 register, which does not fit .b64"),
    ("ld.global.b32 r0, [z0];", "'z0' is a .b128 register, which does not fit .b64"),
    ("st.global.b128 [d1], 0;", "a .b128 register is needed"),
    ("st.global.b128 [d1], z0.x;", "'z0' is not a vector"),
    ("ld.shared.b128 z0, [r0];", ".b128 is not one of its types"),
    ("ld.global.v2.b128 z0, [d0];", ".b128 is not one of its types"),
    ("ld.global.nc.b128 z0, [d0];", ".b128 is not one of its types"),
    ("atom.global.add.u32 _, [d0], 1;", "the operands do not fit"),
    ("add.u32 7, r1, r2;", "the destination must be a register"),
    ("add.u64 d0, r1, d1;", "'r1' is a .b32 register, which does not fit .u64"),
    ("add.u32 f0, r1, r2;", "'f0' is a .f32 register, which does not fit .u32"),
    ("ld.global.u64 r0, [d0];", "'r0' is a .b32 register, which does not fit .u64"),
    ("selp.b32 r0, r1, r2, r3;", "'r3' is a .b32 register, which does not fit .pred"),
    ("@r0 ret;", "'r0' is a .b32 register, which does not fit .pred"),
    ("add.u32 r0, r1, r10;", "'r10' is not declared; did you mean 'r1'?"),
    ("mov.u32 r0, %laneidx;", "did you mean '%laneid'?"),
    ("mov.u32 r0, %tid.y;", "the executor has no %tid.y; it has %tid.x"),
    ("mov.u64 d0, %tid.x;", "%tid.x is .u32, the instruction .u64"),
    ("mov.u32 r0, 0x100000000;", "the constant 4294967296 does not fit .u32"),
    ("add.f32 f0, f1, 1;", "1 is no constant of type .f32"),
    ("mov.u32 r0, 0f3F800000;", "a float constant does not fit .u32"),
    ("add.u32 r0, r1, smem;", "'smem' is a variable, not a register"),
    ("mov.u64 d0, p;", "'p' is not a .shared variable"),
    ("ld.global.v4.b32 w0, [d0];", "a vector of 4 is needed"),
    ("ld.global.v2.b32 {r0, r1, r2}, [d0];", "a vector of 2 is needed"),
    ("ld.global.v2.b32 r0, [d0];", "a vector of 2 is needed"),
    ("ld.global.v2.b32 {r0, _}, [d0];", "the destination must be a register"),
    ("ld.global.b32 v0, [d0];", "'v0' is a vector of 4; name an element (.x)"),
    ("mov.b32 r0, r1.x;", "'r1' is not a vector"),
    ("mov.b32 r0, w0.z;", "'w0' has only 2 elements"),
    ("ld.global.u32 r0, [r1];", "'r1' has 32 bits, a .global address 64"),
    ("ld.global.u32 r0, [smem];", "'smem' is not in .global"),
    ("ld.param.u32 r0, [d0];", "'d0' is not a parameter"),
    ("ld.param.u64 d0, [p + 124];", "leaves the parameter's 128 bytes"),
    ("ld.param.u64 d0, [p + 4];", "not aligned to 8 bytes"),
    ("bra $nowhere;", "no label '$nowhere' in this scope or around it"),
    ("bra $ends;", "did you mean '$end'?"),
])
def test_what_is_refused_names_the_source_line_and_the_statement(statement, says):
    text = kernel("mov.u32 r0, 1;", '.file 1 "ptx/src/layout.ptx"', ".loc 1 31 0", statement,
                  version="8.4")
    with pytest.raises(PtxError) as caught:
        load_image(text)
    assert says in str(caught.value)
    assert (caught.value.file, caught.value.line) == ("ptx/src/layout.ptx", 31)
    assert str(caught.value).startswith("ptx/src/layout.ptx:31: ")
    assert f"    {statement}\n" in str(caught.value)
    assert f"(rendered text: line {FIRST_LINE + 3}, column 1)" in str(caught.value)


def test_unknown_forms_are_listed_together():
    """Each where it first stands, in the order of the text; other mistakes wait for their turn."""
    function = ".func f(.reg .b32 a) { ret.fast; }\n"
    lines = ["add.u32 r0, r1;", "cvta.to.global.u64 d0, d0;",
             "{ { @q0 ld.weak.v3.u32 r0, [d0]; } }",
             "cvta.to.global.u64 d1, d1;", "ld.global.u32 r0, [d0];", "call.uni f, (r0);",
             "ld.v3.weak.u32 r0, [d0];"]
    text = kernel(*lines[1:], lines[0]).replace(".visible", function + ".visible")
    with pytest.raises(PtxError) as caught:
        load_image(text, name="k.ptx")
    error, first = caught.value, text[:text.index(".func")].count("\n") + 1
    assert (error.file, error.line) == ("k.ptx", first)
    report = str(error).splitlines()
    assert [line.partition("; ")[0] for line in report[::3]] == [
        f"k.ptx:{first}: no such form of 'ret': ret.fast: the executor knows no qualifier .fast",
        f"k.ptx:{FIRST_LINE + 1}: the executor has no instruction 'cvta' (cvta.to.global.u64)",
        f"k.ptx:{FIRST_LINE + 2}: no such form of 'ld': ld.weak.v3.u32: the executor knows no "
        f"qualifier .v3",
        f"k.ptx:{FIRST_LINE + 6}: no such form of 'ld': ld.v3.weak.u32: the executor knows no "
        f"qualifier .v3"]
    assert report[1::3] == ["    ret.fast;", f"    {lines[1]}", "    @q0 ld.weak.v3.u32 r0, [d0];",
                            f"    {lines[6]}"]
    assert report[5] == f"    (rendered text: line {FIRST_LINE + 1}, column 1)"


@pytest.mark.parametrize("count", [MOST_UNKNOWN, MOST_UNKNOWN + 1, 20_000])
def test_so_many_unknown_forms_are_listed(count):
    text = kernel(*(f"add.t{i} r0, r1, r2;" for i in range(count)))
    start = time.process_time()
    with pytest.raises(PtxError) as caught:
        load_image(text)
    assert time.process_time() - start < 5
    report = str(caught.value).splitlines()
    more = [f"... and others, from <ptx>:{FIRST_LINE + MOST_UNKNOWN} on"]
    assert report[3 * MOST_UNKNOWN:] == (more if count > MOST_UNKNOWN else [])
    assert [f"add.t{i}:" in line for i, line in enumerate(report[:-1:3])] == [True] * MOST_UNKNOWN


def test_unknown_forms_of_an_entry_that_is_not_loaded_do_not_matter():
    text = kernel("ret;") + ".entry l() { frob; }\n"
    assert load_image(text, "k").symbol == "k"
    with pytest.raises(PtxError, match="no instruction 'frob'"):
        load_image(text, "l")


def test_a_label_of_an_inner_scope_is_not_seen_outside():
    with pytest.raises(PtxError, match="no label '.poll'"):
        decode("{ $poll: ret; }", "bra $poll;")


@pytest.mark.parametrize(("statement", "says"), [
    ("{ .reg .b32 a; .reg .b64 a; }", "'a' is declared twice in one scope"),
    ("{ $a: $a: }", "'.a' is declared twice in one scope"),
    ("{ .reg .b32 a; a: }", "'a' is declared twice in one scope"),
    (".reg .u16 h;", "no .u16 registers; it has pred b16 b32"),
])
def test_declarations_that_are_refused(statement, says):
    with pytest.raises(PtxError, match=says) as caught:
        decode("ret;", statement)
    assert caught.value.line == FIRST_LINE + 1


def test_forms_need_their_version_and_target():
    statement = "ld.acquire.cluster.global.u32 r0, [d1];"
    decode(statement)
    with pytest.raises(PtxError, match=r"needs .version 7.8, the text says 7.4"):
        decode(statement, version="7.4")
    with pytest.raises(PtxError, match=r"needs .target sm_90, the text says sm_80"):
        decode(statement, target="sm_80")
    decode(statement, target="sm_100a")


def test_images_are_kept_and_entries_are_chosen_by_symbol():
    text = kernel("ret;")
    assert load_image(text) is load_image(text)
    assert load_image(text, "k").symbol == "k"
    with pytest.raises(ValueError, match="symbol must be one of k, is 'l'"):
        load_image(text, "l")
    two = text + ".entry l() { exit; }\n"
    assert [load_image(two, s).symbol for s in "kl"] == ["k", "l"]
    with pytest.raises(ValueError, match="one of k, l, is None"):
        load_image(two)


@pytest.mark.parametrize("path", RENDERED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_shipped_kernel_decodes(path):
    image = load_image(path.read_text(), path.stem)
    insns = image.insns
    assert image.target == path.parent.name and image.max_threads > 0
    branches = insns["op"] == Op.BRA
    assert all((insns["target"][branches] >= 0) & (insns["target"][branches] < len(insns)))
    to_predicates = np.isin(insns["op"], (Op.SETP, Op.SHFL, Op.MBAR_WAIT, Op.ELECT))
    registers = insns[~to_predicates & (insns["type"] != Type.PRED)]
    places = registers["dst"][registers["dst"] != NONE]
    assert places.size > 0 and all(places < image.register_bytes)
    assert all(np.where(places < 0, ~places, places) % 128 == 0)
    assert all(insns["pred"] < image.num_predicates)
    assert image.constants.size % 128 == 0
    assert all(name.startswith(b"ptx/") for name in image.files)


@pytest.mark.skipif(not RENDERED, reason="the PTX is not rendered: build the package")
def test_decoding_is_quick():
    """A 500-instruction kernel in under 60 ms, so that loading all of them is not felt."""
    path = max(RENDERED, key=lambda p: p.stat().st_size)
    best = np.inf
    for run in range(5):
        text = f"// {run}\n" + path.read_text()
        start = time.perf_counter()
        image = load_image(text)
        best = min(best, time.perf_counter() - start)
    assert best / len(image.insns) < 60e-3 / 500


# -- calls ----------------------------------------------------------------------------------------

FUNCTION = ".func f(.reg .b32 r0, .reg .b64 d0) {{ {} ret; }}\n"


def with_function(body, *statements):
    return load_image(kernel(*statements).replace(".visible", FUNCTION.format(body) + ".visible"))


def test_a_call_is_the_body_in_its_place():
    image = with_function("bra $out; $out:", "call f, (r1, d1);",
                          "call f, (-1, d1);")
    mov, wide, over, back = image.insns[:4]
    assert [i["op"] for i in image.insns] == [Op.MOV, Op.MOV, Op.BRA, Op.BRA] * 2 + [Op.EXIT] * 2
    assert (over["target"], back["target"]) == (3, 4)
    again = image.insns[4]
    assert again["dst"][0] != mov["dst"][0] and constant(image, again["src"][0], "u4") == 2**32 - 1
    assert (mov["type"], wide["type"]) == (Type.B32, Type.B64)


@pytest.mark.parametrize(("body", "statement", "says"), [
    ("", "call g, (r1, d1);", "no .func 'g' stands before this"),
    ("", "call f, (r1);", "'f' takes 2 arguments, not 1"),
    ("", "call f, (d1, d1);", "'d1' is a .b64 register, which does not fit .b32"),
    ("", "@q0 call f, (r1, d1);", "no guard"),
    ("", "call.uni f, (r1, d1);", "no qualifiers"),
    ("mov.u32 r0, r1;", "call f, (r1, d1);", "'r1' is not declared"),
    ("ld.param.u32 r0, [p];", "call f, (r1, d1);", "'p' is not declared"),
    ("bra $end;", "call f, (r1, d1);", "$end"),
    ("call f, (r0, d0);", "call f, (r1, d1);", "no .func 'f' stands before this"),
])
def test_calls_that_are_refused(body, statement, says):
    with pytest.raises(PtxError) as caught:
        with_function(body, statement)
    assert says in str(caught.value)


@pytest.mark.parametrize(("before", "wrong", "says"), [
    ("", ".func f(.reg .b32 a) { frobnicate.u32 a, b; }", "no instruction 'frobnicate'"),
    ("", ".func f(.reg .b32 a) { add.u32 a, a, b; }", "'b' is not declared"),
    ("", ".func f(.reg .b32 a) { bra nowhere; }", "no label 'nowhere'"),
    ("", ".func f(.reg .b32 a) { $l: $l: ret; }", "'$l' is declared twice"),
    ("", ".func f(.reg .b32 a, .reg .b64 a) { ret; }", "'a' is declared twice"),
    ("", ".func f(.reg .u16 a) { ret; }", "no .u16 registers"),
    ("", ".func f(.reg .b128 a) { ret; }", "expected a type of an argument, found '.b128'"),
    ("", ".func f(.reg .b32 a) { call f, (a); }", "no .func 'f' stands before this"),
    ("", ".func f(.reg .b32 a) { call g, (a); }\n.func g(.reg .b32 a) { ret; }",
     "no .func 'g' stands before this"),
    (".func g(.reg .b32 a) { ret; }\n", ".func f(.reg .b32 a) { call g, (a, a); }",
     "'g' takes 1 arguments, not 2"),
])
@pytest.mark.parametrize("behind", [False, True])
def test_functions_are_checked_also_where_nobody_calls_them(before, wrong, says, behind):
    text, functions = kernel("ret;"), f"{before}{wrong}\n"
    text = text + functions if behind else text.replace(".visible", functions + ".visible")
    with pytest.raises(PtxError, match=re.escape(says)) as caught:
        load_image(text)
    assert caught.value.line == text[:text.index(wrong)].count("\n") + 1


def test_functions_that_nobody_calls_are_not_in_the_image():
    text = kernel("add.u32 r0, r0, 7;")
    want = load_image(text)
    function = ".func f(.reg .b32 a) { .reg .b32 t<9>; add.u32 t8, a, 99; }"
    image = load_image(text.replace(".visible", f"{function} .visible"))
    assert list(image.insns) == list(want.insns) and image.texts == want.texts
    assert (list(image.constants), list(image.lines)) == (list(want.constants), list(want.lines))
    assert image.register_bytes == want.register_bytes


def test_a_function_behind_the_entry_cannot_be_called():
    with pytest.raises(PtxError, match=r"no \.func 'f' stands before this") as caught:
        load_image(kernel("call f, (r1, d1);") + FUNCTION.format(""))
    assert caught.value.line == FIRST_LINE


@pytest.mark.parametrize(("length", "calls", "depth", "says"), [
    (5000, 20, 1, "calls bring in more than 65536 statements"),
    (1, 1, 30, "more than 20 calls within each other"),
    (0, 40000, 1, "the registers used so far are 65534 words"),
])
def test_calls_have_limits(length, calls, depth, says):
    functions = [f".func f0(.reg .b32 r) {{ {'add.u32 r, r, 1;' * length} }}\n"]
    functions += [f".func f{i}(.reg .b32 r) {{ call f{i - 1}, (r); }}\n" for i in range(1, depth)]
    text = kernel(*[f"call f{depth - 1}, (r0);"] * calls)
    with pytest.raises(PtxError, match=says):
        load_image(text.replace(".visible", "".join(functions) + ".visible"))


@pytest.mark.parametrize(("declared", "calls"), [(60000, 2), (600, 2000)])
def test_what_calls_declare_counts(declared, calls):
    """Without that, each call costs as much as it declares, whatever is used."""
    function = f".func f(.reg .b32 r) {{ .reg .b32 z<{declared}>; }}\n"
    text = kernel(*["call f, (r0);"] * calls).replace(".visible", function + ".visible")
    with pytest.raises(PtxError, match="more than 65536 registers in one kernel") as caught:
        load_image(text)
    assert caught.value.line == text[:text.index(function)].count("\n") + 1


def test_loading_is_proportional_to_functions_and_calls():
    def seconds(count):
        functions = "".join(f".func f{i}(.reg .b32 r) {{}}\n" for i in range(count))
        text = kernel(*["call f0, (r0);"] * 4 * count).replace(".visible", functions + ".visible")
        start = time.process_time()
        load_image(text)
        return time.process_time() - start

    assert seconds(4000) < 8 * min(seconds(1000), seconds(1001))


def test_reports_show_the_start_of_a_long_statement():
    """The core keeps the text of each instruction, so of each call's copy."""
    image, insns = decode(f"add.u32 r0, r0, /*{'x' * 1000}*/ 1;")
    assert len(insns) == 1
    assert image.texts[0] == b"add.u32 r0, r0, /*".ljust(MAX_SHOWN, b"x")
