# SPDX-License-Identifier: MIT
"""What the machine is: its driver, and what the links between its GPUs can do."""

import re
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deepep_ptx import _cuda
from deepep_ptx._cuda import CudaExecutor

COPY_BYTES = 1 << 28


def driver_version():
    """Of the NVIDIA driver, or "unknown"."""
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r" (\d+\.\d+[.\d]*) ", path.read_text()) if path.exists() else None
    return found[1] if found else "unknown"


def describe():
    """The machine as what JSON can hold: gpus (names), driver, cuda_driver (the version of CUDA
    that the driver supports, 1000 * major + 10 * minor)."""
    return {
        "gpus": [_cuda.describe_device(gpu)["name"] for gpu in range(_cuda.device_count())],
        "driver": driver_version(),
        "cuda_driver": _cuda.driver_version(),
    }


def links(devices=(0, 1)):
    """What the links between two GPUs can do.

    devices: the two GPUs.

    Returns:
        dict: copy_engine_one_way_gb_s, copy_engine_both_ways_gb_s (both at once, the slower way).
    """
    gpus = [CudaExecutor(device) for device in devices]
    for gpu, peer in zip(gpus, reversed(gpus), strict=True):
        gpu.enable_peer(peer)
    to, source = [gpu.alloc(COPY_BYTES) for gpu in gpus], [gpu.alloc(COPY_BYTES) for gpu in gpus]

    def copy(side):
        times = [gpus[side].time_copy(to[1 - side], source[side], COPY_BYTES) for _ in range(5)]
        return COPY_BYTES / statistics.median(times) / 1e3

    with ThreadPoolExecutor(2) as both:
        found = {"copy_engine_one_way_gb_s": round(copy(0), 1),
                 "copy_engine_both_ways_gb_s": round(min(both.map(copy, range(2))), 1)}
    for gpu, *memories in zip(gpus, to, source, strict=True):
        for memory in memories:
            gpu.free(memory)
    return found
