"""One-Euro smoothing of points over time, one filter a track; NumPy, the truth for every other implementation."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metro_edge.errors import UserError

FloatArray = NDArray[np.float64]


@dataclass
class _Track:
    """What a filter remembers: filtered points (P, D), their filtered speed (P, D) a second, and when."""

    points: FloatArray
    speed: FloatArray
    time_s: float


class OneEuro:
    """A low-pass filter whose cut-off rises with speed: steady when still, quick when moving.

    Casiez, Roussel and Vogel, "1 Euro Filter", CHI 2012, algorithm 1, for each coordinate by itself. Its speed is
    taken from the last filtered value, as there.

        smoother = OneEuro()
        joints = smoother(joints, tracks, time_s)

    Attributes:
        min_cutoff_hz: cut-off at rest; lower it when still points tremble.
        beta: how fast the cut-off rises, in Hz per unit of speed (for metres: Hz per m/s); raise it when fast
            movements lag.
        speed_cutoff_hz: cut-off of the speed itself; 1 Hz in the paper.
        max_gap_s: a track that was away for longer starts anew, and is forgotten.
    """

    def __init__(
        self, min_cutoff_hz: float = 1.0, beta: float = 0.5, speed_cutoff_hz: float = 1.0, max_gap_s: float = 1.0
    ) -> None:
        given = {"min_cutoff_hz": min_cutoff_hz, "speed_cutoff_hz": speed_cutoff_hz, "max_gap_s": max_gap_s}
        for name, value in given.items():
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} must be a positive number, got {value}")
        if not (math.isfinite(beta) and beta >= 0):
            raise UserError(f"beta must be a number from 0 on, got {beta}")
        self.min_cutoff_hz = min_cutoff_hz
        self.beta = beta
        self.speed_cutoff_hz = speed_cutoff_hz
        self.max_gap_s = max_gap_s
        self._tracks: dict[Hashable, _Track] = {}

    def __call__(
        self, points: ArrayLike, tracks: Sequence[Hashable], time_s: float, confidence: ArrayLike | None = None
    ) -> FloatArray:
        """Return the smoothed points (N, P, D) float64 of one frame.

        Args:
            points: (N, P, D), such as joints in metres; N may be 0 and differ from frame to frame.
            tracks: (N,) who each row is; a track that is new, or was away for over `max_gap_s`, comes back as it is.
            time_s: when the frame was taken, in seconds from any start; later than the call before for a track.
            confidence: (N, P) or (N, 1), 0 to 1: the share of a new point that the filter would take is multiplied by
                it, so that a point of confidence 0 stays where it was. None is 1 everywhere.

        Raises:
            UserError: points that are not finite or not (N, P, D), tracks of another number or named twice, another
                P or D than the track had, a time that does not go on, or a confidence that is none. Nothing is
                remembered of such a frame.
        """
        array = self._checked(points, tracks, time_s)
        result = np.empty_like(array)
        weights = _checked_confidence(confidence, array)
        states = {
            track: self._next(track, row, time_s, weight)
            for track, row, weight in zip(tracks, array, weights, strict=True)
        }
        for row, state in zip(result, states.values(), strict=True):
            row[:] = state.points
        self._tracks.update(states)
        self._tracks = {key: t for key, t in self._tracks.items() if time_s - t.time_s <= self.max_gap_s}
        return result

    @property
    def tracks(self) -> tuple[Hashable, ...]:
        """The tracks that are remembered."""
        return tuple(self._tracks)

    def reset(self) -> None:
        """Forget all tracks, as between two clips."""
        self._tracks.clear()

    def _next(self, track: Hashable, row: FloatArray, time_s: float, weight: FloatArray) -> _Track:
        last = self._tracks.get(track)
        if last is None or time_s - last.time_s > self.max_gap_s:
            return _Track(row.copy(), np.zeros_like(row), time_s)
        step_s = time_s - last.time_s
        share = smoothing_share(self.speed_cutoff_hz, step_s)
        speed = share * (row - last.points) / step_s + (1.0 - share) * last.speed
        share_of_points = smoothing_share(self.min_cutoff_hz + self.beta * np.abs(speed), step_s) * weight
        return _Track(share_of_points * row + (1.0 - share_of_points) * last.points, speed, time_s)

    def _checked(self, points: ArrayLike, tracks: Sequence[Hashable], time_s: float) -> FloatArray:
        try:
            array = np.asarray(points, np.float64)
        except (TypeError, ValueError):
            raise UserError("points must be numbers (N, P, D)") from None
        if array.ndim != 3:
            raise UserError(f"points must be (N, P, D), got shape {array.shape}")
        if len(tracks) != len(array):
            raise UserError(f"every one of the {len(array)} rows of points needs a track, got {len(tracks)} tracks")
        if len(set(tracks)) != len(tracks):
            raise UserError(f"a track may be in a frame once, got {list(tracks)}")
        if not np.isfinite(array).all():
            raise UserError("points must be finite, got NaN or infinity")
        if not math.isfinite(time_s):
            raise UserError(f"time_s must be a finite number of seconds, got {time_s}")
        for track in tracks:
            last = self._tracks.get(track)
            if last is None:
                continue
            if time_s <= last.time_s:
                raise UserError(f"time_s must go on: track {track!r} was at {last.time_s:g} s, this is {time_s:g} s")
            if last.points.shape != array.shape[1:]:
                raise UserError(f"track {track!r} had points {last.points.shape}, now {array.shape[1:]}; call reset()")
        return array


def _checked_confidence(confidence: ArrayLike | None, points: FloatArray) -> FloatArray:
    """Return confidence (N, P or 1, 1) for points (N, P, D); raises UserError."""
    if confidence is None:
        return np.ones((len(points), 1, 1))
    array = np.asarray(confidence, np.float64)
    if array.ndim != 2 or array.shape[0] != len(points) or array.shape[1] not in (1, points.shape[1]):
        raise UserError(f"confidence must be (N, P) or (N, 1) for points {points.shape}, got {array.shape}")
    if not ((array >= 0) & (array <= 1)).all():
        raise UserError("confidence must be between 0 and 1")
    return array[..., None]


def smoothing_share(cutoff_hz: FloatArray | float, step_s: float) -> FloatArray:
    """Return the share of the new value in a first-order low-pass filter: 1 / (1 + tau / step), tau = 1 / (2 pi f)."""
    return np.asarray(1.0 / (1.0 + 1.0 / (2.0 * math.pi * np.asarray(cutoff_hz, np.float64) * step_s)))
