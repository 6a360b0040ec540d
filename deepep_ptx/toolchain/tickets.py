# SPDX-License-Identifier: MIT
"""The constants of tickets in machine code: `atom.inc`'s limit, `old == n - 1` behind an atomic.

One comparison decides who is the last to arrive; were its constant wrong, nobody would be, or
somebody too early.  PTX and SASS are followed back from the comparison to a sum of what they begin
with, and the two sums have to be the same.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from deepep_ptx.emu import parse as ast
from deepep_ptx.toolchain.flow import Node, nodes_of
from deepep_ptx.toolchain.ptx_text import Rendered
from deepep_ptx.toolchain.ptxas import Assembly, Sass

_OLD = "the atomic's result"
_CTAS = "%nctaid.x"
_CTAS_IN_SASS = ("c[0x0][0xc]", "c[0x0][0x370]")    # up to sm_90; from sm_100 on
_EQUALITY = re.compile(r"setp\.(eq|ne)\.[bus]32")
_REGISTER = re.compile(r"U?R\d+")
_PREDICATE = re.compile(r"!?U?P(T|\d+)")
_MODULUS = 1 << 32


@dataclass(frozen=True)
class Sum:
    """Terms with their coefficients, and a constant, modulo 2^32."""

    terms: tuple[tuple[str, int], ...]
    constant: int

    @classmethod
    def of(cls, *parts: "Sum", signs: tuple[int, ...] = ()) -> "Sum":
        """Sum of parts with their signs, all + where none are given."""
        total, constant = Counter(), 0
        for part, sign in zip(parts, signs or (1,) * len(parts), strict=True):
            for term, coefficient in part.terms:
                total[term] += sign * coefficient
            constant += sign * part.constant
        terms = tuple(sorted((term, n) for term, n in total.items() if n))
        return cls(terms, constant % _MODULUS)

    def __str__(self) -> str:
        constant = self.constant - _MODULUS * (self.constant >> 31)
        texts = [f"{n} * {term}" if abs(n) != 1 else f"{'-' if n < 0 else ''}{term}"
                 for term, n in self.terms]
        return " + ".join([*texts, str(constant)])


def _number(value: int) -> Sum:
    return Sum((), value % _MODULUS)


def _term(name: str) -> Sum:
    return Sum(((name, 1),), 0)


@dataclass(frozen=True)
class Ticket:
    """Of an atomic, by rendered lines: the value on which something is decided, and where it is
    used: by the atomic itself as its limit, or by a comparison, which asks whether it is 0."""

    atom: int
    used: int
    value: Sum


def tickets_of(rendered: Rendered) -> list[Ticket]:
    """Limits of `atom.inc`, and 32-bit comparisons of an atomic's result in which a constant is."""
    nodes = nodes_of(rendered)
    found = []
    for index, node in enumerate(nodes):
        if node.text.startswith("atom.") and ".inc." in node.text:
            found.append(Ticket(node.line, node.line, _ptx(nodes, index, 2, None)))
        elif _EQUALITY.fullmatch(node.text):
            for atom in _atoms_before(nodes, index):
                value = Sum.of(_ptx(nodes, index, 1, atom), _ptx(nodes, index, 2, atom),
                               signs=(1, -1))
                if _OLD in dict(value.terms) and value.constant:
                    found.append(Ticket(nodes[atom].line, node.line, value))
    return found


def _atoms_before(nodes: list[Node], index: int) -> Iterator[int]:
    """The atomics whose result an operand of node `index` is, as it was or in a sum."""
    readers = [index]
    while readers:
        reader = readers.pop()
        for register in nodes[reader].registers[1:3]:
            at = None if register is None else _writer(nodes, reader, register)
            if at is not None and nodes[at].text.startswith("atom."):
                yield at
            elif at is not None and nodes[at].text.split(".")[0] in ("add", "sub"):
                readers.append(at)


def _writer(nodes: list[Node], index: int, register) -> int | None:
    """The last node before `index` that writes a register."""
    for at in range(index - 1, -1, -1):
        if nodes[at].registers and nodes[at].registers[0] == register:
            return at
    return None


