# SPDX-License-Identifier: MIT
"""Addresses and what is known of them are used again; a stale one is reported while it can be."""

import resource

import numpy as np
import pytest
from machine import Machine, fault_of

from deepep_ptx._emu_executor import EmuExecutor
from deepep_ptx.errors import KernelFault

LOAD = "ld.global.u32 r4, [d0];   // BUG"
WINDOW = 2 ** 43                       # bytes of a rank's address space
PAGES = WINDOW // 2 ** 21
KEPT = 16384                           # mappings that are reported by name


@pytest.fixture
def caller():
    """An array of the caller's, 64 bytes."""
    return np.arange(16, dtype=np.uint32)


def cycles(executor, array, count, nbytes=64):
    """Maps the array read-only and unmaps it, so often.  The executor never looks at the bytes."""
    for _ in range(count):
        executor.unmap(executor.map_array(array.ctypes.data, nbytes, False, "passing"))


def test_more_mappings_than_the_address_space_has_room_for(caller):
    """Two pages each: an address space that gives none back has room for half its pages."""
    executor = EmuExecutor(Machine().world, 0)
    cycles(executor, caller, KEPT)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cycles(executor, caller, PAGES // 2)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024           # KiB, of which the page table is 16 MiB


def test_large_mappings_go_round_the_address_space(caller):
    machine = Machine()
    executor = EmuExecutor(machine.world, 0)
    data = machine.array(np.arange(32, dtype="u4"))
    cycles(executor, caller, 64, 2 ** 40)
    late = machine.array(np.arange(100, 132, dtype="u4"))
    for _ in range(12):                # until the pages around both are passed again
        cycles(executor, caller, 1, 2 ** 40)
        copy = machine.space(128)
        machine.run("mad.wide.u32 d4, r1, 4, d0; mad.wide.u32 d5, r1, 4, d1; "
                    "mad.wide.u32 d6, r1, 4, d2; ld.global.u32 r4, [d4]; ld.global.u32 r5, [d5]; "
                    "add.u32 r4, r4, r5; st.global.u32 [d6], r4;", data, late, copy)
        assert np.array_equal(machine.fetch(copy, "u4", 32), np.arange(100, 164, 2))


def test_the_address_space_has_an_end(caller):
    executor = EmuExecutor(Machine().world, 0)
    held = [executor.map_array(caller.ctypes.data, 2 ** 41, False, "x") for _ in range(3)]
    with pytest.raises(MemoryError):
        executor.map_array(caller.ctypes.data, 2 ** 41, False, "x")
    executor.unmap(held[1])
    assert executor.map_array(caller.ctypes.data, 2 ** 41, False, "x") == held[1]


@pytest.mark.parametrize(("others", "says"), [
    (KEPT - 1, "'slot' + 0 (64 bytes): it was unmapped"),
    (KEPT, "where rank 0 had memory that it freed or unmapped"),
])
def test_freed_memory_is_reported_with_its_name_then_without(caller, others, says):
    machine = Machine()
    machine.space(64, name="before")
    data = machine.space(64, name="slot")
    machine.space(64, name="behind")
    machine.world.unmap(0, data)
    cycles(EmuExecutor(machine.world, 0), caller, others)
    assert says in str(fault_of(LOAD, data, kind="use-after-free", machine=machine))


def test_behind_the_end_stays_unmapped_when_addresses_are_used_again(caller):
    """One of 64 mappings stays; later ones get the places between, but no page behind one."""
    machine = Machine()
    executor = EmuExecutor(machine.world, 0)
    live = {}
    for i in range(4096):
        va = executor.map_array(caller.ctypes.data, 64, False, f"array {i}")
        if i % 64 == 0:
            live[va] = f"array {i}"
        else:
            executor.unmap(va)
    cycles(executor, caller, KEPT)     # forgotten by now
    last = 0
    while (va := executor.map_array(caller.ctypes.data, 2 ** 27, False, "passing")) > last:
        executor.unmap(va)
        last = va
    again = [executor.map_array(caller.ctypes.data, 64, False, "again") for _ in range(3000)]
    assert min(again) < max(live)
    places = sorted([*live, *again])
    assert all(b - a >= 2 ** 22 for a, b in zip(places, places[1:], strict=False))
    with pytest.raises(KernelFault, match=rf"'{live[max(live)]}' \+ 0x40, 0 bytes behind its end"):
        machine.run(LOAD, max(live) + 64)


def test_what_a_peer_still_maps_is_not_used_again(caller):
    machine = Machine(2)
    world, peer_side = machine.world, EmuExecutor(machine.world, 1)
    data = machine.array(np.zeros(16, "u4"), name="slot")
    peer = world.map_peer(1, 0, data)
    world.unmap(0, data)
    for _ in range(64):
        va = peer_side.map_array(caller.ctypes.data, 2 ** 40, False, "passing")
        assert not va <= peer < va + 2 ** 40
        peer_side.unmap(va)
    world.unmap(1, peer)               # by the peer: that is no error
    with pytest.raises(ValueError, match="not imported"):
        world.unmap(1, peer)
    cycles(peer_side, caller, KEPT)
    fault = fault_of(LOAD, peer, kind="use-after-free", machine=machine, rank=1)
    assert "rank 1 had memory that it freed or unmapped" in str(fault)
