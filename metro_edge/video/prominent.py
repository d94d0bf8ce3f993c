"""One prominent person without a detector: the network's own joints lead the box to them.

The whole frame is taken first. The network's answer there is coarse, and still points to the person, so the box around
it closes in within a few rounds. A network without a detector says nothing of whether anyone is there; but where
someone is, it puts the joints at the same place in two crops that differ, and where nobody is, at places that follow
the crop. How far they differ is asked on the way in and every few frames from then on.
"""

from __future__ import annotations

import numpy as np

from metro_edge.body import Body
from metro_edge.video.people import Boxes, Estimate, People, Person, body_box, overlap, share_in_frame
from metro_edge.video.sources import SourceFrame

# Mean distance of the joints from two crops, over the crop's side. Measured with the shipped network: people 0.01 to
# 0.06, mostly below 0.03; nobody 0.045 to 0.19 (flat, noise and ten kinds of made backgrounds).
FOUND_BELOW, LOST_ABOVE = 0.045, 0.07
SHIFT = np.array([0.10, 0.06])  # of the second crop, over the longer side of the first
GROWTH = 1.2  # of the second crop
FIRST_ROUNDS, LATER_ROUNDS = 5, 2  # per frame of a search: in a source's first frame, in others
ROUNDS = 8  # until a search begins again, elsewhere
CHECK_EVERY = 6  # frames, once found
FOLLOW = 0.6  # share of the new box, so that it does not tremble
LEAST_OVERLAP = 0.2  # of the boxes of two frames
LEAST_IN_FRAME = 0.3
LEAST_SIDE_PX, MOST_SIDE = 16.0, 2.0  # of the box; the most over the frame's longer side
SAME_WITHIN_S = 1.0  # found again so soon, and where they were, it is the same person


