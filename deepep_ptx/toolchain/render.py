# SPDX-License-Identifier: MIT
"""Preprocessed PTX sources as text: one statement a line, with a line map in band.

`.loc` lines say which source line each instruction came from, and what a macro brings in counts as
the line of the macro's use.
"""

import bisect
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from deepep_ptx.rendered import read_index
from deepep_ptx.toolchain import params, preprocess, variants
from deepep_ptx.toolchain.files import write_if_changed
from deepep_ptx.toolchain.preprocess import Place, RenderError
from deepep_ptx.toolchain.variants import Table, Variant

OUTPUT = "deepep_ptx/_ptx"
INDEX = "variants.json"

# Directives that end with their line and not with a semicolon.
_LINE_DIRECTIVES = (".version", ".target", ".address_size")
# In operands: a word behind another, with no comma or operator between them.  The statement was not
# closed, and swallowed the next one.
_RUN_ON = re.compile(r"""[\w\])}>"]\s+[@%$\w.\["]""")
_GUARDED_OPCODE = re.compile(r"\s*(?:@!?[%$\w]+\s+)?[\w.:]+")
_REGISTER_TYPES = re.compile(r"\s*\.reg\b(?:\s+\.\w+)*")
# What may follow an entry's parameter list; each on a line of its own.
_TUNING = re.compile(r"\s(?=\.(?:maxntid|reqntid|minnctapersm|maxnreg|noreturn)\b)")
_HEADER = re.compile(r"\.(entry|func)\b")
_LABEL = re.compile(r"[$%\w]+\s*:")
_OPERAND_COLUMN = 16


@dataclass(frozen=True)
class Rendered:
    """The text, and for each of its lines (from 1) the place in the sources it came from."""

    text: str
    places: tuple[Place | None, ...]

    def place(self, line: int) -> Place | None:
        """Where rendered line `line` came from, None for what the renderer wrote."""
        return self.places[line - 1]

    def origin(self, line: int) -> tuple[str, int] | None:
        """Source (file, line) of rendered line `line`, None for what the renderer wrote."""
        place = self.place(line)
        return place and (place.file, place.line)


@dataclass(frozen=True)
class _Statement:
    text: str
    place: Place


def _statements(tokens):
    """Group tokens into statements: braces of scopes, labels and line directives included.

    A statement's place is that of its first token; a brace inside a statement (a vector operand,
    an initialiser) does not end it, the brace after an entry's header does.
    """
    parts: list[str] = []
    first = None                         # the place of this statement's first token
    braces = 0                           # open ones of this statement
    for value, place in tokens:
        if not parts:
            if not value.strip():
                continue
            first = place
            if value in "{}":
                yield _Statement(value, first)
                continue
        elif value == "{" and _HEADER.search("".join(parts)):
            yield _Statement("".join(parts), first)
            yield _Statement(value, place)
            parts = []
            continue
        parts.append(value)
        text = "".join(parts)
        braces += (value == "{") - (value == "}")
        if braces < 0 or (value == ";" and (braces or _runs_on(text))):
            raise _not_closed(parts, first)
        if (
            value == ";"
            or ("\n" in value and text.startswith(_LINE_DIRECTIVES))
            or (value == ":" and _LABEL.fullmatch(text))
        ):
            yield _Statement(text, first)
            parts = []
    if parts:
        raise _not_closed(parts, first)


def _runs_on(text: str) -> bool:
    """Whether a statement holds a label, or words that nothing joins: the start of the next one."""
    text = re.sub(r'"[^"]*"', '""', text)
    if text.startswith("."):
        match = _REGISTER_TYPES.match(text)     # other directives have words side by side
        return bool(match and _RUN_ON.search(text, match.end()))
    if "?" not in text and ":" in text.replace("::", ""):
        return True
    match = _GUARDED_OPCODE.match(text)
    return bool(match and _RUN_ON.search(text, match.end()))


def _not_closed(parts: list[str], place: Place) -> RenderError:
    return place.error(f"statement is not closed: {_squeeze(parts)[:60]}")


def _squeeze(parts) -> str:
    text = re.sub(r"\s+", " ", "".join(parts)).strip()
    return re.sub(r" ([,;:])", r"\1", text)


