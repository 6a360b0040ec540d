# SPDX-License-Identifier: MIT
"""What a variant becomes on every GPU that runs it: it assembles, and its tickets keep their
constants."""

import dataclasses

import pytest

from deepep_ptx.toolchain import lint, params, render, tickets, variants
from deepep_ptx.toolchain.ptxas import Assembly, Sass, assemble
from tests.weakened import ROOT

CTAS = "%nctaid.x"


def ours(name):
    table = variants.load(ROOT, params.load(ROOT))
    (variant,) = (v for v in table.variants if str(v) == name)
    return variant, render.render_with_origins(variant, ROOT)


# -- other GPUs -------------------------------------------------------------------------------

def test_our_targets():
    table = variants.load(ROOT, params.load(ROOT))
    targets = {arch: {arch, *v.also} for v in table.variants for arch in [v.arch]}
    assert targets == {"sm_80": {"sm_80", "sm_86", "sm_89"},
                       "sm_90": {"sm_90", "sm_100", "sm_103", "sm_120"}}


def findings(tree, tools, also):
    table = variants.load(tree.root, params.load(tree.root))
    work = [(dataclasses.replace(variant, also=also), rendered)
            for variant, rendered in lint.rendered_variants(table, tree.root)
            if str(variant) == "sm_80/ep_copy_vec_ld_na"]
    return lint.check_variants(work, tree.root, tools)


def test_a_target_that_does_not_take_the_text(tree, tools):
    """An older GPU stands for a newer one that has lost something."""
    assert findings(tree, tools, {"sm_86": 101376}) == []
    (found,) = findings(tree, tools, {"sm_86": 101376, "sm_75": 65536})
    assert found.startswith("sm_80/ep_copy_vec_ld_na: for sm_75: ptxas: ")


def test_a_target_with_too_little_shared_memory_is_none(tree, tools):
    tree.replace("ptx/variants.toml", "max_regs = 40", "max_regs = 40\nsmem = 70000")
    assert findings(tree, tools, {"sm_75": 65536}) == []


def test_too_many_registers_for_a_target(tree, tools, monkeypatch):
    monkeypatch.setattr(lint, "SM_REGISTERS", 100)
    (found,) = findings(tree, tools, {"sm_86": 101376})
    assert "for sm_86: " in found and "registers of each of 64 threads: an SM has 100" in found


# -- tickets ----------------------------------------------------------------------------------

def test_our_tickets():
    """The limit of each kernel's arrivals, and layout's last one."""
    variant, rendered = ours("sm_90/ep_layout")
    limit, last = tickets.tickets_of(rendered)
    assert limit.atom == limit.used == last.atom == last.used - 1
    assert limit.value == tickets.Sum(((CTAS, 1),), 2**32 - 1)
    assert last.value == tickets.Sum(((CTAS, -1), ("the atomic's result", 1)), 1)
    assert rendered.place(last.used).macro[0] == "ARRIVE"
    for name in ("sm_80/ep_dispatch_vec_ld_na", "sm_90/ep_combine_bulk"):
        (limit,) = tickets.tickets_of(ours(name)[1])
        assert limit.value == tickets.Sum(((CTAS, 1),), 2**32 - 1)


@pytest.fixture(scope="module", params=["sm_90", "sm_100", "sm_103", "sm_120"])
def layout(request, tools):
    """(tickets, machine code) of layout on one GPU."""
    _, rendered = ours("sm_90/ep_layout")
    return tickets.tickets_of(rendered), assemble(rendered.text, request.param, tools)


def check(layout, change):
    """Findings where `change(sass)` stands in the place of each instruction."""
    found, assembly = layout
    changed = tuple(change(sass, found) for sass in assembly.sass)
    assert changed != assembly.sass or change is unchanged
    return [text for _, text in tickets.check_tickets(
        found, dataclasses.replace(assembly, sass=changed))]


def unchanged(sass, _):
    return sass


def test_machine_code_keeps_them(layout):
    assert check(layout, unchanged) == []


def test_a_wrong_constant(layout):
    """n - 2 in the place of n - 1: the last CTA is never found."""
    def other(sass, found):
        if sass.line != found[0].atom - 1:
            return sass
        operands = sass.operands.replace("0xffffffff", "0xfffffffe").replace("-0x1", "-0x2")
        return dataclasses.replace(sass, operands=operands)

    assert check(layout, other) == [
        f"ticket is {CTAS} + -2 in SASS, not {CTAS} + -1",
        f"ticket is -{CTAS} + the atomic's result + 2 in SASS, not "
        f"-{CTAS} + the atomic's result + 1"]


def test_a_comparison_with_something_else(layout):
    def other(sass, found):
        if sass.line != found[1].used or not sass.opcode.startswith("ISETP"):
            return sass
        parts = sass.operands.split(", ")
        return dataclasses.replace(sass, operands=", ".join([*parts[:3], "RZ", *parts[4:]]))

    assert check(layout, other) == [
        f"ticket is the atomic's result + 0 in SASS, not -{CTAS} + the atomic's result + 1"]


def test_a_comparison_that_is_gone(layout):
    def other(sass, found):
        gone = sass.line == found[1].used and sass.opcode.startswith("ISETP")
        return dataclasses.replace(sass, opcode="NOP", operands="") if gone else sass

    assert check(layout, other) == ["no machine instruction compares this ticket"]


@pytest.mark.parametrize("constant, right", [("0x1", True), ("0x2", False), ("-0x1", False)])
def test_the_sum_may_be_on_either_side(constant, right):
    """old + 1 == n says the same as old == n - 1."""
    made = [("LDC", "R5, c[0x0][0x370]", 10), ("ATOMG.E.INC.STRONG.GPU", "PT, R2, [R2.64], R5", 11),
            ("IADD3", f"R7, PT, PT, R2, {constant}, RZ", 12), ("MOV", "R8, R7.reuse", 12),
            ("ISETP.EQ.U32.AND", "P0, PT, R5, R8, PT", 12)]
    assembly = Assembly(8, 0, 0, tuple(Sass(o, line, (), True, t) for o, t, line in made))
    ticket = tickets.Ticket(11, 12, tickets.Sum(((CTAS, -1), ("the atomic's result", 1)), 1))
    assert (list(tickets.check_tickets([ticket], assembly)) == []) is right


def test_in_ptx_too(tree):
    """A comparison in whose place PTX has a sum is one; with 0, nothing can go wrong."""
    tree.replace("ptx/src/copy_vec.ptx", "    mov.u32         t, %tid.x;", """\
    atom.relaxed.gpu.global.add.u32 t, [a_dst], 1;
    setp.eq.u32     q, t, 0;
    setp.eq.u32     q, t, 7;
    add.u32         t, t, 1;
    setp.ne.u32     q, 8, t;""")
    table = variants.load(tree.root, params.load(tree.root))
    found = tickets.tickets_of(render.render_with_origins(table.variants[0], tree.root))
    assert [str(ticket.value) for ticket in found] == [
        "the atomic's result + -7", "-the atomic's result + 7",
        "the atomic's result + 1"]                      # of the kernel's own comparison with 0
