# SPDX-License-Identifier: MIT
"""Macros of ptx/arch: of all archs the same bits on the CPU executor, and they assemble."""

import shutil
import struct
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from deepep_ptx._emu import World
from deepep_ptx.toolchain import params, render, variants

ROOT = Path(__file__).resolve().parents[2]
ARCHS = ["sm_80", "sm_90"]
KERNEL = """\
// SPDX-License-Identifier: MIT
#include "lib/all.inc"
#include ARCH_FORMS
.visible .entry KERNEL(.param .align 8 .b8 p[COPY_SIZEOF])
.maxntid NUM_THREADS, 1, 1
{
    .reg .b64       a;
    .reg .b32       i, n, t;
    .reg .b32       f_lo, f_hi;
    .reg .pred      q;

    mov.u32         i, %ctaid.x;
    mov.u32         n, %ntid.x;
    mov.u32         t, %tid.x;
    mad.lo.u32      i, i, n, t;
    ld.param.u32    n, [p + COPY_PAIR + PAIR_FIRST];
    setp.ge.u32     q, i, n;
    @q ret;
    ld.param.u64    a, [p + COPY_SRC];
    mad.wide.u32    a, i, 8, a;
    ld.global.v2.b32 {f_lo, f_hi}, [a];
    CVT_E4M3X2(t, f_lo, f_hi)
    ld.param.u64    a, [p + COPY_DST];
    mad.wide.u32    a, i, 4, a;
    st.global.u32   [a], t;
    ret;
}
"""


@pytest.fixture(params=ARCHS)
def rendered(tree, request):
    """(arch, text) of the kernel around CVT_E4M3X2."""
    shutil.copytree(ROOT / "ptx/arch", tree.root / "ptx/arch")
    tree.write("ptx/src/copy_vec.ptx", KERNEL)
    table = variants.load(tree.root, params.load(tree.root))
    variant = next(v for v in table.variants if v.arch == request.param)
    return request.param, render.render(variant, tree.root)


def inputs():
    """All bf16 at several scales; all E4M3, what lies halfway between two, and their neighbours."""
    bf16 = (np.arange(2 ** 16, dtype="u4") << 16).view("f4")
    numbers = np.arange(127, dtype="u1").view(ml_dtypes.float8_e4m3fn).astype("f4")
    ties = (numbers[1:] + numbers[:-1]) / 2
    near = np.concatenate([numbers, ties, [464, 480, 2.0 ** -10, 1e-44, 3e38]]).astype("f4")
    near = np.concatenate([near, np.nextafter(near, np.float32(0)),
                           np.nextafter(near, np.float32(np.inf))])
    with np.errstate(all="ignore"):
        scaled = [bf16 * np.float32(scale) for scale in (1, 1.1, 1 / 3, 448 / 5.7, 2.0 ** -120)]
    return np.concatenate([near, -near, [np.inf, -np.inf, np.nan, -np.nan], *scaled]).astype("f4")


def test_e4m3_is_the_same_on_all_archs(rendered):
    low = inputs()
    pairs = np.stack([low, low[::-1]], axis=1)
    world = World(1)
    source, out = world.alloc(0, pairs.nbytes), world.alloc(0, 4 * len(low))
    world.write(0, source, np.ascontiguousarray(pairs))
    block = struct.pack("<6I2Q2f", len(low), *[0] * 5, source, out, 0, 0)
    world.launch(0, world.load(rendered[1]), block, -(-len(low) // 64), 64)
    assert world.run()
    got = np.frombuffer(world.read(0, out, 4 * len(low)), "u4")
    with np.errstate(all="ignore"):
        near = np.clip(low, -448, 448).astype(ml_dtypes.float8_e4m3fn).view("u1").astype("u4")
    want = np.where(np.isnan(low), 0x7F, near)
    assert np.array_equal(got, want | want[::-1] << 8)
    assert len(set(want.tolist())) == 255                    # all bytes but the other NaN


def test_the_forms_assemble(rendered, tools, tmp_path):
    arch, text = rendered
    assert ("e4m3x2" in text) == (arch == "sm_90")
    source = tmp_path / "kernel.ptx"
    source.write_text(text)
    subprocess.run([tools.ptxas, f"-arch={arch}", source, "-o", tmp_path / "kernel.cubin"],
                   check=True)


def test_archs_have_the_same_macros():
    """Those that roles use; the parts of one begin with what they are of."""
    def macros(arch):
        text = (ROOT / f"ptx/arch/{arch}.inc").read_text(encoding="utf-8")
        return {line.split("(")[0] for line in text.splitlines() if line.startswith("#define CVT_")}

    assert macros("sm_90") <= macros("sm_80")
