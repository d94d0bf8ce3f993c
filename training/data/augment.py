"""Augmentation: one geometric change of picture and labels alike, and changes of colour of the picture.

Two kinds by name. `edge`: for generated people and small networks, wide in position, colour and what is hidden.
`metro`: what METRO trained with (metro/datasets/human_mesh_tsv.py and hand_mesh_tsv.py of microsoft/MeshTransformer).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.joints import JointSet
from metro_edge.spec import ModelSpec

Floats = NDArray[np.float32]
Rng = Any  # numpy.random.Generator

SCALE_RANGE = (0.8, 1.25)
SHIFT_SHARE = 0.12  # of the box's longer side
ROTATION_STD_DEG, ROTATION_LIMIT_DEG = 12.0, 30.0

METRO_SCALE_STD, METRO_CHANNEL_NOISE, METRO_UPRIGHT_SHARE = 0.25, 0.4, 0.6
METRO_ROTATION_STD_DEG = {False: 30.0, True: 90.0}  # bodies, hands; the limit is twice as much

# Joints of SMPL's pose with left and right exchanged.
SMPL_MIRROR = (0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22)


@dataclass(frozen=True)
class Change:
    """A geometric augmentation: crop coordinates become flip(turn((square - shift) / ratio)).

    Attributes:
        ratio: side of the crop over that of the picture's square.
        shift: (2,) middle of the crop in the square's coordinates, [-1, 1].
        turn_rad: rotation of picture and body about the line of sight, clockwise on the screen.
        flip: left and right exchanged.
    """

    ratio: float
    shift: tuple[float, float] = (0.0, 0.0)
    turn_rad: float = 0.0
    flip: bool = False

    @property
    def turn(self) -> NDArray[np.float64]:
        """(2, 2): the rotation alone."""
        c, s = np.cos(self.turn_rad), np.sin(self.turn_rad)
        return np.array([[c, -s], [s, c]])

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(2, 2): turn, then flip."""
        return np.diag([-1.0 if self.flip else 1.0, 1.0]) @ self.turn

    def points(self, square: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map coordinates (..., 2) of the picture's square, [-1, 1] inside, to crop coordinates."""
        return (square - np.array(self.shift)) @ (self.matrix / self.ratio).T

    def affine(self, centre_px: NDArray[np.floating], side_px: float, size: int) -> NDArray[np.float64]:
        """Return (2, 3): picture px to px of the `size` x `size` crop, both counted from pixel centres.

        Args:
            centre_px: (2,) middle of the picture's square.
            side_px: its side.
            size: side of the crop.
        """
        linear = self.matrix / self.ratio * (size / side_px)
        middle = centre_px + np.array(self.shift) * side_px / 2
        return np.column_stack((linear, (size - 1) / 2 - linear @ middle))


@dataclass(frozen=True)
class Augmentation:
    """A kind of augmentation.

    Attributes:
        name: the word used in configurations.
        change: draws the geometry from (generator, spec, margin of the picture's square over the crop).
        recolour: changes a crop (S, S, 3) uint8 BGR.
        labels_outside: whether 2D joints count that lie outside the crop.
    """

    name: str
    change: Callable[[Rng, ModelSpec, float], Change]
    recolour: Callable[[Rng, Any], Any]
    labels_outside: bool


def augmentation(name: str) -> Augmentation:
    """Return the kind called `name`; raises UserError for an unknown one."""
    try:
        return AUGMENTATIONS[name]
    except KeyError:
        raise UserError(f"unknown augmentation {name!r}; known: {', '.join(AUGMENTATIONS)}") from None


def has_sides(joints: JointSet) -> bool:
    """Whether the joints have a left and a right, so that a flip makes another sample of the same kind.

    A flipped right hand is a left one, which a network of right hands has never to see.
    """
    return joints.mirror != tuple(range(len(joints)))


def flip_pose(pose: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the pose (72,) of the mirrored body: joints exchanged, axis-angles' y and z negated.

    Args:
        pose: (72,) axis-angles of SMPL's 24 joints.

    Raises:
        UserError: for another size; hands (48) are never flipped.
    """
    if np.shape(pose) != (3 * len(SMPL_MIRROR),):
        raise UserError(f"only a pose of SMPL (72 values) can be flipped, got shape {np.shape(pose)}")
    turned = np.asarray(pose, np.float32).reshape(-1, 3)[list(SMPL_MIRROR)]
    return (turned * np.array([1, -1, -1], np.float32)).ravel()


def edge_change(rng: Rng, spec: ModelSpec, margin: float) -> Change:
    """Draw box jitter, a rotation in 60 % and a flip in half of the samples."""
    scale = float(np.exp(rng.uniform(*np.log(SCALE_RANGE))))
    shift = rng.uniform(-SHIFT_SHARE, SHIFT_SHARE, 2) * 2 / (spec.box_scale * margin)
    turn = 0.0
    if rng.random() < 0.6:
        turn = float(np.clip(rng.normal(0, ROTATION_STD_DEG), -ROTATION_LIMIT_DEG, ROTATION_LIMIT_DEG))
    flip = bool(rng.random() < 0.5) and has_sides(spec.joints)
    return Change(scale / margin, (float(shift[0]), float(shift[1])), float(np.radians(turn)), flip)


def metro_change(rng: Rng, spec: ModelSpec, margin: float) -> Change:
    """Draw METRO's: flip in half (bodies only), scale 1 +- 0.25, rotation in 40 %, normal of 30 degrees (hands 90)."""
    hand = not has_sides(spec.joints)
    flip = bool(rng.random() < 0.5) and not hand
    scale = float(np.clip(1 + rng.normal(0, METRO_SCALE_STD), 1 - METRO_SCALE_STD, 1 + METRO_SCALE_STD))
    std = METRO_ROTATION_STD_DEG[hand]
    turn = float(np.clip(rng.normal(0, std), -2 * std, 2 * std))
    if rng.random() < METRO_UPRIGHT_SHARE:
        turn = 0.0
    return Change(scale / margin, turn_rad=float(np.radians(turn)), flip=flip)


def edge_recolour(rng: Rng, image: Any) -> Any:
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


def metro_recolour(rng: Rng, image: Any) -> Any:
    """Multiply each channel by a number of its own in 0.6 to 1.4."""
    gain = rng.uniform(1 - METRO_CHANNEL_NOISE, 1 + METRO_CHANNEL_NOISE, 3)
    table = np.rint(np.clip(np.arange(256)[:, None] * gain, 0, 255)).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(image), table.reshape(256, 1, 3))


AUGMENTATIONS = {
    "edge": Augmentation("edge", edge_change, edge_recolour, labels_outside=False),
    "metro": Augmentation("metro", metro_change, metro_recolour, labels_outside=True),
}
