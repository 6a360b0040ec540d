# SPDX-License-Identifier: MIT
"""`deepep-ptx env`: every environment variable that the package reads."""

import os
from dataclasses import asdict

from deepep_ptx.cli import environment
from deepep_ptx.cli.tables import print_json


def add(commands):
    env = commands.add_parser("env", help="environment variables: what they do, their values")
    env.add_argument("--json", action="store_true", help="for programs")
    env.set_defaults(command=_env)


def _env(args):
    documents = [_describe(variable) for variable in environment.VARIABLES]
    if args.json:
        print_json(documents)
    else:
        print("\n\n".join(map(_block, documents)))
    return 0


def _describe(variable):
    """The variable as a plain document; finding: what is wrong with its value, or None."""
    finding = environment.judge(variable, os.environ)
    return {
        "name": variable.name,
        "value": os.environ.get(variable.name),
        **{key: getattr(variable, key) for key in ("does", "accepts", "unset", "read")},
        "finding": finding and asdict(finding),
    }


def _block(document):
    value, finding = document["value"], document["finding"]
    lines = [f"{document['name']}  {'is not set' if value is None else f'= {value!r}'}"]
    if finding:
        lines.append(f"{finding['severity']:<9} {finding['text']}; {finding['fix']}")
    lines += [f"{key:<9} {document[key]}" for key in ("does", "accepts", "unset", "read")]
    return "\n    ".join(lines)
