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
    [a]    src[0] + imm: an address       [b] [m]  src[1], src[3]: one more, in .shared
    {!}a   a predicate, may be negated    {_}d     a destination that may be left out
    d|e    a pair; {|e}: may be one       h        dst[0]: a cache policy, which is read
    n      imm: a constant                sreg     a special register
    L      a label                        :wide    twice as wide as TYPE
    {a,b}  a vector of two parts: src[0], src[1]; of a destination {d,e}: dst[0], dst[1], each may
           be left out

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
    EXIT NANOSLEEP BREV MBAR_INIT MBAR_INVAL MBAR_ARRIVE MBAR_EXPECT_TX MBAR_WAIT BULK_LOAD
    BULK_STORE BULK_COMMIT BULK_WAIT ELECT CREATEPOLICY PREFETCH PACK UNPACK
    MUL_HI ABS EX2 LG2 PRMT BFE MATCH""")
Type = _enum("Type", "PRED B8 U8 S8 B16 U16 S16 BF16 B32 U32 S32 F32 BF16X2 B64 U64 S64 "
                     "B128 E4M3X2")
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
MbarWait = _enum("MbarWait", "TRY_WAIT TEST_WAIT")
BulkWait = _enum("BulkWait", "WRITTEN READ")       # what a wait_group waits for
CachePolicy = _enum("CachePolicy", "EVICT_FIRST EVICT_LAST")


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
    CACHE_HINT = 2048     # a bulk copy with a cache policy
    WHOLE = 4096          # ld, st of a .b128, as its two halves: one access nevertheless


# (tag and prefix in C, enum), in the order they are written to isa.h.
C_ENUMS = (
    ("emu_op", "EMU_OP", Op), ("emu_type", "EMU_T", Type), ("emu_space", "EMU_SP", Space),
    ("emu_sem", "EMU_SEM", Sem), ("emu_scope", "EMU_SC", Scope), ("emu_proxy", "EMU_PX", Proxy),
    ("emu_cmp", "EMU_CMP", Cmp), ("emu_sreg", "EMU_SR", Sreg), ("emu_atom", "EMU_AT", AtomOp),
    ("emu_shfl", "EMU_SHFL", ShflMode), ("emu_vote", "EMU_VOTE", VoteMode),
    ("emu_mbar_wait", "EMU_MBAR", MbarWait), ("emu_bulk_wait", "EMU_BULK", BulkWait),
    ("emu_cache_policy", "EMU_POLICY", CachePolicy),
    ("emu_flag", "EMU_F", Flag),
)

_TYPE_BITS = {Type.PRED: 1, Type.BF16X2: 32, Type.E4M3X2: 16}
TYPE_BITS = [_TYPE_BITS.get(t) or int(t.name.lstrip("BUSF")) for t in Type]
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
    "CMP": "eq ne lt le gt ge", "BOOL": "and or xor", "OWN": "shared shared::cta",
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
    "read": {"sub": BulkWait.READ}, "L2::cache_hint": {"flags": Flag.CACHE_HINT},
    "L2::evict_first": {"sub": CachePolicy.EVICT_FIRST},
    "L2::evict_last": {"sub": CachePolicy.EVICT_LAST},
    **dict.fromkeys((
        "lo", "hi", "wide", "rn", "rmi", "satfinite", "approx", "any", "sync", "warp",
        "shared::cta", "shared::cluster", "proxy", "async", "bulk", "init", "inval", "arrive",
        "expect_tx", "parity", "mbarrier::complete_tx::bytes", "bulk_group", "commit_group",
        "wait_group", "mbarrier_init", "fractional", "L2"), {}),
}

# Least (PTX ISA version, sm) of a qualifier, where it is above its form's.
WORD_NEEDS = {
    "cluster": ((7, 8), 90), "L1::no_allocate": ((7, 4), 70), "L2::256B": ((7, 4), 80),
    "shared::cta": ((7, 8), 30), "try_wait": ((7, 8), 90),
}
_B128_AT_SYS = 8, 4           # least PTX ISA version of a .b128 at scope .sys


class FormError(ValueError):
    """A statement that matches no form; the text says what is wrong and names the nearest form."""


@dataclass(frozen=True, slots=True)
class Operand:
    slot: str                 # a letter of the module's docstring, "sreg" or "L"
    type: str = "TYPE"        # TYPE, TYPE2, wide, or a type word
    address: bool = False
    negatable: bool = False
    sink: bool = False        # may be _
    pair: bool = False        # may be followed by |e, a predicate
    both: bool = False        # must be
    parts: bool = False       # {a,b} or {d,e}: the slot is the first of the two

    _SPEC = re.compile(r"(\{!\})?(\{_\})?(\[)?(\w+)\]?(?::(\w+))?(?:(\{\|e:pred\})|(\|e:pred))?")
    _PARTS = re.compile(r"\{(\w),\w\}:(\w+)")

    @classmethod
    def parse(cls, text):
        if parts := cls._PARTS.fullmatch(text):
            return cls(*parts.groups(), parts=True)
        negatable, sink, address, slot, type_, pair, both = cls._SPEC.fullmatch(text).groups()
        return cls(slot, type_ or "TYPE", bool(address), bool(negatable), bool(sink),
                   bool(pair or both), bool(both))


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
            if kinds[0] is Type.B128:
                fields.update(type=Type.B64, vec=2, flags=flags | Flag.WHOLE)
                if fields.get("scope") is Scope.SYS:
                    ptx = max(ptx, _B128_AT_SYS)
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
_B128 = {"types": "b128", "ptx": (8, 3), "sm": 70}
_WEAK_B128 = {"sets": {"sem": Sem.WEAK}, **_B128}
_ATOM = {"sub": AtomOp, "sets": {"sem": Sem.RELAXED, "scope": Scope.GPU}, "ptx": (6, 0), "sm": 70}
_WARP = {"ptx": (6, 0), "sm": 30}
_SM90 = {"ptx": (8, 0), "sm": 90}


def _mbarrier(name, sem, **options):
    """Options of an mbarrier row: sem is what it has where the statement names none."""
    return {"doc": f"mbarrier-{name}", "ptx": (7, 1), "sm": 80,
            "sets": {"space": Space.SHARED, "sem": sem, "scope": Scope.CTA if sem else Scope.NONE},
            **options}


_INIT, _INVAL = _mbarrier("init", Sem.NONE), _mbarrier("inval", Sem.NONE)
_ARRIVE = _mbarrier("arrive", Sem.RELEASE)
_ARRIVE_COUNT = {**_ARRIVE, "ptx": (7, 8), "sm": 90}
_ARRIVE_RELEASE = {**_ARRIVE, "ptx": (8, 0)}
_ARRIVE_TX = {**_ARRIVE, **_SM90}
_EXPECT_TX = _mbarrier("expect-tx", Sem.RELAXED, **_SM90)
_MBAR_WAIT = _mbarrier("test-wait-mbarrier-try-wait", Sem.ACQUIRE, sub=MbarWait)
_MBAR_ACQUIRE = {**_MBAR_WAIT, "ptx": (8, 0)}


def _bulk(name, **sets):
    return {"doc": name, "sets": {"proxy": Proxy.ASYNC, **sets}, **_SM90}


_BULK = _bulk("cp-async-bulk", space=Space.GLOBAL)
_BULK_COMMIT = _bulk("cp-async-bulk-commit-group")
_BULK_WAIT = _bulk("cp-async-bulk-wait-group")


def _fence(**sets):
    return {"doc": "membar", "sets": sets, **_SM90}

FORMS = (
    *_rows(
        "integer-arithmetic",
        (Op.ADD, "add.TYPE d, a, b", "add.u32 r0, r1, 7;", _INT),
        (Op.SUB, "sub.TYPE d, a, b", "sub.s64 d0, d1, d2;", _INT),
        (Op.MUL_LO, "mul.lo.TYPE d, a, b", "mul.lo.u32 r0, r1, r2;", _INT),
        (Op.MUL_HI, "mul.hi.u32 d, a, b", "mul.hi.u32 r0, r1, 0xcccccccd;"),
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
        (Op.BFE, "bfe.u32 d, a, b, c", "bfe.u32 r0, r1, 8, 5;", {"ptx": (2, 0), "sm": 20}),
    ),
    *_rows(
        "floating-point",
        (Op.ADD, "add{.rn}.f32 d, a, b", "add.f32 f0, f1, f2;"),
        (Op.SUB, "sub{.rn}.f32 d, a, b", "sub.rn.f32 f0, f1, f2;"),
        (Op.MUL_LO, "mul{.rn}.f32 d, a, b", "mul.f32 f0, f1, f2;"),
        (Op.DIV, "div.rn.f32 d, a, b", "div.rn.f32 f0, f1, f2;"),
        (Op.MIN, "min.f32 d, a, b", "min.f32 f0, f1, f2;"),
        (Op.MAX, "max.f32 d, a, b", "max.f32 f0, f1, 0f00000000;"),
        (Op.ABS, "abs.f32 d, a", "abs.f32 f0, f1;"),
        (Op.NEG, "neg.f32 d, a", "neg.f32 f0, f1;"),
        # Here the result is the nearest there is, or the one beside it: the last bits are not a
        # GPU's.
        (Op.EX2, "ex2.approx.f32 d, a", "ex2.approx.f32 f0, f1;"),
        (Op.LG2, "lg2.approx.f32 d, a", "lg2.approx.f32 f0, f1;"),
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
        (Op.PACK, "mov.b64 d, {a,b}:b32", "mov.b64 d0, {r0, f1};"),
        (Op.UNPACK, "mov.b64 {d,e}:b32, a", "mov.b64 {r0, _}, d0;"),
        (Op.PACK, "mov.b32 d, {a,b}:b16", "mov.b32 r0, {h0, h1};"),
        (Op.UNPACK, "mov.b32 {d,e}:b16, a", "mov.b32 {h0, h1}, r0;"),
        (Op.PACK, "mov.TYPE d, {a,b}:b64", "mov.b128 z0, {d0, d1};", _B128),
        (Op.UNPACK, "mov.TYPE {d,e}:b64, a", "mov.b128 {d0, d1}, z0;", _B128),
        (Op.CVT, "cvt.TYPE.TYPE2 d, a:TYPE2", "cvt.u64.u32 d0, r1;",
         {"types": "u8 s8 u16 s16 u32 s32 u64 s64", "types2": "u8 s8 u16 s16 u32 s32 u64 s64"}),
        (Op.CVT, "cvt.rn.bf16x2.f32 d, a:f32, b:f32", "cvt.rn.bf16x2.f32 r0, f1, f2;",
         {"ptx": (7, 0), "sm": 80}),
        (Op.CVT, "cvt.rn.satfinite.e4m3x2.f32 d, a:f32, b:f32",
         "cvt.rn.satfinite.e4m3x2.f32 h0, f1, f2;", {"ptx": (7, 8), "sm": 89}),
        (Op.CVT, "cvt.rn.f32.TYPE2 d, a:TYPE2", "cvt.rn.f32.u32 f0, r1;", {"types2": "u32 s32"}),
        (Op.CVT, "cvt.rmi.s32.f32 d, a:f32", "cvt.rmi.s32.f32 r0, f1;"),
        (Op.PRMT, "prmt.b32 d, a, b, c", "prmt.b32 r0, r1, r2, 0x5410;",
         {"ptx": (2, 0), "sm": 20}),
        (Op.LD, "ld{.weak}.global{.L1::no_allocate}{.L2::256B}{.VEC}.TYPE d, [a]",
         "ld.global.L1::no_allocate.L2::256B.v4.b32 v0, [d0 + 3 * 512];", _WEAK),
        (Op.LD, "ld{.weak}.shared{.VEC}.TYPE d, [a]", "ld.shared.u32 r0, [smem + 16];", _WEAK),
        (Op.LD, "ld.global.nc{.L1::no_allocate}{.L2::256B}{.VEC}.TYPE d, [a]",
         "ld.global.nc.L1::no_allocate.L2::256B.v4.b32 v0, [d0];",
         {"ptx": (3, 1), "sm": 32, **_DATA}),
        (Op.PREFETCH, "prefetch.global.L2 [a]", "prefetch.global.L2 [d0];",
         {"doc": "prefetch-prefetchu", "ptx": (2, 0), "sm": 20}),
        (Op.LD, "ld.volatile.global{.L2::256B}{.VEC}.TYPE d, [a]",
         "ld.volatile.global.u32 r0, [d0];", _DATA),
        (Op.LD, "ld.{relaxed,acquire}.SCOPE.global{.L1::no_allocate}{.L2::256B}{.VEC}.TYPE d, [a]",
         "ld.acquire.sys.global.u64 d0, [d1];", _STRONG),
        (Op.LD, "ld.relaxed.SCOPE.shared.TYPE d, [a]", "ld.relaxed.cta.shared.u32 r0, [smem + 16];",
         _STRONG),
        (Op.LD, "ld{.weak}.global{.L1::no_allocate}{.L2::256B}.TYPE d, [a]",
         "ld.global.b128 z0, [d0 + 16];", _WEAK_B128),
        (Op.LD, "ld.{relaxed,acquire}.SCOPE.global{.L1::no_allocate}{.L2::256B}.TYPE d, [a]",
         "ld.acquire.sys.global.L1::no_allocate.b128 z0, [d0];", _B128),
        (Op.LD_PARAM, "ld.param{.VEC}.TYPE d, [a]", "ld.param.u64 d0, [p + 8];", _DATA),
        (Op.ST, "st{.weak}.global{.L1::no_allocate}{.VEC}.TYPE [a], v",
         "st.global.v4.b32 [d0], {r0, r1, 0, r3};", _WEAK),
        (Op.ST, "st{.weak}.shared{.VEC}.TYPE [a], v", "st.shared.v2.b32 [r1], w0;", _WEAK),
        (Op.ST, "st.{relaxed,release}.SCOPE.global{.L1::no_allocate}{.VEC}.TYPE [a], v",
         "st.release.sys.global.u64 [d0], d1;", _STRONG),
        (Op.ST, "st{.weak}.global{.L1::no_allocate}.TYPE [a], v",
         "st.global.b128 [d0 + 16], z0;", _WEAK_B128),
        (Op.ST, "st.{relaxed,release}.SCOPE.global{.L1::no_allocate}.TYPE [a], v",
         "st.relaxed.gpu.global.L1::no_allocate.b128 [d0], z0;", _B128),
        (Op.SHFL, "shfl.sync.{idx,up,down,bfly}.b32 d{|e:pred}, a, b:u32, c:u32, m:u32",
         "shfl.sync.bfly.b32 r0|q0, r1, 16, 31, 0xffffffff;",
         {"doc": "shfl-sync", "sub": ShflMode, **_WARP}),
    ),
    *_rows(
        "data-movement-and-conversion",
        (Op.BULK_LOAD, "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
         " [b], [a], c:u32, [m]",
         "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
         " [r0 + 64], [d0 + 16], r1, [smem + 8];", _BULK),
        (Op.BULK_LOAD, "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
         ".L2::cache_hint [b], [a], c:u32, [m], h:b64",
         "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
         ".L2::cache_hint [r0], [d0], 512, [r2], d1;", _BULK),
        (Op.BULK_LOAD, "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes"
         " [b], [a], c:u32, [m]",
         "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [r0], [d0], r1, [r2];",
         {**_BULK, "ptx": (8, 6)}),
        (Op.BULK_STORE, "cp.async.bulk.global.shared::cta.bulk_group [a], [b], c:u32",
         "cp.async.bulk.global.shared::cta.bulk_group [d0], [smem + 128], r1;", _BULK),
        (Op.BULK_STORE, "cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint"
         " [a], [b], c:u32, h:b64",
         "cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [d0], [r0], r1, d1;", _BULK),
        (Op.BULK_COMMIT, "cp.async.bulk.commit_group ", "cp.async.bulk.commit_group;",
         _BULK_COMMIT),
        (Op.BULK_WAIT, "cp.async.bulk.wait_group{.read} n", "cp.async.bulk.wait_group.read 1;",
         _BULK_WAIT),
        (Op.CREATEPOLICY, "createpolicy.fractional.{L2::evict_first,L2::evict_last}.b64 d",
         "createpolicy.fractional.L2::evict_first.b64 d0;"),
        (Op.CREATEPOLICY, "createpolicy.fractional.{L2::evict_first,L2::evict_last}.b64 d, a:f32",
         "createpolicy.fractional.L2::evict_last.b64 d0, 0f3F000000;"),
        ptx=(7, 4), sm=80,
    ),
    *_rows(
        "parallel-synchronization-and-communication",
        (Op.MBAR_INIT, "mbarrier.init.OWN.b64 [a], b:u32", "mbarrier.init.shared.b64 [r0], 1;",
         _INIT),
        (Op.MBAR_INVAL, "mbarrier.inval.OWN.b64 [a]", "mbarrier.inval.shared.b64 [smem + 8];",
         _INVAL),
        (Op.MBAR_ARRIVE, "mbarrier.arrive.OWN.b64 {_}d, [a]",
         "mbarrier.arrive.shared.b64 d0, [r0];", _ARRIVE),
        (Op.MBAR_ARRIVE, "mbarrier.arrive.OWN.b64 {_}d, [a], c:u32",
         "mbarrier.arrive.shared.b64 _, [r0], 2;", _ARRIVE_COUNT),
        (Op.MBAR_ARRIVE, "mbarrier.arrive.release.cta.OWN.b64 {_}d, [a]",
         "mbarrier.arrive.release.cta.shared::cta.b64 _, [r0];", _ARRIVE_RELEASE),
        (Op.MBAR_ARRIVE, "mbarrier.arrive.expect_tx.OWN.b64 {_}d, [a], b:u32",
         "mbarrier.arrive.expect_tx.shared.b64 _, [r0], r1;", _ARRIVE_TX),
        (Op.MBAR_ARRIVE, "mbarrier.arrive.expect_tx.release.cta.OWN.b64 {_}d, [a], b:u32",
         "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 d0, [r0], 512;", _ARRIVE_TX),
        (Op.MBAR_EXPECT_TX, "mbarrier.expect_tx.OWN.b64 [a], b:u32",
         "mbarrier.expect_tx.shared.b64 [r0], r1;", _EXPECT_TX),
        (Op.MBAR_EXPECT_TX, "mbarrier.expect_tx.relaxed.cta.OWN.b64 [a], b:u32",
         "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [r0], r1;", _EXPECT_TX),
        (Op.MBAR_WAIT, "mbarrier.{try_wait,test_wait}.parity.OWN.b64 d:pred, [a], b:u32",
         "mbarrier.test_wait.parity.shared.b64 q0, [r0], 1;", _MBAR_WAIT),
        (Op.MBAR_WAIT, "mbarrier.try_wait.parity.OWN.b64 d:pred, [a], b:u32, c:u32",
         "mbarrier.try_wait.parity.shared.b64 q0, [r0], r1, 1000;", _MBAR_WAIT),
        (Op.MBAR_WAIT, "mbarrier.{try_wait,test_wait}.parity.acquire.cta.OWN.b64"
         " d:pred, [a], b:u32",
         "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 q0, [r0], r1;", _MBAR_ACQUIRE),
        (Op.MBAR_WAIT, "mbarrier.try_wait.parity.acquire.cta.OWN.b64 d:pred, [a], b:u32, c:u32",
         "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 q0, [r0], r1, r2;", _MBAR_ACQUIRE),
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
        (Op.FENCE, "fence.proxy.async ", "fence.proxy.async;", _fence(proxy=Proxy.ASYNC)),
        (Op.FENCE, "fence.proxy.async.global ", "fence.proxy.async.global;",
         _fence(proxy=Proxy.ASYNC, space=Space.GLOBAL)),
        (Op.FENCE, "fence.proxy.async.{shared::cta,shared::cluster} ",
         "fence.proxy.async.shared::cta;", _fence(proxy=Proxy.ASYNC, space=Space.SHARED)),
        (Op.FENCE, "fence.mbarrier_init.release.cluster ", "fence.mbarrier_init.release.cluster;",
         _fence()),
        (Op.ELECT, "elect.sync {_}d:u32|e:pred, m:u32", "elect.sync _|q0, 0xffffffff;",
         {"doc": "elect-sync", **_SM90}),
        (Op.BAR_SYNC, "bar.sync a:u32", "bar.sync 0;"),
        (Op.BAR_SYNC, "bar.sync a:u32, b:u32", "bar.sync r0, 64;", {"ptx": (2, 0), "sm": 20}),
        (Op.BAR_WARP, "bar.warp.sync m:u32", "bar.warp.sync -1;",
         {"doc": "bar-warp-sync", **_WARP}),
        (Op.MATCH, "match.any.sync.b32 d, a, m:u32", "match.any.sync.b32 r0, r1, -1;",
         {"doc": "match-sync", "ptx": (6, 0), "sm": 70}),
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

_QUALIFIERS = set(TYPE_WORDS).union(*(e.words for f in FORMS for e in f.elements))
_MOST_SHOWN = 100                      # characters of what is not known, in an error
_MOST_UNKNOWN = 3                      # qualifiers that are named in an error
_MOST_NEAREST = 2                      # forms that are


def lookup_form(form, qualifiers):
    """The Match of one form with the qualifiers (without dots, any order); raises FormError."""
    types = [q for q in qualifiers if q in TYPE_WORDS]
    words = [q for q in qualifiers if q not in TYPE_WORDS]
    return form.match(words, types)


def lookup(opcode, qualifiers):
    """All forms of `opcode` with these qualifiers, as a list of Match: operands tell them apart.

    Raises FormError, naming what is wrong and the nearest forms.
    """
    matches, refused = [], {}                    # refused: the start of a form's syntax -> why
    for form in _BY_OPCODE.get(opcode, ()):
        try:
            matches.append(lookup_form(form, qualifiers))
        except FormError as error:
            refused.setdefault(form.syntax.partition(" ")[0], (form, str(error)))
    if not matches:
        raise FormError(_unknown(opcode, qualifiers, list(refused.values())))
    return matches


# -- what is wrong with a form that is not there -----------------------------------------------

def _unknown(opcode, qualifiers, refused):
    """refused: [(form of that opcode, why it is not this one)]."""
    written = _shown(".".join((opcode, *qualifiers)))
    if not refused:
        known = _near(opcode, _BY_OPCODE)
        return (f"the executor has no instruction '{_shown(opcode)}' ({written}); " + (
            f"nearest: {_legend(_nearest(_BY_OPCODE[known], qualifiers)[0])}" if known else
            f"it has {' '.join(sorted(_BY_OPCODE))}"))
    forms = [form for form, _ in refused]
    unknown = _unknown_qualifiers(qualifiers, forms)
    said, text = None, f"no such form of '{opcode}': {written}"
    for form in _nearest(forms, qualifiers):
        why = unknown or next(why for f, why in refused if f is form)
        if said is None:
            text += f": {why}; nearest: {_legend(form)}"
        else:
            text += f"; or{'' if why == said else f' ({why})'}: {_legend(form)}"
        said = why
    return text


def _unknown_qualifiers(qualifiers, forms):
    """Which of them no form at all has, in words; "" if none.  forms: those of the opcode."""
    unknown = list(dict.fromkeys(q for q in qualifiers if q not in _QUALIFIERS))
    known = {w for form in forms for e in form.elements for w in e.words}
    said = []
    for word in unknown[:_MOST_UNKNOWN]:
        near = _near(word, known)
        said.append(f".{_shown(word)}" + (f" (did you mean .{near}?)" if near else ""))
    more = len(unknown) - len(said)
    if not said:
        return ""
    return (f"the executor knows no qualifier {', '.join(said)}"
            + (f" and {more} more" if more else ""))


def _shown(text):
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."


def _near(name, names):
    """That of `names` that is spelt like `name`, or None."""
    if len(name) > _MOST_SHOWN:
        return None
    return next(iter(difflib.get_close_matches(name, sorted(names), 1)), None)


def _legend(form):
    """The form's syntax, and what stands for what in it."""
    names = {"TYPE": form.types, "TYPE2": form.types2, **CHOICES}
    used = [w for w in dict.fromkeys(re.findall(r"[.]([A-Z]+2?)\b", form.syntax)) if w in names]
    return form.syntax.strip() + "".join(f"; {w}: {names[w]}" for w in used)


def _nearest(forms, qualifiers):
    """The forms that are as near to the qualifiers as any, a few of them."""
    words = set(qualifiers)
    nearness = [_nearness(form, words) for form in forms]
    most = max(nearness)
    return [f for f, n in zip(forms, nearness, strict=True) if n == most][:_MOST_NEAREST]


def _nearness(form, words):
    """How many of `words` the form has; what makes it this form counts more, and when absent."""
    nearness = 2 * sum(bool(words & set(slot)) for slot in form.type_slots)
    for element in form.elements:
        if words & set(element.words):
            nearness += 3 if element.required else 2
        elif element.required:
            nearness -= 1
    return nearness
