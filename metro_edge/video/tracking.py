"""Several people over time: a detector now and then, their own bodies in between, identities by ByteTrack."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import MissingExtraError, UserError
from metro_edge.video.boxes import BoxTable
from metro_edge.video.detector import Detector, OnnxDetector
from metro_edge.video.people import (
    Boxes,
    Estimate,
    People,
    Person,
    TableBoxes,
    body_box,
    inside,
    overlap,
    share_in_frame,
)
from metro_edge.video.sources import SourceFrame

REMEMBERED_S = 2.0  # who is away for longer comes back as someone new
TRACKED_OVERLAP = 0.1  # of the box where somebody is expected and one that may be theirs
SAME_PERSON = 0.4  # overlap of a detection and a followed box
TWICE = 0.75  # overlap of two followed boxes, from which on they have both come to lie on one person
LEAST_OVERLAP = 0.2  # of the boxes of two frames
LEAST_IN_FRAME = 0.25
FOLLOWED_SCORE = 0.9  # given to the tracker for a box that follows someone
MISSED = 0.6  # confidence is multiplied by this when the detector misses someone
LEAST_CONFIDENCE = 0.25
MOST_CORRECTION = 0.7  # of a box by the detector's, in sizes


class IdentityTracker:
    """ByteTrack (Zhang et al., ECCV 2022) of Roboflow's library `trackers`: which box is who, by place and motion.

    Raises:
        MissingExtraError: without the extra `track`.
    """

    def __init__(self) -> None:
        try:
            import supervision
            from trackers import ByteTrackTracker
        except ImportError:
            raise MissingExtraError("trackers", "track", "tell several people apart over time") from None
        self._detections = supervision.Detections
        self._tracker = ByteTrackTracker(
            lost_track_buffer=round(30 * REMEMBERED_S),  # its unit: frames at 30 a second
            frame_rate=30.0,
            track_activation_threshold=0.5,
            minimum_consecutive_frames=1,
            minimum_iou_threshold=TRACKED_OVERLAP,
            high_conf_det_threshold=0.5,
        )

    def __call__(self, boxes: Boxes, scores: NDArray[np.floating], time_s: float) -> NDArray[np.int64]:
        """Return the identity (N,) of each box (N, 4) px, from 1 on; 0 of boxes that are nobody yet."""
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        given = self._detections(
            xyxy=corners, confidence=np.asarray(scores, np.float64), class_id=np.arange(len(boxes))
        )
        tracked = self._tracker.update(given, timestamp=time_s)
        identities = np.zeros(len(boxes), np.int64)
        if len(tracked) and tracked.class_id is not None and tracked.tracker_id is not None:
            identities[tracked.class_id] = tracked.tracker_id + 1  # the library counts from 0, and has -1 for nobody
        return identities


class TrackedBoxes(TableBoxes):
    """Boxes from a file that does not say who is who: identities by the tracker.

    What the caller gives is certain: every box is somebody from its first frame on, also before the tracker knows them.
    """

    def __init__(self, table: BoxTable) -> None:
        super().__init__(table)
        self._tracker = IdentityTracker()
        self._number_of: dict[int, int] = {}  # the tracker's identity -> ours
        self._last: dict[int, tuple[Boxes, float]] = {}  # identity -> where and when they were seen last
        self._count = 0

    def identities(self, frame: SourceFrame, boxes: Boxes, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return who is in the boxes: whom the tracker finds again, else who was there last, else someone new."""
        with self.clock("track"):
            tracked = self._tracker(boxes, np.ones(len(boxes)), frame.time_s)
            result = np.array([self._number_of.get(int(identity), 0) for identity in tracked], np.int64)
            self._last = {n: seen for n, seen in self._last.items() if frame.time_s - seen[1] <= REMEMBERED_S}
            for row in np.flatnonzero(result == 0):
                result[row] = self._unnamed(boxes[row], set(result.tolist()))
                if tracked[row] > 0:  # under one identity of the tracker's at a time
                    self._number_of = {t: n for t, n in self._number_of.items() if n != result[row]}
                    self._number_of[int(tracked[row])] = int(result[row])
            self._last |= {int(n): (box, frame.time_s) for n, box in zip(result, boxes, strict=True)}
        return result

    def _unnamed(self, box: Boxes, taken: set[int]) -> int:
        """Return who was last seen where the box is and is in no other, or a new number."""
        overlaps = {n: float(overlap(box, last)[0, 0]) for n, (last, _) in self._last.items() if n not in taken}
        if max(overlaps.values(), default=0.0) >= TRACKED_OVERLAP:
            return max(overlaps, key=lambda n: overlaps[n])
        self._count += 1
        return self._count

    def again(self) -> TrackedBoxes:
        """Return one of the same boxes that knows nobody yet."""
        return TrackedBoxes(self.table)


