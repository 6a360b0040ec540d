# SPDX-License-Identifier: MIT
"""The low-latency reference against definitions written another way."""

import ctypes
import ctypes.util
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepep_ptx import reference

BF16 = ml_dtypes.bfloat16
FP8 = ml_dtypes.float8_e4m3fn
FLAGS = {"bf16": {"use_fp8": False}, "fp8": {}, "round": {"round_scale": True},
         "ue8m0": {"round_scale": True, "use_ue8m0": True}}
ONE = np.ones((1, 512), BF16)
IDX = np.array([[0, 1]], np.int32)
each_form = pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)


@st.composite
def routings(draw):
    """(num_experts, M, one topk_idx per rank), with -1 entries, duplicates and ranks without
    tokens; M is as small as the rows allow, or larger."""
    num_ranks = draw(st.integers(1, 4))
    num_experts = num_ranks * draw(st.integers(1, 3))
    num_topk = draw(st.sampled_from([1, 2, 5, 32]))
    dtype = draw(st.sampled_from([np.int32, np.int64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lowest = draw(st.sampled_from([-1, -num_experts]))      # few or many unused entries
    topk_idxs = [np.maximum(rng.integers(lowest, num_experts, (draw(st.integers(0, 5)), num_topk)),
                            -1).astype(dtype) for _ in range(num_ranks)]
    most = max([1, *map(len, topk_idxs)]
               + [np.count_nonzero(idx == e) for idx in topk_idxs for e in range(num_experts)])
    return num_experts, most + draw(st.integers(0, 2)), topk_idxs


def rows(rng, topk_idxs, hidden=512):
    return [rng.standard_normal((len(idx), hidden)).astype(BF16) for idx in topk_idxs]


def scales_of(fields):
    """float32 scales [..., S] of UE8M0 int32 [..., S / 4]."""
    fields = np.ascontiguousarray(fields)[..., None] >> np.arange(0, 32, 8, dtype=np.int32)
    return ((fields & 0xFF) << 23).view(np.float32).reshape(*fields.shape[:-2], -1)


def back(recv_x):
    """What an expert computes with, as bfloat16 [L, R * M, H]."""
    if not isinstance(recv_x, tuple):
        return recv_x
    x, scales = recv_x
    if scales.dtype == np.int32:
        scales = scales_of(scales)
    flat = x.reshape(-1, x.shape[-1]), scales.reshape(-1, scales.shape[-1])
    return reference.per_token_cast_back(*flat).reshape(x.shape)


# -- dispatch --------------------------------------------------------------------------------

@each_form
@given(routings())
@settings(max_examples=25)
def test_dispatch_lists_every_choice_in_order(flags, routing):
    num_experts, max_tokens, topk_idxs = routing
    num_ranks = len(topk_idxs)
    num_local_experts, num_rows = num_experts // num_ranks, num_ranks * max_tokens
    xs = rows(np.random.default_rng(0), topk_idxs)
    received = reference.low_latency_dispatch(xs, topk_idxs, max_tokens, num_experts, **flags)
    assert [r.rank for r in received] == list(range(num_ranks))
    for got in received:
        assert got.recv_count.dtype == got.src_info.dtype == np.int32
        assert got.layout_range.dtype == got.origin.dtype == np.int64
        assert got.recv_count.shape == (num_local_experts,)
        assert got.src_info.shape == got.origin.shape == (num_local_experts, num_rows)
        assert got.layout_range.shape == (num_local_experts, num_ranks)
        x = back(got.recv_x)
        assert x.shape == (num_local_experts, num_rows, 512)
        for local in range(num_local_experts):
            want = [(s, t, k) for s, idx in enumerate(topk_idxs)
                    for t, row in enumerate(idx.tolist()) for k, e in enumerate(row)
                    if e == got.rank * num_local_experts + local]
            n = len(want)
            assert got.recv_count[local] == n
            assert got.src_info[local, :n].tolist() == [t for _, t, _ in want]
            num_topk = topk_idxs[0].shape[1]
            assert got.origin[local, :n].tolist() == [s << 32 | (t * num_topk + k)
                                                      for s, t, k in want]
            assert not got.src_info[local, n:].any() and not got.origin[local, n:].any()
            assert not x[local, n:].view(np.uint16).any()
            for source in range(num_ranks):
                count = sum(s == source for s, _, _ in want)
                first = sum(s < source for s, _, _ in want)
                assert got.layout_range[local, source] == (first << 32) + count
                assert got.rows_from(local, source) == slice(first, first + count)
            for row, (s, t, _) in enumerate(want):
                alone = reference.low_latency_dispatch(
                    [xs[s][t:t + 1]], [np.zeros((1, 1), np.int32)], 1, 1, **flags)[0]
                assert np.array_equal(x[local, row], back(alone.recv_x)[0, 0])


@each_form
def test_dtypes_and_strides(flags):
    topk_idxs = [np.array([[0, 3], [2, 1]]), np.array([[3, -1]])]
    xs = rows(np.random.default_rng(0), topk_idxs, 1024)
    for got in reference.low_latency_dispatch(xs, topk_idxs, 3, 4, **flags):
        if flags == FLAGS["bf16"]:
            assert got.recv_x.dtype == BF16 and got.recv_x.shape == (2, 6, 1024)
            assert got.recv_x.flags.c_contiguous
            continue
        x, scales = got.recv_x
        assert x.dtype == FP8 and x.shape == (2, 6, 1024) and x.flags.c_contiguous
        columns = 2 if "use_ue8m0" in flags else 8
        assert scales.dtype == (np.int32 if "use_ue8m0" in flags else np.float32)
        assert scales.shape == (2, 6, columns)
        assert scales.strides == (4 * 6 * columns, 4, 4 * 6)


def test_rows_of_bf16_are_moved_bit_for_bit():
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 512)
    xs, topk_idx = [bits.view(BF16)], np.zeros((128, 1), np.int32)
    (got,) = reference.low_latency_dispatch(xs, [topk_idx], 128, 1, use_fp8=False)
    assert np.array_equal(got.recv_x[0].view(np.uint16), bits)


def test_all_tokens_to_one_expert():
    topk_idxs = [np.full((4, 1), 5, np.int64)] * 3
    xs = rows(np.random.default_rng(0), topk_idxs)
    received = reference.low_latency_dispatch(xs, topk_idxs, 4, 6, use_fp8=False)
    assert [r.recv_count.tolist() for r in received] == [[0, 0], [0, 0], [0, 12]]
    assert np.array_equal(received[2].recv_x[1], np.concatenate(xs))


def test_no_tokens_at_all():
    empty = [np.zeros((0, 2), np.int32)] * 2
    for flags in FLAGS.values():
        for got in reference.low_latency_dispatch([ONE[:0]] * 2, empty, 2, 2, **flags):
            assert not got.recv_count.any() and not got.layout_range.any()
            assert back(got.recv_x).shape == (1, 4, 512)


def cast(x, **flags):
    """(codes uint8 [H], scales [S]) of one row."""
    (got,) = reference.low_latency_dispatch([x[None]], [np.zeros((1, 1), np.int32)], 1, 1, **flags)
    elements, scales = got.recv_x
    return elements[0, 0].view(np.uint8), scales[0, 0]


def test_default_scale_by_hand():
    x = np.zeros(512, BF16)
    x[:4] = 3, -1.5, 0.75, 2.0**-12         # amax 3: factor 448 / 3
    x[128] = 448
    x[256] = 2.0**-20                       # below 1e-4, which is amax then
    codes, scales = cast(x)
    assert codes[:5].tolist() == [0x7E, 0xF6, 0x6E, 0x11, 0]
    assert codes[128] == 0x7E
    assert codes[256] == 0x49                                  # 4.27, nearest to 4.5
    reciprocal = np.uint32(0x3B124925).view(np.float32)         # the float32 nearest to 1/448
    assert abs(reciprocal - 1 / 448) <= np.spacing(reciprocal) / 2
    amax = np.array([3, 448, 1e-4, 1e-4], np.float32)
    assert scales.view(np.uint32).tolist() == (amax * reciprocal).view(np.uint32).tolist()


def test_default_scale_is_a_product():
    """For some amax the product and the quotient are not the same float32."""
    amax = np.arange(0x3F80, 0x4000, dtype=np.uint16).view(BF16)    # all significands
    x = np.repeat(amax, 128)
    scales = cast(x)[1]
    wide = amax.astype(np.float32)
    assert np.array_equal(scales, wide * np.float32(1 / 448))
    quotients = reference.per_token_cast_to_fp8(x[None])[1][0]
    assert (scales != quotients).any()
    assert (np.abs(scales.view(np.int32) - quotients.view(np.int32)) <= 1).all()


@pytest.mark.parametrize("amax, exponent", [
    (448, 0), (450, 1), (446, 0), (224, -1), (225, 0), (1, -8), (0, -22), (3.0e38, 120),
])
def test_rounded_scale_by_hand(amax, exponent):
    x = np.zeros(512, BF16)
    x[5] = -amax
    codes, scales = cast(x, round_scale=True)
    assert scales.tolist() == [2.0**exponent] + [2.0**-22] * 3
    want = (x[5:6].astype(np.float64) / 2.0**exponent).astype(FP8)
    assert codes[5] == want.view(np.uint8)[0] and codes[0] == 0
    same, fields = cast(x, round_scale=True, use_ue8m0=True)
    assert np.array_equal(codes, same)
    assert fields.dtype == np.int32 and fields.tolist() == [
        int.from_bytes([127 + exponent, 105, 105, 105], "little")]


def test_ue8m0_bytes_of_every_group():
    x = np.zeros(1024, BF16)
    x[::128] = 448 * 2.0 ** np.arange(8)
    _, fields = cast(x, round_scale=True, use_ue8m0=True)
    assert fields.view(np.uint32).tolist() == [0x8281807F, 0x86858483]


def test_inf_and_nan():
    x = np.ones(512, BF16)
    x[0], x[128], x[256:384] = np.nan, -np.inf, -np.nan
    codes, scales = cast(x)
    assert codes[0] == 0x7F and (codes[1:128] == 0x7E).all(), "NaN does not count"
    assert scales[1] == np.inf and codes[128] == 0x7F and not codes[129:256].any()
    assert (codes[256:384] == 0x7F).all() and scales[2] == np.float32(1e-4) * np.float32(1 / 448)
    codes, fields = cast(x, round_scale=True, use_ue8m0=True)
    assert codes[128] == 0x7F and not codes[129:256].any()
    assert scales_of(fields)[1] == np.inf


def dispatched(xs=(ONE, ONE), topk_idxs=(IDX, IDX), max_tokens=2, num_experts=4, **flags):
    return reference.low_latency_dispatch(list(xs), list(topk_idxs), max_tokens, num_experts,
                                          **flags)


@pytest.mark.parametrize("name, bad", [
    ("num_experts", {"num_experts": 3}),
    ("num_experts", {"num_experts": 0}),
    ("num_max_dispatch_tokens_per_rank", {"max_tokens": 0}),
    ("xs", {"xs": (ONE, ONE[:, :64])}),
    ("xs", {"xs": (ONE, ONE[:, :128])}),
    ("xs", {"xs": (ONE, ONE[:, :0])}),
    ("xs", {"xs": (ONE, ONE[0])}),
    ("xs", {"xs": (ONE, ONE.astype(np.float32))}),
    ("xs", {"xs": (ONE[:, :384],) * 2, "round_scale": True, "use_ue8m0": True}),
    ("xs", {"xs": (ONE, np.ones((3, 512), BF16)), "topk_idxs": (IDX, np.repeat(IDX, 3, 0))}),
    ("topk_idxs", {"topk_idxs": (IDX, IDX[:0])}),
    ("topk_idxs", {"topk_idxs": (IDX,)}),
    ("topk_idxs", {"topk_idxs": (IDX, np.full((1, 3), 2))}),
    ("topk_idx", {"topk_idxs": (IDX, IDX + 3)}),
    ("topk_idx", {"topk_idxs": (IDX, IDX - 2)}),
    ("topk_idx", {"topk_idxs": (IDX, np.full((1, 33), -1))}),
    ("topk_idx", {"topk_idxs": (IDX, IDX.astype(np.int16))}),
    ("use_ue8m0", {"use_ue8m0": True}),
    ("use_ue8m0", {"use_ue8m0": True, "round_scale": True, "use_fp8": False}),
])
def test_bad_dispatches_are_refused(name, bad):
    dispatched()
    with pytest.raises(ValueError, match=f"^{name}: must "):
        dispatched(**bad)


@pytest.mark.parametrize("name, bad", [
    ("num_experts", {"num_experts": 4.0}),
    ("num_max_dispatch_tokens_per_rank", {"max_tokens": True}),
    ("use_fp8", {"use_fp8": np.ones(2)}),
    ("round_scale", {"round_scale": np.ones(2)}),
    ("use_ue8m0", {"use_ue8m0": np.ones(2)}),
])
def test_bad_types_are_refused(name, bad):
    with pytest.raises(TypeError, match=f"^{name}: must "):
        dispatched(**bad)


# -- fma_f32 ---------------------------------------------------------------------------------

LIBM_FMAF = ctypes.CDLL(ctypes.util.find_library("m")).fmaf
LIBM_FMAF.argtypes, LIBM_FMAF.restype = [ctypes.c_float] * 3, ctypes.c_float


def same_floats(got, want):
    """Bit for bit, but for NaN, of which `got` has one only."""
    got, want = got.view(np.uint32), np.asarray(want, np.float32).view(np.uint32)
    nan = np.isnan(want.view(np.float32))
    return np.array_equal(got[~nan], want[~nan]) and (got[nan] == 0x7FFFFFFF).all()


def exact_fma(a, b, c):
    """The float32 nearest to a * b + c, ties to even, of finite values, in fractions."""
    value = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if not value:
        negative = np.signbit(c) and np.signbit(a) != np.signbit(b)
        return np.float32(-0.0 if negative else 0.0)
    size, exponent = abs(value), -149
    exponent = max(-149, math.floor(math.log2(size.numerator) - math.log2(size.denominator)) - 24)
    while exponent > -149 and size / Fraction(2) ** exponent < 2**23:
        exponent -= 1
    while size / Fraction(2) ** exponent >= 2**24:
        exponent += 1
    steps = round(size / Fraction(2) ** exponent)       # of Fraction: ties to even
    size = Fraction(steps) * Fraction(2) ** exponent
    size = float(size) if size < 2**128 else math.inf
    return np.float32(math.copysign(size, value))


def float32s(rng, n, low=0, high=255):
    """float32 of all signs and significands, their exponent fields in [low, high]."""
    bits = rng.integers(0, 1 << 23, n) | rng.integers(low, high + 1, n) << 23
    return (bits | rng.integers(0, 2, n) << 31).astype(np.uint32).view(np.float32)


def triples(rng, kind, n):
    """Operands of n fused multiply-adds."""
    if kind == "any":
        return float32s(rng, n), float32s(rng, n), float32s(rng, n)
    if kind == "alike":          # product and addend overlap
        return float32s(rng, n, 120, 134), float32s(rng, n, 120, 134), float32s(rng, n, 100, 160)
    if kind == "subnormal":      # results around the least normal number
        return float32s(rng, n, 50, 80), float32s(rng, n, 40, 75), float32s(rng, n, 0, 3)
    if kind == "overflow":
        return float32s(rng, n, 185, 195), float32s(rng, n, 185, 195), float32s(rng, n, 250, 254)
    if kind == "cancel":         # c is the rounded product, so that the rest alone is left
        a, b = float32s(rng, n, 90, 160), float32s(rng, n, 90, 160)
        return a, b, -(a * b)
    # Ties of the sum but for 2^-46 of the product, which float64 drops, to round twice.
    near = 1 + rng.integers(-3, 4, (2, n)).astype(np.float32) * np.float32(2**-23)
    if kind == "subnormal tie":
        return near[0] * np.float32(2**-75), near[1] * np.float32(2**-75), float32s(rng, n, 0, 1)
    c = float32s(rng, n, 60, 200)
    half = np.copysign(np.spacing(np.abs(c)) / 2, float32s(rng, n))
    return half * near[0], near[1], c


@pytest.mark.parametrize("kind", ["any", "alike", "subnormal", "overflow", "cancel", "tie",
                                  "subnormal tie"])
def test_fma_is_that_of_the_machine(kind):
    a, b, c = triples(np.random.default_rng(1), kind, 50_000)
    want = [LIBM_FMAF(*abc) for abc in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    assert same_floats(reference.fma_f32(a, b, c), want)


@pytest.mark.parametrize("kind", ["alike", "subnormal", "overflow", "cancel", "tie",
                                  "subnormal tie"])
def test_fma_is_the_nearest_number(kind):
    a, b, c = triples(np.random.default_rng(2), kind, 1000)
    want = [exact_fma(*abc) for abc in zip(a, b, c, strict=True)]
    assert same_floats(reference.fma_f32(a, b, c), want)


def test_fma_rounds_once():
    """The sum is 2^-70 below a tie: rounded to float64 first, it would be the tie, and go up."""
    a, b, c = np.float32([1 + 2**-23, (1 - 2**-23) * 2**-24, 1 + 2**-23])
    assert reference.fma_f32(a, b, c) == c
    assert (a.astype(np.float64) * b + c).astype(np.float32) == np.float32(1 + 2**-22)


@pytest.mark.parametrize("a, b, c", [(1, [1, 2], 3), ([[1], [2]], [1, 2], 0.5)])
def test_fma_broadcasts(a, b, c):
    got = reference.fma_f32(a, b, c)
    assert got.dtype == np.float32 and np.array_equal(got, np.multiply(a, b) + c)


def test_fma_of_special_values():
    values = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, -np.nan, 1e-45, -1e-45, 3.4e38,
                       -3.4e38, 1.17549435e-38], np.float32)
    a, b, c = (grid.ravel() for grid in np.meshgrid(values, values, values))
    want = [LIBM_FMAF(*abc) for abc in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    assert same_floats(reference.fma_f32(a, b, c), want)


# -- combine ---------------------------------------------------------------------------------

def chain(terms):
    """fma from +0 over (weight, row float32) in order."""
    acc = np.zeros(512, np.float32)
    for weight, row in terms:
        acc = reference.fma_f32(np.full(512, weight), row, acc)
    return acc


def expected(ys, received, topk_idxs, weights, reduce):
    """Token by token, with rows found by counting."""
    num_local_experts = len(received[0].recv_count)
    used = {}
    results = [np.zeros((len(idx), 512), BF16) for idx in topk_idxs]
    for home, topk_idx in enumerate(topk_idxs):
        for token, row in enumerate(topk_idx.tolist()):
            terms = []                      # (rank, weight, value)
            for k, expert in enumerate(row):
                if expert < 0:
                    continue
                place = used[expert] = used.get(expert, -1) + 1
                rank, local_expert = divmod(expert, num_local_experts)
                terms.append((rank, weights[home][token, k],
                              ys[rank][local_expert, place].astype(np.float32)))
            if reduce == "exact":
                sums = [chain([(w, v) for _, w, v in terms])]
            else:
                sums = [chain([(w, v) for r, w, v in terms if r == rank])
                        for rank in sorted({r for r, _, _ in terms})] or [np.zeros(512)]
            acc = sums[0]
            for partial in sums[1:]:
                acc = acc + partial
            results[home][token] = reference.round_to_bf16(acc.astype(np.float32))
    return results


@pytest.mark.parametrize("reduce", ["exact", "rank"])
@given(routings())
@settings(max_examples=25)
def test_combine_adds_in_order(reduce, routing):
    num_experts, max_tokens, topk_idxs = routing
    rng = np.random.default_rng(0)
    received = reference.low_latency_dispatch(rows(rng, topk_idxs), topk_idxs, max_tokens,
                                              num_experts, use_fp8=False)
    ys = [rng.standard_normal(r.recv_x.shape).astype(BF16) for r in received]
    weights = [rng.standard_normal(idx.shape, dtype=np.float32) for idx in topk_idxs]
    got = reference.low_latency_combine(ys, received, topk_idxs, weights, reduce)
    want = expected(ys, received, topk_idxs, weights, reduce)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == BF16 and np.array_equal(a.view(np.uint16), b.view(np.uint16))
    wide = [y.astype(np.float32) for y in ys]
    same = reference.low_latency_combine(wide, received, topk_idxs, weights, reduce)
    assert all(np.array_equal(a, b) for a, b in zip(got, same, strict=True))
    if len(topk_idxs) == 1:
        one = reference.low_latency_combine(ys, received, topk_idxs, weights)
        assert np.array_equal(one[0], got[0])


def test_the_orders_differ():
    """Experts of rank 0, 1, 0: the large terms cancel either at once or at the end."""
    topk_idx = [np.array([[0, 2, 1]]), np.zeros((0, 3), np.int64)]
    weights = [np.ones((1, 3), np.float32), np.zeros((0, 3), np.float32)]
    received = reference.low_latency_dispatch([ONE, ONE[:0]], topk_idx, 1, 4, use_fp8=False)
    ys = [np.zeros((2, 2, 512), BF16) for _ in range(2)]
    ys[0][0, 0], ys[1][0, 0], ys[0][1, 0] = 2.0**30, 1, -2.0**30
    exact, by_rank = (reference.low_latency_combine(ys, received, topk_idx, weights, reduce)
                      for reduce in ("exact", "rank"))
    assert (exact[0] == 0).all() and (by_rank[0] == 1).all()


@pytest.mark.parametrize("reduce", ["exact", "rank"])
def test_one_rank_alone_is_its_sum(reduce):
    """-0, of a product too small for float32, stays: nothing is added to it."""
    topk_idxs = [np.array([[2]]), np.zeros((0, 1), np.int64)]
    weights = [np.full((1, 1), -(2.0**-100), np.float32), np.zeros((0, 1), np.float32)]
    received = reference.low_latency_dispatch([ONE, ONE[:0]], topk_idxs, 1, 4, use_fp8=False)
    ys = [np.full((2, 2, 512), 2.0**-100, BF16)] * 2
    got = reference.low_latency_combine(ys, received, topk_idxs, weights, reduce)
    assert (got[0].view(np.uint16) == 0x8000).all() and got[1].shape == (0, 512)


@pytest.mark.parametrize("reduce", ["exact", "rank"])
@each_form
@given(routings())
@settings(max_examples=15)
def test_round_trip_is_x_times_its_weights(reduce, flags, routing):
    num_experts, max_tokens, topk_idxs = routing
    rng = np.random.default_rng(3)
    xs = rows(rng, topk_idxs)
    weights = [rng.random(idx.shape, dtype=np.float32) for idx in topk_idxs]
    received = reference.low_latency_dispatch(xs, topk_idxs, max_tokens, num_experts, **flags)
    ys = [back(r.recv_x) for r in received]
    results = reference.low_latency_combine(ys, received, topk_idxs, weights, reduce)
    for x, idx, weight, result in zip(xs, topk_idxs, weights, results, strict=True):
        want = x.astype(np.float64) * np.where(idx >= 0, weight, 0).sum(axis=1, keepdims=True)
        error = np.abs(result.astype(np.float64) - want)
        # E4M3 has four bits, bfloat16 eight; a scale is at most 2 * max / 448, its least step 2^-9.
        relative, absolute = (2**-7, 1e-6) if flags == FLAGS["bf16"] else (2**-4 + 2**-6, 0.05)
        assert (error <= relative * np.abs(want) + absolute).all()


def test_entries_left_out():
    """-1 in combine where dispatch had an expert, as a mask."""
    topk_idx = np.array([[0, 1], [1, 0], [1, -1]], np.int32)
    x = np.array([1, 2, 4], BF16)[:, None].repeat(128, 1)
    weights = [np.array([[1, 10], [10, 1], [10, 1]], np.float32)]
    received = reference.low_latency_dispatch([x], [topk_idx], 3, 2, use_fp8=False)
    ys = [received[0].recv_x]
    masked = [np.where(topk_idx == 1, -1, topk_idx)]
    (got,) = reference.low_latency_combine(ys, received, masked, weights)
    assert got[:, 0].tolist() == [1, 2, 0] and not np.signbit(got.astype(np.float32)).any()


def test_unspecified_rows_do_not_count():
    topk_idx, weights = [IDX, IDX], [np.ones((1, 2), np.float32)] * 2
    received = dispatched(use_fp8=False)
    ys = [r.recv_x.copy() for r in received]
    want = reference.low_latency_combine(ys, received, topk_idx, weights)
    for r, y in zip(received, ys, strict=True):
        for local_expert, count in enumerate(r.recv_count):
            y[local_expert, count:] = np.nan
    got = reference.low_latency_combine(ys, received, topk_idx, weights)
    assert all(np.array_equal(a, b) and (a == 2).all() for a, b in zip(got, want, strict=True))


def test_inf_and_nan_in_combine():
    received = dispatched(use_fp8=False)
    ys = [r.recv_x.copy() for r in received]
    ys[0][0, 0, :3] = np.inf, -np.inf, -np.nan
    ys[0][1, 0, :2] = np.inf, np.inf
    weights = [np.ones((1, 2), np.float32)] * 2
    for reduce in "exact", "rank":
        got = reference.low_latency_combine(ys, received, [IDX, IDX], weights, reduce)
        assert got[0].view(np.uint16)[0, :4].tolist() == [0x7F80, 0x7FFF, 0x7FFF, 0x4000]


def combined(reduce="exact", **bad):
    received = dispatched(use_fp8=False)
    given = {"ys": [r.recv_x for r in received], "topk_idxs": [IDX, IDX],
             "topk_weights": [np.ones((1, 2), np.float32)] * 2, **bad}
    return reference.low_latency_combine(given["ys"], received, given["topk_idxs"],
                                         given["topk_weights"], reduce)


Y = np.ones((2, 4, 512), BF16)
WEIGHT = np.ones((1, 2), np.float32)


@pytest.mark.parametrize("name, bad", [
    ("ys", {"ys": [Y]}),
    ("ys", {"ys": [Y, Y[:1]]}),
    ("ys", {"ys": [Y, Y[:, :2]]}),
    ("ys", {"ys": [Y, Y[:, :, :256]]}),
    ("ys", {"ys": [Y, Y.astype(np.float16)]}),
    ("topk_idxs", {"topk_idxs": [IDX]}),
    ("topk_idxs", {"topk_idxs": [IDX, IDX[:0]], "topk_weights": [WEIGHT, WEIGHT[:0]]}),
    ("topk_idxs", {"topk_idxs": [IDX, IDX[:, ::-1]]}),
    ("topk_idxs", {"topk_idxs": [IDX, np.repeat(IDX, 2, 0)],
                   "topk_weights": [WEIGHT, np.repeat(WEIGHT, 2, 0)]}),
    ("topk_idx", {"topk_idxs": [IDX, IDX + 3]}),
    ("topk_weights", {"topk_weights": [WEIGHT]}),
    ("topk_weights", {"topk_weights": [WEIGHT, WEIGHT[:, :1]]}),
    ("topk_weights", {"topk_weights": [WEIGHT, WEIGHT.astype(np.float64)]}),
])
def test_bad_combines_are_refused(name, bad):
    assert (combined()[0] == 2).all()
    with pytest.raises(ValueError, match=f"^{name}: must "):
        combined(**bad)


@pytest.mark.parametrize("reduce", ["fast", None, 1])
def test_unknown_reductions_are_refused(reduce):
    with pytest.raises(ValueError, match="^reduce: .* is not one of 'exact', 'rank'"):
        combined(reduce)


# -- LogFMT-10 -------------------------------------------------------------------------------

def small(rng, shape, spread=8):
    """Elements below 1 over `spread` binary orders of magnitude, of both signs."""
    x = np.exp2(-0.01 - spread * rng.random(shape)) * rng.choice([-1, 1], shape)
    return x.astype(BF16)


SLACK = 3e-5                    # of float32 logarithms and powers


def codebook(group):
    """Values of the 512 codes of a group, and the thresholds between them."""
    size = np.abs(group.astype(np.float64))
    log_max = np.log2(size.max())
    log_min = max(np.log2(size.min()), log_max - 32) if size.min() else log_max - 32
    values = 2.0 ** (log_min + np.arange(-1, 511) * (log_max - log_min) / 510)
    thresholds = (values[:-1] + values[1:]) / 2
    values[0] = 0
    return values, thresholds


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 3, 30, 31.9, 60]), st.booleans())
@settings(max_examples=30)
def test_logfmt_by_its_codebook(seed, spread, zeros):
    rng = np.random.default_rng(seed)
    x = small(rng, (2, 1536), spread)
    if zeros:
        x[rng.random(x.shape) < 0.1] = 0
    got, is_encoded = reference.logfmt_round_trip(x)
    assert got.dtype == np.float32 and is_encoded.shape == (2, 3) and is_encoded.all()
    for want, have in zip(x.reshape(-1, 128), got.reshape(-1, 128), strict=True):
        values, thresholds = codebook(want)
        size = np.abs(want.astype(np.float64))
        # float32: a size at a threshold may have the code on its other side.
        sides = [values[np.searchsorted(thresholds, size * (1 + slack), side="right")]
                 for slack in (-SLACK, SLACK)]
        near = [np.isclose(np.abs(have), side, rtol=SLACK, atol=0) for side in sides]
        assert (near[0] | near[1]).all()
        assert np.array_equal(np.signbit(have), np.signbit(want.astype(np.float32)))
        largest = np.abs(want.astype(np.float32)).argmax()
        assert np.isclose(have[largest], float(want[largest]), rtol=SLACK)


