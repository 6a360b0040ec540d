# SPDX-License-Identifier: MIT
"""A GPU that takes all work and does none (null_libcuda.c): what a call costs the host alone."""

import ctypes
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent / "null_libcuda.c"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3     # of malloc.h
STREAM = 0x1000     # of torch: any number that is not the default stream's


def load_driver():
    """Build the driver and load it, before anybody asks for libcuda.so.1.

    Returns:
        calls(): dict of how often each function of the driver has been called.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "libcuda.so.1")
        subprocess.run([shutil.which("cc") or "gcc", "-O2", "-shared", "-fPIC",
                        "-Wl,-soname,libcuda.so.1", "-o", path, SOURCE], check=True)
        driver = ctypes.CDLL(path)
    driver.null_calls.restype = ctypes.c_uint64

    def calls():
        found, name, index = {}, ctypes.c_char_p(), 0
        while True:
            count = driver.null_calls(index, ctypes.byref(name))
            if name.value is None:
                return found
            found[name.value.decode()] = count
            index += 1

    return calls


class Copies:
    """A group whose ranks are all this process, on one GPU."""

    rank = 0

    def __init__(self, size, executor):
        self.size = size
        self.executor = executor

    def allgather(self, obj):
        """What each rank would give: `obj` behind its own number (deepep_ptx/checked_group.py),
        which a record has in its second word, too (cysrc/core/gather.h)."""
        given = obj[1]
        if not isinstance(given, bytes):
            return [(rank, given) for rank in range(self.size)]
        return [(rank, given[:4] + struct.pack("=I", rank) + given[8:])
                for rank in range(self.size)]

    def barrier(self):
        """Everybody is there."""


def pretend(torch):
    """Let torch's CPU tensors say that they are on GPU 0, and be made where that is asked for.

    The attributes that a call reads cost what they cost on a GPU, within some 10 ns each; memory
    comes from malloc in place of the caching allocator.
    """
    from deepep_ptx import _dlpack
    from deepep_ptx.arrays.library import library_of

    # Freed memory is kept, as by the caching allocator: no pages come and go with large tensors.
    for threshold in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        ctypes.CDLL(None).mallopt(threshold, 1 << 30)
    torch.Tensor.is_cuda = True
    torch._C._cuda_getCurrentRawStream = lambda device: STREAM
    _dlpack.CUDA = _dlpack.CPU
    library_of(torch.empty(0), "x").devices[0] = torch.device("cpu")
