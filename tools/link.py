#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes the virtual environment that runs this see the clone: `import deepep_ptx`, `deepep-ptx`.

Like an editable install, but what is built in place stays the only build: nothing is compiled.
"""

import argparse
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SCRIPT = """\
#!{python}
import sys

from {module} import {function}

sys.exit({function}())
"""


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    if sys.prefix == sys.base_prefix:
        print("link: this Python is no virtual environment", file=sys.stderr)
        return 1
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    Path(sysconfig.get_path("purelib"), f"{project['name']}.pth").write_text(
        f"{ROOT}\n", encoding="utf-8")
    for name, entry in project["scripts"].items():
        module, function = entry.split(":")
        script = Path(sysconfig.get_path("scripts"), name)
        script.write_text(
            SCRIPT.format(python=sys.executable, module=module, function=function),
            encoding="utf-8")
        script.chmod(0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main())
