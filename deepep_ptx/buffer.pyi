# SPDX-License-Identifier: MIT
from collections.abc import Callable
from os import PathLike
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, TypeAlias, overload

from .config import Config
from .event import EventOverlap
from .handle import EPHandle, LowLatencyHandle

# An array of the call's library: NumPy, torch, CuPy, or what exports an array protocol.
_Array: TypeAlias = Any
# bfloat16 rows, or fp8 rows with their scales.
_Rows: TypeAlias = _Array | tuple[_Array, _Array]
# None, an EventOverlap, an EventHandle, an event with cuda_event, or what has an .event of these.
_Event: TypeAlias = Any
# None, an int, or an object with __cuda_stream__, cuda_stream or ptr.
_Stream: TypeAlias = Any

_Reduce: TypeAlias = Literal["exact", "rank"]
# Of a call with return_recv_hook=True: launches what receives.
_Hook: TypeAlias = Callable[[], None]

class Buffer:
    num_sms: ClassVar[int]
    variants: dict[str, Any]
    tuning: Any
    last_num_sms: int | None
    group: Any
    rank: int
    group_size: int
    num_nvl_bytes: int
    num_rdma_bytes: int
    low_latency_mode: bool
    explicitly_destroy: bool
    enable_shrink: bool
    timeout_s: float | None
    zero_copy: bool | None
    arena_limit_bytes: int | None

    def __init__(
        self,
        group: Any,
        num_nvl_bytes: int = 0,
        num_rdma_bytes: int = 0,
        low_latency_mode: bool = False,
        num_qps_per_rank: int = 24,
        allow_nvlink_for_low_latency_mode: bool = True,
        allow_mnnvl: bool = False,
        explicitly_destroy: bool = False,
        enable_shrink: bool = False,
        *,
        policy: str | None = None,
        timeout_s: float | None = 100.0,
        zero_copy: bool | None = None,
        tuning: str | PathLike[str] | Literal[False] | None = None,
        stages: int | None = None,
        stage_bytes: int | None = None,
        arena_limit_bytes: int | None = None,
        reduce: _Reduce | None = None,
    ) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def reset(self) -> None: ...
    def destroy(self) -> None: ...
    def check(self) -> None: ...
    @staticmethod
    def set_num_sms(num_sms: int) -> None: ...
    @staticmethod
    def is_sm90_compiled() -> bool: ...
    @staticmethod
    def capture() -> EventOverlap: ...
    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config: ...
    @staticmethod
    def get_combine_config(num_ranks: int) -> Config: ...
    @staticmethod
    def get_size_hint(
        num_tokens: int,
        hidden: int,
        num_topk: int,
        num_ranks: int,
        *,
        itemsize: int = 2,
        num_scales: int = 0,
        topk_idx_bytes: int = 8,
        live_results: int = 1,
        scale_itemsize: int = 4,
    ) -> int: ...
    @property
    def last_launch(self) -> tuple[str, ...]: ...
    def stats(self) -> dict[str, int]: ...
    def get_comm_stream(self) -> Any: ...
    def get_local_buffer_tensor(
        self,
        dtype: Any,
        size: Any = None,
        offset: int = 0,
        use_rdma_buffer: bool = False,
    ) -> _Array: ...
    def get_combine_buffer(
        self, rows: int, hidden: int, *, like: _Array | None = None, stream: _Stream = None
    ) -> _Array: ...
    def count_received(self, handle: EPHandle) -> int: ...
    def get_dispatch_layout(
        self,
        topk_idx: _Array,
        num_experts: int,
        previous_event: _Event = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
        *,
        stream: _Stream = None,
    ) -> tuple[_Array, None, _Array, _Array, EventOverlap]: ...
    @overload
    def dispatch(
        self,
        x: _Rows,
        handle: None = None,
        num_tokens_per_rank: _Array | None = None,
        num_tokens_per_rdma_rank: None = None,
        is_token_in_rank: _Array | None = None,
        num_tokens_per_expert: _Array | None = None,
        topk_idx: _Array | None = None,
        topk_weights: _Array | None = None,
        expert_alignment: int = 1,
        num_worst_tokens: int = 0,
        config: Config | None = None,
        previous_event: _Event = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
        *,
        num_sms: int | None = None,
        stream: _Stream = None,
        combine_hidden: int = 0,
    ) -> tuple[Any, _Array | None, _Array | None, list[int], EPHandle, EventOverlap]: ...
    @overload
    def dispatch(
        self,
        x: _Rows,
        handle: EPHandle,
        num_tokens_per_rank: None = None,
        num_tokens_per_rdma_rank: None = None,
        is_token_in_rank: None = None,
        num_tokens_per_expert: None = None,
        topk_idx: None = None,
        topk_weights: None = None,
        expert_alignment: int = 1,
        num_worst_tokens: int = 0,
        config: Config | None = None,
        previous_event: _Event = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
        *,
        num_sms: int | None = None,
        stream: _Stream = None,
        combine_hidden: int = 0,
    ) -> tuple[Any, None, None, None, None, EventOverlap]: ...
    def combine(
        self,
        x: _Array,
        handle: EPHandle,
        topk_weights: _Array | None = None,
        bias: _Array | tuple[_Array | None, _Array | None] | None = None,
        config: Config | None = None,
        previous_event: _Event = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
        *,
        num_sms: int | None = None,
        stream: _Stream = None,
    ) -> tuple[_Array, _Array | None, EventOverlap]: ...
    @property
    def reduce(self) -> _Reduce | None: ...
    @staticmethod
    def get_low_latency_rdma_size_hint(
        num_max_dispatch_tokens_per_rank: int,
        hidden: int,
        num_ranks: int,
        num_experts: int,
        *,
        num_topk: int = 8,
        reduce: _Reduce | None = None,
    ) -> int: ...
    def clean_low_latency_buffer(
        self, num_max_dispatch_tokens_per_rank: int, hidden: int, num_experts: int
    ) -> None: ...
    def low_latency_dispatch(
        self,
        x: _Array,
        topk_idx: _Array,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        cumulative_local_expert_recv_stats: _Array | None = None,
        dispatch_wait_recv_cost_stats: _Array | None = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        *,
        x_global_scale: None = None,
        use_nvfp4: bool = False,
        num_sms: int | None = None,
        stream: _Stream = None,
    ) -> tuple[Any, _Array, LowLatencyHandle, EventOverlap, _Hook | None]: ...
    def low_latency_combine(
        self,
        x: _Array,
        topk_idx: _Array,
        topk_weights: _Array,
        handle: LowLatencyHandle,
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: _Array | None = None,
        combine_wait_recv_cost_stats: _Array | None = None,
        *,
        overlap: bool = False,
        packed_recv_count: None = None,
        comp_signal: None = None,
        block_m: int = 64,
        threshold: int = 0,
        src_signals: None = None,
        src_signal_expect_value: int = 0,
        num_sms: int | None = None,
        stream: _Stream = None,
    ) -> tuple[_Array, EventOverlap, _Hook | None]: ...
    def get_next_low_latency_combine_buffer(self, handle: LowLatencyHandle) -> _Array: ...
    def low_latency_update_mask_buffer(self, rank_to_mask: int, mask: bool = False) -> None: ...
    def low_latency_query_mask_buffer(self, mask_status: _Array) -> None: ...
    def low_latency_clean_mask_buffer(self) -> None: ...
