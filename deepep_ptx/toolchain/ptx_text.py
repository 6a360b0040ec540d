# SPDX-License-Identifier: MIT
"""A rendered text: where its lines came from, and what of it the machine sees."""

import bisect
import hashlib
import re
from dataclasses import dataclass

from deepep_ptx.toolchain.preprocess import Place


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
