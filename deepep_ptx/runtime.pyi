# SPDX-License-Identifier: MIT
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar, TypeVarTuple

from .comm import RankComm

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

ARCHS: tuple[str, ...]
EXECUTORS: tuple[str | None, ...]
MAX_RANKS: int

def run_ranks(
    fn: Callable[[RankComm, *_Ts], _T],
    num_ranks: int,
    *args: *_Ts,
    executor: Literal["emu", "cuda"] | None = None,
    seed: int = 0,
    scheduler: Literal["rr", "random", "late-async"] = "rr",
    arch: Literal["sm_80", "sm_90"] | None = None,
    timeout_s: float | None = None,
    devices: Sequence[int] | None = None,
    ranks_per_node: int | None = None,
    checks: Literal["all", "off"] = "all",
    check: Literal["races", "races-strict"] | None = None,
    memory: Literal["sc", "weak"] = "sc",
) -> list[_T]: ...
