# SPDX-License-Identifier: MIT
"""A group of ranks whose `allgather` returns what it should not, from some call on."""

import struct

# struct ep_record of cysrc/core/gather.h: what ranks give in the collectives of the core.  Its
# first four words say whose it is.
NUMBERS = 8                     # of which the first is the buffer's
RECORD = struct.Struct(f"=4I {NUMBERS}Q 128s 512s")


class Group:
    """`comm`, with `change` of what the `when`-th allgather of this rank returns, and later ones.

    change: a function of the list that should be returned.  rank, size: as integers of any type.
    """

    def __init__(self, comm, change=None, when=0, integer=int):
        self.comm = comm
        self.rank = integer(comm.rank)
        self.size = integer(comm.size)
        self.executor = comm.executor
        self.change = change
        self.calls_left = when

    def allgather(self, obj):
        everybody = self.comm.allgather(obj)
        self.calls_left -= 1
        return self.change(everybody) if self.change and self.calls_left < 0 else everybody

    def barrier(self):
        self.comm.barrier()


def contents(change):
    """`change` of what ranks gave, in place of what surrounds it."""
    def of(value):
        if isinstance(value, tuple):
            return tuple(map(of, value))
        return of_record(value) if is_record(value) else change(value)

    def of_record(record):
        *fields, handle, text = RECORD.unpack(record)
        head, numbers = fields[:-NUMBERS], list(map(change, fields[-NUMBERS:]))
        handle = change(handle) if any(handle) else handle
        try:
            return struct.pack(f"=4I {NUMBERS}Q", *head, *numbers) + handle + text
        except (struct.error, TypeError):       # it fits no record
            return (*head, *numbers, handle, text)
    return lambda everybody: [(rank, of(value)) for rank, value in everybody]


def is_record(value):
    """Whether the core has given it."""
    return type(value) is bytes and len(value) == RECORD.size


# What an allgather may return in place of a list of what each rank gave.
LISTS = {
    "None": lambda everybody: None,
    "a number": lambda everybody: 7,
    "nothing": lambda everybody: [],
    "too few": lambda everybody: everybody[:-1],
    "too many": lambda everybody: [*everybody, everybody[-1]],
    "many": lambda everybody: everybody * 1000,
    "another order": lambda everybody: everybody[::-1],
    "a generator": lambda everybody: (entry for entry in everybody),
    "a dict": lambda everybody: dict(enumerate(everybody)),
    "text": lambda everybody: "ab",
    "one's own entry alone": lambda everybody: [everybody[0]] * len(everybody),
    "entries of None": lambda everybody: [None] * len(everybody),
    "entries of numbers": lambda everybody: list(range(len(everybody))),
    "entries without what was given": lambda everybody: [(rank,) for rank, _ in everybody],
    "lists for tuples": lambda everybody: list(map(list, everybody)),
    "None for what was given": contents(lambda value: None),
}

# Of the values that ranks gave: a length, a size, a number of a segment, bytes of a handle.
VALUES = {
    "numbers as text": lambda value: str(value) if type(value) is int else value,
    "numbers as fractions": lambda value: value + 0.5 if type(value) is int else value,
    "negative numbers": lambda value: -1 - value if type(value) is int else value,
    "numbers past 64 bits": lambda value: value + (1 << 64) if type(value) is int else value,
    "short handles": lambda value: value[:8] if type(value) is bytes else value,
    "long handles": lambda value: value * 2 if type(value) is bytes else value,
    "handles of nothing": lambda value: bytes(len(value)) if type(value) is bytes else value,
    "handles as text": lambda value: value.hex() if type(value) is bytes else value,
}
