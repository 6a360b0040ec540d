# SPDX-License-Identifier: MIT
"""Where a proxy fence has to stand: docs/protocols.md's edges between ordinary and bulk accesses.

Bulk copies go through the async proxy, which sees what ordinary instructions did, and they what it
did, behind a fence alone.  The CPU executor has one proxy and the assembler does not care, so the
edges are rules here, one a row: on every way from one instruction to the next there is a fence.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from deepep_ptx.toolchain.flow import Node, nodes_of, reach
from deepep_ptx.toolchain.ptx_text import Rendered
from deepep_ptx.toolchain.variants import Variant

BULK_LOAD = r"cp\.async\.bulk\.shared::(cluster|cta)\.global\b.*"
BULK_STORE = r"cp\.async\.bulk\.global\.shared::cta\b.*"
BULK_COPY = r"cp\.async\.bulk\.(shared|global)\b.*"
FENCE_GLOBAL = r"fence\.proxy\.async(\.global)?"
FENCE_SHARED = r"fence\.proxy\.async(\.shared::cta)?"
# What lanes that issue copies have in common: the first of a warp, and of one that pushes x.
LEADS = ("p_lead", "p_move")


@dataclass(frozen=True)
class Rule:
    """On every way from `first` (in `file`, where it is given; None: the kernel's begin) to `then`
    stands `fence`, for threads whose predicates `true` hold.

    These and `fence` are patterns of opcodes.  kernels: symbols that have both ends.
    """

    edge: str
    kernels: tuple[str, ...]
    first: str | None
    then: str
    fence: str
    file: str | None = None
    true: tuple[str, ...] = LEADS


_BOTH = ("ep_dispatch_bulk", "ep_combine_bulk")
RULES = (
    Rule("mbarriers are made before a load completes on one", _BOTH,
         r"mbarrier\.init\b.*", BULK_LOAD, FENCE_SHARED),
    Rule("rows that an earlier kernel stored are loaded", _BOTH,
         None, BULK_LOAD, FENCE_GLOBAL),
    Rule("rows of ranks whose records are in are loaded", _BOTH,
         r"bar\.sync", BULK_LOAD, FENCE_GLOBAL, "ptx/role/exchange/await_records.inc"),
    Rule("slots that ranks whose records are in have used are stored to", _BOTH,
         r"bar\.sync", BULK_STORE, FENCE_GLOBAL, "ptx/role/exchange/await_records.inc"),
    Rule("rows that were waited for are loaded", ("ep_combine_bulk",),
         r"bar\.warp\.sync", BULK_LOAD, FENCE_GLOBAL, "ptx/role/combine/list_sources.inc",
         (*LEADS, "p_fresh")),
    # Every lane fences for itself, so nobody's predicates hold.
    Rule("a stage has been read when the barrier says that it may be filled again",
         ("ep_combine_bulk",),
         r"ld\.shared\.v4\.b32", r"bar\.warp\.sync", FENCE_SHARED,
         "ptx/role/combine/sum_rows_bulk.inc", ()),
)


def check_proxies(variant: Variant, rendered: Rendered) -> Iterator[tuple[int, str]]:
    """(rendered line, finding) of each place that is reached without its fence, and where a rule
    and the text have parted: what is not there any more is not looked for either."""
    nodes = nodes_of(rendered)
    rules = [rule for rule in RULES if variant.symbol in rule.kernels]
    copies = [node for node in nodes if re.fullmatch(BULK_COPY, node.text)]
    if copies and not rules:
        yield copies[0].line, "bulk copies of a kernel that no rule of proxy_order.py names"
    for rule in rules:
        starts = list(_starts(rule, nodes))
        if not starts:
            yield 0, f"nothing to begin with for the rule: {rule.edge}"
        if not any(re.fullmatch(rule.then, node.text) for node in nodes):
            yield 0, f"nothing to end with for the rule: {rule.edge}"
        found = {}
        for start in starts:
            for node in _unfenced(rule, nodes, start):
                found.setdefault(node.line, node)
        for line, node in found.items():
            yield line, f"{node.text} without {_plain(rule.fence)} before it: {rule.edge}"


def _starts(rule: Rule, nodes: list[Node]) -> Iterator[int]:
    """Where the ways begin: behind each `first`."""
    if rule.first is None:
        yield 0
        return
    for index, node in enumerate(nodes):
        if re.fullmatch(rule.first, node.text) and rule.file in (None, node.place.file):
            yield index + 1


def _unfenced(rule: Rule, nodes: list[Node], start: int) -> Iterator[Node]:
    """Each `then` that a way without a fence comes to first."""
    ends = re.compile(f"{rule.fence}|{rule.then}")
    for node in reach(nodes, start, rule.true, lambda node: bool(ends.fullmatch(node.text))):
        if re.fullmatch(rule.then, node.text):
            yield node


def _plain(pattern: str) -> str:
    """A fence's pattern in words: its narrowest form."""
    return re.sub(r"[\\()?]", "", pattern)
