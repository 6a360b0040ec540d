# SPDX-License-Identifier: MIT
"""The table of instruction forms: against the assembler, the C header, and by hand."""

import itertools
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from statements import FIRST_LINE, kernel, spellings

from deepep_ptx.emu.decode import _INSN, _LINE, INSN, LINE, _accepts
from deepep_ptx.emu.isa import (
    C_ENUMS,
    FORMS,
    SREGS,
    TYPE_WORDS,
    AtomOp,
    Cmp,
    Flag,
    FormError,
    Op,
    Scope,
    Sem,
    ShflMode,
    Space,
    Type,
    lookup,
)
from deepep_ptx.emu.kernel import load_image
from deepep_ptx.toolchain import isa_header, ptxas

ROOT = Path(__file__).resolve().parents[2]
TARGETS = [("sm_80", (7, 4)), ("sm_90", (7, 8)), ("sm_90", (8, 0)), ("sm_80", (8, 3)),
           ("sm_90", (8, 4)), ("sm_90", (8, 6))]


@pytest.fixture(scope="module")
def assembler():
    try:
        return ptxas.find().ptxas
    except ptxas.ToolError as error:
        pytest.skip(str(error))


def refused_lines(assembler, text, target, folder):
    """Lines of the text that ptxas refuses."""
    source = folder / "kernel.ptx"
    source.write_text(text)
    done = subprocess.run([assembler, f"-arch={target}", "-O0", str(source), "-o", "/dev/null"],
                          capture_output=True, text=True)
    lines = {int(n) for n in re.findall(r"line (\d+);\s*(?:error|fatal)", done.stderr)}
    assert done.returncode == 0 or lines, done.stderr
    return lines


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.syntax.strip())
def test_the_example_of_each_form_decodes_to_its_operation(form):
    text = kernel("$top:", form.example, version="9.9")
    image = load_image(text)
    ops = image.insns["op"][:2]                      # an address may be added up first
    if form.example.startswith("mov.b128"):
        assert list(ops) == [Op.MOV] * 2             # of each half
    else:
        assert form.op in ops
    assert image.texts[0].decode() == form.example
    assert form.doc.endswith(("-instructions-" + form.opcode, "-sync", "-membar")) or (
        f"-instructions-{form.opcode}-" in form.doc)


def test_every_spelling_decodes_to_what_its_words_say():
    """The qualifiers are read here a second time, by themselves and by a naive rule."""
    statements = spellings()
    assert len(statements) > 2000
    image = load_image(kernel(*(s for s, _ in statements), version="9.9"))
    mains = iter(range(len(image.insns)))
    for statement, match in statements:
        op = match.form.op
        if match.types[:1] == [Type.B128] and op in (Op.PACK, Op.UNPACK):
            op = Op.MOV                           # of each half
        row = next(i for i in mains if image.texts[i].decode() == statement
                   and image.insns["op"][i] == op)
        insn = image.insns[row]
        opcode, *words = statement.split(" ")[0].rstrip(";").split(".")
        types = [TYPE_WORDS[w] for w in words if w in TYPE_WORDS]
        whole = types[:1] == [Type.B128]          # moved as its halves
        if whole:
            types[0] = Type.B64
        assert insn["type"] == (types[0] if types else 0), statement
        assert insn["type2"] == (types[1] if len(types) > 1 else 0), statement
        assert insn["vec"] == (2 if "v2" in words or (whole and opcode != "mov") else
                               4 if "v4" in words else 1), statement
        assert bool(insn["flags"] & Flag.WHOLE) == (whole and opcode != "mov"), statement
        bulk = {"async", "bulk"} <= set(words)
        spaces = [s for s in Space if s.name.lower() in words]
        if not spaces and opcode in ("mbarrier", "fence"):
            spaces = [Space.SHARED for w in words if w.startswith("shared::")]
        assert insn["space"] == (spaces[0] if spaces else 0), statement
        assert insn["proxy"] == ("async" in words), statement
        strengths = [s for s in Sem if s.name.lower() in words]
        default = {"ld": Sem.WEAK, "st": Sem.WEAK, "atom": Sem.RELAXED, "red": Sem.RELAXED,
                   "mbarrier": Sem.NONE if {"init", "inval"} & set(words) else
                   Sem.ACQUIRE if "parity" in words else
                   Sem.RELEASE if "arrive" in words else Sem.RELAXED}.get(opcode, Sem.NONE)
        if "param" in words or bulk:
            default = Sem.NONE
        assert insn["sem"] == (strengths[0] if strengths else default), statement
        scopes = [s for s in Scope if s.name.lower() in words]
        assert insn["scope"] == (scopes[0] if scopes else Scope.SYS if "volatile" in words else
                                 Scope.GPU if opcode in ("atom", "red") else
                                 Scope.CTA if opcode == "mbarrier" and default else 0), statement
        assert bool(insn["flags"] & Flag.CACHE_HINT) == ("L2::cache_hint" in words), statement
        assert bool(insn["flags"] & Flag.NC) == ("nc" in words), statement
        assert bool(insn["flags"] & Flag.L1_NO_ALLOCATE) == ("L1::no_allocate" in words), statement
        assert bool(insn["flags"] & Flag.L2_256B) == ("L2::256B" in words), statement
        sub = {"setp": Cmp, "atom": AtomOp, "red": AtomOp, "shfl": ShflMode}.get(opcode)
        if sub:
            assert sub(insn["sub"]).name.lower() in words, statement


