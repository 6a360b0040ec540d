# SPDX-License-Identifier: MIT
"""CUDA streams of other libraries as numbers."""

import operator

LEGACY = 0      # the legacy default stream; libraries say 1 for it where 0 means "none"


def stream_number(stream, name="stream"):
    """The handle (int) of `stream`: an int, or an object of any library with
    `__cuda_stream__`, `cuda_stream` (torch) or `ptr` (CuPy).

    Raises:
        TypeError: none of these.
        ValueError: a negative number.
    """
    value = stream
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        value = (protocol() if callable(protocol) else protocol)[1]
    elif hasattr(stream, "cuda_stream"):
        value = stream.cuda_stream
    elif hasattr(stream, "ptr"):
        value = stream.ptr
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}: must be None, an integer or an object with __cuda_stream__, "
                        f"cuda_stream or ptr, got {type(stream).__name__}")
    if number < 0:
        raise ValueError(f"{name}: must be at least 0, got {number}")
    return LEGACY if number == 1 else number
