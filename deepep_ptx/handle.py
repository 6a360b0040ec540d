# SPDX-License-Identifier: MIT
"""What dispatch hands to combine and to dispatch."""


class EPHandle(tuple):
    """Where the rows of one dispatch went: opaque, immutable, made by `Buffer.dispatch`.

    `handle[0]` is rank_prefix_matrix int32 [R, R]: [s, d] = rows that ranks 0..s send to rank d.
    Any number of SMs may use it.

    Attributes:
        rank: whose it is.
        executor: "emu" or "cuda", where it was made; arrays are of the library of dispatch's x.
        recv_src_idx: int32 [num_recv], each received row's token at its source rank.
        is_token_in_rank: bool [num_tokens, R], as given to dispatch.
        num_tokens: rows that combine returns.
        num_recv: rows that combine takes; with num_worst_tokens that number.
        num_worst_tokens: of the dispatch.
        num_topk: of the dispatch, 0 without top-k.
        hidden: of the dispatch.
        pos: int32 [num_tokens, R], a token's index among this rank's rows at that rank, or -1.
        placement: the `Placement` of pos and handle[0], for the core.
    """

    def __new__(cls, rank_prefix_matrix, **attributes):
        return cls._of(rank_prefix_matrix, attributes)

    @classmethod
    def _of(cls, rank_prefix_matrix, attributes):
        """A handle with `attributes`, a dict that is its own from then on.

        Passing it costs a dispatch half as much as a dozen arguments by name.
        """
        handle = tuple.__new__(cls, (rank_prefix_matrix,))
        object.__setattr__(handle, "__dict__", attributes)
        return handle

    def __setattr__(self, name, value):
        raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")

    def __delattr__(self, name):
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}")
