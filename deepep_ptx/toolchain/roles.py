# SPDX-License-Identifier: MIT
"""A role's banner against its text: the names that it shares with whoever includes it.

What a role uses and does not declare is free; its `Takes`, `Leaves` and `Keeps` name all of these
and no others.  A macro whose name ends with _REGS or _SMEM stands for what it declares, and `what X
takes` for the free names of role X.

`Hooks` names macros that each kernel's own lib has, parameters of the role: what they use is the
matter of whoever includes it.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from deepep_ptx.emu import parse as ast
from deepep_ptx.toolchain.front_end import parse_rendered
from deepep_ptx.toolchain.ptx_text import Rendered

_FIELDS = ("Takes", "Leaves", "Keeps")
_HOOK = re.compile(r"^// Hooks {2,}([A-Z]\w+)", re.MULTILINE)
_FIELD = re.compile(r"// (\w+) {2,}(.*)")
_MORE = re.compile(r"// {10,}(.*)")
_NAME = re.compile(r"\b[a-z]_\w+")              # as registers and shared variables are called
_GROUP = re.compile(r"\b[A-Z]\w*_(?:REGS|SMEM)\b")
_MACRO = re.compile(r"#define (\w+)\b((?:.*\\\n)*.*)")
_THOSE_OF = re.compile(r"\bwhat\s+(\w+)\s+takes\b")
_PARAMETERS = "p"                               # every kernel's parameter block


def check_roles(root: Path, rendered: Iterable[Rendered]) -> Iterator[str]:
    """Findings, each `file:line: what`, over ptx/role; `rendered` are the texts of all variants."""
    free: dict[str, set[str]] = {}
    hooks = _Hooks(Path(root))
    for text in rendered:
        for file, uses in _free_names(text):
            names = {name for name, at in uses if not hooks.of(file, at)}
            free.setdefault(file, set()).update(names)
    groups = _groups(root)
    by_name: dict[str, str] = {}                # of a role -> its file
    for path in sorted((Path(root) / "ptx/role").rglob("*.inc")):
        file = path.relative_to(root).as_posix()
        if (other := by_name.setdefault(path.stem, file)) != file:
            yield f"{file}:1: there is a role of that name, {other}"
    of_roles = {name: free.get(file, set()) for name, file in by_name.items()}
    for file in sorted(by_name.values()):
        if file not in free:
            yield f"{file}:1: no kernel has this role"
            continue
        line, said = _banner(Path(root) / file)
        for message in _differences(said, free[file], of_roles, groups):
            yield f"{file}:{line}: {message}"


def _differences(
    said: str, free: set[str], of_roles: dict[str, set[str]], groups: dict[str, set[str]]
) -> Iterator[str]:
    covered = set(re.findall(r"\w+", said))
    for group in set(_GROUP.findall(said)):
        names = groups.get(group, set())
        covered |= names
        if not names & free:
            yield f"the banner has {group}, of which the role uses nothing"
    for role in _THOSE_OF.findall(said):
        covered |= of_roles.get(role, set())
    if missing := sorted(free - covered):
        yield f"used, and not in the banner: {', '.join(missing)}"
    if unused := sorted(set(_NAME.findall(said)) - free):
        yield f"in the banner, and not used: {', '.join(unused)}"


class _Hooks:
    """Which lines of roles are uses of hooks."""

    def __init__(self, root: Path):
        self.root = root
        self.lines: dict[str, list[str]] = {}
        self.named: dict[str, set[str]] = {}

    def of(self, role: str, at: tuple[str, int]) -> bool:
        """Whether line `at`, (file, number), is a hook that the banner of `role` names."""
        for file in (role, at[0]):
            if file not in self.lines:
                text = (self.root / file).read_text(encoding="utf-8")
                self.lines[file] = text.splitlines()
                self.named[file] = set(_HOOK.findall(text))
        words = set(re.findall(r"\w+", self.lines[at[0]][at[1] - 1]))
        return not words.isdisjoint(self.named[role])


def _banner(path: Path) -> tuple[int, str]:
    """(line of the first of the fields, what they say) of a role."""
    first, said, inside = 1, [], False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line == "{":
            break
        if match := _FIELD.match(line):
            inside = match[1] in _FIELDS
            if inside:
                first = first if said else number
                said.append(match[2])
        elif inside and (match := _MORE.match(line)):
            said.append(match[1])
        else:
            inside = False
    return first, "\n".join(said)


def _groups(root: Path) -> dict[str, set[str]]:
    """Macro of declarations -> the names that it declares, through macros that it uses too."""
    bodies = {}
    for path in (Path(root) / "ptx/lib").glob("*.inc"):
        for name, body in _MACRO.findall(path.read_text(encoding="utf-8")):
            if _GROUP.fullmatch(name):
                bodies[name] = body

    def names(group):
        inner = [name for name in _GROUP.findall(bodies[group]) if name in bodies]
        return set(_NAME.findall(bodies[group])).union(*map(names, inner))

    return {group: names(group) for group in bodies}


def _free_names(rendered: Rendered) -> Iterator[tuple[str, set[tuple[str, tuple[str, int]]]]]:
    """(file, free names and the lines that use them) of each role's scope, as often as the text
    has it."""
    module = parse_rendered(rendered)
    found = []

    def free(block, around):
        place = rendered.place(module.source.position(block.start)[0])
        own, used = set(), set()
        for s in block.statements:
            if isinstance(s, ast.Block):
                used |= free(s, place)
            elif isinstance(s, ast.Registers):
                own |= set(s.names)
            elif isinstance(s, ast.Variable):
                own.add(s.name)
            elif isinstance(s, ast.Instruction):
                at = rendered.origin(module.source.position(s.start)[0])
                used |= {(name, at) for name in _used(s)}
        used = {(name, at) for name, at in used if name not in own | {_PARAMETERS}}
        is_role = place.file.startswith("ptx/role/") and place.macro is None
        if is_role and (around is None or around.included != place.included):
            found.append((place.file, used))
        return used

    for entry in module.entries:
        free(entry.body, None)
    for function in module.functions:           # shares its parameters, and nothing else
        at = rendered.origin(module.source.position(function.start)[0])
        found.append((at[0], {(name, at) for p in function.params for name in p.names}))
    yield from found


def _used(instruction: ast.Instruction) -> Iterator[str]:
    if instruction.guard:
        yield instruction.guard.name
    if instruction.opcode != "bra":             # whose operand is a label
        for operand in instruction.operands[instruction.opcode == "call":]:
            yield from _names(operand)


def _names(operand) -> Iterator[str]:
    """The registers and variables of an operand."""
    match operand:
        case ast.Name(name):
            yield name
        case ast.Offset(base) | ast.Address(base):
            yield base.name
        case ast.Negated(name):
            yield name.name
        case ast.Vector(elements):
            for element in elements:
                yield from _names(element)
        case ast.Pair(first, second):
            yield from _names(first)
            yield from _names(second)
