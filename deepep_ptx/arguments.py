# SPDX-License-Identifier: MIT
"""Checks of what `Buffer` takes.  The text of an error begins with the argument's name."""

import math
import numbers

from ._buffer import FOREVER, MAX_LOCAL_EXPERTS, MAX_RANKS, MAX_TOPK, ROW_ALIGN, Rows
from ._executor import Executor
from .arrays import BFLOAT16, FLOAT32, INT32, INT64, ROW_CODES, SCALE_DTYPES, code_of
from .comm import as_comm
from .config import Config
from .event import EventHandle, EventOverlap
from .handle import EPHandle


def checked_group(group):
    """`group` as a comm object with an executor, all its ranks in one NVLink domain."""
    group = as_comm(group)
    if not isinstance(getattr(group, "executor", None), Executor):
        raise TypeError("group: must have an executor, as the comm object that run_ranks passes")
    if group.size > MAX_RANKS:
        raise ValueError(f"group: must have at most {MAX_RANKS} ranks, has {group.size}")
    if getattr(group, "ranks_per_node", group.size) != group.size:
        raise NotImplementedError(f"group: its {group.size} ranks must share one NVLink domain in "
                                  f"this release, not {group.ranks_per_node} each")
    return group


def timeout_ns(timeout_s):
    """Nanoseconds; None and infinity: FOREVER."""
    if timeout_s is None:
        return FOREVER
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, numbers.Real):
        raise TypeError(f"timeout_s: must be seconds or None, got {type(timeout_s).__name__}")
    if math.isinf(timeout_s) and timeout_s > 0:
        return FOREVER
    if not 1e-9 <= timeout_s <= 1e9:
        raise ValueError(f"timeout_s: must be None, infinity or in [1e-9, 1e9], got {timeout_s}")
    return int(timeout_s * 1e9)


def check_experts(num_experts, num_ranks, name):
    """A number of experts that num_ranks ranks can share out."""
    num_local = num_experts // num_ranks
    if num_experts == 0 or num_experts % num_ranks or num_local > MAX_LOCAL_EXPERTS:
        raise ValueError(
            f"{name}: number of experts must be a multiple of the {num_ranks} ranks, at "
            f"most {MAX_LOCAL_EXPERTS} per rank and at least 1, got {num_experts}"
        )


def check_config(config):
    """None or a `Config`."""
    if config is not None and not isinstance(config, Config):
        raise TypeError(f"config: must be None or a Config, got {type(config).__name__}")


def check_topk(num_topk, name="topk_idx"):
    """A number of choices per token that a warp has lanes for."""
    if not 1 <= num_topk <= MAX_TOPK:
        raise ValueError(f"{name}: num_topk must be in [1, {MAX_TOPK}], got {num_topk}")


def first_array(x):
    """The array of `x` that says of which library a dispatch is: x, or the first of a pair."""
    if not isinstance(x, tuple):
        return x
    if len(x) != 2:
        raise ValueError(f"x: must be one array or a pair (x, scales), got a tuple of {len(x)}")
    return x[0]


def take_rows(call, x, num_tokens="num_tokens"):
    """`Rows` of dispatch's x: an array of any 1- or 2-byte type, or a pair with scales."""
    array = _take_matrix(call, first_array(x), None, num_tokens)
    if not isinstance(x, tuple):
        return Rows(array, ROW_CODES[array.dtype])
    if array.itemsize != 1:
        raise TypeError(f"x[0]: dtype must be of 1 byte beside scales, got {array.dtype}")
    scales = call.take(x[1], "x[1]", SCALE_DTYPES, (array.shape[0], "num_scales"), strided=True)
    if scales.shape[1] == 0:
        raise ValueError("x[1]: num_scales must be at least 1, got 0")
    if scales.address % 4 or any(step % 4 for step in scales.strides):
        raise ValueError("x[1]: must be 4-byte aligned, its strides too")
    return Rows(array, code_of(array.dtype, scales.dtype), scales, tuple(scales.strides))


