# SPDX-License-Identifier: MIT
"""The PTX grammar: what the tree holds, and where an error is said to be."""

import time

import pytest
from statements import FIRST_LINE, kernel

from deepep_ptx.emu import parse as ast
from deepep_ptx.emu.parse import parse
from deepep_ptx.errors import PtxError


def body(*statements):
    """The statements of a kernel's body, without the registers of the test header."""
    block = parse(kernel(*statements)).entries[0].body
    return [s for s in block.statements if not isinstance(s, ast.Registers)][:-2]


def operands(statement):
    return body(statement)[0].operands


def test_the_module():
    module = parse("""// a comment before .version
.version 7.8
.target sm_90a
.address_size 64
.extern .shared .align 128 .b8 smem[];
.shared .align 8 .b8 table[16 * 4];
.visible .entry first(.param .align 16 .b8 p[120], .param .u32 n)
.maxntid 16, 4, 2
.minnctapersm 1
{ ret; }
.entry second() { exit; }
""")
    assert (module.version, module.target) == ((7, 8), "sm_90a")
    smem, table = module.variables
    assert (smem.name, smem.align, smem.size) == ("smem", 128, None)
    assert (table.name, table.align, table.size) == ("table", 8, 64)
    first, second = module.entries
    assert first.name == "first" and first.max_threads == 128
    assert [(p.name, p.align, p.size) for p in first.params] == [("p", 16, 120), ("n", 4, 4)]
    assert second.params == [] and second.max_threads == 0
    assert [s.opcode for s in second.body.statements] == ["exit"]


def test_an_instruction():
    insn, = body("@!q1 ld.acquire.sys.L1::no_allocate.global.v4.b32 {r0, r1, _, r3}, [d0 + 24];")
    assert insn.opcode == "ld"
    assert insn.qualifiers == ("acquire", "sys", "L1::no_allocate", "global", "v4", "b32")
    assert insn.guard == ast.Guard("q1", True)
    vector, address = insn.operands
    assert vector.elements == [ast.Name("r0"), ast.Name("r1"), ast.Sink(), ast.Name("r3")]
    assert address == ast.Address(ast.Name("d0"), 24)


@pytest.mark.parametrize(("text", "want"), [
    ("r0", ast.Name("r0")),
    ("v0.z", ast.Name("v0", 2)),
    ("%tid.x", ast.Special("%tid.x")),
    ("%tid.y", ast.Special("%tid.y")),
    ("%laneid", ast.Special("%laneid")),
    ("%r12", ast.Name("%r12")),
    ("smem", ast.Name("smem")),
    ("smem + 2 * 8", ast.Offset(ast.Name("smem"), 16)),
    ("r0|q1", ast.Pair(ast.Name("r0"), ast.Name("q1"))),
    ("q0|_", ast.Pair(ast.Name("q0"), ast.Sink())),
    ("!q1", ast.Negated(ast.Name("q1"))),
    ("0f3F800000", ast.Float(0x3F800000)),
    ("0F7fc00000", ast.Float(0x7FC00000)),
    ("[d0]", ast.Address(ast.Name("d0"), 0)),
    ("[d0 + -4]", ast.Address(ast.Name("d0"), -4)),
    ("[d0 + 3 * 512 - (1 << 4)]", ast.Address(ast.Name("d0"), 1520)),
    ("[v0.y + 8]", ast.Address(ast.Name("v0", 1), 8)),
])
def test_operands(text, want):
    assert operands(f"mov.b32 r0, {text};")[1] == want


