# SPDX-License-Identifier: MIT
"""LogFMT-10, in which low-latency combine may send its rows: a sign and a code of nine bits.

A group is 128 consecutive elements of a row, a block 1024, or 512 where the row is no multiple of
1024.  A block travels encoded if in each of its groups the largest |x| is below 1 and above the
least; else as bfloat16.  NaN counts as larger than any number here, so that none is encoded.

With a group's log_max = log2(largest |x|), log_min = max(log2(least |x|), log_max - 32) and step =
(log_max - log_min) / 510, code 0 is 0 and code c from 1 to 511 is 2^(log_min + (c - 1) * step).
The codes c and c + 1 meet at the mean of their values; below code 1 stands 2^(log_min - step) for
that.
"""

import ml_dtypes
import numpy as np

from .floats import widen

GROUP = 128
BLOCK, SMALL_BLOCK = 1024, 512
MAX_CODE = 511
MAX_RANGE = 32      # of a group's logarithms
BF16_ONE = 0x3F80
# What float32 may add: logarithms down to -165 of 2^-22 relative error, roundings of such numbers,
# and results that are flushed to zero.
RELATIVE_SLACK, ABSOLUTE_SLACK = 2.0**-13, 2.0**-126


def logfmt_round_trip(x):
    """bfloat16 rows as their receiver sees them after they travelled as LogFMT-10.

    Computed in float64.  A kernel's float32 values are as near to x as `logfmt_error_bound` says;
    which blocks are encoded is exact.

    Args:
        x: bfloat16 [n, H], H a multiple of 512.

    Returns:
        float32 [n, H], is_encoded bool [n, blocks].

    Raises:
        ValueError: another dtype or shape.
    """
    log_x, log_min, step, is_encoded = _logarithms(x)
    # Logarithm of the threshold between two codes, from the lower one.
    middle = np.log2((1 + np.exp2(step)) / 2)
    codes = np.clip(np.floor((log_x - log_min - middle) / step + 2), 0, MAX_CODE)
    sizes = np.where(codes > 0, np.exp2(log_min + (codes - 1) * step), 0)
    wide = widen(x)
    values = np.copysign(sizes.reshape(x.shape), wide).astype(np.float32)
    return np.where(_of_elements(is_encoded, x), values, wide), is_encoded


def logfmt_error_bound(x):
    """How far from x a value may be that travelled as LogFMT-10, of float32 logarithms too.

    With a group's step, |x| * ((2^step - 1) / (2^step + 1) + 2^-13) + 2^-126: half the distance of
    two codes, at most 2.2 % of |x|, and what float32 adds.  Elements below 2^log_min, which are
    those smaller than the largest by more than 2^32, may be off by that, at most.  0 in blocks
    that are not encoded.

    The float32 formula has to subtract logarithms first: log2|x| / step and log_min / step alone
    are so large for a small step that their difference is wrong by more than a code, below code 1
    and above 511 too.

    Args:
        x: as in `logfmt_round_trip`.

    Returns:
        float64 [n, H].

    Raises:
        ValueError: another dtype or shape.
    """
    log_x, log_min, step, is_encoded = _logarithms(x)
    half = (np.exp2(step) - 1) / (np.exp2(step) + 1) + RELATIVE_SLACK
    bound = np.where(log_x < log_min, np.exp2(log_min) * (1 + RELATIVE_SLACK),
                     np.exp2(log_x) * half) + ABSOLUTE_SLACK
    return np.where(_of_elements(is_encoded, x), bound.reshape(x.shape), 0)


def _logarithms(x):
    """log2|x| [n, groups, 128], log_min and step [n, groups, 1], is_encoded [n, blocks].

    What groups of blocks that are not encoded have is of no use, but finite steps above 0.
    """
    if x.dtype != ml_dtypes.bfloat16 or x.ndim != 2 or x.shape[1] % SMALL_BLOCK:
        raise ValueError(f"x: must be bfloat16 [tokens, multiple of {SMALL_BLOCK}], "
                         f"got {x.dtype} {x.shape}")
    size = np.ascontiguousarray(x).view(np.uint16) & 0x7FFF     # in the order of |x|
    size = size.reshape(len(x), x.shape[1] // GROUP, GROUP)
    most, least = size.max(axis=2, keepdims=True), size.min(axis=2, keepdims=True)
    fits = (most < BF16_ONE) & (least < most)
    block = _block(x)
    is_encoded = fits.reshape(len(x), x.shape[1] // block, block // GROUP).all(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):        # of zeros, and of NaN
        log_x, log_max, log_min = (
            np.log2(widen(bits.view(ml_dtypes.bfloat16)).astype(np.float64))
            for bits in (size, most, least))
        log_min = np.where(fits, np.maximum(log_min, log_max - MAX_RANGE), 0)
        step = np.where(fits, (log_max - log_min) / (MAX_CODE - 1), 1)
    log_x = np.where(fits, log_x, 0)
    return log_x, log_min, step, is_encoded


def _block(x):
    return SMALL_BLOCK if x.shape[1] % BLOCK else BLOCK


def _of_elements(is_encoded, x):
    return np.repeat(is_encoded, _block(x), axis=1)