def take_output(call, x, handle):
    """The expert output that combine adds up, as `Array`."""
    array = _take_matrix(call, x, (BFLOAT16,), handle.num_recv)
    check_hidden(array, handle)
    return array


def check_hidden(array, handle):
    """Rows for which the dispatch that made the handle has seen to room."""
    if array.shape[1] > handle.hidden:
        raise ValueError(f"x: hidden must be at most that of the dispatch, {handle.hidden}, "
                         f"got {array.shape[1]}")


def _take_matrix(call, x, dtypes, rows):
    array = call.take(x, "x", dtypes, (rows, "hidden"), ROW_ALIGN)
    if array.dtype not in ROW_CODES:
        raise TypeError(f"x: dtype must be a known type of 1 or 2 bytes, got {array.dtype}")
    hidden = array.shape[1]
    if hidden == 0 or hidden * array.itemsize % ROW_ALIGN:
        raise ValueError(f"x: hidden must be a multiple of {ROW_ALIGN // array.itemsize} and at "
                         f"least that, got {hidden}")
    return array


def take_topk(call, topk_idx, topk_weights, num_tokens):
    """The pair as `Array`s, or (None, None)."""
    if topk_idx is None and topk_weights is None:
        return None, None
    for name, value in (("topk_idx", topk_idx), ("topk_weights", topk_weights)):
        if value is None:
            raise ValueError(f"{name}: topk_idx and topk_weights must both be given, or neither")
    topk_idx = call.take(topk_idx, "topk_idx", (INT64, INT32), (num_tokens, "num_topk"))
    check_topk(topk_idx.shape[1])
    topk_weights = call.take(topk_weights, "topk_weights", (FLOAT32,), topk_idx.shape)
    return topk_idx, topk_weights


def take_bias(call, bias, num_tokens, hidden):
    """Two `Array`s or None."""
    if bias is None:
        return None, None
    shape = (num_tokens, hidden)
    if not isinstance(bias, tuple):
        return call.take(bias, "bias", (BFLOAT16,), shape, ROW_ALIGN), None
    if len(bias) != 2:
        raise ValueError(f"bias: must be None, one array or a pair, got {len(bias)}")
    return tuple(call.take(array, f"bias[{i}]", (BFLOAT16,), shape, ROW_ALIGN)
                 for i, array in enumerate(bias))


def check_handle(handle, executor, rank, num_ranks):
    """An `EPHandle` that rank `rank` of `num_ranks` can use on `executor`."""
    if not isinstance(handle, EPHandle):
        raise TypeError(f"handle: must be what dispatch returned, got {type(handle).__name__}")
    if handle.executor != executor.name:
        raise ValueError(f"handle: made on executor {handle.executor!r}, this buffer is on "
                         f"{executor.name!r}")
    if handle.placement.num_ranks != num_ranks:
        raise ValueError(f"handle: made by a group of {handle.placement.num_ranks} ranks, this one "
                         f"has {num_ranks}")
    if handle.rank != rank:
        raise ValueError(f"handle: made by rank {handle.rank}, this is rank {rank}")


def take_placement(call, handle):
    """Where the rows of the handle's dispatch went."""
    at = handle.placement
    call.take_again(at.pos, at.library, "handle.pos")
    call.take_again(at.rank_prefix, at.library, "handle[0]")
    return at


def event_of(previous, executor):
    """The `Event` that a call starts after, or None: after the caller's stream.

    An event of the other executor is waited for here and now.

    Raises:
        TypeError: `previous` is neither None, an `EventOverlap` nor an `EventHandle`.
    """
    if isinstance(previous, EventOverlap):
        previous = previous.event
    if previous is None:
        return None
    if not isinstance(previous, EventHandle):
        raise TypeError("previous_event: must be None, an EventOverlap or an EventHandle, got "
                        f"{type(previous).__name__}")
    event = previous._event
    if event is not None and event.executor_name != executor.name:
        event.synchronize()
        return None
    return event
