# SPDX-License-Identifier: MIT
"""The text of cysrc/gen/kernels.h: the kernels of variants.toml, numbered for the core and for
status records."""

from deepep_ptx.toolchain.variants import TABLE, Table


def header_text(table: Table) -> str:
    """The text of kernels.h."""
    lines = [
        f"/* SPDX-License-Identifier: MIT\n * Generated from {TABLE} by toolchain/kernels.py; do "
        "not edit. */",
        "#ifndef DEEPEP_PTX_GEN_KERNELS_H",
        "#define DEEPEP_PTX_GEN_KERNELS_H",
        "",
        "#include <stdint.h>",
        '#include "deepep_ptx/params.h"',
        "",
        "enum ep_kernel {",
        *(f"    {_constant(name)} = {number}," for name, number in table.numbers().items()),
        f"    EP_NUM_KERNELS = {len(table.numbers())}",
        "};",
        "",
        "struct ep_kernel_info {",
        "    const char *name;        /* of the kernel, or of a use of one */",
        "    uint32_t    param_bytes;",
        "    uint32_t    co_resident; /* 1: its CTAs wait for each other */",
        "};",
        "",
        "static const struct ep_kernel_info ep_kernels[EP_NUM_KERNELS] = {",
    ]
    for name in table.numbers():
        kernel = table.kernels[table.uses.get(name, name)]
        lines.append(f'    [{_constant(name)}] = {{"{name}", sizeof(struct {kernel.params}), '
                     f"{int(kernel.co_resident)}}},")
    return "\n".join([*lines, "};", "", "#endif"]) + "\n"


def _constant(name: str) -> str:
    return f"EP_KERNEL_{name.upper()}"
