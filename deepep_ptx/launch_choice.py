# SPDX-License-Identifier: MIT
"""How a call is launched where the caller does not say: by a tuning file, else by the model."""

import types
from dataclasses import dataclass

from deepep_ptx.sm_model import Work, choose_sms, ranks_per_token, rates_of
from deepep_ptx.tuning import kernel_of, size_class

OWN_RING = 0, 0


@dataclass(frozen=True)
class Choice:
    """sms: CTAs.  ring: stages and stage_bytes, see `deepep_ptx.knobs`; 0 = the kernel's own."""

    sms: int
    ring: tuple = OWN_RING


class LaunchChoice:
    """The `Choice` of each class of calls of one rank; ranks may choose differently.

    device_name: the kind of GPU.  ranks: of the group.  ranks_here: those on this GPU.
    limit: CTAs that a call can have.  variants: kernel -> its row, as `select.choose` gives them.
    tuning: a `Tuning` or None; an entry with more CTAs than `limit` takes `limit`.
    knobs: name -> value of launch parameters, before a file's.
    """

    def __init__(self, device_name, ranks, ranks_here, limit, variants, tuning=None,
                 knobs=types.MappingProxyType({})):
        self._rates = rates_of(device_name)
        self._ranks = ranks
        self._ranks_here = ranks_here
        self._limit = limit
        self._variants = variants
        self._entries = {} if tuning is None else tuning.entries
        self._knobs = knobs
        self._made = {}

    def of(self, op, itemsize, tokens, row_bytes, num_topk):
        """The `Choice` of a call.

        Args:
            op: "dispatch", "combine_pull" or "combine_push".
            itemsize: bytes of an element.
            tokens: of this rank; calls with as many up to a power of two are of one class.
            row_bytes: of a row, without scales.
            num_topk: choices per token.
        """
        key = op, itemsize, (tokens - 1).bit_length(), row_bytes, num_topk
        choice = self._made.get(key)
        if choice is None:
            choice = self._made[key] = self._make(op, itemsize, size_class(tokens), row_bytes,
                                                  num_topk)
        return choice

    def _make(self, op, itemsize, tokens, row_bytes, num_topk):
        entry = self._entries.get((op, itemsize, tokens, size_class(row_bytes)))
        if entry is not None:
            return Choice(min(entry.sms, self._limit), _ring(**entry.knobs | self._knobs))
        work = Work(op, tokens, row_bytes, self._ranks, self._ranks_here,
                    ranks_per_token(self._ranks, num_topk),
                    self._variants[kernel_of(op)]["path"])
        return Choice(choose_sms(work, self._rates, self._limit), _ring(**self._knobs))


def _ring(stages=0, stage_bytes=0):
    return stages, stage_bytes