@pytest.mark.parametrize(("target", "version"), TARGETS)
def test_the_assembler_takes_every_spelling(assembler, tmp_path, target, version):
    statements = [s for s, _ in spellings(version, int(target[3:]))]
    text = kernel(*statements, version="{}.{}".format(*version), target=target)
    refused = refused_lines(assembler, text, target, tmp_path)
    assert [statements[n - FIRST_LINE] for n in sorted(refused)] == []


def test_examples_and_special_registers_assemble(assembler, tmp_path):
    lines = [f"{{ $top: {form.example} }}" for form in FORMS]
    lines += [f"mov.{type_.name.lower()} {'d0' if type_ is Type.U64 else 'r0'}, {name};"
              for name, (_, type_) in SREGS.items()]
    text = kernel(*lines, version="8.6")
    assert refused_lines(assembler, text, "sm_90", tmp_path) == set()


def test_register_types_are_judged_as_the_assembler_does(assembler, tmp_path):
    """Every pair (instruction type, register type) of strict and of relaxed instructions."""
    registers = ["pred", "b16", "b32", "u32", "s32", "f32", "b64", "u64", "s64"]
    integers = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]
    data = ["b8", "b16", "b32", "f32", "b64", *integers]
    moved = [r for r in registers if r != "b16"]
    cases = [(f"mov.{t} {r}_0, {r}_1;", t, r, False)
             for t, r in itertools.product(moved, registers)]
    cases += [(op, t, r, True) for t, r in itertools.product(data, registers) for op in
              (f"ld.global.{t} {r}_0, [d0];", f"st.global.{t} [d0], {r}_0;")]
    cases += [(f"cvt.s32.{t} r0, {r}_0;", t, r, True)
              for t, r in itertools.product(integers, registers)]
    cases += [(f"cvt.rn.bf16x2.f32 {r}_0, f0, f1;", "bf16x2", r, True) for r in registers]
    cases += [(f"cvt.rn.satfinite.e4m3x2.f32 {r}_0, f0, f1;", "e4m3x2", r, True)
              for r in registers]
    cases += [(f"cvt.{t}.u32 {r}_0, r0;", t, r, True)
              for t, r in itertools.product(integers, registers)]
    cases += [(f"cvt.rmi.s32.f32 {r}_0, f0;", "s32", r, True) for r in registers]
    cases += [(f"mov.b32 r0, {{{r}_0, {r}_1}};", "b16", r, False) for r in registers]
    cases += [(f"mov.b64 {{{r}_0, {r}_1}}, d0;", "b32", r, False)
              for r in registers if r != "b16"]
    declared = [f".reg .{r} {r}_<2>;" for r in registers]
    text = kernel(" ".join(declared), *(c[0] for c in cases))
    refused = refused_lines(assembler, text, "sm_90", tmp_path)
    for line, (statement, type_, register, relaxed) in enumerate(cases, FIRST_LINE + 1):
        accepted = _accepts(TYPE_WORDS[type_], TYPE_WORDS[register], relaxed)
        assert accepted == (line not in refused), statement


