# SPDX-License-Identifier: MIT
"""How ping_pong.ptx is run: deepep-ptx check ping_pong.ptx --harness ping_pong.py"""

import struct

RANKS = 2
TURNS = 8


def run(world, ping_pong):
    """world: a `deepep_ptx._emu.World` of RANKS ranks; ping_pong: the kernel of the PTX file."""
    value = world.alloc(0, 4, name="value")
    flag = world.alloc(0, 4, name="flag")
    for address in (value, flag):
        world.write(0, address, bytes(4))
    for rank in range(RANKS):
        # A peer sees memory at addresses of its own.
        here = [address if rank == 0 else world.map_peer(rank, 0, address)
                for address in (value, flag)]
        world.launch(rank, ping_pong, struct.pack("<QQII", *here, rank, TURNS), grid=1, block=1)
    world.run()
    found = int.from_bytes(world.read(0, value, 4), "little")
    assert found == TURNS, f"the value is {found} after {TURNS} turns"
