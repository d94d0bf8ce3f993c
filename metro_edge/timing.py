"""Latency of repeated calls, as percentiles."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, eq=False)
class Latency:
    """Durations of single calls.

    Attributes:
        samples_ms: (N,) float64, in the order of the calls.
        warmup: calls that ran before and are not counted.
    """

    samples_ms: NDArray[np.float64]
    warmup: int

    def percentile_ms(self, percent: float) -> float:
        """Return the duration that `percent` of the calls do not exceed, linearly interpolated."""
        return float(np.percentile(self.samples_ms, percent))

    @property
    def p50_ms(self) -> float:
        """Median."""
        return self.percentile_ms(50)

    @property
    def p95_ms(self) -> float:
        """95th percentile."""
        return self.percentile_ms(95)

    def to_dict(self) -> dict[str, float]:
        """Return `p50_ms`, `p90_ms`, `p95_ms`, `p99_ms`, `mean_ms`, `min_ms`, `calls` and `warmup`."""
        values = {f"p{percent}_ms": self.percentile_ms(percent) for percent in PERCENTILES}
        values |= {"mean_ms": float(self.samples_ms.mean()), "min_ms": float(self.samples_ms.min())}
        return values | {"calls": len(self.samples_ms), "warmup": self.warmup}


def measure(call: Callable[[], object], calls: int = 50, warmup: int = 5, limit_s: float | None = None) -> Latency:
    """Time `call` on the monotonic clock, one call after another.

    Args:
        call: returns when its work is done; a GPU's caller must wait for it inside.
        calls: how many are counted, at least 1.
        warmup: how many run before, uncounted: they allocate, compile and raise the clock.
        limit_s: stop early after this time, with at least one counted call; None never does.

    Raises:
        UserError: for counts or a limit that make no sense.
    """
    if calls < 1 or warmup < 0 or (limit_s is not None and limit_s <= 0):
        raise UserError(f"cannot time {calls} calls after {warmup} to warm up within {limit_s} s")
    for _ in range(warmup):
        call()
    samples = []
    start = time.perf_counter()
    for _ in range(calls):
        before = time.perf_counter()
        call()
        after = time.perf_counter()
        samples.append((after - before) * 1000.0)
        if limit_s is not None and after - start > limit_s:
            break
    return Latency(np.array(samples), warmup)


class StageClock:
    """Adds up where the time of a frame goes, by the names of its stages.

    with clock("network"):
        ...
    stages_ms = clock.take()

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._ms: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count what runs under `with` towards `stage`, also when it raises."""
        began = self._clock()
        try:
            yield
        finally:
            self._ms[stage] = self._ms.get(stage, 0.0) + (self._clock() - began) * 1000.0

    def add(self, stages_ms: Mapping[str, float]) -> None:
        """Count times that another clock took."""
        for stage, value in stages_ms.items():
            self._ms[stage] = self._ms.get(stage, 0.0) + value

    def take(self) -> dict[str, float]:
        """Return stage -> milliseconds since the last call, and begin anew."""
        taken, self._ms = self._ms, {}
        return taken
