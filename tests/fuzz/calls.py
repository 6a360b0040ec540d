# SPDX-License-Identifier: MIT
"""The calls of a buffer with arguments of all kinds: how each is made, and what it has to give."""

import inspect
import re

import ml_dtypes
import numpy as np

from deepep_ptx import Buffer, Config, EventHandle, EventOverlap, reference
from deepep_ptx.errors import DeepEPError, RankMismatchError
from tests.array_libraries import NumPyArrays
from tests.fuzz import values
from tests.fuzz.values import NOTHING, Value
from tests.hostile_arrays import Exports
from tests.low_latency import assert_received

BF16 = np.dtype(ml_dtypes.bfloat16)
TOKENS, HIDDEN, TOPK, EXPERTS = (6, 5), 16, 3, 8
RANKS = len(TOKENS)
ROWS = sum(TOKENS)                          # that a rank receives at most
FEW = {"config": Config(2)}                 # SMs: a call takes less time


# -- what the ranks bring -------------------------------------------------------------------------

def inputs(rank):
    """Argument -> array, of a rank's good call."""
    rng = np.random.default_rng(rank)
    count = TOKENS[rank]
    topk_idx = np.argsort(rng.random((count, EXPERTS)), axis=1)[:, :TOPK].copy()
    per_rank, per_expert, in_rank = reference.layout(topk_idx, EXPERTS, RANKS)
    return {"x": rng.standard_normal((count, HIDDEN)).astype(BF16), "topk_idx": topk_idx,
            "topk_weights": rng.random((count, TOPK), dtype=np.float32),
            "num_tokens_per_rank": per_rank, "num_tokens_per_expert": per_expert,
            "is_token_in_rank": in_rank}


GOOD = [inputs(rank) for rank in range(RANKS)]
SENT = reference.dispatch(*([good[name] for good in GOOD]
                            for name in ("x", "topk_idx", "topk_weights")), EXPERTS)


def output(rank):
    """The rows and weights that a rank gives back."""
    rng = np.random.default_rng([rank, 1])
    rows = SENT[rank].num_recv
    return (rng.standard_normal((rows, HIDDEN)).astype(BF16),
            rng.random((rows, TOPK), dtype=np.float32))


OUTPUTS = [output(rank) for rank in range(RANKS)]


# Of few tokens.
FEW_HIDDEN, MOST = 128, 8
SLOTS = RANKS * MOST
LOCAL_EXPERTS = EXPERTS // RANKS
FEW_GOOD = [{"x": np.random.default_rng([rank, 2]).standard_normal((count, FEW_HIDDEN))
             .astype(BF16), "topk_idx": GOOD[rank]["topk_idx"],
             "num_max_dispatch_tokens_per_rank": MOST, "num_experts": EXPERTS}
            for rank, count in enumerate(TOKENS)]
FEW_SENT = reference.low_latency_dispatch([good["x"] for good in FEW_GOOD],
                                          [good["topk_idx"] for good in FEW_GOOD], MOST, EXPERTS)
FEW_OUTPUTS = [np.random.default_rng([rank, 3]).standard_normal((LOCAL_EXPERTS, SLOTS, FEW_HIDDEN))
               .astype(BF16) for rank in range(RANKS)]
ZERO_COPIED = [-rows for rows in FEW_OUTPUTS]       # what the array for `zero_copy` has


# -- arguments ------------------------------------------------------------------------------------
# Name of a value -> function of what is right there, giving a `Value`; or the `Value`.

EVENTS = {
    "None": Value(None, None, True), "an event without one": Value(EventOverlap(), None, True),
    "a handle without one": Value(EventOverlap(EventOverlap()), None),
    **{name: Value(value) for name, value in values.NO_INTEGERS.items() if name != "None"},
    "an event that is none": Value(Exports("event", 7, None)),
    "an event's number that is none": Value(Exports("cuda_event", "7", None)),
    "the type": Value(EventHandle),
}
BOOLS = {
    **values.constants(True, False, 0, 1, np.True_, np.False_, None, "", [], 0.0),
    "array": Value(np.zeros(3)),
}
# True is taken beside other arguments only.
ALLOCATE = {name: Value(value.given, value.means, value.must and not value.given)
            for name, value in BOOLS.items()}
