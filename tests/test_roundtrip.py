# SPDX-License-Identifier: MIT
"""`Buffer` on the CPU executor against the reference, bit for bit, by a pairwise covering set."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from deepep_ptx import Buffer, RankError, reference, run_ranks
from deepep_ptx.config import get_size_hint
from tests.matrix import covered, covering, pairs

BF16 = ml_dtypes.bfloat16

AXES = {
    "num_ranks": [1, 2, 3, 4, 8],
    "hidden": [8, 528, 520, 2048, 7168],
    "num_topk": [1, 8, 9, 32],
    "policy": ["fast", "ld_relaxed_sys", "ld_nc_na", "ld_volatile", "bulk"],
    "tokens": ["even", "uneven", "some zero"],
    "routing": ["random", "holes", "crowd"],
    "combine": ["pull", "push", "mixed", "pull x", "pull weights"],
    "topk_data": ["none", "dispatch", "both"],
    "num_biases": [0, 1, 2],
    "idx_dtype": ["int64", "int32"],
    "arch": ["sm_90", "sm_80"],
    "worst": [False, True],
    "zero_copy": [True, False],
    "dtype": ["bfloat16", "fp8", "fp8 odd", "float16", "int8"],
    "again": ["no", "same", "fp8"],
    "finish": ["wait", "event"],
    "num_sms": [20, 1, 7, None],
    "ring": [(None, None), (2, 16), (3, 48), (7, 2048)],     # stages and stage_bytes of bulk copies
}
NUM_EXPERTS = 48  # a multiple of every number of ranks, more than every top-k
ROUNDS = 2        # calls per buffer: the second meets used slots and old flags


def allowed(case):
    """Worst-case mode needs top-k data; rows of one-byte elements are multiples of 16; bulk copies
    need sm_90."""
    narrow = case.get("dtype") in ("fp8", "fp8 odd", "int8") or case.get("again") == "fp8"
    return not ((case.get("worst") and case.get("topk_data") == "none")
                or (narrow and case.get("hidden") in (8, 520))
                or (case.get("policy") == "bulk" and case.get("arch") == "sm_80"))


CASES = covering(AXES, allowed)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the ranks of one round bring, as lists in rank order."""

    xs: list                # arrays, or pairs with scales
    topk_idxs: list
    topk_weights: list
    biases: list
    seed: int
    others: list | None = None      # to be sent again, with the handle


def any_bits(rng, shape, dtype=BF16):
    """Any bit pattern: rows are moved, not computed with."""
    dtype = np.dtype(dtype)
    return rng.integers(0, 1 << 8 * dtype.itemsize, shape, dtype=f"u{dtype.itemsize}").view(dtype)


def rows_of(rng, shape, kind):
    """Rows of a kind of the axis "dtype"."""
    if not kind.startswith("fp8"):
        return any_bits(rng, shape, {"bfloat16": BF16}.get(kind, kind))
    rows = any_bits(rng, shape, ml_dtypes.float8_e4m3fn)
    num_scales = max(1, shape[1] // 128)
    if kind == "fp8":
        return rows, rng.standard_normal((shape[0], num_scales), dtype=np.float32)
    # packed, as DeepGEMM lays them out: tokens side by side, and every second one
    packed = rng.integers(-2**31, 2**31, (num_scales, 2 * shape[0] + 1), dtype=np.int32)
    return rows, packed.T[1::2]


def numbers(rng, shape):
    """bfloat16 to compute with: normals of many sizes, some zeros, subnormals, Inf and NaN."""
    x = (rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 7, shape)).astype(BF16)
    odd = rng.random(shape) < 0.02
    x[odd] = any_bits(rng, int(odd.sum()))
    return x


def counts(kind, num_ranks, rng):
    """Tokens of each rank."""
    if kind in ("even", "many"):        # many: for several CTAs of layout
        return [17 if kind == "even" else 600] * num_ranks
    if kind == "uneven":
        return rng.integers(1, 33, num_ranks).tolist()
    some = rng.integers(0, 25, num_ranks)
    some[rng.integers(num_ranks)] = 0
    return some.tolist()


