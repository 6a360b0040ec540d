# SPDX-License-Identifier: MIT
"""ptxlint finds what it is there to find; the lock file notices drift."""

import dataclasses
import json
import re

import pytest

from deepep_ptx.toolchain import lint, lock, params, ptx_text, render, variants
from deepep_ptx.toolchain.errors import ToolchainError
from deepep_ptx.toolchain.generate import generate
from tests.weakened import copy_sources, weaken


def table_of(tree):
    return variants.load(tree.root, params.load(tree.root))


def rendered_table(tree):
    render.generate(tree.root)
    return table_of(tree)


def findings(tree, tools):
    return lint.check_variants(lint.rendered_variants(table_of(tree), tree.root), tree.root, tools)


# -- sources ------------------------------------------------------------------


def test_clean_sources(tree):
    assert lint.check_sources(tree.root) == []


def macro(name, lines):
    return f"{lint.SPDX}\n#define {name} " + "\\\n" * (lines - 1) + "x\n"


@pytest.mark.parametrize(
    ("file", "text", "place", "words"),
    [
        ("src/a.ptx", "", ":1", "the first line is not"),
        ("src/a.ptx", f"{lint.SPDX}\n#if X\n", ":2", "conditional text"),
        ("role/a.inc", f"{lint.SPDX}\n#ifdef X\n", ":2", "conditional text"),
        ("role/a.inc", f"{lint.SPDX}\n#if SHRINK && X\n", ":2", "conditional text"),
        ("src/a.ptx", f"{lint.SPDX}\n    @%p1 trap;\n", ":2", "trap"),
        ("src/a.ptx", f"{lint.SPDX}\n#define A(x) \\\n  x\n", ":2", "belongs in lib/"),
        ("lib/a.inc", macro("A(x)", 9), ":2", "takes 9 lines; 8 are"),
        ("arch/sm_80.inc", macro("A(x)", 9), ":2", "takes 9 lines; 8 are"),
        ("lib/a.inc", macro("WAIT_A", 17), ":2", "takes 17 lines; 16 are"),
    ],
)
def test_source_findings(tree, file, text, place, words):
    tree.write(f"ptx/{file}", text)
    (finding,) = lint.check_sources(tree.root)
    assert finding.startswith(f"ptx/{file}{place}: ")
    assert words in finding


def test_lib_may_be_conditional(tree):
    tree.write("ptx/lib/a.inc", macro("A(x)", 8) + "#if A\n#endif\n")
    assert lint.check_sources(tree.root) == []


# -- order --------------------------------------------------------------------


@pytest.fixture
def ours(tmp_path):
    """A copy of this tree's sources, to weaken."""
    return copy_sources(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("lib/sync.inc", "st.release.sys", "st.relaxed.sys", "RAISE_FLAG has no st.release.sys"),
        ("lib/sync.inc", "st.release.sys", "st.release.gpu", "RAISE_FLAG has no st.release.sys"),
        ("lib/sync.inc", "atom.acq_rel", "atom.relaxed", "ARRIVE has no atom.acq_rel.gpu"),
        ("role/fault/write_report.inc", "st.release.sys.global", "st.global",
         "st.global.u32 to STAT_VALID"),
        ("role/dispatch/tell_host.inc", "st.release.sys", "st.relaxed.sys", "to TOT_TICKET, which"),
        ("role/dispatch/refuse_dispatch.inc", "st.release.sys", "st.relaxed.sys",
         "to TOT_TICKET, which"),
        ("role/combine/report_progress.inc", "st.release.sys", "st.relaxed.sys",
         "to v_progress, which"),
        ("role/combine/report_progress.inc", "st.release.sys", "st.release.gpu",
         "to v_progress, which"),
        ("role/dispatch/number_tokens.inc", "red.release.gpu", "red.relaxed.gpu",
         "to CTL_NUMBERED, which"),
        ("lib/sync.inc", "fence.acq_rel.sys", "fence.acq_rel.gpu",
         "FENCE_RELEASE has no fence.acq_rel.sys"),
        ("role/exchange/complete.inc", "RAISE_FLAG(a_flag, v_done)",
         "st.volatile.global.u64 [a_flag], v_done;", "to v_done, which publishes"),
        ("role/exchange/wait_flag.inc", "ld.acquire.sys.global.u64 v_seen", "ld.global.u64 v_seen",
         "ld.global.u64 in a wait"),
    ],
)
def test_weakened_order(ours, file, old, new, words):
    assert lint.check_sources(ours) == []
    weaken(ours, f"ptx/{file}", old, new)
    found = lint.check_sources(ours)
    assert found and all(f.startswith(f"ptx/{file}:") and words in f for f in found)