def _aligned(text: str) -> str:
    """An instruction with its operands in one column; a guard counts as part of the opcode."""
    match = re.fullmatch(r"((?:@!?[%$\w]+ )?\S+) (.*)", text)
    return f"{match[1]:<{_OPERAND_COLUMN - 1}} {match[2]}" if match else text


class _Writer:
    """Lays statements out as lines, keeping where each came from."""

    def __init__(self, variant: Variant):
        policy = f", policy {variant.policy}" if variant.policy else ""
        self.lines: list[str] = []
        self.places: list[Place | None] = []
        self.files: dict[str, int] = {}
        self.file_table_at = 0
        self.scopes: list[Place] = []           # where each open one begins
        self.located: tuple[str, int] | None = None
        self.put(
            f"// generated by tools/ptxgen.py from {variant.source}{policy}; do not edit", None
        )

    def put(self, text: str, place: Place | None, outdent: int = 0) -> None:
        self.lines.append("    " * (len(self.scopes) - outdent) + text)
        self.places.append(place)

    def statement(self, statement: _Statement) -> None:
        text, place = _squeeze([statement.text]), statement.place
        if text == "{":
            self.put(text, place)
            self.scopes.append(place)
        elif text == "}":
            self.close(place)
            self.put(text, place)
        elif text.startswith("."):
            if not self.scopes:
                for line in _TUNING.split(text):
                    self.put(line, place)
                if text.startswith(".address_size"):
                    self.file_table_at = len(self.lines)
            else:
                self.put(text, place)
        elif text.endswith(":"):
            self.put(text, place, outdent=1 if self.scopes else 0)
        else:
            origin = place.file, place.line
            if origin != self.located:
                number = self.files.setdefault(place.file, len(self.files) + 1)
                self.put(f".loc {number} {place.line} 0", place)
                self.located = origin
            self.put(_aligned(text), place)

    def close(self, place: Place) -> None:
        """End the innermost scope, which has to have begun where it ends: in the same file, as it
        was included there, and in the same use of a macro or in none."""
        if not self.scopes:
            raise place.error("closing brace without its opening one")
        opening = self.scopes.pop()
        if _text_of(opening) != _text_of(place):
            if _encloses(opening, place):
                raise place.error("closing brace without its opening one")
            raise opening.error("this scope is not closed")

    def finish(self) -> Rendered:
        if self.scopes:
            raise self.scopes[-1].error("this scope is not closed")
        at, table = self.file_table_at, [f'.file {n} "{f}"' for f, n in self.files.items()]
        self.lines[at:at] = table
        self.places[at:at] = [None] * len(table)
        return Rendered("\n".join(self.lines) + "\n", tuple(self.places))


def _text_of(place: Place) -> tuple:
    """The stretch of source text that a place belongs to: an inclusion of a file, a macro's use."""
    use = (place.line, place.macro[0]) if place.macro else None
    return place.included, place.file, use


def _encloses(outer: Place, inner: Place) -> bool:
    """Whether the text of `inner` is brought in by that of `outer`."""
    deeper = len(inner.included) - len(outer.included)
    return deeper > 0 or (deeper == 0 and outer.macro is None)


def render_with_origins(variant: Variant, root: Path) -> Rendered:
    """Render `variant` from the source tree `root`. Raises RenderError."""
    root = Path(root).resolve()
    writer = _Writer(variant)
    for statement in _statements(preprocess.tokens(variant, root)):
        writer.statement(statement)
    rendered = writer.finish()
    if not rendered.text.split("\n", 2)[1].startswith(".version"):
        raise RenderError(f"{variant.source}: .version is not the first statement")
    return rendered


def render(variant: Variant, root: Path) -> str:
    """The PTX text of `variant`, from the source tree `root`. Raises RenderError."""
    return render_with_origins(variant, root).text


