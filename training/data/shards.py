"""Shards as a torch Dataset, with augmentation that keeps image and labels together."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from metro_edge.errors import UserError
from metro_edge.preprocess import border_bgr, normalise
from metro_edge.raster import project
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from training.data.generator import GeneratedPeople
from training.data.mirror import mesh_mirror
from training.data.storage import MARGIN, Manifest, read_manifest, shard_path, stored_spec, write_shards

__all__ = ["Change", "ShardedPeople", "people_shards", "write_shards"]

Floats = NDArray[np.float32]
Rng = Any  # numpy.random.Generator

SCALE_RANGE = (0.8, 1.25)
SHIFT_SHARE = 0.12  # of the box's longer side
ROTATION_STD_DEG, ROTATION_LIMIT_DEG = 12.0, 30.0


def people_shards(folder: str | os.PathLike[str], spec: ModelSpec, seed: int, count: int, workers: int = 2) -> Path:
    """Return the folder of `count` generated samples of `seed` below `folder`, made or completed first if need be."""
    target = Path(folder) / f"seed{seed}-{count}-{stored_spec(spec).image_size}px"
    write_shards(GeneratedPeople(seed, count), target, count, spec, workers=workers)
    return target


@dataclass(frozen=True)
class Change:
    """A geometric augmentation: crop coordinates become flip(turn((stored - shift) / ratio)).

    Attributes:
        ratio: side of the crop over that of the stored square.
        shift: (2,) middle of the crop in the stored square's coordinates, [-1, 1].
        turn_rad: rotation of picture and body about the line of sight, clockwise on the screen.
        flip: left and right exchanged.
    """

    ratio: float
    shift: tuple[float, float] = (0.0, 0.0)
    turn_rad: float = 0.0
    flip: bool = False

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(2, 2): turn, then flip."""
        c, s = np.cos(self.turn_rad), np.sin(self.turn_rad)
        return np.diag([-1.0 if self.flip else 1.0, 1.0]) @ np.array([[c, -s], [s, c]])

    def points(self, stored: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map stored-square coordinates (..., 2) to crop coordinates."""
        return (stored - np.array(self.shift)) @ (self.matrix / self.ratio).T

    def affine(self, stored_px: int, size: int) -> NDArray[np.float64]:
        """Return (2, 3): stored px to crop px, both counted from pixel centres."""
        linear = self.matrix / self.ratio * (size / stored_px)
        # Pixel p is at (2 p + 1) / side - 1, so the middle (side - 1) / 2 is at 0.
        middle = (stored_px - 1) / 2 + np.array(self.shift) * stored_px / 2
        return np.column_stack((linear, (size - 1) / 2 - linear @ middle))


class ShardedPeople(Dataset[dict[str, torch.Tensor]]):
    """Samples of a folder of shards.

    Items: `image` (3, S, S) float32 normalised RGB; `vertices` (V, 3) and `joints` (J, 3), root-centred metres in the
    camera frame; `joints_2d` (J, 3), crop coordinates [-1, 1] and confidence, 1 inside the crop (hidden
    or not), 0 outside; `joints_visible` (J,) 1 where the joint can be seen; `has_vertices`, `has_joints`,
    `has_joints_2d` scalars 1.

    Args:
        folder: that write_shards filled.
        spec: input size, joint set, normalisation; its crop rule and box scale must be those of the shards.
        train: augment (box jitter, rotation, flip, colour, noise, cutout); a function of (seed, epoch, index).
        seed: of the augmentation.
        start, stop: range of samples, None for the end.
        template: for the mirror of the mesh; None loads the Anny template.

    Raises:
        UserError: for folders that are incomplete, damaged or made for another body or crop.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        spec: ModelSpec,
        train: bool = False,
        seed: int = 0,
        start: int = 0,
        stop: int | None = None,
        template: BodyTemplate | None = None,
    ) -> None:
        self.folder, self.spec, self.train, self.seed, self.epoch = Path(folder), spec, train, seed, 0
        self.manifest = read_manifest(folder)
        _check(self.manifest, self.folder, spec)
        stop = self.manifest.count if stop is None else stop
        if not 0 <= start < stop <= self.manifest.count:
            raise UserError(f"{folder} has samples 0..{self.manifest.count - 1}, cannot take {start}..{stop - 1}")
        self.start, self.stop = start, stop
        self.mirror = mesh_mirror(template)
        self._shards: dict[int, dict[str, NDArray[Any]]] = {}

    def __len__(self) -> int:
        return self.stop - self.start

    def first(self, count: int) -> ShardedPeople:
        """Return the first `count` samples; raises UserError for more than there are or less than one."""
        if not 1 <= count <= len(self):
            raise UserError(f"cannot take the first {count} of {len(self)} samples")
        part = copy.copy(self)
        part.stop = self.start + count
        return part

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's augmentation; call before the workers of a DataLoader start."""
        self.epoch = epoch

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # each process maps the files itself

    def stored(self, index: int) -> dict[str, NDArray[Any]]:
        """Return what the shard holds of a sample, the picture decoded: `image` (P, P, 3) uint8 BGR."""
        index += self.start
        shard, row = divmod(index, self.manifest.shard_size)
        data = self._open(shard)
        begin, end = data["offsets"][row : row + 2]
        image = cv2.imdecode(np.asarray(data["images"][begin:end]), cv2.IMREAD_COLOR)
        if image is None or image.shape[0] != self.manifest.stored_px:
            raise UserError(f"{shard_path(self.folder, shard)} is damaged: picture {row} cannot be decoded")
        rows = {name: np.asarray(values[row]) for name, values in data.items() if name not in ("images", "offsets")}
        return {"image": image, **rows}

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        stored = self.stored(index)
        rng = np.random.default_rng([self.seed, self.epoch, self.start + index])
        change = _sample_change(rng, self.spec.box_scale) if self.train else Change(1 / self.manifest.margin)
        return self.item(stored, change, rng if self.train else None)

    def item(self, stored: dict[str, NDArray[Any]], change: Change, rng: Rng | None = None) -> dict[str, torch.Tensor]:
        """Make an item of a stored sample by one geometric change; `rng` adds changes of colour and cutouts."""
        size, name = self.spec.image_size, self.spec.joint_set
        image: Any = cv2.warpAffine(
            stored["image"],
            change.affine(self.manifest.stored_px, size),
            (size, size),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=border_bgr(self.spec),
        )
        if rng is not None:
            image = _recolour(rng, image)
        vertices = stored["vertices"].astype(np.float32) * np.float32(self.manifest.unit_m)
        joints, visible = stored[f"joints.{name}"], stored[f"visible.{name}"]
        focal, *centre = (float(v) for v in stored["camera"])
        pixels = project(joints + stored["root"], focal, (centre[0], centre[1]))
        flat = change.points((2 * pixels + 1) / self.manifest.stored_px - 1)
        spin = np.eye(3, dtype=np.float32)
        spin[:2, :2] = change.matrix
        vertices, joints = vertices @ spin.T, joints @ spin.T
        if change.flip:
            order = list(self.spec.joints.mirror)
            vertices, joints, flat, visible = vertices[self.mirror], joints[order], flat[order], visible[order]
        inside = (np.abs(flat) <= 1).all(axis=1)
        labelled = torch.ones(())
        return {
            "image": torch.from_numpy(normalise(image[None], self.spec)[0]),
            "vertices": torch.from_numpy(np.ascontiguousarray(vertices)),
            "joints": torch.from_numpy(np.ascontiguousarray(joints)),
            "joints_2d": torch.from_numpy(np.column_stack((flat, inside)).astype(np.float32)),
            "joints_visible": torch.from_numpy(visible & inside).float(),
            "has_vertices": labelled,
            "has_joints": labelled,
            "has_joints_2d": labelled,
        }

    def _open(self, shard: int) -> dict[str, NDArray[Any]]:
        if shard not in self._shards:
            folder = shard_path(self.folder, shard)
            names = ["images", "offsets", "vertices", "root", "camera", "family"]
            names += [f"{kind}.{s}" for kind in ("joints", "visible") for s in self.manifest.joint_sets]
            try:
                data = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
            except (OSError, ValueError, EOFError) as error:
                raise UserError(f"{folder} is damaged: {error}; delete it and write the shards again") from None
            rows = len(self.manifest.shard_range(shard))
            wrong = [name for name in names[1:] if len(data[name]) != rows + (name == "offsets")]
            if wrong or data["vertices"].shape[1:] != (self.manifest.vertex_count, 3):
                raise UserError(f"{folder} is damaged: wrong length of {', '.join(wrong) or 'vertices'}")
            self._shards[shard] = data
        return self._shards[shard]


