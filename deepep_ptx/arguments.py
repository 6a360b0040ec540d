# SPDX-License-Identifier: MIT
"""Checks of what `Buffer` takes, but for arrays and handles: those are in `_arguments`.

The text of an error begins with the argument's name.
"""

import math
import numbers

from ._cuda import ContextEvent
from ._executor import Executor
from ._limits import FOREVER, MAX_RANKS
from .checked_group import CheckedGroup
from .comm import as_comm
from .config import Config
from .event import EventHandle, EventOverlap


def checked_group(group):
    """`group` as a `CheckedGroup` with an executor, all its ranks in one NVLink domain."""
    group = CheckedGroup(as_comm(group))
    if not isinstance(group.executor, Executor):
        raise TypeError("group: must have an executor, as the comm object that run_ranks passes")
    if group.size > MAX_RANKS:
        raise ValueError(f"group: must have at most {MAX_RANKS} ranks, has {group.size}")
    if group.ranks_per_node != group.size:
        raise NotImplementedError(f"group: its {group.size} ranks must share one NVLink domain in "
                                  f"this release, not {group.ranks_per_node} each")
    return group


def timeout_ns(timeout_s):
    """Nanoseconds; None and infinity: FOREVER."""
    if timeout_s is None:
        return FOREVER
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, numbers.Real):
        raise TypeError(f"timeout_s: must be seconds or None, got {type(timeout_s).__name__}")
    if timeout_s == math.inf:
        return FOREVER
    if not 1e-9 <= timeout_s <= 1e9:
        raise ValueError(f"timeout_s: must be None, infinity or in [1e-9, 1e9], got {timeout_s}")
    return int(float(timeout_s) * 1e9)      # a float of fewer bits may end below 1e9


def check_config(config):
    """None or a `Config`."""
    if config is not None and not isinstance(config, Config):
        raise TypeError(f"config: must be None or a Config, got {type(config).__name__}")


def event_of(previous, executor):
    """The `Event` that a call starts after, or None: after the caller's stream.

    An event of the other executor is waited for here and now.

    Raises:
        TypeError: `previous` is not one of those that `foreign_event` names.
    """
    handle = previous.event if isinstance(previous, EventOverlap) else previous
    event = handle._event if isinstance(handle, EventHandle) else foreign_event(previous)
    if event is not None and event.executor_name != executor.name:
        event.synchronize()
        return None
    return event


def foreign_event(previous):
    """The `Event` of what another class than ours wraps, or None where that is None.

    Consumers bring wrappers of their own, and events of torch: only what is inside counts.
    """
    inner = getattr(previous, "event", previous)
    if inner is None:
        return None
    if isinstance(inner, EventHandle):
        return inner._event
    number = getattr(inner, "cuda_event", None)
    if type(number) is int:
        # torch makes its event with the first record: before it there is nothing to wait for.
        return ContextEvent.lent(number, inner) if number else None
    raise TypeError("previous_event: must be None, an EventOverlap or an EventHandle, an event "
                    "with cuda_event (torch.cuda.Event), or an object whose event is one of "
                    f"these, got {type(previous).__name__}")
