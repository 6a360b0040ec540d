# SPDX-License-Identifier: MIT
"""Kernels around statements, and a statement for every spelling that isa.py allows."""

import re

from deepep_ptx.emu.isa import FORMS, TYPE_BITS, Space, Type

# Registers by type: r b32, d b64, f f32, q predicate, h b16, v and w vectors of b32; z b128, where
# a statement needs it, since older versions of PTX have none.
HEADER = """\
.version {version}
.target {target}
.address_size 64
.extern .shared .align 16 .b8 smem[];
.visible .entry k(.param .align 16 .b8 p[128])
.maxntid 256, 1, 1
{{
    .reg .b32 r<8>; .reg .b64 d<8>; .reg .f32 f<8>; .reg .pred q<8>;
    .reg .v4 .b32 v<4>; .reg .v2 .b32 w<4>; .reg .b16 h<8>;
"""
FIRST_LINE = HEADER.count("\n") + 1       # of the statements

_ADDRESS = {Space.PARAM: "[p + 16]", Space.SHARED: "[r7 + 16]", Space.GLOBAL: "[d7 + 16]"}


def kernel(*statements, version="7.8", target="sm_90"):
    """The text of a kernel with these statements, one a line, and a label $end behind them."""
    lines = "".join(f"{s}\n" for s in statements)
    header = HEADER.format(version=version, target=target)
    if re.search(r"\bz\d", lines):
        header = header.replace(" .reg .pred q<8>;", " .reg .pred q<8>; .reg .b128 z<8>;")
    return header + lines + "$end:\n    ret;\n}\n"


def _register(type_, number):
    letter = ("q" if type_ is Type.PRED else "f" if type_ is Type.F32 else
              "h" if type_ is Type.E4M3X2 else {64: "d", 128: "z"}.get(TYPE_BITS[type_], "r"))
    return f"{letter}{number}"


def _operand(spec, number, match):
    if spec.slot == "L":
        return "$end"
    if spec.slot == "sreg":
        return "%globaltimer" if TYPE_BITS[match.types[0]] == 64 else "%tid.x"
    if spec.slot == "n":
        return "1"
    if spec.address:
        return _ADDRESS[match.fields["space"]] if spec.slot == "a" else f"[r{number} + 16]"
    type_ = match.operand_type(spec)
    if spec.parts:
        letter = "h" if type_ is Type.B16 else _register(type_, "")
        return f"{{{letter}2, {letter}3}}"
    if match.fields["vec"] > 1 and type_ is not Type.B128:
        return "{" + ", ".join(_register(type_, i) for i in range(match.fields["vec"])) + "}"
    return ("!" * spec.negatable) + _register(type_, number) + ("|q5" * spec.pair)


def dropped(statement):
    """The statement with its destination left out."""
    head, _, operands = statement.partition(" ")
    first, _, others = operands.partition(",")
    return f"{head} _{'|q5' if '|' in first else ''},{others}"


def spellings(version=(9, 9), sm=999):
    """[(statement, Match)]: every combination of qualifiers that version and target allow."""
    found = []
    for form in FORMS:
        for head, match in form.spellings():
            if match.ptx <= version and match.sm <= sm:
                operands = [_operand(spec, n, match) for n, spec in enumerate(form.operands)]
                found.append((f"{head} {', '.join(operands)}".strip() + ";", match))
                if any(spec.sink for spec in form.operands):
                    found.append((dropped(found[-1][0]), match))
    return found
