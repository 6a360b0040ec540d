# SPDX-License-Identifier: MIT
"""PTX sources through the C preprocessor: one statement a line, with a line map in band.

pcpp is the one front end, so the text depends on no compiler; `.loc` lines say which source line
each instruction came from, and what a macro brings in counts as the line of the macro's use.
"""

import bisect
import difflib
import functools
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from deepep_ptx.toolchain import params, variants
from deepep_ptx.toolchain.errors import ToolchainError
from deepep_ptx.toolchain.files import write_if_changed
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
# Only the preprocessor's names are in capitals; WARP_SZ is PTX's own constant.
_MACRO_NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9_]*)?")
_PTX_NAMES = ("WARP_SZ",)
# What may follow an entry's parameter list; each on a line of its own.
_TUNING = re.compile(r"\s(?=\.(?:maxntid|reqntid|minnctapersm|maxnreg|noreturn)\b)")
_HEADER = re.compile(r"\.(entry|func)\b")
_LABEL = re.compile(r"[$%\w]+\s*:")
_OPERAND_COLUMN = 16


class RenderError(ToolchainError):
    """A source cannot be rendered; the text starts with file:line."""


@dataclass(frozen=True)
class Rendered:
    """The text, and for each of its lines (from 1) the source file and line it came from."""

    text: str
    origins: tuple[tuple[str, int] | None, ...]

    def origin(self, line: int) -> tuple[str, int] | None:
        """Source (file, line) of rendered line `line`, None for what the renderer wrote."""
        return self.origins[line - 1]


@dataclass(frozen=True)
class _Statement:
    text: str
    file: str
    line: int


@functools.cache
def _preprocessor_class():
    """pcpp's Preprocessor with its leniency taken out: what it would print or pass on, we raise.

    Imported on first use: a tree whose rendered text is current needs no pcpp.
    """
    try:
        from pcpp import Preprocessor
    except ImportError as error:
        raise RenderError(
            f"{OUTPUT}: not what ptx/ renders to, and rendering needs pcpp: pip install pcpp"
        ) from error

    class Strict(Preprocessor):
        def __init__(self, root: Path):
            super().__init__()
            self.root = root
            self.expand_filemacro = False
            self.rewrite_paths = []
            for name in list(self.macros):  # the date, the time: the text may not depend on them
                self.undef(name)
            self.sources: dict[str, str] = {}

        def file_name(self, source: str) -> str:
            """`source` relative to the tree, with forward slashes."""
            if source not in self.sources:
                self.sources[source] = Path(source).relative_to(self.root).as_posix()
            return self.sources[source]

        def on_error(self, file, line, msg):
            raise RenderError(f"{self.file_name(file)}:{line}: {msg}")

        def include(self, tokens, original_line):
            self.including = original_line[0]
            return super().include(tokens, original_line)

        def on_include_not_found(self, is_malformed, is_system_include, curdir, includepath):
            self.on_error(self.including.source, self.including.lineno,
                          f"cannot include {includepath}: there is no such file")

        def on_directive_unknown(self, directive, toks, ifpassthru, precedingtoks):
            self.on_error(directive.source, directive.lineno,
                          f"#{directive.value} {''.join(tok.value for tok in toks)}")

        def on_unknown_macro_in_expr(self, ident):
            raise RenderError(f"{self.file_name(self.source)}: #if on {ident}: not defined")

        def define(self, tokens):
            name = None if isinstance(tokens, str) else tokens[0]
            before = self.macros.get(name.value) if name else None
            super().define(tokens)
            if before is not None and not _same_macro(before, self.macros[name.value]):
                self.on_error(name.source, name.lineno,
                              f"{name.value} is defined already, at "
                              f"{self.file_name(before.source)}:{before.lineno}")

    return Strict


def _same_macro(one, other) -> bool:
    return one.arglist == other.arglist and [t.value for t in one.value] == [
        t.value for t in other.value
    ]


def _defines(variant: Variant) -> dict[str, object]:
    defines = {
        "KERNEL": variant.symbol,
        "KERNEL_ID": variant.kernel_id,
        "SM_TARGET": variant.arch,
        "PTX_VERSION": variant.version,
        "NUM_THREADS": variant.threads,
        "NUM_WARPS": variant.threads // 32,
        **variant.defines,
    }
    if variant.policy:
        defines["LD_POLICY"] = f'"policy/{variant.policy}.inc"'
    return defines


def _tokens(variant: Variant, root: Path):
    """Yield (text, file, line) for each token of the preprocessed source."""
    preprocessor = _preprocessor_class()(root)
    preprocessor.add_path(str(root / "ptx"))
    preprocessor.rewrite_paths = []
    for name, value in _defines(variant).items():
        preprocessor.define(f"{name} {value}")
    source = root / variant.source
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RenderError(f"{variant.source}: the source of {variant} is not there") from None
    preprocessor.parse(text, str(source))
    suspect = None                       # (name, place) of a word that may be a macro's
    while token := preprocessor.token():
        file = preprocessor.file_name(token.source)
        if suspect and token.value == "(":
            raise _unknown_macro(*suspect, preprocessor.macros)
        if token.value.strip():
            suspect = None
        if token.type == preprocessor.t_ID:
            place = f"{file}:{token.lineno}"
            if token.value in preprocessor.macros:
                raise RenderError(f"{place}: macro {token.value} is not expanded here")
            match = _MACRO_NAME.fullmatch(token.value)
            if match and token.value not in _PTX_NAMES:
                suspect = token.value, place
                if match[1]:
                    raise _unknown_macro(*suspect, preprocessor.macros)
        yield token.value, file, token.lineno


