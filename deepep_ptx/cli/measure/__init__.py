# SPDX-License-Identifier: MIT
"""What every measurement shares: `deepep-ptx ab`, `bench` and `tune` are made of it.

    hardware    driver, and what the links can do
    inputs      random rows and routings of all ranks, and what has to come out
    bits        results compared with what has to come out
    machine     arrays, cache flushes and timing on a GPU; counts on the CPU executor
    align       ranks that begin a call together
    garbage     collected before, not in between
    traffic     bytes that a call moves, and over which links
    settings    defaults, and what is refused
    options     those that commands share
    statistics  medians, intervals, orders of rounds
"""

from deepep_ptx.cli.measure.hardware import describe, driver_version, links
from deepep_ptx.cli.measure.statistics import spread

__all__ = ["describe", "driver_version", "links", "spread"]
