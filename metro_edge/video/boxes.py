"""Boxes from files: MOT Challenge text and COCO JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.video.sources import number_order

PERSON = 1  # MOT's class of pedestrians, and COCO's category of persons
Row = tuple[int, "int | None", NDArray[np.float64], float]  # frame, identity, box (4,), score
MOST = 2**53  # of frames and identities: floats count no further


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
        count: of all boxes.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        pictures: Mapping[str, int] | None = None,
    ) -> None:
        """Take (frame from 0, identity or None, box (4,), score) in any order, and the frames of pictures by name."""
        self._pictures = dict(pictures or {})
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

        self.count = sum(len(one.boxes) for one in self._frames.values())

    def of_frame(self, index: int, picture: str | None = None) -> FrameBoxes:
        """Return the boxes of frame `index`, counted from 0; of a picture by its file name, if the table has names."""
        if picture is not None and self._pictures:
            index = self._pictures.get(picture, -1)
        return self._frames.get(index, FrameBoxes(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0)))

    @property
    def frames(self) -> list[int]:
        """Frames with boxes, in order."""
        return sorted(self._frames)


def read_boxes(path: str | os.PathLike[str]) -> BoxTable:
    """Read a table of boxes by its suffix: `.txt` or `.csv` as MOT, `.json` as COCO.

    MOT: frame from 1, identity (-1: unknown), x from 1, y from 1, width, height [, score [, class [, visible]]]; rows
    of score 0 in a ground truth and of classes other than 1 are left out.

    COCO: `images` and `annotations` of category 1. Pictures find theirs by `file_name`, without its folders. In a video
    the frame is the image's `frame_id` if it has one (from 0), else its place in the order of the file names, frame10
    after frame9. The identity is `track_id` or `instance_id` if there. A list of COCO results (`image_id`, `bbox`,
    `score`) takes `image_id` as the frame, from 0.

    Raises:
        UserError: the file is missing, or not of either form.
    """
    name = Path(path)
    try:
        text = name.read_text(encoding="utf-8-sig")
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
        where = f"{name}, line {number}"
        try:
            values = [float(part) for part in line.split(",")]
            frame, identity, x, y, width, height = values[:6]
        except ValueError:
            wanted = "frame,id,x,y,width,height[,...]"
            raise UserError(f"{where}: expected {wanted}, got {line[:60]!r}") from None
        score = values[6] if len(values) > 6 else 1.0
        if score == 0 or (len(values) > 7 and values[7] not in (PERSON, -1)):
            continue
        if not 1 <= frame < MOST or frame != int(frame):
            raise UserError(f"{where}: MOT counts frames from 1, got {frame:g}")
        if not -MOST < identity < MOST:
            raise UserError(f"{where}: an identity is a number, -1 if unknown, got {identity:g}")
        box = _checked_box((x - 1, y - 1, width, height), where)
        rows.append((int(frame) - 1, int(identity) if identity >= 0 else None, box, _checked_score(score, where)))
    return _table(rows, {}, name)


def _from_coco(text: str, name: str) -> BoxTable:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON: {error}") from None
    frames: dict[Any, int] = {}
    pictures: dict[str, int] = {}
    try:
        if isinstance(data, dict):
            images = sorted(data["images"], key=lambda image: number_order(str(image.get("file_name", image["id"]))))
            frames = {image["id"]: _whole(image.get("frame_id", place)) for place, image in enumerate(images)}
            named = [
                (Path(str(image["file_name"])).name, frames[image["id"]]) for image in images if "file_name" in image
            ]
            # Pictures of the same name in several folders cannot be told apart: their place counts.
            pictures = dict(named) if len(dict(named)) == len(named) else {}
            data = data["annotations"]
        rows = [row for number, one in enumerate(data) if (row := _coco_row(one, frames, f"{name}, box {number}"))]
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{name} is not COCO: it lacks {error}") from None
    except (TypeError, AttributeError, ValueError, OverflowError):
        wanted = "an object with `images` and `annotations`, or a list of results, each with `image_id` and `bbox`"
        raise UserError(f"{name} is not COCO: expected {wanted}") from None
    return _table(rows, pictures, name)


def _coco_row(one: Any, frames: dict[Any, int], where: str) -> Row | None:
    """Return a row of the table from an annotation or a result, None of another category; raises as its values do."""
    if one.get("category_id", PERSON) != PERSON:
        return None
    image, identity = one["image_id"], one.get("track_id", one.get("instance_id"))
    if frames and image not in frames:
        raise UserError(f"{where}: `images` has no image of the id {image!r}")
    try:
        frame = frames[image] if frames else _whole(image)
        number = None if identity is None else _whole(identity)
        score = float(one.get("score", 1.0))
    except (TypeError, ValueError, OverflowError):
        told = {key: one[key] for key in ("image_id", "track_id", "instance_id", "score") if key in one}
        raise UserError(f"{where}: expected numbers, got {str(told)[:120]}") from None
    return frame, number, _checked_box(one["bbox"], where), _checked_score(score, where)


def _whole(value: Any) -> int:
    """Return a whole number below MOST; raises ValueError, TypeError or OverflowError."""
    number = int(value)
    if number != float(value) or not -MOST < number < MOST:
        raise ValueError(value)
    return number


def _checked_score(score: float, where: str) -> float:
    """Return a score, those of detectors that go beyond as 0 or 1."""
    if not np.isfinite(score):
        raise UserError(f"{where}: a score is a number from 0 to 1, got {score}")
    return min(max(score, 0.0), 1.0)


def _checked_box(values: Any, where: str) -> NDArray[np.float64]:
    try:
        box = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        box = np.zeros(0)
    if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] <= 0).any():
        raise UserError(f"{where}: a box is x, y, width, height in px, got {str(values)[:80]}")
    return box


def _table(rows: list[Row], pictures: dict[str, int], name: str) -> BoxTable:
    if not rows:
        raise UserError(f"{name} has no box of a person")
    try:
        return BoxTable(rows, pictures)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
