# SPDX-License-Identifier: MIT
"""Mutants of PTX: which there are of a text, and that each is one change of one statement."""

import pytest

from deepep_ptx.emu.kernel import load_image
from deepep_ptx.toolchain.mutants import mutants_of
from tests.emu.machine import kernel

# Statement -> what is changed -> what stands there instead.
MUTANTS = {
    "ld.acquire.sys.global.u64 d4, [d0];": {
        "acquire -> relaxed": "ld.relaxed.sys.global.u64 d4, [d0];",
        "sys -> gpu": "ld.acquire.gpu.global.u64 d4, [d0];",
        "sys -> cta": "ld.acquire.cta.global.u64 d4, [d0];"},
    "@q0 ld.relaxed.gpu.global.u32 r5, [d0 + 8];": {
        "relaxed -> weak": "@q0 ld.global.u32 r5, [d0 + 8];",
        "gpu -> cta": "@q0 ld.relaxed.cta.global.u32 r5, [d0 + 8];"},
    "ld.volatile.global.v4.b32 v0, [d0];": {
        "volatile -> weak": "ld.global.v4.b32 v0, [d0];"},
    "st.release.gpu.global.u32 [d0], r1;": {
        "release -> relaxed": "st.relaxed.gpu.global.u32 [d0], r1;",
        "gpu -> cta": "st.release.cta.global.u32 [d0], r1;"},
    "st.relaxed.cta.global.u32 [d0], r1;": {
        "relaxed -> weak": "st.global.u32 [d0], r1;"},
    "ld.relaxed.cta.shared.u32 r5, [s0];": {
        "relaxed -> weak": "ld.shared.u32 r5, [s0];"},
    "@!q1 red.release.gpu.global.add.u64 [d0], 1;": {
        "release -> relaxed": "@!q1 red.relaxed.gpu.global.add.u64 [d0], 1;",
        "gpu -> cta": "@!q1 red.release.cta.global.add.u64 [d0], 1;"},
    "atom.acq_rel.gpu.global.inc.u32 r5, [d0], r1;": {
        "acq_rel -> acquire": "atom.acquire.gpu.global.inc.u32 r5, [d0], r1;",
        "acq_rel -> release": "atom.release.gpu.global.inc.u32 r5, [d0], r1;",
        "acq_rel -> relaxed": "atom.relaxed.gpu.global.inc.u32 r5, [d0], r1;",
        "gpu -> cta": "atom.acq_rel.cta.global.inc.u32 r5, [d0], r1;"},
    "fence.acq_rel.sys;": {
        "removed": "", "sys -> gpu": "fence.acq_rel.gpu;", "sys -> cta": "fence.acq_rel.cta;"},
    "fence.proxy.async;": {"removed": ""},
    "@q0 fence.proxy.async.global;": {
        "removed": "", "global -> shared::cta": "@q0 fence.proxy.async.shared::cta;"},
    "fence.proxy.async.shared::cta;": {
        "removed": "", "shared::cta -> global": "fence.proxy.async.global;"},
    "fence.mbarrier_init.release.cluster;": {"removed": ""},
    "bar.sync 0;": {"removed": ""},
    "bar.sync 1, 256;": {
        "removed": "", "32 threads fewer": "bar.sync 1, 224;",
        "32 threads more": "bar.sync 1, 288;"},
    "bar.warp.sync 0xffffffff;": {"removed": "", "without lane 31": "bar.warp.sync 0x7fffffff;"},
    "bar.warp.sync r5;": {"removed": ""},
    "shfl.sync.bfly.b32 r5, r1, 16, 31, 0xffffffff;": {
        "without lane 31": "shfl.sync.bfly.b32 r5, r1, 16, 31, 0x7fffffff;"},
    "vote.sync.any.pred q2, q0, 0xffff0000;": {
        "without lane 31": "vote.sync.any.pred q2, q0, 0x7fff0000;"},
    "mbarrier.init.shared.b64 [s0], 1;": {
        "one arrival more": "mbarrier.init.shared.b64 [s0], 2;"},
    "mbarrier.arrive.shared.b64 _, [s0];": {"removed": ""},
    "mbarrier.arrive.expect_tx.shared.b64 _, [s0], r5;": {
        "16 bytes more": "{ .reg .b32 r_other; add.u32 r_other, r5, 16; "
                         "mbarrier.arrive.expect_tx.shared.b64 _, [s0], r_other; }",
        "16 bytes fewer": "{ .reg .b32 r_other; sub.u32 r_other, r5, 16; "
                          "mbarrier.arrive.expect_tx.shared.b64 _, [s0], r_other; }"},
    "@q0 mbarrier.try_wait.parity.shared.b64 q2, [s0], r5;": {
        "taken as done": "@q0 setp.eq.u32 q2, r5, r5;"},
    "cp.async.bulk.commit_group;": {"removed": ""},
    "cp.async.bulk.wait_group 0;": {
        "removed": "", "wait_group -> wait_group.read": "cp.async.bulk.wait_group.read 0;",
        "one group more": "cp.async.bulk.wait_group 1;"},
    "cp.async.bulk.wait_group.read 1;": {
        "removed": "", "one group more": "cp.async.bulk.wait_group.read 2;"},
    # nothing of these can be weaker
    "ld.global.u32 r5, [d0];": {},
    "st.shared.u32 [s0], r1;": {},
    "red.relaxed.cta.shared.add.u32 [s0], r1;": {},
    "cp.async.bulk.global.shared::cta.bulk_group [d0], [s0], r5;": {},
    "vote.sync.any.pred q2, q0, r5;": {},
    "vote.sync.any.pred q2, q0, 0xff;": {},
}


