# SPDX-License-Identifier: MIT
"""Rows and scales of every type and width, in any strides, against the reference bit for bit."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from deepep_ptx import Buffer, config, reference, run_ranks
from deepep_ptx.arrays.dtypes import (
    BFLOAT16,
    BY_NAME,
    FLOAT4_X2,
    ROW_CODES,
    SCALE_ITEMSIZES,
    name_of,
    values_of,
)
from deepep_ptx.errors import RankError, RankMismatchError

R, E, K = 3, 6, 2
SCALE_DTYPES = [dtype for dtype in ROW_CODES if dtype.itemsize in SCALE_ITEMSIZES]
LAYOUTS = ["rows", "tokens side by side", "every second", "backwards", "one for all"]
E8M0 = BY_NAME["float8_e8m0fnu"]
# Without shrinking: an example is a run of all ranks.
SETTINGS = {"suppress_health_check": [HealthCheck.too_slow],
            "phases": [Phase.explicit, Phase.reuse, Phase.generate]}


def any_bits(rng, shape, dtype):
    """Any bytes, but for bool, which has two values."""
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    return rng.integers(0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), np.uint8).view(dtype)


def scales_of(rng, num_tokens, num_scales, dtype, layout):
    """[num_tokens, num_scales] in strides that `layout` names."""
    if layout == "tokens side by side":
        return any_bits(rng, (num_scales, max(1, num_tokens)), dtype)[:, :num_tokens].T
    if layout == "every second":
        return any_bits(rng, (2 * num_tokens, 3 * num_scales), dtype)[::2, 1::3][:, :num_scales]
    if layout == "backwards":
        return any_bits(rng, (num_tokens, num_scales), dtype)[::-1, ::-1]
    if layout == "one for all":
        one = rng.integers(0, 2, num_scales * dtype.itemsize, np.uint8)
        return np.ndarray((num_tokens, num_scales), dtype, one, strides=(0, dtype.itemsize))
    return any_bits(rng, (num_tokens, num_scales), dtype)


class NumPyArrays:
    """As they are."""

    @staticmethod
    def give(array):
        return array

    @staticmethod
    def get(array, dtype):
        assert array.dtype == dtype and array.flags.c_contiguous
        return np.array(array)


class TorchArrays:
    """Tensors of the same memory and type."""

    @staticmethod
    def give(array):
        import torch

        if array.dtype == np.bool_:
            return torch.from_numpy(array)
        bits = torch.from_numpy(array.view(f"u{array.itemsize}") if array.itemsize < 8
                                else array.view(np.float64 if array.itemsize == 8
                                                else np.complex128))
        return bits.view(getattr(torch, name_of(array.dtype)))

    @staticmethod
    def get(tensor, dtype):
        import torch

        assert tensor.dtype is getattr(torch, name_of(dtype)) and tensor.is_contiguous()
        if dtype == np.bool_:
            return tensor.numpy().copy()
        return tensor.view(torch.uint8).numpy().copy().view(dtype)


@dataclass(frozen=True, eq=False)
class Case:
    library: type
    policy: str
    arch: str
    worst: bool
    xs: list
    others: list        # sent again, with the handle
    topk_idxs: list
    topk_weights: list


def pair(x):
    return x if isinstance(x, tuple) else (x,)


def rank_main(comm, case):
    """Bytes and names of what dispatch and a cached dispatch return."""
    def give(x):
        given = tuple(case.library.give(array) for array in pair(x))
        return given if isinstance(x, tuple) else given[0]

    def get(received, x):
        assert isinstance(received, tuple) == isinstance(x, tuple)
        return [case.library.get(array, like.dtype)
                for array, like in zip(pair(received), pair(x), strict=True)]

    rank = comm.rank
    x, other = case.xs[rank], case.others[rank]
    idx, weights = (case.library.give(a) for a in (case.topk_idxs[rank], case.topk_weights[rank]))
    with Buffer(comm, 1 << 20, policy=case.policy) as buffer:
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, E)
        received, *_, handle, _ = buffer.dispatch(
            give(x), num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert, topk_idx=idx, topk_weights=weights,
            num_worst_tokens=worst_tokens(case))
        assert handle.hidden == pair(x)[0].shape[1] * values_of(pair(x)[0].dtype)
        again = buffer.dispatch(give(other), handle=handle)[0]
        return int(handle[0][-1, rank]), get(received, x), get(again, other)


def worst_tokens(case):
    return R * max(map(len, case.topk_idxs)) + 1 if case.worst else 0


def check(case):
    want = reference.dispatch(case.xs, case.topk_idxs, case.topk_weights, E, worst_tokens(case))
    again = reference.cached_dispatch(case.others, want)
    got = run_ranks(rank_main, R, case, arch=case.arch)
    for rank, (num_recv, *results) in enumerate(got):
        assert num_recv == want[rank].num_recv
        for received, wanted in zip(results, (want[rank].recv_x, again[rank]), strict=True):
            for have, need in zip(received, pair(wanted), strict=True):
                assert have.shape == need.shape and have.dtype == need.dtype
                assert have[:num_recv].tobytes() == need[:num_recv].tobytes()


def known_to(library):
    """dtypes that arrays of the library can have."""
    if library is NumPyArrays:
        return list(ROW_CODES)
    torch = pytest.importorskip("torch")
    return [dtype for dtype in ROW_CODES if hasattr(torch, name_of(dtype))]


def rows(draw, rng, dtypes, library, sizes, hidden=None):
    """What the ranks send: arrays, or pairs with scales."""
    dtype = draw(st.sampled_from(dtypes))
    hidden = hidden or draw(st.integers(1, 5)) * 16 // min(16, dtype.itemsize)
    xs = [any_bits(rng, (n, hidden), dtype) for n in sizes]
    if not draw(st.booleans()):
        return xs
    scale_dtype = draw(st.sampled_from([d for d in dtypes if d in SCALE_DTYPES]))
    num_scales = draw(st.integers(1, 20) | st.sampled_from([31, 32, 33, 64, 90, 129]))
    layouts = [name for name in LAYOUTS if name != "backwards" or library is NumPyArrays]
    return [(x, scales_of(rng, len(x), num_scales, scale_dtype, draw(st.sampled_from(layouts))))
            for x in xs]


@st.composite
def cases(draw, library):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtypes = known_to(library)
    sizes = [draw(st.integers(0, 6)) for _ in range(R)]
    xs = rows(draw, rng, dtypes, library, sizes)
    hidden = pair(xs[0])[0].shape[1]
    others = rows(draw, rng, dtypes, library, sizes)
    if pair(others[0])[0].shape[1] * values_of(pair(others[0])[0].dtype) > hidden:
        others = xs
    policy, arch = draw(st.sampled_from([("fast", "sm_90"), ("bulk", "sm_90"), ("safe", "sm_80")]))
    return Case(library, policy, arch, draw(st.booleans()), xs, others,
                [rng.integers(-1, E, (n, K)) for n in sizes],
                [rng.random((n, K), np.float32) for n in sizes])


@settings(max_examples=120, **SETTINGS)
@given(cases(NumPyArrays))
def test_numpy_rows_and_scales(case):
    check(case)


@settings(max_examples=60, **SETTINGS)
@given(st.data())
def test_torch_rows_and_scales(data):
    pytest.importorskip("torch")
    check(data.draw(cases(TorchArrays)))


def case_of(x_dtype, scale_dtype=None, *, library=NumPyArrays, hidden=32, num_scales=3,
            layout="rows", sizes=(4, 0, 5), policy="fast", arch="sm_90"):
    rng = np.random.default_rng(7)

    def make():
        xs = [any_bits(rng, (n, hidden), x_dtype) for n in sizes]
        if scale_dtype is None:
            return xs
        return [(x, scales_of(rng, len(x), num_scales, scale_dtype, layout)) for x in xs]

    return Case(library, policy, arch, False, make(), make(),
                [rng.integers(-1, E, (n, K)) for n in sizes],
                [rng.random((n, K), np.float32) for n in sizes])


@pytest.mark.parametrize("library", [NumPyArrays, TorchArrays])
@pytest.mark.parametrize("dtype", list(ROW_CODES), ids=name_of)
def test_rows_of_every_type(dtype, library):
    if dtype not in known_to(library):
        pytest.skip(f"{library.__name__} have no {name_of(dtype)}")
    check(case_of(dtype, library=library, hidden=48 // min(16, dtype.itemsize)))


@pytest.mark.parametrize("library", [NumPyArrays, TorchArrays])
@pytest.mark.parametrize("dtype", SCALE_DTYPES, ids=name_of)
def test_scales_of_every_type(dtype, library):
    if dtype not in known_to(library):
        pytest.skip(f"{library.__name__} have no {name_of(dtype)}")
    check(case_of(BFLOAT16, dtype, library=library))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("itemsize", SCALE_ITEMSIZES)
@pytest.mark.parametrize("num_scales", [1, 2, 3, 31, 32, 33, 63, 64, 65, 90, 128, 129, 224])
@pytest.mark.parametrize(("policy", "arch"), [("bulk", "sm_90"), ("fast", "sm_80")])
def test_any_number_of_scales(num_scales, itemsize, layout, policy, arch):
    check(case_of(FLOAT4_X2, np.dtype(f"u{itemsize}"), num_scales=num_scales, layout=layout,
                  policy=policy, arch=arch))


def test_mxfp8_of_hidden_2880():
    x, scale = case_of(BY_NAME["float8_e4m3fn"], E8M0, hidden=2880, num_scales=90).xs[0]
    assert scale.shape[1] * 32 == x.shape[1]
    check(case_of(BY_NAME["float8_e4m3fn"], E8M0, hidden=2880, num_scales=90))


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 5])
def test_scales_at_any_address(offset):
    """One-byte scales: rows begin where they begin, and are as long as they are."""
    for num_scales, row in ((8, 8), (8, 9), (6, 6), (4, 12), (90, 90)):
        case = case_of(BFLOAT16, E8M0, num_scales=num_scales)
        xs = []
        for x, scales in case.xs:
            memory = np.zeros(64 + len(x) * row, np.uint8)
            first = -memory.ctypes.data % 64 + offset
            placed = np.ndarray(scales.shape, scales.dtype, memory, first, (row, 1))
            placed[...] = scales
            xs.append((x, placed))
        check(Case(**vars(case) | {"xs": xs}))


# -- what is promised beside the bytes ------------------------------------------------------------

def layout_of(buffer, idx):
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, E)
    return {"num_tokens_per_rank": per_rank, "num_tokens_per_expert": per_expert,
            "is_token_in_rank": in_rank}


ROUTES = np.tile(np.arange(E, dtype=np.int64), (4, 1))      # every token to every rank


@pytest.mark.parametrize(("first", "second", "argument", "values"), [
    ((np.zeros((4, 4), np.float32),), (np.zeros((4, 4), np.int32),), "x.dtype",
     ("float32", "int32")),
    ((np.zeros((4, 16), FLOAT4_X2),), (np.zeros((4, 16), np.uint8),), "x.dtype",
     ("float4_e2m1fn_x2", "uint8")),
    ((np.zeros((4, 8), BFLOAT16), np.zeros((4, 3), E8M0)),
     (np.zeros((4, 8), BFLOAT16), np.zeros((4, 3), np.uint8)), "x.dtype",
     ("bfloat16 with float8_e8m0fnu scales", "bfloat16 with uint8 scales")),
    ((np.zeros((4, 8), BFLOAT16), np.zeros((4, 3), E8M0)), (np.zeros((4, 8), BFLOAT16),),
     "x.dtype", ("bfloat16 with float8_e8m0fnu scales", "bfloat16")),
    ((np.zeros((4, 8), BFLOAT16), np.zeros((4, 3), np.float16)),
     (np.zeros((4, 8), BFLOAT16), np.zeros((4, 4), np.float16)), "num_scales",
     ("6 bytes", "8 bytes")),
    ((np.zeros((4, 2), np.complex64),), (np.zeros((4, 2), np.float64),), "x.dtype",
     ("complex64", "float64")),
])
def test_ranks_that_disagree(first, second, argument, values):
    def main(comm):
        given = (first, second)[comm.rank]
        with Buffer(comm) as buffer:
            layout = layout_of(buffer, ROUTES)
            with pytest.raises(RankMismatchError) as caught:
                buffer.dispatch(given if len(given) == 2 else given[0], **layout)
            assert caught.value.argument == argument
            assert sorted(map(str, caught.value.values)) == sorted(values)

    run_ranks(main, 2)


UNPACKED = [name for name in ("int2", "int4", "uint4", "float4_e2m1fn", "float6_e2m3fn",
                              "float6_e3m2fn") if hasattr(ml_dtypes, name)]


@pytest.mark.parametrize("name", UNPACKED)
def test_unpacked_types_are_refused_by_name(name):
    array = np.zeros((4, 32), getattr(ml_dtypes, name))

    def main(comm):
        with Buffer(comm, 1 << 16) as buffer:
            layout = layout_of(buffer, ROUTES)
            for argument, x in (("x", array), ("x", (array, np.ones((4, 1), np.float32))),
                                ("x[1]", (np.zeros((4, 16), np.uint8), array))):
                with pytest.raises(TypeError) as caught:
                    buffer.dispatch(x, **layout)
                text = str(caught.value)
                assert text.startswith(f"{argument}: dtype {name} has a value of ")
                assert "; pack them, several in a byte, and give the bytes as uint8" in text
            with pytest.raises(TypeError, match=rf"^dtype: {name} has a value of .* pack"):
                buffer.get_local_buffer_tensor(array.dtype, 4)

    run_ranks(main, 1)


@pytest.mark.parametrize("hint", [0, 64])
def test_combine_of_packed_rows(hint):
    """Combine's rows may be of any width, wider than the packed rows that were dispatched too."""
    def main(comm, dtype):
        x = np.zeros((4, 16), dtype)
        with Buffer(comm) as buffer:
            *_, handle, _ = buffer.dispatch(x, **layout_of(buffer, ROUTES), combine_hidden=hint)
            for hidden in (8, 32, 64):
                y = np.ones((handle.num_recv, hidden), BFLOAT16)
                assert (buffer.combine(y, handle)[0].astype(np.float32) == 2).all()
            return handle.hidden

    assert run_ranks(main, 2, FLOAT4_X2) == [32, 32]
    for dtype in (np.uint8, np.int32, BY_NAME["float8_e4m3fn"], np.float64):
        assert run_ranks(main, 2, dtype) == [16, 16]