def test_qualifiers_are_a_set():
    random_ = random.Random(0)
    words = ["acquire", "sys", "L1::no_allocate", "L2::256B", "global", "v4", "b32"]
    want = lookup("ld", words)
    for _ in range(20):
        random_.shuffle(words)
        assert lookup("ld", words) == want
    assert want[0].fields["sem"] is Sem.ACQUIRE
    assert want[0].fields["flags"] == Flag.L1_NO_ALLOCATE | Flag.L2_256B


@pytest.mark.parametrize(("opcode", "words", "says"), [
    ("addd", "u32", "no instruction 'addd' (addd.u32); nearest: add.TYPE d, a, b; TYPE: u32 s32"),
    ("sett", "lt.u32", "nearest: setp.CMP.TYPE d:pred{|e:pred}, a, b; CMP: eq ne lt le gt ge"),
    ("cvta", "to.global.u64", "no instruction 'cvta' (cvta.to.global.u64); nearest: cvt.TYPE."),
    ("wgmma", "fence.sync", "no instruction 'wgmma' (wgmma.fence.sync); it has abs add and atom"),
    ("q" * 2000, "u32", f"no instruction '{'q' * 100}...' ({'q' * 100}...); it has abs add"),
    ("mul", "u32", "lacks .lo; nearest: mul.lo.TYPE d, a, b; TYPE: u32 s32 u64 s64; or (lacks "),
    ("mul", "hi.s32", "no such form of 'mul': mul.hi.s32: .s32 is not one of its types (u32); "
     "nearest: mul.hi.u32 d, a, b"),
    ("mul", "high.u32", "mul.high.u32: the executor knows no qualifier .high"),
    ("ex2", "approx.ftz.f32", "no qualifier .ftz; nearest: ex2.approx.f32 d, a"),
    ("cvt", "rn.e4m3x2.f32", "lacks .satfinite; nearest: cvt.rn.satfinite.e4m3x2.f32"),
    ("match", "all.sync.b32", "lacks .any; nearest: match.any.sync.b32 d, a, m:u32"),
    ("ld", "acquire.sys.global.v3.u32", "no such form of 'ld': ld.acquire.sys.global.v3.u32: the "
     "executor knows no qualifier .v3; nearest: ld.{relaxed,acquire}.SCOPE.global{.L1::no_allocate}"
     "{.L2::256B}{.VEC}.TYPE d, [a]; SCOPE: cta cluster gpu sys; VEC: v2 v4; TYPE: b8"),
    ("ld", "aquire.gpu.global.u32", "no qualifier .aquire (did you mean .acquire?); nearest: ld."),
    ("ld", f"global.a.b.k.{'d' * 2000}.u32", "no qualifier .a, .b, .k and 1 more; nearest: ld"),
    ("ld", f"global.{'d' * 2000}.u32", f"no qualifier .{'d' * 100}...; nearest: ld"),
    ("add", "f64", "knows no qualifier .f64; nearest: add.TYPE d, a, b; TYPE: u32 s32 u64 s64; or: "
     "add{.rn}.f32"),
    ("add", "u16", ".u16 is not one of its types (u32 s32 u64 s64)"),
    ("add", "", "takes 1 type qualifier(s), has 0"),
    ("ld", "u32", "lacks .global; nearest: ld{.weak}.global{.L1::no_allocate}{.L2::256B}{.VEC}"),
    ("ld", "u32", "s64; or (lacks .shared): ld{.weak}.shared{.VEC}.TYPE d, [a]; VEC: v2 v4"),
    ("ld", "acquire.global.u32", "lacks .cta or .cluster or .gpu or .sys"),
    ("ld", "global.acquire.relaxed.sys.u32", "more than one of .relaxed .acquire"),
    ("ld", "global.nc.acquire.sys.u32", ".nc is not one of its qualifiers"),
    ("ld", "acquire.cta.shared.u32", "lacks .global; nearest: ld.{relaxed,acquire}.SCOPE.global"),
    ("ld", "shared.L1::no_allocate.u32", ".L1::no_allocate is not one of its qualifiers"),
    ("ld", "volatile.global.L1::no_allocate.u32", ".L1::no_allocate is not one"),
    ("ld", "global.global.u32", "more than one of .global"),
    ("ld", "global.v4.u64", ".v4.u64 is wider than 128 bits"),
    ("st", "global.L2::256B.u32", ".L2::256B is not one of its qualifiers"),
    ("setp", "lt.b32", ".b32 is not one of its types (u32 s32 u64 s64 f32); nearest: setp.CMP"),
    ("red", "acquire.sys.global.add.u32", ".acquire is not one of its qualifiers"),
    ("atom", "global.add.s64", ".s64 is not one of its types (u32 s32 u64)"),
    ("fence", "acquire.sys", "lacks .acq_rel or .sc"),
    ("neg", "u32", ".u32 is not one of its types"),
    ("cp", "async.bulk.shared::cta.bulk_group", "lacks .global; nearest: cp.async.bulk.global"),
    ("mbarrier", "try_wait.shared.b64", "lacks .parity; nearest: mbarrier.{try_wait,test_wait}"),
    ("mbarrier", "arrive.drop.shared.b64", "no qualifier .drop; nearest: mbarrier.arrive.OWN.b64 "),
    ("mbarrier", "arrive.bulk.shared.b64", ".bulk is not one of its qualifiers"),
    ("fence", "proxy.alias", "no qualifier .alias; nearest: fence.proxy.async"),
    ("fence", "proxy", "lacks .async"),
])
def test_what_is_not_in_the_table_is_refused_by_name(opcode, words, says):
    try:
        lookup(opcode, words.split(".") if words else [])
    except FormError as error:
        assert says in str(error)
    else:
        pytest.fail(f"{opcode}.{words} was accepted")


