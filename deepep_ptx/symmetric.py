# SPDX-License-Identifier: MIT
"""The symmetric memory of a buffer's ranks: how it is made and how it grows.  All is collective."""

import functools
import operator

from ._calls import CoreCalls
from ._limits import MAX_SEGMENTS
from .arrays.library import give_back_caches
from .comm import all_or_none
from .errors import DeepEPError, RankMismatchError

GROWTH_STEP = 1 << 20  # bytes: arena segments that grow by themselves are multiples of it
MOST = (1 << 62) - 1   # of the numbers that ranks give each other, bytes, calls and masks


def connect(group, num_nvl_bytes, limit, timeout_ns, kernels):
    """A `CoreCalls` joined to those of all ranks.

    num_nvl_bytes: of its arena at the start.  limit: 0, or the arena's size, which does not grow
    then.  kernels: name -> (row of the table, text).
    Returns (core, num_here): num_here ranks share this rank's device.
    """
    executor = group.executor
    made = []

    def make():
        core = CoreCalls(executor, group.rank, group.size, timeout_ns, limit == 0)
        for name, (variant, text) in kernels.items():
            core.load_kernel(name, variant, text)
        made.append(core)
        return limit, executor.device_name, executor.place, core.heap_handle()

    everybody = all_or_none(group, make)
    _check_kinds(group, everybody, (int, str, object, bytes))
    limits, names, places, handles = zip(*everybody, strict=True)
    core = made[0]
    _check_same_growth(limits)
    _check_same_kind(names)

    def open_heaps():
        for rank, handle in enumerate(handles):
            core.open_heap(rank, handle)

    all_or_none(group, open_heaps)
    first = max(group.allgather_ints(limit or num_nvl_bytes, 0, MOST))
    if first:
        add_segment(group, core, limit or first)
    else:
        all_or_none(group, core.publish)
    return core, places.count(places[group.rank])


def add_segment(group, core, nbytes):
    """All ranks get the segment, or none and an error."""
    mine = []

    def add():
        try:
            index, handle = core.add_segment(nbytes)
        except MemoryError:
            give_back_caches(core.executor)
            try:
                index, handle = core.add_segment(nbytes)
            except MemoryError as error:
                raise MemoryError(f"rank {group.rank}: no memory for {nbytes} more bytes of the "
                                  f"arena: {error}") from None
        mine.append(index)
        return index, handle

    def open_all(everybody):
        _check_kinds(group, everybody, (int, bytes))
        for rank, (index, handle) in enumerate(everybody):
            if index != mine[0]:        # arenas have their segments in the same places
                raise group.refusal(f"segment {index} of rank {rank}, this rank's is {mine[0]}")
            core.open_segment(rank, index, handle)
        core.publish()

    try:
        all_or_none(group, open_all, all_or_none(group, add))
    except BaseException as error:  # all ranks come here, whatever one of them has met
        try:
            _drop(group, core, mine)
        except Exception as untold:     # a group that tells ranks different things
            error.add_note(f"and the segment was not given back: {type(untold).__name__}: {untold}")
        raise


def _gather(group, mine):
    # Who is told something else of itself goes to other collectives than the others, or to none.
    everybody = group.allgather(mine)
    own = everybody[group.rank]
    if not _is_about(own) or own != mine:
        raise group.refusal(f"{own!r} of this rank")
    return everybody


def _is_about(entry):
    """Whether it is what a rank gives that gathers: a word, and numbers."""
    return (type(entry) is tuple and len(entry) > 0 and type(entry[0]) is str
            and all(type(number) is int for number in entry[1:]))


def gather(group, what, *numbers):
    """For each of `numbers` a list of every rank's, in rank order.  what: a word for all of them.

    Raises:
        DeepEPError: another rank is in another collective: it made another call.
    """
    everybody = _gather(group, (what, *numbers))
    for rank, entry in enumerate(everybody):
        if not _is_about(entry) or entry[0] != what:
            raise DeepEPError(f"rank {rank} takes no part in {what}: its call was another one, or "
                              "had other arguments; call reset() on all ranks")
        if len(entry) != 1 + len(numbers) or not all(0 <= n <= MOST for n in entry[1:]):
            raise group.refusal(f"{entry!r} of rank {rank}")
    return [list(of_ranks) for of_ranks in zip(*everybody, strict=True)][1:]


