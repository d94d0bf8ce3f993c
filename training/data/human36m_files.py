"""Human3.6M's own files: poses (.cdf), cameras (metadata.xml), videos (.mp4), and the .npz that SPIN's scripts make.

What the files hold: `Pose` of a .cdf is 32 joints a frame, of which 17 move, in mm (`D3_Positions`: the room's frame,
one file for all cameras; `D3_Positions_mono`: one file a camera, in its frame: x right, y down, z away) or in px
(`D2_Positions`). `w0` of metadata.xml is 300 numbers: three angles and a position in mm for each of 4 cameras and 11
subjects, then focal length, centre, radial and tangential distortion of each camera.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import MissingExtraError, UserError

Floats = NDArray[np.float64]

JOINT_COUNT = 32
# Rows of the 32 joints that are h36m14's; among the 17 that move, METRO's 3,2,1,4,5,6,16,15,14,11,12,13,8,10.
H36M14_OF_32 = (3, 2, 1, 6, 7, 8, 27, 26, 25, 17, 18, 19, 13, 15)
# Rows of h36m14 among the 24 joints of SPIN's and GraphCMR's .npz files; the head is their "Head (H36M)".
H36M14_OF_24 = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 18)
SUBJECT_COUNT = 11
EXTRINSIC_VALUES, INTRINSIC_VALUES = 6, 9
_INHERITED: list[Any] = []  # handles of videos that a parent process opened
GRAB_LIMIT = 30  # decoding so many frames on is quicker than a seek, which starts at the last key frame


@dataclass(frozen=True)
class Camera:
    """One of the four cameras, as one subject saw it.

    Attributes:
        rotation: (3, 3), room to camera (x right, y down, z away).
        position_mm: (3,) of the camera in the room.
        focal_px, centre_px: (2,).
        radial: (3,) coefficients of r^2, r^4, r^6.
        tangential: (2,).
    """

    rotation: Floats
    position_mm: Floats
    focal_px: Floats
    centre_px: Floats
    radial: Floats
    tangential: Floats

    def from_room(self, points_mm: NDArray[np.floating]) -> Floats:
        """Return room coordinates (..., 3) in the camera's frame, in mm."""
        moved: Floats = (points_mm - self.position_mm) @ self.rotation.T
        return moved

    def project(self, points: NDArray[np.floating]) -> Floats:
        """Return px (..., 2) of points (..., 3) in the camera's frame, distorted as the picture is.

        This is the data set's own model, which gives its D2_Positions: the tangential terms lack the factor 2 of
        OpenCV's xy and x^2 terms (at most some tenths of a pixel).
        """
        flat = points[..., :2] / points[..., 2:]
        square = (flat**2).sum(-1, keepdims=True)
        radial = 1 + square * (self.radial[0] + square * (self.radial[1] + square * self.radial[2]))
        across = self.tangential[::-1]
        tangential = (flat * across).sum(-1, keepdims=True)
        bent = flat * (radial + tangential) + across * square
        px: Floats = bent * self.focal_px + self.centre_px
        return px


