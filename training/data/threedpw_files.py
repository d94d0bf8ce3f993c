"""3DPW's own files: one Python 2 pickle a sequence with SMPL poses, cameras and detections.

Keys that are read, P people and F frames of video: `sequence` name; `poses` P x (F, 72), `betas` P x (10 or more,),
`trans` P x (F, 3) metres in the room, `jointPositions` P x (F, 72), `campose_valid` P x (F,), `genders` P x "m" or "f",
`poses2d` P x (F, 3, 18) OpenPose detections, `cam_poses` (F, 4, 4) room to camera, `cam_intrinsics` (3, 3).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.unpickle import load

Floats = NDArray[np.float64]

SMPL_JOINTS, SHAPE_VALUES, OPENPOSE_JOINTS = 24, 10, 18
GENDERS = {"m": "male", "f": "female", "male": "male", "female": "female"}


@dataclass(frozen=True)
class Person:
    """One person of a sequence, with a row per frame of video.

    Attributes:
        poses: (F, 72) axis-angle, the first three turn the body in the room.
        betas: (10,) of the body of `gender`.
        translations: (F, 3) metres, added to the skinned body, in the room.
        joints: (F, 24, 3) SMPL joints in the room, metres.
        detections: (F, 18, 3) px, px and confidence of OpenPose, all 0 where nothing was found; None when absent.
        camera_valid: (F,) bool, the camera's pose was aligned with the picture.
        gender: "male", "female", or "" where the file names none.
    """

    poses: Floats
    betas: Floats
    translations: Floats
    joints: Floats
    detections: Floats | None
    camera_valid: NDArray[np.bool_]
    gender: str


@dataclass(frozen=True)
class Sequence:
    """A sequence: its people and the moving camera.

    Attributes:
        path: of the file it was read from.
        name: of the folder of its pictures.
        rotations, translations: (F, 3, 3) and (F, 3) metres, room to camera (x right, y down, z away).
        intrinsics: (3, 3).
        people: in the file's order.
    """

    path: Path
    name: str
    rotations: Floats
    translations: Floats
    intrinsics: Floats
    people: tuple[Person, ...]

    @property
    def frame_count(self) -> int:
        """F, frames of video that have labels."""
        return len(self.rotations)

    def to_camera(self, frame: int, points: NDArray[np.floating]) -> Floats:
        """Return room coordinates (..., 3) in the camera's frame of video frame `frame`, metres."""
        moved: Floats = points @ self.rotations[frame].T + self.translations[frame]
        return moved

    def project(self, points: NDArray[np.floating]) -> Floats:
        """Return px (..., 2) of points (..., 3) in the camera's frame."""
        seen = points @ self.intrinsics.T
        px: Floats = seen[..., :2] / seen[..., 2:]
        return px


def read_sequence(path: str | os.PathLike[str]) -> Sequence:
    """Read a file of sequenceFiles/ by the restricted unpickler.

    Raises UserError naming file, key, person and what is wrong: an unreadable file, a key that is missing, arrays
    whose lengths differ from the number of frames, an unknown gender, numbers that are no camera. NaN in labels is
    left for the caller, who knows which rows matter.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no sequence file at {path}")
    data = load(path)
    if not isinstance(data, Mapping):
        raise UserError(f"{path} holds a {type(data).__name__}, expected 3DPW's dictionary")
    cameras = _array(path, data, "cam_poses", (None, 4, 4))
    frames = len(cameras)
    intrinsics = _array(path, data, "cam_intrinsics", (3, 3))
    if not np.isfinite(intrinsics).all() or intrinsics[0, 0] <= 0 or intrinsics[1, 1] <= 0:
        raise UserError(f"{path}: cam_intrinsics must hold positive focal lengths, got {intrinsics.tolist()}")
    count = len(_people(path, data, "poses"))
    return Sequence(
        path=path,
        name=str(_value(path, data, "sequence")),
        rotations=cameras[:, :3, :3],
        translations=cameras[:, :3, 3],
        intrinsics=intrinsics,
        people=tuple(_person(path, data, i, count, frames) for i in range(count)),
    )


def _person(path: Path, data: Mapping[str, Any], index: int, count: int, frames: int) -> Person:
    def rows(key: str, shape: tuple[int, ...]) -> Floats:
        return _array(path, {key: _people(path, data, key, count)[index]}, key, (frames, *shape), f", person {index}")

    betas = np.asarray(_people(path, data, "betas", count)[index], np.float64).reshape(-1)
    if len(betas) < SHAPE_VALUES:
        raise UserError(f"{path}: betas, person {index} must have {SHAPE_VALUES} numbers or more, got {len(betas)}")
    detections = None
    if "poses2d" in data:
        detections = rows("poses2d", (3, OPENPOSE_JOINTS)).transpose(0, 2, 1)
    return Person(
        poses=rows("poses", (SMPL_JOINTS * 3,)),
        betas=betas[:SHAPE_VALUES],
        translations=rows("trans", (3,)),
        joints=rows("jointPositions", (SMPL_JOINTS * 3,)).reshape(frames, SMPL_JOINTS, 3),
        detections=detections,
        camera_valid=rows("campose_valid", ()).astype(bool),
        gender=_gender(path, data, index),
    )


def _gender(path: Path, data: Mapping[str, Any], index: int) -> str:
    """Return the person's gender; only an evaluation with gendered bodies needs one, so it may be missing."""
    genders = data.get("genders", ())
    text = str(genders[index]).strip().lower() if index < len(genders) and genders[index] is not None else ""
    if text and text not in GENDERS:
        raise UserError(f"{path}: genders, person {index} is {genders[index]!r}, expected 'm' or 'f'")
    return GENDERS.get(text, "")


def _value(path: Path, data: Mapping[str, Any], key: str) -> Any:
    if key not in data:
        raise UserError(f"{path} has no key {key!r}; it has {', '.join(map(str, data)) or 'none'}")
    return data[key]


def _people(path: Path, data: Mapping[str, Any], key: str, count: int | None = None) -> Any:
    """Return the list of `key`, one entry a person."""
    values = _value(path, data, key)
    if not isinstance(values, (list, tuple, np.ndarray)) or len(values) != (len(values) if count is None else count):
        raise UserError(f"{path}: {key} must be a list of {count or 'one entry a person'}, got {_describe(values)}")
    return values


def _array(path: Path, data: Mapping[str, Any], key: str, shape: tuple[int | None, ...], where: str = "") -> Floats:
    value = _value(path, data, key)
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{path}: {key}{where} does not hold numbers") from None
    wanted = tuple(n if size is None else size for n, size in zip(array.shape, shape, strict=False))
    if array.ndim != len(shape) or array.shape != wanted:
        text = " x ".join("frames" if size is None else str(size) for size in shape) or "one number"
        raise UserError(f"{path}: {key}{where} must be {text}, got {' x '.join(map(str, array.shape)) or 'one number'}")
    return array


def _describe(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__
