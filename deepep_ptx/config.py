# SPDX-License-Identifier: MIT
"""DeepEP's `Config`, its recommended tables, and how large an arena must be."""

from dataclasses import dataclass, fields

from ._limits import MAX_HIDDEN, MAX_RANKS, MAX_TOKENS, MAX_TOPK, ROW_ALIGN
from .checks import check_int
from .slot_size import bytes_of_arrays

DEFAULT_SMS = 20          # DeepEP's, of configs; calls without a number choose their own
MAX_ROWS = (1 << 31) - 1  # of one result: rows are counted in int32
COMBINE_ITEMSIZE = 2      # combine adds bfloat16, whatever dispatch moved


@dataclass(frozen=True)
class Config:
    """How many SMs a call takes, as DeepEP writes it.

    Only `num_sms` has an effect: rows are written once to their final place, so there are no queues
    whose chunks the other four would size.  They are checked as DeepEP checks them, and kept.

    Args:
        num_sms: CTAs of the call's kernels, at least 0.
        num_max_nvl_chunked_send_tokens: at least 1, below the next.
        num_max_nvl_chunked_recv_tokens: at least 1.
        num_max_rdma_chunked_send_tokens: at least 1, below the next.
        num_max_rdma_chunked_recv_tokens: at least 1; rounded up to a multiple of the previous one,
            so at least twice that.

    Raises:
        ValueError, TypeError: a value out of range; the text begins with its name.
    """

    num_sms: int = DEFAULT_SMS
    num_max_nvl_chunked_send_tokens: int = 6
    num_max_nvl_chunked_recv_tokens: int = 256
    num_max_rdma_chunked_send_tokens: int = 6
    num_max_rdma_chunked_recv_tokens: int = 256

    def __post_init__(self):
        for field in fields(self):
            low = 0 if field.name == "num_sms" else 1
            self._set(field.name, check_int(getattr(self, field.name), field.name, low))
        for link in "nvl", "rdma":
            send = f"num_max_{link}_chunked_send_tokens"
            recv = f"num_max_{link}_chunked_recv_tokens"
            if getattr(self, send) >= getattr(self, recv):
                raise ValueError(f"{send}: must be at least 1 and below {recv} = "
                                 f"{getattr(self, recv)}, got {getattr(self, send)}")
        self._set("num_max_rdma_chunked_recv_tokens",
                  _round_up(self.num_max_rdma_chunked_recv_tokens,
                            self.num_max_rdma_chunked_send_tokens))

    def _set(self, name, value):
        object.__setattr__(self, name, value)

    def get_nvl_buffer_size_hint(self, hidden_bytes, num_ranks):
        """0: no memory depends on a Config, and the arena grows as calls need it.
        `get_size_hint` says what `arena_limit_bytes` must be.

        hidden_bytes: of a row, at least 1.  num_ranks: in [1, 64].
        """
        return _no_bytes(hidden_bytes, num_ranks)

    def get_rdma_buffer_size_hint(self, hidden_bytes, num_ranks):
        """0: all ranks share one NVLink domain.  Arguments as above."""
        return _no_bytes(hidden_bytes, num_ranks)


def _no_bytes(hidden_bytes, num_ranks):
    check_int(hidden_bytes, "hidden_bytes", 1)
    check_int(num_ranks, "num_ranks", 1, MAX_RANKS)
    return 0


# -- recommended tables -----------------------------------------------------------------------

# Number of ranks -> NVL send, NVL recv, RDMA send, RDMA recv: DeepEP v1.2.1's, and for 48 and 96
# ranks those of its later "legacy" tree.
DISPATCH_TOKENS = {
    2: (24, 256, 6, 128),
    4: (6, 256, 6, 128),
    8: (6, 256, 6, 128),
    16: (36, 288, 20, 128),
    24: (8, 288, 32, 128),
    32: (32, 288, 32, 128),
    48: (32, 288, 8, 128),
    64: (20, 288, 28, 128),
    96: (20, 480, 12, 128),
    128: (20, 560, 32, 128),
    144: (32, 720, 12, 128),
    160: (28, 720, 12, 128),
}
COMBINE_TOKENS = {
    2: (10, 256, 6, 128),
    4: (9, 256, 6, 128),
    8: (4, 256, 6, 128),
    16: (4, 288, 12, 128),
    24: (1, 288, 8, 128),
    32: (1, 288, 8, 128),
    48: (1, 288, 8, 128),
    64: (1, 288, 20, 128),
    96: (1, 480, 8, 128),
    128: (1, 560, 12, 128),
    144: (2, 720, 8, 128),
    160: (2, 720, 8, 128),
}


def get_dispatch_config(num_ranks, num_sms=DEFAULT_SMS):
    """DeepEP's recommended `Config` of dispatch, with `num_sms`.

    num_ranks: in [1, 64], or 96, 128, 144, 160.  A number that DeepEP has no row for takes that of
    the next larger one.
    """
    return _recommended(DISPATCH_TOKENS, num_ranks, num_sms)


def get_combine_config(num_ranks, num_sms=DEFAULT_SMS):
    """DeepEP's recommended `Config` of combine, as `get_dispatch_config`."""
    return _recommended(COMBINE_TOKENS, num_ranks, num_sms)


