"""Human3.6M from its own files: videos, poses and cameras as distributed, or the .npz of SPIN's and GraphCMR's scripts.

Protocol 2 as HMR, SPIN and METRO use it: subjects 9 and 11, every 5th frame of camera 60457274, 27,558 pictures.
The labels are 14 joints of the motion capture; there are no meshes, so MPVPE is undefined here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from metro_edge.errors import UserError
from metro_edge.spec import ModelSpec
from training.data.human36m_files import H36M14_OF_24, H36M14_OF_32, Camera, Video, read_cameras, read_pose
from training.data.labelled import LabelledPicture, centred_joints
from training.data.rows import (
    AnnotatedSet,
    BadRows,
    check_joint_set,
    joints_box,
    sample_image,
    sample_picture,
    with_confidence,
)

CAMERAS = ("54138969", "55011271", "58860488", "60457274")
P2_CAMERA = "60457274"
STRIDE = 5
SUBJECTS = {"p2": (9, 11), "train": (1, 5, 6, 7, 8)}
SPLIT_CAMERAS = {"p2": (P2_CAMERA,), "train": CAMERAS}
# Human3.6M comes as MyPoseFeatures/NAME; h36m-fetch unpacks the same files into Poses_NAME.
FOLDERS = ("MyPoseFeatures/{}", "Poses_{}")
BOX_FACTOR = 1.2
MM = 1e-3


@dataclass(frozen=True)
class _Shot:
    """The rows of one video.

    Attributes:
        name: such as `S9/Directions 1.60457274`.
        frames: (n,) numbers of the frames in the video, from 0.
        joints: (n, 14, 3) metres in the camera's frame; pixels: (n, 14, 2).
        centres, sides: (n, 2) and (n,) px of the crop squares.
    """

    name: str
    video: Video
    frames: NDArray[np.int64]
    joints: NDArray[np.float32]
    pixels: NDArray[np.float32]
    centres: NDArray[np.float64]
    sides: NDArray[np.float64]


class Human36M(AnnotatedSet):
    """Human3.6M as distributed: Videos/*.mp4, poses in .cdf files, metadata.xml.

    Folder: `S9/Videos/Directions 1.60457274.mp4`, `S9/MyPoseFeatures/D3_Positions_mono/Directions 1.60457274.cdf`, ...
    and `metadata.xml`. Where there is no `D3_Positions_mono`, `D3_Positions` (the room's frame, one file for all
    cameras) serves with the cameras of metadata.xml. Pixels are those of `D2_Positions` if that is there, else the
    joints projected by metadata.xml, with the lens's distortion. Frames are decoded from the videos on demand.

    Items: see training.data.labelled.make_item; `has_vertices` is 0.

    Args:
        folder: with S1 ... S11 and metadata.xml.
        spec: of the network; its joint set must be h36m14.
        split: "p2" (subjects 9 and 11, one camera) or "train" (subjects 1, 5, 6, 7, 8, four cameras).
        subjects, cameras, stride: instead of the split's own; every `stride`-th frame from the first.
        box_factor: side of the crop square over the longer extent of the 32 projected joints.
        frame_offset: added to the number of the picture that a label belongs to. GraphCMR's script, from which METRO's
            evaluation pictures come, reads one frame before it starts to count: 1 gives its pictures.
        skip_bad: leave out bad rows, counted in `skipped`, instead of stopping at the first.
        **options: of LabelledSet (train, seed, augmentation).

    Raises:
        UserError: a missing folder, video, pose or camera file; an unknown camera, subject or split; more labels than
            frames; NaN labels; empty boxes. The message names file and frame.
        MissingExtraError: cdflib is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        spec: ModelSpec,
        *,
        split: str = "p2",
        subjects: Sequence[int] | None = None,
        cameras: Sequence[str] | None = None,
        stride: int = STRIDE,
        box_factor: float = BOX_FACTOR,
        frame_offset: int = 0,
        skip_bad: bool = False,
        **options: Any,
    ) -> None:
        check_joint_set(spec, "Human3.6M")
        if split not in SUBJECTS:
            raise UserError(f"Human3.6M has no split {split!r}; it has {', '.join(SUBJECTS)}")
        if stride < 1 or frame_offset < 0 or not box_factor > 0:
            raise UserError(
                f"stride must be 1 or more, frame_offset 0 or more, box_factor positive; "
                f"got {stride}, {frame_offset}, {box_factor}"
            )
        self.folder, self.stride, self.box_factor, self.frame_offset = Path(folder), stride, box_factor, frame_offset
        self._unusable = BadRows(skip_bad)
        metadata = self.folder / "metadata.xml"
        self._cameras = read_cameras(metadata) if metadata.is_file() else {}
        wanted = [
            (subject, camera)
            for subject in (SUBJECTS[split] if subjects is None else subjects)
            for camera in (SPLIT_CAMERAS[split] if cameras is None else cameras)
        ]
        self._check(wanted)
        found = [shot for pair in wanted for shot in self._find(*pair)]
        self._shots = [
            shot for args in tqdm(found, desc="Human3.6M poses", leave=False) if (shot := self._read(*args)) is not None
        ]
        self._ends = np.cumsum([len(shot.frames) for shot in self._shots], dtype=np.int64)
        count = int(self._ends[-1]) if len(self._ends) else 0
        if not count:
            raise UserError(f"{folder} holds no usable frame of Human3.6M{self._unusable.summary()}")
        super().__init__(self._unusable, count, spec, **options)

    def picture(self, index: int) -> LabelledPicture:
        """Return the labelled picture of row `index`; raises BadSampleError for a frame that cannot be decoded."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        shot = self._shots[number]
        row = index - int(self._ends[number - 1] if number else 0)
        frame = int(shot.frames[row])
        key = f"{shot.name}:{frame}"
        return LabelledPicture(
            key=key,
            image=sample_image(key, lambda: shot.video.frame(frame)),
            centre_px=shot.centres[row],
            side_px=float(shot.sides[row]),
            joints_2d=with_confidence(shot.pixels[row]),
            joints=centred_joints(with_confidence(shot.joints[row]), self.spec.joint_set),
        )

    def _check(self, wanted: list[tuple[int, str]]) -> None:
        if not wanted:
            raise UserError("Human3.6M needs at least one subject and one camera")
        for subject, camera in wanted:
            if camera not in CAMERAS or (self._cameras and (subject, camera) not in self._cameras):
                raise UserError(
                    f"unknown camera {camera!r} or subject {subject!r}; Human3.6M has the cameras {', '.join(CAMERAS)} "
                    "and subjects 1 to 11"
                )

    def _find(self, subject: int, camera: str) -> Iterator[tuple[int, str, str, Path, bool]]:
        """Yield subject, camera, action, pose file, whether it is in the room's frame; one action a time."""
        home = self.folder / f"S{subject}"
        if not home.is_dir():
            raise UserError(f"no folder {home}: Human3.6M has one folder a subject, with Videos and MyPoseFeatures")
        for kind, suffix in (("D3_Positions_mono", f".{camera}.cdf"), ("D3_Positions", ".cdf")):
            poses = _subfolder(home, kind)
            names = sorted(p.name for p in poses.glob(f"*{suffix}")) if poses else []
            actions = [name.removesuffix(suffix) for name in names if not name.startswith("_ALL")]
            if poses and actions:
                if kind == "D3_Positions" and not self._cameras:
                    raise UserError(f"{poses} is in the room's frame: {self.folder}/metadata.xml is needed beside it")
                yield from ((subject, camera, a, poses / (a + suffix), kind == "D3_Positions") for a in actions)
                return
        raise UserError(
            f"{home} has no poses of camera {camera}: expected MyPoseFeatures/D3_Positions_mono/*.{camera}.cdf or "
            "MyPoseFeatures/D3_Positions/*.cdf (D3_Positions_mono_universal is another skeleton and does not serve)"
        )

    def _read(self, subject: int, camera: str, action: str, path: Path, in_room: bool) -> _Shot | None:
        name = f"S{subject}/{action}.{camera}"
        lens = self._cameras.get((subject, camera))
        try:
            video = Video(self.folder / f"S{subject}" / "Videos" / f"{action}.{camera}.mp4")
            poses_mm = read_pose(path).astype(np.float64)
            if in_room and lens is not None:
                poses_mm = lens.from_room(poses_mm)
            pixels = self._pixels(subject, f"{action}.{camera}.cdf", poses_mm, lens)
        except UserError as error:
            self._unusable.report(str(error))
            return None
        frames = np.arange(0, len(poses_mm), self.stride)
        poses_mm, pixels = poses_mm[frames], pixels[frames]
        frames = frames + self.frame_offset
        finite = np.isfinite(poses_mm).all((1, 2)) & np.isfinite(pixels).all((1, 2))
        centres, sides = joints_box(pixels, self.box_factor)
        problems = (
            (frames < video.count, f"the video has {video.count} frames, the labels more"),
            (finite, "the labels hold NaN or infinity"),
            (~finite | (poses_mm[..., 2] > 0).all(1), "a joint is not in front of the camera"),
            (~finite | (sides >= 1), "the box of the joints is empty"),
        )
        good = self._unusable.filter(path, "frame", frames - self.frame_offset, problems)
        return _Shot(
            name=name,
            video=video,
            frames=frames[good],
            joints=(poses_mm[good][:, H36M14_OF_32] * MM).astype(np.float32),
            pixels=pixels[good][:, H36M14_OF_32].astype(np.float32),
            centres=centres[good],
            sides=sides[good],
        )

    def _pixels(self, subject: int, file: str, poses_mm: NDArray[Any], lens: Camera | None) -> NDArray[np.float64]:
        """Return (frames, 32, 2) px, from D2_Positions or projected."""
        home = self.folder / f"S{subject}"
        labelled = _subfolder(home, "D2_Positions")
        if labelled is not None:
            pixels = read_pose(labelled / file, 2).astype(np.float64)
            if len(pixels) != len(poses_mm):
                raise UserError(f"{labelled / file} has {len(pixels)} frames, the 3D poses have {len(poses_mm)}")
            return pixels
        if lens is None:
            raise UserError(
                f"{home} has no D2_Positions and {self.folder} no metadata.xml: where the joints are in the picture "
                "is unknown; add one of them"
            )
        return lens.project(poses_mm)


class Human36MNpz(AnnotatedSet):
    """The file that SPIN's and GraphCMR's scripts make of Human3.6M, `h36m_valid_protocol2.npz`, and its pictures.

    Keys: `imgname` (N,) such as images/S9_Directions_1.60457274_000001.jpg, `center` (N, 2) px, `scale` (N,) box side
    over 200 px, `S` (N, 24, 4) metres and confidence, and for training `part` (N, 24, 3) px and confidence. METRO's
    evaluation set was made of GraphCMR's file; SPIN's has scales 0.9 times as large.

    Args:
        path: of the .npz.
        spec: as of Human36M.
        images: folder that `imgname` counts from; the .npz file's own by default.
        scale_factor: the crop square is 200 px x scale x scale_factor.
        skip_bad: leave out bad rows, counted in `skipped`.
        **options: of LabelledSet.

    Raises UserError as Human36M does, naming file, row and key.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        spec: ModelSpec,
        *,
        images: str | os.PathLike[str] = "",
        scale_factor: float = 1.0,
        skip_bad: bool = False,
        **options: Any,
    ) -> None:
        check_joint_set(spec, "Human3.6M")
        self.path = Path(path)
        self.images = Path(images) if str(images) else self.path.parent
        self._unusable = BadRows(skip_bad)
        names, values = _read_npz(self.path)
        folders = {folder: _listing(self.images / folder) for folder in {os.path.dirname(name) for name in names}}
        finite = {key: np.isfinite(array).reshape(len(array), -1).all(1) for key, array in values.items()}
        sides = values["scale"] * 200.0 * scale_factor
        problems = (
            *((good, f"{key} holds NaN or infinity") for key, good in finite.items()),
            (~finite["scale"] | (sides >= 1), "scale gives an empty box"),
            (
                np.array([os.path.basename(name) in folders[os.path.dirname(name)] for name in names], bool),
                f"imgname is no file below {self.images}",
            ),
        )
        good = self._unusable.filter(self.path, "row", np.arange(len(names)), problems)
        self._rows = np.flatnonzero(good)
        self._names, self._values, self._sides = names, values, sides
        if not len(self._rows):
            raise UserError(f"{path} holds no usable row{self._unusable.summary()}")
        super().__init__(self._unusable, len(self._rows), spec, **options)

    def picture(self, index: int) -> LabelledPicture:
        """Return the labelled picture of row `index`; raises BadSampleError for a picture that does not decode."""
        row = int(self._rows[index])
        values = self._values
        pixels = values["part"][row, H36M14_OF_24].astype(np.float32) if "part" in values else None
        key = f"{self.path.name}:{row}"
        return LabelledPicture(
            key=key,
            image=sample_picture(key, self.images / self._names[row]),
            centre_px=values["center"][row] - 0.5,  # they count from the picture's corner
            side_px=float(self._sides[row]),
            joints_2d=pixels,
            joints=centred_joints(values["S"][row, H36M14_OF_24], self.spec.joint_set),
        )


def _read_npz(path: Path) -> tuple[list[str], dict[str, NDArray[np.float64]]]:
    """Return imgname and the arrays of numbers; raises UserError for anything but SPIN's layout."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            data = {key: file[key] for key in ("imgname", "center", "scale", "S", "part") if key in file.files}
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except Exception as error:  # zipfile and NumPy raise whatever they meet in a damaged file
        raise UserError(f"{path} is not a readable .npz of plain arrays: {error}") from None
    if missing := [key for key in ("imgname", "center", "scale", "S") if key not in data]:
        raise UserError(f"{path} lacks {', '.join(missing)}: expected the .npz that SPIN's scripts make")
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in data.pop("imgname").tolist()]
    shapes = {"center": (2,), "scale": (), "S": (24, 4), "part": (24, 3)}
    for key, array in data.items():
        if array.shape != (len(names), *shapes[key]) or array.dtype.kind not in "fiu":
            raise UserError(
                f"{path}: {key} must be {(len(names), *shapes[key])} numbers, as imgname has {len(names)} rows; "
                f"got {array.shape} {array.dtype}"
            )
    return names, {key: array.astype(np.float64) for key, array in data.items()}


def _subfolder(home: Path, kind: str) -> Path | None:
    return next((folder for pattern in FOLDERS if (folder := home / pattern.format(kind)).is_dir()), None)


def _listing(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
