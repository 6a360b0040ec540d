# SPDX-License-Identifier: MIT
"""`deepep-ptx render`: the rendered PTX, for reading, for other loaders, for editing a copy."""

from pathlib import Path

from deepep_ptx import select
from deepep_ptx.cli import catalogue
from deepep_ptx.cli.options import HELP


def add(commands):
    render = commands.add_parser(
        "render", help="write out the PTX that ships",
        description="Writes DIR/<arch>/<symbol>.ptx.  One symbol without --out is printed, on the "
                    "newest target that has it.")
    render.add_argument("names", nargs="*", metavar="KERNEL|SYMBOL",
                        help="kernels, which stand for all their variants, or symbols (default: "
                             "everything that ships)")
    render.add_argument("--arch", choices=catalogue.archs(), help="target (default: all)")
    render.add_argument("--policy", help="only what this policy picks: "
                                         f"{HELP['policy'].partition(': ')[2].partition(' (')[0]}")
    where = render.add_mutually_exclusive_group()
    where.add_argument("--out", metavar="DIR", type=Path, help="folder to write to")
    where.add_argument("--stdout", action="store_true", help="print instead of writing")
    render.add_argument("--force", action="store_true", help="overwrite files that differ")
    render.set_defaults(command=_render)


def _render(args):
    variants = catalogue.find(args.names, args.arch, args.policy)
    texts = {variant["file"]: select.read_text(variant) for variant in variants}
    if args.out:
        _write(texts, args.out, args.force)
    elif args.stdout:
        print("\n".join(texts.values()), end="")
    elif len({variant["symbol"] for variant in variants}) == 1:
        newest = max(variants, key=lambda variant: catalogue.archs().index(variant["arch"]))
        print(texts[newest["file"]], end="")
    else:
        raise ValueError(f"say where {len(texts)} files go: --out DIR, or --stdout")
    return 0


def _write(texts, folder, force):
    """Write each text that is not there yet; nothing at all where that would lose a file."""
    for name, text in texts.items():
        path = folder / name
        if path.exists() and not force and _read(path) != text:
            raise ValueError(f"--out: {path} is there and differs; --force overwrites it")
    for name, text in texts.items():
        path = folder / name
        if path.exists() and _read(path) == text:
            print(f"{path} is there already")
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ValueError(f"--out: cannot write {path}: {error.strerror}") from error
        print(f"wrote {path}")


def _read(path):
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"--out: cannot read {path}: {error.strerror}") from error
