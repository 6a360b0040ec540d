# SPDX-License-Identifier: MIT
"""`python -m deepep_ptx` is `deepep-ptx`."""

import sys

from deepep_ptx.cli import main

if __name__ == "__main__":
    sys.exit(main())
