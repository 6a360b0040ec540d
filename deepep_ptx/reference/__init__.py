# SPDX-License-Identifier: MIT
"""Dispatch and combine in plain NumPy: what the kernels must compute, bit for bit.

Every function sees the inputs of *all* ranks at once, as lists in rank order, and nothing moves:
what a kernel does by stores into a peer's memory is an index expression here.  Symbols: R ranks,
T tokens of a rank, H hidden size, K top-k, E experts, L = E // R local experts; expert e lives on
rank e // L.

    layouts  = [layout(idx, E, R) for idx in topk_idxs]
    received = dispatch(xs, topk_idxs, topk_weights, E)
    ys       = [expert(r.recv_x) for r in received]
    results  = combine(ys, received)

In `dispatch`, x may be a pair (x, scales), as FP8 rows are; what makes such rows of bfloat16 ones
and back is `per_token_cast_to_fp8` and `per_token_cast_back`.

Low latency, with M = the most tokens of a rank:

    received = low_latency_dispatch(xs, topk_idxs, M, E, use_fp8=False)
    ys       = [expert(r.recv_x, r.recv_count) for r in received]
    results  = low_latency_combine(ys, received, topk_idxs, topk_weights)

The package needs NumPy, ml_dtypes and deepep_ptx's checks of integers only.
"""

from .checks import MAX_TOPK
from .floats import (
    BF16_BYTES,
    BF16_NAN,
    FP8,
    FP8_GROUP,
    FP8_MAX,
    FP8_MIN_AMAX,
    FP8_NAN,
    fma_f32,
    per_token_cast_back,
    per_token_cast_to_fp8,
    round_to_bf16,
    widen,
)
from .logfmt import logfmt_error_bound, logfmt_round_trip
from .low_latency import LowLatencyReceived, low_latency_combine, low_latency_dispatch
from .normal import Received, cached_dispatch, combine, dispatch, layout

__all__ = [
    "BF16_BYTES", "BF16_NAN", "FP8", "FP8_GROUP", "FP8_MAX", "FP8_MIN_AMAX", "FP8_NAN", "MAX_TOPK",
    "LowLatencyReceived", "Received", "cached_dispatch", "combine", "dispatch", "fma_f32",
    "layout", "logfmt_error_bound", "logfmt_round_trip", "low_latency_combine",
    "low_latency_dispatch", "per_token_cast_back", "per_token_cast_to_fp8", "round_to_bf16",
    "widen",
]
