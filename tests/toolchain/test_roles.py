# SPDX-License-Identifier: MIT
"""A role's banner says what the role shares with whoever includes it: ptxlint compares."""

import pytest

from deepep_ptx.toolchain import params, render, roles, variants
from tests.weakened import ROOT, copy_sources, weaken


def findings(root, kernel):
    """Place -> text, of the roles that this kernel has."""
    params.generate(root)
    table = variants.load(root, params.load(root))
    # and one that waits as low-latency kernels do
    texts = [render.render_with_origins(v, root) for v in table.variants
             if str(v) in (f"sm_90/ep_{kernel}_bulk", "sm_90/ep_ll_combine_shrink")]
    found = [finding.partition(": ")[::2] for finding in roles.check_roles(root, texts)]
    return {place: text for place, text in found if text != "no kernel has this role"}


@pytest.fixture
def ours(tmp_path):
    """A copy of this tree's sources."""
    return copy_sources(tmp_path)


def test_ours():
    table = variants.load(ROOT, params.load(ROOT))
    texts = [render.render_with_origins(variant, ROOT) for variant in table.variants
             if variant.policy in (None, "ld_na") and variant.arch == "sm_90"]
    assert list(roles.check_roles(ROOT, texts)) == []


@pytest.mark.parametrize("kernel, file, old, new, found", [
    # said too little: a register, one that a macro uses, one of a role inside
    ("dispatch", "bulk/load_chunk.inc", "a_x, n_row_bytes;", "a_x;",
     {"ptx/role/bulk/load_chunk.inc:7": "used, and not in the banner: n_row_bytes"}),
    ("combine", "combine/list_sources.inc", "; a_pos; s_source,", "; s_source,",
     {"ptx/role/combine/list_sources.inc:6": "used, and not in the banner: a_pos"}),
    ("combine", "fault/stuck.inc", "; s_failed\n", "\n",
     {"ptx/role/fault/stuck.inc:8": "used, and not in the banner: s_failed"}),
    ("combine", "combine/fill_ring.inc", "i_load, i_load_byte: its", "i_load: its",
     {"ptx/role/combine/fill_ring.inc:8": "used, and not in the banner: i_load_byte"}),
    # a parameter: what the kernel's macro uses
    ("dispatch", "bulk/load_chunk.inc", "// Hooks     NEXT_LOAD", "// Uses      NEXT_LOAD",
     {"ptx/role/bulk/load_chunk.inc:7": "used, and not in the banner: n_rows, n_warps"}),
    # said too much
    ("dispatch", "fault/stuck.inc", "a_mbar, r_parity of", "a_mbar, p_lead, r_parity of",
     {"ptx/role/fault/stuck.inc:8": "in the banner, and not used: p_lead"}),
    ("dispatch", "fault/stuck.inc", "COMM_REGS; a_mbar", "COMM_REGS, RING_REGS; a_mbar",
     {"ptx/role/fault/stuck.inc:8": "the banner has RING_REGS, of which the role uses nothing"}),
    # what was its own is whatever the kernel has of that name
    ("combine", "combine/report_progress.inc", "i_dest, r;", "i_dest;",
     {"ptx/role/combine/report_progress.inc:5": "used, and not in the banner: r"}),
])
def test_planted(ours, kernel, file, old, new, found):
    weaken(ours, f"ptx/role/{file}", old, new)
    assert findings(ours, kernel) == found


def test_a_role_that_nobody_includes(ours):
    (ours / "ptx/role/fault/idle.inc").write_text("// SPDX-License-Identifier: MIT\n{\n}\n")
    assert "ptx/role/fault/idle.inc:1: no kernel has this role" in list(roles.check_roles(ours, []))


def test_two_roles_of_one_name(ours):
    (ours / "ptx/role/bulk/stuck.inc").write_text("// SPDX-License-Identifier: MIT\n{\n}\n")
    assert ("ptx/role/fault/stuck.inc:1: there is a role of that name, ptx/role/bulk/stuck.inc"
            in list(roles.check_roles(ours, [])))
