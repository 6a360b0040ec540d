# SPDX-License-Identifier: MIT
"""What the consumers' programs share: where they run, and inputs, of which each rank makes those of
all ranks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ml_dtypes import bfloat16, float8_e4m3fn

from deepep_ptx import reference

EXPERTS_PER_RANK = 4
TOPK = 4
PACKED = 0, 8, 16, 24       # where the exponents of UE8M0 scales lie in an int32
# Types that NumPy and torch do not exchange, by the integers that they do.
VIA = {np.dtype(bfloat16): (np.int16, torch.bfloat16),
       np.dtype(float8_e4m3fn): (np.uint8, torch.float8_e4m3fn)}


@dataclass
class Place:
    """Where a rank runs.

    group: what the consumer gives to `Buffer`.  barrier(): of all ranks.
    """

    group: Any
    rank: int
    size: int
    device: torch.device
    barrier: Callable[[], None]

    @classmethod
    def of(cls, comm):
        """Of a rank of `run_ranks`."""
        device = torch.device("cpu")
        if comm.executor.name == "cuda":
            device = torch.device("cuda", comm.executor.device)
            torch.cuda.set_device(device)
        return cls(comm, comm.rank, comm.size, device, comm.barrier)

    @property
    def num_experts(self):
        return self.size * EXPERTS_PER_RANK

    def give(self, array):
        """A NumPy array as a tensor on this rank's device, of memory of torch's."""
        array = np.array(array, order="C")
        via, dtype = VIA.get(array.dtype, (None, None))
        tensor = torch.from_numpy(array if via is None else array.view(via))
        tensor = tensor.to(self.device, copy=True)
        return tensor if via is None else tensor.view(dtype)


# -- inputs -----------------------------------------------------------------------------------

@dataclass
class Batch:
    """One batch of every rank, NumPy arrays by rank."""

    xs: list
    topk_idxs: list
    topk_weights: list

    def received(self, num_experts, xs=None):
        """What every rank receives: of `xs` in place of the batch's own."""
        return reference.dispatch(xs or self.xs, self.topk_idxs, self.topk_weights, num_experts)


def numbers(rng, *shape, scale=1.0):
    """bfloat16."""
    return (rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)).astype(bfloat16)


def make_batch(place, seed, num_tokens, hidden, unused=0.0):
    """A batch of `num_tokens` by rank; a share of the choices is `unused`, -1."""
    xs, idxs, weights = [], [], []
    for rank, count in enumerate(num_tokens):
        rng = np.random.default_rng([seed, rank])
        xs.append(numbers(rng, count, hidden))
        idx = np.argsort(rng.random((count, place.num_experts)), axis=1)[:, :TOPK]
        idx = np.ascontiguousarray(idx, np.int64)
        idx[rng.random(idx.shape) < unused] = -1
        idxs.append(idx)
        weights.append(rng.random((count, TOPK), dtype=np.float32))
    return Batch(xs, idxs, weights)


def fp8_pairs(xs):
    """Rows of every rank as FP8 with a scale for every 128 elements."""
    return [reference.per_token_cast_to_fp8(x) for x in xs]


def uneven(place, seed, most):
    """A number of tokens per rank, one of them 0 at times."""
    rng = np.random.default_rng([seed, 77])
    return [int(n) for n in rng.integers(0, most + 1, place.size)]


def by_rank(place, seed, shapes):
    """bfloat16 of every rank."""
    return [numbers(np.random.default_rng([seed, rank]), *shape)
            for rank, shape in enumerate(shapes)]


class RowsBatch:
    """A batch of a program whose rows may be FP8: uneven, with unused choices; and what its
    dispatch must give."""

    def __init__(self, place, seed, hidden, is_fp8):
        self.place, self.is_fp8 = place, is_fp8
        self.batch = make_batch(place, seed, uneven(place, seed, 24), hidden, 0.1)
        self.pairs = fp8_pairs(self.batch.xs)
        self.received = self.batch.received(place.num_experts, self.pairs if is_fp8 else None)


