# SPDX-License-Identifier: MIT
"""What to run."""

import math
from dataclasses import dataclass, fields

from deepep_ptx import runtime
from deepep_ptx.checks import as_int, check_size
from deepep_ptx.cli.demo import corpus, gating
from deepep_ptx.reference import FP8_GROUP
from deepep_ptx.reference.low_latency import REDUCTIONS

ARCHS = runtime.ARCHS
EXECUTORS = runtime.EXECUTORS[1:]       # the first is whichever there is
CHECKS = ("all", "off")
COMBINE_MODES = ("pull", "push")
DTYPES = ("bf16", "fp8")
MODES = ("normal", "ll")


@dataclass(frozen=True)
class Settings:
    """What to run.  Every field is an option of `deepep-ptx demo`.

    num_tokens is the mean per rank; shares are uneven.  mode: "normal", or "ll": low-latency calls.
    Of normal mode: combine: "pull" writes the expert output over recv_x in the arena, "push" hands
    combine an ordinary array; None = pull, but push where FP8 rows arrive, which leave no room for
    it.  worst: worst-case mode, no wait for the totals.  Of mode ll: reduce: the buffer's way to
    add up, "exact" or "rank"; None = the buffer's choice.
    text: a path, None = the text that ships.  executor, arch: None = the best there is, see
    `run_ranks`.  scheduler, checks: of the CPU executor.  dtype: of the rows that are dispatched;
    None = as the input has them, which is bf16 for a text.  input: a file (jobfile.py) that has
    the job; then num_ranks, hidden, num_topk and num_experts are the file's, where it has them,
    and of text and gating there is none.  save_input: file to write the job to.  plot: picture to
    draw of traffic and load.  Bad values: ValueError, or TypeError for what is no integer.
    """

    num_ranks: int = 8
    num_tokens: int = 128
    hidden: int = 7168
    num_experts: int = 64
    num_groups: int = 8
    num_topk_groups: int = 4
    num_topk: int = 8
    seed: int = 0
    executor: str | None = None
    scheduler: str = "rr"
    policy: str | None = None
    arch: str | None = None
    text: str | None = None
    unit: str = "words"
    mode: str = "normal"
    dtype: str | None = None
    combine: str | None = None
    reduce: str | None = None
    checks: str = "all"
    worst: bool = False
    input: str | None = None
    save_input: str | None = None
    plot: str | None = None

    def __post_init__(self):
        for field in fields(self):
            if field.type is int:
                object.__setattr__(self, field.name,
                                   as_int(getattr(self, field.name), field.name))
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed: must be 0..2**64-1, got {self.seed}")
        for name, choices in (("arch", (None, *ARCHS)), ("executor", (None, *EXECUTORS)),
                              ("unit", corpus.UNITS), ("checks", CHECKS),
                              ("mode", MODES), ("dtype", (None, *DTYPES)),
                              ("combine", (None, *COMBINE_MODES)),
                              ("reduce", (None, *REDUCTIONS))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: must be one of {', '.join(filter(None, choices))}, "
                                 f"got {getattr(self, name)!r}")
        self._check_mode()
        if self.input is None:      # else the file says
            self.check_shape()
            self.check_rows()
            gating.check_settings(self.num_experts, self.num_topk, self.num_groups,
                                  self.num_topk_groups)

    @property
    def way(self):
        """How combine is done: `combine`, or `reduce` in mode ll."""
        return self.reduce if self.mode == "ll" else self.combine

    def check_shape(self):
        """Raise ValueError unless ranks, tokens, rows and experts fit together."""
        if not 1 <= self.num_ranks <= 64:
            raise ValueError(f"num_ranks: must be 1..64, got {self.num_ranks}")
        if self.num_tokens < 1:
            raise ValueError(f"num_tokens: must be at least 1, got {self.num_tokens}")
        if self.hidden < 8 or self.hidden % 8:
            raise ValueError(f"hidden: must be a positive multiple of 8 (16 bytes), "
                             f"got {self.hidden}")
        if self.num_experts < 1 or self.num_experts % self.num_ranks:
            raise ValueError(f"num_experts: must be a positive multiple of num_ranks "
                             f"({self.num_ranks}), got {self.num_experts}; {self._way_out()}")
        check_size(("num_tokens", "hidden"), self.num_ranks, self.num_tokens, self.hidden,
                   self.num_experts)

    def check_rows(self):
        """Raise ValueError unless rows of this dtype can be made and combined as wished."""
        if self.mode == "ll" and self.hidden % FP8_GROUP:
            raise ValueError(f"hidden: must be a multiple of {FP8_GROUP} with mode ll, "
                             f"got {self.hidden}")
        if self.dtype != "fp8":
            return
        if self.hidden % FP8_GROUP:
            raise ValueError(f"hidden: must be a multiple of {FP8_GROUP} with dtype fp8, "
                             f"got {self.hidden}")
        if self.combine == "pull":
            raise ValueError("combine: must be push with dtype fp8, whose rows in the arena have "
                             "no room for the experts' bf16 output; got 'pull'")

    def non_default(self, name):
        """True if the setting is not what it is when nobody sets it."""
        return getattr(self, name) != _DEFAULTS[name]

    def _check_mode(self):
        """Raise ValueError where a setting is of the other mode."""
        if self.mode == "normal":
            if self.reduce is not None:
                raise ValueError(f"reduce: must not be set with mode normal, whose combine has one "
                                 f"way to add up; got {self.reduce!r}")
            return
        if self.worst:
            raise ValueError("worst: must not be set with mode ll, whose results always have the "
                             "size of the worst case")
        if self.combine is not None:
            raise ValueError(f"combine: must not be set with mode ll, which has reduce; "
                             f"got {self.combine!r}")

    def _way_out(self):
        """What to change when experts cannot be shared out evenly: more experts, or other ranks."""
        step = math.lcm(self.num_ranks, max(1, self.num_groups))
        num_experts = max(1, math.ceil(self.num_experts / step)) * step
        fitting = [n for n in range(1, 65) if self.num_experts > 0 and self.num_experts % n == 0]
        near = sorted(sorted(fitting, key=lambda n: abs(n - self.num_ranks))[:2])
        ranks = f", or num_ranks {' or '.join(map(str, near))}" if near else ""
        return f"try num_experts {num_experts}{ranks}"


_DEFAULTS = {field.name: field.default for field in fields(Settings)}
