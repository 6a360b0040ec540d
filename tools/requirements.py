#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prints requirements from pyproject.toml, one a line: `build`, `base`, or the extras named."""

import argparse
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="+", metavar="GROUP")
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = document["project"]
    known = {
        **project["optional-dependencies"],
        "build": document["build-system"]["requires"],
        "base": project["dependencies"],
    }
    for group in parser.parse_args().groups:
        if group not in known:
            parser.error(f"unknown group {group!r}; known: {', '.join(sorted(known))}")
        for requirement in known[group]:
            # An extra of ours is asked for by name, or not at all.
            if not requirement.startswith(project["name"]):
                print(requirement)


if __name__ == "__main__":
    main()
