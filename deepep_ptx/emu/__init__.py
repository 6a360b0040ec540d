# SPDX-License-Identifier: MIT
"""The CPU executor's front end: PTX text to the arrays that cysrc/emu executes."""

from deepep_ptx.emu.kernel import KernelImage, load_image

__all__ = ["KernelImage", "load_image"]
