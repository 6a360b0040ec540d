# SPDX-License-Identifier: MIT
"""PTX sources through the C preprocessor: tokens, and for each of them where it comes from.

pcpp is the one front end, so the text depends on no compiler.
"""

import difflib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepep_ptx.toolchain.errors import ToolchainError
from deepep_ptx.toolchain.variants import Variant

# Only the preprocessor's names are in capitals; WARP_SZ is PTX's own constant.
_MACRO_NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9_]*)?")
_PTX_NAMES = ("WARP_SZ",)


class RenderError(ToolchainError):
    """A source cannot be rendered; the text starts with file:line."""


@dataclass(frozen=True)
class Place:
    """Where a token stands: a line of a source, for what a macro brings in that of its use.

    macro: (name, file, line) of the definition's line that the token is written on, None outside
    of macros.  included: (file, line) of the #include lines that lead here, the innermost first.
    """

    file: str
    line: int
    macro: tuple[str, str, int] | None = None
    included: tuple[tuple[str, int], ...] = ()

    def error(self, message: str) -> RenderError:
        """A RenderError that names this place and, behind the message, what led to it."""
        notes = []
        if self.macro:
            name, file, line = self.macro
            notes.append(f"; in macro {name}, {file}:{line}")
        notes += [f"; included at {file}:{line}" for file, line in self.included]
        return RenderError(f"{self.file}:{self.line}: {message}{''.join(notes)}")


@functools.cache
def _preprocessor_class():
    """pcpp's Preprocessor with its leniency taken out: what it would print or pass on, we raise.

    Imported on first use: a tree whose rendered text is current needs no pcpp.
    """
    try:
        from pcpp import Preprocessor
    except ImportError as error:
        raise RenderError(
            "the rendered PTX is not what ptx/ renders to, and rendering needs pcpp: "
            "pip install pcpp"
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
            self.included: tuple[tuple[str, int], ...] = ()
            self.written: dict[tuple[str, int], tuple[str, str, int]] = {}  # macros' lines
            self.expanding = None           # the file whose text is being expanded

        def file_name(self, source: str) -> str:
            """`source` relative to the tree, with forward slashes."""
            if source not in self.sources:
                self.sources[source] = Path(source).relative_to(self.root).as_posix()
            return self.sources[source]

        def place(self, token) -> Place:
            """Of a token that has been expanded."""
            macro = getattr(token, "written", None)
            return Place(self.file_name(token.source), token.lineno, macro, self.included)

        def on_error(self, file, line, msg):
            macro = self.written.get((file, line))
            if macro and self.linemacrodepth:       # in a macro that another one uses
                file, line = self.expanding, self.linemacro
            raise Place(self.file_name(file), line, macro, self.included).error(msg)

        def expand_macros(self, tokens, expanding_from=()):
            if tokens and not self.linemacrodepth:
                self.expanding = tokens[0].source
            return super().expand_macros(tokens, list(expanding_from))

        def include(self, tokens, original_line):
            outer = self.included
            at = self.file_name(original_line[0].source), original_line[0].lineno
            self.included = (at, *outer)
            yield from super().include(tokens, original_line)
            self.included = outer

        def on_directive(self, msg):
            self.on_error(self.lastdirective.source, self.lastdirective.lineno, msg)

        def on_directive_handle(self, directive, toks, ifpassthru, precedingtoks):
            handling = super().on_directive_handle(directive, toks, ifpassthru, precedingtoks)
            if not toks and directive.value not in ("else", "endif"):
                self.on_directive(f"#{directive.value} of nothing")
            return handling

        def on_include_not_found(self, is_malformed, is_system_include, curdir, includepath):
            self.included = self.included[1:]       # it is not inside of what is not there
            self.on_directive(f"cannot include {includepath}: there is no such file")

        def on_directive_unknown(self, directive, toks, ifpassthru, precedingtoks):
            self.on_directive(f"#{directive.value} {''.join(tok.value for tok in toks)}")

        def on_unknown_macro_in_expr(self, ident):
            self.on_directive(f"#if on {ident}: not defined")

        def define(self, tokens):
            if isinstance(tokens, str):             # a variant's own
                return super().define(tokens)
            name = tokens[0]
            for token in tokens:                    # its copies keep that through expansions
                token.written = name.value, self.file_name(token.source), token.lineno
                self.written[token.source, token.lineno] = token.written
            before = self.macros.get(name.value)
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
        "KERNEL_ID": str(variant.kernel_id),
        "SM_TARGET": variant.arch,
        "PTX_VERSION": variant.version,
        "ARCH_FORMS": f'"arch/{variant.arch}.inc"',
        "NUM_THREADS": variant.threads,
        "NUM_WARPS": variant.threads // 32,
        **variant.defines,
    }
    if variant.policy:
        defines["LD_POLICY"] = f'"policy/{variant.policy}.inc"'
    return defines


def tokens(variant: Variant, root: Path) -> Iterator[tuple[str, Place]]:
    """(text, place) of each token of the preprocessed source of `variant`. Raises RenderError."""
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
        place = preprocessor.place(token)
        if suspect and token.value == "(":
            raise _unknown_macro(*suspect, preprocessor.macros)
        if token.value.strip():
            suspect = None
        if token.type == preprocessor.t_ID:
            if token.value in preprocessor.macros:
                raise place.error(f"macro {token.value} is not expanded here")
            match = _MACRO_NAME.fullmatch(token.value)
            if match and token.value not in _PTX_NAMES:
                suspect = token.value, place
                if match[1]:
                    raise _unknown_macro(*suspect, preprocessor.macros)
        yield token.value, place


def _unknown_macro(name: str, place: Place, macros) -> RenderError:
    near = difflib.get_close_matches(name, macros, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return place.error(f"{name}: no macro, constant or instruction of that name{hint}")
