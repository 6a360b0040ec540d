# SPDX-License-Identifier: MIT
"""What a buffer's ranks give each other, checked: the group is somebody else's code."""

from deepep_ptx.checks import as_int


class CheckedGroup:
    """`group`, as `as_comm` gives it, of which nothing is believed unseen.

    rank, size: ints.  executor, ranks_per_node: the group's; without the latter all ranks are of
    one.

    Raises:
        TypeError: one of the numbers is no integer.
    """

    def __init__(self, group):
        self.group = group
        self.rank = as_int(group.rank, "group: rank")
        self.size = as_int(group.size, "group: size")
        self.executor = getattr(group, "executor", None)
        self.ranks_per_node = as_int(getattr(group, "ranks_per_node", self.size),
                                     "group: ranks_per_node")

    def __repr__(self):
        return f"<CheckedGroup of {self.group!r}>"

    def allgather(self, obj):
        """`obj` of every rank, as a list in rank order.

        Raises:
            TypeError: the group returns something else.
        """
        everybody = self.group.allgather((self.rank, obj))
        if not isinstance(everybody, (list, tuple)):
            raise self.refusal(f"{everybody!r}")
        mine = list(everybody)          # theirs may change: what is checked is what is used
        if len(mine) != self.size:
            raise self.refusal(f"{everybody!r}")
        for rank, entry in enumerate(mine):
            if (type(entry) is not tuple or len(entry) != 2 or type(entry[0]) is not int
                    or entry[0] != rank):
                raise self.refusal(f"{entry!r} as entry {rank}")
        return [entry[1] for entry in mine]

    def refusal(self, what):
        """The error for what `allgather` has returned."""
        text = what if len(what) <= 200 else f"{what[:200]}..."
        return TypeError(f"group.allgather: must return a list of what each of the {self.size} "
                         f"ranks gave, in rank order; returned {text}")

    def barrier(self):
        """Returns once every rank has called it."""
        self.group.barrier()
