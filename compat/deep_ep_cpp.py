# SPDX-License-Identifier: MIT
"""What consumers take from the extension module of DeepEP V1."""

from deep_ep import _names

from deepep_ptx import Buffer, Config, EventHandle

__all__ = ["Config", "EventHandle", "get_low_latency_rdma_size_hint", "is_sm90_compiled"]

get_low_latency_rdma_size_hint = Buffer.get_low_latency_rdma_size_hint
is_sm90_compiled = Buffer.is_sm90_compiled


def __getattr__(name):
    if name == "topk_idx_t":
        return _names.topk_idx_t()
    _names.raise_missing(__name__, name, {})
