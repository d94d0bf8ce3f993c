"""Measuring until it has settled: windows of frames until the percentiles of the last ones agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.latency import REPORTED_PERCENT, WARMUP, round_robin, runs_needed
from metro_edge.errors import UserError

Frame = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Stability:
    """When a measurement has settled.

    Attributes:
        window: frames of a window.
        windows: how many windows in a row must agree.
        within: their p50, and their p95, may differ by this share of the median of them.
        least, most: frames of each subject, before which nothing counts as settled and after which it is given up.

    Raises:
        UserError: windows too short for a 95th percentile, fewer than two of them, a share not between 0 and 1, or
            fewer frames than the windows need.
    """

    window: int = 50
    windows: int = 3
    within: float = 0.05
    least: int = 200
    most: int = 1000

    def __post_init__(self) -> None:
        if self.window < runs_needed(REPORTED_PERCENT):
            raise UserError(
                f"a window must have at least {runs_needed(REPORTED_PERCENT)} frames for a {REPORTED_PERCENT}th "
                f"percentile, got {self.window}"
            )
        if self.windows < 2 or not 0 < self.within < 1:
            raise UserError(
                f"two or more windows must agree within a share between 0 and 1, got {self.windows} windows and "
                f"{self.within:g}"
            )
        if not self.windows * self.window <= self.least <= self.most:
            raise UserError(
                f"{self.windows} windows of {self.window} frames need at least {self.windows * self.window} frames, "
                f"and no more at least than at most; got {self.least} and {self.most}"
            )

    def settled(self, samples_ms: NDArray[np.float64]) -> bool:
        """Return whether the last windows of samples (N,) agree; a window that is not full yet is left out."""
        full = len(samples_ms) // self.window * self.window
        if full < self.least:
            return False
        last = samples_ms[:full].reshape(-1, self.window)[-self.windows :]
        for percent in (50, REPORTED_PERCENT):
            values = np.percentile(last, percent, axis=1)
            if np.ptp(values) > self.within * np.median(values):
                return False
        return True


@dataclass(frozen=True, eq=False)
class Measured:
    """What one subject took.

    Attributes:
        stages_ms: stage -> (N,) float64, of all counted frames in their order.
        first: the first frame of the windows that agreed; 0 when they never did.
        settled_after: frames counted until they agreed; None when they never did.
        uncounted: frames that ran to warm up, before and between the windows.
    """

    stages_ms: dict[str, NDArray[np.float64]]
    first: int
    settled_after: int | None
    uncounted: int


def measure_until_settled(
    subjects: Mapping[str, Frame], rule: Stability, key: str, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Measured]:
    """Run frames of all subjects in turns, window by window, until all have settled or the most frames are reached.

    Each window begins with one uncounted frame, the first with WARMUP. All subjects get the same number of frames, so
    what drifts drifts for all.

    Args:
        subjects: name -> call that runs one frame and returns the milliseconds of its stages, always the same ones.
        rule: when to stop.
        key: the stage by which it is judged.
        clock: seconds; watched between frames, as its steps back would make times too short.

    Raises:
        UserError: no subject, or a clock that went back.
    """
    if not subjects:
        raise UserError("nothing to measure: no subject was given")
    samples: dict[str, list[Mapping[str, float]]] = {name: [] for name in subjects}
    settled: dict[str, int] = {}
    for frame in subjects.values():
        for _ in range(WARMUP):
            frame()
    last = clock()
    with tqdm(total=rule.most * len(subjects), desc="stages", unit="frame", leave=False) as bar:
        for turn, (name, count) in enumerate(round_robin(tuple(subjects), rule.most, rule.window), 1):
            frame = subjects[name]
            frame()
            for _ in range(count):
                stages = frame()
                if (now := clock()) < last or min(stages.values()) < 0:
                    raise UserError("the clock went back during the measurement: run it again")
                last = now
                samples[name].append(stages)
            bar.update(count)
            if name not in settled and rule.settled(np.array([stages[key] for stages in samples[name]])):
                settled[name] = len(samples[name])
            if turn % len(subjects) == 0 and len(settled) == len(subjects):
                break
    return {name: _measured(samples[name], settled.get(name), rule) for name in subjects}


def _measured(samples: list[Mapping[str, float]], settled_after: int | None, rule: Stability) -> Measured:
    stages = {stage: np.array([frame[stage] for frame in samples]) for stage in samples[0]}
    first = 0 if settled_after is None else settled_after // rule.window * rule.window - rule.windows * rule.window
    return Measured(stages, first, settled_after, WARMUP + -(-len(samples) // rule.window))


def window_percentiles(samples_ms: NDArray[np.float64], rule: Stability) -> list[dict[str, Any]]:
    """Return `p50_ms` and `p95_ms` of each full window."""
    full = len(samples_ms) // rule.window * rule.window
    return [
        {"p50_ms": float(np.median(window)), "p95_ms": float(np.percentile(window, REPORTED_PERCENT))}
        for window in samples_ms[:full].reshape(-1, rule.window)
    ]
