# SPDX-License-Identifier: MIT
"""Races that the CPU executor's checker has found: see docs/verifier.md."""

from dataclasses import asdict, dataclass

# In the order of enum race_kind (cysrc/emu/race/race.h).
KINDS = {
    "unordered": "no synchronisation orders the two accesses",
    "order": "relaxed where release or acquire is needed",
    "scope": "a scope is too narrow",
    "proxy": "a proxy fence is missing",
    "completion": "a bulk copy's completion was not waited for",
    "nc": "ld.global.nc of memory that is written while its grid runs",
}


@dataclass(frozen=True)
class Access:
    """A statement and who executed it.  Numbers are -1, and strings "", where there is none.

    what: "load", "store", "atomic", "bulk read", "bulk write", "bulk copy's arrival", "host read",
    "host write"; "" in a chain.  file, line: of the source; ptx_line: of the rendered text.
    lanes: mask.
    """

    what: str
    statement: str
    file: str
    line: int
    ptx_line: int
    kernel: str
    rank: int
    cta: int
    warp: int
    lanes: int

    @property
    def where(self):
        """file:line of the source, or of the text that has none."""
        if not self.kernel:
            return "host"
        if not self.line:
            return f"<ptx>:{self.ptx_line}"
        return f"{self.file}:{self.line}"

    @property
    def who(self):
        """Rank, CTA, warp and lanes."""
        found = [f"rank {self.rank}"]
        if self.cta >= 0:
            found.append(f"CTA {self.cta}")
        if self.warp >= 0:
            found.append(f"warp {self.warp}")
            lanes = self.lanes & 0xffffffff
            one = lanes and not lanes & (lanes - 1)
            if lanes != 0xffffffff:
                found.append(f"lane {lanes.bit_length() - 1}" if one else f"lanes {lanes:#x}")
        return ", ".join(found)


@dataclass(frozen=True)
class Link:
    """One step of synchronisation between two accesses: what `first` did reached `second`.

    by: "the value is read", "bar.sync", ...  lacks: what keeps it from ordering them, "": nothing.
    """

    first: Access
    second: Access
    by: str
    lacks: str

    def __str__(self):
        lacks = f"  <- {self.lacks}" if self.lacks else ""
        if self.first.where == self.second.where:
            return f"{self.first.where} {self.first.statement} ({self.by}){lacks}"
        return (f"{self.first.where} {self.first.statement} -> {self.second.where} "
                f"{self.second.statement} ({self.by}){lacks}")


@dataclass(frozen=True)
class Race:
    """Two accesses of the same bytes, at least one of them a write, that nothing orders.

    kind: a key of `KINDS`.  first, second: in the order in which they ran.  count: pairs of
    accesses of these two statements.  memory, owner, offset, bytes: where the first pair met: the
    name of the allocation and its rank.  chain: the synchronisation between the two that there is.
    fix: what would complete it.
    """

    kind: str
    first: Access
    second: Access
    count: int
    memory: str
    owner: int
    offset: int
    bytes: int
    chain: tuple
    fix: str

    @property
    def text(self):
        """The report, without the end of the last line."""
        lines = [f"RACE ({self.kind}): {KINDS[self.kind]}"]
        for name, access in (("first", self.first), ("then", self.second)):
            lines.append(f"  {name:5} {access.what:10} {access.where}: {access.statement}"
                         f"  [{access.kernel}, {access.who}]")
        lines.append(f"  of    {self.bytes} bytes at {self.memory} + {self.offset:#x} of rank "
                     f"{self.owner}; {self.count} such pairs")
        lines += [f"  chain {link}" for link in self.chain]
        lines.append(f"  fix   {self.fix}")
        return "\n".join(lines)

    def as_dict(self):
        """For JSON."""
        return asdict(self)
