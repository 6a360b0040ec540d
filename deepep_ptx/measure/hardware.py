# SPDX-License-Identifier: MIT
"""What the machine is: its driver, and what the links between its GPUs can do."""

import re
import statistics
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from deepep_ptx import _cuda
from deepep_ptx._cuda import CudaExecutor

COPY_BYTES = 1 << 28
PING_PONGS = 1000


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


def links(devices=(0, 1), ping_pong=None):
    """What the links between two GPUs can do.

    Args:
        devices: the two GPUs.
        ping_pong: PTX of a kernel that times a flag's round trip, or None to leave it out.

    Returns:
        dict: copy_engine_one_way_gb_s, copy_engine_both_ways_gb_s (both at once, the slower way)
        and, with ping_pong, flag_round_trip_us.
    """
    gpus = [CudaExecutor(device) for device in devices]
    for gpu, peer in zip(gpus, reversed(gpus), strict=True):
        gpu.enable_peer(peer)
    to, source = [gpu.alloc(COPY_BYTES) for gpu in gpus], [gpu.alloc(COPY_BYTES) for gpu in gpus]

    def copy(side):
        times = [gpus[side].time_copy(to[1 - side], source[side], COPY_BYTES) for _ in range(5)]
        return COPY_BYTES / statistics.median(times) / 1e3

    def flags(side):
        gpu, mine, theirs = gpus[side], to[side], to[1 - side]
        kernel = gpu.load("ping_pong", ping_pong[ping_pong.index(".version"):], 32)
        params = struct.pack("<QQQII", mine, theirs, mine + 128, side == 0, PING_PONGS)
        gpu.launch(kernel, params, 1, 32)
        return int(gpu.read(mine + 128, 8).view(np.uint64)[0]) / PING_PONGS / 1e3

    with ThreadPoolExecutor(2) as both:
        found = {"copy_engine_one_way_gb_s": round(copy(0), 1),
                 "copy_engine_both_ways_gb_s": round(min(both.map(copy, range(2))), 1)}
        if ping_pong is not None:
            for gpu, memory in zip(gpus, to, strict=True):
                gpu.fill(memory, 0, 256)
            found["flag_round_trip_us"] = round(max(both.map(flags, range(2))), 2)
    for gpu, *memories in zip(gpus, to, source, strict=True):
        for memory in memories:
            gpu.free(memory)
    return found
