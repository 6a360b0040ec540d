# SPDX-License-Identifier: MIT
"""PTX texts that the executor's front end must refuse: what fuzzing and reviews found.

`REFUSED` has (text, line, words of the error): the line of the rendered text that the error names.
`test_fuzz_ptx.py` checks each of them and mutates them further.
"""

HEADER = ".version 8.0\n.target sm_90\n.address_size 64\n"
ENTRY = ".visible .entry k(.param .align 8 .b8 p[16])\n"
REGISTERS = ".reg .b32 r<8>; .reg .b64 d<8>; .reg .pred q<4>; .reg .v4 .b32 v<4>;\n"
BODY_LINE = 7                          # of what `body` is given


def body(statements):
    """A kernel with these statements."""
    return f"{HEADER}{ENTRY}{{\n{REGISTERS}{statements}\nret;\n}}\n"


def module(line):
    """A kernel behind `line`, which is line 4."""
    return f"{HEADER}{line}\n{ENTRY}{{\nret;\n}}\n"


def entry(params="", directives=""):
    """A kernel with this parameter list (line 4) and these directives (line 5)."""
    return f"{HEADER}.entry k({params})\n{directives}\n{{\nret;\n}}\n"


_STATEMENTS = [
    # Numbers: sizes, counts and offsets.
    (".reg .b32 z<4294967296>;", "number of registers: must be in [0, 65536], is 4294967296"),
    (".reg .b32 z<1000000>; add.u32 zz, r0, r1;", "number of registers: must be in [0, 65536]"),
    (".reg .b32 y<65000>, z<1000>;", "more than 65536 registers in one text"),
    (".shared .b8 s[-5];", "must have 1 to 2147483647 elements of 1 bytes, not -5"),
    (".shared .b8 s[0];", "not 0"),
    (".shared .b8 s[1 << 40];", "must have 1 to"),
    (".shared .b8 s[1 << 30];", ".shared variables need 1073741824 bytes; a CTA has 232448"),
    (".shared .b64 s[1 << 20][1 << 20][1 << 20][1 << 20];", "not 1048576"),
    (".shared .align 3 .b8 s[4];", ".align: must be a power of two, is 3"),
    (".shared .align 0 .b8 s[4];", ".align: must be in [1, 2147483647], is 0"),
    (".shared .align 4294967296 .b8 s[4];", ".align: must be in"),
    ("ld.global.u32 r0, [d0 + 0x8000000000000000];", "an offset must be in [-2147483648, "),
    ("ld.global.u32 r0, [d0 + 0x80000000];", "an offset must be in"),
    ("ld.global.u32 r0, [d0 + -0x80000001];", "an offset must be in"),
    (".shared .b8 s[4]; mov.u64 d0, s + 0x7fffffffffffffff;", "an offset must be in"),
    ("ld.param.u32 r0, [p + -8];", "leaves the parameter's 16 bytes"),
    ("mov.u64 d0, 0x10000000000000000;", "does not fit 64 bits"),
    ("mov.u64 d0, 1" + "0" * 5000 + ";", "is not a number"),
    ("mov.u64 d0, 0x" + "f" * 5000 + ";", "does not fit 64 bits"),
    ("mov.u64 d0, 0xffffffffffffffff * 0xffffffffffffffff - 1;", "does not fit 64 bits"),
    ("mov.u64 d0, ~0xffffffffffffffff;", "does not fit 64 bits"),
    ("cp.async.bulk.wait_group 0xffffffffffffffff;", "a number of bulk groups"),
    # Names that are not what the statement needs.
    ("$x: bra $x.x;", "the operands do not fit 'bra{.uni} L'"),
    ("ld.global.v4.b32 v0.x, [d0];", "a vector of 4 is needed"),
    ("st.global.v4.b32 [d0], v0.x;", "a vector of 4 is needed"),
    (".shared .b8 s[4]; mov.u32 r0, s.x;", "'s' is a variable, which has no elements"),
    (".shared .b8 s[4]; ld.shared.u8 r0, [s.x];", "'s' is a variable, which has no elements"),
    ("mov.u32 r0|q0|q1, 1;", "expected ',' or ';'"),
    ("mov.u32 r0, {{{r1}}};", "expected an operand, found '{'"),
    (".reg .b32 r0;", "'r0' is declared twice"),
    ("r0: ret;", "'r0' is declared twice"),
    (".reg .b32 %laneid;", "'%laneid' cannot be a register's name"),
    (".reg .b32 _;", "'_' cannot be a register's name"),
    (".shared .b8 %smid[4];", "'%smid' cannot be a variable's name"),
    ("%tid: ret;", "'%tid' cannot be a label"),
    (".reg .b32 p;", "'p' is declared twice"),
    (".reg .v4 .pred z;", "there are no .v4 registers of .pred"),
    (".reg .v4 .b64 z;", "there are no .v4 registers of .b64"),
    (".reg .v2 .b128 z;", "there are no .v2 registers of .b128"),
    # Text.
    ("add.u32 " + "r" * 2000 + ", r0, r1;", "a name of 2000 characters"),
    ("mov.u32 r0, \u0663;", "unexpected character '\u0663'"),
    ('.file 1 "a\ud800"', r"unexpected character '\ud800'"),
    ("mov.u32 r0, 1; // \udfff", r"unexpected character '\udfff'"),
    ("mov.u32 r0, /* \ud800 */ 1;", r"unexpected character '\ud800'"),
    ("/* " * 20_000, "a comment is not closed"),
    ('.file 4294967296 "a"', ".file: must be in [0, 2147483647]"),
    ('.file 1 "a" .loc 1 4294967296 0', ".loc: must be in [0, 2147483647]"),
    ('.file 1 "a" .loc 1 1 0x8000000000000000', ".loc: must be in [0, 2147483647]"),
    # Recursion.
    ("{" * 5000 + "}" * 5000, "more than 50 blocks or parentheses in each other"),
    ("mov.u32 r0, " + "(" * 5000 + "1" + ")" * 5000 + ";", "more than 50 blocks or parentheses"),
    ("mov.u32 r0, " + "(1|1^1&1<<1+1*" * 5000 + "1;", "more than 50 blocks or parentheses"),
    ("mov.u32 r0, " + "- " * 5000 + ";", "expected an operand"),
    ("mov.u32 r0, " + "{" * 5000 + ";", "expected an operand"),
    ("setp.eq.u32 q0" + "|q1" * 5000 + ", r0, r1;", "expected ',' or ';'"),
    ("add" + ".x" * 5000 + " r0, r0, r0;", "no such form of 'add'"),
]

