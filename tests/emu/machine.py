# SPDX-License-Identifier: MIT
"""A small world around hand-written kernels: what the test_exec_* files drive the executor with."""

import struct

import numpy as np
import pytest

from deepep_ptx._emu import World
from deepep_ptx.errors import KernelFault

FILE = "test.ptx"

# Registers of every test kernel: r, s b32; d b64; f f32; q predicates; v vectors of four b32;
# z b128.
HEADER = f"""\
.version 8.4
.target sm_90
.address_size 64
.file 1 "{FILE}"
.extern .shared .align 16 .b8 smem[];
.visible .entry k(.param .align 16 .b8 p[64])
{{
    .reg .b32 r<32>, s<8>; .reg .b64 d<16>; .reg .f32 f<8>; .reg .pred q<8>;
    .reg .v4 .b32 v<8>; .reg .v2 .b32 w<4>; .reg .v2 .b64 x<4>;
    .reg .b128 z<2>;
"""

# d0..d3 := the first four parameters; r0 := %tid.x, r1 := number of the thread in the grid.
PROLOGUE = """
    ld.param.u64 d0, [p];
    ld.param.u64 d1, [p + 8];
    ld.param.u64 d2, [p + 16];
    ld.param.u64 d3, [p + 24];
    mov.u32 r0, %tid.x;
    mov.u32 r2, %ctaid.x;
    mov.u32 r3, %ntid.x;
    mad.lo.u32 r1, r2, r3, r0;
"""


def kernel(body, prologue=PROLOGUE):
    """PTX whose line n of `body` (from 1) is line n of FILE; ends with a ret."""
    lines = [f".loc 1 {n} 0\n{line}" if line.strip() and not line.strip().startswith("$") else line
             for n, line in enumerate(body.splitlines(), 1)]
    return HEADER + ".loc 1 900 0" + prologue + "\n".join(lines) + "\n.loc 1 999 0\nret;\n}\n"


def line_of(body, mark="BUG"):
    """The line of `body` with a comment that contains `mark`."""
    found = [n for n, line in enumerate(body.splitlines(), 1) if f"// {mark}" in line]
    assert len(found) == 1, found
    return found[0]


def param_block(params):
    """A kernel's parameters: eight u64."""
    return struct.pack("<8Q", *params, *[0] * (8 - len(params)))


# word d0 := d0 * d1 + 1.  Where the order of two matters, the result shows which came first.
STEP = """\
ld.global.u64 d4, [d0];
mad.lo.u64 d4, d4, d1, 1;
st.global.u64 [d0], d4;
"""

# Waits for flag d0 = d1.
AWAIT = """\
$poll:
ld.acquire.sys.global.u64 d4, [d0];
setp.ne.u64 q0, d4, d1;
@q0 bra $poll;
"""

# Raises flag d0 to d1.
RAISE = "st.release.sys.global.u64 [d0], d1;\n"


def queue(executor, body, *params, stream=0):
    """Queue `body` for one thread of a rank."""
    executor.launch(executor.world.load(kernel(body)), param_block(params), 1, 1, stream=stream)


def words(executor, count=1):
    """The address of `count` u64 of a rank, 0 each."""
    va = executor.alloc(8 * count)
    executor.fill(va, 0, 8 * count)
    return va


def word(executor, va, stream=0):
    """The u64 at `va`, after what `stream` has queued."""
    return int.from_bytes(executor.copy_out(va, 8, stream=stream), "little")


class Machine:
    """A World, and shorter ways to use it from NumPy."""

    def __init__(self, num_ranks=1, **options):
        self.world = World(num_ranks, **options)

    def array(self, values, rank=0, name="array"):
        """Device copy of an array; its address."""
        values = np.ascontiguousarray(values)
        va = self.world.alloc(rank, max(values.nbytes, 1), name=name)
        self.world.write(rank, va, values)
        return va

    def space(self, nbytes, rank=0, name="space"):
        """Uninitialised device memory; its address."""
        return self.world.alloc(rank, nbytes, name=name)

    def fetch(self, va, dtype, count, rank=0):
        dtype = np.dtype(dtype)
        return np.frombuffer(self.world.read(rank, va, dtype.itemsize * count), dtype)

    def launch(self, body, *params, rank=0, grid=1, block=32, smem=0):
        self.world.launch(rank, self.world.load(kernel(body)), param_block(params), grid, block,
                          smem)

    def run(self, body, *params, **shape):
        self.launch(body, *params, **shape)
        assert self.world.run()


def fault_of(body, *params, kind, mark="BUG", machine=None, **shape):
    """Runs the kernel, which must end in a fault of that kind at the marked line; the fault."""
    machine = machine or Machine()
    with pytest.raises(KernelFault) as raised:
        machine.run(body, *params, **shape)
    fault = raised.value
    assert fault.kind == kind, str(fault)
    assert (fault.file, fault.line) == (FILE, line_of(body, mark)), str(fault)
    assert fault.kernel == "k"
    assert str(fault).startswith(f"{kind}: ")
    return fault
