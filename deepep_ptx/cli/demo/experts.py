# SPDX-License-Identifier: MIT
"""The experts' function, which any machine computes to the same bits."""

from dataclasses import dataclass

import numpy as np

from deepep_ptx import reference


@dataclass(frozen=True, eq=False)
class Experts:
    """f_e of every expert: scale and bias float32 [E].

    f_e(x) = h(a_e * x + b_e), h(z) = z * min(max(z + 3, 0), 6) / 6 (hard SiLU), elementwise.
    """

    scale: np.ndarray
    bias: np.ndarray

    @classmethod
    def seeded(cls, num_experts, rng):
        """Scales around 1, biases around 0."""
        scale = 1 + 0.25 * rng.standard_normal(num_experts)
        return cls(scale.astype(np.float32),
                   (0.5 * rng.standard_normal(num_experts)).astype(np.float32))

    def apply(self, x, topk_idx, topk_weights, first_expert):
        """y = bf16(sum over k of w_k * f_e(x)) over local choices e = first_expert + topk_idx.

        Args:
            x: bfloat16 [n, H], or a pair (float8_e4m3fn [n, H], scales), used as float32.
            topk_idx: [n, K], local expert or -1.
            topk_weights: float32 [n, K].
            first_expert: global number of local expert 0.

        Returns:
            bfloat16 [n, H]; +0.0 for a row without a local choice.
        """
        y = self.weighted_sum(as_float32(x), topk_idx, topk_weights, first_expert)
        return reference.round_to_bf16(y)

    def weighted_sum(self, x, topk_idx, topk_weights, first_expert=0):
        """sum over k of w_k * f_e(x), k ascending, in the precision of x: float32 or float64."""
        real = x.dtype.type
        scale, bias, weights = (array.astype(real) for array in
                                (self.scale, self.bias, topk_weights))
        y = np.zeros_like(x)
        with np.errstate(invalid="ignore", over="ignore"):  # a file's rows may be anything
            for k in range(topk_idx.shape[1]):
                rows = np.nonzero(topk_idx[:, k] >= 0)[0]
                expert = first_expert + topk_idx[rows, k]
                z = x[rows] * scale[expert, None] + bias[expert, None]
                gate = np.clip(z + real(3), real(0), real(6))
                y[rows] += weights[rows, k, None] * (z * gate / real(6))
        return y


def as_float32(x):
    """Rows, bfloat16 or FP8 with scales, as float32."""
    if isinstance(x, tuple):
        return reference.per_token_cast_back(*x, np.float32)
    return reference.widen(x)