def route(kind, num_tokens, num_topk, rng):
    """Choices [num_tokens, num_topk]."""
    scores = rng.random((num_tokens, NUM_EXPERTS))
    if kind == "crowd":
        scores[:, :8] -= 0.5  # argsort takes the small ones: most choices on the first ranks
    idx = np.argsort(scores, axis=1)[:, :num_topk].copy()
    if kind == "holes":
        idx[rng.random(idx.shape) < 0.4] = -1
        idx[rng.random(num_tokens) < 0.2] = -1               # tokens that go nowhere
        idx[rng.random(num_tokens) < 0.2] = idx[:, :1].max(initial=0)  # one expert, many times
    return idx


def make_inputs(case, seed):
    rng = np.random.default_rng(seed)
    num_tokens = counts(case["tokens"], case["num_ranks"], rng)
    shapes = [(n, case["hidden"]) for n in num_tokens]

    def biases_of(shape):
        given = [numbers(rng, shape) for _ in range(case["num_biases"])]
        return (None, given[0] if given else None, tuple(given))[case["num_biases"]]

    return Inputs(
        xs=[rows_of(rng, shape, case["dtype"]) for shape in shapes],
        others=(None if case["again"] == "no" else
                [rows_of(rng, shape, case["dtype"] if case["again"] == "same" else case["again"])
                 for shape in shapes]),
        topk_idxs=[route(case["routing"], n, case["num_topk"], rng).astype(case["idx_dtype"])
                   for n in num_tokens],
        topk_weights=[rng.standard_normal((n, case["num_topk"]), dtype=np.float32)
                      for n in num_tokens],
        biases=[biases_of(shape) for shape in shapes],
        seed=seed,
    )


def expert_output(seed, rank, num_rows, hidden, num_topk):
    """Rows and weights that a rank gives back: any, both sides only have to agree."""
    rng = np.random.default_rng([seed, rank])
    return (numbers(rng, (num_rows, hidden)),
            rng.standard_normal((num_rows, num_topk), dtype=np.float32))


def pulls(case, rank):
    """Whether others pull this rank's (rows, weights)."""
    both = case["combine"] == "pull" or (case["combine"] == "mixed" and rank % 2 == 0)
    return both or case["combine"] == "pull x", both or case["combine"] == "pull weights"


def worst_tokens(case, inputs):
    """num_worst_tokens: one row more than all tokens together."""
    return sum(map(len, inputs.topk_idxs)) + 1 if case["worst"] else 0