class ProminentPerson(People):
    """Follows one person and searches again when they are lost; made for one who is well seen.

    Attributes:
        disagreement: what the last check gave, see above; None before the first.
    """

    def __init__(self) -> None:
        self.disagreement: float | None = None
        self._box: Boxes | None = None  # of the person, or where the search has come to
        self._identity = 0  # of the last one found
        self._last: tuple[Boxes, float] | None = None  # where and when they were seen
        self._found = self._began = False
        self._rounds = self._searches = self._since_check = 0

    def __call__(self, frame: SourceFrame, estimate: Estimate) -> list[Person]:
        """Return the person, or nobody while searching."""
        if self._found:
            person = self._followed(frame, estimate)
            if person is not None:
                self._last = (person.box, frame.time_s)
                return [person]
            self._search_again()
        rounds = LATER_ROUNDS if self._began else FIRST_ROUNDS
        self._began = True
        for _ in range(rounds):
            person = self._searched(frame, estimate)
            if person is not None:
                self._last = (person.box, frame.time_s)
                return [person]
        return []

    def again(self) -> ProminentPerson:
        """Return one that knows nobody yet."""
        return ProminentPerson()

    def ahead(self, frame: SourceFrame) -> Boxes | None:
        """Return the box of the person as of the last frame taken, with a second one where a check is due."""
        return self._next_boxes(frame) if self._found else None

    def taken(self, frame: SourceFrame, boxes: Boxes, bodies: list[Body | None]) -> list[Person] | None:
        """Return the person; None when they are lost."""
        person = self._judged(frame, boxes, bodies)
        if person is None:
            self._search_again()
            return None
        self._last = (person.box, frame.time_s)
        return [person]

    def _followed(self, frame: SourceFrame, estimate: Estimate) -> Person | None:
        boxes = self._next_boxes(frame)
        return None if boxes is None else self._judged(frame, boxes, estimate(boxes))

    def _next_boxes(self, frame: SourceFrame) -> Boxes | None:
        """Return the person's box (1, 4), or (2, 4) with that of a check; None where nobody can be."""
        assert self._box is not None
        if not _usable(self._box, frame):
            return None
        self._since_check += 1
        if self._since_check < CHECK_EVERY and (self.disagreement or 0.0) <= FOUND_BELOW:
            return self._box[None]
        self._since_check = 0
        return np.stack([self._box, _second_crop(self._box)])

    def _judged(self, frame: SourceFrame, boxes: Boxes, bodies: list[Body | None]) -> Person | None:
        """Return the person in `boxes` and let their box follow them; None if they are lost."""
        assert self._box is not None
        body = bodies[0] if len(boxes) == 1 else self._agreed(boxes, bodies)
        if body is None or (len(boxes) > 1 and (self.disagreement or 0.0) > LOST_ABOVE):
            return None
        box = body_box(body)
        if overlap(box, boxes[0])[0, 0] < LEAST_OVERLAP or not _usable(box, frame):
            return None
        self._box = FOLLOW * box + (1.0 - FOLLOW) * self._box
        return self._person(body, box)

    def _searched(self, frame: SourceFrame, estimate: Estimate) -> Person | None:
        """Go one round closer; return the person once the network agrees with itself and the box stays."""
        box = self._start(frame) if self._box is None else self._box
        self._rounds += 1
        body = self._asked(box, estimate) if _usable(box, frame) else None
        near = body_box(body) if body is not None else box
        if body is None or self._rounds > ROUNDS or not _usable(near, frame):
            self._search_again()
            return None
        self._box = near
        agrees = self.disagreement is not None and self.disagreement < FOUND_BELOW
        if not agrees or overlap(near, box)[0, 0] < 0.5:
            return None
        self._found, self._searches, self._since_check = True, 0, 0
        same = self._last is not None and frame.time_s - self._last[1] <= SAME_WITHIN_S
        if not (same and self._last is not None and overlap(near, self._last[0])[0, 0] > LEAST_OVERLAP):
            self._identity += 1
        return self._person(body, near)

    def _asked(self, box: Boxes, estimate: Estimate) -> Body | None:
        """Return the body in `box`, and note how far it lies from the one in a second crop."""
        self._since_check = 0
        boxes = np.stack([box, _second_crop(box)])
        return self._agreed(boxes, estimate(boxes))

    def _agreed(self, boxes: Boxes, bodies: list[Body | None]) -> Body | None:
        """Return the first of two bodies, and note how far the second one, of another crop, lies from it."""
        first, second = bodies
        if first is None or second is None:
            return None
        apart = np.linalg.norm(first.joints_px - second.joints_px, axis=1).mean()
        self.disagreement = float(apart / max(float(boxes[0, 2:].max()), 1.0))
        return first

    def _person(self, body: Body, box: Boxes) -> Person:
        value = LOST_ABOVE if self.disagreement is None else self.disagreement
        confidence = float(np.clip(1.0 - 0.5 * value / FOUND_BELOW, 0.05, 1.0))
        return Person(self._identity, body, confidence, box)

    def _search_again(self) -> None:
        self._box, self._found, self._rounds = None, False, 0
        self._searches += 1

    def _start(self, frame: SourceFrame) -> Boxes:
        """Return where a search begins: the whole frame, in later searches also squares along its longer side."""
        height, width = frame.image.shape[:2]
        side = float(min(height, width))
        across = width >= height
        room = (width if across else height) - side
        places = [None, 0.5, 0.0, 1.0]
        place = places[max(self._searches, 0) % len(places)]
        if place is None or room < 0.1 * side:
            return np.array([0.0, 0.0, width, height])
        return np.array([room * place if across else 0.0, 0.0 if across else room * place, side, side])


def _second_crop(box: Boxes) -> Boxes:
    side = float(box[2:].max())
    centre = box[:2] + box[2:] / 2 + SHIFT * side
    return np.concatenate([centre - box[2:] * GROWTH / 2, box[2:] * GROWTH])


def _usable(box: Boxes, frame: SourceFrame) -> bool:
    """Whether a person may be in `box`: large enough, and for a good part in the frame."""
    frame_hw = frame.image.shape[:2]
    if not LEAST_SIDE_PX <= box[2:].max() <= MOST_SIDE * max(frame_hw) or box[2:].min() < 1:
        return False
    return share_in_frame(box, frame_hw) >= LEAST_IN_FRAME and share_in_frame(_second_crop(box), frame_hw) > 0
