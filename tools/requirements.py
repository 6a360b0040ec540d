#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prints requirements from pyproject.toml, one a line: `build`, `base`, or the extras and groups of
development named.

With --missing, prints nothing where the packages are installed, else one line, and fails.
"""

import argparse
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What the build can do without: an installed toolkit has cuda.h too, and rendered text that is
# current needs no renderer.  Where they are needed, setup.py and the renderer ask for them.
SAY_SO_THEMSELVES = ("nvidia-cuda-runtime", "pcpp")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="+", metavar="GROUP")
    parser.add_argument("--missing", action="store_true", help="check instead of printing")
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = document["project"]
    known = {
        **project["optional-dependencies"],
        **document["dependency-groups"],
        "build": document["build-system"]["requires"],
        "base": project["dependencies"],
    }
    args = parser.parse_args()
    for group in args.groups:
        if group not in known:
            parser.error(f"unknown group {group!r}; known: {', '.join(sorted(known))}")
    wanted = [requirement for group in args.groups for requirement in known[group]]
    if not args.missing:
        print(*wanted, sep="\n")
        return 0
    missing = {name_of(requirement): requirement for requirement in wanted
               if not installed(name_of(requirement))}
    if missing:
        print(f"{sys.executable} lacks {', '.join(missing.values())}: install them there, "
              "or leave out VENV=0 for an environment of the clone's own", file=sys.stderr)
    return 1 if missing else 0


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0]


def installed(name: str) -> bool:
    """Whether any version of a required package is there; what is too old says so when used."""
    if name in SAY_SO_THEMSELVES:
        return True
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
