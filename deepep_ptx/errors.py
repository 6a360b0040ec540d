# SPDX-License-Identifier: MIT
"""Exceptions of the package.

Every class takes the message first and its details as keywords; the details are attributes.
Bad arguments are `ValueError` or `TypeError` whose text starts with the argument's name.
"""


class DeepEPError(RuntimeError):
    """Base of all errors that are not about an argument."""


class DeepEPTimeoutError(DeepEPError):
    """A wait reached its time limit, or a peer aborted while this rank waited for it.

    rank: the waiting rank.  peer: the rank it waited for, or -1.
    wait: what it waited for, in words ("call record", "pushed rows", "end of call",
        "numbered tokens", "bulk load").
    The buffer stays aborted until `Buffer.reset()`, which is collective.
    """

    def __init__(self, message, *, rank=None, peer=None, wait=None):
        super().__init__(message)
        self.rank = rank
        self.peer = peer
        self.wait = wait


class RankMismatchError(DeepEPError):
    """Two ranks made the same collective call with different arguments.

    argument: its name.  ranks: the two ranks.  values: what each of them said.
    """

    def __init__(self, message, *, argument=None, ranks=None, values=None):
        super().__init__(message)
        self.argument = argument
        self.ranks = ranks
        self.values = values


class CapacityError(DeepEPError):
    """A rank's arena, or its `num_worst_tokens`, has no room for a call's rows.

    All ranks raise it and no payload was written.
    needed_bytes: the value of `arena_limit_bytes`, in an arena that grows of `num_nvl_bytes`, with
        which the same call has room beside what the arena holds already; None where
        num_worst_tokens is too small.
    """

    def __init__(self, message, *, needed_bytes=None):
        super().__init__(message)
        self.needed_bytes = needed_bytes


class RaceError(DeepEPError):
    """A run under `check="races"` was whole, and the checker has found races in it.

    races: `deepep_ptx.emu.races.Race` of each pair of statements.  results: of the ranks.
    """

    def __init__(self, message, *, races=(), results=None):
        super().__init__(message)
        self.races = tuple(races)
        self.results = results


class DestroyedError(DeepEPError):
    """The buffer was used after `destroy()`."""


class QueuePairError(DeepEPError):
    """A queue pair reported an error."""


class RankError(DeepEPError):
    """A rank of `run_ranks` failed; `__cause__` is what it raised.

    rank: which one.
    """

    def __init__(self, message, *, rank=None):
        super().__init__(message)
        self.rank = rank


class Aborted(DeepEPError):
    """Another rank of this run failed, and this one was told to stop."""


class TuningError(ValueError):
    """A tuning file that cannot be used here.

    file: its path.  field: of it.  has: what the field is.  needed: what it must be, in words.
    The text begins with who named the file: "tuning", or DEEPEP_PTX_TUNING.
    """

    def __init__(self, message, *, file=None, field=None, has=None, needed=None):
        super().__init__(message)
        self.file = file
        self.field = field
        self.has = has
        self.needed = needed


class PtxError(DeepEPError):
    """PTX text that the CPU executor does not execute.  file, line: of the source."""

    def __init__(self, message, *, file=None, line=None):
        super().__init__(message)
        self.file = file
        self.line = line


class KernelFault(DeepEPError):
    """The CPU executor stopped a kernel; the message is its whole report.

    kind: "out-of-bounds", "misaligned", "deadlock", ...  file, line: of the PTX source, line 0
    when the fault has no single place.  rank, cta, warp, lane: -1 where there is none.
    """

    def __init__(self, message, *, kind=None, kernel=None, file=None, line=None,
                 rank=None, cta=None, warp=None, lane=None):
        super().__init__(message)
        self.kind = kind
        self.kernel = kernel
        self.file = file
        self.line = line
        self.rank = rank
        self.cta = cta
        self.warp = warp
        self.lane = lane
