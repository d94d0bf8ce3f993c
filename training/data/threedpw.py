"""3DPW from its own files: sequenceFiles/{train,validation,test}/*.pkl and imageFiles/SEQUENCE/image_00000.jpg."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from metro_edge.errors import UserError
from metro_edge.preprocess import read_picture
from metro_edge.smpl.model import SkinnedBody
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from training.data.augment import flip_pose
from training.data.labelled import LabelledPicture, centred_joints, centred_vertices
from training.data.rows import AnnotatedSet, BadRows, check_joint_set, joints_box, sample_picture, with_confidence
from training.data.threedpw_files import Person, Sequence, read_sequence

SPLITS = ("train", "validation", "test")
GROUND_TRUTHS = ("neutral", "gendered")
# Side of the crop square over the longer extent of the points: METRO's box of the SMPL joints grew by 1.2 twice, once
# in Pose2Mesh's conversion of 3DPW and once in METRO's; SPIN's box of the OpenPose detections grew once.
BOX_FACTORS = {"joints": 1.44, "detections": 1.2}


class _Row(NamedTuple):
    sequence: int
    person: int
    frame: int
    centre_px: NDArray[np.float64]
    side_px: float


class ThreeDPW(AnnotatedSet):
    """3DPW as distributed: one row for each person in each frame whose camera pose is valid.

    Vertices are SMPL's, of the file's pose, shape and translation, moved into the camera's frame by `cam_poses` as a
    whole, so that the body's own root offset needs no care; joints are regressed from them by the template and
    projected by `cam_intrinsics`. Items: see
    training.data.labelled.make_item. Flipped meshes are the skinned mirrored pose, as METRO flips.

    Args:
        folder: with sequenceFiles and imageFiles.
        spec: of the network; its joint set must be h36m14.
        template: of the network's body, with the regressor.
        bodies: "neutral" or "male" and "female" -> the SMPL body of that name, as `ground_truth` needs.
        split: "train", "validation" or "test", the data set's own.
        ground_truth: "neutral" skins everybody with the neutral body, as METRO does; "gendered" with the body of the
            person's gender, as 3DPW was made. The two give different numbers.
        box: "joints" for the square around the SMPL joints in the picture (METRO), "detections" for that around the
            OpenPose joints (SPIN).
        box_factor: side of the square over their longer extent, None for that of METRO or SPIN.
        stride: every `stride`-th frame of each sequence, from the first.
        skip_bad: leave out bad rows and files, counted in `skipped`, instead of stopping at the first.
        **options: of LabelledSet (train, seed, augmentation).

    Attributes:
        left_out: rows that the protocol leaves out: camera pose not valid; no joint in the picture.

    Raises:
        UserError: a missing folder, picture, key or gender; an unreadable file; label arrays of different lengths; NaN
            labels; empty boxes; bodies that are not there or of another mesh. The message names file, person, frame.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        spec: ModelSpec,
        template: BodyTemplate,
        bodies: Mapping[str, SkinnedBody],
        *,
        split: str = "test",
        ground_truth: str = "neutral",
        box: str = "joints",
        box_factor: float | None = None,
        stride: int = 1,
        skip_bad: bool = False,
        **options: Any,
    ) -> None:
        check_joint_set(spec, "3DPW")
        for name, value, known in (
            ("split", split, SPLITS),
            ("ground truth", ground_truth, GROUND_TRUTHS),
            ("box", box, tuple(BOX_FACTORS)),
        ):
            if value not in known:
                raise UserError(f"3DPW has no {name} {value!r}; known: {', '.join(known)}")
        factor = BOX_FACTORS[box] if box_factor is None else box_factor
        if stride < 1 or not factor > 0:
            raise UserError(f"stride must be 1 or more and box_factor positive, got {stride} and {factor}")
        needed = ("neutral",) if ground_truth == "neutral" else ("male", "female")
        if missing := [name for name in needed if name not in bodies]:
            raise UserError(f"{ground_truth} ground truth of 3DPW needs the SMPL body {' and '.join(missing)}")
        self.folder, self.ground_truth, self.template = Path(folder), ground_truth, template
        self._bodies = {name: bodies[name] for name in needed}
        for name, body in self._bodies.items():
            if len(body.file.v_template) != len(template.vertices):
                raise UserError(
                    f"the {name} SMPL body has {len(body.file.v_template)} vertices, the network's body "
                    f"{template.name!r} has {len(template.vertices)}"
                )
        self._box, self._factor, self._stride = box, factor, stride
        self._unusable = BadRows(skip_bad)
        self.left_out: dict[str, int] = {"camera pose not valid": 0, "no joint in the picture": 0}
        self._sequences: list[Sequence] = []
        self._rows: list[_Row] = []
        files = self._files(split)
        for path in tqdm(files, desc=f"3DPW {split}", leave=False):
            self._add(path)
        if not self._rows:
            raise UserError(f"{folder} holds no usable row of 3DPW {split}{self._unusable.summary()}")
        super().__init__(self._unusable, len(self._rows), spec, **options)

    def picture(self, index: int) -> LabelledPicture:
        """Return the labelled picture of row `index`; raises BadSampleError for a picture that does not decode."""
        row = self._rows[index]
        sequence = self._sequences[row.sequence]
        person = sequence.people[row.person]
        key = f"{sequence.path.name}:person {row.person} frame {row.frame}"
        room = self._skin(person, person.poses[row.frame]) + person.translations[row.frame]
        vertices = sequence.to_camera(row.frame, room)
        joints = self.template.joints(self.spec.joint_set, vertices)

        def mirrored() -> NDArray[np.float32]:
            pose = person.poses[row.frame].copy()
            turned = sequence.rotations[row.frame] @ cv2.Rodrigues(pose[:3])[0]
            pose[:3] = cv2.Rodrigues(turned)[0][:, 0]
            return centred_vertices(self._skin(person, flip_pose(pose)), self.template, self.spec.joint_set)

        return LabelledPicture(
            key=key,
            image=sample_picture(key, self._picture_path(sequence, row.frame)),
            centre_px=row.centre_px,
            side_px=row.side_px,
            joints_2d=with_confidence(sequence.project(joints)),
            joints=centred_joints(with_confidence(joints), self.spec.joint_set),
            vertices=centred_vertices(vertices, self.template, self.spec.joint_set),
            flipped_vertices=mirrored,
        )

    def _skin(self, person: Person, pose: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the mesh (V, 3) of `pose` (72,) in the pose's frame, not yet translated; metres."""
        body = self._bodies["neutral" if self.ground_truth == "neutral" else person.gender]
        return body.vertices(pose[None], person.betas[None])[0].astype(np.float64)

    def _files(self, split: str) -> list[Path]:
        folder = self.folder / "sequenceFiles" / split
        files = sorted(folder.glob("*.pkl"))
        if not files:
            raise UserError(f"no .pkl files in {folder}: 3DPW unpacks into sequenceFiles and imageFiles")
        return files

    def _add(self, path: Path) -> None:
        try:
            sequence = read_sequence(path)
            self._check_keys(sequence)
            there = self._listing(sequence)
            width_height = self._size(sequence, there)
        except UserError as error:
            self._unusable.report(str(error))
            return
        self._sequences.append(sequence)
        for number in range(len(sequence.people)):
            self._add_person(sequence, number, there, width_height)

    def _add_person(self, sequence: Sequence, number: int, there: set[str], width_height: NDArray[np.int64]) -> None:
        person = sequence.people[number]
        frames = np.arange(0, sequence.frame_count, self._stride)
        valid = person.camera_valid[frames]
        self.left_out["camera pose not valid"] += int((~valid).sum())
        frames = frames[valid]
        pixels, inside = self._box_points(sequence, person, frames, width_height)
        centres, sides = joints_box(pixels, self._factor, inside)
        centres = centres - 0.5  # METRO and SPIN take the box's middle for a distance from the picture's corner
        finite = _finite(sequence, person, frames)
        seen = inside.any(1) if self._box == "joints" else np.ones(len(frames), bool)
        good = self._unusable.filter(
            sequence.path,
            f"person {number}, frame",
            frames,
            (
                *((mask, f"{key} holds NaN or infinity") for key, mask in finite.items()),
                (
                    np.array([_file_name(f) in there for f in frames.tolist()], np.bool_),
                    f"no picture in {self._home(sequence)}",
                ),
                (~seen | (sides >= 1), f"the box of the {self._box} is empty"),
            ),
        )
        self.left_out["no joint in the picture"] += int((good & ~seen).sum())
        index = len(self._sequences) - 1
        self._rows += [
            _Row(index, number, int(frames[i]), centres[i], float(sides[i])) for i in np.flatnonzero(good & seen)
        ]

    def _box_points(
        self, sequence: Sequence, person: Person, frames: NDArray[np.int64], width_height: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the points (F, P, 2) px that make the box, and which of them (F, P) count."""
        if person.detections is not None and self._box == "detections":
            found = person.detections[frames]
            return found[..., :2], found[..., 2] > 0
        points = np.einsum("fij,fpj->fpi", sequence.rotations[frames], person.joints[frames])
        points += sequence.translations[frames][:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = sequence.project(points)
        return pixels, (points[..., 2] > 0) & ((pixels >= 0) & (pixels < width_height)).all(-1)

    def _check_keys(self, sequence: Sequence) -> None:
        for number, person in enumerate(sequence.people):
            if self._box == "detections" and person.detections is None:
                raise UserError(f"{sequence.path} has no key 'poses2d', of which the box should be made")
            if self.ground_truth == "gendered" and not person.gender:
                raise UserError(
                    f"{sequence.path}: genders has no entry for person {number}, which gendered ground truth needs"
                )

    def _home(self, sequence: Sequence) -> Path:
        return self.folder / "imageFiles" / sequence.name

    def _picture_path(self, sequence: Sequence, frame: int) -> Path:
        return self._home(sequence) / _file_name(frame)

    def _listing(self, sequence: Sequence) -> set[str]:
        home = self._home(sequence)
        if not home.is_dir():
            raise UserError(f"no picture folder {home} for {sequence.path}")
        return {entry.name for entry in os.scandir(home)}

    def _size(self, sequence: Sequence, there: set[str]) -> NDArray[np.int64]:
        """Return (width, height) px of the sequence's pictures, from the first that is there."""
        for frame in range(sequence.frame_count):
            if _file_name(frame) in there:
                return np.array(read_picture(self._picture_path(sequence, frame)).shape[1::-1])
        raise UserError(f"no picture image_00000.jpg ... in {self._home(sequence)}")


def _finite(sequence: Sequence, person: Person, frames: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Return per key (F,) whether its numbers are finite."""
    count = len(frames)
    arrays = {
        "poses": person.poses[frames],
        "trans": person.translations[frames],
        "jointPositions": person.joints[frames],
        "cam_poses": np.concatenate((sequence.rotations[frames].reshape(count, 9), sequence.translations[frames]), 1),
        "betas": np.broadcast_to(person.betas, (count, len(person.betas))),
    }
    return {key: np.asarray(np.isfinite(array).reshape(count, -1).all(1)) for key, array in arrays.items()}


def _file_name(frame: int) -> str:
    return f"image_{frame:05d}.jpg"
