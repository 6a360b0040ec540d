# SPDX-License-Identifier: MIT
from typing import Any, Self

import numpy as np

class DeviceArray:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int
    address: int
    device: int
    stream: int
    swapped: bool

    def __init__(
        self, owner: Any, executor: Any, address: int, shape: tuple[int, ...],
        dtype: np.dtype[Any], stream: int = 0, swapped: bool = False,
    ) -> None: ...
    def __len__(self) -> int: ...
    @property
    def ndim(self) -> int: ...
    def numpy(self) -> np.ndarray[Any, Any]: ...
    def copy(self) -> Self: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