def test_logfmt_by_hand():
    x = np.full((1, 512), 2.0**-3, BF16)
    x[0, ::128], x[0, 1::128], x[0, 2] = 0.5, -(2.0**-5), 0.126     # 4 binary orders, step 4 / 510
    got, _ = reference.logfmt_round_trip(x)
    assert np.allclose(got[0, :2], [0.5, -(2.0**-5)], rtol=SLACK)
    assert np.allclose(got[0, 3:128], 2.0**-3, rtol=SLACK)      # code 256, exactly
    assert np.isclose(got[0, 2], 2.0 ** (-3 + 4 / 510), rtol=SLACK)    # 1.43 steps above that


def test_logfmt_of_more_than_32_binary_orders():
    """Below that range there are the least code and zero, the threshold a little above a half."""
    x = np.full((1, 512), 0.5, BF16)
    x[0, ::128] = 2.0**-60
    least = 2.0**-33
    x[0, 1:6] = least, least * 0.99, least * 0.9, -least * 2.0**-6, 0
    got, is_encoded = reference.logfmt_round_trip(x)
    assert is_encoded.all()
    assert np.allclose(got[0, 1:3], least, rtol=SLACK) and (got[0, [0, 3, 4, 5]] == 0).all()
    assert np.signbit(got[0, 4]) and not np.signbit(got[0, 5])


