# SPDX-License-Identifier: MIT
"""`deepep-ptx ab`: variants of a kernel side by side; see `deepep_ptx.ab`."""

from deepep_ptx.ab.command import add

__all__ = ["add"]
