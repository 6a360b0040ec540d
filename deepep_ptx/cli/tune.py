# SPDX-License-Identifier: MIT
"""`deepep-ptx tune`: SMs and launch parameters, measured; see `deepep_ptx.tune`."""

from deepep_ptx.tune.command import add

__all__ = ["add"]
