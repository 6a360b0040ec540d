# SPDX-License-Identifier: MIT
"""Tuning files: what was measured to be quickest on one kind of GPU with one number of ranks.

JSON, written by `deepep-ptx tune` and read when a `Buffer` is made: a header that says what the
file is for, and an entry per op, item size, class of tokens and class of row bytes.  docs/tuning.md
has the format.
"""

import dataclasses
import json
import os
import types
from dataclasses import dataclass
from pathlib import Path

from deepep_ptx import select
from deepep_ptx.documents import read_json
from deepep_ptx.errors import TuningError
from deepep_ptx.knobs import KNOBS, accepted, values_of
from deepep_ptx.sm_model import OPS

SCHEMA = 1


def size_class(number):
    """The power of two that a number of tokens or bytes is rounded up to."""
    return 1 << max(0, number - 1).bit_length()


def kernel_of(op):
    """What `select.choose` calls the variant that an op runs."""
    return "combine" if op == "combine_pull" else op


@dataclass(frozen=True)
class Header:
    """What a file is for, and what it was made with.

    package: version of deepep_ptx.  gpu: name of the device.  ranks: of the group.  nodes: NVLink
    domains.  date: ISO 8601.  driver: of the GPU.  seed: of the run.  shape: what the run's calls
    had beside what entries say.
    """

    package: str
    gpu: str
    ranks: int
    nodes: int
    date: str
    driver: str
    seed: int
    shape: dict


@dataclass(frozen=True)
class Entry:
    """The quickest way that was found for calls of one class.

    op: one of OPS.  itemsize: bytes of an element.  tokens, row_bytes: the classes, powers of two;
    scales do not count.  sms: CTAs.  policy: form of payload loads, or data path, of the kernel.
    knobs: name -> value of the kernel's launch parameters; what is not there is the kernel's own
    choice.  median_us: of a call so.
    """

    op: str
    itemsize: int
    tokens: int
    row_bytes: int
    sms: int
    policy: str
    knobs: dict
    median_us: float

    @property
    def key(self):
        """What a call looks its entry up by."""
        return self.op, self.itemsize, self.tokens, self.row_bytes


@dataclass(frozen=True, eq=False)
class Tuning:
    """A file's contents.  entries: key -> `Entry`.  origin: who named the file; texts begin so."""

    path: Path
    header: Header
    entries: types.MappingProxyType
    origin: str = "tuning"

    def check(self, gpu, ranks, arch):
        """`TuningError` unless the file is for `ranks` ranks on `gpu`, whose target is `arch`."""
        for name, needed in ("gpu", gpu), ("ranks", ranks), ("nodes", 1):
            has = getattr(self.header, name)
            if has != needed:
                raise self._error(f"header.{name}", has, repr(needed))
        for index, entry in enumerate(self.entries.values()):
            self._check_policy(f"entries[{index}].policy", entry, arch)

    def policies(self):
        """What `kernel_of` names -> policy of the largest calls of it that were tuned, which is
        where the data path counts."""
        return {kernel_of(entry.op): entry.policy
                for entry in sorted(self.entries.values(), key=lambda e: (e.tokens, e.row_bytes))}

    def _check_policy(self, field, entry, arch):
        try:
            chosen = select.choose(entry.policy, arch)
        except ValueError as error:
            raise self._error(field, entry.policy, f"a policy that {arch} has") from error
        kernel = kernel_of(entry.op)
        if not select.is_defined(chosen[kernel]):
            raise self._error(field, entry.policy, "a policy whose loads PTX defines in "
                              f"{kernel}; ask for others with Buffer(policy=)")

    def _error(self, field, has, needed):
        return _error(self.path, self.origin, field, has, needed)


def tuned_variants(variants, tuning, choose):
    """`variants`, as `select.choose` gives them, with those that the file's policies pick.

    choose: `select.choose` of a policy for this rank's device.
    """
    return variants | {kernel: choose(policy)[kernel]
                       for kernel, policy in tuning.policies().items()}


# -- reading and writing ----------------------------------------------------------------------

def load(path, origin="tuning"):
    """The `Tuning` in a file; `origin` begins the error texts.

    Raises:
        TuningError: it cannot be read, is no tuning file, or is of another schema.
    """
    path = Path(path)

    def need(holds, field, has, needed):
        if not holds:
            raise _error(path, origin, field, has, needed)

    try:
        document = read_json(path)
    except OSError as error:
        raise _error(path, origin, "file", error.strerror, "one that can be read") from error
    except ValueError as error:
        raise TuningError(f"{origin}: {path}: file: {error}", file=str(path), field="file",
                          has=str(error), needed="JSON") from error
    need(isinstance(document, dict), "file", type(document).__name__, "an object")
    schema = document.get("schema")
    need(schema == SCHEMA, "schema", schema, f"{SCHEMA}, what this version reads")
    header = _record(document.get("header"), "header", Header, need)
    given = document.get("entries")
    need(isinstance(given, list), "entries", type(given).__name__, "a list")
    entries = {}
    for index, values in enumerate(given):
        field = f"entries[{index}]"
        entry = _record(values, field, Entry, need)
        _check_entry(entry, field, need)
        need(entry.key not in entries, field, entry.key, "the only entry of its key")
        entries[entry.key] = entry
    return Tuning(path, header, types.MappingProxyType(entries), origin)


def save(path, header, entries):
    """Write a file, whole or not at all."""
    document = {"schema": SCHEMA, "header": dataclasses.asdict(header),
                "entries": [dataclasses.asdict(entry) for entry in entries]}
    write_whole(path, json.dumps(document, indent=1) + "\n")


def write_whole(path, text):
    """Write a file so that nobody ever sees a part of it; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(path)


_WORDS = {int: "an integer", float: "a number", str: "a string", dict: "an object"}


def _record(values, field, kind, need):
    """A `kind`, whose fields `values` has, and no others."""
    need(isinstance(values, dict), field, type(values).__name__, "an object")
    known = {each.name: each.type for each in dataclasses.fields(kind)}
    for name in values:
        need(name in known, f"{field}.{name}", values[name], "left out; it is unknown")
    for name, wanted in known.items():
        value = values.get(name)
        accepted = (int, float) if wanted is float else wanted
        need(isinstance(value, accepted) and not isinstance(value, bool), f"{field}.{name}", value,
             _WORDS[wanted])
        need(wanted is not str or value.isprintable(), f"{field}.{name}", value, "printable")
    return kind(**values)


def _check_entry(entry, field, need):
    need(entry.op in OPS, f"{field}.op", entry.op, f"one of {', '.join(OPS)}")
    need(entry.itemsize in (1, 2), f"{field}.itemsize", entry.itemsize, "1 or 2")
    need(entry.sms >= 1, f"{field}.sms", entry.sms, "at least 1")
    need(entry.median_us > 0, f"{field}.median_us", entry.median_us, "above 0")
    for name in "tokens", "row_bytes":
        value = getattr(entry, name)
        need(value >= 1 and value == size_class(value), f"{field}.{name}", value, "a power of two")
    for name, value in entry.knobs.items():
        need(name in KNOBS, f"{field}.knobs.{name}", value, "left out; it is unknown")
        need(type(value) is int, f"{field}.knobs.{name}", value, "an integer")
        need(value in values_of(name), f"{field}.knobs.{name}", value, accepted(name))


def _error(path, origin, field, has, needed):
    return TuningError(f"{origin}: {path}: {field}: must be {needed}, got {has!r}",
                       file=str(path), field=field, has=has, needed=needed)
