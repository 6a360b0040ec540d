# SPDX-License-Identifier: MIT
"""The instruction forms that the CPU executor knows: the one table of them.

The parser knows no opcode; the decoder looks every statement up here, and what is not here is
refused.  A form is written as the PTX manual writes it:

    lower case   a qualifier that must be there        {.x}      one that may
    .{x,y}       one of several                        .SCOPE    one of a named set (CHOICES)
    .TYPE        one of the row's types                .TYPE2    one of its second types (cvt)

Qualifiers other than types are a set: ptxas takes them in any order, and so does `lookup`.
Operands: a letter is a place in `struct emu_insn`, `:type` a type that is not TYPE.

    d e    dst[0], dst[1]: written        v        dst[]: the value a store reads
    a b c  src[0..2]: register, constant  m        src[3]: member mask
    [a]    src[0] + imm: an address       {!}a     a predicate that may be negated
    d|e    a pair of destinations         sreg     a special register
    L      a label                        :wide    twice as wide as TYPE

`toolchain/isa_header.py` writes the enums to `cysrc/gen/isa.h`, so that the C core numbers things
the same way.  Standard library only: setup.py loads this file by its path.
"""

import difflib
import enum
import itertools
import re
from dataclasses import dataclass, field


def _enum(name, names):
    return enum.IntEnum(name, names.split(), start=0)


Op = _enum("Op", """
    NOP MOV MOV_SREG CVT ADD SUB MUL_LO MUL_WIDE MAD_LO MAD_WIDE MIN MAX AND OR XOR NOT NEG SHL SHR
    DIV REM POPC CLZ SELP SETP FMA LD_PARAM LD ST ATOM RED FENCE BAR_SYNC BAR_WARP SHFL VOTE BRA
    EXIT NANOSLEEP BREV""")
Type = _enum("Type", "PRED B8 U8 S8 B16 U16 S16 BF16 B32 U32 S32 F32 BF16X2 B64 U64 S64")
Space = _enum("Space", "GENERIC GLOBAL SHARED PARAM")
Sem = _enum("Sem", "NONE WEAK RELAXED VOLATILE ACQUIRE RELEASE ACQ_REL SC")
Scope = _enum("Scope", "NONE CTA CLUSTER GPU SYS")
Proxy = _enum("Proxy", "GENERIC ASYNC")
Cmp = _enum("Cmp", "EQ NE LT LE GT GE")
Sreg = _enum("Sreg", """
    TID_X NTID_X CTAID_X NCTAID_X LANEID WARPID GLOBALTIMER LANEMASK_LT LANEMASK_LE LANEMASK_EQ
    LANEMASK_GE LANEMASK_GT SMID CLOCK64""")
AtomOp = _enum("AtomOp", "ADD INC DEC EXCH CAS MIN MAX AND OR XOR")
ShflMode = _enum("ShflMode", "IDX UP DOWN BFLY")
VoteMode = _enum("VoteMode", "ALL ANY UNI BALLOT")


class Flag(enum.IntFlag):
    PRED_NEG = 1          # the guard is negated
    SRC_PRED_NEG = 2      # the predicate operand is negated: vote, setp's combining predicate
    BOOL_AND = 4          # setp: how the comparison is combined with src[2]
    BOOL_OR = 8
    BOOL_XOR = 16
    NC = 32               # ld.nc; its sem is WEAK
    ADDR32 = 64           # the address operand is 32 bits wide
    CLOCK_CMP = 128       # setp: src[0] is only ever written by mov %globaltimer
    L1_NO_ALLOCATE = 256
    L2_256B = 512
    UNIFORM = 1024        # bra.uni


# (tag and prefix in C, enum), in the order they are written to isa.h.
C_ENUMS = (
    ("emu_op", "EMU_OP", Op), ("emu_type", "EMU_T", Type), ("emu_space", "EMU_SP", Space),
    ("emu_sem", "EMU_SEM", Sem), ("emu_scope", "EMU_SC", Scope), ("emu_proxy", "EMU_PX", Proxy),
    ("emu_cmp", "EMU_CMP", Cmp), ("emu_sreg", "EMU_SR", Sreg), ("emu_atom", "EMU_AT", AtomOp),
    ("emu_shfl", "EMU_SHFL", ShflMode), ("emu_vote", "EMU_VOTE", VoteMode),
    ("emu_flag", "EMU_F", Flag),
)

TYPE_BITS = {t: 1 if t is Type.PRED else 32 if t is Type.BF16X2 else int(t.name.lstrip("BUSF"))
             for t in Type}
