# SPDX-License-Identifier: MIT
"""LogFMT-10, in which low-latency combine may send its rows: a sign and a code of nine bits.

A group is 128 consecutive elements of a row, a block 1024, or 512 where the row is no multiple of
1024.  A block travels encoded if in each of its groups the largest |x| is below 1 and above the
least; else as bfloat16.  NaN counts as larger than any number here, so that none is encoded.

With a group's log_max = log2(largest |x|), log_min = max(log2(least |x|), log_max - 32) and step =
(log_max - log_min) / 510, code 0 is 0 and code c from 1 to 511 is 2^(log_min + (c - 1) * step).
The codes c and c + 1 meet at the mean of their values; below code 1 stands 2^(log_min - step) for
that.

That is DeepEP V1's format (section "LogFMT" of its low-latency combine).  `logfmt_round_trip` is
what the kernels compute of it, bit for bit: float32 polynomials of fma alone, for the last bits of
lg2.approx and ex2.approx are a GPU's own.
"""

import ml_dtypes
import numpy as np

from .floats import fma_f32, widen

GROUP = 128
BLOCK, SMALL_BLOCK = 1024, 512
MAX_CODE = 511
MAX_RANGE = 32      # of a group's logarithms
BF16_ONE = 0x3F80
# What float32 may add: logarithms down to -165 of 2^-22 relative error, roundings of such numbers,
# and results that are flushed to zero.
RELATIVE_SLACK, ABSOLUTE_SLACK = 2.0**-13, 2.0**-126

# Polynomials, the least power first.  log2(1.5 + s) - (0.5 + s) where 1.5 + s is the significand of
# a bfloat16, to 1.3e-5; 2^f for |f| <= 1/2, to 2.6e-6 of it.
LOG2 = np.array([0.08495050, -0.03816038, -0.31974903, 0.14142340, -0.08001140, 0.04487238],
                np.float32)
EXP2 = np.array([0.99999928, 0.69312179, 0.24024744, 0.05591787, 0.00957010], np.float32)
RECIPROCAL_GUESS = 0x7EF311C3   # less the bits of a float32: those of its reciprocal, to 12 %
NEWTON_STEPS = 3                # of it, each of which squares that
ROUND = np.float32(1.5 * 2**23)     # a float32 plus this, minus this: the nearest integer


def logfmt_round_trip(x):
    """bfloat16 rows as their receiver sees them after they travelled as LogFMT-10.

    As near to x as `logfmt_error_bound` says.  Blocks that are not encoded, those with NaN or
    infinities among them, are x itself.

    Args:
        x: bfloat16 [n, H], H a multiple of 512.

    Returns:
        float32 [n, H], is_encoded bool [n, blocks].

    Raises:
        ValueError: another dtype or shape.
    """
    size, most, least, fits, is_encoded = _extremes(x)
    # Groups that are not encoded have something finite here, which goes nowhere.
    most, least = np.where(fits, most, 0x3F00), np.where(fits, least, 0x3E80)
    # By a power of two the largest is brought to [1, 2), or near 1 if it is subnormal.
    exponent = np.maximum(most >> 7, 1).astype(np.uint32)
    factor = ((254 - exponent) << 23).view(np.float32)
    log_min, step, per_step, middle = _scale_of(most, least, factor)
    size = np.where(fits, size, 0x3F00)
    distance = _log2(_wide(size) * factor) - log_min
    codes = fma_f32(distance, per_step, middle)
    codes = _nearest(np.minimum(np.maximum(codes, np.float32(0)), np.float32(MAX_CODE)))

    log = fma_f32(codes - np.float32(1), step, log_min)
    whole = _nearest(log)
    power = _polynomial(EXP2, log - whole)
    power = (power.view(np.int32) + (whole.astype(np.int32) << 23)).view(np.float32)
    sizes = np.where(codes > 0, power * (exponent << 23).view(np.float32), np.float32(0))
    wide = widen(x)
    values = np.copysign(sizes.reshape(x.shape), wide)
    return np.where(_of_elements(is_encoded, x), values, wide), is_encoded


def logfmt_error_bound(x):
    """How far from x a value may be that travelled as LogFMT-10, of float32 logarithms too.

    With a group's step, |x| * ((2^step - 1) / (2^step + 1) + 2^-13) + 2^-126: half the distance of
    two codes, at most 2.2 % of |x|, and what float32 adds.  Elements below 2^log_min, which are
    those smaller than the largest by more than 2^32, may be off by that, at most.  0 in blocks
    that are not encoded.

    A float32 formula has to subtract logarithms first: log2|x| / step and log_min / step alone are
    so large for a small step that their difference is wrong by more than a code, below code 1 and
    above 511 too.

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


def _extremes(x):
    """|x| [n, groups, 128] and each group's most and least [n, groups, 1], as the bits of a
    bfloat16, fits [n, groups, 1]: it could be encoded, is_encoded [n, blocks]."""
    if x.dtype != ml_dtypes.bfloat16 or x.ndim != 2 or x.shape[1] % SMALL_BLOCK:
        raise ValueError(f"x: must be bfloat16 [tokens, multiple of {SMALL_BLOCK}], "
                         f"got {x.dtype} {x.shape}")
    size = np.ascontiguousarray(x).view(np.uint16) & 0x7FFF     # in the order of |x|
    size = size.reshape(len(x), x.shape[1] // GROUP, GROUP)
    most, least = size.max(axis=2, keepdims=True), size.min(axis=2, keepdims=True)
    fits = (most < BF16_ONE) & (least < most)
    block = _block(x)
    is_encoded = fits.reshape(len(x), x.shape[1] // block, block // GROUP).all(axis=2)
    return size, most, least, fits, is_encoded


def _scale_of(most, least, factor):
    """log_min, step, 1 / step and what a code has beside distance / step, float32 [n, groups, 1].

    Codes are rounded to nearest: 1/2 less than where the floor would be taken.  Between two codes
    lies log2((1 + 2^step) / 2) / step = 1/2 + ln(2)/8 * step, to 1e-6.
    """
    log_max = _log2(_wide(most) * factor)
    log_min = np.maximum(_log2(_wide(least) * factor), log_max - np.float32(MAX_RANGE))
    span = log_max - log_min
    step = span * np.float32(1 / (MAX_CODE - 1))
    reciprocal = (np.uint32(RECIPROCAL_GUESS) - span.view(np.uint32)).view(np.float32)
    for _ in range(NEWTON_STEPS):
        reciprocal = fma_f32(reciprocal, fma_f32(-span, reciprocal, 1), reciprocal)
    return (log_min, step, reciprocal * np.float32(MAX_CODE - 1),
            fma_f32(step, -np.log(2) / 8, 1))


def _wide(size):
    """float32 of such bits."""
    return widen(size.astype(np.uint16))


def _log2(size):
    """Of float32 that have no more bits than a bfloat16; about -127 of subnormals."""
    bits = size.view(np.uint32)
    s = ((bits & 0x7F0000) | 0x3F800000).view(np.float32) - np.float32(1.5)
    line = ((bits >> 16).astype(np.int32) - 127 * 128).astype(np.float32)
    return fma_f32(line, 1 / 128, _polynomial(LOG2, s))


def _polynomial(coefficients, x):
    value = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = fma_f32(value, x, coefficient)
    return value


def _nearest(x):
    return (x + ROUND) - ROUND


def _logarithms(x):
    """log2|x| [n, groups, 128], log_min and step [n, groups, 1], is_encoded [n, blocks], in
    float64.

    What groups of blocks that are not encoded have is of no use, but finite steps above 0.
    """
    size, most, least, fits, is_encoded = _extremes(x)
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