@pytest.mark.parametrize("statement", MUTANTS)
def test_what_there_is_of_each_statement(statement):
    text = kernel(f"mov.u32 r5, 1;\n{statement}")
    found = mutants_of(text)
    assert {m.mutation: m.instead for m in found} == MUTANTS[statement]
    for mutant in found:
        assert (mutant.file, mutant.line, mutant.copy) == ("test.ptx", 2, 1)
        assert mutant.site == f"test.ptx: {statement} #1"
        assert text.splitlines()[mutant.ptx_line - 1] == statement
        assert mutant.of(text) == text.replace(statement, mutant.instead)
        load_image(mutant.of(text))


def test_statements_laid_out_in_columns():
    """As the renderer lays them out: operands begin in one column."""
    text = kernel("bar.sync        1, 256;\n    mbarrier.init.shared.b64   [s0],  1;")
    assert [(m.statement, m.instead) for m in mutants_of(text)] == [
        ("bar.sync 1, 256;", ""), ("bar.sync 1, 256;", "bar.sync        1, 224;"),
        ("bar.sync 1, 256;", "bar.sync        1, 288;"),
        ("mbarrier.init.shared.b64 [s0], 1;", "mbarrier.init.shared.b64   [s0], 2;")]


FUNCTION = """\
.func f(.reg .b64 a)
{
    {
        fence.acq_rel.cta;
    }
    fence.acq_rel.cta;
    ret;
}
"""


def test_copies_are_told_apart_also_in_functions_and_blocks():
    text = kernel("fence.acq_rel.cta;\n{\nfence.acq_rel.cta;\n}\nfence.acq_rel.gpu;\n"
                  "call f, (d0);")
    text = text.replace(".extern .shared", ".loc 1 7 0\n" + FUNCTION + ".extern .shared")
    found = mutants_of(text)
    assert [(m.line, m.copy, m.mutation) for m in found] == [
        (7, 1, "removed"), (7, 2, "removed"), (1, 3, "removed"), (3, 4, "removed"),
        (5, 1, "removed"), (5, 1, "gpu -> cta")]
    assert len({m.of(text) for m in found}) == len(found)
    for mutant in found:
        load_image(mutant.of(text))