TYPE_WORDS = {t.name.lower(): t for t in Type}

# Name in PTX -> what it is, and the type it has.
SREGS = {
    "%tid.x": (Sreg.TID_X, Type.U32), "%ntid.x": (Sreg.NTID_X, Type.U32),
    "%ctaid.x": (Sreg.CTAID_X, Type.U32), "%nctaid.x": (Sreg.NCTAID_X, Type.U32),
    "%laneid": (Sreg.LANEID, Type.U32), "%warpid": (Sreg.WARPID, Type.U32),
    "%lanemask_lt": (Sreg.LANEMASK_LT, Type.U32), "%lanemask_le": (Sreg.LANEMASK_LE, Type.U32),
    "%lanemask_eq": (Sreg.LANEMASK_EQ, Type.U32), "%lanemask_ge": (Sreg.LANEMASK_GE, Type.U32),
    "%lanemask_gt": (Sreg.LANEMASK_GT, Type.U32), "%smid": (Sreg.SMID, Type.U32),
    "%globaltimer": (Sreg.GLOBALTIMER, Type.U64), "%clock64": (Sreg.CLOCK64, Type.U64),
}

CHOICES = {
    "SEM": "relaxed acquire release acq_rel", "SCOPE": "cta cluster gpu sys",
    "SPACE": "global shared", "VEC": "v2 v4",
    "CMP": "eq ne lt le gt ge", "BOOL": "and or xor",
}

# What a qualifier sets in struct emu_insn.  A row's `sub` enum is asked first.
WORDS = {
    "weak": {"sem": Sem.WEAK}, "relaxed": {"sem": Sem.RELAXED},
    "volatile": {"sem": Sem.VOLATILE, "scope": Scope.SYS},
    "acquire": {"sem": Sem.ACQUIRE}, "release": {"sem": Sem.RELEASE},
    "acq_rel": {"sem": Sem.ACQ_REL}, "sc": {"sem": Sem.SC},
    "cta": {"scope": Scope.CTA}, "cluster": {"scope": Scope.CLUSTER},
    "gpu": {"scope": Scope.GPU}, "sys": {"scope": Scope.SYS},
    "global": {"space": Space.GLOBAL}, "shared": {"space": Space.SHARED},
    "param": {"space": Space.PARAM},
    "v2": {"vec": 2}, "v4": {"vec": 4},
    "nc": {"flags": Flag.NC, "sem": Sem.WEAK}, "L1::no_allocate": {"flags": Flag.L1_NO_ALLOCATE},
    "L2::256B": {"flags": Flag.L2_256B}, "uni": {"flags": Flag.UNIFORM},
    "and": {"flags": Flag.BOOL_AND}, "or": {"flags": Flag.BOOL_OR},
    "xor": {"flags": Flag.BOOL_XOR},
    "lo": {}, "wide": {}, "rn": {}, "sync": {}, "warp": {},
}

# Least (PTX ISA version, sm) of a qualifier, where it is above its form's.
WORD_NEEDS = {
    "cluster": ((7, 8), 90), "L1::no_allocate": ((7, 4), 70), "L2::256B": ((7, 4), 80),
}


class FormError(ValueError):
    """A statement that matches no form; the text says what is wrong and names the nearest form."""


@dataclass(frozen=True, slots=True)
class Operand:
    slot: str                 # a letter of the module's docstring, "sreg" or "L"
    type: str = "TYPE"        # TYPE, TYPE2, wide, or a type word
    address: bool = False
    negatable: bool = False
    pair: bool = False        # may be followed by |e, a predicate

    _SPEC = re.compile(r"(\{!\})?(\[)?(\w+)\]?(?::(\w+))?(\{\|e:pred\})?")

    @classmethod
    def parse(cls, text):
        negatable, address, slot, type_, pair = cls._SPEC.fullmatch(text).groups()
        return cls(slot, type_ or "TYPE", bool(address), bool(negatable), bool(pair))


@dataclass(frozen=True, slots=True)
class Element:
    words: tuple
    required: bool