@pytest.mark.parametrize("weak", ["ld.relaxed.sys", "ld.acquire.gpu"])
def test_a_wait_that_does_not_acquire(ours, weak):
    def waits():
        table = variants.load(ours, params.load(ours))
        (variant,) = (v for v in table.variants if str(v) == "sm_90/ep_dispatch_bulk")
        rendered = render.render_with_origins(variant, ours)
        return [(rendered.origin(line)[0], text) for line, text in lint._check_waits(rendered)]

    params.generate(ours)
    assert waits() == []
    weaken(ours, "ptx/role/exchange/wait_flag.inc", "ld.acquire.sys", weak)
    assert set(waits()) == {
        ("ptx/role/exchange/wait_flag.inc",
         f"polled, and never acquired: {weak}.global.u64 v_seen, [a_flag];"),
    }


# -- machine code -------------------------------------------------------------


def test_clean_variants(tree, tools):
    assert findings(tree, tools) == []


def test_assembler_errors_name_the_source(tree, tools):
    tree.replace("ptx/role/copy.inc", "REPEAT_2(ST_VEC)", "st.global.u32 [a_dst], nowhere;")
    found = findings(tree, tools)
    assert all(finding.startswith("ptx/role/copy.inc:3 (sm_") for finding in found)
    assert sum("ptxas: Unknown symbol 'nowhere'" in finding for finding in found) == 4


def test_register_limit(tree, tools):
    tree.replace("ptx/variants.toml", "max_regs = 40", "max_regs = 8")
    assert all("registers; variants.toml allows 8" in finding for finding in findings(tree, tools))


def test_shared_memory_is_counted_as_the_assembler_does(tree, tools, monkeypatch):
    """By what variants.json says of it, variants are chosen for a GPU."""
    tree.replace("ptx/src/copy_vec.ptx", "    .reg .pred      q;",
                 "    .shared .align 8 .b8 s_word[12];\n    .reg .pred      q;")
    tree.replace("ptx/src/copy_vec.ptx", "    ret;", "    st.shared.u32 [s_word + 8], t;\n    ret;")
    render.generate(tree.root)
    index = json.loads((tree.root / "deepep_ptx/_ptx/variants.json").read_text())
    assert {row["static_smem"] for row in index["variants"]} == {12}
    assert findings(tree, tools) == []
    decode = lint.decode_rendered
    monkeypatch.setattr(lint, "decode_rendered",
                        lambda text: dataclasses.replace(decode(text), shared_bytes=16))
    assert [finding.partition(": ")[2] for finding in findings(tree, tools)] == [
        "12 bytes of static shared memory; variants.json says 16"] * 4


def test_deleted_poll(tree, tools):
    """A weak poll is deleted: lint itself sees no strong load, so plant the loss in the table."""
    variant = table_of(tree).variants[-1]
    rendered = render.render_with_origins(variant, tree.root)
    weak = rendered.text.replace("ld.acquire.sys.global", "ld.global")
    assembly = lint.assemble(weak, variant.arch, tools)
    found = list(lint._check_polls(rendered, assembly))
    assert [rendered.origin(line) for line, _ in found] == [("ptx/src/copy_vec.ptx", 18)]


def test_merged_nc_loads(tree, tools):
    """Two .nc loads of one address become one, even across a barrier: the reason for the count."""
    tree.write(
        "ptx/role/copy.inc",
        "    LD_PAYLOAD_V4 v0, [a_src];\n    st.global.v4.b32 [a_dst], v0;\n    bar.sync 0;\n"
        "    LD_PAYLOAD_V4 v1, [a_src];\n    st.global.v4.b32 [a_dst + 16], v1;\n",
    )
    found = findings(tree, tools)
    assert found == [
        f"ptx/role/copy.inc:4 ({arch}/ep_copy_vec_ld_nc): load was merged away in SASS: "
        "ld.global.nc.v4.b32 v1, [a_src];"
        for arch in ("sm_80", "sm_90")
    ]


def test_broken_promise(tree, tools):
    tree.replace("ptx/variants.toml", "LDG.E.NA.LTC256B.128", "LDG.E.128")
    found = findings(tree, tools)
    assert len(found) == 4  # two loads, two targets
    assert "load became LDG.E.NA.LTC256B.128, not LDG.E.128" in found[0]


def test_policy_without_a_load(tree, tools):
    tree.write("ptx/role/copy.inc", "    ST_VEC(0)\n")
    assert all("no payload load" in finding for finding in findings(tree, tools))


def test_illegal_word(tree, tools):
    """ptxas 13.0 assembles a one-sided fence for sm_80 to a zero word, without an error."""
    tree.replace("ptx/variants.toml", 'version = "7.4"', 'version = "8.6"')
    tree.replace("ptx/src/copy_vec.ptx", "    ret;", "    fence.release.sys;\n    ret;")
    found = [finding for finding in findings(tree, tools) if "sm_80" in finding]
    assert found and all("nvdisasm" in f or "ptxas" in f for f in found)


# -- lock ---------------------------------------------------------------------