def arena_bytes(case, rounds):
    """Plenty for what cannot wait for the arena to grow, else 0: it grows.  That are worst-case
    mode and room for the expert output where dispatch moves something else."""
    if not (case["worst"] or case["dtype"] != "bfloat16"):
        return 0
    num_tokens = max(len(idx) for inputs in rounds for idx in inputs.topk_idxs) + 1
    return 3 * get_size_hint(num_tokens, case["hidden"], case["num_topk"], case["num_ranks"],
                             num_scales=case["hidden"] // 128 + 1)


def rank_main(comm, case, rounds):
    """Every array that the buffer returns, copied, for each of `rounds`."""
    stages, stage_bytes = case["ring"]
    with Buffer(comm, arena_bytes(case, rounds), policy=case["policy"],
                zero_copy=case["zero_copy"], stages=stages, stage_bytes=stage_bytes) as buffer:
        return [one_round(comm, buffer, case, inputs) for inputs in rounds]


def one_round(comm, buffer, case, inputs):
    rank = comm.rank
    topk_idx, topk_weights = inputs.topk_idxs[rank], inputs.topk_weights[rank]
    per_rank, per_rdma_rank, per_expert, in_rank, _ = buffer.get_dispatch_layout(
        topk_idx, NUM_EXPERTS)
    assert per_rdma_rank is None
    topk = {} if case["topk_data"] == "none" else {"topk_idx": topk_idx,
                                                    "topk_weights": topk_weights}
    # Eight ranks that share a GPU have fewer.
    num_sms = case["num_sms"] and min(case["num_sms"], buffer._max_sms)
    later = {"async_finish": case["finish"] == "event", "num_sms": num_sms}
    recv_x, recv_topk_idx, recv_topk_weights, expert_list, handle, event = buffer.dispatch(
        inputs.xs[rank], num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert, num_worst_tokens=worst_tokens(case, inputs), **topk,
        **later)
    again = []
    if inputs.others:
        again, *nothing, event = buffer.dispatch(
            inputs.others[rank], handle=handle, num_worst_tokens=worst_tokens(case, inputs),
            previous_event=event, **later)
        assert nothing == [None] * 4
    event.current_stream_wait()
    recv_x, recv_scales = pair(recv_x)
    again_x, again_scales = pair(again) if inputs.others else (None, None)
    got = {
        "num_tokens_per_rank": per_rank, "num_tokens_per_expert": per_expert,
        "is_token_in_rank": in_rank, "recv_x": recv_x, "recv_topk_idx": recv_topk_idx,
        "recv_topk_weights": recv_topk_weights, "rank_prefix_matrix": handle[0],
        "recv_src_idx": handle.recv_src_idx, "handle.is_token_in_rank": handle.is_token_in_rank,
        "recv_scales": recv_scales, "again": again_x, "again.scales": again_scales,
    }
    assert all(a is None or a.flags.c_contiguous for a in got.values())
    got = {name: None if a is None else np.array(a) for name, a in got.items()}
    got["num_recv_tokens_per_expert_list"] = expert_list

    num_recv = int(handle[0][-1, rank])
    y, weights = recv_x, recv_topk_weights
    pulled_x, pulled_weights = pulls(case, rank)
    if pulled_x:
        if recv_x.dtype != BF16:
            # NumPy arrays are not in a GPU's arena, whatever they hold.
            y = (buffer.get_combine_buffer(*recv_x.shape) if comm.executor.in_host_memory
                 else np.zeros(recv_x.shape, BF16))
    else:
        y = np.zeros(recv_x.shape, BF16)
    if weights is not None and not pulled_weights:
        weights = np.zeros_like(weights)
    y_rows, weight_rows = expert_output(inputs.seed, rank, num_recv, case["hidden"],
                                        case["num_topk"])
    y[num_recv:] = 0            # not read, but an array to be pushed has no holes
    y[:num_recv] = y_rows
    if case["topk_data"] == "both":
        weights[:num_recv] = weight_rows
    combined_x, combined_topk_weights, event = buffer.combine(
        y, handle, topk_weights=weights if case["topk_data"] == "both" else None,
        bias=inputs.biases[rank], previous_event=event, **later)
    event.current_stream_wait()
    got["combined_x"] = np.array(combined_x)
    got["combined_topk_weights"] = (
        None if combined_topk_weights is None else np.array(combined_topk_weights))
    return got


def pair(rows):
    """(x, scales) of what may be no pair."""
    return rows if isinstance(rows, tuple) else (rows, None)


def wanted(case, inputs):
    """The same dict per rank, from the reference; recv_* cut to the valid rows."""
    has_topk = case["topk_data"] != "none"
    received = reference.dispatch(inputs.xs, inputs.topk_idxs,
                                  inputs.topk_weights if has_topk else None, NUM_EXPERTS,
                                  worst_tokens(case, inputs))
    outputs = [expert_output(inputs.seed, r.rank, r.num_recv, case["hidden"], case["num_topk"])
               for r in received]
    combined = reference.combine(
        [y for y, _ in outputs], received,
        [w for _, w in outputs] if case["topk_data"] == "both" else None, inputs.biases)
    again = ([None] * len(received) if inputs.others is None
             else reference.cached_dispatch(inputs.others, received))
    result = []
    for r, (combined_x, combined_topk_weights) in zip(received, combined, strict=True):
        per_rank, per_expert, in_rank = reference.layout(inputs.topk_idxs[r.rank], NUM_EXPERTS,
                                                         case["num_ranks"])
        result.append({
            "num_tokens_per_rank": per_rank, "num_tokens_per_expert": per_expert,
            "is_token_in_rank": in_rank, "recv_x": pair(r.recv_x)[0],
            "recv_scales": pair(r.recv_x)[1], "again": pair(again[r.rank])[0],
            "again.scales": pair(again[r.rank])[1], "recv_topk_idx": r.recv_topk_idx,
            "recv_topk_weights": r.recv_topk_weights, "rank_prefix_matrix": r.rank_prefix_matrix,
            "recv_src_idx": r.recv_src_idx, "handle.is_token_in_rank": in_rank,
            "num_recv_tokens_per_expert_list": r.num_recv_tokens_per_expert_list,
            "combined_x": combined_x, "combined_topk_weights": combined_topk_weights,
        })
    return result


UNSPECIFIED_PAST_TOTAL = ("recv_x", "recv_scales", "again", "again.scales", "recv_topk_weights",
                          "recv_src_idx")


def assert_same(got, want, rank):
    """Same type, dtype, shape and bits; names the first element that differs."""
    num_recv = int(want["rank_prefix_matrix"][-1, rank])
    assert got.keys() == want.keys()
    for name, b in want.items():
        a = got[name]
        if b is None or isinstance(b, list):
            assert a == b and type(a) is type(b), f"rank {rank}: {name}"
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape), f"rank {rank}: {name}"
        if name in UNSPECIFIED_PAST_TOTAL:
            a, b = a[:num_recv], b[:num_recv]
        bits = f"u{b.dtype.itemsize}"
        where = np.argwhere(a.view(bits) != b.view(bits))
        assert not len(where), (f"rank {rank}: {name}{where[0].tolist()} is {a[tuple(where[0])]}, "
                                f"reference {b[tuple(where[0])]}, {len(where)} differ")


