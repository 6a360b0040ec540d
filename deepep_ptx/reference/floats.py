# SPDX-License-Identifier: MIT
"""The floating-point types of rows, and roundings to them as the kernels do."""

import ml_dtypes
import numpy as np

BF16_BYTES = 2
BF16_NAN = 0x7FFF  # the one NaN that cvt.rn.bf16x2.f32 makes, whatever NaN goes in
FP8 = ml_dtypes.float8_e4m3fn
FP8_MAX = 448
FP8_MAX_RECIPROCAL = np.float32(1 / FP8_MAX)
FP8_NAN = 0x7F  # likewise, of cvt.rn.satfinite.e4m3x2.f32
FP8_GROUP = 128  # consecutive elements of a row that share a scale
FP8_MIN_AMAX = np.float32(1e-4)
FP32_NAN = 0x7FFFFFFF  # of fma.rn.f32


def widen(x):
    """bfloat16 to float32, exactly: the 16 bits become the upper half."""
    return (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def round_to_bf16(x):
    """float32 to bfloat16 as cvt.rn does: to nearest, ties to even, every NaN to 0x7fff.

    ml_dtypes keeps a NaN's sign and payload, hence by hand.
    """
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    upper = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    upper[np.isnan(x)] = BF16_NAN
    return upper.view(ml_dtypes.bfloat16)


def fma_f32(a, b, c):
    """a * b + c of float32 arrays with one rounding, as fma.rn.f32 does it; shapes broadcast.

    To nearest, ties to even, with subnormals; every NaN is 0x7fffffff.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # Inf and NaN are values like others
        a, b, c = (np.asarray(x, dtype=np.float32).astype(np.float64) for x in (a, b, c))
        product = a * b                     # exact: 24 bits by 24
        total = product + c
        # What that sum lost (Knuth), exactly.
        of_c = total - product
        lost = (product - (total - of_c)) + (c - of_c)
        # To odd, so that the second rounding decides as one of the exact sum would: of the two
        # float64 around that, the one with the odd last bit.
        bits = np.array(total).view(np.int64)
        to_odd = np.isfinite(total) & (lost != 0) & (bits & 1 == 0)
        bits += np.where(to_odd, np.where((lost > 0) == (total > 0), 1, -1), 0)
        result = bits.view(np.float64).astype(np.float32)
    result.view(np.uint32)[np.isnan(result)] = FP32_NAN
    return result


def per_token_cast_to_fp8(x, round_scale=False):
    """bfloat16 rows as FP8 E4M3 with a scale for every 128 elements; DeepEP's cast.

    In float32, for each group of 128: amax = max(1e-4, largest |x|), scale = amax / 448, element =
    x * (448 / amax), to nearest, ties to even.  round_scale: scale is the least power of two that
    is not below amax / 448, and element = x / scale.  NaN becomes 0x7f and does not count for
    amax.

    Args:
        x: bfloat16 [T, H], H a multiple of 128.
        round_scale: scales that are powers of two.

    Returns:
        float8_e4m3fn [T, H], float32 scales [T, H / 128].

    Raises:
        ValueError: another dtype or shape.
    """
    groups, amax = _groups(x)
    return _cast_groups(groups, amax, amax / FP8_MAX, round_scale)


def low_latency_cast_to_fp8(x, round_scale=False):
    """bfloat16 rows as FP8 E4M3, as low-latency dispatch casts them.

    It takes, returns and raises what `per_token_cast_to_fp8` does, and differs in the scale, which
    is a product: amax * float32(1/448), and with round_scale the least power of two that is not
    below that.  An infinity among 128 elements makes their scale infinite; itself it becomes 0x7f,
    the others 0.
    """
    groups, amax = _groups(x)
    return _cast_groups(groups, amax, amax * FP8_MAX_RECIPROCAL, round_scale)


def per_token_cast_back(x, scales, dtype="bfloat16"):
    """What `per_token_cast_to_fp8` made, as bfloat16 or float32: element * scale in float32.

    Args:
        x: float8_e4m3fn [T, H].
        scales: float32 [T, H / 128].
        dtype: of the result; float32 is the product itself, bfloat16 rounds it.

    Raises:
        ValueError: another dtype or shape.
    """
    if x.dtype != FP8 or x.ndim != 2 or x.shape[1] % FP8_GROUP:
        raise ValueError(f"x: must be float8_e4m3fn [tokens, multiple of {FP8_GROUP}], "
                         f"got {x.dtype} {x.shape}")
    want = (len(x), x.shape[1] // FP8_GROUP)
    if scales.dtype != np.float32 or scales.shape != want:
        raise ValueError(f"scales: must be float32 {want}, got {scales.dtype} {scales.shape}")
    groups = x.astype(np.float32).reshape(*want, FP8_GROUP)
    with np.errstate(invalid="ignore", over="ignore"):  # Inf and NaN are values like others
        product = (groups * scales[:, :, None]).reshape(x.shape)
    dtype = np.dtype(dtype)
    if dtype == np.float32:
        return product
    if dtype == ml_dtypes.bfloat16:
        return round_to_bf16(product)
    raise ValueError(f"dtype: must be bfloat16 or float32, got {dtype}")


def _groups(x):
    """x as float32 [T, groups, 128], and each group's largest |x|, at least FP8_MIN_AMAX."""
    if x.dtype != ml_dtypes.bfloat16 or x.ndim != 2 or x.shape[1] % FP8_GROUP:
        raise ValueError(f"x: must be bfloat16 [tokens, multiple of {FP8_GROUP}], "
                         f"got {x.dtype} {x.shape}")
    groups = widen(x).reshape(len(x), x.shape[1] // FP8_GROUP, FP8_GROUP)
    return groups, np.fmax(np.fmax.reduce(np.abs(groups), axis=2), FP8_MIN_AMAX)


def _cast_groups(groups, amax, scales, round_scale):
    """Elements [T, H] of groups, and the scales, as powers of two on request."""
    factors = FP8_MAX / amax
    if round_scale:
        # Any bit of the mantissa carries into the exponent.
        scales = ((scales.view(np.uint32) + 0x7FFFFF) & 0x7F800000).view(np.float32)
        factors = 1 / scales
    with np.errstate(invalid="ignore"):  # Inf * 0
        scaled = groups * factors[:, :, None]
    elements = scaled.astype(FP8)        # nothing is so far above 448 that it would not round to it
    elements.view(np.uint8)[np.isnan(scaled)] = FP8_NAN
    return elements.reshape(len(groups), groups.shape[1] * FP8_GROUP), scales
