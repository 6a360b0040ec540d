# SPDX-License-Identifier: MIT
"""ns per warp instruction of the CPU executor, by kind of instruction.

    python bench/emu_speed.py [--checks off] [--seconds 0.2]

Each line runs a loop whose body is 16 copies of one statement, on one warp; the loop's own two
instructions are part of the figure (2 in 18).
"""

import argparse
import struct
import time

from deepep_ptx._emu import World

COPIES = 16

KERNEL = """\
.version 7.8
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 smem[];
.visible .entry k(.param .align 16 .b8 p[64])
{{
    .reg .b32 r<16>; .reg .b64 d<16>; .reg .f32 f<8>; .reg .pred q<8>; .reg .v4 .b32 v<4>;
    ld.param.u64 d0, [p];
    ld.param.u32 r0, [p + 8];
    mov.u32 r1, %tid.x;
    mul.wide.u32 d1, r1, 16;
    add.u64 d1, d0, d1;
    mul.wide.u32 d2, r1, 4;
    add.u64 d2, d0, d2;
    mul.wide.u32 d3, r1, 272;
    add.u64 d3, d0, d3;
    shl.b32 r2, r1, 4;
    mov.u32 r3, 7;
    mov.u32 r4, 3;
    mov.f32 f0, 0f3F800000;
    mov.f32 f1, 0f3F900000;
    mov.b64 d4, 5;
    setp.lt.u32 q0, r1, 16;
    setp.eq.u32 q1, r1, 0;
    ld.global.v4.b32 v0, [d1];
    st.shared.v4.b32 [r2], v0;
$loop:
    {body}
    sub.u32 r0, r0, 1;
    setp.ne.u32 q2, r0, 0;
    @q2 bra $loop;
    ret;
}}
"""

STATEMENTS = {
    "add.u32": "add.u32 r5, r3, r4;",
    "add.u32, 16 lanes": "@q0 add.u32 r3, r3, r4;",
    "mad.lo.u32": "mad.lo.u32 r5, r3, r4, r3;",
    "add.u64": "add.u64 d5, d4, d2;",
    "mul.wide.u32": "mul.wide.u32 d5, r3, r4;",
    "setp.lt.u32": "setp.lt.u32 q3, r3, r4;",
    "selp.b32": "selp.b32 r5, r3, r4, q0;",
    "add.f32": "add.f32 f2, f0, f1;",
    "fma.rn.f32": "fma.rn.f32 f2, f0, f1, f0;",
    "cvt.rn.bf16x2.f32": "cvt.rn.bf16x2.f32 r5, f0, f1;",
    "div.u32": "div.u32 r5, r3, r4;",
    "shfl.sync.bfly": "shfl.sync.bfly.b32 r5, r3, 4, 31, -1;",
    "vote.sync.ballot": "vote.sync.ballot.b32 r5, q0, -1;",
    "bar.warp.sync": "bar.warp.sync -1;",
    "bar.sync, 1 warp": "bar.sync 0;",
    "ld.global.v4.b32, 512 bytes": "ld.global.v4.b32 v1, [d1];",
    "st.global.v4.b32, 512 bytes": "st.global.v4.b32 [d1], v0;",
    "ld.relaxed.sys.v4.b32, 512 bytes": "ld.relaxed.sys.global.v4.b32 v1, [d1];",
    "ld.global.u32, 128 bytes": "ld.global.u32 r5, [d2];",
    "st.global.u32, 128 bytes": "st.global.u32 [d2], r3;",
    "ld.global.u64, one address": "ld.global.u64 d5, [d0];",
    "ld.global.u32, scattered": "ld.global.u32 r5, [d3];",
    "st.global.u32, scattered": "st.global.u32 [d3], r3;",
    "ld.shared.v4.b32, 512 bytes": "ld.shared.v4.b32 v1, [r2];",
    "ld.relaxed.sys.u64, 1 lane": "@q1 ld.relaxed.sys.global.u64 d5, [d0];",
    "atom.add, 1 lane": "@q1 atom.relaxed.gpu.global.add.u32 r5, [d0], r4;",
    "atom.add, 32 lanes": "atom.relaxed.gpu.global.add.u32 r5, [d2], r4;",
    "branch apart, meet again": "@q0 bra $a{n};\n    add.u32 r5, r3, r4;\n$a{n}:",
}


def measure(statement, checks, seconds):
    """ns per warp instruction of a loop over `statement`."""
    body = "\n    ".join(statement.format(n=n) for n in range(COPIES))
    world = World(1, checks=checks, stall_limit=2**62)
    kernel = world.load(KERNEL.format(body=body))
    data = world.alloc(0, 1 << 16, name="data")
    world.write(0, data, bytes(1 << 16))
    rounds = 100
    while True:
        before = world.counters(0)["warp_instructions"]
        start = time.perf_counter()
        world.launch(0, kernel, struct.pack("<QI52x", data, rounds), 1, 32, 1024)
        world.run()
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return elapsed / (world.counters(0)["warp_instructions"] - before) * 1e9
        rounds = int(rounds * min(10, max(1.2, 1.3 * seconds / max(elapsed, 1e-6))))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checks", choices=("all", "off"), default="all")
    parser.add_argument("--seconds", type=float, default=0.2, help="per line (default 0.2)")
    options = parser.parse_args()
    print(f"checks={options.checks}   ns per warp instruction")
    for name, statement in STATEMENTS.items():
        print(f"{measure(statement, options.checks, options.seconds):8.1f}  {name}", flush=True)


if __name__ == "__main__":
    main()
