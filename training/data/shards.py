"""Shards as a torch Dataset, with augmentation that keeps image and labels together."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.raster import project
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from training.data.generator import GeneratedPeople
from training.data.labelled import LabelledPicture, LabelledSet
from training.data.mirror import mesh_mirror
from training.data.storage import Manifest, read_manifest, shard_path, stored_spec, write_shards

__all__ = ["ShardedPeople", "people_shards", "write_shards"]

BODY = "anny"  # of the generated people


def people_shards(folder: str | os.PathLike[str], spec: ModelSpec, seed: int, count: int, workers: int = 2) -> Path:
    """Return the folder of `count` generated samples of `seed` below `folder`, made or completed first if need be.

    Raises UserError for a network of another body than the generated people's, before anything is rendered, and as
    write_shards does.
    """
    if spec.body != BODY:
        raise UserError(
            f"generated people have the body {BODY!r}, the network {spec.name!r} has {spec.body!r}: give data sets of "
            "that body, data.train_sets and data.validation_sets"
        )
    target = Path(folder) / f"seed{seed}-{count}-{stored_spec(spec).image_size}px"
    write_shards(GeneratedPeople(seed, count), target, count, spec, workers=workers)
    return target


class ShardedPeople(LabelledSet):
    """Samples of a folder of shards, all with all labels; see training.data.labelled.make_item for the items.

    The confidence of 2D joints is 1 inside the crop, hidden or not, and 0 outside.

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
        self.folder = Path(folder)
        self.manifest = read_manifest(folder)
        _check(self.manifest, self.folder, spec)
        stop = self.manifest.count if stop is None else stop
        if not 0 <= start < stop <= self.manifest.count:
            raise UserError(f"{folder} has samples 0..{self.manifest.count - 1}, cannot take {start}..{stop - 1}")
        self.start, self.stop = start, stop
        super().__init__(stop - start, spec, train, seed, mirror=mesh_mirror(template))
        self._shards: dict[int, dict[str, NDArray[Any]]] = {}

    def first(self, count: int) -> ShardedPeople:
        """Return the first `count` samples; raises UserError for more than there are or less than one."""
        if not 1 <= count <= len(self):
            raise UserError(f"cannot take the first {count} of {len(self)} samples")
        part = copy.copy(self)
        part.count, part.stop = count, self.start + count
        return part

    def sample_id(self, index: int) -> int:
        """Return the sample's number in the folder."""
        return self.start + index

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

    def picture(self, index: int) -> LabelledPicture:
        """Return a sample as it is stored; raises UserError when its shard is damaged."""
        shard, row = divmod(self.start + index, self.manifest.shard_size)
        return self.labelled(self.stored(index), f"{shard_path(self.folder, shard)}:{row}")

    def labelled(self, stored: dict[str, NDArray[Any]], key: str = "") -> LabelledPicture:
        """Return what `stored` gave as a picture, whose square is the whole of it."""
        name, side = self.spec.joint_set, self.manifest.stored_px
        joints = stored[f"joints.{name}"]
        focal, *centre = (float(v) for v in stored["camera"])
        pixels = project(joints + stored["root"], focal, (centre[0], centre[1]))
        known = np.ones((len(joints), 1), np.float32)
        return LabelledPicture(
            key,
            stored["image"],
            np.full(2, (side - 1) / 2),
            float(side),
            np.hstack((pixels, known)),
            np.hstack((joints, known)),
            stored["vertices"].astype(np.float32) * np.float32(self.manifest.unit_m),
            stored[f"visible.{name}"],
            margin=self.manifest.margin,
            crop_rule="box_bilinear",
        )

    def box(self, index: int) -> NDArray[np.float32] | None:
        """Return a sample's box (4,) in px of the frame that it was cut from; None of shards that keep no boxes."""
        shard, row = divmod(self.start + index, self.manifest.shard_size)
        boxes = self._open(shard).get("box")
        return None if boxes is None else np.asarray(boxes[row])

    def _open(self, shard: int) -> dict[str, NDArray[Any]]:
        if shard not in self._shards:
            folder = shard_path(self.folder, shard)
            names = ["images", "offsets", "vertices", "root", "camera", "family"]
            names += [f"{kind}.{s}" for kind in ("joints", "visible") for s in self.manifest.joint_sets]
            names += ["box"] if (folder / "box.npy").exists() else []
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
