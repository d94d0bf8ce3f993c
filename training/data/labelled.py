"""A picture with labels, whatever data set it comes from, and the one way in which training makes an item of it."""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from metro_edge.crop_rules import MPII_BOX_PX, demo_crop, metro_crop
from metro_edge.errors import UserError
from metro_edge.joints import joint_set
from metro_edge.preprocess import normalise, resampled, taps_per_axis
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from training.data import augment
from training.data.augment import Change

Floats = NDArray[np.float32]
Item = dict[str, Any]  # tensors, and `key`, a str

MIRROR_X = np.array([-1, 1, 1], np.float32)


class BadSampleError(UserError):
    """A sample that cannot be used: the message names file, row and key. Sets made with skip_bad step over it."""


@dataclass(frozen=True)
class LabelledPicture:
    """A picture of one person or hand, and what is known about it. Camera frame: x right, y down, z away; metres.

    Attributes:
        key: "file:row", by which errors name it.
        image: (H, W, 3) uint8 BGR.
        centre_px: (2,) float64, middle of the crop's square, counted from pixel centres as all px here: the middle of
            the picture's top left pixel is (0, 0). METRO's `center` counts from the picture's corner: 0.5 more.
        side_px: side of that square, before augmentation; a box's longer side times the spec's box_scale.
        joints_2d: (J, 3) float32 px, px, confidence; J joints of the spec's joint set; None where not labelled.
        joints: (J, 4) float32 x, y, z relative to the set's root, and confidence; None where not labelled.
        vertices: (V, 3) float32 relative to the root that the body's regressor gives; None where not labelled.
        visible: (J,) bool, whether a joint can be seen; None: where joints_2d has a confidence.
        margin: `side_px` over the side of the network's crop; above 1 for pictures that were cut with a margin.
        crop_rule: by which the picture is resampled; empty for the spec's. Pictures that its rule has cut once
            already say `box_bilinear`.
        flipped_vertices: gives the mesh (V, 3) of the mirrored person, in the mirrored camera frame, root-centred;
            None: `vertices` mirrored, by the body's map from each vertex to that on the other side.
    """

    key: str
    image: NDArray[np.uint8]
    centre_px: NDArray[np.float64]
    side_px: float
    joints_2d: Floats | None = None
    joints: Floats | None = None
    vertices: Floats | None = None
    visible: NDArray[np.bool_] | None = None
    margin: float = 1.0
    crop_rule: str = ""
    flipped_vertices: Callable[[], Floats] | None = None


def centred_vertices(vertices: NDArray[np.floating], template: BodyTemplate, joint_set_name: str) -> Floats:
    """Return vertices (V, 3) float32 relative to the root of the joints that the body's regressor gives."""
    return np.asarray(vertices - template.root(joint_set_name, vertices), np.float32)


def centred_joints(joints: NDArray[np.floating], joint_set_name: str) -> Floats | None:
    """Return joints (J, 4) float32 relative to their root, zero where the confidence is 0.

    None where the root's joints are not labelled themselves: then the others cannot be placed.
    """
    joints = np.array(joints, np.float32)
    known = joints[:, 3] > 0
    if not known[list(joint_set(joint_set_name).root_indices)].all():
        return None
    joints[:, :3] -= joint_set(joint_set_name).root_of(joints[:, :3])
    joints[~known] = 0
    return joints


def check_picture(picture: LabelledPicture, spec: ModelSpec) -> LabelledPicture:
    """Return `picture`; raises BadSampleError for wrong shapes, values that are not finite and squares of no size."""
    key, square = picture.key, [*picture.centre_px, picture.side_px]
    if not np.isfinite(square).all() or picture.side_px < 1:
        raise BadSampleError(f"{key}: box of no size: centre {picture.centre_px}, side {picture.side_px} px")
    height, width = picture.image.shape[:2]
    low, high = picture.centre_px - picture.side_px / 2, picture.centre_px + picture.side_px / 2
    if (high <= 0).any() or low[0] >= width or low[1] >= height:
        raise BadSampleError(
            f"{key}: the box (centre {picture.centre_px}, side {picture.side_px:g} px) lies outside the "
            f"{width} x {height} px picture"
        )
    shapes = {"joints_2d": (len(spec.joints), 3), "joints": (len(spec.joints), 4), "vertices": (spec.vertex_count, 3)}
    for name, shape in shapes.items():
        value = getattr(picture, name)
        if value is not None and value.shape != shape:
            raise BadSampleError(f"{key}: {name} must be {shape}, got {value.shape}")
        if value is not None and not np.isfinite(value).all():
            raise BadSampleError(f"{key}: {name} holds values that are not finite")
    return picture


