# SPDX-License-Identifier: MIT
"""The text of cysrc/gen/isa.h, from the enums of deepep_ptx/emu/isa.py.

Runs before anything is built, so it loads isa.py by its path: deepep_ptx.emu imports numpy.
"""

import importlib.util
import sys
from pathlib import Path

_ISA = Path(__file__).resolve().parent.parent / "emu" / "isa.py"


def _load_isa():
    spec = importlib.util.spec_from_file_location("_deepep_ptx_isa", _ISA)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module          # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def header_text():
    """The text of isa.h."""
    lines = ["/* SPDX-License-Identifier: MIT",
             " * Generated from deepep_ptx/emu/isa.py by toolchain/isa_header.py; do not edit. */",
             "#ifndef DEEPEP_PTX_GEN_ISA_H", "#define DEEPEP_PTX_GEN_ISA_H", ""]
    for tag, prefix, members in _load_isa().C_ENUMS:
        lines.append(f"enum {tag} {{")
        lines += [f"    {prefix}_{m.name} = {m.value}," for m in members]
        lines[-1] = lines[-1].rstrip(",")
        lines.append("};")
        if tag != "emu_flag":
            lines.append(f"#define {prefix}_COUNT {len(members)}")
        lines.append("")
    lines.append("#endif")
    return "\n".join(lines) + "\n"
