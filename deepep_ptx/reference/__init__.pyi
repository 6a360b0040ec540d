# SPDX-License-Identifier: MIT
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

_Array: TypeAlias = np.ndarray[Any, Any]
_Pair: TypeAlias = tuple[_Array, _Array]

MAX_TOPK: int
BF16_BYTES: int
BF16_NAN: int
FP8: type
FP8_MAX: int
FP8_NAN: int
FP8_GROUP: int
FP8_MIN_AMAX: np.float32

@dataclass(frozen=True, eq=False)
class Received:
    rank: int
    recv_x: _Array | _Pair
    recv_topk_idx: _Array | None
    recv_topk_weights: _Array | None
    recv_src_idx: _Array
    rank_prefix_matrix: _Array
    is_token_in_rank: _Array
    num_recv_tokens_per_expert_list: list[int]

    @property
    def num_recv(self) -> int: ...
    def rows_from(self, source: int) -> slice: ...

def layout(topk_idx: _Array, num_experts: int, num_ranks: int) -> tuple[_Array, _Array, _Array]: ...
def dispatch(
    xs: Sequence[_Array] | Sequence[_Pair],
    topk_idxs: Sequence[_Array],
    topk_weights: Sequence[_Array] | None,
    num_experts: int,
    num_worst_tokens: int = 0,
) -> list[Received]: ...
def cached_dispatch(
    xs: Sequence[_Array] | Sequence[_Pair], received: Sequence[Received]
) -> list[_Array] | list[_Pair]: ...
def combine(
    ys: Sequence[_Array],
    received: Sequence[Received],
    topk_weights: Sequence[_Array] | None = None,
    bias: Sequence[_Array | _Pair | None] | None = None,
) -> list[tuple[_Array, _Array | None]]: ...
@dataclass(frozen=True, eq=False)
class LowLatencyReceived:
    rank: int
    recv_x: _Array | _Pair
    recv_count: _Array
    src_info: _Array
    layout_range: _Array
    origin: _Array

    def rows_from(self, local_expert: int, source: int) -> slice: ...

def low_latency_dispatch(
    xs: Sequence[_Array],
    topk_idxs: Sequence[_Array],
    num_max_dispatch_tokens_per_rank: int,
    num_experts: int,
    use_fp8: bool = True,
    round_scale: bool = False,
    use_ue8m0: bool = False,
) -> list[LowLatencyReceived]: ...
def low_latency_combine(
    ys: Sequence[_Array],
    received: Sequence[LowLatencyReceived],
    topk_idxs: Sequence[_Array],
    topk_weights: Sequence[_Array],
    reduce: str = "exact",
    use_logfmt: bool = False,
) -> list[_Array]: ...
def logfmt_round_trip(x: _Array) -> _Pair: ...
def logfmt_error_bound(x: _Array) -> _Array: ...
def widen(x: _Array) -> _Array: ...
def round_to_bf16(x: _Array) -> _Array: ...
def fma_f32(a: Any, b: Any, c: Any) -> _Array: ...
def per_token_cast_to_fp8(x: _Array, round_scale: bool = False) -> _Pair: ...
def per_token_cast_back(x: _Array, scales: _Array, dtype: Any = "bfloat16") -> _Array: ...