@pytest.mark.parametrize("hidden, block", [(512, 512), (1536, 512), (1024, 1024), (7168, 1024)])
@pytest.mark.parametrize("value, is_encoded", [
    (1, False), (-1, False), (1 - 2**-8, True), (np.inf, False), (np.nan, False), (-np.nan, False),
    (0, True), (2.0**-130, True),
])
def test_blocks_are_encoded_as_a_whole(hidden, block, value, is_encoded):
    x = small(np.random.default_rng(0), (3, hidden))
    x[1, hidden - 200] = value
    got, encoded = reference.logfmt_round_trip(x)
    want = np.ones((3, hidden // block), bool)
    want[1, -1] = is_encoded
    assert np.array_equal(encoded, want)
    bound = reference.logfmt_error_bound(x)
    raw = np.repeat(~want, block, axis=1)
    assert np.array_equal(got[raw].view(np.uint32), x[raw].astype(np.float32).view(np.uint32))
    assert not bound[raw].any() and (bound[~raw] > 0).all()


def test_groups_without_a_range_are_not_encoded():
    x = small(np.random.default_rng(0), (3, 2048))
    x[0, 128:256], x[1, 1024:1152], x[2, :128] = 0, 0.25, -0.25
    x[2, 5] = 0.25
    got, encoded = reference.logfmt_round_trip(x)
    assert encoded.tolist() == [[False, True], [True, False], [False, True]]
    assert np.array_equal(got[0, :1024], x[0, :1024].astype(np.float32))


def in_float32(x):
    """The values of encoded blocks as a kernel computes them: in float32, differences first."""
    one, shape = np.float32(1), (len(x), -1, 128)
    size = np.abs(x.astype(np.float32)).reshape(shape)
    with np.errstate(divide="ignore"):
        log_x = np.log2(size)
    log_max = log_x.max(axis=2, keepdims=True)
    log_min = np.maximum(log_x.min(axis=2, keepdims=True), log_max - np.float32(32))
    step = (log_max - log_min) * np.float32(1 / 510)
    middle = np.log2((one + np.exp2(step)) / np.float32(2)) / step
    codes = np.maximum((log_x - log_min) * (one / step) + (np.float32(2) - middle), 0)
    codes = np.floor(codes).astype(np.float32)
    assert codes.dtype == np.float32 and codes.max() == 511
    values = np.where(codes > 0, np.exp2(log_min + (codes - one) * step), np.float32(0))
    return np.copysign(values.reshape(x.shape), x.astype(np.float32))


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.1, 1, 8, 31, 40, 100]),
       st.sampled_from([0, 20, 100]))
