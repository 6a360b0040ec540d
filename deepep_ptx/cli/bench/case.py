# SPDX-License-Identifier: MIT
"""One thing to measure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from deepep_ptx.cli.measure.inputs import Shape

WHATS = {
    "layout": "get_dispatch_layout",
    "dispatch": "dispatch in worst-case mode: the host does not wait",
    "dispatch-wait": "dispatch whose host waits for the totals",
    "cached": "dispatch with a handle",
    "combine-pull": "combine of expert output in the arena",
    "combine-push": "combine of any array",
}
FP8_WHATS = ("dispatch", "dispatch-wait", "cached")     # the only ones that move fp8 rows


@dataclass(frozen=True)
class Case:
    """A call of all ranks.

    what: of `WHATS`.  dtype: "bf16", or "fp8" with a float32 scale per 128 elements.
    tokens: per rank.  routing: see `measure.inputs.Shape`.
    sms: CTAs of the call; None = the buffer's own choice.
    policy: as `Buffer(policy=)` takes it.
    tuning: further keywords of `Buffer`.
    """

    what: str
    dtype: str = "bf16"
    tokens: int = 4096
    hidden: int = 7168
    topk: int = 8
    experts: int = 256
    routing: str = "uniform"
    sms: int | None = None
    policy: str = "fast"
    tuning: Mapping = field(default_factory=dict, hash=False)

    def __str__(self):
        sms = "the buffer's SMs" if self.sms is None else f"{self.sms} SMs"
        return (f"{self.what} {self.dtype}, {self.tokens} tokens {self.routing}, {self.policy}, "
                f"{sms}" + (f", {dict(self.tuning)}" if self.tuning else ""))

    def shape(self, ranks):
        """The `Shape` of its inputs."""
        return Shape(ranks, self.tokens, self.hidden, self.topk, self.experts, self.routing)