class FewBatch:
    """A batch of a program of few tokens, `most` of a rank: uneven, with unused choices; and what
    its dispatch must give.  cast: of `low_latency_dispatch`."""

    def __init__(self, place, seed, hidden, most, **cast):
        self.place, self.hidden = place, hidden
        self.batch = make_batch(place, seed, uneven(place, seed, most), hidden, 0.1)
        self.received = reference.low_latency_dispatch(
            self.batch.xs, self.batch.topk_idxs, most, place.num_experts, **cast)

    def inputs(self):
        """x, topk_idx, topk_weights as tensors."""
        give, rank = self.place.give, self.place.rank
        return (give(self.batch.xs[rank]), give(self.batch.topk_idxs[rank]),
                give(self.batch.topk_weights[rank]))

    def experts(self, recv_x, recv_count):
        """What the experts of this rank make of their rows, which are looked at: as many times the
        row as the expert's number says.  Rows past the count stay as they came."""
        mine = self.received[self.place.rank]
        assert_same(recv_count, mine.recv_count, "recv_count")
        parts = recv_x if isinstance(recv_x, tuple) else (recv_x,)
        wanted = mine.recv_x if isinstance(mine.recv_x, tuple) else (mine.recv_x,)
        for part, (got, want) in enumerate(zip(parts, wanted, strict=True)):
            assert tuple(got.shape) == want.shape
            if part:            # column-major, as grouped GEMMs take scales
                assert got.stride()[1:] == (1, got.shape[1])
            for expert, count in enumerate(mine.recv_count):
                assert_same(got[expert, :count], want[expert, :count], f"recv_x[{part}][{expert}]")
        rows = recv_x
        if isinstance(recv_x, tuple):
            rows, scales = recv_x
            if scales.dtype == torch.int32:
                exponents = torch.stack([scales >> shift & 255 for shift in PACKED], -1).flatten(2)
                scales = (exponents << 23).view(torch.float32)
            rows = dequantized(rows.flatten(0, 1), scales.flatten(0, 1)).view(rows.shape)
        number = torch.arange(1, len(rows) + 1, device=rows.device).view(-1, 1, 1)
        return (rows.float() * number).bfloat16()

    def outputs(self):
        """Likewise, of all ranks, by the reference."""
        made = []
        for mine in self.received:
            rows = mine.recv_x
            if isinstance(rows, tuple):
                rows, scales = rows
                if scales.dtype == np.int32:
                    exponents = np.stack([scales >> shift & 255 for shift in PACKED], -1)
                    scales = (exponents << 23).view(np.float32)
                rows = reference.per_token_cast_back(
                    rows.reshape(-1, self.hidden), scales.reshape(-1, self.hidden // 128)
                ).reshape(rows.shape)
            number = np.arange(1, len(rows) + 1, dtype=np.float32).reshape(-1, 1, 1)
            made.append(reference.round_to_bf16(reference.widen(rows) * number))
        return made

    def check(self, combined, reduce):
        want = reference.low_latency_combine(self.outputs(), self.received, self.batch.topk_idxs,
                                             self.batch.topk_weights, reduce)[self.place.rank]
        assert_same(combined, want, "combined_x")


# -- results ----------------------------------------------------------------------------------

def bits(array):
    """Of a tensor or a NumPy array, as unsigned integers in NumPy."""
    if isinstance(array, torch.Tensor):
        kept = array.detach().cpu().clone()     # numpy() makes a storage that cannot be resized
        signed = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        if kept.dtype != torch.bool:
            kept = kept.view(signed[kept.element_size()])
        array = kept.numpy()
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def assert_same(got, want, name):
    """The same shape and bits."""
    assert tuple(got.shape) == tuple(want.shape), f"{name}: {tuple(got.shape)} {want.shape}"
    np.testing.assert_array_equal(bits(got), bits(want), err_msg=name)


def assert_received(received, recv_x, recv_idx, recv_weights, counts, alignment=1):
    """A dispatch's results are those of `received`, a `reference.Received`."""
    parts = recv_x if isinstance(recv_x, tuple) else (recv_x,)
    wanted = received.recv_x if isinstance(received.recv_x, tuple) else (received.recv_x,)
    for number, (got, want) in enumerate(zip(parts, wanted, strict=True)):
        assert_same(got, want, f"recv_x[{number}]")
    assert_same(recv_idx, received.recv_topk_idx, "recv_topk_idx")
    assert_same(recv_weights, received.recv_topk_weights, "recv_topk_weights")
    aligned = [-(-count // alignment) * alignment
               for count in received.num_recv_tokens_per_expert_list]
    assert list(counts) == aligned


def dequantized(x, scales):
    """FP8 rows as bfloat16 tensor; as `reference.per_token_cast_back` makes them."""
    groups = x.float().view(len(x), -1, 128) * scales.unsqueeze(2)
    return groups.view(x.shape).bfloat16()


def record(tensor):
    """As consumers do with results that another stream made."""
    if tensor is not None and tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream())


def free(tensor):
    """As Megatron does with activations that it makes again, or has no use for."""
    tensor.untyped_storage().resize_(0)