def _unknown_macro(name: str, place: str, macros) -> RenderError:
    near = difflib.get_close_matches(name, macros, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return RenderError(f"{place}: {name}: no macro, constant or instruction of that name{hint}")


def _statements(tokens, variant: Variant):
    """Group tokens into statements: braces of scopes, labels and line directives included.

    A statement's place is that of its first token; a brace inside a statement (a vector operand,
    an initialiser) does not end it, the brace after an entry's header does.
    """
    parts: list[str] = []
    place = (variant.source, 0)
    braces = 0                           # open ones of this statement
    for value, file, line in tokens:
        if not parts:
            if not value.strip():
                continue
            place = (file, line)
            if value in "{}":
                yield _Statement(value, *place)
                continue
        elif value == "{" and _HEADER.search("".join(parts)):
            yield _Statement("".join(parts), *place)
            yield _Statement(value, file, line)
            parts = []
            continue
        parts.append(value)
        text = "".join(parts)
        braces += (value == "{") - (value == "}")
        if braces < 0 or (value == ";" and (braces or _runs_on(text))):
            raise _not_closed(parts, place)
        if (
            value == ";"
            or ("\n" in value and text.startswith(_LINE_DIRECTIVES))
            or (value == ":" and _LABEL.fullmatch(text))
        ):
            yield _Statement(text, *place)
            parts = []
    if parts:
        raise _not_closed(parts, place)


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


def _not_closed(parts: list[str], place: tuple[str, int]) -> RenderError:
    return RenderError(f"{place[0]}:{place[1]}: statement is not closed: {_squeeze(parts)[:60]}")


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
        self.origins: list[tuple[str, int] | None] = []
        self.files: dict[str, int] = {}
        self.file_table_at = 0
        self.depth = 0
        self.located: tuple[str, int] | None = None
        self.put(
            f"// generated by tools/ptxgen.py from {variant.source}{policy}; do not edit", None
        )

    def put(self, text: str, origin: tuple[str, int] | None, outdent: int = 0) -> None:
        self.lines.append("    " * (self.depth - outdent) + text)
        self.origins.append(origin)

    def statement(self, statement: _Statement) -> None:
        text, origin = _squeeze([statement.text]), (statement.file, statement.line)
        if text == "{":
            self.put(text, origin)
            self.depth += 1
        elif text == "}":
            if self.depth == 0:
                raise RenderError(f"{origin[0]}:{origin[1]}: closing brace without its opening one")
            self.depth -= 1
            self.put(text, origin)
        elif text.startswith("."):
            if self.depth == 0:
                for line in _TUNING.split(text):
                    self.put(line, origin)
                if text.startswith(".address_size"):
                    self.file_table_at = len(self.lines)
            else:
                self.put(text, origin)
        elif text.endswith(":"):
            self.put(text, origin, outdent=1 if self.depth else 0)
        else:
            if origin != self.located:
                number = self.files.setdefault(origin[0], len(self.files) + 1)
                self.put(f".loc {number} {origin[1]} 0", origin)
                self.located = origin
            self.put(_aligned(text), origin)

    def finish(self, variant: Variant) -> Rendered:
        if self.depth:
            raise RenderError(f"{variant.source}: {self.depth} scopes are not closed")
        at, table = self.file_table_at, [f'.file {n} "{f}"' for f, n in self.files.items()]
        self.lines[at:at] = table
        self.origins[at:at] = [None] * len(table)
        return Rendered("\n".join(self.lines) + "\n", tuple(self.origins))


def render_with_origins(variant: Variant, root: Path) -> Rendered:
    """Render `variant` from the source tree `root`. Raises RenderError."""
    root = Path(root).resolve()
    writer = _Writer(variant)
    for statement in _statements(_tokens(variant, root), variant):
        writer.statement(statement)
    rendered = writer.finish(variant)
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
    names |= {module.__name__: Path(module.__file__) for module in (params, variants)}
    names[__name__] = Path(__file__)
    total = hashlib.sha256()
    for name, path in sorted(names.items()):
        data = path.read_bytes()
        total.update(f"{name}\0{len(data)}\0".encode() + data)
    return total.hexdigest()


def index_document(table: Table, inputs: str) -> dict:
    """What the package knows about its variants at run time: the content of variants.json."""
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
                "kernels": {kernel: list(order) for kernel, order in alias.kernels.items()},
            }
            for alias in table.aliases.values()
        },
    }


def current(root: Path) -> bool:
    """Whether deepep_ptx/_ptx holds every variant, rendered from what `root` holds now."""
    folder = Path(root) / OUTPUT
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    return index["inputs"] == inputs_digest(root) and all(
        (folder / entry["file"]).is_file() for entry in index["variants"]
    )


def generate(root: Path) -> list[Path]:
    """Render every variant into deepep_ptx/_ptx unless that is current; return what changed.

    Needs ptx/gen/params.inc. Raises RenderError, TableError, LayoutError.
    """
    root = Path(root)
    if current(root):
        return []
    folder = root / OUTPUT
    table = variants.load(root, params.load(root))
    outputs = {folder / variant.file: render(variant, root) for variant in table.variants}
    index = json.dumps(index_document(table, inputs_digest(root)), indent=1) + "\n"
    changed = [path for path, text in outputs.items() if write_if_changed(path, text)]
    for path in folder.rglob("*.ptx"):
        if path not in outputs:
            path.unlink()
            changed.append(path)
    # Last: it says that all the others are there.
    if write_if_changed(folder / INDEX, index):
        changed.append(folder / INDEX)
    return changed
