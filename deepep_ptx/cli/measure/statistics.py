# SPDX-License-Identifier: MIT
"""Medians and spreads, the interval of a ratio and what it says in words, and orders of rounds."""

import statistics
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
COVERAGE = 0.95


def spread(times):
    """dict of times in microseconds: median_us, p10_us, p90_us."""
    ordered = sorted(times)
    return {
        "median_us": statistics.median(ordered),
        "p10_us": ordered[len(ordered) // 10],
        "p90_us": ordered[-1 - len(ordered) // 10],
    }


def interleaved(count, rounds, seed):
    """Numbers [rounds, count]: each round has all of 0..count-1 once, in an order of its own that
    the seed fixes."""
    numbers = np.tile(np.arange(count), (rounds, 1))
    return np.random.default_rng([seed, rounds]).permuted(numbers, axis=1)


@dataclass(frozen=True)
class Ratio:
    """Median time of one variant over that of another, with its bootstrap interval."""

    median: float
    low: float
    high: float

    @property
    def holds_one(self):
        """Whether the interval holds 1.0: no difference was shown."""
        return self.low <= 1.0 <= self.high


def ratio(times, base, seed=0):
    """The `Ratio` of `times` to `base`, two lists with one time for each round.

    Rounds are resampled, each with both of its times: what a round does to both cancels.
    """
    times, base = np.asarray(times, np.float64), np.asarray(base, np.float64)
    rounds = np.random.default_rng(seed).integers(0, len(times), (RESAMPLES, len(times)))
    medians = np.median(times[rounds], axis=1) / np.median(base[rounds], axis=1)
    tail = 100 * (1 - COVERAGE) / 2
    low, high = np.percentile(medians, [tail, 100 - tail])
    return Ratio(float(np.median(times) / np.median(base)), float(low), float(high))


def verdict(name, base, of):
    """One sentence on the `Ratio` of variant `name` to variant `base`."""
    if of.holds_one:
        return (f"no difference between {name} and {base}: the interval of their ratio, "
                f"{of.low:.4f} .. {of.high:.4f}, holds 1.0")
    word = "slower" if of.low > 1 else "faster"
    percent = [100 * abs(value - 1) for value in (of.median, of.low, of.high)]
    return (f"{name} is {percent[0]:.2f} % {word} than {base} "
            f"({100 * COVERAGE:.0f} %: {min(percent[1:]):.2f} .. {max(percent[1:]):.2f} %)")
