"""The Anny rig as arrays: bone heads, limb frames, forward kinematics and mirroring, in NumPy.

Rig frame: metres, x to the person's left, y to the back, z up; the person faces -y. A pose is (104, 3, 3) rotations in
Anny's `local-ref` parameterisation: each bone's rotation relative to its parent, in the axes of the rig frame, and
identity everywhere is the reference pose (standing, arms half raised, elbows bent).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.bodies.anny import anny_model

Array = NDArray[np.float64]
SIDES = ("L", "R")
RIG_TO_CAMERA = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # a camera before the person, level with it
SPINE = ("spine05", "spine04", "spine03", "spine02", "spine01")
NECK = ("neck01", "neck02", "neck03", "head")


def rotation(axis: Any, angle: float) -> Array:
    """Return the (3, 3) rotation by `angle` radians about `axis` (3,), by Rodrigues' formula."""
    x, y, z = np.asarray(axis, float) / max(float(np.linalg.norm(axis)), 1e-12)
    c, s = np.cos(angle), np.sin(angle)
    d = 1 - c
    return np.array(
        [
            [c + x * x * d, x * y * d - z * s, x * z * d + y * s],
            [y * x * d + z * s, c + y * y * d, y * z * d - x * s],
            [z * x * d - y * s, z * y * d + x * s, c + z * z * d],
        ]
    )


def rotation_vector(matrix: Array) -> Array:
    """Return axis times angle (3,) of a rotation matrix; the angle is in [0, pi]."""
    angle = np.arccos(np.clip((np.trace(matrix) - 1) / 2, -1, 1))
    skew = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    if angle < 1e-7:
        return skew / 2
    if np.pi - angle < 1e-4:
        column = np.argmax(np.diag(matrix))
        axis = matrix[:, column] + np.eye(3)[column]
        return axis / np.linalg.norm(axis) * angle
    return skew * (angle / (2 * np.sin(angle)))


def part_of(matrix: Array, share: float) -> Array:
    """Return the rotation about the same axis by `share` of the angle."""
    vector = rotation_vector(matrix)
    return rotation(vector, share * float(np.linalg.norm(vector)))


def euler(x_deg: float = 0.0, y_deg: float = 0.0, z_deg: float = 0.0) -> Array:
    """Return Rz @ Ry @ Rx from degrees."""
    return (
        rotation((0, 0, 1), np.radians(z_deg))
        @ rotation((0, 1, 0), np.radians(y_deg))
        @ rotation((1, 0, 0), np.radians(x_deg))
    )


def unit(vector: Any) -> Array:
    """Return `vector` at length 1."""
    vector = np.asarray(vector, float)
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def frame(along: Array, hinge: Array) -> Array:
    """Return the (3, 3) right-handed frame with columns `along`, `hinge` made orthogonal, and their cross product."""
    along = unit(along)
    hinge = unit(hinge - along * (hinge @ along))
    return np.stack((along, hinge, np.cross(along, hinge)), axis=1)


@dataclass(frozen=True)
class Limb:
    """An arm or a leg as two bones with a hinge between, in the reference pose.

    Attributes:
        upper, lower: bones that swing; upper_twist, lower_twist: bones below that share the twist.
        end: hand or foot.
        along, fore: unit directions (3,) of the two parts.
        hinge: unit axis (3,) about which the lower part bends, a positive angle bending more.
        bend: radians between the parts in the reference pose.
        lengths: metres of the two parts.
    """

    upper: int
    upper_twist: int
    lower: int
    lower_twist: int
    end: int
    along: Array
    fore: Array
    hinge: Array
    bend: float
    lengths: tuple[float, float]