def assert_round_trip(case, rounds, **run):
    results = run_ranks(rank_main, case["num_ranks"], case, rounds, arch=case["arch"], **run)
    for number, inputs in enumerate(rounds):
        for rank, want in enumerate(wanted(case, inputs)):
            assert_same(results[rank][number], want, rank)


def test_the_cases_cover_all_pairs():
    assert covered(CASES) >= pairs(AXES, allowed)
    assert all(allowed(case) for case in CASES)
    assert len(CASES) <= 2 * len(AXES["num_ranks"]) * len(AXES["hidden"])


@pytest.mark.parametrize("number", range(len(CASES)),
                         ids=["-".join(str(v) for v in case.values()) for case in CASES])
def test_bit_exact(number):
    case = CASES[number]
    assert_round_trip(case, [make_inputs(case, 100 * number + i) for i in range(ROUNDS)],
                      seed=number)


PLAIN = {axis: values[0] for axis, values in AXES.items()} | {
    "num_ranks": 4, "hidden": 64, "num_topk": 4, "topk_data": "both"}


def replaced(inputs, **arrays):
    return Inputs(**{**vars(inputs), **arrays})


def test_no_tokens_on_any_rank():
    case = PLAIN | {"num_biases": 1}
    inputs = make_inputs(case, 1)
    none = {name: [None if a is None else a[:0] for a in getattr(inputs, name)]
            for name in ("xs", "topk_idxs", "topk_weights", "biases")}
    assert_round_trip(case, [replaced(inputs, **none)] * 2)


@pytest.mark.parametrize("worst", [False, True])
def test_tokens_that_all_go_nowhere(worst):
    case = PLAIN | {"num_biases": 2, "worst": worst}
    inputs = make_inputs(case, 2)
    nowhere = [np.full_like(idx, -1) for idx in inputs.topk_idxs]
    assert_round_trip(case, [replaced(inputs, topk_idxs=nowhere)])