@pytest.mark.parametrize(("text", "value"), [
    ("7", 7), ("0x1F", 31), ("0XffU", 255), ("0b101", 5), ("010", 8), ("0", 0), ("12U", 12),
    ("-1", -1), ("+3", 3), ("~0", -1), ("- - 2", 2),
    ("1 + 2 * 3", 7), ("(1 + 2) * 3", 9), ("10 - 4 - 3", 3), ("100 / 7 / 2", 7),
    ("7 / -2", -3), ("-7 / 2", -3), ("-7 % 3", -1), ("7 % -3", 1), ("7 % 4", 3),
    ("1 << 4 + 1", 32), ("256 >> 2 >> 1", 32), ("-8 >> 1", -4),
    ("6 & 3 | 8", 10), ("1 | 2 ^ 3 & 1", 3), ("14336 / (14 * 512)", 2),
    ("0xffffffffffffffff", 2 ** 64 - 1), ("-0x8000000000000000", -2 ** 63),
])
def test_constant_expressions_are_those_of_c(text, value):
    assert operands(f"mov.u64 d0, {text};")[1] == ast.Int(value)


def test_registers():
    block = parse(kernel(".reg .v4 .b32 x<3>, y;", ".reg .pred p_a, p_b;")).entries[0].body
    x, p = [s for s in block.statements if isinstance(s, ast.Registers)][-2:]
    assert (x.type, x.vector, x.names) == ("b32", 4, ["x0", "x1", "x2", "y"])
    assert (p.type, p.vector, p.names) == ("pred", 1, ["p_a", "p_b"])


def test_scopes_labels_and_shared_variables_nest():
    outer, = body("{ .shared .align 4 .b32 s_a[4], s_b; $top: { bra $top; } }")
    a, b, label, inner = outer.statements
    assert (a.name, a.size, b.name, b.size) == ("s_a", 16, "s_b", 4)
    assert label.name == "$top"
    assert inner.statements[0].operands == [ast.Name("$top")]


def test_comments_and_pragmas_are_passed_over():
    insns = body('.pragma "nounroll"; // bra $x;', "/* two\nlines; */ mov.u32 r0, /* one */ 1;")
    assert [i.opcode for i in insns] == ["mov"]


def test_loc_gives_each_instruction_its_source_line():
    text = kernel(
        '.file 1 "ptx/src/dispatch.ptx"', '.file 2 "ptx/lib/sync.inc"',
        "mov.u32 r0, 0;", ".loc 1 40 0", "mov.u32 r0, 1;", "mov.u32 r0, 2;", "{", ".loc 2 7 0",
        "mov.u32 r0, 3;", "}", ".loc 1 41 0", "mov.u32 r0, 4;")
    module = parse(text, "k.ptx")
    found = {}

    def walk(block):
        for s in block.statements:
            if isinstance(s, ast.Block):
                walk(s)
            elif isinstance(s, ast.Instruction) and s.opcode == "mov":
                found[s.operands[1].value] = module.source.source(s.start)

    walk(module.entries[0].body)
    assert found == {
        0: ("k.ptx", FIRST_LINE + 2), 1: ("ptx/src/dispatch.ptx", 40),
        2: ("ptx/src/dispatch.ptx", 40), 3: ("ptx/lib/sync.inc", 7),
        4: ("ptx/src/dispatch.ptx", 41)}


@pytest.mark.parametrize(("statement", "column", "says"), [
    ("mov.u32 r0 1;", 12, "expected ',' or ';', found '1'"),
    ("mov.u32 r0,;", 12, "expected an operand, found ';'"),
    ("mov.u32 r0, 'a';", 13, "unexpected character \"'\""),
    ("mov.u32 r0, 1 / 0;", 13, "division by zero"),
    ("mov.u32 r0, 1 << 64;", 13, "shift by 64"),
    ("mov.u64 d0, 0xffffffffffffffff + 1;", 13, "does not fit 64 bits"),
    ("mov.u32 r0, 089;", 13, "'0o089' is not a number"),
    ("ld.global.u32 r0, [d0 - 4];", 23, "write [base + -n]"),
    ("ld.global.u32 r0, [d0 + r1];", 25, "expected an operand, found 'r1'"),
    ("ld.global.u32 r0, [d0;", 22, "expected ']'"),
    ("st.global.v2.u32 [d0], {r0, r1;", 31, "expected '}'"),
    ("mov.u32 r0, v0.q;", 15, "expected an element (.x, .y, .z, .w), found '.q'"),
    ("@1 ret;", 2, "expected a predicate"),
    (".reg .f64 a;", 6, "expected a register type"),
    (".reg .b32 a b;", 13, "expected ';'"),
    (".local .b32 a;", 1, "expected a statement, found '.local'"),
    (".shared .align 4 .b32 s[];", 23, "without a size is .extern"),
    (".loc 3 1 0", 1, "file 3, which no .file declares"),
    (".branchtargets $a;", 1, "expected a statement"),
])
def test_errors_name_the_rendered_line_and_column(statement, column, says):
    with pytest.raises(PtxError) as caught:
        parse(kernel("ret;", statement), "k.ptx")
    assert says in str(caught.value)
    assert f"line {FIRST_LINE + 1}, column {column})" in str(caught.value)
    assert (caught.value.file, caught.value.line) == ("k.ptx", FIRST_LINE + 1)
    assert statement.strip() in str(caught.value)


