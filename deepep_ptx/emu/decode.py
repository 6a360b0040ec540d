# SPDX-License-Identifier: MIT
"""Syntax tree -> the arrays that the C core executes.

Names, types, addresses and constants are resolved here, once.  A register is 32 lanes of 32 or 64
bits at an offset of the warp's register file, a .b128 two of 64; of a .b16 the upper half is
whatever it may be, and nobody reads it.  A predicate is one mask, by its index; a constant is 32
equal lanes in the pool.  Registers get their place at their first use, each
its own: nothing is packed, so that a read of a register that nobody wrote is seen.

A call is the function's body in its place, with registers of its own: the core knows no calls.
Each function is also decoded once by itself, for what is wrong in it, whether called or not.

What is decoded, the C core loads: the limits of its tables are checked here, at the statement.
"""

import difflib
import struct
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from deepep_ptx.emu import parse as ast
from deepep_ptx.emu.isa import (
    SREGS,
    TYPE_BITS,
    TYPE_WORDS,
    Cmp,
    Flag,
    FormError,
    Op,
    Space,
    Type,
    lookup,
)
from deepep_ptx.errors import PtxError

NONE = -2 ** 31                        # EMU_NONE
LANES = 32

MAX_WORDS = 2 ** 16 - 4                # of a kernel's registers: see struct emu_instr, `defined`
MAX_PARAM_BYTES = 32764                # PTX's
MAX_SHARED_BYTES = 227 * 1024          # emu_options.cta_smem of cysrc/emu/device/emu.h, at most
MAX_CALLED = 2 ** 16                   # statements that calls bring in; MAX_WORDS bounds the calls
MAX_CALLS = 20                         # of functions within each other
MOST_UNKNOWN = 8                       # forms that one error is about
_END = "the end"                       # label behind a function's body: no name of a text
_MOST_NEAR, _LONGEST_NEAR = 2000, 64   # names that are looked at for a misspelt one

# struct emu_insn and struct emu_line of cysrc/emu/device/emu.h.
INSN = np.dtype([
    ("op", "u2"), ("type", "u1"), ("type2", "u1"), ("vec", "u1"), ("space", "u1"), ("sem", "u1"),
    ("scope", "u1"), ("proxy", "u1"), ("sub", "u1"), ("flags", "u2"), ("pred", "i4"),
    ("dst", "i4", 4), ("src", "i4", 4), ("target", "i4"), ("line", "i4"), ("imm", "i8")])
LINE = np.dtype([("file", "u4"), ("line", "u4"), ("ptx_line", "u4")])
# One of each as bytes: an array is made of them in the end, as a row of Python's objects is slow.
_INSN = struct.Struct("<H8BHi4i4iiiq")
_LINE = struct.Struct("<III")

_ABSENT = [NONE] * 4
_SRC = {"a": 0, "b": 1, "c": 2, "m": 3}
_SWAPPED = {Cmp.LT: Cmp.GT, Cmp.LE: Cmp.GE, Cmp.GT: Cmp.LT, Cmp.GE: Cmp.LE,
            Cmp.EQ: Cmp.EQ, Cmp.NE: Cmp.NE}
_CLOCK = "%globaltimer"
_REGISTER_TYPES = "pred b16 b32 u32 s32 f32 b64 u64 s64 b128"
# Instructions whose register operands may be wider than the instruction's type.
_RELAXED = (Op.LD, Op.LD_PARAM, Op.ST, Op.CVT)


@dataclass(slots=True)
class KernelImage:
    """One entry, decoded: what `struct emu_kernel_image` takes, kept alive by this object.

    insns INSN[n], texts bytes[n]; constants u8[constant_bytes]; lines LINE[...]; sizes in bytes.
    shared_bytes is the static part, up to where the launch's dynamic part begins.
    """

    symbol: str
    version: tuple
    target: str
    insns: np.ndarray
    constants: np.ndarray
    lines: np.ndarray
    files: tuple                       # bytes
    texts: tuple                       # bytes
    register_bytes: int
    num_predicates: int
    param_bytes: int
    shared_bytes: int
    max_threads: int
    local_bytes: int = 0


