# SPDX-License-Identifier: MIT
"""`deepep-ptx bench`: times of calls, alone and beside a GEMM; see `deepep_ptx.bench`."""

from deepep_ptx.bench.command import add

__all__ = ["add"]
