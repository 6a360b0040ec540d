# SPDX-License-Identifier: MIT
"""params.h: what is read from it, what is refused, and that a C compiler agrees."""

import shutil
import subprocess
from pathlib import Path

import pytest

from deepep_ptx.toolchain import front_end, params, render, variants

ROOT = Path(__file__).resolve().parents[2]


def test_sample_layout(tree):
    layout = params.load(tree.root)
    assert layout.constants == {"EP_ROWS": 3, "EP_WORDS": 4}
    pair, copy = layout.structs.values()
    assert (pair.size, pair.align, pair["words"].offset, pair["words"].length) == (24, 4, 4, 5)
    assert [(f.name, f.offset, f.size, f.length) for f in copy.fields] == [
        ("pair", 0, 24, None),
        ("src", 24, 8, None),
        ("dst", 32, 8, None),
        ("scale", 40, 8, 2),
    ]
    assert (copy.size, copy.align) == (48, 8)


def test_ptx_names(tree):
    lines = [line.split() for line in params.ptx_include(params.load(tree.root)).splitlines()]
    defines = {line[1]: line[2] for line in lines if line[0] == "#define"}
    assert defines["COPY_PAIR"] == "0"
    assert defines["COPY_SCALE"] == "40"
    assert defines["COPY_SIZEOF"] == "48"
    assert defines["PAIR_WORDS"] == "4"
    assert defines["EP_WORDS"] == "4"


def body(*fields, prefix="/* ptx: P */"):
    lines = "".join(f"    {field}\n" for field in fields)
    return f"struct ep_p {{ {prefix}\n{lines}}};\n"


def regions(*fields):
    return body("uint32_t a;") + body(*fields, prefix="/* ptx: R */").replace("ep_p {", "ep_r {")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (body("uint32_t a;", "uint64_t b;"), 3, "ep_p.b: 4 bytes of implicit padding at offset 4"),
        (body("uint64_t a;", "uint32_t b;"), 4, "ep_p: 4 bytes of implicit tail padding"),
        (body("uint8_t a[3];", "uint16_t b;"), 3, "1 bytes of implicit padding at offset 3"),
        (body("size_t a;"), 2, "unknown type size_t"),
        (body("uint32_t *a;"), 2, "cannot parse: uint32_t *a;"),
        (body("uint32_t a, b;"), 2, "cannot parse"),
        (body("uint32_t a : 3;"), 2, "cannot parse"),
        (body("struct ep_q a;"), 2, "struct ep_q is not declared above"),
        (body("uint32_t a;", "uint32_t a;"), 3, "ep_p.a is declared twice"),
        (body("uint32_t a[EP_N];"), 2, "'EP_N' is neither a number nor defined above"),
        (body("uint32_t a[0];"), 2, "is 0"),
        (body(), 2, "struct ep_p has no fields"),
        (body("uint32_t a;", prefix=""), 1, "lacks its `/* ptx: PREFIX */` comment"),
        (body("uint32_t a;") * 2, 4, "struct ep_p is declared twice"),
        (body("uint32_t a;") + body("uint32_t b;").replace("ep_p", "ep_q"), 6, "P_SIZEOF"),
        ("#define EP_X (1 << 3)\n", 1, "cannot parse"),
        ("#define EP_X 1u\n", 1, "not a decimal or hexadecimal number"),
        ("#define EP_X 010\n", 1, "not a decimal or hexadecimal number"),
        ("#define EP_X 1\n#define EP_X 1\n", 2, "already taken by line 1"),
        ("#if 1\n", 1, "cannot parse: #if 1"),
        ("struct ep_p { /* ptx: P */\n    uint32_t a;\n", 1, "struct ep_p is not closed"),
        ("/* c\n */ int x;\n", 2, "cannot parse: int x;"),
        (regions("EP_REGION(struct ep_q, 1, q);"), 5, "struct ep_q is not declared above"),
        (regions("EP_REGION(struct ep_p, num_experts, p);"), 5, "no number * num_ranks"),
        (regions("EP_REGION(struct ep_p, 1, p);", "uint64_t q;"), 6, "not an EP_REGION"),
    ],
)
def test_refused(text, line, words):
    with pytest.raises(params.LayoutError) as caught:
        params.parse(text, "p.h")
    assert str(caught.value).startswith(f"p.h:{line}: ")
    assert words in str(caught.value)


