"""FreiHAND's own evaluation folder, and the submission file of its official evaluation.

    FOLDER/evaluation/rgb/00000000.jpg ... 00003959.jpg
    FOLDER/evaluation_xyz.json, evaluation_verts.json       lists of (21, 3) and (778, 3) metres, if published

Formats: lmb-freiburg/freihand, pred.py and eval.py. Pictures are 224 x 224 px with the hand in the middle; METRO crops
180 px about (112, 112), the `center` and `scale` 0.9 of its own labels.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.files import replacing
from metro_edge.preprocess import read_picture
from metro_edge.spec import ModelSpec
from training.data.labelled import BadSampleError, LabelledPicture, LabelledSet

COUNT = 3_960
CENTRE_PX, SIDE_PX = (111.5, 111.5), 180.0  # from pixel centres: METRO's (112, 112) counts from the corner
PREDICTION_FILE = "pred.json"
DECIMALS = 6  # a micrometre: keeps the file a third as long


def is_freihand_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a path holds FreiHAND's evaluation pictures."""
    return (Path(path) / "evaluation" / "rgb").is_dir()


class FreiHand(LabelledSet):
    """FreiHAND's evaluation pictures in order, with true joints and meshes where both JSON files are there.

    Args:
        folder: see the module's text.
        spec: of a hand network.

    Raises:
        UserError: no pictures, a gap in their numbers, only one of the JSON files, or lists of another length.
    """

    def __init__(self, folder: str | os.PathLike[str], spec: ModelSpec) -> None:
        self.folder = Path(folder)
        self.files = sorted((self.folder / "evaluation" / "rgb").glob("*.jpg"))
        if not self.files:
            raise UserError(f"{folder} has no pictures evaluation/rgb/*.jpg: it is not FreiHAND's evaluation folder")
        for number, file in enumerate(self.files):
            if file.name != f"{number:08d}.jpg":
                raise UserError(f"{file.parent} lacks the picture {number:08d}.jpg: the next one is {file.name}")
        super().__init__(len(self.files), spec)
        labels = [self.folder / f"evaluation_{name}.json" for name in ("xyz", "verts")]
        if labels[0].is_file() != labels[1].is_file():
            raise UserError(f"{folder} has one of {labels[0].name} and {labels[1].name}: scores need both, or neither")
        self.labelled = labels[0].is_file()
        self._joints: NDArray[np.float32] | None = None
        self._vertices: NDArray[np.float32] | None = None
        if self.labelled:
            self._joints = _read_labels(labels[0], len(self), 21)
            self._vertices = _read_labels(labels[1], len(self), spec.vertex_count)

    def picture(self, index: int) -> LabelledPicture:
        """Return a sample; raises BadSampleError for a picture that does not decode."""
        key = f"{self.files[index]}:{index}"
        try:
            image = read_picture(self.files[index])
        except UserError as error:
            raise BadSampleError(f"{key}: {error}") from None
        joints = vertices = None
        if self._joints is not None and self._vertices is not None:
            wrist = self._joints[index, :1]
            joints = np.hstack((self._joints[index] - wrist, np.ones((21, 1), np.float32)))
            vertices = self._vertices[index] - wrist
        return LabelledPicture(key, image, np.array(CENTRE_PX), SIDE_PX, joints=joints, vertices=vertices)


def _read_labels(path: Path, count: int, rows: int) -> NDArray[np.float32]:
    try:
        values = np.asarray(json.loads(path.read_text(encoding="utf-8")), np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a readable list of points: {error}") from None
    if values.shape != (count, rows, 3) or not np.isfinite(values).all():
        raise UserError(f"{path} must hold {count} finite lists of {rows} points, one a picture; it has {values.shape}")
    return values


def write_submission(
    path: str | os.PathLike[str], joints: NDArray[np.floating], vertices: NDArray[np.floating], count: int = COUNT
) -> Path:
    """Write the .zip that FreiHAND's official evaluation takes: pred.json with [joints, vertices] in image order.

    Args:
        path: of the .zip.
        joints: (N, 21, 3) metres.
        vertices: (N, 778, 3) metres.
        count: N as the official evaluation wants it.

    Raises:
        UserError: another number of samples, other shapes, values that are not finite, or an unwritable path.
    """
    for name, values, rows in (("joints", joints, 21), ("vertices", vertices, 778)):
        if values.shape != (count, rows, 3):
            raise UserError(f"FreiHAND's evaluation wants {name} of shape {(count, rows, 3)}, got {values.shape}")
        if not np.isfinite(values).all():
            raise UserError(f"the predicted {name} hold values that are not finite")
    text = json.dumps([_plain(joints), _plain(vertices)])
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(PREDICTION_FILE, text)
    return Path(path)


def _plain(points: NDArray[np.floating]) -> Sequence[Any]:
    plain: Sequence[Any] = np.asarray(points, np.float64).round(DECIMALS).tolist()
    return plain
