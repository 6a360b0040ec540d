# SPDX-License-Identifier: MIT
"""A job as a file: the rows of every rank, their experts and weights, as NumPy's .npz.

entry          dtype            shape        meaning
x              uint16 or uint8  [T, H]       bits of the rows: all ranks', in rank order
dtype          text                          of x: "bfloat16" (uint16), "float8_e4m3fn" (uint8)
scales         float32          [T, H/128]   with float8_e4m3fn alone: x times them is the row
topk_idx       int64 or int32   [T, K]       experts of each row, -1 = no choice
topk_weights   float32          [T, K]       finite
num_tokens     any integer      [R]          rows of each rank, 0 or more; their sum is T
num_experts    any integer                   optional: expert e lives on rank e // (it / R)

H is a multiple of 8 (bfloat16) or 128 (float8_e4m3fn); K is 1..32; R is 1..64; T is 1 or more.
Other entries are mistakes.  A file is data only: pickled objects are refused, never loaded.

    np.savez("job.npz", x=rows.view(np.uint16), dtype="bfloat16", topk_idx=topk_idx,
             topk_weights=topk_weights, num_tokens=[60, 68], num_experts=64)
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from deepep_ptx.reference import FP8, FP8_GROUP, MAX_TOPK

MAX_RANKS = 64
MAX_EXPERT = 2**31 - 1  # where a file does not say how many there are
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float8_e4m3fn": np.dtype(FP8)}
_BITS = {"bfloat16": np.dtype(np.uint16), "float8_e4m3fn": np.dtype(np.uint8)}
_COLUMNS = {"bfloat16": 8, "float8_e4m3fn": FP8_GROUP}   # hidden is a multiple of it
_REQUIRED = ("x", "dtype", "topk_idx", "topk_weights", "num_tokens")
_OPTIONAL = ("scales", "num_experts")


@dataclass(frozen=True, eq=False)
class JobArrays:
    """What a file holds, as lists in rank order.

    xs: bfloat16 [T_r, H], or pairs (float8_e4m3fn [T_r, H], float32 [T_r, H/128]).
    num_experts: None if the file does not say.
    """

    xs: list
    topk_idxs: list
    topk_weights: list
    num_experts: int | None


def save(path, arrays):
    """Write `JobArrays`; ValueError when the file cannot be written."""
    entries = {"num_tokens": np.array([len(idx) for idx in arrays.topk_idxs], np.int64),
               "topk_idx": np.concatenate(arrays.topk_idxs),
               "topk_weights": np.concatenate(arrays.topk_weights)}
    xs = arrays.xs
    if isinstance(xs[0], tuple):
        xs, scales = zip(*xs, strict=True)
        entries["scales"] = np.concatenate(scales)
    x = np.concatenate(xs)
    entries["dtype"] = np.array(str(x.dtype))
    entries["x"] = x.view(_BITS[str(x.dtype)])
    if arrays.num_experts is not None:
        entries["num_experts"] = np.array(arrays.num_experts, np.int64)
    try:
        with Path(path).open("wb") as file:     # np.savez would add a suffix to a name
            np.savez(file, **entries)
    except OSError as error:
        raise ValueError(f"save_input: cannot write {path}: {error.strerror}") from error


def load(path):
    """Read and check a file.

    Returns:
        `JobArrays`.

    Raises:
        ValueError: anything that is not as the module says, in one line that names the file, the
            entry and what is accepted.
    """
    entries = _entries(path)
    try:
        return _checked(entries)
    except ValueError as error:
        raise ValueError(f"input: {path}: {error}") from None


def _entries(path):
    """name -> array of everything in the file."""
    try:
        with Path(path).open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")     # NumPy's, about headers: what counts is the arrays
            return _read(path, file)
    except OSError as error:
        raise ValueError(f"input: cannot read {path}: {error.strerror}") from error


def _read(path, file):
    # NumPy and zipfile raise errors of many kinds at a broken file, all of them its fault.
    try:
        archive = np.load(file, allow_pickle=False)
        names = archive.files
    except Exception as error:
        raise ValueError(f"input: {path}: must be an .npz file (a zip of NumPy arrays), and is "
                         f"none or is broken") from error
    entries = {}
    for name in names:
        try:
            entries[name] = archive[name]
        except Exception as error:
            raise ValueError(f"input: {path}: entry {name!r} must be a whole array of numbers or "
                             f"text, not pickled objects; it cannot be read "
                             f"({_first_line(error)})") from error
    return entries


def _checked(entries):
    missing = [name for name in _REQUIRED if name not in entries]
    if missing:
        raise ValueError(f"entry {missing[0]!r} must be there, as must "
                         f"{', '.join(name for name in _REQUIRED if name != missing[0])}; "
                         f"found {', '.join(entries) or 'none'}")
    for name, array in entries.items():
        if name not in (*_REQUIRED, *_OPTIONAL):
            raise ValueError(f"entry {name!r} must not be there; accepted are "
                             f"{', '.join((*_REQUIRED, *_OPTIONAL))}")
        if not isinstance(array, np.ndarray):
            raise ValueError(f"entry {name!r} must be a NumPy array, it is something else")

    dtype = entries["dtype"]
    if dtype.shape or dtype.dtype.kind != "U" or dtype.item() not in DTYPES:
        raise ValueError(f"entry 'dtype' must be one text of {', '.join(DTYPES)}, "
                         f"got {_what(dtype)}")
    dtype = dtype.item()
    x = _array(entries, "x", (_BITS[dtype],), ("T", "H"), f", the bits of {dtype}")
    num_rows, hidden = x.shape
    if not num_rows:
        raise ValueError(f"entry 'x' must have at least one row, got {x.shape}")
    if hidden < 8 or hidden % _COLUMNS[dtype]:
        raise ValueError(f"entry 'x' must have a positive multiple of {_COLUMNS[dtype]} columns "
                         f"with {dtype}, got {hidden}")
    topk_idx = _array(entries, "topk_idx", (np.int64, np.int32), (num_rows, "K"))
    num_topk = topk_idx.shape[1]
    if not 1 <= num_topk <= MAX_TOPK:
        raise ValueError(f"entry 'topk_idx' must have 1..{MAX_TOPK} columns, got {num_topk}")
    topk_weights = _array(entries, "topk_weights", (np.float32,), topk_idx.shape)
    if not np.isfinite(topk_weights).all():
        raise ValueError("entry 'topk_weights' must be finite, it has NaN or infinities")
    num_tokens = _num_tokens(entries, num_rows)
    num_experts = _num_experts(entries, len(num_tokens))
    highest = MAX_EXPERT if num_experts is None else num_experts - 1
    if topk_idx.min() < -1 or topk_idx.max() > highest:
        raise ValueError(f"entry 'topk_idx' must be in [-1, {highest}], got {topk_idx.min()} to "
                         f"{topk_idx.max()}")

    ends = np.cumsum(num_tokens)[:-1]
    rows = np.split(np.ascontiguousarray(x).view(DTYPES[dtype]), ends)
    if dtype == "float8_e4m3fn":
        scales = _array(entries, "scales", (np.float32,), (num_rows, hidden // FP8_GROUP))
        rows = list(zip(rows, np.split(np.ascontiguousarray(scales), ends), strict=True))
    elif "scales" in entries:
        raise ValueError(f"entry 'scales' must not be there with dtype {dtype}")
    return JobArrays(rows, np.split(np.ascontiguousarray(topk_idx), ends),
                     np.split(np.ascontiguousarray(topk_weights), ends), num_experts)


def _num_tokens(entries, num_rows):
    counts = entries["num_tokens"]
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or not 1 <= len(counts) <= MAX_RANKS:
        raise ValueError(f"entry 'num_tokens' must be integers [1..{MAX_RANKS}], one per rank, "
                         f"got {_what(counts)}")
    counts = counts.tolist()                    # exact, whatever the integers are
    if min(counts) < 0 or sum(counts) != num_rows:
        raise ValueError(f"entry 'num_tokens' must be 0 or more for each rank and add up to the "
                         f"{num_rows} rows of x, got {counts}")
    return counts


def _num_experts(entries, num_ranks):
    if "num_experts" not in entries:
        return None
    value = entries["num_experts"]
    if value.shape or value.dtype.kind not in "iu":
        raise ValueError(f"entry 'num_experts' must be one integer, got {_what(value)}")
    value = value.item()
    if value < 1 or value % num_ranks:
        raise ValueError(f"entry 'num_experts' must be a positive multiple of the number of ranks "
                         f"({num_ranks}), got {value}")
    return value


def _array(entries, name, dtypes, shape, meaning=""):
    """The entry, if it has one of the dtypes, and the shape; text in `shape` is any size."""
    wanted = " or ".join(str(np.dtype(dtype)) for dtype in dtypes)
    wanted += f" [{', '.join(map(str, shape))}]{meaning}"
    array = entries.get(name)
    if array is None:
        raise ValueError(f"entry {name!r} must be there: {wanted}")
    fits = len(array.shape) == len(shape) and all(
        isinstance(want, str) or size == want
        for size, want in zip(array.shape, shape, strict=True))
    if not fits or array.dtype not in dtypes:
        raise ValueError(f"entry {name!r} must be {wanted}, got {_what(array)}")
    return array


def _what(array):
    if array.shape:
        return f"{array.dtype} [{', '.join(map(str, array.shape))}]"
    return f"{array.dtype} {array.item()!r}"[:60]


def _first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]
