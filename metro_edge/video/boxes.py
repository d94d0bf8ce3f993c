"""Boxes from files: MOT Challenge text and COCO JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError

PERSON = 1  # MOT's class of pedestrians, and COCO's category of persons


@dataclass(frozen=True, eq=False)
class FrameBoxes:
    """Boxes of a frame: `boxes` (N, 4) float64 x, y, width, height px; `identities` (N,); `scores` (N,) 0 to 1."""

    boxes: NDArray[np.float64]
    identities: NDArray[np.int64]
    scores: NDArray[np.float64]


class BoxTable:
    """Boxes by frame.

    Attributes:
        has_identities: whether the numbers say who is who over time; else they only count the boxes of a frame.
    """

    def __init__(self, rows: Iterable[tuple[int, int | None, NDArray[np.float64], float]]) -> None:
        """Take (frame from 0, identity or None, box (4,), score) in any order."""
        by_frame: dict[int, list[tuple[int | None, NDArray[np.float64], float]]] = {}
        for frame, identity, box, score in rows:
            by_frame.setdefault(frame, []).append((identity, box, score))
        self.has_identities = all(one[0] is not None for ones in by_frame.values() for one in ones)
        self._frames = {}
        for frame, ones in by_frame.items():
            ids = [one[0] if self.has_identities else number for number, one in enumerate(ones, 1)]
            if len(set(ids)) != len(ids):
                raise UserError(f"frame {frame} has an identity twice: {sorted(i for i in ids if i is not None)}")
            self._frames[frame] = FrameBoxes(
                np.array([one[1] for one in ones]), np.array(ids, np.int64), np.array([one[2] for one in ones])
            )

    def of_frame(self, index: int) -> FrameBoxes:
        """Return the boxes of frame `index`, counted from 0."""
        return self._frames.get(index, FrameBoxes(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0)))

    @property
    def frames(self) -> list[int]:
        """Frames with boxes, in order."""
        return sorted(self._frames)


def read_boxes(path: str | os.PathLike[str]) -> BoxTable:
    """Read a table of boxes by its suffix: `.txt` or `.csv` as MOT, `.json` as COCO.

    MOT: frame from 1, identity (-1: unknown), x from 1, y from 1, width, height [, score [, class [, visible]]]; rows
    of score 0 in a ground truth and of classes other than 1 are left out. COCO: `images` and `annotations` of category
    1; the frame is the image's `frame_id` if it has one (from 0), else its place in the order of the file names; the
    identity is `track_id` or `instance_id` if there. A list of COCO results (`image_id`, `bbox`, `score`) takes
    `image_id` as the frame, from 0.

    Raises:
        UserError: the file is missing, or not of either form.
    """
    name = Path(path)
    try:
        text = name.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no boxes at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read boxes {path}: {error}") from None
    if name.suffix.lower() == ".json":
        return _from_coco(text, str(path))
    if name.suffix.lower() in (".txt", ".csv"):
        return _from_mot(text, str(path))
    raise UserError(f"boxes come as MOT (.txt, .csv) or COCO (.json), got {name.name}")


def _from_mot(text: str, name: str) -> BoxTable:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = [float(part) for part in line.split(",")]
            frame, identity, x, y, width, height = values[:6]
        except ValueError:
            wanted = "frame,id,x,y,width,height[,...]"
            raise UserError(f"{name}, line {number}: expected {wanted}, got {line[:60]!r}") from None
        score = values[6] if len(values) > 6 else 1.0
        if score == 0 or (len(values) > 7 and values[7] not in (PERSON, -1)):
            continue
        if frame < 1 or frame != int(frame):
            raise UserError(f"{name}, line {number}: MOT counts frames from 1, got {frame:g}")
        box = _checked_box((x - 1, y - 1, width, height), f"{name}, line {number}")
        rows.append((int(frame) - 1, int(identity) if identity >= 0 else None, box, min(max(score, 0.0), 1.0)))
    return _table(rows, name)


def _from_coco(text: str, name: str) -> BoxTable:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UserError(f"{name} is not JSON: {error}") from None
    try:
        frames: dict[Any, int] = {}
        if isinstance(data, dict):
            images = sorted(data["images"], key=lambda image: str(image.get("file_name", image["id"])))
            frames = {image["id"]: int(image.get("frame_id", place)) for place, image in enumerate(images)}
            data = data["annotations"]
        rows = []
        for one in data:
            if one.get("category_id", PERSON) != PERSON:
                continue
            identity = one.get("track_id", one.get("instance_id"))
            frame = frames[one["image_id"]] if frames else int(one["image_id"])
            box = _checked_box(one["bbox"], f"{name}, image {one['image_id']}")
            rows.append((frame, None if identity is None else int(identity), box, float(one.get("score", 1.0))))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name} is not COCO: it lacks {error}") from None
    return _table(rows, name)


def _checked_box(values: Any, where: str) -> NDArray[np.float64]:
    box = np.asarray(values, np.float64)
    if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] <= 0).any():
        raise UserError(f"{where}: a box is x, y, width, height in px, got {values}")
    return box


def _table(rows: list[tuple[int, int | None, NDArray[np.float64], float]], name: str) -> BoxTable:
    if not rows:
        raise UserError(f"{name} has no box of a person")
    try:
        return BoxTable(rows)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