def test_lock_round_trip_and_drift(tree, tools):
    table = rendered_table(tree)
    tree.write(lock.LOCK, lock.text_of(table, tree.root, tools))
    assert lock.check(table, tree.root, tools) == ([], None)
    text = (tree.root / lock.LOCK).read_text()
    assert '"LDG.E.NA.LTC256B.128" = 2' in text
    assert sum(line.startswith("ep_") for line in text.splitlines()) == len(table.variants)

    tree.replace("ptx/src/copy_vec.ptx", "setp.eq.u32     q, t, 0", "setp.eq.u32     q, t, 1")
    drifts, _ = lock.check(rendered_table(tree), tree.root, tools)
    assert len(drifts) == 4
    assert drifts[0] == "sm_80/ep_copy_vec_ld_na: text"


def test_lock_with_another_assembler_checks_hashes_only(tree, tools):
    table = rendered_table(tree)
    text = lock.text_of(table, tree.root, tools)
    tree.write(lock.LOCK, text.replace("registers = ", "registers = 1"))
    drifts, note = lock.check(table, tree.root, tools)
    assert len(drifts) == 4 and note is None
    assert re.fullmatch(r"sm_80/ep_copy_vec_ld_na: registers 1(\d+) -> \1", drifts[0])
    other = dataclasses.replace(tools, ptxas_version="12.3.1")
    assert lock.check(table, tree.root, other) == (
        [],
        f"ptxas 12.3.1 and nvdisasm {tools.nvdisasm_version} are here, "
        f"{tools.ptxas_version} and {tools.nvdisasm_version} wrote the lock",
    )
    drifts, note = lock.check(table, tree.root, None)
    assert drifts == [] and "is not there" in note


def test_lock_names_what_is_new_and_what_is_gone(tree, tools):
    table = rendered_table(tree)
    tree.write(lock.LOCK, lock.text_of(table, tree.root, tools).replace("vec_ld_na", "vec_ld_old"))
    drifts, _ = lock.check(table, tree.root, tools)
    assert "sm_90/ep_copy_vec_ld_na: not in the lock" in drifts
    assert "sm_90/ep_copy_vec_ld_old: no such variant" in drifts


def test_drift_of_figures_shows_what_differs(tree, tools):
    table = rendered_table(tree)
    text = lock.text_of(table, tree.root, tools)
    tree.write(lock.LOCK, text.replace('"LDG.E.NA.LTC256B.128" = 2', '"LDG.E.128" = 3'))
    drifts, _ = lock.check(table, tree.root, tools)
    assert drifts == [
        f"{arch}/ep_copy_vec_ld_na: LDG.E.128 3 -> 0, LDG.E.NA.LTC256B.128 0 -> 2"
        for arch in ("sm_80", "sm_90")
    ]


@pytest.mark.parametrize(("old", "new", "says"), [
    ("[sm_90]", "<<<<<<< HEAD\n[sm_90]", "must be TOML: Invalid statement (at line "),
    ("[sm_90]", "x = " + "[" * 20_000 + "\n[sm_90]", "must be TOML: it is nested too deeply"),
    ("ptxas = ", "assembler = ", "the file has no ptxas"),
    ("registers = ", "register = ", "sm_80/ep_copy_vec_ld_na has no registers"),
    ("spills = 0", 'spills = "0"', "sm_80/ep_copy_vec_ld_na: spills is '0'"),
])
def test_a_damaged_lock_is_an_error_that_names_it(tree, tools, old, new, says):
    table = rendered_table(tree)
    text = lock.text_of(table, tree.root, tools)
    assert old in text
    tree.write(lock.LOCK, text.replace(old, new))
    for use in (lock.ship, lambda root: lock.check(table, root, tools)):
        with pytest.raises(ToolchainError) as caught:
            use(tree.root)
        assert str(caught.value).startswith(f"ptx/variants.lock: {says}"), caught.value
        assert str(caught.value).endswith("; `make lock` writes it anew")
    generate(tree.root, figures=False)          # what `make lock` begins with


def test_figures_ship_with_the_hash_of_their_text(tree, tools):
    table = rendered_table(tree)
    assert lock.ship(tree.root) == [], "no lock, no figures"
    tree.write(lock.LOCK, lock.text_of(table, tree.root, tools))
    (shipped,) = lock.ship(tree.root)
    found = json.loads(shipped.read_text())
    assert (found["ptxas"], found["nvdisasm"]) == (tools.ptxas_version, tools.nvdisasm_version)
    assert found["variants"].keys() == {variant.file for variant in table.variants}
    for variant in table.variants:
        figures = found["variants"][variant.file]
        assert figures["sha256"] == ptx_text.digest(render.render(variant, tree.root))
        assert figures["registers"] > 0 and "sass" not in figures
    assert lock.ship(tree.root) == [], "written only when it changes"