@settings(max_examples=60)
def test_logfmt_keeps_its_bound(seed, spread, below):
    rng = np.random.default_rng(seed)
    x = np.ldexp(small(rng, (4, 1024), spread).astype(np.float32), -below).astype(BF16)
    got, is_encoded = reference.logfmt_round_trip(x)
    bound, exact = reference.logfmt_error_bound(x), x.astype(np.float64)
    assert bound.dtype == np.float64 and bound.shape == x.shape
    assert is_encoded.all()
    assert (np.abs(got - exact) <= bound).all()
    assert (np.abs(in_float32(x) - exact) <= bound).all()
    near = np.abs(exact) >= np.abs(exact).reshape(4, 8, 128).max(axis=2).repeat(128, 1) * 2.0**-31
    assert (bound[near] <= 0.022 * np.abs(exact[near]) + 2.0**-125).all()


def test_logfmt_rows_are_combined():
    topk_idxs, weights = [IDX], [np.array([[0.5, 2]], np.float32)]
    (received,) = reference.low_latency_dispatch([ONE], topk_idxs, 1, 2, use_fp8=False)
    y = small(np.random.default_rng(0), received.recv_x.shape)
    flat, bound = y.reshape(-1, 512), reference.logfmt_error_bound(y.reshape(-1, 512))
    sent = reference.logfmt_round_trip(flat)[0].reshape(y.shape)
    (got,) = reference.low_latency_combine([sent], [received], topk_idxs, weights)
    want = weights[0].astype(np.float64) @ flat.astype(np.float64)
    error = np.abs(got.astype(np.float64) - want)
    assert error.max() > 0 and (error <= weights[0] @ bound + np.abs(want) * 2.0**-7).all()