@dataclass(slots=True)
class _Register:
    type: Type
    vector: int
    places: list                       # per element, or half of a .b128: offset or predicate
                                       # index, None = unused yet


@dataclass(slots=True)
class _Variable:
    space: Space
    offset: int
    size: int | None


@dataclass(slots=True)
class _Scope:
    parent: "_Scope | None"
    names: dict = field(default_factory=dict)
    labels: dict = field(default_factory=dict)

    def find(self, table, name):
        scope = self
        while scope is not None:
            found = getattr(scope, table).get(name)
            if found is not None:
                return found
            scope = scope.parent
        return None

    def all(self, table):
        names, scope = [], self
        while scope is not None:
            names += getattr(scope, table)
            scope = scope.parent
        return names


class _Refused(Exception):
    """What is wrong with the statement being decoded."""


def _did_you_mean(name, names):
    """The end of an error about a name that is not there."""
    if len(name) > _LONGEST_NEAR:
        return ""
    names = [n for n in names[:_MOST_NEAR] if len(n) <= _LONGEST_NEAR]
    near = difflib.get_close_matches(name, names, 1)
    return f"; did you mean '{near[0]}'?" if near else ""


_lookup = lru_cache(maxsize=None)(lookup)


def decode(module, entry):
    """The KernelImage of one entry of a parsed module.  Raises PtxError at the source line.

    Where an instruction has a form that the executor does not know, the error lists all such forms
    of the entry and the functions, each where it first stands; `file` and `line` are the first's.
    """
    try:
        return _Decoder(module, entry).image()
    except FormError:
        raise _unknown_forms(module, entry) from None


def _unknown_forms(module, entry):
    """The PtxError that lists them."""
    errors, seen = [], set()
    for block in sorted((f.body for f in (*module.functions, entry)), key=lambda b: b.start):
        for node in _instructions(block):
            form = node.opcode, node.qualifiers
            if form in seen or node.opcode == "call":
                continue
            seen.add(form)
            try:
                _lookup(*form)
            except FormError as error:
                if len(errors) == MOST_UNKNOWN:
                    file, line = module.source.source(node.start)
                    return _joined(errors, f"... and others, from {file}:{line} on")
                errors.append(module.source.error(node.start, str(error),
                                                  module.text[node.start:node.end]))
    return _joined(errors)


def _joined(errors, *more):
    return PtxError("\n".join([*map(str, errors), *more]), file=errors[0].file,
                    line=errors[0].line)


def _instructions(block):
    """All of a block, in the order of the text."""
    for s in block.statements:
        if isinstance(s, ast.Instruction):
            yield s
        elif isinstance(s, ast.Block):
            yield from _instructions(s)


_PACKED = {Type.BF16X2: Type.B32, Type.E4M3X2: Type.B16}        # and the registers they go to


def _accepts(type_, register, relaxed):
    """Whether an operand of type_ may be a register of this type, as ptxas judges it."""
    if Type.PRED in (type_, register) or Type.B128 in (type_, register):
        return type_ is register
    wide = TYPE_BITS[register] - TYPE_BITS[type_]
    if wide < 0 or (wide > 0 and not relaxed):
        return False
    if type_ in _PACKED:
        return register is _PACKED[type_]
    if type_.name[0] == "B" or register.name[0] == "B":
        return True
    return (type_.name[0] == "F") == (register.name[0] == "F")


_ACCEPTED = [[[_accepts(type_, register, relaxed) for register in Type] for type_ in Type]
             for relaxed in (False, True)]


def _integer(type_, bits=None):
    """The integer type with type_'s sign, of its width or of `bits`."""
    return Type[f"{'S' if type_.name[0] == 'S' else 'U'}{bits or TYPE_BITS[type_]}"]


