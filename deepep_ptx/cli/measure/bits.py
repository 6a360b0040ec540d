# SPDX-License-Identifier: MIT
"""Results against what has to come out, bit for bit."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Wrong:
    """An array that is not the reference's."""

    name: str       # of what made it
    rank: int
    array: str
    row: int | None
    num_rows: int
    detail: str

    def __str__(self):
        where = f"{self.name}: rank {self.rank}: {self.array}: "
        if self.row is None:
            return where + self.detail
        return f"{where}first bad row {self.row}, of {self.num_rows} bad rows; {self.detail}"


def wrong_rows(got, want):
    """Numbers of the rows of two arrays of one shape and dtype whose bits differ."""
    differs = _bits(got) != _bits(want)
    return np.flatnonzero(differs.any(axis=tuple(range(1, differs.ndim))))


def first_wrong(name, rank, got, wanted, machine):
    """The first array of `got` whose valid rows are not those of `wanted`, as `Wrong`, or None.

    got: name -> array of `machine`.  wanted: name -> NumPy array of the valid rows.
    """
    for array, want in wanted.items():
        if machine.same(got[array], want):
            continue
        wrong = wrong_array(name, rank, array, machine.get(got[array])[:len(want)], want)
        if wrong:
            return wrong
    return None


def wrong_array(name, rank, array, rows, want):
    """`Wrong` of an array that is not `want`, or None; both NumPy arrays."""
    if rows.shape != want.shape or rows.dtype != want.dtype:
        return Wrong(name, rank, array, None, 0, f"is {rows.dtype} {list(rows.shape)}, "
                                                 f"reference {want.dtype} {list(want.shape)}")
    bad = wrong_rows(rows, want)
    if not len(bad):
        return None
    return Wrong(name, rank, array, int(bad[0]), len(bad), _difference(
        np.atleast_1d(rows[bad[0]]), np.atleast_1d(want[bad[0]])))


def _difference(got, want):
    column = int(wrong_rows(got, want)[0])
    return f"column {column} is {got[column]}, reference {want[column]}"


def _bits(array):
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
