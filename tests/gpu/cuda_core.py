# SPDX-License-Identifier: MIT
"""Streams and memory of cuda.core, for programs without torch and CuPy."""

import numpy as np
import pytest


def need_cuda_core():
    """The module cuda.core; the test is skipped without it."""
    core = pytest.importorskip("cuda.core", exc_type=ImportError)
    if not hasattr(core, "Device"):
        pytest.skip("this cuda.core has its names in cuda.core.experimental")
    return core


_CORE_STREAMS = []      # they end with their objects, and results of calls on them must end before


def core_stream(executor):
    """A new stream of cuda.core on a rank's GPU, which lasts as long as the process."""
    device = need_cuda_core().Device(executor.device)
    device.set_current()
    _CORE_STREAMS.append(device.create_stream())
    return _CORE_STREAMS[-1]


def on_gpu(stream, array):
    """A view of memory of cuda.core's that holds a copy of a NumPy array, once that is there."""
    from cuda.core.utils import StridedMemoryView

    host = need_cuda_core().LegacyPinnedMemoryResource().allocate(array.nbytes)
    np.from_dlpack(host).view(np.uint8)[:] = array.reshape(-1).view(np.uint8)
    memory = stream.device.allocate(array.nbytes, stream=stream)
    memory.copy_from(host, stream=stream)
    stream.sync()
    return StridedMemoryView.from_buffer(memory, array.shape, dtype=array.dtype)
