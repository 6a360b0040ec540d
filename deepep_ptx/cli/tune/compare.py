# SPDX-License-Identifier: MIT
"""Two tuning files side by side."""

from deepep_ptx.cli.tables import aligned
from deepep_ptx.cli.tune.plan import Candidate
from deepep_ptx.tuning import load


def compare(old, new):
    """A table of the entries of two files: choices, times, and the ratio of the new time to the
    old one.

    Raises:
        TuningError: a file cannot be read.
    """
    old, new = (load(path, "--compare") for path in (old, new))
    rows = [("case", "old", "us", "new", "us", "ratio")]
    for key in sorted({*old.entries, *new.entries}):
        before, after = old.entries.get(key), new.entries.get(key)
        ratio = f"{after.median_us / before.median_us:.3f}" if before and after else ""
        rows.append((_case(*key), *_choice(before), *_choice(after), ratio))
    return "\n".join([*_headers(old.header, new.header), "", *aligned(rows)])


def _case(op, itemsize, tokens, row_bytes):
    return f"{op}, up to {tokens} tokens of {row_bytes} bytes, itemsize {itemsize}"


def _choice(entry):
    if entry is None:
        return "-", ""
    return (str(Candidate(entry.sms, entry.policy, tuple(entry.knobs.items()))),
            f"{entry.median_us:.1f}")


def _headers(old, new):
    for name, header in ("old", old), ("new", new):
        yield (f"{name}: {header.ranks} ranks on {header.gpu}, driver {header.driver}, deepep_ptx "
               f"{header.package}, {header.date}, seed {header.seed}, {_shape(header)}")
    differs = [name for name in ("gpu", "ranks", "shape")
               if getattr(old, name) != getattr(new, name)]
    if differs:
        yield f"not the same {', '.join(differs)}: the ratios are not of the code alone"


def _shape(header):
    return ", ".join(f"{name} {value}" for name, value in header.shape.items())
