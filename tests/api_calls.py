# SPDX-License-Identifier: MIT
"""Calls of one rank with arrays of any library, their results compared with the reference.

`Job` is what all ranks bring, `Side` a rank's end of it: its `dispatch`, `combine` and so on make
one call with the options that they are given and compare every array that comes back.
"""

import functools

import ml_dtypes
import numpy as np

from deepep_ptx import Buffer, reference
from deepep_ptx.arrays import BFLOAT16
from deepep_ptx.arrays.streams import stream_number
from tests.array_libraries import DeviceArrays, NumPyArrays, TorchArrays
from tests.test_roundtrip import any_bits, numbers

FP8 = ml_dtypes.float8_e4m3fn


# -- libraries --------------------------------------------------------------------------------
# `make_stream` gives another stream than the current one, `finish` waits on the host for a stream
# (None: the current one), `dtype` is a NumPy dtype as the library's callers name it.

class HostStreams:
    """On the CPU executor, where there is one stream."""

    copies = False          # to a GPU and back

    def make_stream(self):
        return 0

    def finish(self, stream=None):
        pass

    def dtype(self, dtype):
        return dtype


class PretendStreams(HostStreams):
    """On a `PretendGpu`."""

    def make_stream(self):
        return self.executor.stream_create()

    def finish(self, stream=None):
        self.executor.synchronize(stream_number(stream or 0))


class NumPyHost(HostStreams, NumPyArrays):
    """NumPy on the CPU executor."""


class TorchHost(HostStreams, TorchArrays):
    """CPU tensors of any type."""

    def give(self, array):
        import torch

        if array.dtype.kind == "V":         # of ml_dtypes
            bits = torch.from_numpy(array.view(f"i{array.dtype.itemsize}"))
            return bits.view(self.dtype(array.dtype))
        return torch.from_numpy(array)

    def get(self, tensor):
        import torch

        assert isinstance(tensor, torch.Tensor) and tensor.is_contiguous()
        name = str(tensor.dtype).removeprefix("torch.")
        if hasattr(ml_dtypes, name):
            bits = tensor.view(getattr(torch, f"int{8 * tensor.element_size()}"))
            return bits.numpy().copy().view(getattr(ml_dtypes, name))
        return tensor.numpy().copy()

    def dtype(self, dtype):
        import torch

        return getattr(torch, np.dtype(dtype).name)


class DeviceOwn(DeviceArrays):
    """`DeviceArray`, stored to by the executor's own copies."""

    def store(self, array, rows):
        if rows.nbytes:
            staged = self.give(rows)
            self.executor.copy_array(array.address, staged.address, rows.nbytes, array.stream)
            self.finish(array.stream)


class DevicePretend(PretendStreams, DeviceOwn):
    """`DeviceArray` on a `PretendGpu`."""


class NumPyPretend(PretendStreams, NumPyArrays):
    """NumPy arrays that are copied to a `PretendGpu` and back."""

    copies = True


# -- what the ranks bring -----------------------------------------------------------------------

