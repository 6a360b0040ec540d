# SPDX-License-Identifier: MIT
"""Low-latency calls with bad arguments, in a wrong order, or without a rank: a typed error, and
what comes behind it is right."""

import copy
import pickle
import re

import ml_dtypes
import numpy as np
import pytest

from deepep_ptx import Buffer, low_latency, reference, run_ranks
from deepep_ptx.errors import DeepEPError, DeepEPTimeoutError, RankMismatchError
from deepep_ptx.handle import EPHandle, LowLatencyHandle
from tests.low_latency import assert_received, expert_output, make_inputs, round_trip
from tests.test_buffer_life import raised

BF16 = ml_dtypes.bfloat16
R, M, H, K, E = 2, 4, 128, 2, 4     # ranks, most tokens, hidden, choices, experts
LOCAL = E // R
LIMIT_S = 1e-3


def on_ranks(main, num_ranks=R, *, run=None, **options):
    """main(comm, buffer) on every rank; options: of the buffer."""
    options = {"low_latency_mode": True, "timeout_s": LIMIT_S} | options

    def rank_main(comm):
        with Buffer(comm, **options) as buffer:
            return main(comm, buffer)

    return run_ranks(rank_main, num_ranks, executor="emu", **(run or {}))


def inputs(seed=0, tokens=(M, M - 1), hidden=H, num_topk=K, num_experts=E):
    return make_inputs(np.random.default_rng(seed), tokens, hidden, num_experts, num_topk)


def works(comm, buffer, seed=0, **options):
    """A round trip with the results of the reference."""
    made = inputs(seed, [M - rank % 2 for rank in range(comm.size)])
    round_trip(comm, buffer, made, E, M, **options)


def sent(comm, buffer, seed=0, **options):
    """What a good dispatch gives."""
    xs, idxs, _ = inputs(seed)
    return buffer.low_latency_dispatch(xs[comm.rank], idxs[comm.rank], M, E, **options)


def assert_passed_on(out, made, rank, reduce, left=None):
    """A rank's combined_x is the reference's, of experts that pass bfloat16 rows on.

    made: inputs of all ranks.  left: their indices in combine, where these are others.
    """
    xs, idxs, weights = made
    received = reference.low_latency_dispatch(xs, idxs, M, E, use_fp8=False)
    want = reference.low_latency_combine([r.recv_x for r in received], received,
                                         idxs if left is None else left, weights, reduce)[rank]
    np.testing.assert_array_equal(out.view(np.uint16), want.view(np.uint16))


# -- arguments --------------------------------------------------------------------------------

def arguments_of(rank):
    xs, idxs, _ = inputs()
    return {"x": xs[rank], "topk_idx": idxs[rank], "num_max_dispatch_tokens_per_rank": M,
            "num_experts": E}


