# SPDX-License-Identifier: MIT
"""`deepep-ptx variants`: what ships, what it costs, and which policy picks it."""

import argparse

from deepep_ptx.cli import catalogue
from deepep_ptx.cli.tables import aligned, print_json

_HEAD = ("kernel", "arch", "path", "policy", "site", "defined", "symbol", "threads", "smem", "regs",
         "spills", "picked by")
_COLUMNS = """\
columns:
  policy     instruction form of payload loads; - where there are none, or with bulk copies
  site       whose memory payload is loaded from: source = nobody writes it meanwhile, peer = rows
             that other ranks wrote or write
  defined    whether PTX defines that form at that site
  smem       shared memory of a CTA in bytes: fixed, + what a launch adds for each rank
  regs       registers of a thread, spills: bytes, as ptxas gave them; these, and smem, are - where
             no figure ships that is about this very text
  picked by  the policies fast, safe and aggressive, on that arch
"""


def add(commands):
    variants = commands.add_parser(
        "variants", help="the PTX variants that ship, and what picks them", epilog=_COLUMNS,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    variants.add_argument("names", nargs="*", metavar="KERNEL",
                          help="kernels or symbols (default: all)")
    variants.add_argument("--arch", choices=catalogue.archs(), help="target (default: all)")
    variants.add_argument("--json", action="store_true", help="for programs")
    variants.set_defaults(command=_variants)


def _variants(args):
    rows = [catalogue.describe(variant) for variant in catalogue.find(args.names, args.arch)]
    if args.json:
        print_json({"figures": catalogue.figures_tools(), "variants": rows})
    else:
        print("\n".join(aligned([_HEAD, *map(_cells, rows)])))
    return 0


def _cells(row):
    smem = None
    if row["static_smem"] is not None:
        per_rank = f"+{row['smem_per_rank']}/rank" if row["smem_per_rank"] else ""
        smem = f"{row['smem'] + row['static_smem']}{per_rank}"
    cells = [row["kernel"], row["arch"], row["path"], row["policy"], row["site"],
             {True: "yes", False: "NO", None: None}[row["defined"]], row["symbol"], row["threads"],
             smem, row["registers"], row["spills"], ", ".join(row["picked_by"])]
    return ["-" if cell is None else str(cell) for cell in cells]
