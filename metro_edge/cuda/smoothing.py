"""One-Euro smoothing of points on the GPU, one filter a track: the twin of metro_edge.smoothing."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from metro_edge.cuda.arrays import MAX_PEOPLE, DeviceBuffer, launches, people_of, pointer_of
from metro_edge.cuda.loading import KernelLoader
from metro_edge.errors import UserError
from metro_edge.smoothing import OneEuro as Reference

THREADS = 256

# The structures of kernels/postprocess.cu.
FILTER = np.dtype([("min_cutoff_hz", "f4"), ("beta", "f4"), ("speed_cutoff_hz", "f4")])
STEPS = np.dtype([("slot", "i4", MAX_PEOPLE), ("step_s", "f4", MAX_PEOPLE)])


class OneEuro:
    """The filter of metro_edge.smoothing.OneEuro, whose memory stays on the GPU.

        smoother = OneEuro(points_of_a_person, 3, KernelLoader())
        smoother(joints, tracks, time_s, joints, stream)

    Which track is where is kept here, the values there: nothing is copied. Unlike the reference it cannot see NaN or
    infinity in the points; metro_edge.cuda.postprocess finds those.

    Args:
        points, dimensions: P and D of (N, P, D).
        loader: of the current context.
        max_tracks: most tracks that are remembered at a time.
        min_cutoff_hz, beta, speed_cutoff_hz, max_gap_s: see the reference.

    Raises:
        UserError: for numbers that the reference refuses.
    """

    def __init__(
        self,
        points: int,
        dimensions: int,
        loader: KernelLoader,
        max_tracks: int = MAX_PEOPLE,
        min_cutoff_hz: float = 1.0,
        beta: float = 0.5,
        speed_cutoff_hz: float = 1.0,
        max_gap_s: float = 1.0,
    ) -> None:
        Reference(min_cutoff_hz, beta, speed_cutoff_hz, max_gap_s)
        if min(points, dimensions, max_tracks) < 1:
            raise UserError(
                f"points, dimensions and max_tracks must be 1 or more: {points}, {dimensions}, {max_tracks}"
            )
        self.shape = (points, dimensions)
        self.max_tracks, self.max_gap_s = max_tracks, max_gap_s
        self._filter = np.zeros((), FILTER)
        self._filter["min_cutoff_hz"], self._filter["beta"] = min_cutoff_hz, beta
        self._filter["speed_cutoff_hz"] = speed_cutoff_hz
        self._loader = loader
        self._last = DeviceBuffer((max_tracks, points * dimensions), np.float32)
        self._speeds = DeviceBuffer((max_tracks, points * dimensions), np.float32)
        self._tracks: dict[Hashable, tuple[int, float]] = {}  # row of the memory, time of the last frame

    def __call__(
        self, points: Any, tracks: Sequence[Hashable], time_s: float, smoothed: Any, stream: Any = None
    ) -> None:
        """Write the smoothed points of one frame.

        Args:
            points: (N, P, D) float32 in device memory; N may be 0 and differ from frame to frame.
            tracks: (N,) who each row is; a track that is new, or was away for over `max_gap_s`, comes back as it is.
            time_s: when the frame was taken, in seconds from any start; later than the call before for a track.
            smoothed: (N, P, D) float32 in device memory; may be `points`.
            stream: pycuda.driver.Stream, the same in all calls; None is the default stream.

        Raises:
            UserError: arrays that do not fit, tracks of another number or named twice, a time that does not go on, or
                more tracks than the memory has rows. Nothing is remembered of such a frame.
        """
        people = people_of(points, "points")
        source = pointer_of("points", points, (people, *self.shape), np.float32)
        target = pointer_of("smoothed", smoothed, (people, *self.shape), np.float32)
        self._check(tracks, people, time_s)
        kept = {track: (slot, t) for track, (slot, t) in self._tracks.items() if time_s - t <= self.max_gap_s}
        taken = {slot for slot, _ in kept.values()}
        free = [slot for slot in range(self.max_tracks - 1, -1, -1) if slot not in taken]
        fresh = [track for track in tracks if track not in kept]
        if len(fresh) > len(free):
            raise UserError(f"{len(kept) + len(fresh)} tracks, but this filter remembers {self.max_tracks} at most")
        steps = {track: time_s - kept[track][1] if track in kept else 0.0 for track in tracks}
        for track in fresh:
            kept[track] = (free.pop(), time_s)
        for track in tracks:
            kept[track] = (kept[track][0], time_s)
        self._launch(source, target, [(kept[track][0], steps[track]) for track in tracks], stream)
        self._tracks = kept

    @property
    def tracks(self) -> tuple[Hashable, ...]:
        """The tracks that are remembered."""
        return tuple(self._tracks)

    def reset(self) -> None:
        """Forget all tracks, as between two clips."""
        self._tracks.clear()

    def _check(self, tracks: Sequence[Hashable], people: int, time_s: float) -> None:
        if len(tracks) != people:
            raise UserError(f"every one of the {people} rows of points needs a track, got {len(tracks)} tracks")
        if len(set(tracks)) != len(tracks):
            raise UserError(f"a track may be in a frame once, got {list(tracks)}")
        if not math.isfinite(time_s):
            raise UserError(f"time_s must be a finite number of seconds, got {time_s}")
        for track in tracks:
            if track in self._tracks and time_s <= self._tracks[track][1]:
                last = self._tracks[track][1]
                raise UserError(f"time_s must go on: track {track!r} was at {last:g} s, this is {time_s:g} s")

    def _launch(self, source: np.uint64, target: np.uint64, rows: list[tuple[int, float]], stream: Any) -> None:
        count = self.shape[0] * self.shape[1]
        for first, last in launches(len(rows)):
            steps = np.zeros((), STEPS)
            steps["slot"][: last - first], steps["step_s"][: last - first] = zip(*rows[first:last], strict=True)
            row = np.uint64(4 * count * first)
            self._loader.function("postprocess", "one_euro")(
                steps,
                self._filter,
                source + row,
                target + row,
                np.uint64(self._last.pointer),
                np.uint64(self._speeds.pointer),
                np.int32(count),
                block=(THREADS, 1, 1),
                grid=(-(-count // THREADS), last - first),
                stream=stream,
            )