def test_errors_name_the_source_line():
    for statement, says in ("mov.u32 r0 1;", "expected ',' or ';'"), ("mov #", "unexpected"):
        text = kernel('.file 1 "ptx/src/layout.ptx"', ".loc 1 77 0", statement)
        with pytest.raises(PtxError, match=f"^ptx/src/layout.ptx:77: {says}") as caught:
            parse(text)
        assert (caught.value.file, caught.value.line) == ("ptx/src/layout.ptx", 77)


@pytest.mark.parametrize(("text", "says"), [
    ("", "expected '.version', found the end of the text"),
    (".version 7.8\n.target sm_90\n.address_size 32\n", "must be 64"),
    (".version 7.8\n.target sm_90\n.address_size 64\n.global .b32 x;", "found '.global'"),
    (".version 7.8\n.target sm_90\n.address_size 64\n.func f() { ret; }", "expected '.reg'"),
    (".version 7.8\n.target sm_90\n.address_size 64\n.func f(.reg .pred q) { ret; }",
     "expected a type of an argument"),
    (".version 7.8\n.target sm_90\n.address_size 64\n.func f(.reg .b32 r) {\n.shared .b32 s;}",
     "<ptx>:5: a function has no .shared"),
    (".version 7.8\n.target sm_90\n.address_size 64\n.entry k() .reqntid 32 { ret; }",
     "expected '{' or a directive"),
    (".version 7.8\n.target sm_90\n.address_size 64\n.entry k() { ret;", "found the end"),
    (".version 7.8\n.target sm_90\n.address_size 64\n.entry k() { /* ret;",
     "a comment is not closed"),
])
def test_module_errors(text, says):
    with pytest.raises(PtxError) as caught:
        parse(text)
    assert says in str(caught.value)


def test_statements_of_the_same_words_share_their_operands():
    """Their places are their own; comments and white space are no words."""
    lines = ["@q0 add.u32 r0, r0, 7;", "@q0 add.u32 r0,r0,\t7 /* ; */;", "@q0 add.u32 r0, r0, 8;"]
    text = kernel(*lines)
    first, again, other = parse(text).entries[0].body.statements[7:10]
    assert again.operands is first.operands and again.guard == ast.Guard("q0", False)
    assert other.operands == [ast.Name("r0"), ast.Name("r0"), ast.Int(8)]
    assert [text[s.start:s.end] for s in (first, again, other)] == lines


def test_parentheses_count_wherever_a_statement_stands():
    statement = "mov.u32 r0, ((1));"
    parse(kernel(statement, "{" * 47, statement, "}" * 47))
    with pytest.raises(PtxError, match="more than 50 blocks or parentheses in each other"):
        parse(kernel(statement, "{" * 48, statement, "}" * 48))


@pytest.mark.parametrize("filling", [" ", "\n", "// x\n", "/**/"])
def test_what_is_between_tokens_is_read_once(filling):
    start = time.process_time()
    for wrong in ("", "#"):
        with pytest.raises(PtxError):
            parse(2 ** 20 * filling + wrong)
    assert time.process_time() - start < 10
