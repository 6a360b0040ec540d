# SPDX-License-Identifier: MIT
"""Bytes of a row's payload on its way there and back."""

from deepep_ptx import reference
from deepep_ptx.cli.measure.traffic import row_bytes

FP32_BYTES = 4


def dispatch_row_bytes(settings):
    """Of a row on its way to a rank, scales included."""
    return row_bytes(settings.hidden, settings.dtype)


def combine_row_bytes(settings):
    """Of a row on its way back: bfloat16, but FP32 for the sums of `reduce` "rank"."""
    size = FP32_BYTES if settings.reduce == "rank" else reference.BF16_BYTES
    return settings.hidden * size