STREAMS = {
    **values.constants(None, 0, np.int64(0), np.uint8(0)),
    "the legacy stream": Value(1, 0),
    **{f"stream {n}": Value(n) for n in (3, -1, 1 << 63, 1 << 64, 1 << 80)},
    **{f"a stream's {n!r}": Value(Exports("cuda_stream", n, None)) for n in (3, -1, None, "s", ())},
    **{f"protocol {n!r}": Value(Exports("__cuda_stream__", n, None))
       for n in (3, None, (), (0,), (0, -1), (0, "s"), (0, 9))},
    **{name: Value(value) for name, value in values.NO_INTEGERS.items()
       if name != "None"},
}
SMS = {**values.integers(1, 8, least_refused=1 << 24), "None": Value(None, None, True)}
CONFIGS = {
    "None": Value(None, None, True), "Config(4)": Value(Config(4), 4, True),
    "Config(0)": Value(Config(0), 0, True),
    # Taken where num_sms comes before it.
    "Config(1 << 40)": Value(Config(1 << 40), 0),
    "a Config's type": Value(Config),
    **{name: Value(value) for name, value in values.NO_INTEGERS.items() if name != "None"},
}
LATER = {"previous_event": EVENTS, "async_finish": BOOLS, "allocate_on_comm_stream": ALLOCATE,
         "stream": STREAMS}
CALL = {"num_sms": SMS, "config": CONFIGS, **LATER}

INDICES = values.means_only((np.int64, np.int32))
COUNTS = values.means_only((np.int32,))
WEIGHTS = values.means_only((np.float32,))
ROWS_OF_BF16 = values.means_only((BF16,))


def pair(scales):
    """Rows with `scales`, a function of the number of tokens."""
    def make(x):
        made = np.zeros(x.shape, np.int8) + np.int8(3), scales(len(x))
        return Value(made, made)
    return make


def strided(x, strides):
    return np.lib.stride_tricks.as_strided(np.zeros(8, np.float32), (len(x), 2), strides)


def refused_pair(*rest):
    return lambda x: Value((x, *rest))


PAIRS = {
    "with scales": pair(lambda n: np.arange(2 * n, dtype=np.float32).reshape(n, 2)),
    "with scales of bytes": pair(lambda n: np.arange(5 * n, dtype=np.uint8).reshape(n, 5)),
    "with scales column by column": pair(lambda n: np.arange(2 * n, dtype=np.float32)
                                         .reshape(2, n).T),
    "with scales backwards": pair(lambda n: np.arange(2 * n, dtype=np.int16).reshape(n, 2)[::-1]),
    "with scales that are one": pair(lambda n: np.broadcast_to(np.float32(3), (n, 2))),
    "a pair of one": refused_pair(),
    "a triple": refused_pair(None, None),
    "without scales": refused_pair(None),
    "with no number of scales": lambda x: Value((x, np.zeros((len(x), 0), np.float32))),
    "with float64 scales": lambda x: Value((x, np.zeros((len(x), 2)))),
    **{f"with scales {strides} apart": lambda x, strides=strides: Value((x, strided(x, strides)))
       for strides in ((1 << 62, 4), (-(1 << 62), 4), (4, 1 << 62), (2, 4))},
}


def need(count):
    """num_worst_tokens: those that are too few may be many enough for this routing."""
    found = values.integers(0, 256, least_refused=1 << 26)
    return {name: Value(value.given, value.means, value.means in (0, 256) or value.means is not
                        NOTHING and value.means >= count) for name, value in found.items()}


