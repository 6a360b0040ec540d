# SPDX-License-Identifier: MIT
from dataclasses import dataclass

DEFAULT_SMS: int

@dataclass(frozen=True)
class Config:
    num_sms: int = 20
    num_max_nvl_chunked_send_tokens: int = 6
    num_max_nvl_chunked_recv_tokens: int = 256
    num_max_rdma_chunked_send_tokens: int = 6
    num_max_rdma_chunked_recv_tokens: int = 256

    def get_nvl_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int: ...
    def get_rdma_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int: ...

def get_dispatch_config(num_ranks: int, num_sms: int = 20) -> Config: ...
def get_combine_config(num_ranks: int, num_sms: int = 20) -> Config: ...
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
def slot_bytes(
    num_rows: int,
    hidden: int,
    num_topk: int,
    itemsize: int,
    num_scales: int,
    topk_idx_bytes: int,
    scale_itemsize: int = 4,
) -> int: ...
def staging_bytes(num_tokens: int, hidden: int, num_topk: int, num_ranks: int) -> int: ...