@dataclass
class _Followed:
    """Someone known.

    Attributes:
        box: where they were last.
        confidence: how sure that is.
        correction: (4,) from the box around their body to the detector's, centre and logarithm of size, in sizes: the
            network's bodies may stand beside the person always in the same way, and the detector knows better.
    """

    box: Boxes
    confidence: float
    correction: NDArray[np.float64]


class DetectedPeople(People):
    """A detector every k-th frame, and at once when someone was lost; in between each body leads to the next box.

    Attributes:
        detector: finds people: the path of an ONNX file, or an object that is called with a frame.
        every: frames from one detection to the next.
        detections: how often the detector ran.
    """

    def __init__(self, detector: str | os.PathLike[str] | Detector, every: int = 5) -> None:
        if every < 1:
            raise UserError(f"the detector runs every N-th frame, N at least 1, got {every}")
        self.detector: Any = OnnxDetector(detector) if isinstance(detector, (str, os.PathLike)) else detector
        if not callable(self.detector):
            raise UserError(f"a detector is an ONNX file or an object to call, got {type(detector).__name__}")
        self.every, self.detections = every, 0
        self._tracker = IdentityTracker()
        self._known: list[_Followed] = []
        self._since = every  # frames since the last detection: the first frame has one

    def __call__(self, frame: SourceFrame, estimate: Estimate) -> list[Person]:
        """Return everyone in the frame who has an identity, which takes someone new a second frame."""
        frame_hw = frame.image.shape[:2]
        followed = self._without_twice()
        detect = self._since >= self.every - 1
        self._since += 1
        if detect:
            followed = self._detected(frame, followed)
        followed = [one for one in followed if np.isfinite(inside(one.box, frame_hw)).all()]
        boxes = np.array([one.box for one in followed], np.float64).reshape(-1, 4)
        scores = np.array([one.confidence if detect else FOLLOWED_SCORE for one in followed], np.float64)
        with self.clock("track"):
            identities = self._tracker(boxes, scores, frame.time_s)
        people, self._known = [], []
        for body, one, identity in zip(estimate(boxes), followed, identities, strict=True):
            around = None if body is None else body_box(body)
            if body is None or around is None or not _plausible(around, one.box, frame_hw):
                self._since = self.every  # lost: looked for in the next frame
                continue
            if detect:
                one.correction = _correction(around, one.box)
            one.box = _corrected(around, one.correction)
            self._known.append(one)
            if identity > 0:
                people.append(Person(int(identity), body, one.confidence, one.box))
        return people

    def again(self) -> DetectedPeople:
        """Return one with the same detector that knows nobody yet."""
        return DetectedPeople(self.detector, self.every)

    def _detected(self, frame: SourceFrame, followed: list[_Followed]) -> list[_Followed]:
        """Return whom the detector finds, and those it misses, for a while and with less confidence."""
        self._since, self.detections = 0, self.detections + 1
        with self.clock("detect"):
            found = self.detector(frame.image)
        if not (hasattr(found, "boxes") and hasattr(found, "scores")):
            raise UserError(f"a detector must return metro_edge.video.detector.Detections, got {type(found).__name__}")
        result = [
            _Followed(box, float(score), np.zeros(4)) for box, score in zip(found.boxes, found.scores, strict=True)
        ]
        for one in followed:
            if overlap(one.box, found.boxes).max(initial=0.0) < SAME_PERSON:
                one.confidence *= MISSED
                if one.confidence >= LEAST_CONFIDENCE:
                    result.append(one)
        return result

    def _without_twice(self) -> list[_Followed]:
        """Return those who are followed, without the less sure of two boxes on one person."""
        kept: list[_Followed] = []
        for one in sorted(self._known, key=lambda one: -one.confidence):
            if all(overlap(one.box, other.box)[0, 0] < TWICE for other in kept):
                kept.append(one)
            else:
                self._since = self.every
        return kept


def _correction(around: Boxes, box: Boxes) -> NDArray[np.float64]:
    centres = (box[:2] + box[2:] / 2) - (around[:2] + around[2:] / 2)
    change = np.concatenate([centres / around[2:], np.log(box[2:] / around[2:])])
    clipped: NDArray[np.float64] = np.clip(change, -MOST_CORRECTION, MOST_CORRECTION)
    return clipped


def _corrected(around: Boxes, correction: NDArray[np.float64]) -> Boxes:
    size = around[2:] * np.exp(correction[2:])
    centre = around[:2] + around[2:] / 2 + correction[:2] * around[2:]
    return np.concatenate([centre - size / 2, size])


def _plausible(around: Boxes, box: Boxes, frame_hw: tuple[int, int]) -> bool:
    """Whether the box around a body may be that of the person who was cropped by `box`."""
    return overlap(around, box)[0, 0] >= LEAST_OVERLAP and share_in_frame(around, frame_hw) >= LEAST_IN_FRAME