DISPATCH = {
    "x": values.ARRAYS | PAIRS, "topk_idx": INDICES, "topk_weights": WEIGHTS,
    "num_tokens_per_rank": COUNTS, "num_tokens_per_expert": COUNTS,
    "is_token_in_rank": values.means_only((np.bool_,)),
    "num_tokens_per_rdma_rank": {"None": Value(None, None, True), "array": Value(np.zeros(1))},
    "expert_alignment": values.integers(1, 1 << 80), "num_worst_tokens": need(ROWS),
    "combine_hidden": values.integers(0, 256, least_refused=1 << 24), **CALL,
}
HANDLES = {
    "itself": lambda handle: Value(handle, handle, True),
    "its items": lambda handle: Value(tuple(handle), handle, True),
    "a list of them": lambda handle: Value(list(handle), handle, True),
    "without the matrix": lambda handle: Value((None, handle[1]), handle, True),
    "without the rest": lambda handle: Value(handle[:1]),
    "with the rest twice": lambda handle: Value((*handle, handle[1])),
    "its matrix": lambda handle: Value(handle[0]),
    "its type": lambda handle: Value(type(handle)),
    **{name: Value(value) for name, value in values.NO_INTEGERS.items()},
}
SHAPES = {
    "None": Value(None, None, True), "()": Value((), (), True),
    "(3, 4)": Value((3, 4), (3, 4), True), "[2]": Value([2], (2,), True),
    "NumPy's": Value(np.array([3, 2]), (3, 2), True),
    "of int8": Value((np.int8(100), np.int8(2)), (100, 2), True),
    "too many": Value((1 << 20, 1 << 20)), "overflowing": Value((1 << 32, 1 << 32)),
    "overflowing int32": Value((np.int32(1 << 16), np.int32(1 << 16))),
    "negative": Value((-1, 4)), "two negative": Value((-2, -2)), "of halves": Value((0.5,)),
    "of text": Value("ab"), "nested": Value(((2,),)), "number": Value(3), "type": Value(int),
}
DTYPES = {
    **{np.dtype(dtype).name: Value(dtype, np.dtype(dtype), True)
       for dtype in (np.uint8, np.float32, BF16, "int64", "<i2")},
    **{name: Value(value) for name, value in (
        ("big-endian", ">f4"), ("object", object), ("structure", np.dtype("i4,i4")),
        ("text", "no type"), ("None", None), ("number", 7), ("a text's", "U3"))},
}
# Of any number of tokens.
ANY_INDICES = INDICES | {
    "a row too many": lambda a: Value(*[np.concatenate([a, a[:1]])] * 2, True),
    "a row too few": lambda a: Value(a[:-1].copy(), a[:-1], True),
    "no rows": lambda a: Value(a[:0], a[:0], True),
}
# Only its library counts.
LIKE = {"None": Value(None, None, True)} | {
    name: make for name, make in values.ARRAYS.items()
    if name != "None" and (name in values.REPRESENTATIONS or name in values.NO_INTEGERS
                           or "claims" in name)}
LL_HANDLES = HANDLES | {
    "without the matrix": lambda handle: Value((None, *handle[1:]), handle, True),
    "without the rest": lambda handle: Value(handle[:-1]),
    "with the rest twice": lambda handle: Value((*handle, handle[-1])),
}
# Falsy ones alone.
NEVER = {name: Value(value.given, NOTHING if value.means is NOTHING or value.given else value.means,
                     value.must and not value.given) for name, value in BOOLS.items()}
ABSENT = {"None": Value(None, None, True)} | {
    name: Value(value) for name, value in values.NO_INTEGERS.items() if name != "None"}
FEW_CALL = {"async_finish": BOOLS, "return_recv_hook": BOOLS, "num_sms": SMS, "stream": STREAMS}


def written(dtype):
    """Name -> `Value` of an argument that the call stores to, or None."""
    found = values.means_only((dtype,))
    return found | {"None": Value(None, None, True), "read-only": lambda a: Value(
        values.read_only(a).given)}


ARENA_BYTES = 1 << 20

