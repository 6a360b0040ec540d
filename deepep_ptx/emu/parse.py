# SPDX-License-Identifier: MIT
"""PTX text -> syntax tree: a lexer and a recursive descent over statements and operands.

It knows PTX's grammar, not its instructions: which opcode takes what is `isa.py`'s business, and
names are resolved in `decode.py`.  Positions are offsets into the text; `SourceMap` turns them into
rendered lines and, by the `.file` and `.loc` directives, into source lines.

Whatever the text holds, parsing ends in a Module or a PtxError: numbers have ranges, and text,
names, registers and nesting have limits, so that time and memory are at most proportional to the
text.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass, field

from deepep_ptx.emu.isa import SREGS
from deepep_ptx.errors import PtxError

MAX_TEXT = 2 ** 24                     # characters of a text
MAX_NAME = 1024                        # of a name
MAX_DEPTH = 50                         # of blocks and parentheses in each other
MAX_REGISTERS = 2 ** 16                # declared in one text, and in one kernel with its calls
MAX_SHOWN = 500                        # characters of a statement in an error or report
_INT32 = 2 ** 31 - 1

# -- the tree ---------------------------------------------------------------------------------

@dataclass(slots=True)
class Name:
    """A register, label or variable, or an element of a vector register (`v0.x`: element 0)."""
    name: str
    element: int | None = None


@dataclass(slots=True)
class Special:
    name: str                          # "%tid.x"


@dataclass(slots=True)
class Int:
    value: int                         # in [-2**63, 2**64)


@dataclass(slots=True)
class Float:
    bits: int                          # of an f32, from 0fXXXXXXXX


@dataclass(slots=True)
class Offset:
    """A variable's address plus a constant: `smem + 16`."""
    base: Name
    offset: int


@dataclass(slots=True)
class Address:
    base: Name                         # [base + offset]
    offset: int


@dataclass(slots=True)
class Vector:
    elements: list                     # {a, b, c, d}


@dataclass(slots=True)
class Pair:
    first: "Name | Sink"               # d|p
    second: object


@dataclass(slots=True)
class Negated:
    name: Name                         # !p


@dataclass(slots=True)
class Sink:
    """The operand `_`."""


@dataclass(slots=True)
class Guard:
    name: str
    negated: bool


@dataclass(slots=True)
class Instruction:
    opcode: str
    qualifiers: tuple                  # without their dots
    operands: list
    guard: Guard | None
    start: int                         # offsets of the statement into the text
    end: int


@dataclass(slots=True)
class Label:
    name: str
    start: int


@dataclass(slots=True)
class Registers:
    """One `.reg` directive; `vector` is 1, 2 or 4."""
    type: str
    vector: int
    names: list
    start: int


@dataclass(slots=True)
class Variable:
    """A `.shared` variable or an entry's `.param`; size is None for `name[]`, else in bytes."""
    name: str
    align: int
    size: int | None
    start: int


@dataclass(slots=True)
class Block:
    statements: list
    start: int
    end: int


@dataclass(slots=True)
class Entry:
    name: str
    params: list
    max_threads: int                   # product of .maxntid, 0 = not given
    body: Block
    start: int


@dataclass(slots=True)
class Function:
    """A `.func` without results, whose parameters are registers; called as `call name, (a, b);`."""
    name: str
    params: list                       # of Registers, one name each
    body: Block
    start: int


@dataclass(slots=True)
class Module:
    text: str
    version: tuple                     # (7, 8)
    target: str                        # "sm_90"
    variables: list                    # .shared at module level
    entries: list
    source: "SourceMap" = field(repr=False)
    functions: list = field(default_factory=list)


