# SPDX-License-Identifier: MIT
"""The assembler and disassembler of the CUDA toolkit's wheels, and what they say about a kernel."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from deepep_ptx.toolchain.errors import ToolchainError

# Opcodes whose spelling is the point of this project: memory, ordering, barriers.
_RECORDED = re.compile(r"(LDG|STG|MEMBAR|CCTL|ATOM|RED|BAR)(\.|G|S|$)")


class ToolError(ToolchainError):
    """ptxas or nvdisasm is missing or refuses; the text says which and why."""


class AssemblyError(ToolError):
    """ptxas refuses a text; `messages` holds (line of that text or None, message)."""

    def __init__(self, messages: list[tuple[int | None, str]]):
        super().__init__("; ".join(message for _, message in messages))
        self.messages = messages


@dataclass(frozen=True)
class Tools:
    """Paths and versions of the two programs."""

    ptxas: str
    nvdisasm: str
    ptxas_version: str
    nvdisasm_version: str


@dataclass(frozen=True)
class Sass:
    """One machine instruction; `line` is the PTX text's, `targets` are instruction numbers,
    `operands` as the disassembler prints them."""

    opcode: str
    line: int | None
    targets: tuple[int, ...]
    falls_through: bool
    operands: str = ""


@dataclass(frozen=True)
class Assembly:
    """What a kernel became; `spills` counts bytes stored and loaded, `shared` is static bytes."""

    registers: int
    spills: int
    shared: int
    sass: tuple[Sass, ...]

    def count(self, opcode: str) -> int:
        return sum(item.opcode == opcode for item in self.sass)

    def recorded(self) -> dict[str, int]:
        """Counts of the opcodes that the lock file keeps, by spelling."""
        names = sorted(item.opcode for item in self.sass if _RECORDED.match(item.opcode))
        return {name: names.count(name) for name in dict.fromkeys(names)}


def _locate(name: str) -> str:
    """The wheel's program where cuda.pathfinder is installed to find it, else that on PATH."""
    try:
        from cuda.pathfinder import find_nvidia_binary_utility
    except ImportError:
        path = None
    else:
        path = find_nvidia_binary_utility(name)
    path = path or shutil.which(name)
    if path is None:
        raise ToolError(f"{name} is not there: pip install nvidia-cuda-nvcc nvidia-cuda-nvdisasm")
    return path


def find() -> Tools:
    """Find both programs and ask their versions. Raises ToolError."""
    paths, versions = {}, {}
    for name in ("ptxas", "nvdisasm"):
        paths[name] = _locate(name)
        text = subprocess.run([paths[name], "--version"], capture_output=True, text=True).stdout
        match = re.search(r"\bV(\d+\.\d+\.\d+)", text)
        if not match:
            raise ToolError(f"{name}: no version in what --version prints: {text.strip()!r}")
        versions[name] = match[1]
    return Tools(paths["ptxas"], paths["nvdisasm"], versions["ptxas"], versions["nvdisasm"])


def assemble(text: str, arch: str, tools: Tools) -> Assembly:
    """Assemble and disassemble one module of one kernel. Raises AssemblyError, ToolError."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [tools.ptxas, "-v", "-lineinfo", f"-arch={arch}", str(source), "-o", str(cubin)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise AssemblyError(_messages(done.stderr))
        listing = subprocess.run(
            [tools.nvdisasm, "-c", "-gp", str(cubin)], capture_output=True, text=True
        )
    if listing.returncode or listing.stderr.strip():
        raise ToolError(f"nvdisasm: {listing.stderr.strip() or listing.returncode}")

    def number(pattern: str) -> int:
        return sum(int(match) for match in re.findall(pattern, done.stderr))

    return Assembly(
        registers=number(r"Used (\d+) registers"),
        spills=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        shared=number(r"(\d+) bytes smem"),
        sass=_parse(listing.stdout),
    )


def _messages(stderr: str) -> list[tuple[int | None, str]]:
    found = [
        (int(match[1]), f"ptxas: {match[2].strip()}")
        for match in re.finditer(r"line (\d+);\s*(?:error|fatal)\s*:\s*(.*)", stderr)
    ]
    return found or [(None, f"ptxas: {stderr.strip()}")]


_LINE = re.compile(r'\s*//## File "[^"]*", line (\d+)')
_LABEL = re.compile(r"(\.L_\w+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(@!?\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_ENDS = ("EXIT", "RET", "BRA")


def _parse(listing: str) -> tuple[Sass, ...]:
    line = None
    labels: dict[str, int] = {}
    found: list[tuple[str, int | None, list[str], bool, str]] = []
    for text in listing.splitlines():
        if match := _LINE.match(text):
            line = int(match[1])
        elif match := _LABEL.match(text):
            labels[match[1]] = len(found)
        elif match := _INSTRUCTION.match(text):
            guard, opcode, operands = match.groups()
            ends = opcode.split(".")[0] in _ENDS and not guard
            # A branch may carry its condition as an operand: only the bare form always jumps.
            jumps = not ends or not operands.strip() or operands.strip().startswith("`")
            found.append(
                (opcode, line, _TARGET.findall(operands), not (ends and jumps), operands.strip())
            )
    return tuple(
        Sass(opcode, line, tuple(labels[t] for t in targets if labels[t] < len(found)), *more)
        for opcode, line, targets, *more in found
    )