@pytest.mark.parametrize(("dtype", "scale_dtype", "num_scales"), [
    (np.float64, None, 0), (np.complex128, None, 0), (BFLOAT16, np.float32, 90),
    (BY_NAME["float8_e4m3fn"], E8M0, 1), (np.uint8, np.float32, 64),
])
def test_landing_has_room_for_the_same_rows_again(dtype, scale_dtype, num_scales):
    """Whatever else the arena holds, a cached dispatch of the same types has room."""
    dtype = np.dtype(dtype)
    scale_itemsize = np.dtype(scale_dtype).itemsize if num_scales else 4

    def main(comm):
        x = np.zeros((4, 16), dtype)
        if num_scales:
            x = x, np.ones((4, num_scales), scale_dtype)
        with Buffer(comm) as buffer:
            *_, handle, _ = buffer.dispatch(x, **layout_of(buffer, ROUTES))
            needed = config.slot_bytes(handle.num_recv, 16, 0, dtype.itemsize, num_scales, 0,
                                       scale_itemsize)
            assert buffer.stats()["landing_bytes"] >= needed
            kept = [buffer.dispatch(x, handle=handle)[0] for _ in range(3)]
            return len(kept)

    assert run_ranks(main, 2) == [3, 3]


def test_what_scales_cannot_be():
    def main(comm):
        x = np.zeros((4, 8), BFLOAT16)
        fields = np.zeros((4, 3), [("scale", "f4"), ("odd", "u2")])["scale"]
        with Buffer(comm) as buffer:
            layout = layout_of(buffer, ROUTES)
            for scales, error, text in (
                (np.ones((4, 3)), TypeError, "x[1]: dtype must be of 1, 2 or 4 bytes, got float64"),
                (np.ones((4, 3), "M8[s]"), TypeError, "x[1]: dtype must be a number's"),
                (np.ones((4, 0), np.uint8), ValueError, "x[1]: num_scales must be at least 1"),
                (fields, ValueError, "x[1]: strides must be multiples of 4 bytes, got [18, 6]"),
                (np.ones(4, np.uint8), ValueError, "x[1]: shape must be [4, num_scales]"),
            ):
                with pytest.raises(error) as caught:
                    buffer.dispatch((x, scales), **layout)
                assert str(caught.value).startswith(text), str(caught.value)

    run_ranks(main, 1)


def test_the_reference_says_what_it_takes():
    with pytest.raises(ValueError, match="1-, 2- or 4-byte elements, being scales"):
        case = case_of(BFLOAT16, np.dtype(np.float64))
        reference.dispatch(case.xs, case.topk_idxs, case.topk_weights, E)


def test_errors_of_a_rank_name_the_rank():
    def main(comm):
        with Buffer(comm) as buffer:
            buffer.dispatch(np.zeros((4, 3), np.float32), **layout_of(buffer, ROUTES))

    with pytest.raises(RankError, match="x: hidden must be a multiple of 4 and at least that"):
        run_ranks(main, 1)
