# SPDX-License-Identifier: MIT
"""What buffers of several threads share, under ThreadSanitizer."""

import shutil
import subprocess
from pathlib import Path

import pytest

from deepep_ptx.toolchain import cuda

ROOT = Path(__file__).resolve().parent.parent
CC = shutil.which("cc") or "gcc"
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """tests/threads.c with the core, the executor of GPUs and ThreadSanitizer."""
    folder = tmp_path_factory.mktemp("threads")
    empty = folder / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    found = subprocess.run([CC, "-fsanitize=thread", "-o", folder / "empty", empty],
                           capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"{CC} has no ThreadSanitizer: {found.stderr[-200:]}")
    subprocess.run([CC, "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o",
                    folder / "libcuda.so.1", ROOT / "bench/null_libcuda.c"], check=True)
    sources = [ROOT / "tests/threads.c", *sorted((ROOT / "cysrc/core").glob("*.c")),
               *sorted((ROOT / "cysrc/cuda").glob("*.c"))]
    include = [f"-I{ROOT / folder}" for folder in ("cysrc", "cysrc/gen", "deepep_ptx/include")]
    subprocess.run([CC, "-fsanitize=thread", *FLAGS, *include, f"-I{cuda.include()}", "-o",
                    folder / "threads", *sources, "-ldl"], check=True)
    return folder


def test_buffers_of_several_threads_share_an_executor(program):
    """Their calls, the ends of each other's results, peers' memory, events, waits, captures."""
    done = subprocess.run([program / "threads", program / "libcuda.so.1"], capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr[:4000]
    assert done.stdout == "every round was right\n"