def crop_picture(picture: LabelledPicture, spec: ModelSpec, change: Change) -> NDArray[np.uint8]:
    """Return (S, S, 3) uint8 BGR, the square of `picture` changed by `change` and resampled by its crop rule.

    The rule `metro_demo` takes the square for the whole picture; it raises UserError when that is to be turned,
    flipped or moved.
    """
    size, side = spec.image_size, picture.side_px * change.ratio
    rule = picture.crop_rule or spec.crop_rule
    if rule == "metro_eval":
        middle = picture.centre_px + np.array(change.shift) * picture.side_px / 2 + 0.5
        degrees = -float(np.degrees(change.turn_rad))
        crop = metro_crop(picture.image, middle, side / MPII_BOX_PX, size, rotation_deg=degrees)
        return np.ascontiguousarray(crop[:, ::-1]) if change.flip else crop
    if rule == "metro_demo":
        if change.turn_rad or change.flip or any(change.shift):
            raise UserError(f"crop rule {rule!r} takes whole pictures and cannot be trained with; use metro_eval")
        return demo_crop(picture.image, [*(picture.centre_px + 0.5 - side / 2), side, side], size)
    taps = taps_per_axis(side, dataclasses.replace(spec, crop_rule=rule))
    return resampled(picture.image, change.affine(picture.centre_px, picture.side_px, size * taps), taps, spec)


def make_item(
    picture: LabelledPicture,
    spec: ModelSpec,
    change: Change | None = None,
    recolour: Callable[[Any], Any] | None = None,
    mirror: NDArray[np.intp] | None = None,
    labels_outside: bool = False,
) -> Item:
    """Make the item of a picture: image, 2D, 3D and mesh all moved by one change.

    Args:
        picture: whose labels fit the spec.
        spec: of the network.
        change: None for the picture's square as it is.
        recolour: of the crop (S, S, 3) uint8 BGR.
        mirror: (V,) of training.data.mirror, for flips of pictures without `flipped_vertices`.
        labels_outside: keep the confidence of 2D joints outside the crop.

    Returns:
        `key` str; `image` (3, S, S) float32 normalised RGB; `vertices` (V, 3) and `joints` (J, 3), root-centred
        metres in the camera frame; `joints_confidence` (J,); `joints_2d` (J, 3), crop coordinates [-1, 1] and
        confidence; `joints_visible` (J,), 1 where the joint can be seen inside the crop; `has_vertices`, `has_joints`,
        `has_joints_2d` scalars, 0 where the picture lacks the label, whose values are zeros then.
    """
    change = change or Change(1 / picture.margin)
    image: Any = crop_picture(picture, spec, change)
    if recolour is not None:
        image = recolour(image)
    order = list(spec.joints.mirror) if change.flip else slice(None)
    vertices = _moved_vertices(picture, spec, change, mirror)
    joints, confidence = _moved_joints(picture, spec, change)
    flat = _moved_joints_2d(picture, spec, change)
    inside = (np.abs(flat[:, :2]) <= 1).all(axis=1)
    visible = flat[:, 2] > 0 if picture.visible is None else picture.visible[order]
    if not labels_outside:
        flat[:, 2] *= inside
    has = {"vertices": picture.vertices, "joints": picture.joints, "joints_2d": picture.joints_2d}
    return {
        "key": picture.key,
        "image": torch.from_numpy(normalise(image[None], spec)[0]),
        "vertices": torch.from_numpy(vertices),
        "joints": torch.from_numpy(joints),
        "joints_confidence": torch.from_numpy(confidence),
        "joints_2d": torch.from_numpy(flat),
        "joints_visible": torch.from_numpy(visible & inside).float(),
        **{f"has_{name}": torch.tensor(float(value is not None)) for name, value in has.items()},
    }


def _spin(matrix: NDArray[np.float64]) -> Floats:
    spin = np.eye(3, dtype=np.float32)
    spin[:2, :2] = matrix
    return spin


def _moved_vertices(
    picture: LabelledPicture, spec: ModelSpec, change: Change, mirror: NDArray[np.intp] | None
) -> Floats:
    if picture.vertices is None:
        return np.zeros((spec.vertex_count, 3), np.float32)
    if change.flip and picture.flipped_vertices is not None:
        # Turning, then mirroring a body is mirroring it, then turning it the other way.
        return np.ascontiguousarray(picture.flipped_vertices() @ _spin(change.turn.T).T)
    vertices = picture.vertices @ _spin(change.matrix).T
    if change.flip:
        if mirror is None:
            raise UserError(f"{picture.key}: a mesh cannot be flipped without the body's mirror map")
        vertices = vertices[mirror]
    return np.ascontiguousarray(vertices)


