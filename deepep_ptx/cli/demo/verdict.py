# SPDX-License-Identifier: MIT
"""Every array of every rank against the reference, bit for bit."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mismatch:
    """The first element of an array that is not the reference's."""

    rank: int
    name: str
    index: tuple | None         # None: shape or dtype differ
    got: str
    want: str

    def __str__(self):
        if self.index is None:
            return f"rank {self.rank}: {self.name} is {self.got}, reference {self.want}"
        place = ", ".join(f"{axis} {i}" for axis, i in
                          zip(("row", "column"), self.index, strict=False))
        return f"rank {self.rank}: {self.name} {place} is {self.got}, reference {self.want}"


def check(outputs, wanted, bar):
    """Compare every rank's arrays with the reference's, `wanted`.

    Returns the first `Mismatch` of each array that differs, by rank; an empty list if none does.
    """
    found = []
    for rank, (output, arrays) in enumerate(zip(outputs, wanted, strict=True)):
        found += mismatches(rank, output.arrays, arrays)
        bar.update()
    return found


def mismatches(rank, arrays, wanted):
    """The first `Mismatch` of each of a rank's `arrays` that differs from its like in `wanted`."""
    found = [compare(rank, name, array, wanted[name]) for name, array in arrays.items()]
    return [mismatch for mismatch in found if mismatch]


def compare(rank, name, got, want):
    """The first element whose bits differ as a `Mismatch`, or None."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return Mismatch(rank, name, None, f"{got.dtype} {got.shape}", f"{want.dtype} {want.shape}")
    bits = f"u{want.dtype.itemsize}"
    differs = np.ascontiguousarray(got).view(bits) != np.ascontiguousarray(want).view(bits)
    if not differs.any():
        return None
    index = tuple(int(i) for i in np.argwhere(differs)[0])
    return Mismatch(rank, name, index, _with_bits(got[index]), _with_bits(want[index]))


def _with_bits(value):
    """A float with its bits, since two NaN or two zeros print alike."""
    if np.issubdtype(value.dtype, np.integer):
        return str(value)
    return f"{value} ({value.tobytes()[::-1].hex()})"