@dataclass(frozen=True, slots=True)
class Form:
    """One row.  `types` and `types2` list what TYPE and TYPE2 may be; `sub` is the enum whose
    members are qualifiers of this form; `sets` are fields that no qualifier sets; `ptx` and `sm`
    are the least PTX ISA version and target; `doc` is an anchor of the PTX manual."""

    op: Op
    syntax: str
    example: str
    types: str = ""
    types2: str = ""
    sub: type = None
    sets: dict = field(default_factory=dict)
    ptx: tuple = (1, 0)
    sm: int = 10
    doc: str = ""
    opcode: str = field(init=False)
    elements: tuple = field(init=False)
    type_slots: tuple = field(init=False)
    operands: tuple = field(init=False)

    _ELEMENT = re.compile(r"(\{)?\.(?:\{([\w:,]+)\}|([\w:]+))(?(1)\})")

    def __post_init__(self):
        head, _, operands = self.syntax.partition(" ")
        opcode = re.match(r"\w+", head).group()
        elements, type_slots = [], []
        for optional, several, word in self._ELEMENT.findall(head[len(opcode):]):
            words = tuple(several.split(",")) if several else (word,)
            if word in CHOICES:
                words = tuple(CHOICES[word].split())
            if word in ("TYPE", "TYPE2"):
                type_slots.append(tuple((self.types if word == "TYPE" else self.types2).split()))
            elif word in TYPE_WORDS:
                type_slots.append(words)
            else:
                elements.append(Element(words, not optional))
        specs = [Operand.parse(o) for o in operands.split(", ")] if operands.strip() else []
        for name, value in (("opcode", opcode), ("elements", tuple(elements)),
                            ("type_slots", tuple(type_slots)), ("operands", tuple(specs))):
            object.__setattr__(self, name, value)

    def effect(self, word):
        """The fields that qualifier `word` sets."""
        if self.sub is not None and word.upper() in self.sub.__members__:
            return {"sub": self.sub[word.upper()]}
        return WORDS[word]

    def match(self, words, types):
        """The Match of qualifiers `words` and `types`; raises FormError saying what is wrong."""
        if len(types) != len(self.type_slots):
            raise FormError(f"takes {len(self.type_slots)} type qualifier(s), has {len(types)}")
        for given, allowed in zip(types, self.type_slots, strict=True):
            if given not in allowed:
                raise FormError(f".{given} is not one of its types ({' '.join(allowed)})")
        left = list(words)
        fields = dict(self.sets)
        flags, ptx, sm = 0, self.ptx, self.sm
        for element in self.elements:
            given = [w for w in left if w in element.words]
            if len(given) > 1:
                raise FormError(f"has more than one of .{' .'.join(element.words)}")
            if not given and element.required:
                raise FormError(f"lacks .{' or .'.join(element.words)}")
            for word in given:
                left.remove(word)
                effect = self.effect(word)
                flags |= effect.get("flags", 0)
                fields.update(effect)
                needs = WORD_NEEDS.get(word, (ptx, sm))
                ptx, sm = max(ptx, needs[0]), max(sm, needs[1])
        if left:
            raise FormError(f".{left[0]} is not one of its qualifiers")
        fields["flags"] = flags
        fields.setdefault("vec", 1)
        kinds = [TYPE_WORDS[t] for t in types]
        if kinds:
            fields["type"] = kinds[0]
            if fields["vec"] * TYPE_BITS[kinds[0]] > 128:
                raise FormError(f".v{fields['vec']}.{types[0]} is wider than 128 bits")
        if len(kinds) > 1:
            fields["type2"] = kinds[1]
        return Match(self, fields, kinds, ptx, sm)

    def spellings(self):
        """Every legal combination of qualifiers, in the order of the syntax line."""
        choices = [[f".{w}" for w in e.words] + ([] if e.required else [""])
                   for e in self.elements]
        types = [[f".{t}" for t in slot] for slot in self.type_slots]
        for parts in itertools.product(*choices, *types):
            words = tuple(p[1:] for p in parts if p)
            try:
                yield self.opcode + "".join(parts), lookup_form(self, words)
            except FormError:
                continue                      # a vector that is too wide


@dataclass(frozen=True, slots=True)
class Match:
    """A form with its qualifiers chosen: `fields` of struct emu_insn, and what it needs."""

    form: Form
    fields: dict
    types: list
    ptx: tuple
    sm: int

    def operand_type(self, operand):
        """The Type of one of the form's operands."""
        if operand.type == "TYPE":
            return self.types[0]
        if operand.type == "TYPE2":
            return self.types[1]
        if operand.type == "wide":
            return {Type.U32: Type.U64, Type.S32: Type.S64}[self.types[0]]
        return TYPE_WORDS[operand.type]


