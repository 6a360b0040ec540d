# SPDX-License-Identifier: MIT
"""Jobs in files: what goes in comes out, and what is wrong is said in a line."""

import io
import os
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepep_ptx import reference
from deepep_ptx.cli.demo import jobfile

BF16 = ml_dtypes.bfloat16
NUM_TOKENS = [3, 0, 5]


def arrays(dtype="bf16", num_experts=6, index=np.int64):
    """A job of three ranks, one of them without tokens."""
    rng = np.random.default_rng(0)
    # Any bits: NaN, infinities and both zeros among them.
    xs = [rng.integers(0, 1 << 16, (n, 256), dtype=np.uint16).view(BF16) for n in NUM_TOKENS]
    if dtype == "fp8":
        xs = [reference.per_token_cast_to_fp8(x) for x in xs]
    return jobfile.JobArrays(
        xs, [rng.integers(-1, 6, (n, 2)).astype(index) for n in NUM_TOKENS],
        [rng.random((n, 2), dtype=np.float32) for n in NUM_TOKENS], num_experts)


def entries(dtype="bf16"):
    """The same as the entries of a file."""
    rng = np.random.default_rng(1)
    made = {"x": rng.integers(0, 1 << 16, (8, 256), dtype=np.uint16),
            "dtype": np.array("bfloat16"),
            "topk_idx": rng.integers(-1, 6, (8, 2)),
            "topk_weights": rng.random((8, 2), dtype=np.float32),
            "num_tokens": np.array(NUM_TOKENS), "num_experts": np.array(6)}
    if dtype == "fp8":
        made |= {"x": rng.integers(0, 1 << 8, (8, 256), dtype=np.uint8),
                 "dtype": np.array("float8_e4m3fn"),
                 "scales": rng.random((8, 2), dtype=np.float32)}
    return made


def write(path, made, pack=np.savez):
    with path.open("wb") as file:
        pack(file, **made)
    return path


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
@pytest.mark.parametrize("num_experts", [6, None])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_round_trip(tmp_path, dtype, num_experts, index):
    path = tmp_path / "a job"           # and no suffix appears
    want = arrays(dtype, num_experts, index)
    jobfile.save(path, want)
    got = jobfile.load(path)
    assert got.num_experts == num_experts and len(got.xs) == 3
    for a, b in zip(want.xs, got.xs, strict=True):
        parts = zip(a, b, strict=True) if dtype == "fp8" else [(a, b)]
        for left, right in parts:
            assert left.dtype == right.dtype and left.shape == right.shape
            assert np.array_equal(left.view(np.uint8), right.view(np.uint8))
            assert right.flags.c_contiguous
    for a, b in ((want.topk_idxs, got.topk_idxs), (want.topk_weights, got.topk_weights)):
        for left, right in zip(a, b, strict=True):
            assert left.dtype == right.dtype and np.array_equal(left, right)


def test_the_example_of_the_docs(tmp_path):
    rows = np.ones((128, 64), BF16)
    topk_idx = np.zeros((128, 4), np.int64)
    np.savez(tmp_path / "job.npz", x=rows.view(np.uint16), dtype="bfloat16", topk_idx=topk_idx,
             topk_weights=np.ones((128, 4), np.float32), num_tokens=[60, 68], num_experts=64)
    assert [len(x) for x in jobfile.load(tmp_path / "job.npz").xs] == [60, 68]


def test_compressed_and_column_major_files(tmp_path):
    made = entries("fp8")
    made |= {name: np.asfortranarray(made[name]) for name in ("x", "scales", "topk_idx")}
    got = jobfile.load(write(tmp_path / "f", made, np.savez_compressed))
    assert np.array_equal(np.concatenate([x for x, _ in got.xs]).view(np.uint8), made["x"])
    assert np.array_equal(np.concatenate([s for _, s in got.xs]), made["scales"])
    assert all(part.flags.c_contiguous for x in got.xs for part in x)


BAD = {
    "x": [np.zeros((8, 256), np.float32), np.zeros((8, 256), np.uint8), np.zeros(8, np.uint16),
          np.zeros((8, 12), np.uint16), np.zeros((8, 0), np.uint16),
          np.zeros((0, 256), np.uint16), np.zeros((8, 256), ">u2"), np.array(1, np.uint16)],
    "dtype": [np.array("float32"), np.array(["bfloat16"]), np.array(7), np.array(b"bfloat16")],
    "topk_idx": [np.zeros((7, 2), np.int64), np.zeros((8, 2), np.float32), np.zeros(8, np.int64),
                 np.zeros((8, 2), np.int16), np.zeros((8, 0), np.int64),
                 np.zeros((8, 33), np.int64), np.full((8, 2), 6), np.full((8, 2), -2)],
    "topk_weights": [np.zeros((8, 2)), np.zeros((8, 3), np.float32), np.zeros(8, np.float32),
                     np.full((8, 2), np.nan, np.float32), np.full((8, 2), np.inf, np.float32)],
    "num_tokens": [np.array([3, 0, np.nan]), np.array([3., 0., 5.]), np.array([3, 0, 6]),
                   np.array([9, 0, -1]), np.array(8), np.array([], int), np.zeros((3, 1), int),
                   np.array([8] + [0] * 64), np.array([2**63, 2**63, 8], np.uint64),
                   np.array([True, False])],
    "num_experts": [np.array(7), np.array(0), np.array(-6), np.array(6.), np.array([6])],
    "scales": [np.zeros((8, 2), np.float32)],           # with bfloat16
    "extra": [np.zeros(3)],
}
BAD_FP8 = {
    "x": [np.zeros((8, 192), np.uint8), np.zeros((8, 256), np.uint16)],
    "scales": [np.zeros((8, 2)), np.zeros((8, 3), np.float32), np.zeros((7, 2), np.float32),
               np.zeros((8, 2), np.int32), np.zeros(8, np.float32)],
}


