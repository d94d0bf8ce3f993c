"""Who is where in each frame: the interface, boxes that are given, and what all ways of following share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metro_edge.body import Body
from metro_edge.errors import UserError
from metro_edge.preprocess import MAX_SIDE_PX, check_boxes
from metro_edge.timing import StageClock
from metro_edge.video.boxes import BoxTable
from metro_edge.video.sources import SourceFrame

Boxes = NDArray[np.float64]
# Boxes (N, 4) in px -> a body each, None where nobody is; runs the network over the frame in hand.
Estimate = Callable[[Boxes], list[Body | None]]
EVERY_VERTEX = 8  # of the mesh that is projected for a box: the outline moves by less than a pixel
JOINTS_MARGIN = 0.12  # of the joints' longer side, from the outermost joints to the outline of the body


@dataclass(frozen=True, eq=False)
class Person:
    """Someone in a frame.

    Attributes:
        identity: a number from 1 on that stays with the person while they are followed.
        body: joints and mesh.
        confidence: 0 to 1, that someone is there: the detector's score, or how well the network agrees with itself.
        box: (4,) float64 x, y, width, height in px, around the projected body.
    """

    identity: int
    body: Body
    confidence: float
    box: Boxes


class People(ABC):
    """A way to know who is where. One object follows one source, from its first frame on."""

    # Told where the time goes; the pipeline puts its own clock here.
    clock: StageClock = StageClock()

    @property
    def notes(self) -> list[str]:
        """What the user should know about how it went, such as boxes that fit no frame."""
        return []

    @abstractmethod
    def __call__(self, frame: SourceFrame, estimate: Estimate) -> list[Person]:
        """Return the people in the next frame, running the network by `estimate`."""

    def ahead(self, frame: SourceFrame) -> Boxes | None:
        """Return the boxes (N, 4) to run the network over while frames before this one are still in hand.

        None, as here, if those must be finished first; the frame then goes to `__call__`. Else its bodies come to
        `taken`, once all frames before it were taken. Raises UserError for boxes that do not fit the frame.
        """
        return None

    def taken(self, frame: SourceFrame, boxes: Boxes, bodies: list[Body | None]) -> list[Person] | None:
        """Return the people in a frame from the bodies (N) that were found in the boxes (N, 4) of `ahead`.

        None if they are of no use: this frame and those in hand behind it go to `__call__`, in their order.
        """
        raise NotImplementedError("a way that looks ahead says what it takes")

    def again(self) -> People:
        """Return the same way to follow people, who knows nobody yet: for a source that begins again."""
        return self


class KnownBoxes(People):
    """Boxes that are known before the network runs, so that any number of frames may be in hand at once."""

    @abstractmethod
    def ahead(self, frame: SourceFrame) -> Boxes:
        """Return the frame's boxes (N, 4)."""

    @abstractmethod
    def taken(self, frame: SourceFrame, boxes: Boxes, bodies: list[Body | None]) -> list[Person]:
        """Return the people of those bodies that there are."""

    def __call__(self, frame: SourceFrame, estimate: Estimate) -> list[Person]:
        """Return a person per box in which somebody is; raises UserError for boxes that do not fit the frame."""
        boxes = self.ahead(frame)
        return self.taken(frame, boxes, estimate(boxes))


