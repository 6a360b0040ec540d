# SPDX-License-Identifier: MIT
from typing import Any

class DeepEPError(RuntimeError): ...

class DeepEPTimeoutError(DeepEPError):
    rank: int | None
    peer: int | None
    wait: str | None
    def __init__(
        self,
        message: str,
        *,
        rank: int | None = None,
        peer: int | None = None,
        wait: str | None = None,
    ) -> None: ...

class RankMismatchError(DeepEPError):
    argument: str | None
    ranks: tuple[int, int] | None
    values: tuple[Any, Any] | None
    def __init__(
        self,
        message: str,
        *,
        argument: str | None = None,
        ranks: tuple[int, int] | None = None,
        values: tuple[Any, Any] | None = None,
    ) -> None: ...

class CapacityError(DeepEPError):
    needed_bytes: int | None
    def __init__(self, message: str, *, needed_bytes: int | None = None) -> None: ...

class RaceError(DeepEPError):
    races: tuple[Any, ...]
    results: list[Any] | None
    def __init__(
        self, message: str, *, races: Any = (), results: list[Any] | None = None
    ) -> None: ...

class DestroyedError(DeepEPError): ...
class QueuePairError(DeepEPError): ...

class RankError(DeepEPError):
    rank: int | None
    def __init__(self, message: str, *, rank: int | None = None) -> None: ...

class Aborted(DeepEPError): ...

class TuningError(ValueError):
    file: str | None
    field: str | None
    has: Any
    needed: str | None
    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        field: str | None = None,
        has: Any = None,
        needed: str | None = None,
    ) -> None: ...

class PtxError(DeepEPError):
    file: str | None
    line: int | None
    def __init__(
        self, message: str, *, file: str | None = None, line: int | None = None
    ) -> None: ...

class KernelFault(DeepEPError):
    kind: str | None
    kernel: str | None
    file: str | None
    line: int | None
    rank: int | None
    cta: int | None
    warp: int | None
    lane: int | None
    def __init__(
        self,
        message: str,
        *,
        kind: str | None = None,
        kernel: str | None = None,
        file: str | None = None,
        line: int | None = None,
        rank: int | None = None,
        cta: int | None = None,
        warp: int | None = None,
        lane: int | None = None,
    ) -> None: ...