def test_c_compiler_agrees():
    check = ROOT / "cysrc/gen/params_check.h"
    command = ["gcc", "-std=gnu11", "-Werror", "-fsyntax-only", "-x", "c"]
    subprocess.run([*command, f"-I{ROOT}/deepep_ptx/include", str(check)], check=True)


def test_c_compiler_catches_a_changed_field(tree):
    (tree.root / "params_check.h").write_text(params.c_asserts(params.load(tree.root)))
    tree.replace(params.HEADER, "uint32_t first;", "uint64_t first;")
    done = subprocess.run(
        ["gcc", "-std=gnu11", "-fsyntax-only", "-x", "c"]
        + [f"-I{tree.root}/deepep_ptx/include", str(tree.root / "params_check.h")],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "ep_pair.words" in done.stderr


def test_generate_leaves_current_files_alone(tree):
    assert len(params.generate(tree.root)) == 3  # the fixture wrote the fourth
    assert params.generate(tree.root) == []
    tree.replace(params.HEADER, "EP_WORDS 4", "EP_WORDS 6")
    assert [path.name for path in params.generate(tree.root)] == [
        "params.inc",
        "params.pxd",
        "params_check.h",
    ]


def test_regions_are_laid_out(tree):
    """What the C compiler makes of the layout: each region on a line, behind the one before it."""
    tree.replace(params.HEADER, "#endif", """\
#define EP_SLOT_ALIGN 128
#define EP_REGION(element, count, name) uint64_t name
struct ep_heap {                             /* ptx: HEAP */
    EP_REGION(struct ep_copy_params, 1, first);
    EP_REGION(struct ep_pair, 2 * num_ranks, pairs);
    EP_REGION(struct ep_pair, num_ranks, last);
};
#endif
""")
    params.generate(tree.root)
    assert "HEAP_PAIRS                       8\n" in (tree.root / "ptx/gen/params.inc").read_text()
    (tree.root / "main.c").write_text("""\
#include <stdio.h>
#include "heap_layout.h"
int main(void)
{
    struct ep_heap heap;
    unsigned long bytes = ep_heap_layout(&heap, 7);
    printf("%lu %lu %lu %lu\\n", heap.first, heap.pairs, heap.last, bytes);
}
""")
    program = tree.root / "main"
    subprocess.run(["gcc", "-Werror", f"-I{tree.root}/deepep_ptx/include",
                    f"-I{tree.root}/cysrc/gen", str(tree.root / "main.c"), "-o", str(program)],
                   check=True)
    pair = 4 + 4 * 5
    ends = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert list(map(int, ends)) == [0, 128, 128 + 384, 512 + 7 * pair]
    assert 128 < 14 * pair <= 384


@pytest.mark.parametrize("more", [1, 2])
def test_our_heap_takes_another_region(more, tmp_path):
    """It moves what lies behind it in the parameter blocks, which kernels load as it is aligned."""
    shutil.copytree(ROOT / "ptx", tmp_path / "ptx")
    header = tmp_path / params.HEADER
    header.parent.mkdir(parents=True)
    text, last = (ROOT / params.HEADER).read_text(), "    EP_REGION(struct ep_sent_record,"
    assert last in text
    header.write_text(text.replace(last, "".join(
        f"    EP_REGION(struct ep_flags, num_ranks, more{i});\n" for i in range(more)) + last))
    params.generate(tmp_path)
    layout = params.load(tmp_path)
    for variant in variants.load(tmp_path, layout).variants:
        if variant.policy in (None, "ld_na"):
            front_end.decode_rendered(render.render_with_origins(variant, tmp_path))
    assert layout.structs["ep_comm"].size == params.load(ROOT).structs["ep_comm"].size + 8 * more