class TableBoxes(KnownBoxes):
    """Boxes by frame: nothing is searched, frames without boxes have nobody."""

    def __init__(self, table: BoxTable) -> None:
        self.table = table
        self._used = self._unfit = 0

    def ahead(self, frame: SourceFrame) -> Boxes:
        """Return the frame's boxes, without those that do not fit it."""
        return self._rows(frame)[0]

    def taken(self, frame: SourceFrame, boxes: Boxes, bodies: list[Body | None]) -> list[Person]:
        """Return the people with their identities and the scores of the table."""
        _, numbers, scores = self._rows(frame)
        self._used += len(boxes)
        self._unfit += len(self.table.of_frame(frame.index, frame.picture).boxes) - len(boxes)
        identities = self.identities(frame, boxes, numbers)
        found = zip(bodies, identities, scores, strict=True)
        return [Person(int(i), body, float(score), body_box(body)) for body, i, score in found if body is not None]

    @abstractmethod
    def identities(self, frame: SourceFrame, boxes: Boxes, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return who is in the boxes (N, 4); `numbers` (N,) are the table's."""

    @property
    def notes(self) -> list[str]:
        """How many boxes were of no use, and why."""
        if self._unfit:
            return [f"{self._unfit} boxes were left out: outside of their frames, or less than a pixel wide or high"]
        return [] if self._used else [f"none of the {self.table.count} boxes is of a frame that was read"]

    def _rows(self, frame: SourceFrame) -> tuple[Boxes, NDArray[np.int64], NDArray[np.float64]]:
        """Return boxes (N, 4), numbers (N,) and scores (N,) of a frame, without boxes that do not fit it."""
        rows = self.table.of_frame(frame.index, frame.picture)
        boxes = inside(rows.boxes, frame.image.shape[:2])
        kept = np.isfinite(boxes).all(axis=1)
        return boxes[kept], rows.identities[kept], rows.scores[kept]


class GivenPeople(TableBoxes):
    """Boxes from a file or the caller, with the table's identities, or where it has none numbered in their order."""

    def identities(self, frame: SourceFrame, boxes: Boxes, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the table's."""
        return numbers

    def again(self) -> GivenPeople:
        """Return one of the same boxes."""
        return GivenPeople(self.table)


class FixedPeople(KnownBoxes):
    """The same boxes (N, 4) or (4,) in every frame, as for people who keep their place, numbered from 1.

    Raises:
        UserError: boxes that fit no frame.
    """

    def __init__(self, boxes: ArrayLike) -> None:
        self.boxes = check_boxes(boxes, (MAX_SIDE_PX, MAX_SIDE_PX))

    def ahead(self, frame: SourceFrame) -> Boxes:
        """Return the boxes; raises UserError where they do not fit the frame."""
        return check_boxes(self.boxes, frame.image.shape[:2])

    def taken(self, frame: SourceFrame, boxes: Boxes, bodies: list[Body | None]) -> list[Person]:
        """Return the people, numbered by their boxes."""
        found = enumerate(bodies, 1)
        return [Person(number, body, 1.0, body_box(body)) for number, body in found if body is not None]


def body_box(body: Body) -> Boxes:
    """Return the box (4,) around a body in the frame: of its mesh, or of its joints with a margin."""
    points = body.vertices[::EVERY_VERTEX] if body.has_mesh else body.joints
    placed = points.astype(np.float64) + body.translation
    pixels = placed[:, :2] * (body.focal_px / placed[:, 2:]) + body.centre_px
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    if not body.has_mesh:
        margin = JOINTS_MARGIN * float((high - low).max())
        low, high = low - margin, high + margin
    return np.concatenate([low, np.maximum(high - low, 1.0)])


def inside(boxes: Boxes, frame_hw: tuple[int, int]) -> Boxes:
    """Return boxes (N, 4) with NaN in the rows that `check_boxes` would refuse: too small, large or outside."""
    result = np.array(boxes, np.float64).reshape(-1, 4)
    for row in result:
        try:
            check_boxes(row, frame_hw)
        except UserError:
            row[:] = np.nan
    return result


def overlap(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Return the intersection over union (N, M) of boxes (N, 4) and (M, 4)."""
    a, b = np.asarray(a, np.float64).reshape(-1, 1, 4), np.asarray(b, np.float64).reshape(1, -1, 4)
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    common = np.clip(high - low, 0, None).prod(axis=-1)
    union = a[..., 2:].prod(axis=-1) + b[..., 2:].prod(axis=-1) - common
    ratio: NDArray[np.float64] = common / np.maximum(union, 1e-9)
    return ratio


def share_in_frame(box: Boxes, frame_hw: tuple[int, int]) -> float:
    """Return how much of a box (4,) lies in the frame, 0 to 1."""
    low = np.maximum(box[:2], 0.0)
    high = np.minimum(box[:2] + box[2:], (frame_hw[1], frame_hw[0]))
    return float(np.clip(high - low, 0, None).prod() / max(float(box[2:].prod()), 1e-9))