def read_cameras(path: str | os.PathLike[str]) -> dict[tuple[int, str], Camera]:
    """Read metadata.xml: (subject 1..11, camera name such as "60457274") -> Camera.

    Raises UserError when it is missing, not XML, or does not hold the numbers of every camera.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise UserError(f"no camera file at {path}: metadata.xml comes with Human3.6M's own software") from None
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"{path} cannot be read as metadata.xml: {error}") from None
    names = [(element.text or "").strip() for element in root.iterfind("dbcameras/index2id/*")]
    try:
        values = np.array((root.findtext("w0") or "").strip().strip("[]").split(), np.float64)
    except ValueError as error:
        raise UserError(f"{path}: w0 does not hold numbers: {error}") from None
    start = len(names) * SUBJECT_COUNT * EXTRINSIC_VALUES
    wanted = start + len(names) * INTRINSIC_VALUES
    if not names or len(values) != wanted or not np.isfinite(values).all():
        raise UserError(
            f"{path}: w0 must hold {wanted} finite numbers for the cameras {', '.join(names) or '(none)'} "
            f"of dbcameras/index2id, found {len(values)}"
        )
    outer = values[:start].reshape(len(names), SUBJECT_COUNT, EXTRINSIC_VALUES)
    inner = values[start:].reshape(len(names), INTRINSIC_VALUES)
    return {
        (subject + 1, name): Camera(_rotation(place[:3]), place[3:], *np.split(inner[c], (2, 4, 7)))
        for c, name in enumerate(names)
        for subject, place in enumerate(outer[c])
    }


def _rotation(angles: Floats) -> Floats:
    """Return Rx @ Ry @ Rz of three angles in radians."""
    product = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.zeros(3)
        turn[axis] = angle
        product = product @ cv2.Rodrigues(turn)[0]
    return product


def read_pose(path: str | os.PathLike[str], dimensions: int = 3) -> NDArray[np.float32]:
    """Read `Pose` of a .cdf: (frames, 32, dimensions) float32 in the file's unit (mm, or px for dimensions 2).

    Raises:
        UserError: the file is missing, cut short, or holds no such variable.
        MissingExtraError: cdflib is not installed.
    """
    try:
        import cdflib
    except ImportError:
        raise MissingExtraError("cdflib", "h36m", "read Human3.6M's .cdf files") from None
    if not Path(path).is_file():
        raise UserError(f"no pose file at {path}")
    try:
        values = np.asarray(cdflib.CDF(path).varget("Pose"), np.float32)
    except Exception as error:  # cdflib raises whatever its parsing meets in a damaged file
        raise UserError(f"{path} is not a readable .cdf with a variable Pose (cut short?): {error}") from None
    if values.size == 0 or values.shape[-1] != JOINT_COUNT * dimensions:
        raise UserError(
            f"{path}: Pose must have {JOINT_COUNT} x {dimensions} = {JOINT_COUNT * dimensions} numbers a frame, "
            f"its shape is {values.shape}"
        )
    return values.reshape(-1, JOINT_COUNT, dimensions)


class Video:
    """Frames of a video by number, exact in any order; opened on first use, again in every process.

    Attributes:
        path: of the file.
        count: frames that its header states.

    Raises UserError when it is missing or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._capture: Any = None
        self._process = 0
        self._next = 0
        self.count = int(self._open().get(cv2.CAP_PROP_FRAME_COUNT))
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_capture": None}

    def close(self) -> None:
        """Close the file; the next `frame` opens it again."""
        self._capture = None

    def frame(self, index: int) -> NDArray[np.uint8]:
        """Return frame `index` (H, W, 3) uint8 BGR; raises UserError when it cannot be decoded."""
        capture = self._capture
        if capture is not None and self._process != os.getpid():
            # A forked worker shares the file's position with its parent, so it may not use what it inherited; nor
            # close it, which waits for the parent's decoder threads.
            _INHERITED.append(capture)
            capture = None
        if capture is None:
            capture = self._open()
        if index < self._next or index - self._next > GRAB_LIMIT:
            capture.set(cv2.CAP_PROP_POS_FRAMES, index)
            if round(capture.get(cv2.CAP_PROP_POS_FRAMES)) != index:  # a stream without an index: count from its start
                capture = self._open()
            else:
                self._next = index
        while self._next < index and capture.grab():
            self._next += 1
        image = capture.read()[1] if self._next == index else None
        if image is None:
            self.close()
            raise UserError(f"{self.path}: frame {index} of {self.count} cannot be decoded")
        self._next = index + 1
        return np.asarray(image, np.uint8)

    def _open(self) -> Any:
        if not self.path.is_file():
            raise UserError(f"no video at {self.path}")
        # One decoder thread: workers of a DataLoader are the parallelism.
        capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not capture.isOpened():
            raise UserError(f"{self.path} is not a video that OpenCV can open (cut short?)")
        self._capture, self._process, self._next = capture, os.getpid(), 0
        return capture
