# SPDX-License-Identifier: MIT
"""Every wait and every barrier of the kernels is needed: without it some run goes wrong.

What only orders memory is not here: the CPU executor is sequentially consistent.
"""

from dataclasses import dataclass

import numpy as np
import pytest

from deepep_ptx import RankError, select
from deepep_ptx.arrays.numpy_arrays import NumPy
from deepep_ptx.errors import PtxError
from deepep_ptx.toolchain.errors import ToolchainError
from tests.test_roundtrip import PLAIN, assert_round_trip, make_inputs
from tests.test_schedulers import SCHEDULERS
from tests.weakened import Reader, copy_sources, weaken

SEEDS = range(20)
TWO = PLAIN | {"num_ranks": 2}
LONELY = TWO | {"num_sms": 1}
PUSH = TWO | {"combine": "push", "policy": "ld_na"}
BULK = LONELY | {"policy": "bulk", "hidden": 2048, "ring": (2, 512)}
BULK_PUSH = BULK | {"combine": "push"}
MANY_TOKENS = TWO | {"tokens": "many", "hidden": 8}

LOADED = "WAIT_FULL(p_stuck, a_mbar, r_parity)\n    @p_stuck bra    $stuck;"
NOT_LOADED = ""
RAISED = '#include "role/exchange/wait_flag.inc"'
NOT_RAISED = "mov.u32 r_code, EP_CODE_OK; mov.u32 r_told, 0; mov.u64 v_seen, 0;"
BARRIER = "    bar.sync        0;\n"
WARP_BARRIER = "bar.warp.sync   0xffffffff;"


@dataclass(frozen=True)
class Late:
    """Some threads come late to where `behind` ends in `file`: those that set q."""

    file: str
    behind: str
    who: str

    def apply(self, root):
        weaken(root, f"ptx/{self.file}", self.behind, self.behind + f"""
{{
    .reg .b32       n;
    .reg .pred      q;
    {self.who};
    selp.b32        n, 4000, 1, q;
$late:
    sub.u32         n, n, 1;
    setp.ne.u32     q, n, 0;
    @q bra          $late;
}}
""")


@dataclass(frozen=True)
class Missing:
    """A wait that is taken out: `instead` in the place of `wait`."""

    case: dict
    file: str
    wait: str
    instead: str = ""
    late: Late | None = None


OTHER_WARPS = "setp.ge.u32 q, i_tid, 32"
OF_CTA_1 = "setp.eq.and.u32 q, i_cta, 1, q"
OF_RANK_0 = "setp.eq.and.u32 q, i_rank, 0, q"