def _moved_joints(picture: LabelledPicture, spec: ModelSpec, change: Change) -> tuple[Floats, Floats]:
    if picture.joints is None:
        return np.zeros((len(spec.joints), 3), np.float32), np.zeros(len(spec.joints), np.float32)
    joints, confidence = np.ascontiguousarray(picture.joints[:, :3]), picture.joints[:, 3]
    joints = joints @ _spin(change.matrix).T
    if change.flip:
        order = list(spec.joints.mirror)
        joints, confidence = joints[order], confidence[order]
    return np.ascontiguousarray(joints), np.ascontiguousarray(confidence)


def _moved_joints_2d(picture: LabelledPicture, spec: ModelSpec, change: Change) -> Floats:
    if picture.joints_2d is None:
        return np.zeros((len(spec.joints), 3), np.float32)
    pixels, confidence = picture.joints_2d[:, :2], picture.joints_2d[:, 2]
    edge = (2 * picture.centre_px + 1 - picture.side_px).astype(pixels.dtype)  # twice the square's upper left corner
    flat = change.points((2 * pixels + 1 - edge) / picture.side_px - 1)
    if change.flip:
        order = list(spec.joints.mirror)
        flat, confidence = flat[order], confidence[order]
    return np.column_stack((flat, confidence)).astype(np.float32)


class LabelledSet(Dataset[Item], ABC):
    """A data set of labelled pictures; what `make_item` returns, see there, is its items.

    Subclasses give `picture`. Augmentation is a function of (seed, epoch, sample).

    Args:
        count: samples.
        spec: of the network: crop, joint set, normalisation.
        train: augment.
        seed: of the augmentation.
        augmentation: its kind, see training.data.augment.
        mirror: (V,) of the body's mesh, for flips; None where pictures bring their flipped mesh.
        skip_bad: step over a sample that raises BadSampleError to the next good one; `skipped` counts them.

    Attributes:
        left_out: why -> how many label rows the data set's own rules leave out, good as they are.
    """

    left_out: Mapping[str, int] = MappingProxyType({})

    def __init__(
        self,
        count: int,
        spec: ModelSpec,
        train: bool = False,
        seed: int = 0,
        augmentation: str = "edge",
        mirror: NDArray[np.intp] | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.count, self.spec, self.train, self.seed, self.epoch = count, spec, train, seed, 0
        self.augmentation, self.mirror = augment.augmentation(augmentation), mirror
        # In shared memory, so that what a DataLoader's workers step over is counted here too.
        self._bad: Tensor | None = torch.zeros(count, dtype=torch.uint8).share_memory_() if skip_bad else None

    def __len__(self) -> int:
        return self.count

    @abstractmethod
    def picture(self, index: int) -> LabelledPicture:
        """Return a sample as it is stored; raises BadSampleError when it is unusable."""

    def sample_id(self, index: int) -> int:
        """Return the number that the sample's augmentation is drawn by."""
        return index

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's augmentation; call before the workers of a DataLoader start."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        if self._bad is None:
            return self._item(index)
        for row in itertools.chain(range(index, len(self)), range(index)):
            if self._bad[row]:
                continue
            try:
                return self._item(row)
            except BadSampleError:
                self._bad[row] = 1
        raise UserError(f"all {len(self)} samples are unusable; {self.skipped_reasons(1)[0]}")

    def _item(self, index: int) -> Item:
        picture = check_picture(self.picture(index), self.spec)
        if not self.train:
            return make_item(picture, self.spec, mirror=self.mirror)
        kind, rng = self.augmentation, np.random.default_rng([self.seed, self.epoch, self.sample_id(index)])
        change = kind.change(rng, self.spec, picture.margin)
        return make_item(
            picture, self.spec, change, lambda crop: kind.recolour(rng, crop), self.mirror, kind.labels_outside
        )

    @property
    def dropped(self) -> tuple[str, ...]:
        """What was wrong with each label row or file that was left out when the set was opened with `skip_bad`."""
        return ()

    @property
    def skipped(self) -> int:
        """How many samples have been stepped over so far, by this process and its workers."""
        return 0 if self._bad is None else int(self._bad.sum())

    def skipped_reasons(self, limit: int = 3) -> list[str]:
        """Return what is wrong with the first `limit` samples that were stepped over."""
        reasons = []
        for row in [] if self._bad is None else self._bad.nonzero()[:limit, 0].tolist():
            try:
                check_picture(self.picture(row), self.spec)
            except BadSampleError as error:
                reasons.append(str(error))
        return reasons