def _check(manifest: Manifest, folder: Path, spec: ModelSpec) -> None:
    missing = [k for k in range(manifest.shard_count) if not shard_path(folder, k).is_dir()]
    if missing:
        raise UserError(
            f"{folder} is incomplete: {len(missing)} of {manifest.shard_count} shards are missing; "
            "write it again to go on"
        )
    wanted = (spec.body, spec.vertex_count, spec.crop_rule, spec.box_scale)
    there = (manifest.body, manifest.vertex_count, manifest.crop_rule, manifest.box_scale)
    if wanted != there:
        raise UserError(
            f"{folder} was made for (body, vertices, crop rule, box scale) {there}, the network has {wanted}"
        )
    if spec.joint_set not in manifest.joint_sets:
        raise UserError(f"{folder} has joints of {', '.join(manifest.joint_sets)}, the network wants {spec.joint_set}")


def _sample_change(rng: Rng, box_scale: float) -> Change:
    scale = float(np.exp(rng.uniform(*np.log(SCALE_RANGE))))
    shift = rng.uniform(-SHIFT_SHARE, SHIFT_SHARE, 2) * 2 / (box_scale * MARGIN)
    turn = 0.0
    if rng.random() < 0.6:
        turn = float(np.clip(rng.normal(0, ROTATION_STD_DEG), -ROTATION_LIMIT_DEG, ROTATION_LIMIT_DEG))
    flip = bool(rng.random() < 0.5)
    return Change(scale / MARGIN, (float(shift[0]), float(shift[1])), float(np.radians(turn)), flip)


def _recolour(rng: Rng, image: Any) -> Any:
    """Change brightness, contrast, gamma and channels; sometimes grey, blurred, noisy, with parts cut out."""
    levels = np.arange(256, dtype=np.float32)[:, None] / 255
    gain = np.exp(rng.normal(0, 0.18) + rng.normal(0, 0.10, 3))
    contrast, gamma = np.exp(rng.normal(0, 0.15)), np.exp(rng.normal(0, 0.2))
    table = ((levels**gamma * gain - 0.5) * contrast + 0.5) * 255
    image = cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8).reshape(256, 1, 3))
    if rng.random() < 0.05:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    if rng.random() < 0.15:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.4)))
    if rng.random() < 0.3:
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(1, 9))
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        size = image.shape[0]
        for _ in range(int(rng.integers(1, 4))):
            w, h = (rng.uniform(0.06, 0.28, 2) * size).astype(int)
            x, y = int(rng.integers(0, size - w)), int(rng.integers(0, size - h))
            colour = rng.integers(0, 256, 3 if rng.random() < 0.5 else (int(h), int(w), 3))
            image[y : y + h, x : x + w] = colour
    return image
