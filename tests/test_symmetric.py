# SPDX-License-Identifier: MIT
"""What ranks do together, from C alone: symmetric.c, whose ranks are threads of one process."""

import subprocess

import pytest

from tests.faults import CC, FLAGS, ROOT


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_without_python(tmp_path, sanitizers):
    """Making, growth, recycled segments, reset and end; a rank or the group that fails in each of
    their steps; ranks that differ."""
    program = tmp_path / "symmetric"
    sources = [ROOT / "tests/symmetric.c", *sorted((ROOT / "cysrc/core").glob("*.c"))]
    built = subprocess.run([CC, *FLAGS, "-O1", "-g", "-pthread", f"-fsanitize={sanitizers}", "-o",
                            program, *sources], capture_output=True, text=True)
    if "cannot find" in built.stderr:
        pytest.skip(f"{CC} has no sanitizers: {built.stderr[-200:]}")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[:4000]
    assert done.stdout == "every rank was told what had happened, and nothing is left\n"
