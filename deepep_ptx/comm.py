# SPDX-License-Identifier: MIT
"""Groups of ranks: what a `Buffer` is made on.

A group has `rank`, `size`, `allgather(obj)` and `barrier()`.  `run_ranks` gives each rank a
`RankComm`; `as_comm` takes that, groups of torch.distributed and mpi4py, or any object with the
four.
"""

import numbers

from deepep_ptx.checked_group import CheckedGroup
from deepep_ptx.errors import DeepEPError
from deepep_ptx.groups import from_mpi, from_torch


class RankComm:
    """The group of one `run_ranks` call, as one of its ranks sees it.

    rank, size: ints.  executor: this rank's executor.  ranks_per_node: ranks that share an NVLink
    domain.  Collectives must be called by every rank in the same order; objects are passed by
    reference, not copied.  Both raise `DeepEPError` when ranks are in different collectives or wait
    for one that has returned, `DeepEPTimeoutError` at the run's time limit and `Aborted` when
    another rank failed.
    """

    def __init__(self, executor, size, ranks_per_node):
        self.rank = executor.rank
        self.size = size
        self.executor = executor
        self.ranks_per_node = ranks_per_node

    def __repr__(self):
        return f"<RankComm rank {self.rank} of {self.size}, executor {self.executor.name}>"

    def allgather(self, obj):
        """`obj` of every rank, as a list in rank order."""
        return self.executor.world.collect(self.rank, "allgather", obj)

    def barrier(self):
        """Returns once every rank has called it."""
        self.executor.world.collect(self.rank, "barrier", None)


def as_comm(group):
    """`group` itself, checked: ints `rank` in [0, size) and `size`, callable `allgather` and
    `barrier`.

    `TypeError` naming what is accepted for anything else, `ValueError` for a rank outside of the
    group.
    """
    if isinstance(group, RankComm):
        return group
    library = type(group).__module__.partition(".")[0]
    if library == "torch":
        return from_torch(group)
    if library == "mpi4py":
        return from_mpi(group)
    rank, size = getattr(group, "rank", None), getattr(group, "size", None)
    methods = [getattr(group, name, None) for name in ("allgather", "barrier")]
    if not (_is_integer(rank) and _is_integer(size) and all(map(callable, methods))):
        raise TypeError(
            "group: expected the comm object that run_ranks passes, a torch.distributed process "
            "group, an mpi4py communicator, or an object with integers "
            f"rank and size and methods allgather(obj) and barrier(); got {type(group).__name__}"
        )
    if not 0 <= rank < size:
        raise ValueError(f"group: rank must be in [0, {size}), got {rank}")
    return group


def all_or_none(group, step, *args):
    """`step(*args)` on every rank of `group`; the results of all, in rank order.  Collective.

    step: local, it calls no collective.  What it returns travels through `allgather`, so it must
    pickle where ranks are processes.

    A rank whose step fails tells the others and raises what the step raised, a
    `KeyboardInterrupt` too; the others raise `DeepEPError` with the number of the first such rank
    and its error's text.  So no rank goes on to a collective to which another never comes.
    `TypeError` where the group's `allgather` does not return what the ranks gave.
    """
    if not isinstance(group, CheckedGroup):
        group = CheckedGroup(group)
    try:
        result = step(*args)
    except BaseException as error:
        try:
            group.allgather((None, f"{type(error).__name__}: {error}"))
        except Exception as untold:
            error.add_note(f"and the other ranks were not told: {type(untold).__name__}: {untold}")
        raise
    everybody = group.allgather((result, None))
    for rank, entry in enumerate(everybody):
        if (type(entry) is not tuple or len(entry) != 2
                or not (entry[1] is None or isinstance(entry[1], str))):
            raise group.refusal(f"{entry!r} of rank {rank}, which is in another collective")
        if entry[1] is not None:
            raise DeepEPError(f"rank {rank} failed: {entry[1]}")
    return [result for result, _ in everybody]


def _is_integer(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