# Method -> its arguments.
METHODS = {
    "get_dispatch_layout": {"topk_idx": ANY_INDICES, "num_experts": values.integers(8, 2048, 2),
                            **LATER},
    "dispatch": DISPATCH,
    "cached dispatch": {"x": values.ARRAYS | PAIRS, "handle": HANDLES,
                        "num_worst_tokens": values.constants(0, np.uint8(0), refused=(
                            1, -1, 1 << 70, 0.5, None, "0")), **CALL},
    "combine": {"x": ROWS_OF_BF16, "handle": HANDLES, "topk_weights": WEIGHTS | {
        "None": Value(None, None, True)}, "bias": ROWS_OF_BF16 | {
        "None": Value(None, None, True), "two": lambda a: Value((a, a), (a, a), True),
        "the second": lambda a: Value((None, a), (None, a), True), "three": Value((None,) * 3),
        "a list": lambda a: Value([a, a])}, **CALL},
    "low_latency_dispatch": {
        "x": ROWS_OF_BF16, "topk_idx": INDICES,
        "num_max_dispatch_tokens_per_rank": values.integers(7, 256, least_refused=1 << 25),
        # With fewer experts than there are choices of, `check()` has something to say.
        "num_experts": {name: value for name, value in values.integers(
            8, 64, 2, least_refused=4096).items() if name.split()[-1] not in ("2", "4")},
        "cumulative_local_expert_recv_stats": written(np.int32),
        "dispatch_wait_recv_cost_stats": written(np.int64), "use_fp8": BOOLS, "round_scale": BOOLS,
        "use_ue8m0": NEVER, "x_global_scale": ABSENT, "use_nvfp4": NEVER, **FEW_CALL},
    "low_latency_combine": {
        "x": ROWS_OF_BF16, "topk_idx": INDICES, "topk_weights": WEIGHTS, "handle": LL_HANDLES,
        "use_logfmt": NEVER, "zero_copy": BOOLS, "out": written(BF16),
        "combine_wait_recv_cost_stats": written(np.int64), "overlap": NEVER,
        "packed_recv_count": ABSENT, "comp_signal": ABSENT, "block_m": values.integers(64, 64),
        "threshold": values.integers(0, 0), "src_signals": ABSENT,
        "src_signal_expect_value": values.integers(0, 0), **FEW_CALL},
    "get_next_low_latency_combine_buffer": {"handle": LL_HANDLES},
    "clean_low_latency_buffer": {
        "num_max_dispatch_tokens_per_rank": values.integers(1, (1 << 25) - 1),
        "hidden": values.integers(128, (1 << 24) - 1, 128),
        "num_experts": values.integers(2, 2048, 2)},
    "get_combine_buffer": {"rows": values.integers(0, 256, least_refused=1 << 31),
                           "hidden": values.integers(8, 256, 8, least_refused=1 << 24),
                           "like": LIKE, "stream": STREAMS},
    "get_local_buffer_tensor": {"dtype": DTYPES, "size": SHAPES, "use_rdma_buffer": {
        "False": Value(False, False, True), "True": Value(True), "array": Value(np.zeros(3))},
        "offset": values.integers(0, ARENA_BYTES)},
    "count_received": {"handle": HANDLES},
    "set_num_sms": {"num_sms": values.integers(1, 1 << 80)},
}


def value_of(method, argument, name, right):
    """The `Value` of that name, for an argument that is `right` otherwise."""
    found = METHODS[method][argument][name]
    return found if isinstance(found, Value) else found(right)


# -- calls ----------------------------------------------------------------------------------------