def test_only_rows_of_other_ranks_are_encoded():
    """Two ranks with an expert each; every token goes to both."""
    rng = np.random.default_rng(1)
    idxs = [np.array([[0, 1], [1, 0]]), np.array([[1, 0]])]
    weights = [rng.random(idx.shape, dtype=np.float32) for idx in idxs]
    received = reference.low_latency_dispatch([np.ones((len(idx), 512), BF16) for idx in idxs],
                                              idxs, 2, 2, use_fp8=False)
    ys = [small(rng, r.recv_x.shape) for r in received]
    for rank, got in enumerate(reference.low_latency_combine(ys, received, idxs, weights,
                                                             use_logfmt=True)):
        seen = [y.astype(np.float32) if home == rank else
                reference.logfmt_round_trip(y[0])[0][None] for home, y in enumerate(ys)]
        want = reference.low_latency_combine(seen, received, idxs, weights)[rank]
        assert np.array_equal(got.view(np.uint16), want.view(np.uint16))
        plain = reference.low_latency_combine(ys, received, idxs, weights)[rank]
        assert (got != plain).any()


@pytest.mark.parametrize("dtype, hidden, reduce, text", [
    (BF16, 256, "exact", r"^ys: must be bfloat16 \[\.\., multiple of 512\] with use_logfmt"),
    (np.float32, 512, "exact", r"^ys: must be bfloat16 \[\.\., multiple of 512\] with use_logfmt"),
    (BF16, 512, "rank", "^use_logfmt: must be False with reduce='rank'"),
])
def test_what_is_not_combined_in_logfmt(dtype, hidden, reduce, text):
    idx = np.zeros((1, 1), np.int64)
    received = reference.low_latency_dispatch([np.ones((1, hidden), BF16)], [idx], 1, 1,
                                              use_fp8=False)
    with pytest.raises(ValueError, match=text):
        reference.low_latency_combine([received[0].recv_x.astype(dtype)], received, [idx],
                                      [np.ones((1, 1), np.float32)], reduce, use_logfmt=True)


@pytest.mark.parametrize("call", [reference.logfmt_round_trip, reference.logfmt_error_bound])
def test_logfmt_of_no_rows(call):
    values = call(np.zeros((0, 1024), BF16))
    assert (values[0] if isinstance(values, tuple) else values).shape == (0, 1024)


@pytest.mark.parametrize("call", [reference.logfmt_round_trip, reference.logfmt_error_bound])
@pytest.mark.parametrize("x", [np.ones((1, 256), BF16), np.ones(512, BF16),
                               np.ones((1, 512), np.float32)], ids=["width", "rank", "dtype"])
def test_bad_logfmt_rows_are_refused(call, x):
    with pytest.raises(ValueError, match="^x: must be bfloat16"):
        call(x)
