# SPDX-License-Identifier: MIT
"""Where the CUDA driver's header lies; nothing is linked against."""

import os
import sys
from pathlib import Path

from deepep_ptx.toolchain.errors import ToolchainError


class HeaderError(ToolchainError):
    """There is no cuda.h."""


def include() -> Path:
    """The folder of cuda.h: of the nvidia-cuda-runtime wheel, else of an installed toolkit."""
    places = [Path(entry) / "nvidia/cu13/include" for entry in sys.path]
    places.append(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include")
    for place in places:
        if (place / "cuda.h").exists():
            return place
    raise HeaderError("cuda.h is not there: pip install nvidia-cuda-runtime, or set CUDA_HOME")