class Rank:
    """One rank, its buffer, and what a good dispatch gave it."""

    def __init__(self, comm, buffer):
        self.comm, self.rank, self.buffer = comm, comm.rank, buffer
        self.arrays = NumPyArrays(comm.executor)
        self.handle = self.ll_handle = None

    def right(self, method):
        """Argument -> what is given in a good call."""
        if method == "get_dispatch_layout":
            return {"topk_idx": GOOD[self.rank]["topk_idx"], "num_experts": EXPERTS}
        if method == "dispatch":
            return GOOD[self.rank] | FEW
        if method == "cached dispatch":
            return {"x": GOOD[self.rank]["x"], "handle": self.handle} | FEW
        if method == "combine":
            return {"x": OUTPUTS[self.rank][0], "handle": self.handle} | FEW
        if method == "low_latency_dispatch":
            return FEW_GOOD[self.rank] | {"num_sms": 2}
        if method == "low_latency_combine":
            return {"x": FEW_OUTPUTS[self.rank], "topk_idx": GOOD[self.rank]["topk_idx"],
                    "topk_weights": GOOD[self.rank]["topk_weights"], "handle": self.ll_handle,
                    "num_sms": 2}
        if method == "get_next_low_latency_combine_buffer":
            return {"handle": self.ll_handle}
        if method == "clean_low_latency_buffer":
            return {"num_max_dispatch_tokens_per_rank": MOST, "hidden": FEW_HIDDEN,
                    "num_experts": EXPERTS}
        return {"get_combine_buffer": {"rows": 6, "hidden": HIDDEN},
                "get_local_buffer_tensor": {"dtype": np.uint8}, "set_num_sms": {"num_sms": 4},
                "count_received": {"handle": self.handle}}[method]

    def changed(self, method, changes):
        """(arguments, argument -> `Value` of those that `changes` names)."""
        right = self.right(method)
        spare = right | {"topk_weights": OUTPUTS[self.rank][1], "like": np.zeros((2, 8)),
                         "bias": GOOD[self.rank]["x"]} if method != "dispatch" else right
        if method in ("low_latency_dispatch", "low_latency_combine"):
            waits = np.zeros(RANKS, np.int64)
            spare = {"cumulative_local_expert_recv_stats": np.zeros(LOCAL_EXPERTS, np.int32),
                     "dispatch_wait_recv_cost_stats": waits, "combine_wait_recv_cost_stats": waits,
                     "out": np.zeros((TOKENS[self.rank], FEW_HIDDEN), BF16)} | right
        found = {argument: value_of(method, argument, name, spare.get(argument))
                 for argument, name in changes.items()}
        return right | {argument: value.given for argument, value in found.items()}, found

    def call(self, method, given):
        """What the method gives, its event waited for."""
        before = Buffer.__dict__["num_sms"]
        try:
            results = getattr(self.buffer, method.removeprefix("cached "))(**given)
        finally:
            Buffer.num_sms = before
        if isinstance(results, tuple):
            event = next(result for result in results if isinstance(result, EventOverlap))
            hook = results[-1]
            if method.startswith("low_latency") and hook is not None:
                hook()
            event.current_stream_wait()
        return results

    def dispatch_well(self):
        """A good dispatch, whose handle is kept, and its combine, right on this rank."""
        results = self.call("dispatch", self.right("dispatch"))
        check_dispatch(self, results, [{} for _ in range(RANKS)])
        self.handle = results[4]
        check_combine(self, self.call("combine", self.right("combine")),
                      [{} for _ in range(RANKS)])
        results = self.call("low_latency_dispatch", self.right("low_latency_dispatch"))
        check_ll_dispatch(self, results, [{} for _ in range(RANKS)])
        self.ll_handle = results[2]
        array = self.buffer.get_next_low_latency_combine_buffer(self.ll_handle)
        array[...] = ZERO_COPIED[self.rank]


def is_named(error, method):
    """Whether it is an error that callers can tell, by its type and by the argument's name."""
    if not isinstance(error, (TypeError, ValueError, NotImplementedError, DeepEPError)):
        return False
    known = {*inspect.signature(getattr(Buffer, method.removeprefix("cached "))).parameters,
             "num_nvl_bytes", "arena_limit_bytes"}
    if isinstance(error, RankMismatchError):
        return str(error).startswith(f"{error.argument}: ")
    found = re.match(r"(\w+)(\[[01]\]|\.pos)?: ", str(error))
    return found is not None and found[1] in known


# -- what calls have to give ----------------------------------------------------------------------
# meant: by rank, argument -> what it stands for.

def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


def assert_same(got, want, what, rows=None):
    if isinstance(want, tuple):
        for one, other in zip(got, want, strict=True):
            assert_same(one, other, what, rows)
        return
    assert (got.dtype, got.shape) == (want.dtype, want.shape), f"{what}: {got.dtype} {got.shape}"
    np.testing.assert_array_equal(bits(got[:rows]), bits(want[:rows]), err_msg=what)


def check_layout(side, results, meant):
    meant = side.right("get_dispatch_layout") | meant[side.rank]
    wants = reference.layout(meant["topk_idx"], meant["num_experts"], RANKS)
    for got, want in zip((results[0], *results[2:4]), wants, strict=True):
        assert_same(got, want, "layout")


