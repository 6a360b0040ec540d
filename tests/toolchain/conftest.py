# SPDX-License-Identifier: MIT
"""A source tree of one small kernel, and the assembler where it is installed."""

from pathlib import Path

import pytest

from deepep_ptx.toolchain import params, ptxas

PARAMS = """\
/* SPDX-License-Identifier: MIT */
#ifndef SAMPLE_H
#define SAMPLE_H
#include <stdint.h>

typedef uint64_t ep_dptr_t;                  /* device address */

#define EP_ROWS 3
#define EP_WORDS 4                           /* of a row
                                              * and so on */

struct ep_pair {                             /* ptx: PAIR */
    uint32_t first;
    uint32_t words[EP_WORDS + 1];
};

struct ep_copy_params {                      /* ptx: COPY */
    struct ep_pair pair;
    ep_dptr_t src;           /* in  [rows] */
    ep_dptr_t dst;
    float scale[2];
};
#endif
"""

TABLE = """\
[policy.ld_na]
defined = ["source", "peer"]
sass    = "LDG.E.NA.LTC256B.128"

[policy.ld_nc]
defined = ["source"]
sass    = { sm_80 = "LDG.E.128.CONSTANT", sm_90 = "LDG.E.128.CONSTANT" }

[alias]
fast = { policies = ["ld_nc", "ld_na"] }

[arch]
sm_80 = { version = "7.4" }
sm_90 = { version = "7.8" }

[kernel.copy]
params   = "ep_copy_params"
site     = "source"
[kernel.copy.vec]
arch     = ["sm_80", "sm_90"]
threads  = 64
policy   = ["ld_na", "ld_nc"]
defines  = { UNROLL = 2 }
max_regs = 40
"""

KERNEL = """\
// SPDX-License-Identifier: MIT
#include "lib/all.inc"
#include LD_POLICY

#define LD_VEC(k)  LD_PAYLOAD_V4    v##k, [a_src + k * 512];   // a row macro
#define ST_VEC(k)  st.global.v4.b32 [a_dst + k * 512], v##k;

.visible .entry KERNEL(.param .align 8 .b8 p[COPY_SIZEOF])
.maxntid NUM_THREADS, 1, 1
{
    .reg .b64       a_src, a_dst;
    .reg .v4 .b32   v<UNROLL>;
    .reg .b32       t;
    .reg .pred      q;

    ld.param.u64    a_src, [p + COPY_SRC];
    ld.param.u64    a_dst, [p + COPY_DST];
    WAIT_WORD(a_dst, KERNEL_ID)
#include "role/copy.inc"
    mov.u32         t, %tid.x;
    setp.eq.u32     q, t, 0;
    @q bra          $end;
    st.global.u32   [a_dst], t;
$end:
    ret;
}
"""

FILES = {
    "deepep_ptx/include/deepep_ptx/params.h": PARAMS,
    "ptx/variants.toml": TABLE,
    "ptx/src/copy_vec.ptx": KERNEL,
    "ptx/role/copy.inc": """\
// SPDX-License-Identifier: MIT
    REPEAT_2(LD_VEC)
    REPEAT_2(ST_VEC)
""",
    "ptx/policy/ld_na.inc": """\
// SPDX-License-Identifier: MIT
#define LD_PAYLOAD_V4  ld.global.L1::no_allocate.L2::256B.v4.b32
""",
    "ptx/policy/ld_nc.inc": """\
// SPDX-License-Identifier: MIT
#define LD_PAYLOAD_V4  ld.global.nc.v4.b32
""",
    "ptx/lib/all.inc": """\
// SPDX-License-Identifier: MIT
.version PTX_VERSION
.target SM_TARGET
.address_size 64
#include "gen/params.inc"
#include "lib/wait.inc"
""",
    "ptx/lib/wait.inc": """\
// SPDX-License-Identifier: MIT
#define REPEAT_2(M)  M(0) M(1)

// Spin until the word is at least `want`.
#define WAIT_WORD(a, want) {                     \\
        .reg .b32  got;                          \\
        .reg .pred p_ready;                      \\
    $poll:                                       \\
        ld.acquire.sys.global.u32 got, [a];      \\
        setp.ge.u32     p_ready, got, want;      \\
        @!p_ready bra   $poll; }
""",
}


class Tree:
    """A source tree under `root`; `write` replaces one of its files."""

    def __init__(self, root: Path):
        self.root = root
        for name, text in FILES.items():
            self.write(name, text)
        self.generate_params()

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text(encoding="utf-8")
        assert old in text
        self.write(name, text.replace(old, new))

    def generate_params(self) -> None:
        (self.root / "ptx/gen").mkdir(exist_ok=True)
        (self.root / "ptx/gen/params.inc").write_text(params.ptx_include(params.load(self.root)))


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


@pytest.fixture(scope="session")
def tools():
    try:
        return ptxas.find()
    except ptxas.ToolError as error:
        pytest.skip(str(error))
