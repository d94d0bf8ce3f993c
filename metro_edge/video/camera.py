"""The camera of a source: focal length from EXIF, and where the ground is."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metro_edge.body import Body

FULL_FRAME_DIAGONAL_MM = math.hypot(36.0, 24.0)
EXIF_POINTER, FOCAL_35MM = 0x8769, 0xA405  # tags of EXIF 2.32, tables 4 and 9
MAX_EXIF_BYTES = 1 << 17
UP, DOWN = np.array([0.0, -1.0, 0.0]), np.array([0.0, 1.0, 0.0])


def exif_focal_px(path: str | os.PathLike[str], frame_hw: tuple[int, int]) -> float | None:
    """Return the focal length in px that a JPEG's EXIF data give, None where they do not.

    Taken from FocalLengthIn35mmFilm, by the diagonal: f / 43.27 mm of the picture's diagonal. A picture that was cut
    after it was taken keeps the tag, and then it is wrong.
    """
    try:
        with open(Path(path), "rb") as file:
            data = file.read(MAX_EXIF_BYTES)
    except OSError:
        return None
    at = 2
    while data[:2] == b"\xff\xd8" and at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            millimetres = _focal_35mm(data[at + 10 : at + 2 + length])
            return None if not millimetres else millimetres * math.hypot(*frame_hw) / FULL_FRAME_DIAGONAL_MM
        at += 2 + length
    return None


def _focal_35mm(tiff: bytes) -> int | None:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        pointer = _tag(tiff, order, first, EXIF_POINTER)
        return None if pointer is None else _tag(tiff, order, pointer, FOCAL_35MM)
    except struct.error:  # damaged
        return None


def _tag(tiff: bytes, order: str, at: int, wanted: int) -> int | None:
    """Return the SHORT or LONG value of a tag of the directory at `at`."""
    (count,) = struct.unpack_from(f"{order}H", tiff, at)
    for number in range(count):
        entry = at + 2 + 12 * number
        tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
        if tag == wanted:
            value: int = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", tiff, entry + 8)[0]
            return value
    return None


class Ground:
    """The floor that people stand on, from their own bodies: a camera that looks down is turned level.

    Up is the mean direction from the feet to the neck of everyone seen so far, the floor the height where the lower
    ankles are. Both are as good as the bodies: someone who lies or leans pulls them along, and fewer than some
    seconds of people moving tell little. Poses over `max_lean_deg` from the camera's own up are left out.

    Attributes:
        seen: bodies that have been taken in.
    """

    def __init__(self, max_lean_deg: float = 60.0) -> None:
        self._least_cosine = math.cos(math.radians(max_lean_deg))
        self._sum = np.zeros(3)
        self._feet: list[NDArray[np.float64]] = []
        self.seen = 0

    def update(self, bodies: Sequence[Body]) -> None:
        """Take in the bodies of a frame; those without ankles and neck in their joint set are left out."""
        for body in bodies:
            names = body.joint_names
            if not {"left_ankle", "right_ankle", "neck"} <= set(names):
                continue
            placed = body.joints.astype(np.float64) + body.translation
            ankles = placed[[names.index("left_ankle"), names.index("right_ankle")]]
            up = placed[names.index("neck")] - ankles.mean(axis=0)
            length = float(np.linalg.norm(up))
            if length < 1e-6 or float(up @ UP) < self._least_cosine * length:
                continue
            self._sum += up / length
            self._feet.append(ankles)
            del self._feet[:-500]  # flat memory
            self.seen += 1

    @property
    def up(self) -> NDArray[np.float64]:
        """Unit vector (3,) in the camera frame that points up; the camera's own up before anyone was seen."""
        length = float(np.linalg.norm(self._sum))
        return UP.copy() if length < 1e-9 else self._sum / length

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(4, 4) from the camera frame to the ground's: metres, x right, y up, z towards the camera, floor at 0."""
        y = self.up
        z = np.array([0.0, 0.0, -1.0])
        z = z - y * (z @ y)
        z /= max(float(np.linalg.norm(z)), 1e-9)
        matrix = np.eye(4)
        matrix[:3, :3] = np.stack((np.cross(y, z), y, z))
        if self._feet:
            # The lower ankle stands on the floor, its joint some centimetres above; the median bears outliers.
            heights = np.array([(feet @ y).min() for feet in self._feet])
            matrix[1, 3] = -float(np.median(heights))
        return matrix

    def apply(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return points (..., 3) of the camera frame in the ground's frame."""
        matrix = self.matrix
        turned: NDArray[np.float64] = np.asarray(points, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
        return turned