def meet_for_reset(group):
    """Returns when all ranks are here; one that waits for others elsewhere raises there first."""
    mine = ("a reset",)
    everybody = [None]
    while any(entry != mine for entry in everybody):
        everybody = _gather(group, mine)
        # Others may be in a `gather`.
        for rank, entry in enumerate(everybody):
            if not _is_about(entry):
                raise group.refusal(f"{entry!r} of rank {rank}, which is in another collective")


def grow(group, core, needed_bytes, number):
    """Room for the call that has just found none.

    Each segment is as large as all before it.  Once there are as many as there can be, those in
    which no rank holds anything go first.
    number: of the buffer, equal on all ranks: another's growth is another collective.
    """
    what = f"growth of the arena of buffer {number}"
    # Kernels that nobody has waited for may use what goes; the gathering is their barrier.
    core.settle()
    (asked,) = gather(group, what, needed_bytes)
    needed = max(asked)
    landing = 0
    if core.num_segments == MAX_SEGMENTS:
        landing = core.landing_bytes
        idle, landings = gather(group, what, core.idle_segments(), landing)
        idle = functools.reduce(operator.and_, idle)
        needed += max(landings)
        # The first one is what get_local_buffer_tensor shows.
        _drop(group, core, [index for index in range(1, MAX_SEGMENTS) if idle >> index & 1])
    try:
        _add_as_large_as_can_be(group, core, needed)
    finally:
        core.make_landing(landing)      # where it was is gone, and calls count on it


def _add_as_large_as_can_be(group, core, needed):
    try:
        add_segment(group, core, _in_steps(max(needed, core.arena_bytes)))
    except (MemoryError, DeepEPError):          # on all ranks: some GPU is nearly full
        if needed >= core.arena_bytes:
            raise
        add_segment(group, core, _in_steps(needed))


def ensure_landing(group, core, nbytes, number, said):
    """Landing of `nbytes`, which need not be the same on all ranks.  number: of the buffer.
    Returns what all ranks have said, number by number: their calls may turn out to differ."""
    what = f"making room in buffer {number}"
    missing, *said = gather(group, what, 0 if core.make_landing(nbytes) else nbytes, *said)
    if max(missing):
        grow(group, core, max(missing), number)
        core.make_landing(nbytes)
    return said


def _in_steps(nbytes):
    return -(-nbytes // GROWTH_STEP) * GROWTH_STEP


def _drop(group, core, segments):
    # Nobody maps a segment any more when its owner frees it.
    for index in segments:
        core.unmap_segment(index)
    group.barrier()
    for index in segments:
        core.drop_segment(index)


def _check_kinds(group, everybody, kinds):
    """TypeError unless every rank gave a tuple of values of these types."""
    for rank, entry in enumerate(everybody):
        if not (type(entry) is tuple and len(entry) == len(kinds)
                and all(map(isinstance, entry, kinds))):
            raise group.refusal(f"{entry!r} of rank {rank}")


def _check_same_growth(limits):
    for rank, limit in enumerate(limits):
        if bool(limit) != bool(limits[0]):
            raise RankMismatchError(
                f"arena_limit_bytes: rank 0 has {limits[0]}, rank {rank} has {limit}; the arena "
                "grows (0) on all ranks or on none", argument="arena_limit_bytes", ranks=(0, rank),
                values=(limits[0], limit),
            )


def _check_same_kind(names):
    """Kernels, links and the model of SMs are those of one kind of GPU."""
    for rank, name in enumerate(names):
        if name != names[0]:
            raise RankMismatchError(f"group: rank 0 has a {names[0]}, rank {rank} a {name}; all "
                                    "GPUs must be of one kind", argument="group", ranks=(0, rank),
                                    values=(names[0], name))
