# SPDX-License-Identifier: MIT
"""What the assembler made of the contenders: registers, opcodes, and what moved.

It is the pinned ptxas that speaks here.  On a GPU the driver assembles the same PTX with its own.
"""

import difflib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from deepep_ptx import select
from deepep_ptx.toolchain import ptxas


@dataclass(frozen=True)
class Look:
    """assemblies: of the contenders, in their order."""

    tools: ptxas.Tools
    assemblies: list[ptxas.Assembly]

    def record(self, number):
        """The JSON of one contender."""
        assembly = self.assemblies[number]
        return {"registers": assembly.registers, "spills": assembly.spills,
                "shared": assembly.shared, "opcodes": dict(sorted(opcodes(assembly).items()))}


def look(contenders, arch):
    """The `Look` of `contenders`.

    Raises:
        ToolError: ptxas or nvdisasm is not there, or refuses.
    """
    tools = ptxas.find()
    with ThreadPoolExecutor(2) as pool:
        return Look(tools, list(pool.map(
            lambda c: ptxas.assemble(select.read_text(c.variant), arch, tools), contenders)))


def opcodes(assembly):
    """Opcode -> its count."""
    return Counter(item.opcode for item in assembly.sass)


def changes(old, new):
    """Opcode -> (count in `old`, count in `new`) where these counts by opcode differ, by name."""
    both = ((opcode, (old.get(opcode, 0), new.get(opcode, 0))) for opcode in sorted(old | new))
    return {opcode: counts for opcode, counts in both if counts[0] != counts[1]}


def normalised(assembly):
    """Lines: opcodes in order, with numbered labels, without addresses and registers, which differ
    wherever one instruction more or less comes before."""
    sass = assembly.sass
    places = sorted({target for item in sass for target in item.targets})
    labels = {place: f"L{number}" for number, place in enumerate(places)}
    lines = []
    for number, item in enumerate(sass):
        if number in labels:
            lines.append(f"{labels[number]}:")
        lines.append("    " + " ".join([item.opcode, *(labels[t] for t in item.targets)]))
    return lines


def diff(old_name, old, new_name, new):
    """Unified diff of two assemblies' normalised lines."""
    return list(difflib.unified_diff(normalised(old), normalised(new), old_name, new_name,
                                     lineterm=""))