MISSING = {
    # -- bulk copies
    "a chunk of x is loaded": Missing(BULK, "role/bulk/pump_row.inc", LOADED, NOT_LOADED),
    "a stage of dispatch is read": Missing(BULK, "role/bulk/pump_row.inc", "WAIT_READ(1)"),
    "rows of dispatch are written": Missing(
        BULK, "src/dispatch_bulk.ptx", "WAIT_WRITTEN", "WAIT_READ(0)"),
    "a chunk to be pushed is loaded": Missing(
        BULK_PUSH, "role/bulk/pump_row.inc", LOADED, NOT_LOADED),
    "a stage of pushed rows is read": Missing(
        BULK_PUSH, "role/bulk/pump_row.inc", "WAIT_READ(1)"),
    "pushed rows are written": Missing(
        BULK_PUSH, "role/combine/push_rows_bulk.inc", "WAIT_WRITTEN\n$written:",
        "WAIT_READ(0)\n$written:"),
    "a chunk to be added is loaded": Missing(
        BULK, "role/combine/sum_rows_bulk.inc", LOADED, NOT_LOADED),
    "a stage of sums is read by all": Missing(BULK, "role/combine/sum_rows_bulk.inc", WARP_BARRIER),
    # -- pushed rows
    "a row is pushed": Missing(
        PUSH, "role/combine/list_sources.inc", '#include "role/combine/await_row.inc"'),
    "a row is pushed, bulk": Missing(
        BULK_PUSH, "role/combine/list_sources.inc", '#include "role/combine/await_row.inc"'),
    "all rows are pushed": Missing(
        PUSH, "role/combine/sum_weights.inc", '#include "role/combine/await_rows.inc"'),
    "all threads found them pushed": Missing(
        PUSH, "role/combine/sum_weights.inc", "bar.sync        1, NUM_PUSH_WARPS * 32;"),
    "all lanes have pushed": Missing(PUSH, "role/combine/report_progress.inc", WARP_BARRIER),
    "lane 0 has pushed": Missing(BULK_PUSH, "role/combine/report_progress.inc", WARP_BARRIER),
    # -- the exchange
    "the CTA has its ticket": Missing(
        TWO, "role/exchange/enter.inc", "$entered:\n" + BARRIER, "$entered:\n"),
    "counts are cleared": Missing(
        TWO, "role/dispatch/count_tokens.inc", "[a_count], 0;\n" + BARRIER, "[a_count], 0;\n"),
    "tokens are counted": Missing(
        TWO, "role/dispatch/count_tokens.inc", "$tokens_counted:\n" + BARRIER,
        "$tokens_counted:\n"),
    "a peer's call": Missing(TWO, "role/exchange/await_records.inc", RAISED, NOT_RAISED),
    "every peer's call": Missing(
        TWO, "role/exchange/await_records.inc", "$awaited:\n" + BARRIER, "$awaited:\n"),
    "needs are known": Missing(
        TWO, "role/exchange/refuse_capacity.inc", BARRIER + "    ld.shared.u64   v_most",
        "    ld.shared.u64   v_most"),
    "every CTA's numbers": Missing(
        TWO, "role/dispatch/await_dispatch.inc", '#include "role/dispatch/await_numbers.inc"',
        late=Late("role/dispatch/number_tokens.inc", "mov.u32         r_lt, %lanemask_lt;",
                  "setp.eq.u32 q, i_cta, 1")),
    "numbers of all warps": Missing(
        TWO, "role/dispatch/number_tokens.inc", "$numbered:\n" + BARRIER, "$numbered:\n",
        Late("role/dispatch/number_tokens.inc", "mov.u32         r_lt, %lanemask_lt;",
             f"{OTHER_WARPS}; {OF_CTA_1}")),
    "totals precede their ticket": Missing(
        PLAIN | {"num_ranks": 1, "finish": "event"}, "role/dispatch/tell_host.inc",
        "bar.sync        1, NUM_META_WARPS * 32;",
        late=Late("role/dispatch/tell_host.inc", "PART_OF(i, i_first, i_meta, n_bits)",
                  "setp.ge.u32 q, i_meta, 32")),
    "a peer's counts of experts": Missing(
        TWO | {"finish": "event"}, "role/dispatch/tell_host.inc", RAISED, NOT_RAISED),
    "a list of ranks is written": Missing(LONELY, "role/dispatch/list_rows.inc", WARP_BARRIER),
    # -- the end
    "the CTA has stored its rows": Missing(
        TWO, "role/exchange/complete.inc", BARRIER + "    ld.shared.u32   r_verdict",
        "    ld.shared.u32   r_verdict",
        Late("src/dispatch_vec.ptx", "\n$rows:", f"{OTHER_WARPS}; {OF_CTA_1}; {OF_RANK_0}")),
    "every peer is done": Missing(
        LONELY, "role/exchange/complete.inc", RAISED, NOT_RAISED,
        Late("src/dispatch_vec.ptx", "\n$rows:", "setp.eq.u32 q, i_rank, 1")),
    # -- layout
    "choices are counted": Missing(TWO, "src/layout.ptx", "$counted:\n" + BARRIER, "$counted:\n"),
    "all bins are in the tally": Missing(
        MANY_TOKENS, "src/layout.ptx", "$ranks_added:\n" + BARRIER, "$ranks_added:\n",
        Late("src/layout.ptx", "$counted:\n" + BARRIER, f"{OTHER_WARPS}; {OF_CTA_1}")),
}


@pytest.fixture(autouse=True)
def nothing_right_by_chance(monkeypatch):
    """Outputs that nobody has written yet say of every token that it goes nowhere, not what an
    earlier call left there."""
    empty = NumPy.empty

    def filled(self, *args):
        array = empty(self, *args)
        array.owner.reshape(-1).view(np.uint8).fill(0xFF)
        return array

    monkeypatch.setattr(NumPy, "empty", filled)


def run_some(case, scheduler, seed):
    assert_round_trip(case, [make_inputs(case, seed + i) for i in range(2)], scheduler=scheduler,
                      seed=seed)


@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING)
def test_each_wait_is_needed(monkeypatch, tmp_path, missing):
    sources = copy_sources(tmp_path)
    if missing.late:
        missing.late.apply(sources)
        monkeypatch.setattr(select, "read_text", Reader(sources))
    run_some(missing.case, "rr", 0)
    weaken(sources, f"ptx/{missing.file}", missing.wait, missing.instead)
    monkeypatch.setattr(select, "read_text", Reader(sources))
    with pytest.raises((RankError, AssertionError)) as caught:
        for seed in SEEDS:
            for scheduler in ["rr"] if missing.late else SCHEDULERS:
                run_some(missing.case, scheduler, seed)
    assert not isinstance(caught.value.__cause__, (PtxError, ToolchainError))