@pytest.mark.parametrize("dtype, name, value", [
    (dtype, name, value) for dtype, table in (("bf16", BAD), ("fp8", BAD_FP8))
    for name, values in table.items() for value in values],
    ids=lambda v: f"{v.dtype}{list(v.shape)}" if isinstance(v, np.ndarray) else v)
def test_a_bad_entry_is_named(tmp_path, dtype, name, value):
    path = write(tmp_path / "f", entries(dtype) | {name: value})
    refused(path, f"entry '{name}' must ")


@pytest.mark.parametrize("dtype, name", [
    *[("bf16", name) for name in ("x", "dtype", "topk_idx", "topk_weights", "num_tokens")],
    ("fp8", "scales")])
def test_a_missing_entry_is_named(tmp_path, dtype, name):
    made = entries(dtype)
    del made[name]
    refused(write(tmp_path / "f", made), f"entry '{name}' must be there")


def test_without_num_experts_an_expert_is_any_number(tmp_path):
    made = entries()
    del made["num_experts"]
    made["topk_idx"][0, 0] = 1000
    assert jobfile.load(write(tmp_path / "f", made)).num_experts is None
    made["topk_idx"][0, 0] = 1 << 40
    refused(write(tmp_path / "f", made), "entry 'topk_idx' must be in")


def refused(path, start):
    with pytest.raises(ValueError) as error:
        jobfile.load(path)
    text = str(error.value)
    assert text.startswith(f"input: {path}: {start}") and "\n" not in text, text


def test_pickled_objects_are_not_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    made = entries() | {"x": np.array([Trap()], dtype=object)}
    refused(write(tmp_path / "f", made), "entry 'x' must be a whole array of numbers or text, not")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("content", [
    b"", b"no zip at all", b"PK\x03\x04 and no more", b"PK\x05\x06" + bytes(18), b"\x80\x04N.",
], ids=["empty", "text", "cut", "no entries", "pickle"])
def test_what_is_no_npz(tmp_path, content):
    path = tmp_path / "f"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^input: {path}: (must be an .npz file|entry 'x')"):
        jobfile.load(path)


def test_one_array_is_no_npz(tmp_path):
    np.save(tmp_path / "f.npy", np.zeros(3))
    refused(tmp_path / "f.npy", "must be an .npz file")


def test_a_member_that_is_no_array(tmp_path):
    path = write(tmp_path / "f", entries())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("scales.npy", b"no array")
    refused(path, "entry 'scales' must be a")


def test_a_header_that_promises_too_much(tmp_path):
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        member, {"descr": "<u2", "fortran_order": False, "shape": (1 << 50, 256)})
    made = entries()
    del made["x"]
    path = write(tmp_path / "f", made)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x.npy", member.getvalue())
    refused(path, "entry 'x' must be")


@pytest.mark.parametrize("path, reason", [
    ("no/such/file", "No such file"), (".", "Is a directory"),
])
def test_what_cannot_be_opened(path, reason):
    with pytest.raises(ValueError, match=f"^input: cannot read {path}: {reason}"):
        jobfile.load(path)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="^save_input: cannot write .*: Is a directory"):
        jobfile.save(tmp_path, arrays())


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40)
def test_a_truncated_file(tmp_path_factory, cut):
    whole = io.BytesIO()
    np.savez(whole, **entries())
    path = tmp_path_factory.mktemp("cut") / "f"
    path.write_bytes(whole.getvalue()[:int(cut * len(whole.getvalue()))])
    refused(path, "must be an .npz file")


@given(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
                       min_size=1, max_size=4), packed=st.booleans())
@settings(max_examples=150)
def test_a_damaged_file_is_a_line_or_no_damage(tmp_path_factory, places, packed):
    whole = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(whole, **entries())
    content = bytearray(whole.getvalue())
    for place, flip in places:
        content[int(place * len(content))] ^= flip
    path = tmp_path_factory.mktemp("damage") / "f"
    path.write_bytes(content)
    try:
        got = jobfile.load(path)
    except ValueError as error:
        assert str(error).startswith(f"input: {path}: ") and "\n" not in str(error)
    else:
        assert sum(len(x) for x in got.xs) == 8