def _rows(doc, *rows, **common):
    """Rows of one chapter of the manual; the anchor is the chapter's, then the opcode's."""
    for op, syntax, example, *more in rows:
        options = {**common, **(more[0] if more else {})}
        anchor = options.pop("doc", re.match(r"\w+", syntax).group())
        yield Form(op, syntax, example, doc=f"{doc}-instructions-{anchor}", **options)


_INT = {"types": "u32 s32 u64 s64"}
_BITS = {"types": "b32 b64"}
_LOGIC = {"types": "pred b32 b64"}
_DATA = {"types": "b8 u8 s8 b16 u16 s16 b32 u32 s32 f32 b64 u64 s64"}
_WEAK = {"sets": {"sem": Sem.WEAK}, **_DATA}
_STRONG = {"ptx": (6, 0), "sm": 70, **_DATA}
_ATOM = {"sub": AtomOp, "sets": {"sem": Sem.RELAXED, "scope": Scope.GPU}, "ptx": (6, 0), "sm": 70}
_WARP = {"ptx": (6, 0), "sm": 30}

FORMS = (
    *_rows(
        "integer-arithmetic",
        (Op.ADD, "add.TYPE d, a, b", "add.u32 r0, r1, 7;", _INT),
        (Op.SUB, "sub.TYPE d, a, b", "sub.s64 d0, d1, d2;", _INT),
        (Op.MUL_LO, "mul.lo.TYPE d, a, b", "mul.lo.u32 r0, r1, r2;", _INT),
        (Op.MUL_WIDE, "mul.wide.TYPE d:wide, a, b", "mul.wide.u32 d0, r1, 16;",
         {"types": "u32 s32"}),
        (Op.MAD_LO, "mad.lo.TYPE d, a, b, c", "mad.lo.u32 r0, r1, r2, r3;", _INT),
        (Op.MAD_WIDE, "mad.wide.TYPE d:wide, a, b, c:wide", "mad.wide.u32 d0, r1, 8, d2;",
         {"types": "u32 s32"}),
        (Op.DIV, "div.TYPE d, a, b", "div.u32 r0, r1, r2;", _INT),
        (Op.REM, "rem.TYPE d, a, b", "rem.u32 r0, r1, r2;", _INT),
        (Op.MIN, "min.TYPE d, a, b", "min.u32 r0, r1, r2;", _INT),
        (Op.MAX, "max.TYPE d, a, b", "max.s32 r0, r1, 0;", _INT),
        (Op.NEG, "neg.TYPE d, a", "neg.s32 r0, r1;", {"types": "s32 s64"}),
        (Op.POPC, "popc.TYPE d:u32, a", "popc.b32 r0, r1;", {"ptx": (2, 0), "sm": 20, **_BITS}),
        (Op.CLZ, "clz.TYPE d:u32, a", "clz.b32 r0, r1;", {"ptx": (2, 0), "sm": 20, **_BITS}),
        (Op.BREV, "brev.TYPE d, a", "brev.b32 r0, r1;", {"ptx": (2, 0), "sm": 20, **_BITS}),
    ),
    *_rows(
        "floating-point",
        (Op.ADD, "add{.rn}.f32 d, a, b", "add.f32 f0, f1, f2;"),
        (Op.MUL_LO, "mul{.rn}.f32 d, a, b", "mul.f32 f0, f1, f2;"),
        (Op.FMA, "fma.rn.f32 d, a, b, c", "fma.rn.f32 f0, f1, f2, f3;"),
        ptx=(2, 0), sm=20,
    ),
    *_rows(
        "logic-and-shift",
        (Op.AND, "and.TYPE d, a, b", "and.b32 r0, r1, 31;", _LOGIC),
        (Op.OR, "or.TYPE d, a, b", "or.pred q0, q1, q2;", _LOGIC),
        (Op.XOR, "xor.TYPE d, a, b", "xor.b32 r0, r1, r2;", _LOGIC),
        (Op.NOT, "not.TYPE d, a", "not.pred q0, q1;", _LOGIC),
        (Op.SHL, "shl.TYPE d, a, b:u32", "shl.b64 d0, d1, 8;", _BITS),
        (Op.SHR, "shr.TYPE d, a, b:u32", "shr.u32 r0, r1, 5;",
         {"types": "b32 u32 s32 b64 u64 s64"}),
    ),
    *_rows(
        "comparison-and-selection",
        (Op.SETP, "setp.CMP.TYPE d:pred{|e:pred}, a, b", "setp.lt.u32 q0|q1, r1, r2;",
         {"types": "u32 s32 u64 s64 f32"}),
        (Op.SETP, "setp.CMP.BOOL.TYPE d:pred{|e:pred}, a, b, {!}c:pred",
         "setp.ge.and.s32 q0, r1, 0, !q1;", {"types": "u32 s32 u64 s64 f32"}),
        (Op.SELP, "selp.TYPE d, a, b, c:pred", "selp.b32 r0, r1, 0, q0;",
         {"types": "b32 u32 s32 f32 b64 u64 s64", "sub": None}),
        sub=Cmp,
    ),
    *_rows(
        "data-movement-and-conversion",
        (Op.MOV, "mov.TYPE d, a", "mov.u32 r0, smem;",
         {"types": "pred b32 u32 s32 f32 b64 u64 s64"}),
        (Op.MOV_SREG, "mov.TYPE d, sreg", "mov.u32 r0, %tid.x;",
         {"types": "b32 u32 s32 b64 u64 s64", "ptx": (3, 1), "sm": 30}),
        (Op.CVT, "cvt.TYPE.TYPE2 d, a:TYPE2", "cvt.u64.u32 d0, r1;",
         {"types": "u8 s8 u16 s16 u32 s32 u64 s64", "types2": "u8 s8 u16 s16 u32 s32 u64 s64"}),
        (Op.CVT, "cvt.rn.bf16x2.f32 d, a:f32, b:f32", "cvt.rn.bf16x2.f32 r0, f1, f2;",
         {"ptx": (7, 0), "sm": 80}),
        (Op.LD, "ld{.weak}.global{.L1::no_allocate}{.L2::256B}{.VEC}.TYPE d, [a]",
         "ld.global.L1::no_allocate.L2::256B.v4.b32 v0, [d0 + 3 * 512];", _WEAK),
        (Op.LD, "ld{.weak}.shared{.VEC}.TYPE d, [a]", "ld.shared.u32 r0, [smem + 16];", _WEAK),
        (Op.LD, "ld.global.nc{.L1::no_allocate}{.L2::256B}{.VEC}.TYPE d, [a]",
         "ld.global.nc.L1::no_allocate.L2::256B.v4.b32 v0, [d0];",
         {"ptx": (3, 1), "sm": 32, **_DATA}),
        (Op.LD, "ld.volatile.global{.L2::256B}{.VEC}.TYPE d, [a]",
         "ld.volatile.global.u32 r0, [d0];", _DATA),
        (Op.LD, "ld.{relaxed,acquire}.SCOPE.global{.L1::no_allocate}{.L2::256B}{.VEC}.TYPE d, [a]",
         "ld.acquire.sys.global.u64 d0, [d1];", _STRONG),
        (Op.LD_PARAM, "ld.param{.VEC}.TYPE d, [a]", "ld.param.u64 d0, [p + 8];", _DATA),
        (Op.ST, "st{.weak}.global{.L1::no_allocate}{.VEC}.TYPE [a], v",
         "st.global.v4.b32 [d0], {r0, r1, 0, r3};", _WEAK),
        (Op.ST, "st{.weak}.shared{.VEC}.TYPE [a], v", "st.shared.v2.b32 [r1], w0;", _WEAK),
        (Op.ST, "st.{relaxed,release}.SCOPE.global{.L1::no_allocate}{.VEC}.TYPE [a], v",
         "st.release.sys.global.u64 [d0], d1;", _STRONG),
        (Op.SHFL, "shfl.sync.{idx,up,down,bfly}.b32 d{|e:pred}, a, b:u32, c:u32, m:u32",
         "shfl.sync.bfly.b32 r0|q0, r1, 16, 31, 0xffffffff;",
         {"doc": "shfl-sync", "sub": ShflMode, **_WARP}),
    ),
    *_rows(
        "parallel-synchronization-and-communication",
        (Op.ATOM, "atom{.SEM}{.SCOPE}.SPACE.add.TYPE d, [a], b",
         "atom.global.relaxed.gpu.add.u32 r0, [d0], 1;", {"types": "u32 s32 u64", **_ATOM}),
        (Op.ATOM, "atom{.SEM}{.SCOPE}.SPACE.{inc,dec}.TYPE d, [a], b",
         "atom.acq_rel.gpu.global.inc.u32 r0, [d0], r1;", {"types": "u32", **_ATOM}),
        (Op.ATOM, "atom{.SEM}{.SCOPE}.SPACE.{min,max}.TYPE d, [a], b",
         "atom.shared.max.u32 r0, [r1], r2;", {"types": "u32 s32 u64 s64", **_ATOM}),
        (Op.ATOM, "atom{.SEM}{.SCOPE}.SPACE.{exch,and,or,xor}.TYPE d, [a], b",
         "atom.relaxed.sys.global.or.b32 r0, [d0], 1;", {**_BITS, **_ATOM}),
        (Op.ATOM, "atom{.SEM}{.SCOPE}.SPACE.cas.TYPE d, [a], b, c",
         "atom.acquire.sys.global.cas.b64 d0, [d1], 0, d2;", {**_BITS, **_ATOM}),
        (Op.RED, "red{.{relaxed,release}}{.SCOPE}.SPACE.add.TYPE [a], b",
         "red.release.sys.global.add.u32 [d0], r1;", {"types": "u32 s32 u64", **_ATOM}),
        (Op.RED, "red{.{relaxed,release}}{.SCOPE}.SPACE.{min,max}.TYPE [a], b",
         "red.shared.max.s32 [r0], r1;", {"types": "u32 s32 u64 s64", **_ATOM}),
        (Op.RED, "red{.{relaxed,release}}{.SCOPE}.SPACE.{and,or,xor}.TYPE [a], b",
         "red.global.or.b32 [d0], 4;", {**_BITS, **_ATOM}),
        (Op.FENCE, "fence.{acq_rel,sc}.SCOPE ", "fence.acq_rel.sys;",
         {"doc": "membar", "ptx": (6, 0), "sm": 70}),
        (Op.BAR_SYNC, "bar.sync a:u32", "bar.sync 0;"),
        (Op.BAR_SYNC, "bar.sync a:u32, b:u32", "bar.sync r0, 64;", {"ptx": (2, 0), "sm": 20}),
        (Op.BAR_WARP, "bar.warp.sync m:u32", "bar.warp.sync -1;",
         {"doc": "bar-warp-sync", **_WARP}),
        (Op.VOTE, "vote.sync.{all,any,uni}.pred d, {!}a, m:u32", "vote.sync.any.pred q0, !q1, -1;",
         {"doc": "vote-sync", "sub": VoteMode, **_WARP}),
        (Op.VOTE, "vote.sync.ballot.b32 d, {!}a:pred, m:u32", "vote.sync.ballot.b32 r0, q1, r2;",
         {"doc": "vote-sync", "sub": VoteMode, **_WARP}),
    ),
    *_rows(
        "control-flow",
        (Op.BRA, "bra{.uni} L", "@!q0 bra $top;"),
        (Op.EXIT, "ret{.uni} ", "ret;"),
        (Op.EXIT, "exit ", "@q0 exit;"),
    ),
    *_rows(
        "miscellaneous",
        (Op.NANOSLEEP, "nanosleep.u32 a", "nanosleep.u32 100;", {"ptx": (6, 3), "sm": 70}),
    ),
)

