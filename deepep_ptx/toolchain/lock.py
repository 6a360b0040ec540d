# SPDX-License-Identifier: MIT
"""ptx/variants.lock: what every variant rendered and assembled to when it was last looked at.

Committed, so that a change of a macro, a generator or an assembler shows as a reviewable diff.
Read from what render.generate wrote last: bring that up to date first.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deepep_ptx.documents import check_fields, read_toml
from deepep_ptx.toolchain.errors import ToolchainError
from deepep_ptx.toolchain.files import write_if_changed
from deepep_ptx.toolchain.ptx_text import digest
from deepep_ptx.toolchain.ptxas import Tools, assemble
from deepep_ptx.toolchain.render import OUTPUT
from deepep_ptx.toolchain.variants import Table, Variant

LOCK = "ptx/variants.lock"
FIGURES = "figures.json"
_ENTRY = {"sha256": str, "registers": int, "spills": int, "shared": int, "sass": dict}


class LockError(ToolchainError):
    """variants.lock cannot be read; the text starts with its name."""


def entry(variant: Variant, text: str, tools: Tools | None) -> dict:
    """One variant's line: its text's hash and, given the tools, its figures. Raises ToolError."""
    line: dict = {"sha256": digest(text)}
    if tools:
        assembly = assemble(text, variant.arch, tools)
        line |= {
            "registers": assembly.registers,
            "spills": assembly.spills,
            "shared": assembly.shared,
            "sass": assembly.recorded(),
        }
    return line


def entries(table: Table, root: Path, tools: Tools | None) -> dict[str, dict[str, dict]]:
    """arch -> symbol -> entry, in table order, of the text in deepep_ptx/_ptx. Raises ToolError."""
    found: dict[str, dict[str, dict]] = {}
    folder = Path(root) / OUTPUT
    work = [(v, (folder / v.file).read_text(encoding="utf-8")) for v in table.variants]
    with ThreadPoolExecutor(2) as pool:
        lines = pool.map(lambda item: entry(*item, tools), work)
        for variant, line in zip(table.variants, lines, strict=True):
            found.setdefault(variant.arch, {})[variant.symbol] = line
    return found


def text_of(table: Table, root: Path, tools: Tools) -> str:
    """The lock file's text: TOML, a line per variant."""
    lines = [
        "# What each variant of variants.toml renders and assembles to; written by `make lock`.",
        f'ptxas = "{tools.ptxas_version}"',
        f'nvdisasm = "{tools.nvdisasm_version}"',
    ]
    for arch, variants in entries(table, root, tools).items():
        lines += ["", f"[{arch}]"]
        lines += [f"{symbol} = {_inline(line)}" for symbol, line in variants.items()]
    return "\n".join(lines) + "\n"


def _inline(value) -> str:
    """TOML of a number, a string or an inline table of them; keys with dots are quoted."""
    if isinstance(value, dict):
        items = (
            f"{key if key.isalnum() else _inline(key)} = {_inline(item)}"
            for key, item in value.items()
        )
        return f"{{ {', '.join(items)} }}" if value else "{}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def read(path: Path) -> dict:
    """The lock file's contents: ptxas, nvdisasm, arch -> symbol -> entry. Raises LockError."""
    try:
        locked = read_toml(path)
        check_fields(locked, {"ptxas": str, "nvdisasm": str}, "the file")
        for arch in filter(lambda name: name not in ("ptxas", "nvdisasm"), locked):
            check_fields(locked, {arch: dict}, "the file")
            for symbol, line in locked[arch].items():
                check_fields(line, _ENTRY, f"{arch}/{symbol}")
                check_fields(line["sass"], dict.fromkeys(line["sass"], int), f"{symbol}: sass")
    except (OSError, ValueError) as error:
        raise LockError(f"{LOCK}: {error}; `make lock` writes it anew") from error
    return locked


def ship(root: Path) -> list[Path]:
    """Write the lock's figures beside the rendered PTX, for users without the sources.

    Each entry keeps the hash of the text that it is about: a text may be newer than the lock.
    Returns the file if it changed; without a lock there is nothing to ship.
    """
    lock, shipped = Path(root) / LOCK, Path(root) / OUTPUT / FIGURES
    if not lock.is_file():
        return []
    locked = read(lock)
    figures = {
        "ptxas": locked.pop("ptxas"),
        "nvdisasm": locked.pop("nvdisasm"),
        "variants": {
            f"{arch}/{symbol}.ptx": {key: value for key, value in line.items() if key != "sass"}
            for arch, variants in locked.items()
            for symbol, line in variants.items()
        },
    }
    return [shipped] if write_if_changed(shipped, json.dumps(figures, indent=1) + "\n") else []


def check(table: Table, root: Path, tools: Tools | None) -> tuple[list[str], str | None]:
    """Compare the lock file with what the tree gives: (drifts, why figures were left out or None).

    A drift is a line for a variant: `arch/symbol: text, registers 48 -> 50, LDG.E 6 -> 5`.

    Figures are compared only with the programs that wrote them: another ptxas gives others.
    """
    locked = read(Path(root) / LOCK)
    wrote = (locked.pop("ptxas"), locked.pop("nvdisasm"))
    note = None
    if tools is None:
        note = f"ptxas {wrote[0]} is not there"
    elif (tools.ptxas_version, tools.nvdisasm_version) != wrote:
        note = (
            f"ptxas {tools.ptxas_version} and nvdisasm {tools.nvdisasm_version} are here, "
            f"{wrote[0]} and {wrote[1]} wrote the lock"
        )
    found = entries(table, root, None if note else tools)
    names = {(arch, symbol) for part in (locked, found) for arch in part for symbol in part[arch]}
    drifts = []
    for arch, symbol in sorted(names):
        name = f"{arch}/{symbol}"
        old, new = (part.get(arch, {}).get(symbol) for part in (locked, found))
        if old is None or new is None:
            drifts.append(f"{name}: {'not in the lock' if old is None else 'no such variant'}")
            continue
        if changes := list(_changes(old, new)):
            drifts.append(f"{name}: {', '.join(changes)}")
    return drifts, note


def _changes(old: dict, new: dict) -> Iterator[str]:
    """What differs between two entries, as far as `new` goes; counts of opcodes one by one."""
    for key, value in new.items():
        if key == "sha256" and value != old[key]:
            yield "text"
        elif key == "sass":
            for opcode in sorted(old[key].keys() | value.keys()):
                counts = (old[key].get(opcode, 0), value.get(opcode, 0))
                if counts[0] != counts[1]:
                    yield f"{opcode} {counts[0]} -> {counts[1]}"
        elif value != old[key]:
            yield f"{key} {old[key]} -> {value}"
