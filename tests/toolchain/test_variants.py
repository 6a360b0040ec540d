# SPDX-License-Identifier: MIT
"""variants.toml: the axes multiply out; what the table does not know is refused by name."""

from pathlib import Path

import pytest

from deepep_ptx.toolchain import params, render, variants

ROOT = Path(__file__).resolve().parents[2]


def load(tree):
    return variants.load(tree.root, params.load(tree.root))


def test_axes(tree):
    table = load(tree)
    assert [str(variant) for variant in table.variants] == [
        "sm_80/ep_copy_vec_ld_na",
        "sm_80/ep_copy_vec_ld_nc",
        "sm_90/ep_copy_vec_ld_na",
        "sm_90/ep_copy_vec_ld_nc",
    ]
    last = table.variants[-1]
    assert last.file == "sm_90/ep_copy_vec_ld_nc.ptx"
    assert (last.kernel_id, last.version, last.param_bytes) == (0, "7.8", 48)
    assert last.sass == "LDG.E.128.CONSTANT"


@pytest.mark.parametrize(("own", "versions"), [
    ("7.5", {"sm_80": "7.5", "sm_90": "7.8"}), ("7.10", {"sm_80": "7.10", "sm_90": "7.10"}),
    ("6.0", {"sm_80": "7.4", "sm_90": "7.8"}), ("8.4", {"sm_80": "8.4", "sm_90": "8.4"}),
])
def test_a_kernel_may_need_a_later_version_than_its_arch(tree, own, versions):
    tree.replace("ptx/variants.toml", "threads  = 64", f'threads  = 64\nversion = "{own}"')
    assert {v.arch: v.version for v in load(tree).variants} == versions
    variant = load(tree).variants[0]
    assert f".version {versions[variant.arch]}\n" in render.render(variant, tree.root)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("threads  = 64", "thread   = 64", "unknown key 'thread'; did you mean 'threads'?"),
        ("threads  = 64", "", "[kernel.copy.vec]: threads is missing"),
        ("threads  = 64", "threads  = 65", "threads is 65, not a multiple of 32"),
        ("threads  = 64", "threads  = true", "threads is True, not of type int"),
        ('["ld_na", "ld_nc"]\ndef', '["ld_mb"]\ndef', "unknown policy 'ld_mb'; did you mean"),
        ('site     = "source"', 'site     = "sources"', "did you mean 'source'?"),
        ('site     = "source"\n', "", "policy needs a site"),
        ('"sm_90"]', '"sm_91"]', "unknown arch 'sm_91'; did you mean 'sm_90'?"),
        ("ep_copy_params", "ep_kopy_params", "did you mean 'ep_copy_params'?"),
        ('site     = "source"', 'co_resident = 1', "co_resident is 1, not of type bool"),
        ('site     = "source"', 'uses = ["copy"]', "uses has 'copy', which is a kernel"),
        ('params   = "ep_copy_params"\n', "", "[kernel.copy]: params is missing"),
        ("[kernel.copy.vec]", "[kernel.copy.vek]", "unknown path 'vek'; did you mean 'vec'?"),
        ("threads  = 64", "threads  = 64\nsmem = 1.5", "smem is 1.5, not of type int"),
        ('sm_80 = "LDG.E.128.CONSTANT", ', "", "sass lacks sm_80, which copy takes"),
        ("UNROLL = 2", 'UNROLL = "2"', "defines.UNROLL is '2', not of type int"),
        ("threads  = 64", 'threads  = 64\nversion = "8"',
         "[kernel.copy.vec]: version is '8', not of the form '7.8'"),
        ("threads  = 64", "threads  = 64\nversion = 8.4", "version is 8.4, not of type str"),
        ('version = "7.4"', 'version = "7"', "not of the form '7.8'"),
        ('"7.4"', '"7.4", also = ["sm_86"]', "also is ['sm_86'], not of type dict"),
        ('"7.4"', '"7.4", also = { "86" = 1 }', "also has '86', not of the form 'sm_86'"),
        ('"7.4"', '"7.4", also = { sm_86 = "1" }', "also.sm_86 is '1', not of type int"),
        ("[arch]", "[arches]", "unknown table 'arches'; did you mean 'arch'?"),
        ("[arch]", "[arch", "ptx/variants.toml: "),
        (
            'fast = { policies = ["ld_nc", "ld_na"] }\n\n[arch]',
            'fast = { policies = [] }\n\n[arch]',
            "[alias.fast]: picks no policy for kernel copy",
        ),
        ("[arch]", '[path]\ncopy = ["vek"]\n\n[arch]',
         "[path]: unknown path of copy 'vek'; did you mean 'vec'?"),
        ("[arch]", '[path]\ncpy = ["vec"]\n\n[arch]', "unknown kernel 'cpy'; did you mean 'copy'?"),
        ("[arch]", "[path]\ncopy = []\n\n[arch]", "[path]: copy has none of [] on sm_80, sm_90"),
        (
            "max_regs = 40",
            'max_regs = 40\n[kernel.copy.bulk]\narch = ["sm_90"]\nthreads = 64\nmax_regs = 40',
            "[path]: copy is missing: it has vec, bulk",
        ),
    ],
)
def test_refused(tree, old, new, words):
    tree.replace("ptx/variants.toml", old, new)
    with pytest.raises(variants.TableError) as caught:
        load(tree)
    assert words in str(caught.value)


def test_alias_needs_a_form_defined_at_the_site(tree):
    tree.replace("ptx/variants.toml", 'site     = "source"', 'site     = "peer"')
    tree.replace("ptx/variants.toml", '["ld_nc", "ld_na"] }', '["ld_nc"] }')
    with pytest.raises(variants.TableError, match="picks no policy for kernel copy"):
        load(tree)
    tree.replace("ptx/variants.toml", '["ld_nc"] }', '["ld_nc"], undefined = true }')
    assert load(tree).aliases["fast"].undefined


def test_an_alias_needs_a_form_of_every_path(tree):
    """A GPU may have no room for the preferred one."""
    tree.replace("ptx/variants.toml", "max_regs = 40",
                 'max_regs = 40\n[kernel.copy.bulk]\narch = ["sm_90"]\nthreads = 64\nmax_regs = 40')
    tree.replace("ptx/variants.toml", "[arch]", '[path]\ncopy = ["bulk", "vec"]\n\n[arch]')
    assert load(tree).paths == {"copy": ("bulk", "vec")}
    tree.replace("ptx/variants.toml", 'fast = { policies = ["ld_nc", "ld_na"] }',
                 "fast = { policies = [] }")
    tree.replace("ptx/variants.toml", 'arch     = ["sm_80", "sm_90"]\n', 'arch     = ["sm_90"]\n')
    with pytest.raises(variants.TableError, match="picks no policy for kernel copy on sm_90"):
        load(tree)


def test_our_table():
    table = variants.load(ROOT, params.load(ROOT))
    assert {variant.source for variant in table.variants} == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "ptx/src").glob("*.ptx")
    }
    used = {variant.policy for variant in table.variants} - {None}
    assert used == set(table.policies) == {p.stem for p in (ROOT / "ptx/policy").glob("*.inc")}
    names = [str(variant) for variant in table.variants]
    assert len(names) == len(set(names))