@pytest.mark.parametrize("given", ["first", "second", "none"])
def test_a_pair_of_biases_that_is_not_full(given):
    case = PLAIN | {"num_biases": 1}
    inputs = make_inputs(case, 5)
    pairs = [{"first": (bias, None), "second": (None, bias), "none": (None, None)}[given]
             for bias in inputs.biases]
    assert_round_trip(case, [replaced(inputs, biases=pairs)])


def test_all_tokens_to_one_expert():
    case = PLAIN | {"num_ranks": 3}
    inputs = make_inputs(case, 3)
    crowd = [np.full_like(idx, NUM_EXPERTS - 1) for idx in inputs.topk_idxs]
    assert_round_trip(case, [replaced(inputs, topk_idxs=crowd)] * 3)


def test_many_calls_on_one_buffer_with_changing_shapes():
    case = PLAIN | {"num_ranks": 2, "tokens": "uneven"}
    assert_round_trip(case, [make_inputs(case, seed) for seed in range(12)])


def test_more_tokens_than_threads():
    case = PLAIN | {"num_ranks": 2, "hidden": 8}
    rng = np.random.default_rng(4)
    num_tokens = [700, 1025]
    inputs = Inputs(
        xs=[any_bits(rng, (n, 8)) for n in num_tokens],
        topk_idxs=[route("holes", n, 4, rng) for n in num_tokens],
        topk_weights=[rng.random((n, 4), dtype=np.float32) for n in num_tokens],
        biases=[None, None],
        seed=4,
    )
    assert_round_trip(case, [inputs])


@st.composite
def any_routing(draw):
    """A case and its inputs: any choices, repeated or unused, any number of tokens."""
    case = PLAIN | {"num_ranks": draw(st.integers(1, 4)), "hidden": 8,
                    "num_topk": draw(st.integers(1, 5)),
                    "combine": draw(st.sampled_from(AXES["combine"]))}
    experts = st.integers(-1, NUM_EXPERTS - 1)
    rows = st.lists(experts, min_size=case["num_topk"], max_size=case["num_topk"])
    topk_idxs = [np.array(draw(st.lists(rows, max_size=5)), np.int64).reshape(-1, case["num_topk"])
                 for _ in range(case["num_ranks"])]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return case, Inputs(
        xs=[any_bits(rng, (len(idx), 8)) for idx in topk_idxs],
        topk_idxs=topk_idxs,
        topk_weights=[rng.random(idx.shape, dtype=np.float32) for idx in topk_idxs],
        biases=[None] * case["num_ranks"],
        seed=0,
    )


@given(any_routing())
@settings(max_examples=60, phases=set(Phase) - {Phase.shrink})  # runs are not free
def test_any_routing(routing):
    case, inputs = routing
    assert_round_trip(case, [inputs])


def test_checks_off_gives_the_same_bits():
    assert_round_trip(PLAIN, [make_inputs(PLAIN, 5)], checks="off")


def test_worst_case_too_small_is_the_same_error_everywhere():
    case = PLAIN | {"worst": True}
    inputs = make_inputs(case, 6)

    def too_small(comm):
        with Buffer(comm) as buffer:
            per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(
                inputs.topk_idxs[comm.rank], NUM_EXPERTS)
            try:
                buffer.dispatch(inputs.xs[comm.rank], num_tokens_per_rank=per_rank,
                                is_token_in_rank=in_rank, num_tokens_per_expert=per_expert,
                                topk_idx=inputs.topk_idxs[comm.rank],
                                topk_weights=inputs.topk_weights[comm.rank], num_worst_tokens=3)
                buffer.check()
            except RuntimeError as error:
                return type(error).__name__
            return None

    try:
        names = run_ranks(too_small, case["num_ranks"])
    except RankError as error:
        pytest.fail(f"a rank failed outside of the call: {error.__cause__!r}")
    assert names == ["CapacityError"] * case["num_ranks"]
