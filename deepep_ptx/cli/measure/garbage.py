# SPDX-License-Identifier: MIT
"""Garbage is collected before a measurement, and not in it."""

import contextlib
import gc


@contextlib.contextmanager
def collected():
    """Free what is garbage by now, and collect none in the block; every rank enters it before its
    first call, and leaves it after its last.

    Memory and executors that an earlier run has left may wait for their GPU to be idle when they
    go, and where ranks are threads the collector may come in any of them while the others' kernels
    wait for it on that GPU: until the time limit.  It would also make the host late.
    """
    gc.collect()
    was_enabled = gc.isenabled()        # of the first rank that is a thread here
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
