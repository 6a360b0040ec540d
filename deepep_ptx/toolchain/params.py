# SPDX-License-Identifier: MIT
"""Reads params.h, the one place a layout is written, and derives what PTX, Cython and C need.

The accepted form is narrow on purpose: a line that is not understood is an error, never skipped,
because a layout that two readers understand differently corrupts memory in silence.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from deepep_ptx.toolchain.errors import ToolchainError
from deepep_ptx.toolchain.files import write_if_changed

HEADER = "deepep_ptx/include/deepep_ptx/params.h"

SCALARS = {
    "ep_dptr_t": 8,
    "uint64_t": 8,
    "int64_t": 8,
    "uint32_t": 4,
    "int32_t": 4,
    "uint16_t": 2,
    "int16_t": 2,
    "uint8_t": 1,
    "int8_t": 1,
    "float": 4,
}

_STRUCT = re.compile(r"struct (\w+) \{")
_PREFIX = re.compile(r"/\* ptx: ([A-Z][A-Z0-9_]*) \*/")
_FIELD = re.compile(r"(struct )?(\w+)\s+(\w+)(?:\[([^\]]+)\])?;")
_REGION = re.compile(r"EP_REGION\(struct (\w+), ([\w* ]+), (\w+)\);")
_COUNT = re.compile(r"(?:[1-9][0-9]* \* )?num_ranks|[1-9][0-9]*")
_CONSTANT = re.compile(r"#define (EP_[A-Z0-9_]+)\s+(\S+)")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|0|[1-9][0-9]*")
_GUARD = re.compile(r"#ifndef (\w+)")
_BOILERPLATE = ("#include <stdint.h>", "typedef uint64_t ep_dptr_t;",
                "#define EP_REGION(element, count, name) uint64_t name")


class LayoutError(ToolchainError):
    """params.h cannot be read; the text starts with file:line."""


@dataclass(frozen=True)
class Field:
    """One field; `size` is that of all its elements, `length` is None unless it is an array."""

    name: str
    type: str
    offset: int
    size: int
    length: int | None
    line: int


@dataclass(frozen=True)
class Region:
    """An array of `count` structures `element`, whose offset is the field `name`.

    count: a number, or a multiple of num_ranks, as C has it.
    """

    name: str
    element: str
    count: str


@dataclass(frozen=True)
class Struct:
    """One structure; `prefix` names it in PTX, sizes and alignment are in bytes.

    regions: those that its fields are the offsets of, if it lays memory out.
    """

    name: str
    prefix: str
    size: int
    align: int
    fields: tuple[Field, ...]
    line: int
    regions: tuple[Region, ...] = ()

    def __getitem__(self, name: str) -> Field:
        for item in self.fields:
            if item.name == name:
                return item
        raise KeyError(f"struct {self.name} has no field {name!r}")


@dataclass
class Layout:
    """All of params.h: structures by name and EP_* numbers, both in file order."""

    structs: dict[str, Struct] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)


class _Reader:
    """Reads one file, line by line; every check reports at the line it stands on."""

    def __init__(self, name: str):
        self.name = name
        self.line = 0
        self.layout = Layout()
        self.macros: dict[str, int] = {}  # PTX macro -> line of its origin
        self.struct: tuple[str, str, int] | None = None  # name, prefix, line
        self.fields: list[Field] = []
        self.regions: list[Region] = []
        self.guard: str | None = None

    def error(self, message: str, line: int | None = None) -> LayoutError:
        return LayoutError(f"{self.name}:{line or self.line}: {message}")

    def read(self, text: str) -> Layout:
        raw_lines = text.splitlines()
        bare_lines = _strip_comments(text).splitlines()
        for self.line, (raw, bare) in enumerate(zip(raw_lines, bare_lines, strict=True), start=1):
            bare = bare.strip()
            if not bare:
                continue
            if self.struct is None:
                self.top_level(raw, bare)
            elif bare == "};":
                self.close_struct()
            else:
                self.add_field(bare)
        if self.struct is not None:
            raise self.error(f"struct {self.struct[0]} is not closed", self.struct[2])
        return self.layout

    def top_level(self, raw: str, bare: str) -> None:
        if match := _STRUCT.fullmatch(bare):
            prefix = _PREFIX.search(raw)
            if not prefix:
                raise self.error(f"struct {match[1]} lacks its `/* ptx: PREFIX */` comment")
            if match[1] in self.layout.structs:
                raise self.error(f"struct {match[1]} is declared twice")
            self.struct = (match[1], prefix[1], self.line)
            self.fields = []
            self.regions = []
        elif match := _CONSTANT.fullmatch(bare):
            name, value = match.groups()
            if not _NUMBER.fullmatch(value):
                raise self.error(f"{name} is not a decimal or hexadecimal number: {value}")
            self.claim(name)
            self.layout.constants[name] = int(value, 0)
        elif match := _GUARD.fullmatch(bare):
            self.guard = match[1]
        elif bare not in (*_BOILERPLATE, "#endif", f"#define {self.guard}"):
            raise self.error(f"cannot parse: {bare}")

    def add_region(self, match: re.Match) -> str:
        """Its offset, as a field is written."""
        element, count, name = match.groups()
        if element not in self.layout.structs:
            raise self.error(f"struct {element} is not declared above")
        if not _COUNT.fullmatch(count):
            raise self.error(f"{count!r} is no number, and no number * num_ranks")
        self.regions.append(Region(name, element, count))
        return f"uint64_t {name};"

    def add_field(self, bare: str) -> None:
        if match := _REGION.fullmatch(bare):
            bare = self.add_region(match)
        elif self.regions:
            raise self.error(f"not an EP_REGION, of which struct {self.struct[0]} is made: {bare}")
        match = _FIELD.fullmatch(bare)
        if not match:
            raise self.error(f"cannot parse: {bare}")
        struct_name, prefix, _ = self.struct
        nested, type_name, name, length = match.groups()
        if nested:
            inner = self.layout.structs.get(type_name)
            if inner is None:
                raise self.error(f"struct {type_name} is not declared above")
            size, align = inner.size, inner.align
        elif type_name in SCALARS:
            size = align = SCALARS[type_name]
        else:
            raise self.error(f"unknown type {type_name}; known: {', '.join(SCALARS)}")
        if any(name == earlier.name for earlier in self.fields):
            raise self.error(f"{struct_name}.{name} is declared twice")
        offset = self.fields[-1].offset + self.fields[-1].size if self.fields else 0
        if offset % align:
            raise self.error(
                f"{struct_name}.{name}: {align - offset % align} bytes of implicit padding "
                f"at offset {offset}"
            )
        count = None if length is None else self.length(length)
        self.claim(f"{prefix}_{name.upper()}")
        self.fields.append(
            Field(name, (nested or "") + type_name, offset, size * (count or 1), count, self.line)
        )

    def close_struct(self) -> None:
        name, prefix, line = self.struct
        if not self.fields:
            raise self.error(f"struct {name} has no fields")
        size = self.fields[-1].offset + self.fields[-1].size
        align = max(self.alignment(item.type) for item in self.fields)
        if size % align:
            raise self.error(f"{name}: {align - size % align} bytes of implicit tail padding")
        self.claim(f"{prefix}_SIZEOF")
        self.layout.structs[name] = Struct(name, prefix, size, align, tuple(self.fields), line,
                                           tuple(self.regions))
        self.struct = None

    def alignment(self, type_name: str) -> int:
        bare = type_name.removeprefix("struct ")
        return SCALARS.get(bare) or self.layout.structs[bare].align

    def length(self, expression: str) -> int:
        """An array length: a sum of numbers and EP_* constants defined above."""
        total = 0
        for term in expression.split("+"):
            term = term.strip()
            if term in self.layout.constants:
                total += self.layout.constants[term]
            elif _NUMBER.fullmatch(term):
                total += int(term, 0)
            else:
                raise self.error(
                    f"array length {expression!r}: {term!r} is neither a number nor defined above"
                )
        if total < 1:
            raise self.error(f"array length {expression!r} is {total}")
        return total

    def claim(self, macro: str) -> None:
        """PTX sees one flat space of macros: two origins of one name are an error."""
        if macro in self.macros:
            raise self.error(f"PTX name {macro} is already taken by line {self.macros[macro]}")
        self.macros[macro] = self.line


def _strip_comments(text: str) -> str:
    """Blank out comments, keeping every line."""
    return re.sub(
        r"/\*.*?\*/|//[^\n]*", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL
    )


def parse(text: str, name: str = HEADER) -> Layout:
    """Read the text of params.h; `name` is what errors call the file. Raises LayoutError."""
    return _Reader(name).read(text)


def load(root: Path) -> Layout:
    """Read params.h of the source tree `root`. Raises LayoutError, OSError."""
    return parse((Path(root) / HEADER).read_text(encoding="utf-8"))


_NOTE = f"generated from {HEADER} by tools/gen_params.py; do not edit"


def ptx_include(layout: Layout) -> str:
    """params.inc: `<PREFIX>_<FIELD>` offsets, `<PREFIX>_SIZEOF` and the EP_* numbers."""
    lines = [f"// {_NOTE}"]
    for name, value in layout.constants.items():
        lines.append(f"#define {name:<32} {_literal(value)}")
    for struct in layout.structs.values():
        lines.append(f"// struct {struct.name}")
        for item in struct.fields:
            lines.append(f"#define {f'{struct.prefix}_{item.name.upper()}':<32} {item.offset}")
        lines.append(f"#define {f'{struct.prefix}_SIZEOF':<32} {struct.size}")
    return "\n".join(lines) + "\n"


def cython_declarations(layout: Layout) -> str:
    """params.pxd: the structures and numbers, declared over params_check.h.

    Numbers beyond a C int are declared as constants of their own type: Cython gives an anonymous
    enumerator the type int.
    """
    scalars = sorted(
        {
            item.type
            for struct in layout.structs.values()
            for item in struct.fields
            if item.type.endswith("int8_t") or re.fullmatch(r"u?int\d+_t", item.type)
        }
        | {"uint64_t"}
    )
    lines = [
        f"# {_NOTE}",
        f"from libc.stdint cimport {', '.join(scalars)}",
        "",
        'cdef extern from "params_check.h" nogil:',
        "    ctypedef uint64_t ep_dptr_t",
        "",
        "    enum:",
    ]
    lines += [f"        {name}" for name, value in layout.constants.items() if value < 2**31]
    lines.append("")
    lines += [
        f"    const uint64_t {name}" for name, value in layout.constants.items() if value >= 2**31
    ]
    for struct in layout.structs.values():
        lines += ["", f"    struct {struct.name}:"]
        for item in struct.fields:
            extent = "" if item.length is None else f"[{item.length}]"
            lines.append(f"        {item.type.removeprefix('struct ')} {item.name}{extent}")
    return "\n".join(lines) + "\n"


def c_asserts(layout: Layout) -> str:
    """params_check.h: params.h, with the offset of every field and every size asserted."""
    lines = [
        f"/* {_NOTE} */",
        "#ifndef DEEPEP_PTX_PARAMS_CHECK_H",
        "#define DEEPEP_PTX_PARAMS_CHECK_H",
        "",
        "#include <stddef.h>",
        '#include "deepep_ptx/params.h"',
    ]
    for struct in layout.structs.values():
        lines.append("")
        for item in struct.fields:
            lines.append(
                f"_Static_assert(offsetof(struct {struct.name}, {item.name}) == {item.offset}, "
                f'"{struct.name}.{item.name}");'
            )
        lines.append(
            f'_Static_assert(sizeof(struct {struct.name}) == {struct.size}, "{struct.name}");'
        )
    return "\n".join([*lines, "", "#endif"]) + "\n"


def heap_layout(layout: Layout) -> str:
    """heap_layout.h: for each structure of regions a function that lays them out."""
    lines = [
        f"/* {_NOTE} */",
        "#ifndef DEEPEP_PTX_HEAP_LAYOUT_H",
        "#define DEEPEP_PTX_HEAP_LAYOUT_H",
        "",
        '#include "deepep_ptx/params.h"',
    ]
    for struct in layout.structs.values():
        if not struct.regions:
            continue
        lines += [
            "",
            "/* Fills in the offsets; returns the bytes of all regions. */",
            f"static inline uint64_t {struct.name}_layout(struct {struct.name} *out, "
            "uint64_t num_ranks)",
            "{",
            "    uint64_t end = 0;",
        ]
        for region in struct.regions:
            lines += [
                f"    out->{region.name} = (end + EP_SLOT_ALIGN - 1) / EP_SLOT_ALIGN "
                "* EP_SLOT_ALIGN;",
                f"    end = out->{region.name} + {region.count} * sizeof(struct {region.element});",
            ]
        lines += ["    return end;", "}"]
    return "\n".join([*lines, "", "#endif"]) + "\n"


def _literal(value: int) -> str:
    return hex(value) if value >= 2**31 else str(value)


def generate(root: Path) -> list[Path]:
    """Write the four files into the source tree `root`; return those whose text changed."""
    root = Path(root)
    layout = load(root)
    outputs = {
        root / "ptx/gen/params.inc": ptx_include(layout),
        root / "cysrc/gen/params.pxd": cython_declarations(layout),
        root / "cysrc/gen/params_check.h": c_asserts(layout),
        root / "cysrc/gen/heap_layout.h": heap_layout(layout),
    }
    return [path for path, text in outputs.items() if write_if_changed(path, text)]
