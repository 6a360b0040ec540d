# SPDX-License-Identifier: MIT
"""A test that hangs is ended, with its place; one that only has to wait for a core is not."""

import subprocess
import sys
from pathlib import Path

import pytest
import watchdog

CONFTEST = """\
import watchdog
watchdog.limit_s = lambda load, cores: {limit}
pytest_plugins = ["watchdog"]
"""
TEST = "import time\ndef test_it():\n    time.sleep({sleep})\n"


def run(folder, limit, sleep):
    (folder / "conftest.py").write_text(CONFTEST.format(limit=limit))
    (folder / "test_sleep.py").write_text(TEST.format(sleep=sleep))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder,
         folder], cwd=folder, capture_output=True, text=True, timeout=120,
        env={"PYTHONPATH": str(Path(watchdog.__file__).parent)})


def test_a_test_that_hangs_is_ended(tmp_path):
    done = run(tmp_path, limit=0.5, sleep=100)
    assert done.returncode == 1
    assert "Timeout (0:00:00.5" in done.stderr and "in test_it" in done.stderr


def test_the_limit_is_of_one_test(tmp_path):
    done = run(tmp_path, limit=100, sleep=0.1)
    assert done.returncode == 0 and "1 passed" in done.stdout and done.stderr == ""


@pytest.mark.parametrize(("load", "cores", "limit"), [
    (0, 2, 240), (0, 64, 240), (2, 2, 720), (10, 2, 2640), (10, 64, 240),
])
def test_the_limit_grows_with_the_load(load, cores, limit):
    assert watchdog.limit_s(load, cores) == limit
