# SPDX-License-Identifier: MIT
"""Mutants of a rendered text: each with one synchronising instruction made weaker, or taken out.

What the checker of docs/verifier.md does not flag is an instruction that is not needed, or a
checker that does not see that it is; tools/mutate.py finds out which, docs/mutants.md tells.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from deepep_ptx.emu import parse as ast

SCOPES = ("sys", "gpu", "cta")
# What is left of an order when a part of it is taken away.
_WEAKER = {
    "acq_rel": ("acquire", "release", "relaxed"),
    "acquire": ("relaxed",),
    "release": ("relaxed",),
}
_PROXY_SPACES = ("global", "shared::cta")
_WARP = 32
_ALL_LANES = 0xFFFFFFFF
_LAST_LANE = 1 << 31
_BULK_UNIT = 16                     # bytes: what sizes of bulk copies are multiples of


@dataclass(frozen=True)
class Mutant:
    """One change of one statement of a rendered text.

    file, line: of the source.  statement: as rendered, spaces count as one.  copy: its number among
    those of the text with this file and statement, from 1.  mutation: what is changed, in words.
    ptx_line: of the rendered text.  start, end: of the statement in it.  instead: what stands there
    in the mutant.
    """

    file: str
    line: int
    statement: str
    copy: int
    mutation: str
    ptx_line: int
    start: int
    end: int
    instead: str

    @property
    def site(self) -> str:
        """The statement's name: the same wherever it is moved to within its file."""
        return f"{self.file}: {self.statement} #{self.copy}"

    def of(self, text: str) -> str:
        """The mutant of the text that this one was made of."""
        return text[:self.start] + self.instead + text[self.end:]


def mutants_of(text: str, name: str = "<ptx>") -> list[Mutant]:
    """All mutants of a rendered text, in its order.  Raises PtxError where it is none.

    name: of the source, where no `.loc` names one.
    """
    module = ast.parse(text, name)
    found = []
    copies: dict[tuple[str, str], int] = defaultdict(int)
    bodies = chain(module.functions, module.entries)
    for s in chain.from_iterable(_instructions(body.body) for body in bodies):
        changes = list(_changes(s, text))
        if not changes:
            continue
        file, line = module.source.source(s.start)
        statement = " ".join(text[s.start:s.end].split())
        copies[file, statement] += 1
        found += [Mutant(file, line, statement, copies[file, statement], mutation,
                         module.source.position(s.start)[0], s.start, s.end, instead)
                  for mutation, instead in changes]
    return found


def _instructions(block: ast.Block) -> Iterator[ast.Instruction]:
    for s in block.statements:
        if isinstance(s, ast.Instruction):
            yield s
        elif isinstance(s, ast.Block):
            yield from _instructions(s)


def _changes(s: ast.Instruction, text: str) -> Iterator[tuple[str, str]]:
    """(what is changed, the statement that stands there instead) of each mutant of a statement."""
    whole = text[s.start:s.end]
    opcode = ".".join((s.opcode, *s.qualifiers))

    def other(*qualifiers: str) -> str:
        """The statement with these qualifiers."""
        return whole.replace(opcode, ".".join((s.opcode, *qualifiers)), 1)

    if s.opcode in ("ld", "st", "atom", "red"):
        for mutation, qualifiers in _weaker_accesses(s):
            yield mutation, other(*qualifiers)
    elif s.opcode == "fence":
        yield "removed", ""
        for mutation, qualifiers in chain(_narrower(s.qualifiers), _elsewhere(s.qualifiers)):
            yield mutation, other(*qualifiers)
    elif opcode == "bar.sync":
        yield "removed", ""
        if len(s.operands) == 2 and isinstance(s.operands[1], ast.Int):
            threads = s.operands[1].value
            for mutation, number in (("32 threads fewer", threads - _WARP),
                                     ("32 threads more", threads + _WARP)):
                yield mutation, _with_last(whole, str(number))
    elif opcode == "bar.warp.sync":
        yield "removed", ""
        yield from _without_a_lane(s, whole)
    elif s.opcode in ("shfl", "vote"):
        yield from _without_a_lane(s, whole)
    elif s.opcode == "mbarrier":
        yield from _mbarrier(s, whole)
    elif opcode == "cp.async.bulk.commit_group":
        yield "removed", ""
    elif opcode.startswith("cp.async.bulk.wait_group"):
        yield "removed", ""
        if "read" not in s.qualifiers:
            yield "wait_group -> wait_group.read", other(*s.qualifiers, "read")
        yield "one group more", _with_last(whole, str(s.operands[0].value + 1))


def _weaker_accesses(s: ast.Instruction) -> Iterator[tuple[str, tuple[str, ...]]]:
    order = next((q for q in s.qualifiers if q in (*_WEAKER, "relaxed", "volatile")), None)
    if order is None:
        return
    for weaker in _WEAKER.get(order, ()):
        yield (f"{order} -> {weaker}",
               tuple(weaker if q == order else q for q in s.qualifiers))
    if order in ("relaxed", "volatile") and s.opcode in ("ld", "st"):
        yield (f"{order} -> weak",
               tuple(q for q in s.qualifiers if q != order and q not in SCOPES))
    yield from _narrower(s.qualifiers)


def _narrower(qualifiers: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    scope = next((q for q in qualifiers if q in SCOPES), None)
    if scope is None:
        return
    for narrower in SCOPES[SCOPES.index(scope) + 1:]:
        yield (f"{scope} -> {narrower}",
               tuple(narrower if q == scope else q for q in qualifiers))


def _elsewhere(qualifiers: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A proxy fence for the other memory."""
    for space, another in (_PROXY_SPACES, _PROXY_SPACES[::-1]):
        if "proxy" in qualifiers and space in qualifiers:
            yield (f"{space} -> {another}",
                   tuple(another if q == space else q for q in qualifiers))


def _without_a_lane(s: ast.Instruction, whole: str) -> Iterator[tuple[str, str]]:
    """The last lane is missing in a mask that is a constant."""
    mask = s.operands[-1]
    if isinstance(mask, ast.Int) and mask.value & _LAST_LANE:
        yield "without lane 31", _with_last(whole, f"{mask.value & _ALL_LANES ^ _LAST_LANE:#x}")


def _mbarrier(s: ast.Instruction, whole: str) -> Iterator[tuple[str, str]]:
    kind = s.qualifiers[0]
    guard, _, operands = whole.partition("mbarrier.")
    operands = operands.partition(" ")[2].strip().removesuffix(";")
    last = operands.rpartition(",")[2].strip()
    if kind in ("try_wait", "test_wait"):
        done = operands.partition(",")[0]
        yield "taken as done", f"{guard}setp.eq.u32 {done}, {last}, {last};"
    elif kind == "init":
        yield "one arrival more", _with_last(whole, str(s.operands[-1].value + 1))
    elif "expect_tx" in s.qualifiers:
        for mutation, add in ((f"{_BULK_UNIT} bytes more", "add"),
                              (f"{_BULK_UNIT} bytes fewer", "sub")):
            yield mutation, (f"{{ .reg .b32 r_other; {add}.u32 r_other, {last}, {_BULK_UNIT}; "
                             f"{_with_last(whole, 'r_other')} }}")
    elif kind == "arrive":
        yield "removed", ""


def _with_last(whole: str, operand: str) -> str:
    """A statement with another last operand."""
    head = whole.rpartition("," if "," in whole else " ")
    return f"{head[0]}{head[1]}{' ' * (head[1] == ',')}{operand};"