def check_dispatch(side, results, meant):
    given = [GOOD[rank] | meant[rank] for rank in range(RANKS)]
    own = given[side.rank]
    worst = own.get("num_worst_tokens", 0)
    want = reference.dispatch(*([one[name] for one in given]
                                for name in ("x", "topk_idx", "topk_weights")), EXPERTS,
                              worst)[side.rank]
    recv_x, recv_idx, recv_weights, counts, handle, _ = results
    assert_same(recv_x, want.recv_x, "recv_x", want.num_recv)
    assert_same(recv_idx, want.recv_topk_idx, "recv_topk_idx")
    assert_same(recv_weights, want.recv_topk_weights, "recv_topk_weights", want.num_recv)
    assert_same(handle[0], want.rank_prefix_matrix, "rank_prefix_matrix")
    assert side.buffer.count_received(handle) == handle.recv_count[0] == want.num_recv
    aligned = own.get("expert_alignment", 1)
    assert counts == [-(-count // aligned) * aligned
                      for count in want.num_recv_tokens_per_expert_list]


def check_cached(side, results, meant):
    xs = [meant[rank].get("x", GOOD[rank]["x"]) for rank in range(RANKS)]
    assert_same(results[0], reference.cached_dispatch(xs, SENT)[side.rank], "recv_x")
    assert results[1:5] == (None,) * 4


def check_combine(side, results, meant):
    ys = [meant[rank].get("x", OUTPUTS[rank][0]) for rank in range(RANKS)]
    weights = [one.get("topk_weights") for one in meant]
    biases = [one.get("bias") for one in meant]
    if any(one is None for one in weights):
        weights = None
    want_x, want_weights = reference.combine(ys, SENT, weights, biases)[side.rank]
    assert_same(results[0], want_x, "combined_x")
    assert (results[1] is None) == (want_weights is None)
    if want_weights is not None:
        assert_same(results[1], want_weights, "combined_topk_weights")


def check_ll_dispatch(side, results, meant):
    given = [FEW_GOOD[rank] | meant[rank] for rank in range(RANKS)]
    own = given[side.rank]
    cast = {name: own[name] for name in ("use_fp8", "round_scale") if name in own}
    want = reference.low_latency_dispatch(
        [one["x"] for one in given], [one["topk_idx"] for one in given],
        own["num_max_dispatch_tokens_per_rank"], own["num_experts"], **cast)[side.rank]
    assert_received(*results[:3], want)


def check_ll_combine(side, results, meant):
    ys = [ZERO_COPIED[rank] if meant[rank].get("zero_copy") else meant[rank].get(
        "x", FEW_OUTPUTS[rank]) for rank in range(RANKS)]
    idxs, weights = ([meant[rank].get(name, GOOD[rank][name]) for rank in range(RANKS)]
                     for name in ("topk_idx", "topk_weights"))
    want = reference.low_latency_combine(ys, FEW_SENT, idxs, weights, side.buffer.reduce)
    got = results[0]
    assert_same(got if isinstance(got, np.ndarray) else np.asarray(got.array).view(BF16),
                want[side.rank], "combined_x")


def check_next_combine_buffer(side, array, meant):
    assert_same(array, ZERO_COPIED[side.rank], "get_next_low_latency_combine_buffer")


def check_combine_buffer(side, array, meant):
    meant = {"rows": 6, "hidden": HIDDEN} | meant[side.rank]
    assert (array.shape, array.dtype) == ((meant["rows"], meant["hidden"]), BF16)
    array[...] = 1                          # all of it is memory


def check_local_buffer(side, array, meant):
    meant = {"dtype": np.dtype(np.uint8), "size": None, "offset": 0} | meant[side.rank]
    room = (ARENA_BYTES - meant["offset"]) // meant["dtype"].itemsize
    assert array.dtype == meant["dtype"]
    assert array.shape == ((room,) if meant["size"] is None else meant["size"])
    bits(array).sum()


CHECKS = {
    "get_dispatch_layout": check_layout, "dispatch": check_dispatch,
    "cached dispatch": check_cached, "combine": check_combine,
    "low_latency_dispatch": check_ll_dispatch, "low_latency_combine": check_ll_combine,
    "get_next_low_latency_combine_buffer": check_next_combine_buffer,
    "clean_low_latency_buffer": lambda side, nothing, meant: None,
    "get_combine_buffer": check_combine_buffer, "get_local_buffer_tensor": check_local_buffer,
    "count_received": lambda side, count, meant: count == SENT[side.rank].num_recv,
    "set_num_sms": lambda side, nothing, meant: None,
}