_BY_OPCODE = {}
for _form in FORMS:
    _BY_OPCODE.setdefault(_form.opcode, []).append(_form)


def lookup_form(form, qualifiers):
    """The Match of one form with the qualifiers (without dots, any order); raises FormError."""
    types = [q for q in qualifiers if q in TYPE_WORDS]
    words = [q for q in qualifiers if q not in TYPE_WORDS]
    return form.match(words, types)


def lookup(opcode, qualifiers):
    """All forms of `opcode` with these qualifiers, as a list of Match: operands tell them apart.

    Raises FormError, naming what is wrong and the nearest form.
    """
    forms = _BY_OPCODE.get(opcode)
    if forms is None:
        near = difflib.get_close_matches(opcode, _BY_OPCODE, 1, 0)[0]
        raise FormError(f"the executor has no instruction '{opcode}'; nearest: "
                        f"{_BY_OPCODE[near][0].syntax.strip()}")
    matches, wrong = [], []
    for form in forms:
        try:
            matches.append(lookup_form(form, qualifiers))
        except FormError as error:
            wrong.append((_nearness(form, set(qualifiers)), form, error))
    if not matches:
        _, form, error = max(wrong, key=lambda w: w[0])
        types = "; TYPE: " + form.types if form.types else ""
        raise FormError(f"no such form of '{opcode}': {error}; nearest: "
                        f"{form.syntax.strip()}{types}")
    return matches


def _nearness(form, words):
    """How many of `words` the form has; what makes it this form counts more, and when absent."""
    nearness = 2 * sum(bool(words & set(slot)) for slot in form.type_slots)
    for element in form.elements:
        if words & set(element.words):
            nearness += 3 if element.required else 2
        elif element.required:
            nearness -= 1
    return nearness
