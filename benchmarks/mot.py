"""CLEAR MOT: how well people were followed, against known identities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from metro_edge.video.people import overlap

Frame = tuple[ArrayLike, ArrayLike]  # identities (N,), boxes (N, 4) x, y, width, height


@dataclass(frozen=True)
class MotScore:
    """Counts over a clip, after Bernardin and Stiefelhagen, "Evaluating Multiple Object Tracking Performance", 2008.

    Attributes:
        boxes: true ones.
        missed, extra: true boxes without, and given boxes that belong to nobody.
        switches: how often a person got another identity than before.
    """

    boxes: int
    missed: int
    extra: int
    switches: int

    @property
    def mota(self) -> float:
        """1 - (missed + extra + switches) / boxes."""
        return 1.0 - (self.missed + self.extra + self.switches) / max(self.boxes, 1)

    def __add__(self, other: MotScore) -> MotScore:
        pairs = zip(self._values(), other._values(), strict=True)
        return MotScore(*(a + b for a, b in pairs))

    def _values(self) -> tuple[int, int, int, int]:
        return self.boxes, self.missed, self.extra, self.switches


def clear_mot(truth: Sequence[Frame], found: Sequence[Frame], least_overlap: float = 0.5) -> MotScore:
    """Return the score of `found` frames against `truth`, in order.

    A pair of the frame before is kept while it overlaps by `least_overlap`; the others are paired for the largest sum
    of overlaps.
    """
    missed = extra = switches = boxes = 0
    last: dict[int, int] = {}
    for (true_ids, true_boxes), (ids, found_boxes) in zip(truth, found, strict=True):
        true, given = np.asarray(true_ids, int).ravel(), np.asarray(ids, int).ravel()
        pairs = _paired(true, given, overlap(np.asarray(true_boxes), np.asarray(found_boxes)), last, least_overlap)
        for row, column in pairs.items():
            who, number = int(true[row]), int(given[column])
            switches += last.get(who, number) != number
            last[who] = number
        boxes += len(true)
        missed += len(true) - len(pairs)
        extra += len(given) - len(pairs)
    return MotScore(boxes, missed, extra, int(switches))


def _paired(
    true: NDArray[np.int_], given: NDArray[np.int_], overlaps: NDArray[np.float64], last: dict[int, int], least: float
) -> dict[int, int]:
    """Return row -> column of the pairs."""
    pairs: dict[int, int] = {}
    for row, who in enumerate(true):
        for column in np.flatnonzero(given == last.get(int(who), -1)):
            if overlaps[row, column] >= least and int(column) not in pairs.values():
                pairs[row] = int(column)
    rows = [row for row in range(len(true)) if row not in pairs]
    columns = [column for column in range(len(given)) if column not in pairs.values()]
    if rows and columns:
        left = overlaps[np.ix_(rows, columns)]
        for a, b in zip(*linear_sum_assignment(np.where(left >= least, -left, 1e3)), strict=True):
            if left[a, b] >= least:
                pairs[rows[a]] = columns[b]
    return pairs
