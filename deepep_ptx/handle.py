# SPDX-License-Identifier: MIT
"""What dispatch hands to combine and to dispatch."""

from collections.abc import Iterable

_NO_PICKLE = ("handle: cannot be pickled, it stands for memory of the process that dispatched; "
              "keep topk_idx and topk_weights instead, and dispatch with them")


class _Single:
    """Its copies are itself, and it cannot leave the process."""

    __slots__ = ()

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce_ex__(self, protocol):
        raise TypeError(_NO_PICKLE)


class _Sent(_Single):
    """A handle's last item: its dispatch.

    Code that takes tuples apart and makes new ones of their items (FSDP, DDP, accelerate, copies)
    passes on what it does not know, so the items are where a handle has to keep everything.  No
    tuple itself, and unknown to such code, it is never taken apart; it does not refer to the
    handle, which so dies with its last reference.

    of: the class of the handle.  items: those before this one.
    """

    __slots__ = ("attributes", "items", "of")

    def __init__(self, of, items, attributes):
        self.of = of
        self.items = items
        self.attributes = attributes

    def __repr__(self):
        return "<rows sent>"


class _Handle(_Single, tuple):
    """A tuple whose last item is its dispatch, which the others are taken from again."""

    _made_by = None         # the method
    _length = None          # of the tuple, in words

    def __new__(cls, items):
        return cls._again(items, "items")

    @classmethod
    def _of(cls, items, attributes):
        """A handle with `attributes`: a dict that is its own from then on, or an object that has
        them.

        Passing it costs a dispatch half as much as a dozen arguments by name.
        """
        handle = tuple.__new__(cls, (*items, _Sent(cls, items, attributes)))
        if type(attributes) is dict:
            object.__setattr__(handle, "__dict__", attributes)
        return handle

    @classmethod
    def _again(cls, items, name):
        """The handle of `items`, which are argument `name`."""
        kind = type(items).__name__
        if not hasattr(items, "dtype") and isinstance(items, Iterable):
            items = tuple(items)
            sent = items[-1] if items else None
            if type(sent) is _Sent and sent.of is cls and len(items) == len(sent.items) + 1:
                return cls._of(sent.items, sent.attributes)
            kind += f" of {len(items)}"
        raise TypeError(f"{name}: must be what {cls._made_by} returned, or a tuple of its "
                        f"{cls._length} items, got {kind}")

    def __setattr__(self, name, value):
        raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")

    def __delattr__(self, name):
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}")

    def __eq__(self, other):
        if not isinstance(other, tuple):
            return NotImplemented
        # Arrays are not to be compared element by element.
        return (len(other) == len(self) and type(other[-1]) is _Sent
                and other[-1].attributes is self[-1].attributes)

    def __ne__(self, other):
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __hash__(self):
        return id(self[-1].attributes)


class EPHandle(_Handle):
    """Where the rows of one dispatch went: opaque, immutable, made by `Buffer.dispatch`.

    `handle[0]` is rank_prefix_matrix int32 [R, R]: [s, d] = rows that ranks 0..s send to rank d.
    Any number of SMs may use it.

    `EPHandle(items)` is the handle again that the items are of, as `tuple(handle)`, a slice or a
    container's conversion leaves them, or with another array in place of the first: it has the
    arrays of its dispatch, whatever became of that one.  Calls take such a tuple as they take the
    handle.  A copy, a deep one too, is the handle itself; two are equal if their dispatch is one.

    Attributes:
        rank: whose it is.
        executor: "emu" or "cuda", where it was made; arrays are of the library of dispatch's x.
        recv_src_idx: int32 [num_recv], each received row's token at its source rank.
        is_token_in_rank: bool [num_tokens, R], as given to dispatch.
        num_tokens: rows that combine returns.
        num_recv: rows that combine takes; with num_worst_tokens that number.
        recv_count: int32 [1], rows received, where handle[0] lies: its last one of this rank's
            column.  `Buffer.count_received` gives the number.
        num_worst_tokens: of the dispatch.
        num_topk: of the dispatch, 0 without top-k.
        hidden: values of a row of the dispatch.
        pos: int32 [num_tokens, R], a token's index among this rank's rows at that rank, or -1.
        room, buffer_number: see `room.Room`.
        placement: the `Placement` of pos and handle[0], for the core.

    Raises:
        TypeError: not the items of a handle, or pickled.
    """

    _made_by, _length = "dispatch", "two"

    @property
    def recv_count(self):
        """See above."""
        at = self.placement
        return at.library.entry(at.rank_prefix, (at.num_ranks - 1) * at.num_ranks + self.rank)

    def __repr__(self):
        known = vars(self)
        return (f"<EPHandle of rank {known.get('rank')}: {known.get('num_tokens')} tokens, "
                f"{known.get('num_recv')} rows received>")


class LowLatencyHandle(_Handle):
    """What `Buffer.low_latency_dispatch` hands to `low_latency_combine`: opaque, immutable.

    Its items are DeepEP's: src_info int32 [local_experts, R * max], layout_range int64
    [local_experts, R], max, hidden, num_experts; and a last one that is its dispatch.  A tuple of
    the six is as good as the handle, and `LowLatencyHandle(items)` is the handle again, as with
    `EPHandle`.

    Attributes:
        rank, num_ranks, executor: whose it is, and where it was made.
        num_tokens: rows that combine returns.
        num_topk: choices per token.
        places: `Array` int32: [R, max, num_topk], the row of each rank's choice here, or -1, and
            behind them [R], tokens of each rank.
        library: of it.
        number, buffer_number: of the call, and of its buffer.
        combine_buffer: what `Buffer.get_next_low_latency_combine_buffer` has given, or None.

    Raises:
        TypeError: not the items of a handle, or pickled.
    """

    _made_by, _length = "low_latency_dispatch", "six"

    def __getattr__(self, name):        # of `_low_latency_calls.Dispatched`
        return getattr(self[-1].attributes, name)

    def __repr__(self):
        return f"<LowLatencyHandle of rank {self.rank}: at most {self[2]} tokens of each rank>"
