# SPDX-License-Identifier: MIT
"""CUDA streams of other libraries as numbers."""

import operator
import sys

LEGACY = 0      # the legacy default stream; libraries say 1 for it where 0 means "none"
PER_THREAD = 2  # the per-thread default stream: each thread has another one by this number


class Stream:
    """A stream of ours for other libraries: `cuda_stream` is its number."""

    def __init__(self, number):
        self.cuda_stream = number

    def __cuda_stream__(self):
        return 0, self.cuda_stream

    def __repr__(self):
        return f"<Stream {self.cuda_stream:#x}>"


def stream_number(stream, name="stream"):
    """The handle (int) of `stream`: an int, or an object of any library with
    `__cuda_stream__`, `cuda_stream` (torch) or `ptr` (CuPy).

    Raises:
        TypeError: none of these.
        ValueError: a number that is no address.
    """
    value = stream
    try:
        if hasattr(stream, "__cuda_stream__"):
            protocol = stream.__cuda_stream__
            value = (protocol() if callable(protocol) else protocol)[1]
        elif hasattr(stream, "cuda_stream"):
            value = stream.cuda_stream
        elif hasattr(stream, "ptr"):
            value = stream.ptr
        number = operator.index(value)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}: must be None, an integer or an object with __cuda_stream__, "
                        f"cuda_stream or ptr, got {type(stream).__name__}")
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{name}: must be in [0, 2**64), got {number}")
    return LEGACY if number == 1 else number


def current_stream():
    """Number of the stream on which this thread's library queues its work."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.current_stream().cuda_stream
    cupy = sys.modules.get("cupy")
    return 0 if cupy is None else cupy.cuda.get_current_stream().ptr
