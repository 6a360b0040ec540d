# SPDX-License-Identifier: MIT
"""Ends a test that hangs: prints where every thread stands, and ends the process (the worker).

pytest's `faulthandler_timeout` is wall time, and on a machine with other work a long test passes it
while it still runs.  The limit here is longer the more processes share the cores.  The timer is a
thread of faulthandler's: it needs no GIL.
"""

import faulthandler
import os

import pytest

LIMIT_S = 240                          # of a test that has a core of its own

_stderr = pytest.StashKey()


def limit_s(load, cores):
    """Seconds that a test may take: `load` processes run on `cores` cores as it begins, and twice
    as many may before it ends."""
    return LIMIT_S * max(1.0, 2 * (load + 1) / cores)


def pytest_configure(config):
    config.stash[_stderr] = os.fdopen(os.dup(2), "w")       # pytest has yet to capture it


def pytest_unconfigure(config):
    config.stash[_stderr].close()


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_protocol(item):
    limit = limit_s(os.getloadavg()[0], os.cpu_count())
    faulthandler.dump_traceback_later(limit, exit=True, file=item.config.stash[_stderr])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