def test_the_header_has_the_enums_of_the_table():
    text = isa_header.header_text()
    numbers = dict(re.findall(r"^    (EMU_\w+) = (\d+)", text, re.MULTILINE))
    assert len(numbers) == sum(len(members) for _, _, members in C_ENUMS)
    assert numbers["EMU_OP_ADD"] == str(int(Op.ADD)) == "4"
    assert numbers["EMU_T_S64"] == "15"
    assert numbers["EMU_SEM_ACQUIRE"] == str(int(Sem.ACQUIRE))
    assert numbers["EMU_F_UNIFORM"] == "1024" and numbers["EMU_F_WHOLE"] == "4096"
    assert f"#define EMU_OP_COUNT {len(Op)}" in text


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_the_arrays_have_the_layout_of_the_c_structures(tmp_path):
    (tmp_path / "gen").mkdir()
    (tmp_path / "gen" / "isa.h").write_text(isa_header.header_text())
    checks = [(f"struct emu_{name}", dtype)
              for name, dtype in (("insn", INSN), ("line", LINE))]
    asserts = [f"_Static_assert(sizeof({struct}) == {dtype.itemsize}, \"\");"
               for struct, dtype in checks]
    asserts += [f"_Static_assert(offsetof({struct}, {field}) == {dtype.fields[field][1]}, \"\");"
                for struct, dtype in checks for field in dtype.names]
    headers = ["<stddef.h>", '"gen/isa.h"', '"emu/device/emu.h"']
    source = "\n".join([*(f"#include {header}" for header in headers), *asserts])
    done = subprocess.run(
        ["gcc", "-std=c11", "-Wall", "-Werror", f"-I{tmp_path}", f"-I{ROOT / 'cysrc'}",
         "-fsyntax-only", "-xc", "-"], input=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert INSN.itemsize == 64 and np.dtype(INSN).alignment == 1
    assert (_INSN.size, _LINE.size) == (INSN.itemsize, LINE.itemsize)