def source_line(text: str, rendered_line: int) -> tuple[str, int] | None:
    """Source (file, line) of line `rendered_line` (from 1) of a rendered text.

    Read from its .file and .loc lines, so only instructions are exact: another line counts as the
    instruction before it. None before the first instruction.
    """
    files: dict[str, str] = {}
    places: list[tuple[int, str, int]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if match := re.match(r'\s*\.file (\d+) "([^"]+)"', line):
            files[match[1]] = match[2]
        elif match := re.match(r"\s*\.loc (\d+) (\d+)", line):
            places.append((number, files[match[1]], int(match[2])))
    at = bisect.bisect_right(places, rendered_line, key=lambda place: place[0])
    return places[at - 1][1:] if at else None


def normalised(text: str) -> str:
    """The text without what the machine never sees: line map, comments, blank space."""
    lines = (re.sub(r"\s+", " ", line.split("//")[0]).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith((".loc ", ".file ")))


def digest(text: str) -> str:
    """sha256 of the normalised text."""
    return hashlib.sha256(normalised(text).encode()).hexdigest()


def inputs_digest(root: Path) -> str:
    """sha256 over all that rendering reads: the sources, params.h, the table and this code."""
    root = Path(root)
    sources = [
        *(root / "ptx").rglob("*.ptx"),
        *(path for path in (root / "ptx").rglob("*.inc") if path.parent.name != "gen"),
        *(root / name for name in (variants.TABLE, params.HEADER)),
    ]
    names = {path.relative_to(root).as_posix(): path for path in sources}
    modules = params, preprocess, variants
    names |= {module.__name__: Path(module.__file__) for module in modules}
    names[__name__] = Path(__file__)
    total = hashlib.sha256()
    for name, path in sorted(names.items()):
        data = path.read_bytes()
        total.update(f"{name}\0{len(data)}\0".encode() + data)
    return total.hexdigest()


def index_document(table: Table, inputs: str, static_smem: dict[str, int]) -> dict:
    """What the package knows about its variants at run time: the content of variants.json.

    static_smem: file of a variant -> bytes of its .shared variables of fixed size.
    """
    return {
        "inputs": inputs,
        "variants": [
            {
                "kernel": variant.kernel,
                "arch": variant.arch,
                "version": variant.version,
                "path": variant.path,
                "policy": variant.policy,
                "symbol": variant.symbol,
                "file": variant.file,
                "source": variant.source,
                "params": variant.params,
                "param_bytes": variant.param_bytes,
                "threads": variant.threads,
                "static_smem": static_smem[variant.file],
                "smem": variant.smem,
                "smem_per_rank": variant.smem_per_rank,
                "rings": variant.rings,
                "stages": variant.stages,
                "stage_bytes": variant.stage_bytes,
                "max_regs": variant.max_regs,
                "defines": variant.defines,
                "site": variant.site,
            }
            for variant in table.variants
        ],
        "policies": {
            policy.name: {"defined": list(policy.defined), "sass": policy.sass}
            for policy in table.policies.values()
        },
        "aliases": {
            alias.name: {
                "policies": list(alias.policies),
                "undefined": alias.undefined,
            }
            for alias in table.aliases.values()
        },
        "uses": table.uses,
        "paths": {name: list(order) for name, order in table.paths.items()},
    }


def current(root: Path) -> bool:
    """Whether deepep_ptx/_ptx holds every variant, rendered from what `root` holds now."""
    folder = Path(root) / OUTPUT
    try:
        index = read_index(folder / INDEX)
    except (FileNotFoundError, ValueError):     # not there, or damaged
        return False
    return index["inputs"] == inputs_digest(root) and all(
        (folder / entry["file"]).is_file() for entry in index["variants"]
    )


def generate(root: Path) -> list[Path]:
    """Render every variant into deepep_ptx/_ptx unless that is current; return what changed.

    What cannot be decoded is not written.  Needs ptx/gen/params.inc. Raises RenderError,
    TableError, LayoutError.
    """
    root = Path(root)
    if current(root):
        return []
    from deepep_ptx.toolchain import front_end  # needs NumPy, which current text does not

    folder = root / OUTPUT
    table = variants.load(root, params.load(root))
    outputs, static_smem = {}, {}
    for variant in table.variants:
        rendered = render_with_origins(variant, root)
        static_smem[variant.file] = front_end.decode_rendered(rendered).shared_bytes
        outputs[folder / variant.file] = rendered.text
    index = json.dumps(index_document(table, inputs_digest(root), static_smem), indent=1) + "\n"
    changed = [path for path, text in outputs.items() if write_if_changed(path, text)]
    for path in folder.rglob("*.ptx"):
        if path not in outputs:
            path.unlink()
            changed.append(path)
    # Last: it says that all the others are there.
    if write_if_changed(folder / INDEX, index):
        changed.append(folder / INDEX)
    return changed
