"""Confidence intervals by the percentile bootstrap: seeded, so that the same figures give the same interval.

A difference is paired by taking it per sample first and resampling the differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.latency import runs_needed
from metro_edge.errors import UserError

LEVEL = 0.95
RESAMPLES = 2000
SEED = 0
# With fewer, even the whole range of the values covers their median in less than 95 % of cases: 1 - 2 / 2**6.
MIN_COUNT = 6
P95 = 95
_CHUNK = 4_000_000  # drawn values in memory at once
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """What a figure may be as far as its samples tell, in the figure's own unit."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Return whether `value` lies in it, ends included."""
        return self.low <= value <= self.high

    def overlaps(self, other: Interval) -> bool:
        """Return whether both have a value in common."""
        return self.low <= other.high and other.low <= self.high

    def to_dict(self) -> dict[str, float]:
        """Return `low` and `high`."""
        return {"low": self.low, "high": self.high}


def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over all axes but the first."""
    return values.reshape(len(values), -1).mean(axis=1)


def median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median over all axes but the first."""
    return np.asarray(np.median(values.reshape(len(values), -1), axis=1))


def p95(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the 95th percentile over all axes but the first."""
    return np.asarray(np.percentile(values.reshape(len(values), -1), P95, axis=1))


def figure(values: ArrayLike, statistic: Statistic = mean) -> float | None:
    """Return the statistic of all values; None for a 95th percentile of too few of them."""
    array = np.asarray(values, np.float64)
    if statistic is p95 and array.size < runs_needed(P95):
        return None
    return float(statistic(array[None])[0])


def interval(
    values: ArrayLike, statistic: Statistic = mean, *, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval | None:
    """Return the 95 % interval of a statistic.

    Args:
        values: (N, ...) float; what is drawn with replacement are the N entries of the first axis.
        statistic: (R, N, ...) -> (R,).
        resamples: how often it is drawn.
        seed: of the draws.

    Returns:
        The interval, which always contains the statistic of `values` itself; None when there are too few values: under
        `MIN_COUNT` entries, or too few values for a 95th percentile.

    Raises:
        UserError: a value that is not finite, or fewer than one resample.
    """
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        raise UserError("a NaN or infinite value has no interval: find out where it comes from")
    if resamples < 1:
        raise UserError(f"the number of resamples must be at least 1, got {resamples}")
    if array.ndim < 1 or len(array) < MIN_COUNT:
        return None
    point = figure(array, statistic)
    if point is None:
        return None
    drawn = np.concatenate([statistic(array[chosen]) for chosen in _draws(array, resamples, seed)])
    tail = 50.0 * (1.0 - LEVEL)
    low, high = np.percentile(drawn, [tail, 100.0 - tail])
    # Rounding, or a lopsided draw of few values, may miss the figure itself by a hair.
    return Interval(min(float(low), point), max(float(high), point))


def _draws(array: NDArray[np.float64], resamples: int, seed: int) -> Iterator[NDArray[np.intp]]:
    """Yield (R, N) indices, together `resamples` rows, in parts that fit in memory."""
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // array.size)
    for start in range(0, resamples, rows):
        yield generator.integers(0, len(array), (min(rows, resamples - start), len(array)))