def zeros(shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def read_only(shape, dtype):
    array = zeros(shape, dtype)
    array.flags.writeable = False
    return array


def rows(hidden):
    return {"x": zeros((M, hidden), BF16), "topk_idx": zeros((M, K), np.int64) + np.arange(K)}


CUMULATIVE, DISPATCH_WAITS = "cumulative_local_expert_recv_stats", "dispatch_wait_recv_cost_stats"
COMBINE_WAITS = "combine_wait_recv_cost_stats"
MAX = "num_max_dispatch_tokens_per_rank"
UE8M0 = {"round_scale": True, "use_ue8m0": True}
BAD_DISPATCHES = [
    (rows(H) | {"x": zeros((M + 1, H), BF16), "topk_idx": zeros((M + 1, K), np.int64)},
     ValueError, f"x: must have at most {MAX}, {M}, tokens, got {M + 1}"),
    ({MAX: 0}, ValueError, f"{MAX}: must be in [1, "),
    ({MAX: 1 << 40}, ValueError, f"{MAX}: must be in [1, "),
    ({MAX: 4.0}, TypeError, f"{MAX}: must be an integer, got float"),
    ({MAX: 1 << 24, "num_experts": 1024}, ValueError, f"{MAX}: times num_experts must be below"),
    ({"num_experts": 0}, ValueError, "num_experts: must be at least 1, got 0"),
    ({"num_experts": 3}, ValueError, "num_experts: number of experts must be a multiple of the 2"),
    ({"num_experts": 1 << 20}, ValueError, "num_experts: number of experts must be a multiple"),
    ({"num_experts": None}, TypeError, "num_experts: must be an integer, got NoneType"),
    (rows(64), ValueError, "x: hidden must be a multiple of 128 and at least that, got 64"),
    (rows(192), ValueError, "x: hidden must be a multiple of 128 and at least that, got 192"),
    (rows(0), ValueError, "x: hidden must be a multiple of 128 and at least that, got 0"),
    (rows(640) | UE8M0, ValueError, "x: hidden must be a multiple of 512 with use_ue8m0, got 640"),
    (rows(1 << 17), ValueError, "x: hidden 131072 and 4 experts take "),
    ({"use_ue8m0": True}, ValueError, "use_ue8m0: must be False without use_fp8 and round_scale"),
    (UE8M0 | {"use_fp8": False}, ValueError, "use_ue8m0: must be False without use_fp8 and"),
    ({"use_fp8": zeros(2)}, TypeError, "use_fp8: must be True or False, got ndarray"),
    ({"x": zeros((M, H))}, TypeError, "x: dtype must be bfloat16"),
    ({"x": zeros((M - 1, H), BF16)}, ValueError, f"x: shape must be [{M}, hidden]"),
    ({"x": None}, TypeError, "x: "),
    ({"topk_idx": zeros((M, K))}, TypeError, "topk_idx: dtype must be int64 or int32"),
    ({"topk_idx": zeros(M, np.int64)}, ValueError, "topk_idx: shape must be ["),
    ({"topk_idx": zeros((M, 33), np.int64)}, ValueError, "topk_idx: num_topk must be in [1, 32]"),
    ({"topk_idx": zeros((M, 0), np.int64)}, ValueError, "topk_idx: num_topk must be in [1, 32]"),
    ({CUMULATIVE: zeros(LOCAL, np.int64)}, TypeError, f"{CUMULATIVE}: dtype must be int32"),
    ({CUMULATIVE: zeros(E, np.int32)}, ValueError, f"{CUMULATIVE}: shape must be [{LOCAL}]"),
    ({CUMULATIVE: 3}, TypeError, f"{CUMULATIVE}: "),
    ({CUMULATIVE: read_only((LOCAL,), np.int32)}, ValueError, f"{CUMULATIVE}: must be writable"),
    ({DISPATCH_WAITS: read_only((R, R), np.int64)}, ValueError,
     f"{DISPATCH_WAITS}: must be writable, the call stores to it"),
    ({DISPATCH_WAITS: zeros(R, np.int32)}, TypeError, f"{DISPATCH_WAITS}: dtype must be int64"),
    ({DISPATCH_WAITS: zeros(R + 1, np.int64)}, ValueError, f"{DISPATCH_WAITS}: shape must be [2]"),
    ({DISPATCH_WAITS: zeros((R, R + 1), np.int64)}, ValueError,
     f"{DISPATCH_WAITS}: shape must be [2, 2], got [2, 3]"),
    ({DISPATCH_WAITS: zeros((R, R), np.float64)}, TypeError,
     f"{DISPATCH_WAITS}: dtype must be int64"),
    ({"async_finish": True, "return_recv_hook": True}, ValueError,
     "return_recv_hook: must be False with async_finish"),
    ({"num_sms": 0}, ValueError, "num_sms: must be at least 1, got 0"),
    ({"num_sms": 1 << 20}, ValueError, "num_sms: must be in [1, "),
    ({"stream": 3}, ValueError, "stream: "),
    ({"use_nvfp4": True}, NotImplementedError, "use_nvfp4: must be False in this release"),
    ({"x_global_scale": zeros(1)}, NotImplementedError,
     "x_global_scale: must be None in this release, got ndarray"),
]


def names_of(bad):
    return [f"{number}-{re.split('[: ]', text)[0]}" for number, (_, _, text) in enumerate(bad)]


def refused(call, error, text):
    caught = raised(call)
    assert type(caught) is error and str(caught).startswith(text), repr(caught)


@pytest.mark.parametrize(("changes", "error", "text"), BAD_DISPATCHES, ids=names_of(BAD_DISPATCHES))
def test_bad_arguments_of_dispatch(changes, error, text):
    """Before the first good call of a buffer, and after it."""
    def main(comm, buffer):
        given = arguments_of(0) | changes
        for _ in range(2):
            refused(lambda: buffer.low_latency_dispatch(**given), error, text)
            works(comm, buffer)

    on_ranks(main)


BAD_COMBINES = [
    ({"x": zeros((LOCAL, R * M, H))}, TypeError, "x: dtype must be bfloat16"),
    ({"x": zeros((LOCAL, R * M, 2 * H), BF16)}, ValueError,
     f"x: shape must be [{LOCAL}, {R * M}, {H}]"),
    ({"x": zeros((LOCAL, M, H), BF16)}, ValueError, f"x: shape must be [{LOCAL}, {R * M}, {H}]"),
    ({"x": zeros((R * M, H), BF16)}, ValueError, f"x: shape must be [{LOCAL}, {R * M}, {H}]"),
    ({"topk_idx": zeros((M - 1, K), np.int64), "topk_weights": zeros((M - 1, K))}, ValueError,
     f"topk_idx: must be [{M}, {K}], as in the dispatch, got [{M - 1}, {K}]"),
    ({"topk_idx": zeros((M, K + 1), np.int64), "topk_weights": zeros((M, K + 1))}, ValueError,
     f"topk_idx: must be [{M}, {K}], as in the dispatch, got [{M}, {K + 1}]"),
    ({"topk_weights": zeros((M, K), np.float64)}, TypeError, "topk_weights: dtype must be float32"),
    ({"topk_weights": zeros((M, K + 1))}, ValueError, f"topk_weights: shape must be [{M}, {K}]"),
    ({"topk_weights": None}, TypeError, "topk_weights: "),
    ({"handle": None}, TypeError, "handle: must be what low_latency_dispatch"),
    ({"handle": (1, 2, 3)}, TypeError, "handle: must be what low_latency_dispatch"),
    ({"handle": np.zeros(6)}, TypeError, "handle: must be what low_latency_dispatch"),
    ({"out": zeros((M, H))}, TypeError, "out: dtype must be bfloat16"),
    ({"out": zeros((M + 1, H), BF16)}, ValueError, f"out: shape must be [{M}, {H}]"),
    ({"out": read_only((M, H), BF16)}, ValueError, "out: must be writable, the call stores to it"),
    ({COMBINE_WAITS: read_only((R,), np.int64)}, ValueError, f"{COMBINE_WAITS}: must be writable"),
    ({COMBINE_WAITS: zeros(R)}, TypeError, f"{COMBINE_WAITS}: dtype must be int64"),
    ({COMBINE_WAITS: zeros((3, 3), np.int64)}, ValueError,
     f"{COMBINE_WAITS}: shape must be [2, 2]"),
    ({"async_finish": True, "return_recv_hook": True}, ValueError,
     "return_recv_hook: must be False with async_finish"),
    ({"num_sms": 0}, ValueError, "num_sms: must be at least 1, got 0"),
    ({"use_logfmt": True}, ValueError, "x: hidden must be a multiple of 512 with use_logfmt, got"),
    ({"use_logfmt": zeros(2)}, TypeError, "use_logfmt: must be True or False, got ndarray"),
    ({"zero_copy": True}, ValueError,
     "zero_copy: must be False where get_next_low_latency_combine_buffer(handle) was not called"),
    ({"zero_copy": True, "use_logfmt": True}, ValueError,
     "zero_copy: must be False with use_logfmt"),
    ({"zero_copy": zeros(2)}, TypeError, "zero_copy: must be True or False, got ndarray"),
    ({"overlap": True}, NotImplementedError, "overlap: must be False in this release"),
    ({"packed_recv_count": zeros(2)}, NotImplementedError, "packed_recv_count: must be None in"),
    ({"comp_signal": zeros(2)}, NotImplementedError, "comp_signal: must be None in this release"),
    ({"src_signals": zeros(2)}, NotImplementedError, "src_signals: must be None in this release"),
    ({"block_m": 128}, NotImplementedError, "block_m: must be 64 in this release, got 128"),
    ({"threshold": 3}, NotImplementedError, "threshold: must be 0 in this release, got 3"),
    ({"threshold": "3"}, TypeError, "threshold: must be an integer, got str"),
    ({"src_signal_expect_value": 1}, NotImplementedError,
     "src_signal_expect_value: must be 0 in this release, got 1"),
]


@pytest.mark.parametrize(("changes", "error", "text"), BAD_COMBINES, ids=names_of(BAD_COMBINES))
def test_bad_arguments_of_combine(changes, error, text):
    def main(comm, buffer):
        xs, idxs, weights = inputs(tokens=(M, M))
        recv_x, _, handle, _, _ = buffer.low_latency_dispatch(
            xs[comm.rank], idxs[comm.rank], M, E, use_fp8=False)
        given = {"x": recv_x, "topk_idx": idxs[comm.rank], "topk_weights": weights[comm.rank],
                 "handle": handle}
        refused(lambda: buffer.low_latency_combine(**given | changes), error, text)
        out, _, _ = buffer.low_latency_combine(**given)
        assert_passed_on(out, (xs, idxs, weights), comm.rank, buffer.reduce)

    on_ranks(main)


def test_defaults_of_other_builds_are_taken():
    """Equal ones that are not the same objects too."""
    def main(comm, buffer):
        xs, idxs, weights = inputs()
        recv_x, _, handle, _, _ = buffer.low_latency_dispatch(
            xs[comm.rank], idxs[comm.rank], M, E, use_fp8=0, use_nvfp4=0, x_global_scale=None)
        buffer.low_latency_combine(
            recv_x, idxs[comm.rank], weights[comm.rank], handle, use_logfmt=0, overlap=None,
            packed_recv_count=None, comp_signal=None, block_m=np.int64(64), threshold=np.int32(0),
            num_sms=2, src_signals=None, src_signal_expect_value=np.uint8(0))

    on_ranks(main)


@pytest.mark.parametrize(("options", "error", "text"), [
    ({"reduce": "sum"}, ValueError, "reduce: must be 'exact', 'rank' or None, got 'sum'"),
    ({"reduce": ["rank"]}, ValueError, "reduce: must be 'exact', 'rank' or None, got ['rank']"),
    ({"enable_shrink": True, "low_latency_mode": False}, ValueError,
     "enable_shrink: must be False without low_latency_mode"),
    ({"enable_shrink": zeros(2)}, TypeError, "enable_shrink: must be True or False"),
    ({"num_rdma_bytes": 128, "low_latency_mode": False}, NotImplementedError,
     "num_rdma_bytes: must be 0 without low_latency_mode"),
    ({"num_rdma_bytes": -1}, ValueError, "num_rdma_bytes: must be in [0, "),
    ({"num_rdma_bytes": "1"}, TypeError, "num_rdma_bytes: must be an integer, got str"),
    ({"low_latency_mode": zeros(2)}, TypeError, "low_latency_mode: must be True or False"),
])
def test_bad_arguments_of_construction(options, error, text):
    def main(comm):
        refused(lambda: Buffer(comm, **{"low_latency_mode": True} | options), error, text)
        with Buffer(comm, low_latency_mode=True) as buffer:
            works(comm, buffer)

    run_ranks(main, R, executor="emu")


def test_sizes():
    """The hint is what calls of that size take, and more is made where they need more."""
    hint = Buffer.get_low_latency_rdma_size_hint
    for arguments, text in (((0, H, R, E), f"{MAX}: must be in [1, "),
                            ((M, 100, R, E), "hidden: must be "), ((M, 192, R, E), "hidden: must"),
                            ((M, H, 0, E), "num_ranks: must be in [1, 64], got 0"),
                            ((M, H, R, 5), "num_experts: number of experts must be a multiple")):
        refused(lambda arguments=arguments: hint(*arguments), ValueError, text)
    refused(lambda: hint(M, H, R, E, num_topk=33), ValueError, "num_topk: must be in [1, 32]")
    refused(lambda: hint(M, H, R, E, reduce="x"), ValueError, "reduce: must be")
    assert 0 < hint(M, H, R, E, num_topk=K) < hint(2 * M, H, R, E, num_topk=K)

    def main(comm, buffer):
        works(comm, buffer)
        buffer.clean_low_latency_buffer(M, H, E)
        works(comm, buffer)
        for arguments in ((0, H, E), (M, 100, E), (M, H, 3)):
            assert isinstance(raised(buffer.clean_low_latency_buffer, *arguments), ValueError)

    on_ranks(main, num_rdma_bytes=hint(M, H, R, E, num_topk=K))


def test_names_of_a_buffer():
    def main(comm, buffer):
        texts = [repr(buffer)]
        works(comm, buffer)
        with Buffer(comm) as other:
            return [*texts, repr(buffer), repr(other)]

    assert on_ranks(main)[1] == ["<Buffer of rank 1 of 2, low latency, reduce=None>",
                                 "<Buffer of rank 1 of 2, low latency, reduce='exact'>",
                                 "<Buffer of rank 1 of 2>"]


def test_without_low_latency_mode():
    def main(comm, buffer):
        xs, idxs, weights = inputs()
        with Buffer(comm, low_latency_mode=True) as other:
            recv_x, _, handle, _, _ = sent(comm, other, use_fp8=False)
        for call in (lambda: sent(comm, buffer),
                     lambda: buffer.low_latency_combine(recv_x, idxs[comm.rank], weights[comm.rank],
                                                        handle)):
            refused(call, ValueError, "low_latency_mode: must be True for low-latency calls")

    on_ranks(main, low_latency_mode=False)


def test_low_latency_mode_of_one_rank_alone():
    def main(comm):
        error = raised(Buffer, comm, low_latency_mode=comm.rank == 0, timeout_s=LIMIT_S)
        assert isinstance(error, RankMismatchError) and error.argument == "low_latency_mode"
        assert (error.ranks, error.values) == ((0, 1), (True, False))

    run_ranks(main, R, executor="emu")


# -- ranks that differ --------------------------------------------------------------------------

DIFFERENT = {
    "num_max_dispatch_tokens_per_rank": lambda rank: {MAX: M + rank},
    "hidden": lambda rank: rows((1 + rank) * H),
    "num_experts": lambda rank: {"num_experts": (1 + rank) * E},
    "num_topk": lambda rank: {"topk_idx": zeros((arguments_of(rank)["x"].shape[0], K + rank),
                                                np.int64) - 1},
}


@pytest.mark.parametrize("argument", DIFFERENT)
@pytest.mark.parametrize("known", [False, True], ids=["first", "known"])
def test_shapes_that_differ(argument, known):
    """The first call of a shape, where all ranks agree on it; and later ones, whose kernels
    compare."""
    def main(comm, buffer):
        if known:
            for which in range(R):
                buffer.low_latency_dispatch(**arguments_of(comm.rank) | DIFFERENT[argument](which)
                                            | ({} if argument != "num_topk" else
                                               {"x": arguments_of(which)["x"]}))
        error = raised(buffer.low_latency_dispatch,
                       **arguments_of(comm.rank) | DIFFERENT[argument](comm.rank))
        assert isinstance(error, RankMismatchError), repr(error)
        assert error.argument == argument and str(error).startswith(f"{argument}: "), error
        assert sorted(error.ranks) == [0, 1] and error.values[0] != error.values[1]
        if known:           # rows were on their way
            assert isinstance(raised(sent, comm, buffer), DeepEPError)
            buffer.reset()
        works(comm, buffer)

    on_ranks(main)


def rows_of(rank, argument, which):
    """This rank's arguments of a dispatch, one of them other by `which`; with numbers in them."""
    one_or_more = {argument: 1 + which}
    most, hidden = M * one_or_more.get(MAX, 1), H * one_or_more.get("hidden", 1)
    experts, topk = E * one_or_more.get("num_experts", 1), K * one_or_more.get("num_topk", 1)
    xs, idxs, _ = inputs(1, hidden=hidden, num_topk=topk, num_experts=experts)
    return xs[rank], idxs[rank], most, experts


@pytest.mark.parametrize("argument", [MAX, "hidden", "num_experts", "num_topk"])
def test_known_shapes_that_differ(argument):
    """Rows of one shape lie where others are looked for."""
    def main(comm, buffer):
        for which in range(2):
            buffer.low_latency_dispatch(*rows_of(comm.rank, argument, which))
        for number in range(6):
            error = raised(buffer.low_latency_dispatch,
                           *rows_of(comm.rank, argument, (comm.rank + number) % 2))
            assert isinstance(error, RankMismatchError) and error.argument == argument, repr(error)
            buffer.reset()
            works(comm, buffer, number)

    for scheduler in ("rr", "random", "late-async"):
        for seed in range(3):
            on_ranks(main, run={"scheduler": scheduler, "seed": seed})


FLAGS = {
    "fp8 and none": ({}, {"use_fp8": False}),
    "none and fp8": ({"use_fp8": False}, {}),
    "rounded and not": ({"round_scale": True}, {}),
    "rounded and packed": ({"round_scale": True}, UE8M0),
    "packed and none": (UE8M0, {"use_fp8": False}),
}


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_that_differ(flags):
    """Only the device compares them."""
    def main(comm, buffer):
        made = inputs(hidden=512)
        round_trip(comm, buffer, made, E, M)
        error = raised(buffer.low_latency_dispatch, made[0][comm.rank], made[1][comm.rank], M, E,
                       **FLAGS[flags][comm.rank])
        assert isinstance(error, RankMismatchError) and error.argument == "use_fp8", repr(error)
        assert error.values[0] != error.values[1]
        buffer.reset()
        round_trip(comm, buffer, made, E, M)

    on_ranks(main)


@pytest.mark.parametrize("word_tokens", [M, 0])
@pytest.mark.parametrize("scheduler", ["rr", "random", "late-async"])
def test_formats_that_differ(word_tokens, scheduler, monkeypatch):
    """Rank 0 sends rows in LogFMT-10, rank 1 as they are; only the device compares.  Who waits for
    rows may be told by the other rank, which has found it before."""
    monkeypatch.setattr(low_latency, "WORD_TOKENS", word_tokens)

    def main(comm, buffer):
        made = inputs(hidden=512)
        xs, idxs, weights = (arrays[comm.rank] for arrays in made)
        for _ in range(2):
            recv_x, _, handle, _, _ = buffer.low_latency_dispatch(xs, idxs, M, E, use_fp8=False)
            error = raised(buffer.low_latency_combine, recv_x, idxs, weights, handle,
                           comm.rank == 0)
            found = isinstance(error, RankMismatchError)
            assert found or isinstance(error, DeepEPTimeoutError), repr(error)
            assert any(comm.allgather(found))
            assert found or scheduler != "rr"
            if found:
                assert error.argument == "use_logfmt" and set(error.values) == {True, False}
            buffer.reset()
            for use_logfmt in (False, True):
                round_trip(comm, buffer, made, E, M, use_logfmt=use_logfmt)

    for seed in range(3):
        on_ranks(main, reduce="exact", run={"scheduler": scheduler, "seed": seed})


def test_sums_are_not_sent_in_logfmt():
    def main(comm, buffer):
        made = inputs(hidden=512)
        xs, idxs, weights = (arrays[comm.rank] for arrays in made)
        recv_x, _, handle, _, _ = buffer.low_latency_dispatch(xs, idxs, M, E, use_fp8=False)
        refused(lambda: buffer.low_latency_combine(recv_x, idxs, weights, handle, True), ValueError,
                "use_logfmt: must be False in a buffer with reduce='rank'")
        round_trip(comm, buffer, made, E, M)

    on_ranks(main, reduce="rank")


def test_masks_are_not_for_logfmt():
    def main(comm, buffer):
        made = inputs(hidden=512)
        xs, idxs, weights = (arrays[comm.rank] for arrays in made)
        recv_x, _, handle, _, _ = buffer.low_latency_dispatch(xs, idxs, M, E, use_fp8=False)
        refused(lambda: buffer.low_latency_combine(recv_x, idxs, weights, handle, True),
                NotImplementedError,
                "use_logfmt: must be False in a buffer with enable_shrink=True in this release")
        round_trip(comm, buffer, made, E, M)

    on_ranks(main, reduce="exact", enable_shrink=True)


def test_reductions_that_differ():
    def main(comm):
        error = raised(Buffer, comm, low_latency_mode=True, reduce=("exact", "rank")[comm.rank])
        assert isinstance(error, RankMismatchError) and error.argument == "reduce", repr(error)

    run_ranks(main, R, executor="emu")


def test_handles_that_differ():
    """Of two dispatches: rows of one would be added up by the places of the other."""
    def main(comm, buffer):
        xs, idxs, weights = inputs()
        handles = [sent(comm, buffer, use_fp8=False) for _ in range(2)]
        recv_x, _, handle, _, _ = handles[comm.rank]
        error = raised(buffer.low_latency_combine, recv_x, idxs[comm.rank], weights[comm.rank],
                       handle)
        assert isinstance(error, RankMismatchError) and error.argument == "handle", repr(error)
        buffer.reset()
        works(comm, buffer)

    on_ranks(main)


def test_a_combine_beside_a_dispatch():
    def main(comm, buffer):
        xs, idxs, weights = inputs()
        recv_x, _, handle, _, _ = sent(comm, buffer, use_fp8=False)
        if comm.rank == 0:
            error = raised(sent, comm, buffer)
        else:
            error = raised(buffer.low_latency_combine, recv_x, idxs[1], weights[1], handle)
        assert isinstance(error, (RankMismatchError, DeepEPTimeoutError)), repr(error)
        comm.barrier()
        buffer.reset()
        works(comm, buffer)
        return type(error), getattr(error, "argument", None)

    assert (RankMismatchError, "call") in on_ranks(main)


def test_a_low_latency_call_beside_a_normal_one():
    """They have different records of a call, so each waits for the other's."""
    def main(comm, buffer):
        works(comm, buffer)
        if comm.rank == 0:
            error = raised(sent, comm, buffer)
        else:
            error = raised(normal_dispatch, comm, buffer)
        assert isinstance(error, DeepEPTimeoutError), repr(error)   # of the other, or told of it
        buffer.reset()
        works(comm, buffer)
        normal_trip(comm, buffer)

    on_ranks(main)


# -- handles ------------------------------------------------------------------------------------

def test_a_handle_of_a_dispatch_that_failed():
    """Its rows were never numbered."""
    def main(comm, buffer):
        xs, idxs, weights = inputs(tokens=(M, M))
        idx = np.tile(np.array([0, 2]), (M, 1))
        if comm.rank == 0:
            idx[:] = 2                  # more often than it has tokens
        recv_x, _, handle, event, _ = buffer.low_latency_dispatch(
            xs[comm.rank], idx, M, E, use_fp8=False, async_finish=True)
        raised(buffer.check) if comm.rank == 0 else None
        comm.barrier()
        buffer.reset()
        refused(lambda: buffer.low_latency_combine(recv_x, idx, weights[comm.rank], handle),
                DeepEPError, "handle: its dispatch came before a reset() of its buffer")
        works(comm, buffer)

    on_ranks(main)


@pytest.mark.parametrize("reduce", ["exact", "rank"])
@pytest.mark.parametrize("word_tokens", [64, 0])
def test_choices_of_own_experts_that_the_dispatch_had_not(reduce, word_tokens, monkeypatch):
    """They count as none."""
    monkeypatch.setattr(low_latency, "WORD_TOKENS", word_tokens)

    def main(comm, buffer):
        xs, _, weights = inputs(tokens=(M, M))
        idx = np.full((M, K), -1)
        recv_x, _, handle, _, _ = buffer.low_latency_dispatch(xs[comm.rank], idx, M, E,
                                                              use_fp8=False)
        idx[:, 0] = comm.rank * LOCAL
        out, _, _ = buffer.low_latency_combine(np.ones(recv_x.shape, BF16), idx,
                                               weights[comm.rank], handle)
        assert not out.view(np.uint16).any()
        works(comm, buffer)

    on_ranks(main, reduce=reduce)


def test_a_hook_behind_a_refused_call():
    """A launch that only sends has no verdict of its own."""
    def main(comm, buffer):
        _, idxs, weights = inputs(tokens=(M, M))
        experts = E if comm.rank == 0 else 2 * E
        layout = buffer.get_dispatch_layout(idxs[comm.rank], experts)
        error = raised(buffer.dispatch, np.ones((M, H), BF16), num_tokens_per_rank=layout[0],
                       num_tokens_per_expert=layout[2], is_token_in_rank=layout[3],
                       topk_idx=idxs[comm.rank], topk_weights=weights[comm.rank])
        assert isinstance(error, RankMismatchError)
        works(comm, buffer, hook=True)

    on_ranks(main)


def test_a_handle_of_another_rank():
    def main(comm, buffer):
        xs, idxs, weights = inputs(tokens=(M, M))
        recv_x, _, handle, _, _ = buffer.low_latency_dispatch(
            xs[comm.rank], idxs[comm.rank], M, E, use_fp8=False)
        other = comm.allgather(handle)[1 - comm.rank]
        refused(lambda: buffer.low_latency_combine(recv_x, idxs[comm.rank], weights[comm.rank],
                                                   other),
                ValueError, f"handle: made by rank {1 - comm.rank}, this is rank {comm.rank}")

    on_ranks(main)


def test_a_handle_of_another_group():
    kept = {}

    def keep(comm, buffer):
        _, _, kept[comm.rank], _, _ = buffer.low_latency_dispatch(
            **rows(H), num_max_dispatch_tokens_per_rank=M, num_experts=3 * E)

    def main(comm, buffer):
        _, idxs, weights = inputs()
        recv_x, *_ = sent(comm, buffer, use_fp8=False)
        refused(lambda: buffer.low_latency_combine(recv_x, idxs[comm.rank], weights[comm.rank],
                                                   kept[comm.rank]),
                ValueError, "handle: made by 3 ranks on executor 'emu', this buffer has 2 on 'emu'")

    on_ranks(keep, 3)
    on_ranks(main)


def test_a_handle_of_another_buffer():
    """It is as good as one of this buffer, if all ranks use it."""
    def main(comm, buffer):
        made = inputs()
        xs, idxs, weights = made
        with Buffer(comm, low_latency_mode=True) as other:
            recv_x, _, handle, _, _ = sent(comm, other, use_fp8=False)
        out, _, _ = buffer.low_latency_combine(recv_x, idxs[comm.rank], weights[comm.rank], handle)
        assert_passed_on(out, (xs, idxs, weights), comm.rank, buffer.reduce)

    on_ranks(main)


def test_what_a_handle_is():
    def main(comm, buffer):
        xs, idxs, weights = inputs()
        recv_x, _, handle, _, _ = sent(comm, buffer, use_fp8=False)
        assert isinstance(handle, LowLatencyHandle) and handle[2:5] == (M, H, E)
        assert (handle.rank, handle.num_ranks, handle.executor) == (comm.rank, R, "emu")
        assert (handle.num_tokens, handle.num_topk) == (len(xs[comm.rank]), K)
        other = sent(comm, buffer)[2]
        assert handle != other and handle == tuple(handle) and len({handle, other}) == 2
        assert isinstance(raised(setattr, handle, "rank", 3), AttributeError)
        assert LowLatencyHandle(handle) == handle and copy.deepcopy(handle) is handle
        refused(lambda: pickle.dumps(handle), TypeError, "handle: cannot be pickled")
        refused(lambda: EPHandle(handle), TypeError, "items: must be what dispatch returned")
        refused(lambda: EPHandle(handle[4:]), TypeError, "items: must be what dispatch returned")
        outs = [buffer.low_latency_combine(recv_x, idxs[comm.rank], weights[comm.rank], same)[0]
                for same in (handle, tuple(handle), list(handle), LowLatencyHandle(list(handle)),
                             LowLatencyHandle((None, *handle[1:])),
                             (*handle[:2], 2 * M, 2 * H, 2 * E, handle[5]))]
        for out in outs[1:]:
            np.testing.assert_array_equal(out.view(np.uint16), outs[0].view(np.uint16))

    on_ranks(main)


# -- hooks --------------------------------------------------------------------------------------

def test_a_hook_is_called_once():
    def main(comm, buffer):
        *_, hook = sent(comm, buffer, return_recv_hook=True)
        hook()
        refused(hook, DeepEPError, "hook: was called already")
        works(comm, buffer, hook=True)

    on_ranks(main)


def test_a_call_while_a_hook_is_due():
    """Of any kind; the hook may be called all the same then."""
    def main(comm, buffer):
        xs, idxs, weights = inputs()
        x, idx, rank_weights = (part[comm.rank] for part in (xs, idxs, weights))
        given = normal_layout(buffer, idx)
        *_, handle, _ = buffer.dispatch(x, **given)
        recv_x, count, ll_handle, _, hook = sent(comm, buffer, return_recv_hook=True,
                                                 use_fp8=False)
        for call in (lambda: sent(comm, buffer),
                     lambda: buffer.low_latency_combine(recv_x, idx, rank_weights, ll_handle),
                     lambda: buffer.dispatch(x, **given),
                     lambda: buffer.dispatch(x, handle=handle),
                     lambda: buffer.combine(zeros((handle.num_recv, H), BF16), handle)):
            refused(call, DeepEPError, "a receive hook is due: call it before the buffer's next")
        hook()
        want = reference.low_latency_dispatch(xs, idxs, M, E, use_fp8=False)[comm.rank]
        assert_received(recv_x, count, ll_handle, want)
        works(comm, buffer)

    on_ranks(main)


def test_a_hook_behind_reset():
    def main(comm, buffer):
        *_, hook = sent(comm, buffer, return_recv_hook=True)
        buffer.reset()
        refused(hook, DeepEPError, "hook: its call was ended by reset() or destroy()")
        works(comm, buffer, hook=True)

    on_ranks(main)


def test_a_hook_behind_destroy():
    def main(comm):
        buffer = Buffer(comm, low_latency_mode=True)
        *_, hook = sent(comm, buffer, return_recv_hook=True)
        buffer.destroy()
        assert isinstance(raised(hook), DeepEPError)

    run_ranks(main, R, executor="emu")


def test_a_hook_that_one_rank_does_not_call():
    """What it has sent is there: the others do not wait for what it receives."""
    def main(comm, buffer):
        recv_x, count, handle, _, hook = sent(comm, buffer, return_recv_hook=True)
        if comm.rank == 0:
            hook()
            xs, idxs, _ = inputs()
            want = reference.low_latency_dispatch(xs, idxs, M, E)[0]
            assert_received(recv_x, count, handle, want)
        comm.barrier()
        if comm.rank == 1:
            hook()
        works(comm, buffer)

    on_ranks(main)


# -- experts ------------------------------------------------------------------------------------

@pytest.mark.parametrize("expert", [E, -2, 1 << 40, -(1 << 62)])
@pytest.mark.parametrize("hook", [False, True])
def test_an_expert_out_of_range(expert, hook):
    """Counts as unused, and is reported on its rank."""
    def main(comm, buffer):
        xs, idxs, _ = inputs()
        bad = idxs[comm.rank].copy()
        if comm.rank == 0:
            bad[1, 1] = expert

        def call():
            *results, receive = buffer.low_latency_dispatch(xs[comm.rank], bad, M, E,
                                                            return_recv_hook=hook)
            if hook:
                receive()
            buffer.check()
            return results

        if comm.rank == 0:
            refused(call, ValueError, f"topk_idx: row 1 has expert {expert}, accepted are -1 and "
                                      f"[0, {E})")
        else:
            unused = idxs[0].copy()
            unused[1, 1] = -1
            want = reference.low_latency_dispatch(xs, [unused, idxs[1]], M, E)[1]
            recv_x, count, handle, _ = call()
            assert_received(recv_x, count, handle, want)
        works(comm, buffer)
        buffer.check()

    on_ranks(main)


@pytest.mark.parametrize("expert", range(E))
def test_an_expert_that_is_named_too_often(expert):
    """In several choices of a token: its rank says so, and nobody stores past the rows of an
    expert.  The others get that call's other rows, or lose that rank; in the next they lose it."""
    def main(comm, buffer):
        xs, idxs, _ = inputs()
        idx = zeros(idxs[comm.rank].shape, np.int64) + expert if comm.rank == 0 else idxs[1]
        if comm.rank == 0:
            error = raised(buffer.low_latency_dispatch, xs[0], idx, M, E)
            assert type(error) is ValueError and str(error).startswith(
                f"topk_idx: row 2 of rank 0 names expert {expert} when its tokens have done so 4 "
                "times"), repr(error)
        else:
            errors = []
            while not errors or errors[-1] is None and len(errors) < 3:
                try:
                    errors.append(buffer.low_latency_dispatch(xs[1], idx, M, E) and None)
                except DeepEPTimeoutError as error:
                    errors.append(error)
            assert errors[-1].peer == 0, errors
        assert isinstance(raised(sent, comm, buffer), DeepEPError)
        buffer.reset()
        works(comm, buffer)

    on_ranks(main)


def test_an_expert_that_is_named_as_often_as_may_be():
    """Twice by each of half as many tokens."""
    def main(comm, buffer):
        xs, _, weights = inputs(tokens=(M // 2, M // 2))
        idxs = [zeros((M // 2, K), np.int64)] * R
        round_trip(comm, buffer, (xs, idxs, weights), E, M)

    on_ranks(main)


# -- a rank that does not come ------------------------------------------------------------------

@pytest.mark.parametrize("what", ["dispatch", "combine", "hook"])
def test_a_rank_that_does_not_come(what):
    def main(comm, buffer):
        works(comm, buffer)
        xs, idxs, weights = inputs()
        recv_x, _, handle, _, _ = sent(comm, buffer, use_fp8=False)
        if comm.rank == 0:
            if what == "dispatch":
                error = raised(sent, comm, buffer)
            elif what == "combine":
                error = raised(buffer.low_latency_combine, recv_x, idxs[0], weights[0], handle)
            else:
                *_, hook = sent(comm, buffer, return_recv_hook=True)
                error = raised(hook)
            assert isinstance(error, DeepEPTimeoutError) and error.peer == 1, repr(error)
            assert isinstance(raised(sent, comm, buffer), DeepEPError)
        comm.barrier()
        if comm.rank == 1 and what == "combine":    # too late
            assert isinstance(raised(sent, comm, buffer), DeepEPError)
        elif comm.rank == 1:    # what the other has sent is whole, and what is behind it is refused
            sent(comm, buffer)
            assert isinstance(raised(sent, comm, buffer), DeepEPError)
        buffer.reset()
        for seed in range(4):
            works(comm, buffer, seed)

    on_ranks(main)


def test_a_rank_that_does_not_come_to_a_new_shape():
    """It is elsewhere: the group says so, where the others wait for it."""
    def main(comm, buffer):
        works(comm, buffer)
        if comm.rank == 0:
            error = raised(buffer.low_latency_dispatch, *(part[0] for part in inputs()[:2]), 2 * M,
                           E)
            assert type(error) is DeepEPError and "the first low-latency call of a sha" in str(
                error), repr(error)
        else:
            buffer.reset()
        buffer.reset() if comm.rank == 0 else None
        works(comm, buffer)

    on_ranks(main)


# -- statistics ---------------------------------------------------------------------------------

@pytest.mark.parametrize("hook", [False, True])
def test_counts_add_up(hook):
    def main(comm, buffer):
        stats, total = zeros(LOCAL, np.int32) + 100, zeros(LOCAL, np.int64) + 100
        for seed in range(3):
            _, count, _, _, receive = sent(comm, buffer, seed, return_recv_hook=hook,
                                           cumulative_local_expert_recv_stats=stats)
            if hook:
                receive()
            total += count
            np.testing.assert_array_equal(stats, total)

    on_ranks(main)


@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.parametrize("square", [False, True], ids=["R", "RxR"])
def test_waits_add_up(square, hook):
    """Of this rank's row; a rank that is late counts for more than this one itself."""
    def main(comm, buffer):
        xs, idxs, weights = inputs()
        dispatch, combine = (zeros((R, R) if square else R, np.int64) for _ in range(2))
        before = [stats.copy() for stats in (dispatch, combine)]
        recv_x, _, handle, _, receive = sent(comm, buffer, use_fp8=False, return_recv_hook=hook,
                                             dispatch_wait_recv_cost_stats=dispatch)
        receive() if hook else None
        *_, receive = buffer.low_latency_combine(
            recv_x, idxs[comm.rank], weights[comm.rank], handle, return_recv_hook=hook,
            combine_wait_recv_cost_stats=combine)
        receive() if hook else None
        for stats, was in zip((dispatch, combine), before, strict=True):
            mine, others = (stats[comm.rank], stats[1 - comm.rank]) if square else (stats, None)
            assert (mine >= 0).all() and (mine < 1 << 40).all(), stats
            assert (mine > 0).all() or hook, stats      # or everything was there
            assert others is None or not others.any(), stats
            assert was.shape == stats.shape
        once = dispatch.copy()
        *_, receive = sent(comm, buffer, return_recv_hook=hook,
                           dispatch_wait_recv_cost_stats=dispatch)
        receive() if hook else None
        assert (dispatch >= once).all() and (hook or (dispatch != once).any())

    on_ranks(main)


# -- tokens, shapes, other calls ------------------------------------------------------------------

@pytest.mark.parametrize("tokens", [(0, 0), (0, M), (M, 0)], ids=str)
@pytest.mark.parametrize("hook", [False, True])
def test_no_tokens(tokens, hook):
    def main(comm, buffer):
        for seed in range(3):
            round_trip(comm, buffer, inputs(seed, tokens), E, M, hook=hook)
        return True

    assert all(on_ranks(main))


def test_larger_shapes_between_calls():
    """Memory is made anew under calls that are done, and smaller shapes go on."""
    def main(comm, buffer):
        for seed, (most, hidden, topk, experts) in enumerate([
                (M, H, K, E), (8 * M, H, K, E), (M, 8 * H, K, E), (M, H, 4 * K, 8 * E),
                (M, H, K, E), (8 * M, 8 * H, 4 * K, 8 * E), (1, H, 1, R), (M, H, K, E)]):
            made = inputs(seed, (most, most - 1), hidden, topk, experts)
            for hook in (False, True):
                round_trip(comm, buffer, made, experts, most, hook=hook)

    on_ranks(main)


def test_a_larger_shape_behind_calls_that_nobody_has_waited_for():
    def main(comm, buffer):
        xs, idxs, _ = inputs()
        results = sent(comm, buffer, async_finish=True)
        round_trip(comm, buffer, inputs(1, hidden=8 * H), E, M)
        results[3].current_stream_wait()
        want = reference.low_latency_dispatch(xs, idxs, M, E)[comm.rank]
        assert_received(*results[:3], want)

    on_ranks(main)


def normal_layout(buffer, idx, weights=None):
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, E)
    given = {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank,
             "num_tokens_per_expert": per_expert}
    return given if weights is None else given | {"topk_idx": idx, "topk_weights": weights}


def normal_dispatch(comm, buffer, seed=0):
    xs, idxs, weights = inputs(seed)
    return buffer.dispatch(xs[comm.rank], **normal_layout(buffer, idxs[comm.rank],
                                                          weights[comm.rank]))


def normal_trip(comm, buffer, seed=0):
    xs, idxs, weights = inputs(seed)
    recv_x, recv_idx, _, _, handle, _ = normal_dispatch(comm, buffer, seed)
    received = reference.dispatch(xs, idxs, weights, E)
    want = received[comm.rank]
    np.testing.assert_array_equal(recv_x.view(np.uint16), want.recv_x.view(np.uint16))
    np.testing.assert_array_equal(recv_idx, want.recv_topk_idx)
    out, _, _ = buffer.combine(recv_x, handle)
    expected, _ = reference.combine([r.recv_x for r in received], received)[comm.rank]
    np.testing.assert_array_equal(out.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("scheduler", ["rr", "random", "late-async"])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_among_normal_calls(scheduler, num_ranks):
    """In any order, a low-latency dispatch with normal calls before its combine too."""
    experts = num_ranks * LOCAL

    def ll_halves(comm, buffer, seed):
        xs, idxs, weights = made = make_inputs(np.random.default_rng(seed), [M] * num_ranks, H,
                                               experts, K)
        recv_x, count, handle, _, _ = buffer.low_latency_dispatch(xs[comm.rank], idxs[comm.rank], M,
                                                                  experts)
        received = reference.low_latency_dispatch(xs, idxs, M, experts)
        assert_received(recv_x, count, handle, received[comm.rank])
        yield
        ys = [expert_output(r.recv_x, r) for r in received]
        out, _, _ = buffer.low_latency_combine(ys[comm.rank], idxs[comm.rank], weights[comm.rank],
                                               handle)
        want = reference.low_latency_combine(ys, received, idxs, weights, buffer.reduce)[comm.rank]
        np.testing.assert_array_equal(out.view(np.uint16), want.view(np.uint16))
        assert made is not None
        yield

    def normal(comm, buffer, seed):
        xs, idxs, weights = make_inputs(np.random.default_rng(seed), [M] * num_ranks, H, experts, K)
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idxs[comm.rank], experts)
        recv_x, _, _, _, handle, _ = buffer.dispatch(
            xs[comm.rank], num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert)
        received = reference.dispatch(xs, idxs, None, experts)
        np.testing.assert_array_equal(recv_x.view(np.uint16),
                                      received[comm.rank].recv_x.view(np.uint16))
        yield
        out, _, _ = buffer.combine(recv_x, handle)
        want, _ = reference.combine([r.recv_x for r in received], received)[comm.rank]
        np.testing.assert_array_equal(out.view(np.uint16), want.view(np.uint16))
        yield

    def main(comm, buffer):
        rng = np.random.default_rng(3)          # the same order on all ranks
        begun = []
        for seed in range(24):
            if begun and rng.random() < 0.5:
                next(begun.pop(rng.integers(len(begun))))
            else:
                half = (normal if rng.random() < 0.5 else ll_halves)(comm, buffer, seed)
                next(half)
                begun.append(half)
        for half in begun:
            next(half)
        buffer.check()

    on_ranks(main, num_ranks, run={"scheduler": scheduler, "seed": 5}, timeout_s=1.0)


# -- graphs -------------------------------------------------------------------------------------

class Static:
    """Arrays of a rank that a graph's calls use."""

    def __init__(self, rank, tokens=(M, M - 1)):
        self.rank, self.tokens = rank, tokens
        self.x = zeros((tokens[rank], H), BF16)
        self.idx = zeros((tokens[rank], K), np.int64)
        self.weights = zeros((tokens[rank], K))

    def fill(self, seed):
        self.all = inputs(seed, self.tokens)
        self.x[...], self.idx[...], self.weights[...] = (part[self.rank] for part in self.all)

    def layer(self, buffer, hook=False):
        """Rows of bfloat16 there and back."""
        recv_x, count, handle, _, receive = buffer.low_latency_dispatch(
            self.x, self.idx, M, E, use_fp8=False, return_recv_hook=hook)
        receive() if hook else None
        out, _, receive = buffer.low_latency_combine(recv_x, self.idx, self.weights, handle,
                                                     return_recv_hook=hook)
        receive() if hook else None
        return recv_x, count, handle, out

    def check(self, buffer, results):
        xs, idxs, weights = self.all
        received = reference.low_latency_dispatch(xs, idxs, M, E, use_fp8=False)
        assert_received(*results[:3], received[self.rank])
        assert_passed_on(results[3], self.all, self.rank, buffer.reduce)


def captured_layer(comm, buffer, hook=False):
    """(`Static`, graph, results) of a layer, captured behind the first one of its shape, which is
    for all ranks together."""
    static = Static(comm.rank)
    static.fill(0)
    static.layer(buffer)
    with comm.executor.capture() as graph:
        results = static.layer(buffer, hook)
    return static, graph, results


@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.parametrize("scheduler", ["rr", "random", "late-async"])
def test_replays_with_changing_inputs(scheduler, hook):
    def main(comm, buffer):
        static, graph, results = captured_layer(comm, buffer, hook)
        for seed in range(8):
            static.fill(seed)
            graph.replay()
            comm.executor.synchronize()
            static.check(buffer, results)
        buffer.check()

    on_ranks(main, run={"scheduler": scheduler, "seed": 4}, timeout_s=1.0)


def test_replays_among_eager_calls():
    """An odd number of low-latency calls in between, too: of whole layers, of normal calls."""
    def main(comm, buffer):
        static, graphs = Static(comm.rank), []
        static.fill(0)
        static.layer(buffer)
        for hook in (False, True):
            with comm.executor.capture() as graph:
                results = static.layer(buffer, hook)
            graphs.append((graph, results))
        for seed, which in enumerate(np.random.default_rng(7).integers(5, size=30)):
            static.fill(seed)
            if which < 2:
                graph, results = graphs[which]
                graph.replay()
                comm.executor.synchronize()
                static.check(buffer, results)
            elif which == 2:
                static.check(buffer, static.layer(buffer))
            elif which == 3:
                sent(comm, buffer, seed)
            else:
                normal_trip(comm, buffer, seed)
        buffer.check()

    on_ranks(main)


def test_a_new_shape_is_not_captured():
    def main(comm, buffer):
        static = Static(comm.rank)
        static.fill(0)
        with comm.executor.capture():
            refused(lambda: static.layer(buffer), ValueError,
                    f"{MAX}: the first call with these numbers")
        static.check(buffer, static.layer(buffer))

    on_ranks(main)


def test_memory_that_has_grown_since_a_capture():
    """A graph's calls use the memory that there is when they run."""
    def main(comm, buffer):
        static, graph, results = captured_layer(comm, buffer)
        round_trip(comm, buffer, inputs(1, hidden=8 * H), E, M)
        for seed in range(3):
            static.fill(seed)
            graph.replay()
            comm.executor.synchronize()
            static.check(buffer, results)
        buffer.check()

    on_ranks(main)


def test_a_hook_of_a_captured_call():
    """It belongs into the capture."""
    def main(comm, buffer):
        static = Static(comm.rank)
        static.fill(0)
        static.layer(buffer)
        with comm.executor.capture() as graph:
            *_, hook = buffer.low_latency_dispatch(static.x, static.idx, M, E,
                                                   return_recv_hook=True)
        for text in "its call was captured, and the capture has ended", "its call was ended by":
            refused(hook, DeepEPError, f"hook: {text}")
        works(comm, buffer)
        graph.replay()
        comm.executor.synchronize()
        works(comm, buffer)

    on_ranks(main)


def test_a_hook_in_a_capture_that_its_call_is_not_in():
    """It is due all the same, and works behind the capture."""
    def main(comm, buffer):
        xs, idxs, _ = inputs()
        *results, _, hook = sent(comm, buffer, return_recv_hook=True)
        with comm.executor.capture():
            refused(hook, DeepEPError, "hook: its call was not captured; call it before")
        hook()
        want = reference.low_latency_dispatch(xs, idxs, M, E)[comm.rank]
        assert_received(*results, want)
        works(comm, buffer, hook=True)

    on_ranks(main)


def test_a_replay_that_a_rank_leaves_out_ends_by_its_limit():
    def main(comm, buffer):
        static, graph, results = captured_layer(comm, buffer)
        if comm.rank == 0:
            graph.replay()
            comm.executor.synchronize()
            error = raised(buffer.check)
            assert isinstance(error, DeepEPTimeoutError) and error.peer == 1, repr(error)
        comm.barrier()
        buffer.reset()
        graph.replay()
        comm.executor.synchronize()
        static.check(buffer, results)

    on_ranks(main)


@pytest.mark.parametrize("reduce", ["exact", "rank"])
def test_choices_that_combine_leaves_out(reduce):
    def main(comm, buffer):
        xs, idxs, weights = inputs(3)
        left = [np.where(np.random.default_rng(rank).random(idx.shape) < 0.4, -1, idx)
                for rank, idx in enumerate(idxs)]
        recv_x, _, handle, _, _ = buffer.low_latency_dispatch(xs[comm.rank], idxs[comm.rank], M, E,
                                                              use_fp8=False)
        out, _, _ = buffer.low_latency_combine(recv_x, left[comm.rank], weights[comm.rank], handle)
        assert_passed_on(out, (xs, idxs, weights), comm.rank, reduce, left)
        works(comm, buffer)

    on_ranks(main, reduce=reduce)


def test_torch_is_not_asked_for_an_array_interface(monkeypatch):
    """For tensors on a GPU it is a dict of microseconds, and an error where they require a
    gradient, or in older versions are of bfloat16."""
    torch = pytest.importorskip("torch")

    def refuses(tensor):
        raise RuntimeError("no interface of this tensor")

    monkeypatch.setattr(torch.Tensor, "__cuda_array_interface__", property(refuses))

    def main(comm, buffer):
        def give(array):
            if array.dtype == BF16:
                return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(array)

        x, idx, weights = (give(arrays[comm.rank]) for arrays in inputs(tokens=(M, M)))
        waits = torch.zeros(R, dtype=torch.int64)
        recv_x, _, handle, _, _ = buffer.low_latency_dispatch(
            x, idx, M, E, use_fp8=False, dispatch_wait_recv_cost_stats=waits)
        out = torch.zeros(M, H, dtype=torch.bfloat16)
        assert buffer.low_latency_combine(recv_x, idx, weights, handle, out=out)[0] is out
        assert bool(out.any())

    on_ranks(main)
