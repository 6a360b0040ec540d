# SPDX-License-Identifier: MIT
"""The symmetric memory of a buffer's ranks: how it is made and how it grows.  All is collective."""

import functools
import operator

from ._buffer import MAX_SEGMENTS, CoreBuffer
from .comm import all_or_none
from .errors import RankMismatchError

GROWTH_STEP = 1 << 20  # bytes: arena segments that grow by themselves are multiples of it


def connect(group, num_nvl_bytes, timeout_ns, kernels):
    """A `CoreBuffer` joined to those of all ranks.

    num_nvl_bytes: of its arena, 0: it grows.  kernels: name -> (row of the table, text).
    Returns (core, num_here): num_here ranks share this rank's device.
    """
    executor = group.executor
    made = []

    def make():
        core = CoreBuffer(executor, group.rank, group.size, timeout_ns, num_nvl_bytes == 0)
        for name, (variant, text) in kernels.items():
            core.load_kernel(name, variant, text)
        made.append(core)
        return num_nvl_bytes, executor.device_name, executor.place, core.heap_handle()

    limits, names, places, handles = zip(*all_or_none(group, make), strict=True)
    core = made[0]
    _check_same_growth(limits)
    _check_same_kind(names)

    def open_heaps():
        for rank, handle in enumerate(handles):
            core.open_heap(rank, handle)

    all_or_none(group, open_heaps)
    if num_nvl_bytes:
        add_segment(group, core, num_nvl_bytes)
    else:
        all_or_none(group, core.publish)
    return core, places.count(places[group.rank])


def add_segment(group, core, nbytes):
    """All ranks get the segment, or none and an error."""
    mine = []

    def add():
        index, handle = core.add_segment(nbytes)
        mine.append(index)
        return index, handle

    def open_all(everybody):
        for rank, (index, handle) in enumerate(everybody):
            core.open_segment(rank, index, handle)
        core.publish()

    try:
        all_or_none(group, open_all, all_or_none(group, add))
    except BaseException:           # all ranks come here, whatever one of them has met
        _drop(group, core, mine)
        raise


def grow(group, core, needed_bytes):
    """Room for the call that has just found none.

    Each segment is as large as all before it.  Once there are as many as there can be, those in
    which no rank holds anything go first.
    """
    needed = max(*group.allgather(needed_bytes), core.arena_bytes)
    if core.num_segments == MAX_SEGMENTS:
        idle = functools.reduce(operator.and_, group.allgather(core.idle_segments()))
        _drop(group, core, [index for index in range(MAX_SEGMENTS) if idle >> index & 1])
    add_segment(group, core, -(-needed // GROWTH_STEP) * GROWTH_STEP)


def _drop(group, core, segments):
    # Nobody maps a segment any more when its owner frees it.
    for index in segments:
        core.unmap_segment(index)
    group.barrier()
    for index in segments:
        core.drop_segment(index)


def _check_same_growth(limits):
    for rank, limit in enumerate(limits):
        if bool(limit) != bool(limits[0]):
            raise RankMismatchError(
                f"num_nvl_bytes: rank 0 has {limits[0]}, rank {rank} has {limit}; the arena grows "
                "(0) on all ranks or on none", argument="num_nvl_bytes", ranks=(0, rank),
                values=(limits[0], limit),
            )


def _check_same_kind(names):
    """Kernels, links and the model of SMs are those of one kind of GPU."""
    for rank, name in enumerate(names):
        if name != names[0]:
            raise RankMismatchError(f"group: rank 0 has a {names[0]}, rank {rank} a {name}; all "
                                    "GPUs must be of one kind", argument="group", ranks=(0, rank),
                                    values=(names[0], name))