class Job:
    """Inputs of all ranks, in rank order, and what the reference makes of them.

    tokens: one number per rank.  pair_dtype: of the rows with scales.
    """

    def __init__(self, tokens, hidden, num_topk, num_experts, *, seed=0, pair_dtype=np.int8,
                 idx_dtype=np.int64):
        self.num_ranks = len(tokens)
        self.tokens, self.hidden = tokens, hidden
        self.num_topk, self.num_experts = num_topk, num_experts
        self.seed = seed
        self.xs, self.others, self.pairs = [], [], []
        self.topk_idxs, self.topk_weights, self.biases = [], [], []
        for rank, count in enumerate(tokens):
            rng = np.random.default_rng([seed, rank])
            self.xs.append(any_bits(rng, (count, hidden)))
            self.others.append(any_bits(rng, (count, hidden), np.int16))
            scales = rng.standard_normal((max(1, hidden // 128), count), dtype=np.float32)
            self.pairs.append((any_bits(rng, (count, hidden), pair_dtype), scales.T))
            scores = rng.random((count, num_experts))
            idx = np.argsort(scores, axis=1)[:, :num_topk].astype(idx_dtype)
            idx[rng.random(idx.shape) < 0.2] = -1
            self.topk_idxs.append(idx)
            self.topk_weights.append(rng.standard_normal((count, num_topk), dtype=np.float32))
            self.biases.append(tuple(numbers(rng, (count, hidden)) for _ in range(2)))
        # A cast makes nothing of what is no number.
        self.few = [numbers(np.random.default_rng([seed, rank, 2]), (count, hidden))
                    for rank, count in enumerate(tokens)]

    @property
    def worst_tokens(self):
        """A num_worst_tokens that has room, and more."""
        return sum(self.tokens) + 3

    @property
    def arena_bytes(self):
        """Of a hard limit for some calls' results at once."""
        return 8 * Buffer.get_size_hint(max(1, *self.tokens, self.worst_tokens), self.hidden,
                                        self.num_topk, self.num_ranks,
                                        num_scales=self.hidden // 128 + 1)

    def sources(self, kind):
        """The x of all ranks: "rows", "others" (of another type) or "pair"."""
        return {"rows": self.xs, "others": self.others, "pair": self.pairs}[kind]

    @functools.lru_cache  # noqa: B019  a job lives as long as its test
    def received(self, kind="rows", has_topk=True, worst=0):
        """Of each rank, what the reference's dispatch gives."""
        return reference.dispatch(self.sources(kind), self.topk_idxs,
                                  self.topk_weights if has_topk else None, self.num_experts, worst)

    @functools.lru_cache  # noqa: B019
    def output(self, rank):
        """Expert output and weights that a rank gives back, all its rows."""
        rng = np.random.default_rng([self.seed, rank, 1])
        num_recv = self.received()[rank].num_recv
        return (numbers(rng, (num_recv, self.hidden)),
                rng.standard_normal((num_recv, self.num_topk), dtype=np.float32))

    @functools.lru_cache  # noqa: B019
    def combined(self, has_weights, num_biases):
        """(combined_x, combined_topk_weights) of each rank."""
        ys, weights = zip(*map(self.output, range(self.num_ranks)), strict=True)
        biases = [(None, pair[0], pair)[num_biases] for pair in self.biases]
        return reference.combine(list(ys), self.received(),
                                 list(weights) if has_weights else None, biases)

    @functools.lru_cache  # noqa: B019
    def ll_received(self, **cast):
        """Of each rank, what the reference's low-latency dispatch of `few` gives."""
        return reference.low_latency_dispatch(self.few, self.topk_idxs, max(self.tokens),
                                              self.num_experts, **cast)

    @functools.lru_cache  # noqa: B019
    def ll_output(self, rank):
        """Expert output that a rank gives back: all rows, of which those received count."""
        slots = self.num_ranks * max(self.tokens)
        return numbers(np.random.default_rng([self.seed, rank, 3]),
                       (self.num_experts // self.num_ranks, slots, self.hidden))

    @functools.lru_cache  # noqa: B019
    def ll_combined(self, reduce):
        """combined_x of each rank."""
        ys = [self.ll_output(rank) for rank in range(self.num_ranks)]
        return reference.low_latency_combine(ys, self.ll_received(), self.topk_idxs,
                                             self.topk_weights, reduce)


def assert_bits(got, want, name):
    """Same type, shape and bits."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape), (
        f"{name}: {got.dtype} {got.shape}, reference {want.dtype} {want.shape}")
    bits = f"u{want.dtype.itemsize}"
    where = np.argwhere(got.view(bits) != want.view(bits))
    assert not len(where), (f"{name}{where[0].tolist()} is {got[tuple(where[0])]}, reference "
                            f"{want[tuple(where[0])]}, {len(where)} of {want.size} differ")


# -- a rank's end -------------------------------------------------------------------------------

class Side:
    """One rank, its library and its buffer.

    In options, a value that is a function is called with the side and gives the argument.
    """

    def __init__(self, comm, library, job, buffer):
        self.comm, self.rank, self.job, self.buffer = comm, comm.rank, job, buffer
        self.arrays = library(comm.executor)
        give = self.arrays.give
        self.topk_idx = give(job.topk_idxs[self.rank])
        self.topk_weights = give(job.topk_weights[self.rank])
        self.bias = tuple(map(give, job.biases[self.rank]))
        self._layout = self._sent = self._ll_sent = None

    def x(self, kind="rows"):
        """This rank's x of a kind."""
        source = self.job.sources(kind)[self.rank]
        return tuple(map(self.arrays.give, source)) if kind == "pair" else self.arrays.give(source)

    def with_buffer(self, buffer):
        """The same rank with another buffer."""
        other = object.__new__(Side)
        other.__dict__.update(vars(self), buffer=buffer, _layout=None, _sent=None, _ll_sent=None)
        return other

    def make(self, options):
        """The arguments of `options`; every rank has its arrays and streams when this returns, and
        makes nothing on the device before its call: another rank's kernel, or the stream that both
        share, may be waiting for it."""
        made = {name: value(self) if callable(value) and not isinstance(value, type) else value
                for name, value in options.items()}
        self.arrays.finish()
        self.comm.barrier()
        return made

    def wait(self, event, given):
        """The results of a call with the arguments `given` are there."""
        event.current_stream_wait()
        if given.get("stream") is not None:
            self.arrays.finish(given["stream"])
        self.arrays.finish()

    def get(self, array):
        return self.arrays.get(array)

    def get_swapped(self, array):
        """Of an array whose last two dimensions lie in the other order."""
        if hasattr(array, "swapaxes"):
            return self.get(array.swapaxes(-2, -1)).swapaxes(-2, -1)
        assert array.swapped
        return self.get(array)

    def check(self, got, want, name):
        assert_bits(self.get(got), want, f"rank {self.rank}: {name}")

    # -- calls

    def layout(self):
        """Arguments for a dispatch, from a layout without options."""
        if self._layout is None:
            per_rank, _, per_expert, in_rank, _ = self.get_dispatch_layout({})
            self._layout = {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank,
                            "num_tokens_per_expert": per_expert}
        return self._layout

    def sent(self):
        """recv_x, handle of a dispatch with top-k, kept for the calls that need one."""
        if self._sent is None:
            recv_x, _, _, _, handle, _ = self.dispatch({
                "topk_idx": self.topk_idx, "topk_weights": self.topk_weights})
            self._sent = recv_x, handle
        return self._sent

    def get_dispatch_layout(self, options):
        """`Buffer.get_dispatch_layout` with `options`."""
        given = self.make(options)
        results = self.buffer.get_dispatch_layout(self.topk_idx, self.job.num_experts, **given)
        per_rank, per_rdma_rank, per_expert, in_rank, event = results
        self.wait(event, given)
        wants = reference.layout(self.job.topk_idxs[self.rank], self.job.num_experts,
                                 self.comm.size)
        assert per_rdma_rank is None
        for name, got, want in zip(("num_tokens_per_rank", "num_tokens_per_expert",
                                    "is_token_in_rank"), (per_rank, per_expert, in_rank), wants,
                                   strict=True):
            self.check(got, want, name)
        return results

    def dispatch(self, options, kind="rows"):
        """`Buffer.dispatch` of x of a kind, with `options` beside the layout's arguments."""
        layout = {} if "handle" in options else self.layout()
        x = self.x(kind)
        given = self.make(options)
        results = self.buffer.dispatch(x, **layout, **given)
        recv_x, recv_idx, recv_weights, counts, handle, event = results
        self.wait(event, given)
        if "handle" in given:
            assert [recv_idx, recv_weights, counts, handle] == [None] * 4
            sent = self.job.received(worst=given["handle"].num_worst_tokens)
            want = reference.cached_dispatch(self.job.sources(kind), sent)[self.rank]
            self.check_rows(recv_x, want, sent[self.rank].num_recv)
            return results
        worst = given.get("num_worst_tokens", 0)
        has_topk = given.get("topk_idx") is not None
        want = self.job.received(kind, has_topk, worst)[self.rank]
        self.check_rows(recv_x, want.recv_x, want.num_recv)
        if has_topk:
            self.check(recv_idx, want.recv_topk_idx, "recv_topk_idx")
            self.check_rows(recv_weights, want.recv_topk_weights, want.num_recv)
        else:
            assert recv_idx is None and recv_weights is None
        aligned = given.get("expert_alignment", 1)
        assert counts == [-(-count // aligned) * aligned
                          for count in want.num_recv_tokens_per_expert_list]
        self.check_handle(handle, want, worst, has_topk)
        return results

    def check_rows(self, got, want, num_recv):
        """Rows that were received, of an array or a pair."""
        if isinstance(want, tuple):
            for part, wanted in zip(got, want, strict=True):
                self.check_rows(part, wanted, num_recv)
            return
        got = self.get(got)
        assert got.shape == want.shape
        assert_bits(got[:num_recv], want[:num_recv], f"rank {self.rank}: rows")

    def check_handle(self, handle, want, worst, has_topk):
        self.check(handle[0], want.rank_prefix_matrix, "handle[0]")
        self.check_rows(handle.recv_src_idx, want.recv_src_idx, want.num_recv)
        self.check(handle.is_token_in_rank, want.is_token_in_rank, "handle.is_token_in_rank")
        self.check(handle.recv_count, want.rank_prefix_matrix[-1:, self.rank], "handle.recv_count")
        numbers_of = {
            "rank": self.rank, "executor": self.comm.executor.name,
            "num_tokens": self.job.tokens[self.rank], "num_recv": worst or want.num_recv,
            "num_worst_tokens": worst, "num_topk": self.job.num_topk if has_topk else 0,
            "hidden": self.job.hidden,
        }
        assert {name: getattr(handle, name) for name in numbers_of} == numbers_of

    def combine(self, options, where="array", sent=None):
        """`Buffer.combine` with `options`; the rows lie in an "array" of their own, in "recv_x" or
        in a combine "buffer"; topk_weights=True stands for the rank's own.

        sent: recv_x and handle, with rows past those received in worst-case mode; None: `sent`'s.
        """
        recv_x, handle = sent or self.sent()
        rows, weights = self.job.output(self.rank)
        num_rows = recv_x.shape[0]
        padded = np.zeros((num_rows, self.job.hidden), BFLOAT16)
        padded[:len(rows)] = rows
        if where == "array" or self.arrays.copies:
            y = self.arrays.give(padded)
        else:
            y = recv_x if where == "recv_x" else self.buffer.get_combine_buffer(
                *padded.shape, like=self.topk_idx)
            self.arrays.store(y, padded)
        if options.get("topk_weights"):
            padded = np.zeros((num_rows, self.job.num_topk), np.float32)
            padded[:len(weights)] = weights
            options = options | {"topk_weights": self.arrays.give(padded)}
        given = self.make(options)
        out, out_weights, event = results = self.buffer.combine(y, handle, **given)
        self.wait(event, given)
        bias = given.get("bias")
        num_biases = 2 if isinstance(bias, tuple) else int(bias is not None)
        want, want_weights = self.job.combined("topk_weights" in given, num_biases)[self.rank]
        self.check(out, want, "combined_x")
        if "topk_weights" in given:
            self.check(out_weights, want_weights, "combined_topk_weights")
        else:
            assert out_weights is None
        return results

    # -- low-latency calls

    def ll_sent(self):
        """Handle of a low-latency dispatch, kept for the combines."""
        if self._ll_sent is None:
            self._ll_sent = self.low_latency_dispatch({})[2]
        return self._ll_sent

    def receive(self, hook, event, given):
        """What a call with `given` was to bring is there."""
        assert (hook is not None) == bool(given.get("return_recv_hook"))
        if hook is not None:
            hook()
        self.wait(event, given)

    def low_latency_dispatch(self, options):
        """`Buffer.low_latency_dispatch` with `options`."""
        x = self.arrays.give(self.job.few[self.rank])
        given = self.make(options)
        results = self.buffer.low_latency_dispatch(x, self.topk_idx, max(self.job.tokens),
                                                   self.job.num_experts, **given)
        recv_x, recv_count, handle, event, hook = results
        self.receive(hook, event, given)
        want = self.job.ll_received(**{name: given[name] for name in (
            "use_fp8", "round_scale", "use_ue8m0") if name in given})[self.rank]
        self.check(recv_count, want.recv_count, "recv_count")
        self.check(handle[1], want.layout_range, "handle[1]")
        src_info = self.get(handle[0])
        parts = [(src_info, want.src_info)]
        if isinstance(want.recv_x, tuple):
            got = self.arrays.get_fp8(recv_x[0]), self.get_swapped(recv_x[1])
            parts += zip(got, want.recv_x, strict=True)
        else:
            parts.append((self.get(recv_x), want.recv_x))
        for got, wanted in parts:
            assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
            for expert, count in enumerate(want.recv_count):
                assert_bits(np.ascontiguousarray(got[expert, :count]),
                            np.ascontiguousarray(wanted[expert, :count]),
                            f"rank {self.rank}: rows of expert {expert}")
        counted = given.get("cumulative_local_expert_recv_stats")
        if counted is not None:
            self.check(counted, want.recv_count, "cumulative_local_expert_recv_stats")
        self.check_waits(given.get("dispatch_wait_recv_cost_stats"))
        assert handle[2:5] == (max(self.job.tokens), self.job.hidden, self.job.num_experts)
        numbers_of = {"rank": self.rank, "num_ranks": self.comm.size,
                      "executor": self.comm.executor.name, "num_topk": self.job.num_topk,
                      "num_tokens": self.job.tokens[self.rank]}
        assert {name: getattr(handle, name) for name in numbers_of} == numbers_of
        return results

    def check_waits(self, stats):
        if stats is not None:
            waits = self.get(stats)
            assert (waits >= 0).all() and (waits < 1 << 40).all(), waits

    def low_latency_combine(self, options, handle=None):
        """`Buffer.low_latency_combine` with `options`; with zero_copy its x is zeros."""
        handle = handle or self.ll_sent()
        rows = self.job.ll_output(self.rank)
        given = self.make(options)
        if given.get("zero_copy"):
            self.arrays.store(self.buffer.get_next_low_latency_combine_buffer(handle), rows)
            self.arrays.finish()
            rows = np.zeros_like(rows)
        y = self.arrays.give(rows)
        out, event, hook = results = self.buffer.low_latency_combine(
            y, self.topk_idx, self.topk_weights, handle, **given)
        self.receive(hook, event, given)
        if given.get("out") is not None:
            assert out is given["out"]
        self.check(out, self.job.ll_combined(self.buffer.reduce)[self.rank], "combined_x")
        self.check_waits(given.get("combine_wait_recv_cost_stats"))
        return results

    def ll_round_trip(self):
        """Without options."""
        self._ll_sent = None
        self.low_latency_combine({})

    def round_trip(self):
        """A dispatch and combines of it, without options but for what they move."""
        self._layout = self._sent = None
        self.sent()
        for where in ("array", "recv_x"):
            self.combine({"topk_weights": True, "bias": self.bias}, where)
        self._layout = self._sent = None