_MODULES = [
    (HEADER.replace("8.0", "4294967296.0") + ENTRY + "{ ret; }", 1, ".version: must be in [1, 99]"),
    (HEADER.replace("8.0", "8.4294967296") + ENTRY + "{ ret; }", 1, ".version: must be in [0, 99]"),
    (HEADER.replace("sm_90", "foo") + ENTRY + "{ ret; }", 2, "expected a target (sm_80, sm_90a,"),
    (HEADER.replace("sm_90", "sm_") + ENTRY + "{ ret; }", 2, "expected a target"),
    (HEADER.replace("sm_90", "sm_9999") + ENTRY + "{ ret; }", 2, "expected a target"),
    (HEADER.replace("64", "32") + ENTRY + "{ ret; }", 3, ".address_size: must be 64, is 32"),
    (HEADER, 4, "the text has no .entry"),
    (entry(".param .b8 p[]"), 4, "a parameter must have a size"),
    (entry(".param .b8 p[0]"), 4, "must have 1 to"),
    (entry(".param .b8 p[1 << 40]"), 4, "must have 1 to"),
    (entry(".param .b8 p[32768]"), 4, "the parameters need 32768 bytes; the most are 32764"),
    (entry(".param .align 3 .b8 p[8]"), 4, ".align: must be a power of two"),
    (entry(".param .b32 p, .param .b32 p"), 4, "'p' is declared twice"),
    (entry(directives=".maxntid 4294967296"), 5, ".maxntid: must be in [1, 1024]"),
    (entry(directives=".maxntid 0"), 5, ".maxntid: must be in [1, 1024]"),
    (entry(directives=".maxntid 1, 1, 1, 1"), 5, "expected '{' or a directive"),
    (entry(directives=".maxnreg 0"), 5, ".maxnreg: must be in [1, 2147483647]"),
    (entry(directives=".minnctapersm 4294967296"), 5, ".minnctapersm: must be in [1, 2147483647]"),
    (entry() + ".entry k() { ret; }\n", 9, "'k' is declared twice"),
    (module(".shared .b8 k[4];"), 5, "'k' is declared twice"),
    (module(".shared .b8 s[4], s[4];"), 4, "'s' is declared twice"),
    (module(".extern .shared .align 1048576 .b8 s[]; .shared .b8 t[4];"), 4,
     ".shared variables need 1048576 bytes"),
    # One register, predicate or temporary more than the executor's table has.
    (HEADER + ENTRY + "{\n.reg .b64 d; .reg .v4 .b32 z<8192>;\n"
     + "".join(f"ld.global.v4.b32 z{i}, [d];\n" for i in range(8192)) + "ret;\n}\n", 6 + 8192,
     "the registers used so far are 65534 words"),
]

REFUSED = [(body(statement), BODY_LINE, says) for statement, says in _STATEMENTS] + _MODULES
