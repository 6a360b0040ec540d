# SPDX-License-Identifier: MIT
"""Damaged files: what readers of them are given, by seed."""

import io
import zipfile

import numpy as np

DEEP = 20_000           # far deeper than parsers recurse
ODD = ["null", "true", "-1", "1e999", "NaN", "[]", "{}", '""', '"\\ud800"', "9" * 5000,
       "1" + "0" * 400, '"x"', "[[]]", "0.5"]


def damaged(rng, data):
    """`data`, bytes of a text, with one to three kinds of damage."""
    for _ in range(rng.integers(1, 4)):
        data = KINDS[rng.integers(len(KINDS))](rng, data)
    return data


def _place(rng, data):
    return int(rng.integers(len(data) + 1))


def _cut(rng, data):
    return data[:_place(rng, data)]


def _flip(rng, data):
    if not data:
        return data
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        changed[rng.integers(len(changed))] = rng.integers(256)
    return bytes(changed)


def _drop(rng, data):
    at = _place(rng, data)
    return data[:at] + data[at + int(rng.integers(1, 60)):]


def _twice(rng, data):
    at = _place(rng, data)
    part = data[at:at + int(rng.integers(1, 200))]
    return data[:at] + part + data[at:]


def _conflict(rng, data):
    """As a merge leaves it."""
    lines = data.splitlines(keepends=True)
    at = int(rng.integers(len(lines) + 1))
    return b"".join([*lines[:at], b"<<<<<<< HEAD\n", *lines[at:at + 2], b"=======\n",
                     *lines[at:at + 2], b">>>>>>> other\n", *lines[at + 2:]])


def _nest(rng, data):
    at = _place(rng, data)
    return data[:at] + rng.choice([b"[", b'{"a":', b"{ a = ", b"[" * 3]) * DEEP + data[at:]


def _other_value(rng, data):
    """Something else in the place of a number or a string."""
    starts = [at for at in range(len(data)) if data[at:at + 2] in (b": ", b"= ")]
    if not starts:
        return data
    at = starts[rng.integers(len(starts))] + 2
    ends = [end for end in (data.find(mark, at) for mark in (b",", b"\n", b"}")) if end >= 0]
    return data[:at] + rng.choice(ODD).encode() + data[min(ends, default=len(data)):]


OTHER_ARRAYS = (np.zeros(0), np.zeros((2, 3, 4)), np.array(-1), np.array("x"), np.array(1e300),
                np.zeros(3, "M8[s]"), np.full((2, 16), 65535, np.uint16))
KINDS = (_cut, _flip, _drop, _twice, _conflict, _nest, _other_value, _other_value, _other_value)


def damaged_npz(rng, data):
    """An .npz of which bytes, or whole entries, are not what they were."""
    if rng.random() < 0.5:
        return damaged(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = list(entries)[rng.integers(len(entries))]
    what = rng.integers(4)
    if what == 0:
        del entries[name]
    elif what == 1:
        entries[name] = _flip(rng, entries[name][:128]) + entries[name][128:]
    elif what == 2:
        entries[name] = damaged(rng, entries[name])
    else:
        made = io.BytesIO()
        np.save(made, OTHER_ARRAYS[rng.integers(len(OTHER_ARRAYS))])
        entries[name] = made.getvalue()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return packed.getvalue()