@dataclass(frozen=True)
class Rig:
    """What the pose sampler needs to know of Anny's skeleton.

    Attributes:
        names: bone names; parents: index of each bone's parent, -1 at the root.
        heads: (104, 3) bone heads in the reference pose of the average body.
        mirror: (104,) index of the bone on the other side.
        limbs: (`arm` or `leg`, `L` or `R`) -> Limb.
        curls: finger bone -> axis (3,) about which a positive angle closes the fist.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    heads: Array
    mirror: NDArray[np.intp]
    limbs: dict[tuple[str, str], Limb]
    curls: dict[int, Array]
    index: dict[str, int] = field(default_factory=dict)

    def forward(self, pose: Array) -> tuple[Array, Array]:
        """Return heads (104, 3) and accumulated rotations (104, 3, 3) of the average body in `pose`."""
        turns, heads = pose.copy(), np.zeros((len(pose), 3))
        for bone, parent in enumerate(self.parents):
            if parent < 0:
                continue
            turns[bone] = turns[parent] @ pose[bone]
            heads[bone] = heads[parent] + turns[parent] @ (self.heads[bone] - self.heads[parent])
        return heads, turns

    def turn_of(self, pose: Array, bone: int) -> Array:
        """Return the accumulated rotation (3, 3) of one bone."""
        turn = pose[bone]
        while (bone := self.parents[bone]) >= 0:
            turn = pose[bone] @ turn
        return turn

    def mirrored(self, pose: Array) -> Array:
        """Return the pose (104, 3, 3) of the mirror image, left and right exchanged."""
        signs = np.array([-1.0, 1, 1])
        return pose[self.mirror] * np.outer(signs, signs)


def _limb(index: dict[str, int], heads: Array, names: tuple[str, ...]) -> Limb:
    upper, upper_twist, lower, lower_twist, end = (index[name] for name in names)
    along, fore = heads[lower] - heads[upper], heads[end] - heads[lower]
    lengths = (float(np.linalg.norm(along)), float(np.linalg.norm(fore)))
    along, fore = unit(along), unit(fore)
    bend = float(np.arccos(np.clip(along @ fore, -1, 1)))
    return Limb(upper, upper_twist, lower, lower_twist, end, along, fore, unit(np.cross(along, fore)), bend, lengths)


def _curls(index: dict[str, int], heads: Array) -> dict[int, Array]:
    curls = {}
    for side, sign in (("L", 1.0), ("R", -1.0)):
        wrist = heads[index[f"wrist.{side}"]]
        palm = unit(  # out of the palm
            sign * np.cross(heads[index[f"finger2-1.{side}"]] - wrist, heads[index[f"finger5-1.{side}"]] - wrist)
        )
        for finger in range(1, 6):
            base, tip = heads[index[f"finger{finger}-1.{side}"]], heads[index[f"finger{finger}-3.{side}"]]
            for k in range(1, 4):
                curls[index[f"finger{finger}-{k}.{side}"]] = unit(np.cross(tip - base, palm))
    return curls


@lru_cache(maxsize=1)
def load_rig() -> Rig:
    """Return the rig of the average Anny body."""
    import torch

    model = anny_model()
    with torch.no_grad():
        heads = model()["bone_poses"][0, :, :3, 3].double().numpy().copy()
    names = tuple(model.bone_labels)
    index = {name: i for i, name in enumerate(names)}
    swap = {"L": "R", "R": "L"}
    other = [index[name[:-1] + swap[name[-1]]] if name[-2:] in (".L", ".R") else i for i, name in enumerate(names)]
    mirror = np.array(other, np.intp)
    heads = (heads + heads[mirror] * np.array([-1.0, 1, 1])) / 2  # symmetric to the last bit
    limbs = {}
    for side in SIDES:
        for kind, parts in (
            ("arm", ("upperarm01", "upperarm02", "lowerarm01", "lowerarm02", "wrist")),
            ("leg", ("upperleg01", "upperleg02", "lowerleg01", "lowerleg02", "foot")),
        ):
            limbs[kind, side] = _limb(index, heads, tuple(f"{part}.{side}" for part in parts))
    parents = tuple(int(p) for p in model.bone_parents)
    return Rig(names, parents, heads, mirror, limbs, _curls(index, heads), index)