def _ptx(nodes: list[Node], index: int, operand: int, atom: int | None) -> Sum:
    """What an operand of node `index` is; `atom` is the node whose result has a name."""
    given, register = nodes[index].operands[operand], nodes[index].registers[operand]
    if isinstance(given, ast.Int):
        return _number(given.value)
    if isinstance(given, ast.Special):
        return _term(given.name)
    at = None if register is None else _writer(nodes, index, register)
    if at is None:
        return _term(f"operand {operand} of line {nodes[index].line}")
    if at == atom:
        return _term(_OLD)
    opcode = nodes[at].text.split(".")[0]
    if opcode == "mov":
        return _ptx(nodes, at, 1, atom)
    if opcode in ("add", "sub"):
        return Sum.of(_ptx(nodes, at, 1, atom), _ptx(nodes, at, 2, atom),
                      signs=(1, -1 if opcode == "sub" else 1))
    return _term(f"line {nodes[at].line}")


def check_tickets(tickets: list[Ticket], assembly: Assembly) -> Iterator[tuple[int, str]]:
    """(rendered line, finding) of each ticket whose machine code has another constant, or none."""
    sass = assembly.sass
    for ticket in tickets:
        atoms = {i for i, s in enumerate(sass)
                 if s.line == ticket.atom and s.opcode.startswith("ATOM")}
        if ticket.used == ticket.atom:
            values = [_sass(sass, i, _sources(sass[i])[-1], atoms) for i in atoms]
        else:
            values = [
                Sum.of(*(_sass(sass, i, source, atoms) for source in _sources(s)[:2]),
                       signs=(1, -1))
                for i, s in enumerate(sass)
                if s.line == ticket.used and s.opcode.startswith("ISETP")
            ]
        if not values:
            yield ticket.used, "no machine instruction compares this ticket"
        for value in values:
            if value not in (ticket.value, Sum.of(ticket.value, signs=(-1,))):
                yield ticket.used, f"ticket is {value} in SASS, not {ticket.value}"


def _sources(sass: Sass) -> list[str]:
    """The operands but for the destination and predicates."""
    operands = [o.strip() for o in re.split(r",(?![^\[]*\])", sass.operands)]
    operands = [o for o in operands if o and not _PREDICATE.fullmatch(o)]
    return operands if sass.opcode.startswith("ISETP") else operands[1:]


def _writes(sass: Sass, register: str) -> bool:
    """Whether an instruction writes a register, by itself or as part of a wider one."""
    match = re.match(r"(?:U?P(?:T|\d+), )*(U?R)(\d+)\b", sass.operands)
    kind, number = re.fullmatch(r"(U?R)(\d+)", register).groups()
    if not match or match[1] != kind or sass.opcode.split(".")[0] in ("ISETP", "STG", "STS", "RED"):
        return False
    width = 4 if ".128" in sass.opcode else 2 if re.search(r"\.(64|WIDE)", sass.opcode) else 1
    return int(match[2]) <= int(number) < int(match[2]) + width


def _sass(sass: tuple[Sass, ...], index: int, operand: str, atoms: set[int]) -> Sum:
    """What an operand of instruction `index` is."""
    operand = operand.removesuffix(".reuse")
    if operand in ("RZ", "URZ"):
        return _number(0)
    if operand in _CTAS_IN_SASS:
        return _term(_CTAS)
    if operand.startswith("-") and not operand.startswith("-0x"):
        return Sum.of(_sass(sass, index, operand[1:], atoms), signs=(-1,))
    if re.fullmatch(r"-?0x[0-9a-f]+", operand):
        return _number(int(operand, 16))
    if not _REGISTER.fullmatch(operand):
        return _term(operand)
    at = next((i for i in range(index - 1, -1, -1) if _writes(sass[i], operand)), None)
    if at is None:
        return _term(operand)
    if at in atoms:
        return _term(_OLD)
    opcode, sources = sass[at].opcode, _sources(sass[at])
    if opcode in ("MOV", "UMOV", "LDC", "ULDC", "LDCU", "R2UR"):
        return _sass(sass, at, sources[0], atoms)
    if opcode in ("IMAD.MOV.U32", "IMAD.U32") and sources[:2] == ["RZ", "RZ"]:
        return _sass(sass, at, sources[2], atoms)
    if opcode in ("IADD3", "UIADD3", "VIADD", "IADD"):
        return Sum.of(*(_sass(sass, at, source, atoms) for source in sources))
    return _term(f"{opcode} of line {sass[at].line}")