class SourceMap:
    """Offsets of one PTX text -> rendered line and column -> source file and line.

    Without `.loc` a line is its own source line, in the file `name`.
    """

    def __init__(self, text, name):
        self.text, self.name = text, name
        self.files = {}                # .file number -> name
        self._starts = [0, *(m.end() for m in re.finditer("\n", text))]
        self._locs = [(-1, None, 0)]   # (offset, .file number, line)

    def add_loc(self, offset, file, line):
        self._locs.append((offset, file, line))

    def position(self, offset):
        """(line, column), both from 1, in the rendered text."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def source(self, offset):
        """(file, line) of the source."""
        _, file, line = self._locs[bisect_right(self._locs, offset, key=lambda loc: loc[0]) - 1]
        if file is None:
            return self.name, self.position(offset)[0]
        return self.files[file], line

    def error(self, offset, message, statement=None):
        """A PtxError at `offset`; `statement` is the text of the statement it is about."""
        file, line = self.source(offset)
        ptx_line, column = self.position(offset)
        if statement is None:
            begin = self._starts[ptx_line - 1]
            statement = self.text[begin:begin + MAX_SHOWN].partition("\n")[0]
        statement = " ".join(statement[:MAX_SHOWN].split())
        report = (f"{file}:{line}: {message}\n    {statement}\n"
                  f"    (rendered text: line {ptx_line}, column {column})")
        # What cannot be encoded cannot be printed either.
        return PtxError(report.encode(errors="backslashreplace").decode(), file=file, line=line)


# -- the lexer --------------------------------------------------------------------------------

# White space belongs to what follows it, and the last two match wherever nothing else does: so no
# place of a text is looked at twice.
_TOKEN = re.compile(r"""
[ \t\r\n]* (?:
    (?P<name> [A-Za-z_$%][\w$]{,%d} (?![\w$]) )
  | (?P<long> [A-Za-z_$%][\w$]* )
  | (?P<skip> //[^\n]* | /\*(?s:.*?)\*/ )
  | (?P<open> /\* )
  | (?P<dot>  \.[A-Za-z_]\w*(?:::\w+)* )
  | (?P<float> 0[fF][0-9a-fA-F]{8}\b )
  | (?P<int>  (?: 0[xX][0-9a-fA-F]+ | 0[bB][01]+ | [0-9]+ ) U?\b )
  | (?P<text> "[^"\n]*" )
  | (?P<op>   << | >> | [-{}()\[\]<>,;:|!@+*/%&^~.] )
  | (?P<bad>  (?s:.) )
  | (?P<end>  \Z )
)""".replace("%d", str(MAX_NAME - 1)), re.VERBOSE | re.ASCII)
_OTHER = {"skip", "long", "open", "bad", "end"}
_SURROGATE = re.compile("[\ud800-\udfff]")
_TARGET = re.compile(r"sm_[1-9][0-9]{1,2}[af]?")

_TYPES = {"pred": 0, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "b32": 4, "u32": 4,
          "s32": 4, "f32": 4, "b64": 8, "u64": 8, "s64": 8}
_REGISTER_TYPES = {**_TYPES, "b128": 16}
_ELEMENTS = {".x": 0, ".y": 1, ".z": 2, ".w": 3}
_SPECIAL = {name.partition(".")[0]: "." in name for name in SREGS}   # -> has components
_PRECEDENCE = {"|": 1, "^": 2, "&": 3, "<<": 4, ">>": 4, "+": 5, "-": 5, "*": 6, "/": 6, "%": 6}


def _tokens(text):
    """(kinds, words, offsets) of a text's tokens: three tuples, which Python's garbage collector
    does not walk through again and again, as it would through lists or a tuple for each token.

    They end with "end", "", len(text); or, where no token begins, with "bad", what is wrong, and
    where, before that: the parser complains, since it knows the .loc.
    """
    kinds, words, starts = [], [], []
    surrogate = _SURROGATE.search(text)      # a str may have them, a PTX file not
    readable = surrogate.start() if surrogate else len(text)
    position, wrong = len(text), None
    for match in _TOKEN.finditer(text, 0, readable):
        kind = match.lastgroup
        if kind in _OTHER:
            if kind == "skip":
                continue
            position = match.start(kind)
            if kind == "open":
                wrong = "a comment is not closed"
            elif kind == "long":
                wrong = f"a name of {len(match[kind])} characters; the most are {MAX_NAME}"
            break
        kinds.append(kind)
        words.append(match[kind])
        starts.append(match.start(kind))
    if surrogate and (position == readable or text[position] in '"/'):
        position, wrong = readable, None     # it cut off a string or a comment
    if position != len(text):
        kinds.append("bad")
        words.append(wrong or f"unexpected character {text[position]!r}")
        starts.append(position)
    return (*kinds, "end"), (*words, ""), (*starts, len(text))


def _first_variable(block):
    for s in block.statements:
        if isinstance(s, Variable):
            return s
        if isinstance(s, Block) and (found := _first_variable(s)) is not None:
            return found
    return None


def parse(text, name="<ptx>"):
    """The Module of a PTX text.  Raises PtxError with the source file and line.

    name: what to call the text where no .loc says where a line came from.
    """
    source = SourceMap(text, name)
    if len(text) > MAX_TEXT:
        raise source.error(MAX_TEXT, f"the text has {len(text)} characters; the most are "
                                     f"{MAX_TEXT}")
    return _Parser(text, source).module()


class _Parser:
    def __init__(self, text, source):
        self.text, self.source = text, source
        self.kinds, self.words, self.starts = _tokens(text)
        self.seek(0)
        self.depth = 0                 # of the block or parenthesis that is being read
        self.num_registers = 0
        self.instructions = {}         # words of one -> its parts
        self.operands = {}             # word of one that is a single word -> operand

    # -- tokens --------------------------------------------------------------------------------

    def seek(self, index):
        """The token at hand is from here on the one at `index`."""
        self.index = index
        self.kind, self.word, self.start = self.kinds[index], self.words[index], self.starts[index]

    def advance(self):
        word = self.word
        self.index = index = self.index + 1      # seek(), without the call
        self.kind, self.word, self.start = self.kinds[index], self.words[index], self.starts[index]
        return word

    def accept(self, word):
        if self.word != word:
            return False
        self.advance()
        return True

    def expect(self, word):
        if self.word != word:
            raise self.unexpected(f"'{word}'")
        return self.advance()

    def expect_kind(self, kind, what):
        if self.kind != kind:
            raise self.unexpected(what)
        return self.advance()

    def unexpected(self, wanted):
        if self.kind == "bad":
            return self.error(self.word)
        found = f"'{self.word}'" if self.word else "the end of the text"
        return self.error(f"expected {wanted}, found {found}")

    def error(self, message, start=None):
        return self.source.error(self.start if start is None else start, message)

    def declared_name(self, what):
        if self.word == "_" or self.word in _SPECIAL:
            raise self.error(f"'{self.word}' cannot be {what}")
        return self.expect_kind("name", what)

    def enter(self):
        """Begins a block or parenthesis, which the caller ends: `self.depth -= 1`."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} blocks or parentheses in each other")
        self.advance()

    # -- module --------------------------------------------------------------------------------

    def module(self):
        self.expect(".version")
        # "7.8" is not a token of PTX's expressions: its parts are.
        major = self.integer(".version", 1, 99)
        self.expect(".")
        version = (major, self.integer(".version", 0, 99))
        self.expect(".target")
        if not _TARGET.fullmatch(self.word):
            raise self.unexpected("a target (sm_80, sm_90a, ...)")
        target = self.advance()
        self.expect(".address_size")
        self.integer(".address_size", 64, 64)
        module = Module(self.text, version, target, [], [], self.source)
        while self.kind != "end":
            self.declaration(module)
        if not module.entries:
            raise self.error("the text has no .entry")
        self.check_names(module)
        return module

    def check_names(self, module):
        """No name is given to two entries or functions, or to one of them and a variable."""
        names = {v.name for v in module.variables}
        for entry in (*module.entries, *module.functions):
            if entry.name in names:
                raise self.error(f"'{entry.name}' is declared twice", entry.start)
            names.add(entry.name)

    def declaration(self, module):
        start = self.start
        if self.word in (".file", ".loc"):
            self.line_directive()
        elif self.word in (".extern", ".shared"):
            module.variables += self.shared()
        elif self.word in (".visible", ".entry"):
            self.accept(".visible")
            self.expect(".entry")
            module.entries.append(self.entry(start))
        elif self.accept(".func"):
            module.functions.append(self.function(start))
        else:
            raise self.unexpected("a directive (.entry, .func, .shared, .extern, .file)")

    def function(self, start):
        name = self.declared_name("the function's name")
        self.expect("(")
        params = [self.argument()]
        while self.accept(","):
            params.append(self.argument())
        self.expect(")")
        body = self.block()
        if (variable := _first_variable(body)) is not None:
            raise self.error("a function has no .shared variables of its own", variable.start)
        return Function(name, params, body, start)

    def argument(self):
        start = self.start
        self.expect(".reg")
        if self.kind != "dot" or self.word[1:] not in _TYPES or self.word == ".pred":
            raise self.unexpected("a type of an argument")
        type_ = self.advance()[1:]
        return Registers(type_, 1, [self.declared_name("a parameter's name")], start)

    def entry(self, start):
        name = self.declared_name("the entry's name")
        params = []
        if self.accept("(") and not self.accept(")"):
            params.append(self.param())
            while self.accept(","):
                params.append(self.param())
            self.expect(")")
        max_threads = 0
        while self.word != "{":
            if self.accept(".maxntid"):
                max_threads = self.integer(".maxntid", 1, 1024)
                for _ in "yz":
                    if self.accept(","):
                        max_threads *= self.integer(".maxntid", 1, 1024)
            elif self.word in (".minnctapersm", ".maxnreg"):
                self.integer(self.advance(), 1, _INT32)   # no effect on what the kernel computes
            else:
                raise self.unexpected("'{' or a directive (.maxntid, .minnctapersm, .maxnreg)")
        return Entry(name, params, max_threads, self.block(), start)

    def param(self):
        self.expect(".param")
        param = self.variable(*self.variable_type())
        if param.size is None:
            raise self.error("a parameter must have a size", param.start)
        return param

    def shared(self):
        """`.shared .align 8 .b32 a[4], b;` or `.extern .shared .align 16 .b8 c[];`"""
        extern = self.accept(".extern")
        self.expect(".shared")
        align, size = self.variable_type()
        variables = [self.variable(align, size)]
        while self.accept(","):
            variables.append(self.variable(align, size))
        self.expect(";")
        for v in variables:
            if extern != (v.size is None):
                raise self.error("a .shared variable without a size is .extern, and only that",
                                 v.start)
        return variables

    def variable_type(self):
        align = self.alignment() if self.accept(".align") else 0
        size = _TYPES.get(self.word[1:], 0) if self.kind == "dot" else 0
        if not size:
            raise self.unexpected("a type")
        self.advance()
        return align or size, size

    def alignment(self):
        start = self.start
        align = self.integer(".align", 1, _INT32)
        if align & (align - 1):
            raise self.error(f".align: must be a power of two, is {align}", start)
        return align

    def variable(self, align, size):
        start = self.start
        name = self.declared_name("a variable's name")
        if self.accept("["):
            if self.accept("]"):
                return Variable(name, align, None, start)
            size *= self.extent(size)
            while self.accept("["):
                size *= self.extent(size)
        return Variable(name, align, size, start)

    def extent(self, size):
        """The number in `[number]`, of elements of `size` bytes."""
        start = self.start
        number = self.expression()
        if not 1 <= number <= _INT32 // size:
            raise self.error(f"an array must have 1 to {_INT32 // size} elements of {size} bytes, "
                             f"not {number}", start)
        self.expect("]")
        return number

    def line_directive(self):
        start = self.start
        if self.accept(".file"):
            number = self.integer(".file", 0, _INT32)
            self.source.files[number] = self.expect_kind("text", "a file name")[1:-1]
        else:
            self.expect(".loc")
            file, line, _ = (self.integer(".loc", 0, _INT32) for _ in range(3))
            if file not in self.source.files:
                raise self.error(f".loc names file {file}, which no .file declares", start)
            self.source.add_loc(start, file, line)

    # -- statements ----------------------------------------------------------------------------

    def block(self):
        start = self.start
        if self.word != "{":
            raise self.unexpected("'{'")
        self.enter()
        statements = []
        while self.word != "}":
            if self.kind == "name" and self.words[self.index + 1] != ":" or self.word == "@":
                statements.append(self.instruction())
            elif self.kind == "name":
                statements.append(Label(self.declared_name("a label"), self.start))
                self.advance()
            elif self.word == "{":
                statements.append(self.block())
            elif self.word == ".reg":
                statements.append(self.registers())
            elif self.word == ".shared":
                statements += self.shared()
            elif self.word in (".loc", ".file"):
                self.line_directive()
            elif self.word == ".pragma":
                self.advance()                    # advice to ptxas
                self.expect_kind("text", "a string")
                self.expect(";")
            else:
                raise self.unexpected("a statement")
        end = self.start
        self.advance()
        self.depth -= 1
        return Block(statements, start, end)

    def registers(self):
        """`.reg .v4 .b32 v<4>, w;`: v<4> is v0, v1, v2, v3."""
        start = self.start
        self.expect(".reg")
        vector = 1
        if self.word in (".v2", ".v4"):
            vector = int(self.advance()[2:])
        if self.kind != "dot" or self.word[1:] not in _REGISTER_TYPES:
            raise self.unexpected("a register type")
        if vector > 1 and (self.word == ".pred" or vector * _REGISTER_TYPES[self.word[1:]] > 16):
            raise self.error(f"there are no .v{vector} registers of {self.word}")
        type_ = self.advance()[1:]
        names = []
        while True:
            name = self.declared_name("a register's name")
            if self.accept("<"):
                count = self.integer("number of registers", 0, MAX_REGISTERS)
                names += [f"{name}{i}" for i in range(count)]
                self.expect(">")
            else:
                names.append(name)
            if self.num_registers + len(names) > MAX_REGISTERS:
                raise self.error(f"more than {MAX_REGISTERS} registers in one text", start)
            if not self.accept(","):
                break
        self.expect(";")
        self.num_registers += len(names)
        return Registers(type_, vector, names, start)

    def instruction(self):
        """One statement.  Those of the same words share their parts."""
        start, first = self.start, self.index
        try:
            last = self.words.index(";", first)
        except ValueError:
            last = first                         # there will be an error
        words = self.words[first:last]
        parts = self.instructions.get(words)
        if parts is None:
            parts = self.instruction_parts()
            if "(" not in words:                 # whose depth counts
                self.instructions[words] = parts
        self.seek(last + 1)
        return Instruction(*parts, start, self.starts[last] + 1)

    def instruction_parts(self):
        """(opcode, qualifiers, operands, guard) of an instruction, up to its `;`."""
        guard = None
        if self.accept("@"):
            negated = self.accept("!")
            guard = Guard(self.expect_kind("name", "a predicate"), negated)
        opcode = self.expect_kind("name", "an instruction")
        qualifiers = []
        while self.kind == "dot":
            qualifiers.append(self.advance()[1:])
        operands = []
        if opcode == "call":
            operands = self.called()
        elif self.word != ";":
            operands.append(self.shared_operand())
            while self.accept(","):
                operands.append(self.shared_operand())
        if self.word != ";":
            raise self.unexpected("',' or ';'")
        return opcode, tuple(qualifiers), operands, guard

    def called(self):
        """The function's name and the arguments of `call name, (a, b)`."""
        operands = [Name(self.expect_kind("name", "a function's name"))]
        self.expect(",")
        self.expect("(")
        operands.append(self.element())
        while self.accept(","):
            operands.append(self.element())
        self.expect(")")
        return operands

    # -- operands ------------------------------------------------------------------------------

    def shared_operand(self):
        """One operand.  All those of one and the same word are one object."""
        word = self.word
        if not word or self.words[self.index + 1] not in (",", ";"):
            return self.operand()
        operand = self.operands.get(word)
        if operand is None:
            operand = self.operands[word] = self.operand()
        else:
            self.advance()
        return operand

    def operand(self):
        if self.word == "[":
            return self.address()
        if self.accept("{"):
            elements = [self.element()]
            while self.accept(","):
                elements.append(self.element())
            self.expect("}")
            return Vector(elements)
        if self.accept("!"):
            return Negated(Name(self.expect_kind("name", "a predicate")))
        first = self.element()
        if isinstance(first, Name | Sink) and self.accept("|"):
            return Pair(first, self.sink() or self.name())
        return first

    def element(self):
        """An operand that is not made of others."""
        if self.kind == "float":
            return Float(int(self.advance().lower().removeprefix("0f"), 16))
        if self.kind != "name":
            return Int(self.expression())
        if self.word in _SPECIAL:
            name = self.advance()
            return Special(name + self.advance() if _SPECIAL[name] and self.kind == "dot" else name)
        if sink := self.sink():
            return sink
        name = self.name()
        return Offset(name, self.offset()) if self.accept("+") else name

    def sink(self):
        return Sink() if self.accept("_") else None

    def name(self):
        name = self.expect_kind("name", "a name")
        if self.kind != "dot":
            return Name(name)
        if self.word not in _ELEMENTS:
            raise self.unexpected("an element (.x, .y, .z, .w)")
        return Name(name, _ELEMENTS[self.advance()])

    def address(self):
        self.expect("[")
        base = self.name()
        offset = 0
        if self.accept("+"):
            offset = self.offset()
        elif self.word == "-":
            raise self.error("an address is [base + offset]; write [base + -n]")
        self.expect("]")
        return Address(base, offset)

    def offset(self):
        """What is added to an address: 32 bits with a sign, as PTX says."""
        start = self.start
        value = self.expression()
        if not -_INT32 - 1 <= value <= _INT32:
            raise self.error(f"an offset must be in [{-_INT32 - 1}, {_INT32}], is {value}", start)
        return value

    # -- constant expressions: 64-bit integers with C's operators --------------------------------

    def integer(self, what, low, high):
        """A literal; `what` it is, in words."""
        start = self.start
        value = self.literal()
        if not low <= value <= high:
            wanted = low if low == high else f"in [{low}, {high}]"
            raise self.error(f"{what}: must be {wanted}, is {value}", start)
        return value

    def literal(self):
        start = self.start
        digits = self.expect_kind("int", "an integer").rstrip("U")
        if digits[0] == "0" and digits[1:].isdigit():
            digits = "0o" + digits
        try:
            value = int(digits, 0)
        except ValueError:                       # also: more digits than Python reads
            raise self.error(f"'{digits[:70]}' is not a number", start) from None
        return self.in_range(value, start)

    def expression(self, least=1):
        start = self.start
        value = self.term()
        while (rank := _PRECEDENCE.get(self.word, 0)) >= least:
            operator = self.advance()
            value = self.apply(operator, value, self.expression(rank + 1), start)
        return value

    def term(self):
        start = self.start
        signs = []
        while self.word in ("-", "+", "~"):
            signs.append(self.advance())
        if self.word == "(":
            self.enter()
            value = self.expression()
            self.expect(")")
            self.depth -= 1
        elif self.kind == "int":
            value = self.literal()
        else:
            raise self.unexpected("an operand")
        for sign in reversed(signs):
            value = {"-": -value, "+": value, "~": ~value}[sign]
        return self.in_range(value, start)

    def apply(self, operator, a, b, start):
        if operator in ("/", "%"):
            if b == 0:
                raise self.error("division by zero in a constant expression", start)
            quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
            value = quotient if operator == "/" else a - quotient * b
        elif operator in ("<<", ">>"):
            if not 0 <= b < 64:
                raise self.error(f"shift by {b} in a constant expression", start)
            value = a << b if operator == "<<" else a >> b
        else:
            value = {"+": a + b, "-": a - b, "*": a * b,
                     "&": a & b, "|": a | b, "^": a ^ b}[operator]
        return self.in_range(value, start)

    def in_range(self, value, start):
        if not -2 ** 63 <= value < 2 ** 64:
            raise self.error("a constant expression does not fit 64 bits", start)
        return value
