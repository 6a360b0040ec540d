# SPDX-License-Identifier: MIT
"""What the CPU executor's front end has against a rendered text, told at the source."""

import re

from deepep_ptx.emu.decode import KernelImage, decode
from deepep_ptx.emu.parse import Module, parse
from deepep_ptx.errors import PtxError
from deepep_ptx.toolchain.ptx_text import Rendered

_LINE_MAP = re.compile(r"^[ \t]*\.(?:file|loc)\b.*$", re.MULTILINE)


def parse_rendered(rendered: Rendered) -> Module:
    """The syntax tree of a text without its line map: errors, and positions, are of rendered lines.

    Raises PtxError.
    """
    return parse(_LINE_MAP.sub("", rendered.text))


def decode_rendered(rendered: Rendered) -> KernelImage:
    """The decoded entry of a text: every instruction, name, label and operand is one.

    Raises RenderError at the source, with what brings the line in: macro, inclusions.
    """
    try:
        module = parse_rendered(rendered)
        (entry,) = module.entries
        return decode(module, entry)
    except PtxError as error:
        message, statement = str(error).splitlines()[:2]
        message = message.removeprefix(f"{error.file}:{error.line}: ")
        place = rendered.place(error.line)
        raise place.error(f"{message}: {statement.strip(' ;')}") from error