def _recommended(table, num_ranks, num_sms):
    check_int(num_ranks, "num_ranks", 1)
    if num_ranks > MAX_RANKS and num_ranks not in table:
        larger = ", ".join(str(number) for number in table if number > MAX_RANKS)
        raise ValueError(f"num_ranks: must be in [1, {MAX_RANKS}] or one of {larger}, "
                         f"got {num_ranks}")
    row = min(number for number in table if number >= num_ranks)
    return Config(num_sms, *table[row])


# -- the arena --------------------------------------------------------------------------------

def get_size_hint(num_tokens, hidden, num_topk, num_ranks, *, itemsize=2, num_scales=0,
                  topk_idx_bytes=8, live_results=1, scale_itemsize=4):
    """`arena_limit_bytes` with which a dispatch and its combine have room whatever the routing.

    staging_bytes + live_results * slot_bytes of num_ranks * num_tokens rows: every rank sends all
    its tokens to every rank.  The same rows are what `num_worst_tokens = num_ranks * num_tokens`
    asks for.

    Args:
        num_tokens: at most, on any rank; below 2^25.
        hidden: elements of a row, which is a multiple of 16 bytes; below 2^24.
        num_topk: in [0, 32]; 0: dispatch without top-k.
        num_ranks: in [1, 64].
        itemsize: bytes of an element of dispatch's x: 1 (fp8), 2 (bfloat16), 4, 8 or 16.
        num_scales: of a row; below 2^24.
        topk_idx_bytes: 4 or 8.
        live_results: dispatches whose results live at the same time, at least 1.
        scale_itemsize: bytes of a scale: 1, 2 or 4.

    Returns:
        bytes, a multiple of 128.

    Raises:
        ValueError, TypeError: an argument out of range; the text begins with its name.
    """
    num_ranks = check_int(num_ranks, "num_ranks", 1, MAX_RANKS)
    num_tokens = check_int(num_tokens, "num_tokens", 0, MAX_TOKENS)
    itemsize = _check_one_of(itemsize, "itemsize", (1, 2, 4, 8, 16))
    hidden = check_int(hidden, "hidden", 1, MAX_HIDDEN)
    if hidden * itemsize % ROW_ALIGN:
        raise ValueError(f"hidden: must be a multiple of {ROW_ALIGN // itemsize}, got {hidden}")
    num_topk = check_int(num_topk, "num_topk", 0, MAX_TOPK)
    num_scales = check_int(num_scales, "num_scales", 0, MAX_HIDDEN)
    scale_itemsize = _check_one_of(scale_itemsize, "scale_itemsize", (1, 2, 4))
    topk_idx_bytes = _check_one_of(topk_idx_bytes, "topk_idx_bytes", (4, 8))
    live_results = check_int(live_results, "live_results", 1)
    slot = slot_bytes(num_ranks * num_tokens, hidden, num_topk, itemsize, num_scales,
                      topk_idx_bytes, scale_itemsize)
    return staging_bytes(num_tokens, hidden, num_topk, num_ranks) + live_results * slot


def _check_one_of(value, name, accepted):
    number = check_int(value, name, accepted[0], accepted[-1])
    if number not in accepted:
        words = ", ".join(map(str, accepted[:-1]))
        raise ValueError(f"{name}: must be {words} or {accepted[-1]}, got {number}")
    return number


def slot_bytes(num_rows, hidden, num_topk, itemsize, num_scales, topk_idx_bytes, scale_itemsize=4):
    """Bytes of one dispatch's results of n rows.

    A(n hidden itemsize) + A(n num_scales scale_itemsize) + A(n num_topk topk_idx_bytes)
    + A(4 n num_topk) + A(4 n): rows, scales, top-k indices, top-k weights, source tokens.  A rounds
    up to 128.  All arguments are at least 0.
    """
    (num_rows, hidden, num_topk, itemsize, num_scales, topk_idx_bytes,
     scale_itemsize) = _check_sizes(
        num_rows=num_rows, hidden=hidden, num_topk=num_topk, itemsize=itemsize,
        num_scales=num_scales, topk_idx_bytes=topk_idx_bytes, scale_itemsize=scale_itemsize)
    return bytes_of_arrays(num_rows, (hidden * itemsize, num_scales * scale_itemsize,
                                    num_topk * topk_idx_bytes, 4 * num_topk, 4))


def staging_bytes(num_tokens, hidden, num_topk, num_ranks):
    """Bytes that other ranks may push to a rank of T tokens in one combine.

    A(2 r hidden) + A(4 r 32) with r = T min(num_ranks, num_topk): rows, and weights of the largest
    top-k.  Without top-k a token may go to every rank, r = T num_ranks.  A rounds up to 128.  All
    arguments are at least 0.
    """
    num_tokens, hidden, num_topk, num_ranks = _check_sizes(
        num_tokens=num_tokens, hidden=hidden, num_topk=num_topk, num_ranks=num_ranks)
    num_rows = num_tokens * min(num_ranks, num_topk or num_ranks)
    return bytes_of_arrays(num_rows, (hidden * COMBINE_ITEMSIZE, 4 * MAX_TOPK))


def _check_sizes(**given):
    return [check_int(value, name, 0) for name, value in given.items()]


def _round_up(value, multiple):
    return -(-value // multiple) * multiple
