# SPDX-License-Identifier: MIT
"""Which instructions of a rendered text can follow which: its control flow, as far as predicates
that are taken for true, and what is computed from them, decide it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from deepep_ptx.emu import parse as ast
from deepep_ptx.toolchain.front_end import parse_rendered
from deepep_ptx.toolchain.preprocess import Place
from deepep_ptx.toolchain.ptx_text import Rendered

_ENDS = ("ret", "exit")
_END = "the end"                                # label behind a function's body: no name of a text


@dataclass(frozen=True, slots=True)
class Register:
    """A declared register: names are scoped, so two may have the same one."""

    name: str
    scope: int


@dataclass(slots=True)
class Node:
    """One instruction.

    text: opcode and qualifiers.  operands: as the syntax tree has them; of those that name a
    register, `registers` has which.  guard: (register, value that lets it execute) or None.
    target: of a branch, a place in the list.
    """

    text: str
    operands: list
    registers: tuple[Register | None, ...]
    guard: tuple[Register, bool] | None
    line: int
    place: Place
    target: int | None = None


def nodes_of(rendered: Rendered) -> list[Node]:
    """The instructions of the text's entry, in order; a place behind the last one is its end.

    A call is what it calls, behind a `mov` for each argument.
    """
    module = parse_rendered(rendered)
    functions = {function.name: function for function in module.functions}
    nodes: list[Node] = []
    branches = []

    def call(s, names):
        name, *arguments = s.operands
        function, own = functions[name.name], {}
        line = module.source.position(s.start)[0]
        for parameter, argument in zip(function.params, arguments, strict=True):
            register = own[parameter.names[0]] = Register(parameter.names[0], -1 - len(nodes))
            given = names.get(argument.name) if isinstance(argument, ast.Name) else None
            nodes.append(Node(f"mov.{parameter.type}", [ast.Name(register.name), argument],
                              (register, given), None, line, rendered.place(line)))
        end: dict[str, int] = {}
        walk(function.body, own, [end], end)
        end[_END] = len(nodes)

    def walk(block, names, labels, end=None):
        names, labels = dict(names), [{}, *labels]
        for s in block.statements:
            if isinstance(s, ast.Instruction) and s.opcode == "call":
                call(s, names)
            elif isinstance(s, ast.Instruction):
                line = module.source.position(s.start)[0]
                if s.opcode == "ret" and end is not None:
                    s = replace(s, opcode="bra", operands=[ast.Name(_END)])
                operands = [o.first if isinstance(o, ast.Pair) else o for o in s.operands]
                inner = [o.name if isinstance(o, ast.Negated) else o for o in operands]
                registers = tuple(names.get(o.name) if isinstance(o, ast.Name) else None
                                  for o in inner)
                guard = s.guard and (names[s.guard.name], not s.guard.negated)
                if s.opcode == "bra":
                    branches.append((len(nodes), s.operands[0].name, labels))
                nodes.append(Node(".".join((s.opcode, *s.qualifiers)), operands, registers, guard,
                                  line, rendered.place(line)))
            elif isinstance(s, ast.Registers):
                names |= {name: Register(name, block.start) for name in s.names}
            elif isinstance(s, ast.Label):
                labels[0][s.name] = len(nodes)
            elif isinstance(s, ast.Block):
                walk(s, names, labels, end)

    (entry,) = module.entries
    walk(entry.body, {}, [])
    for index, label, labels in branches:
        nodes[index].target = next(found[label] for found in labels if label in found)
    return nodes


def reach(
    nodes: list[Node], start: int, true: tuple[str, ...], stops: Callable[[Node], bool]
) -> Iterator[Node]:
    """The nodes that can execute from `start` on; a way ends with one that `stops`.

    true: names of predicates that hold throughout.
    """
    seen: set[tuple[int, frozenset]] = set()
    stack: list[tuple[int, frozenset]] = [(start, frozenset())]
    while stack:
        state = stack.pop()
        index, known = state
        if state in seen or index >= len(nodes):
            continue
        seen.add(state)
        node = nodes[index]
        values = dict(known)

        def value(register, values=values):
            return True if register.name in true else values.get(register)

        runs = None
        if node.guard is None:
            runs = True
        elif (held := value(node.guard[0])) is not None:
            runs = held == node.guard[1]
        if runs is not False:
            yield node
            if runs and stops(node):
                continue
        if node.target is not None and runs is not False:
            stack.append((node.target, known))
        leaves = node.target is not None or node.text.split(".")[0] in _ENDS
        if not (leaves and runs):
            after = known if runs is False else _written(node, values, value, runs)
            stack.append((index + 1, after))


def _written(node: Node, values: dict, value: Callable, runs: bool | None) -> frozenset:
    """What is known of predicates behind a node that ran, or may have (None)."""
    if not node.registers or node.registers[0] is None:
        return frozenset(values.items())
    written, *read = node.registers
    values = dict(values)
    values.pop(written, None)
    inputs = [None if register is None else value(register) for register in read]
    result = None
    if node.text == "and.pred":
        result = False if False in inputs else (None if None in inputs else True)
    elif node.text == "or.pred":
        result = True if True in inputs else (None if None in inputs else False)
    elif node.text == "not.pred" and inputs[0] is not None:
        result = not inputs[0]
    elif node.text == "mov.pred":
        result = inputs[0]
    if result is not None and runs:
        values[written] = result
    return frozenset(values.items())