class _Decoder:
    """Decodes an entry, or checks a function by itself: then that is `entry`."""

    def __init__(self, module, entry):
        self.module, self.entry, self.source = module, entry, module.source
        self.rows, self.lines, self.texts = bytearray(), bytearray(), []
        self.num_rows, self.num_lines = 0, 0
        self.files = {}
        self.constants, self.pool = {}, bytearray()
        self.register_bytes, self.num_predicates = 0, 0
        self.num_declared = 0                    # registers, those of calls included
        self.branches = []                       # (row, label, scope, node)
        self.clocks, self.written = set(), set()  # registers: by mov %globaltimer, by others
        self.temporaries = []
        self.num_called, self.num_calls = 0, 0    # statements of functions; calls under way
        self.sm = int(module.target.partition("_")[2].rstrip("af"))

    def image(self):
        module = self.global_scope = _Scope(None)
        self.functions = {f.name: f for f in self.module.functions}
        shared_bytes = self.declare_shared(module)
        for function in self.module.functions:
            self.check(function)
        scope = _Scope(module)
        param_bytes = self.declare_params(scope)
        body = self.entry.body
        self.block(body, scope)
        self.statement(body.end, body.end + 1)
        self.emit({"op": Op.EXIT})               # falling off the end
        insns = np.frombuffer(self.rows, INSN)
        self.resolve_branches(insns)
        self.mark_clock_compares(insns)
        return KernelImage(
            symbol=self.entry.name, version=self.module.version, target=self.module.target,
            insns=insns, constants=np.frombuffer(bytes(self.pool), np.uint8),
            lines=np.frombuffer(self.lines, LINE), files=tuple(self.files),
            texts=tuple(self.texts), register_bytes=self.register_bytes,
            num_predicates=self.num_predicates, param_bytes=param_bytes,
            shared_bytes=shared_bytes, max_threads=self.entry.max_threads)

    def check(self, function):
        """Refuse what is wrong in a function, whether or not it is called."""
        checker = _Decoder(self.module, function)
        checker.global_scope, checker.functions = self.global_scope, self.functions
        scope = _Scope(self.global_scope)
        for parameter in function.params:
            checker.registers(parameter, scope)
        checker.function_body(function, scope)
        checker.resolve_branches(np.frombuffer(checker.rows, INSN))

    # -- declarations --------------------------------------------------------------------------

    def declare_params(self, scope):
        end = 0
        for p in self.entry.params:
            end = -(-end // p.align) * p.align
            self.declare(scope, p.name, _Variable(Space.PARAM, end, p.size), p.start)
            end += p.size
            if end > MAX_PARAM_BYTES:
                raise self.source.error(p.start, f"the parameters need {end} bytes; the most are "
                                                 f"{MAX_PARAM_BYTES}")
        return end

    def declare_shared(self, scope):
        """Place all .shared variables: static ones in order, then the dynamic one."""
        self.shared = {}                         # offset of the declaration -> place
        variables = [*self.module.variables, *self.shared_of(self.entry.body)]
        end = 0
        for v in sorted(variables, key=lambda v: v.size is None):
            end = -(-end // v.align) * v.align
            self.shared[v.start] = _Variable(Space.SHARED, end, v.size)
            end += v.size or 0
            if end > MAX_SHARED_BYTES:
                raise self.source.error(v.start, f"the .shared variables need {end} bytes; a CTA "
                                                 f"has {MAX_SHARED_BYTES}")
        for v in self.module.variables:
            self.declare(scope, v.name, self.shared[v.start], v.start)
        return end

    def shared_of(self, block):
        for s in block.statements:
            if isinstance(s, ast.Variable):
                yield s
            elif isinstance(s, ast.Block):
                yield from self.shared_of(s)

    def declare(self, scope, name, what, start, table="names"):
        if name in scope.names or name in scope.labels:
            raise self.source.error(start, f"'{name}' is declared twice in one scope")
        getattr(scope, table)[name] = what

    # -- statements ----------------------------------------------------------------------------

    def block(self, block, scope, function=None):
        """function: the one whose body this is, None in an entry."""
        for s in block.statements:
            if self.num_calls:
                self.num_called += 1
                if self.num_called > MAX_CALLED:
                    raise self.source.error(s.start, f"calls bring in more than {MAX_CALLED} "
                                                     f"statements")
            if isinstance(s, ast.Instruction):
                self.statement(s.start, s.end)
                try:
                    if s.opcode == "call":
                        self.call(s, scope, function)
                    elif s.opcode == "ret" and function is not None:
                        self.instruction(replace(s, opcode="bra", operands=[ast.Name(_END)]), scope)
                    else:
                        self.instruction(s, scope)
                except _Refused as error:
                    text = self.module.text[s.start:s.end]
                    raise self.source.error(s.start, str(error), text) from None
            elif isinstance(s, ast.Registers):
                self.registers(s, scope)
            elif isinstance(s, ast.Label):
                self.declare(scope, s.name, self.num_rows, s.start, "labels")
            elif isinstance(s, ast.Variable):
                self.declare(scope, s.name, self.shared[s.start], s.start)
            else:
                self.block(s, _Scope(scope), function)

    def call(self, node, scope, caller):
        """The body of a function, which sees the module's names and its own."""
        name, *arguments = node.operands
        start = (caller or self.entry).start
        function = self.functions.get(name.name)
        if function is None or function.start >= start:
            before = [f.name for f in self.module.functions if f.start < start]
            raise _Refused(f"no .func '{name.name}' stands before this"
                           + _did_you_mean(name.name, before))
        if node.guard is not None or node.qualifiers:
            raise _Refused("a call has no guard and no qualifiers here: branch around it")
        if len(arguments) != len(function.params):
            raise _Refused(f"'{name.name}' takes {len(function.params)} arguments, not "
                           f"{len(arguments)}")
        inner = _Scope(self.global_scope)
        for parameter, argument in zip(function.params, arguments, strict=True):
            self.registers(parameter, inner)
            register = inner.names[parameter.names[0]]
            place, _ = self.value(argument, scope, register.type, False, constant=True)
            type_ = Type.B32 if register.type is Type.B16 else register.type
            self.emit({"op": Op.MOV, "vec": 1, "type": type_},
                      dst=[self.place(register, 0, parameter.names[0])], src=[place])
            self.written.add(register.places[0])
        if isinstance(self.entry, ast.Function):
            return                               # what it calls is checked by itself
        self.num_calls += 1
        if self.num_calls > MAX_CALLS:
            raise _Refused(f"more than {MAX_CALLS} calls within each other")
        self.function_body(function, inner)
        self.num_calls -= 1

    def function_body(self, function, scope):
        """scope: that of the parameters."""
        self.block(function.body, _Scope(scope), function)
        self.declare(scope, _END, self.num_rows, function.body.end, "labels")

    def registers(self, node, scope):
        if node.type not in _REGISTER_TYPES.split():
            raise self.source.error(node.start, f"the executor has no .{node.type} registers; "
                                                f"it has {_REGISTER_TYPES}")
        self.num_declared += len(node.names)
        if self.num_declared > ast.MAX_REGISTERS:
            raise self.source.error(node.start, f"more than {ast.MAX_REGISTERS} registers in one "
                                                f"kernel and what it calls")
        for name in node.names:
            places = 2 if node.type == "b128" else node.vector
            self.declare(scope, name, _Register(TYPE_WORDS[node.type], node.vector,
                                                [None] * places), node.start)

    def statement(self, start, end):
        """Begin a statement: what is emitted from here on is attributed to it."""
        file, line = self.source.source(start)
        number = self.files.setdefault(file.encode(), len(self.files))
        self.lines += _LINE.pack(number, line, self.source.position(start)[0])
        self.num_lines += 1
        shown = self.module.text[start:min(end, start + ast.MAX_SHOWN)]
        self.text = " ".join(shown.split()).encode()

    def emit(self, fields, *, guard=(-1, 0), dst=(), src=(), imm=0):
        has = fields.get
        self.rows += _INSN.pack(
            fields["op"], has("type", 0), has("type2", 0), has("vec", 0), has("space", 0),
            has("sem", 0), has("scope", 0), has("proxy", 0), has("sub", 0),
            has("flags", 0) | guard[1], guard[0],
            *dst, *_ABSENT[len(dst):], *src, *_ABSENT[len(src):],
            -1, self.num_lines - 1, imm)
        self.num_rows += 1
        self.texts.append(self.text)

    # -- one instruction -----------------------------------------------------------------------

    def instruction(self, node, scope):
        match = self.choose(node)
        form = match.form
        if form.op in (Op.PACK, Op.UNPACK):
            self.move_parts(node, match, scope)
            return
        fields = {"op": form.op, **match.fields}
        relaxed = form.op in _RELAXED
        dst, src, imm = [NONE] * 4, [NONE] * 4, 0
        self.num_sums = 0                        # temporaries that hold an address
        widened = []                             # (place in dst, 64-bit register), see below
        narrowed = []                            # (place in src or dst, 64-bit register)
        for spec, operand in zip(form.operands, node.operands, strict=True):
            if spec.slot == "L":
                self.branches.append((self.num_rows, operand.name, scope, node))
            elif spec.slot == "sreg":
                fields["sub"] = self.special(operand, match.types[0])
            elif spec.slot == "n":
                imm = operand.value
            elif spec.slot == "h":
                dst[0], _ = self.register(operand, scope, Type.B64)
            elif spec.address and spec.slot == "a":
                src[0], imm = self.address(operand, scope, fields, match.types)
            elif spec.address:
                src[_SRC[spec.slot]] = self.shared_operand(operand, scope, node.guard)
            elif spec.slot in "dv":
                second = ast.Sink()
                if isinstance(operand, ast.Pair):
                    operand, second = operand.first, operand.second
                type_ = match.operand_type(spec)
                if type_ is Type.B128:
                    dst[:2] = self.halves(operand, scope)
                    continue
                elements = [] if isinstance(operand, ast.Sink) else \
                    self.elements(operand, scope, fields["vec"])
                for i, element in enumerate(elements):
                    dst[i], register = self.value(element, scope, type_, relaxed,
                                                  constant=spec.slot == "v")
                    if register is not None and TYPE_BITS[register] > max(TYPE_BITS[type_], 32):
                        (widened if spec.slot == "d" else narrowed).append((dst, i, type_))
                    if spec.slot == "d" and type_ is not Type.PRED:
                        clock = form.op is Op.MOV_SREG and node.operands[1].name == _CLOCK
                        (self.clocks if clock else self.written).add(dst[i])
                if not isinstance(second, ast.Sink):
                    dst[1], _ = self.register(second, scope, Type.PRED)
            else:
                place = _SRC[spec.slot]
                if isinstance(operand, ast.Negated):
                    fields["flags"] |= Flag.SRC_PRED_NEG
                    operand = operand.name
                type_ = match.operand_type(spec)
                src[place], register = self.value(operand, scope, type_, relaxed, constant=True,
                                                  symbol=form.op is Op.MOV)
                if register is not None and TYPE_BITS[register] > max(TYPE_BITS[type_], 32):
                    narrowed.append((src, place, type_))
        guard = self.guard(node.guard, scope)

        # ld, st and cvt on registers wider than their type: through a temporary of 32 bits.
        for i, (places, place, _) in enumerate(narrowed):
            temporary = self.temporary(i)
            self.emit({"op": Op.CVT, "vec": 1, "type": Type.U32, "type2": Type.U64}, guard=guard,
                      dst=[temporary], src=[places[place]])
            places[place] = temporary
        after = []
        for i, (places, place, type_) in enumerate(widened):
            after.append((places[place], self.temporary(i), type_))
            places[place] = self.temporary(i)
        self.emit(fields, guard=guard, dst=dst, src=src, imm=imm)
        for register, temporary, type_ in after:
            self.emit({"op": Op.CVT, "vec": 1, "type": _integer(type_, 64),
                       "type2": _integer(type_)}, guard=guard, dst=[register], src=[temporary])

    def move_parts(self, node, match, scope):
        """mov of a register from or to the two parts of a vector, the low one first."""
        pack = match.form.op is Op.PACK
        place = 1 if pack else 0                 # of the vector
        spec, type_ = match.form.operands[place], match.types[0]
        vector, whole = node.operands[place].elements, node.operands[1 - place]
        part_type = match.operand_type(spec)
        if len(vector) != 2:
            raise _Refused(f"a .{type_.name.lower()} has two parts of "
                           f".{part_type.name.lower()} here: {{a, b}}")
        parts, kinds = [], set()
        for element in vector:
            part, kind = NONE, None
            if pack or not isinstance(element, ast.Sink):
                part, kind = self.value(element, scope, part_type, False, constant=pack)
            parts.append(part)
            kinds |= {kind} - {None}
        if not pack and len(kinds) != 1:
            raise _Refused("the parts of a destination must be registers of one type; one of them "
                           "may be '_'")
        guard = self.guard(node.guard, scope)
        if type_ is Type.B128:
            moves = [(half, part) if pack else (part, half)
                     for half, part in zip(self.halves(whole, scope), parts, strict=True)]
            self.emit_moves({"op": Op.MOV, "vec": 1, "type": Type.B64}, guard, moves)
            return
        place, _ = self.value(whole, scope, type_, False, constant=not pack)
        if pack:
            self.emit({"op": Op.PACK, "vec": 1, "type": type_}, guard=guard, dst=[place],
                      src=parts)
            self.written.add(place)
            return
        for i, part in enumerate(parts):
            self.emit_moves({"op": Op.UNPACK, "vec": 1, "type": type_, "sub": i}, guard,
                            [(part, place)])

    def emit_moves(self, fields, guard, moves):
        """moves: [(destination, source)]; a destination of NONE is left out."""
        for destination, source in moves:
            if destination != NONE:
                self.emit(fields, guard=guard, dst=[destination], src=[source])
                self.written.add(destination)

    def choose(self, node):
        """The form whose qualifiers and operand kinds the statement has."""
        matches = _lookup(node.opcode, node.qualifiers)
        for match in matches:
            if self.fits(match, node.operands):
                break
        else:
            forms = " or ".join(f"'{m.form.syntax.strip()}'" for m in matches)
            raise _Refused(f"the operands do not fit {forms}")
        if match.ptx > self.module.version:
            raise _Refused(f"needs .version {match.ptx[0]}.{match.ptx[1]}, the text says "
                           f"{self.module.version[0]}.{self.module.version[1]}")
        if match.form.op is Op.BULK_WAIT and not 0 <= node.operands[0].value < 2 ** 31:
            raise _Refused("a number of bulk groups is at least 0")
        if match.sm > self.sm:
            raise _Refused(f"needs .target sm_{match.sm}, the text says {self.module.target}")
        return match

    @staticmethod
    def fits(match, operands):
        specs = match.form.operands
        if len(specs) != len(operands):
            return False
        for spec, operand in zip(specs, operands, strict=True):
            kind = type(operand)
            allowed = (
                kind is ast.Address if spec.address else
                kind is ast.Vector if spec.parts else
                kind is ast.Int if spec.slot == "n" else
                kind is ast.Pair if spec.both else
                kind is ast.Special if spec.slot == "sreg" else
                kind is ast.Name and operand.element is None if spec.slot == "L" else
                kind in (ast.Name, ast.Int, ast.Float, ast.Offset)
                or (kind is ast.Vector and spec.slot in "dv" and match.fields["vec"] > 1)
                or (kind is ast.Sink and spec.sink)
                or (kind is ast.Pair and spec.pair) or (kind is ast.Negated and spec.negatable))
            if not allowed:
                return False
        return True

    def guard(self, guard, scope):
        if guard is None:
            return -1, 0
        register, _ = self.register(ast.Name(guard.name), scope, Type.PRED)
        return register, Flag.PRED_NEG if guard.negated else 0

    # -- operands ------------------------------------------------------------------------------

    def resolve(self, name, scope):
        found = scope.find("names", name.name)
        if found is None:
            raise _Refused(f"'{name.name}' is not declared"
                           + _did_you_mean(name.name, [*SREGS, *scope.all("names")]))
        if isinstance(found, _Variable) and name.element is not None:
            raise _Refused(f"'{name.name}' is a variable, which has no elements")
        return found

    def register(self, name, scope, type_, relaxed=False):
        """(place, register's type) of a scalar register or an element of a vector register."""
        if not isinstance(name, ast.Name):
            raise _Refused(f"a .{type_.name.lower()} register is needed")
        found = self.resolve(name, scope)
        if not isinstance(found, _Register):
            raise _Refused(f"'{name.name}' is a variable, not a register")
        if not _ACCEPTED[relaxed][type_][found.type]:
            raise _Refused(f"'{name.name}' is a .{found.type.name.lower()} register, which does "
                           f"not fit .{type_.name.lower()}")
        if (name.element is None) != (found.vector == 1):
            raise _Refused(f"'{name.name}' is " + ("not a vector" if found.vector == 1 else
                           f"a vector of {found.vector}; name an element (.x)"))
        return self.place(found, name.element or 0, name.name), found.type

    def halves(self, operand, scope):
        """The two places of a .b128 register."""
        found = self.resolve(operand, scope) if isinstance(operand, ast.Name) else None
        if not isinstance(found, _Register) or found.type is not Type.B128:
            raise _Refused("a .b128 register is needed")
        if operand.element is not None:
            raise _Refused(f"'{operand.name}' is not a vector")
        return [self.place(found, half, operand.name) for half in range(2)]

    def place(self, register, element, name):
        if element >= len(register.places):
            raise _Refused(f"'{name}' has only {register.vector} elements")
        if register.places[element] is None:
            if register.type is Type.B128:
                register.places[element] = self.allocate(64)
            elif register.type is Type.PRED:
                register.places[element] = self.num_predicates
                self.num_predicates += 1
                self.check_words()
            else:
                register.places[element] = self.allocate(max(TYPE_BITS[register.type], 32))
        return register.places[element]

    def allocate(self, bits):
        offset = self.register_bytes
        self.register_bytes += LANES * bits // 8
        self.check_words()
        return offset

    def check_words(self):
        """A predicate is one word of the core's table, a register one for every 16 bits."""
        words = self.register_bytes // 64 + self.num_predicates
        if words > MAX_WORDS:
            raise _Refused(f"the registers used so far are {words} words of the executor's; the "
                           f"most are {MAX_WORDS} (1 a predicate, 2 a 32-bit register, 4 a 64-bit "
                           f"one)")

    def temporary(self, number):
        while len(self.temporaries) <= number:
            self.temporaries.append(self.allocate(32))
        return self.temporaries[number]

    def elements(self, operand, scope, count):
        """The `count` scalar operands of a vector operand."""
        if count == 1:
            return [operand]
        if isinstance(operand, ast.Vector):
            elements = operand.elements
        elif isinstance(operand, ast.Name) and operand.element is None:
            vector = self.resolve(operand, scope)
            size = vector.vector if isinstance(vector, _Register) else 1
            elements = [ast.Name(operand.name, i) for i in range(size)]
        else:
            elements = []
        if len(elements) != count:
            raise _Refused(f"a vector of {count} is needed: {{a, b, ...}} or a .v{count} register")
        return elements

    def value(self, operand, scope, type_, relaxed, constant, symbol=False):
        """(place, register's type or None) of a register, or of a constant where one may be."""
        if isinstance(operand, ast.Name):
            variable = scope.find("names", operand.name) if symbol else None
            if not isinstance(variable, _Variable):
                return self.register(operand, scope, type_, relaxed)
            operand = ast.Offset(operand, 0)
        if not constant:
            raise _Refused("the destination must be a register")
        if isinstance(operand, ast.Int):
            return self.constant(operand.value, type_), None
        if isinstance(operand, ast.Float):
            if type_ not in (Type.F32, Type.B32):
                raise _Refused(f"a float constant does not fit .{type_.name.lower()}")
            return self.constant(operand.bits, Type.B32), None
        if isinstance(operand, ast.Offset) and symbol:
            return self.constant(self.shared_address(operand, scope), type_), None
        raise _Refused(f"a .{type_.name.lower()} register or constant is needed")

    def shared_address(self, operand, scope):
        variable = self.resolve(operand.base, scope)
        if not isinstance(variable, _Variable) or variable.space is not Space.SHARED:
            raise _Refused(f"'{operand.base.name}' is not a .shared variable")
        return variable.offset + operand.offset

    def constant(self, value, type_):
        """Place of 32 equal lanes: ~offset into the constant pool."""
        bits = TYPE_BITS[type_]
        if type_ in (Type.F32, Type.PRED):
            raise _Refused(f"{value} is no constant of type .{type_.name.lower()}"
                           + (" (write 0fXXXXXXXX)" if type_ is Type.F32 else ""))
        if not -2 ** (bits - 1) <= value < 2 ** bits:
            raise _Refused(f"the constant {value} does not fit .{type_.name.lower()}")
        value %= 2 ** bits
        if type_.name[0] == "S" and value >> (bits - 1):
            value -= 2 ** bits
        width = max(bits, 32)                    # of a lane: sign-extended as a load would
        value %= 2 ** width
        if (value, width) not in self.constants:
            self.constants[value, width] = len(self.pool)
            self.pool += value.to_bytes(width // 8, "little") * LANES
        return ~self.constants[value, width]

    def special(self, operand, type_):
        if operand.name not in SREGS:
            raise _Refused(f"the executor has no {operand.name}; it has {' '.join(SREGS)}")
        sreg, width = SREGS[operand.name]
        if TYPE_BITS[width] != TYPE_BITS[type_]:
            raise _Refused(f"{operand.name} is .{width.name.lower()}, the instruction "
                           f".{type_.name.lower()}")
        return sreg

    def shared_operand(self, operand, scope, guard):
        """Place of the whole address [base + offset] in .shared, of a second address operand."""
        base = self.resolve(operand.base, scope)
        if isinstance(base, _Variable):
            if base.space is not Space.SHARED:
                raise _Refused(f"'{operand.base.name}' is not in .shared")
            return self.constant(base.offset + operand.offset, Type.U32)
        place, register = self.register(operand.base, scope, Type.B32, relaxed=True)
        if TYPE_BITS[register] != 32:
            raise _Refused(f"'{operand.base.name}' has {TYPE_BITS[register]} bits, this .shared "
                           f"address must have 32")
        if operand.offset == 0:
            return place
        self.num_sums += 1
        total = self.temporary(self.num_sums - 1)
        self.emit({"op": Op.ADD, "vec": 1, "type": Type.U32}, guard=self.guard(guard, scope),
                  dst=[total], src=[place, self.constant(operand.offset, Type.B32)])
        return total

    def address(self, operand, scope, fields, types):
        """(src[0], imm) of [base + offset], by the instruction's space."""
        name = operand.base.name
        base = self.resolve(operand.base, scope)
        space = fields["space"]
        if space is Space.PARAM:
            if not isinstance(base, _Variable) or base.space is not Space.PARAM:
                raise _Refused(f"'{name}' is not a parameter of the entry")
            size = TYPE_BITS[types[0]] // 8 * fields["vec"]
            if not 0 <= operand.offset <= base.size - size:
                raise _Refused(f"[{name} + {operand.offset}] leaves the parameter's "
                               f"{base.size} bytes")
            if (base.offset + operand.offset) % size:
                raise _Refused(f"[{name} + {operand.offset}] is not aligned to {size} bytes")
            return NONE, base.offset + operand.offset
        if isinstance(base, _Variable):
            if space is not base.space:
                raise _Refused(f"'{name}' is not in .{space.name.lower()}")
            fields["flags"] |= Flag.ADDR32
            return self.constant(base.offset, Type.U32), operand.offset
        narrow = TYPE_BITS[base.type] == 32
        place, _ = self.register(operand.base, scope, Type.B32 if narrow else Type.B64)
        if narrow:
            if space is Space.GLOBAL:
                raise _Refused(f"'{name}' has 32 bits, a .global address 64")
            fields["flags"] |= Flag.ADDR32
        return place, operand.offset

    # -- after the last statement ----------------------------------------------------------------

    def resolve_branches(self, insns):
        for row, label, scope, node in self.branches:
            target = scope.find("labels", label)
            if target is None:
                raise self.source.error(
                    node.start, f"no label '{label}' in this scope or around it"
                    + _did_you_mean(label, scope.all("labels")),
                    self.module.text[node.start:node.end])
            insns["target"][row] = target

    def mark_clock_compares(self, insns):
        """Flag comparisons of the virtual clock, with the clock on the left."""
        clocks = self.clocks - self.written
        if not clocks:
            return
        wide = [type_ for type_ in Type if TYPE_BITS[type_] == 64]
        for i in np.flatnonzero((insns["op"] == Op.SETP) & np.isin(insns["type"], wide)):
            row = insns[i]
            a, b, *rest = row["src"].tolist()
            if b in clocks and a not in clocks:
                row["src"] = (b, a, *rest)
                row["sub"] = _SWAPPED[row["sub"]]
                a = b
            if a in clocks:
                row["flags"] |= Flag.CLOCK_CMP
