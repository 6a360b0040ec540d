# SPDX-License-Identifier: MIT
"""A proxy fence that is not where docs/protocols.md says is noticed."""

import dataclasses
import functools

import pytest

from deepep_ptx.toolchain import params, proxy_order, render, variants
from tests.weakened import ROOT, copy_sources, weaken


@functools.cache
def variant_of(symbol):
    table = variants.load(ROOT, params.load(ROOT))
    (variant,) = (v for v in table.variants if str(v) == f"sm_90/{symbol}")
    return variant


@functools.cache
def ours(symbol):
    """The lines of a kernel, and where each comes from."""
    return render.render_with_origins(variant_of(symbol), ROOT)


def findings(symbol, change=lambda lines: None):
    """(source file, text) of what is found where `change` has been at the lines."""
    rendered = ours(symbol)
    lines = rendered.text.splitlines()
    change(lines)
    found = proxy_order.check_proxies(
        variant_of(symbol), dataclasses.replace(rendered, text="\n".join(lines) + "\n"))
    return [(line and rendered.origin(line)[0], text) for line, text in found]


KERNELS = sorted({symbol for rule in proxy_order.RULES for symbol in rule.kernels})
FENCES = [(symbol, number) for symbol in KERNELS
          for number, line in enumerate(ours(symbol).text.splitlines()) if "fence.proxy" in line]


def test_every_bulk_kernel_has_rules():
    table = variants.load(ROOT, params.load(ROOT))
    assert {v.symbol for v in table.variants if v.path == "bulk"} == set(KERNELS)
    assert len(FENCES) == 9


@pytest.mark.parametrize("symbol", KERNELS)
def test_ours(symbol):
    assert findings(symbol) == []


@pytest.mark.parametrize("symbol, number", FENCES)
def test_each_fence_is_missed(symbol, number):
    def delete(lines):
        lines[number] = ""

    assert findings(symbol, delete)


@pytest.mark.parametrize("symbol, number", FENCES)
def test_a_fence_of_other_memory_is_none(symbol, number):
    def other(lines):
        old, new = ".global", ".shared::cta"
        if old not in lines[number]:
            old, new = new, old
        lines[number] = lines[number].replace(old, new)

    assert findings(symbol, other)


@pytest.mark.parametrize("symbol, number", FENCES)
def test_a_fence_that_may_not_run_is_none(symbol, number):
    def guard(lines):
        header = next(i for i, line in enumerate(lines) if ".entry" in line)
        entry = lines.index("{", header)
        lines[entry] += " .reg .pred p_perhaps; setp.ne.u32 p_perhaps, 1, 1;"
        lines[number] = f"@p_perhaps {lines[number].strip()}"

    assert findings(symbol, guard)


def test_a_fence_of_everything_is_enough():
    def widen(lines):
        for _, number in (fence for fence in FENCES if fence[0] == "ep_combine_bulk"):
            lines[number] = "fence.proxy.async;"

    assert findings("ep_combine_bulk", widen) == []


@pytest.mark.parametrize("file, old, new, at, words", [
    ("src/dispatch_bulk.ptx", "    FENCE_ORDINARY_BEFORE_BULK  ", "    ",
     "ptx/role/bulk/pump_row.inc", "cp.async.bulk.global.shared::cta.bulk_group without "
     "fence.proxy.async.global before it: slots that ranks whose records are in have used are st"),
    ("role/combine/sum_rows_bulk.inc",
     "    @!q bra         $listed;\n    FENCE_ORDINARY_BEFORE_BULK", "    bra $listed;",
     "ptx/role/combine/fill_ring.inc", "rows that were waited for are loaded"),
    ("role/combine/sum_rows_bulk.inc",
     "    FENCE_READ_BEFORE_BULK\n    bar.warp.sync   0xffffffff;",
     "    bar.warp.sync   0xffffffff;\n    FENCE_READ_BEFORE_BULK",
     "ptx/role/combine/sum_rows_bulk.inc",
     "bar.warp.sync without fence.proxy.async.shared::cta before it: a stage has been read when"),
    ("role/bulk/open_ring.inc", "    fence.proxy.async.shared::cta;\n", "",
     "ptx/role/bulk/load_chunk.inc", "mbarriers are made before a load completes on one"),
    ("lib/bulk.inc", "fence.proxy.async.global;", "fence.acq_rel.gpu;",
     "ptx/role/bulk/load_chunk.inc", "rows that an earlier kernel stored are loaded"),
])
def test_sources(tmp_path, file, old, new, at, words):
    root = copy_sources(tmp_path)
    params.generate(root)
    weaken(root, f"ptx/{file}", old, new)
    found = []
    for symbol in KERNELS:
        rendered = render.render_with_origins(variant_of(symbol), root)
        found += [(rendered.origin(line)[0], text)
                  for line, text in proxy_order.check_proxies(variant_of(symbol), rendered)]
    assert any(file == at and words in text for file, text in found), found


def test_a_rule_that_fits_nothing_is_a_finding(monkeypatch):
    made, _, waited, *_ = proxy_order.RULES
    rule = dataclasses.replace(waited, file="ptx/role/gone.inc")
    monkeypatch.setattr(proxy_order, "RULES", [rule])
    assert [text for _, text in findings("ep_dispatch_bulk")] == [
        f"nothing to begin with for the rule: {rule.edge}"]
    rule = dataclasses.replace(made, then="gone")
    monkeypatch.setattr(proxy_order, "RULES", [rule])
    assert [text for _, text in findings("ep_dispatch_bulk")] == [
        f"nothing to end with for the rule: {rule.edge}"]


def test_a_kernel_without_rules_is_a_finding(monkeypatch):
    monkeypatch.setattr(proxy_order, "RULES", [])
    ((file, text),) = findings("ep_dispatch_bulk")
    assert file == "ptx/role/bulk/load_chunk.inc" and "no rule" in text
