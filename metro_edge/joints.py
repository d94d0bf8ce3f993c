"""Joint sets: names, skeleton, mirror pairs and root, defined once and used everywhere by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError


@dataclass(frozen=True)
class JointSet:
    """An ordered list of named joints.

    Attributes:
        name: the word used in specs and on the command line.
        names: joint names in the order of the (J, 3) arrays.
        bones: pairs of joint names that a skeleton drawing connects.
        root: names of the joints whose mean is the root, the origin of root-centred coordinates.
        source: where the order comes from.
    """

    name: str
    names: tuple[str, ...]
    bones: tuple[tuple[str, str], ...]
    root: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.names)

    def index(self, joint: str) -> int:
        """Return the row of `joint`; raises UserError for a name that is not in the set."""
        try:
            return self.names.index(joint)
        except ValueError:
            raise UserError(f"joint set {self.name} has no joint {joint!r}; it has {', '.join(self.names)}") from None

    @cached_property
    def root_indices(self) -> tuple[int, ...]:
        """Rows whose mean is the root."""
        return tuple(self.index(name) for name in self.root)

    @cached_property
    def bone_indices(self) -> tuple[tuple[int, int], ...]:
        """Rows of the two ends of each bone."""
        return tuple((self.index(a), self.index(b)) for a, b in self.bones)

    @cached_property
    def mirror(self) -> tuple[int, ...]:
        """Permutation that swaps left and right: mirrored[i] = joints[mirror[i]]."""
        return tuple(self.index(_other_side(name)) for name in self.names)

    def root_of(self, joints: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the root (..., 3) of `joints` (..., J, 3), in the same unit and frame."""
        root: NDArray[np.floating] = np.asarray(joints)[..., list(self.root_indices), :].mean(axis=-2)
        return root


def _other_side(name: str) -> str:
    for side, other in (("left_", "right_"), ("right_", "left_")):
        if name.startswith(side):
            return other + name[len(side) :]
    return name


def _both(*bones: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """Bones of the right side, followed by the same of the left."""
    return bones + tuple((_other_side(a), _other_side(b)) for a, b in bones)


H36M14 = JointSet(
    name="h36m14",
    names=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
        "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
        "neck", "head_top",
    ),
    bones=(
        *_both(
            ("right_ankle", "right_knee"), ("right_knee", "right_hip"), ("right_hip", "neck"),
            ("right_wrist", "right_elbow"), ("right_elbow", "right_shoulder"), ("right_shoulder", "neck"),
        ),
        ("right_hip", "left_hip"),
        ("neck", "head_top"),
    ),
    root=("right_hip", "left_hip"),
    source="the 14 joints that METRO evaluates on Human3.6M and 3DPW, in LSP order",
)  # fmt: skip

H36M17 = JointSet(
    name="h36m17",
    names=(
        "pelvis", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
        "spine", "neck", "nose", "head_top",
        "left_shoulder", "left_elbow", "left_wrist", "right_shoulder", "right_elbow", "right_wrist",
    ),
    bones=(
        *_both(
            ("right_ankle", "right_knee"), ("right_knee", "right_hip"), ("right_hip", "pelvis"),
            ("right_wrist", "right_elbow"), ("right_elbow", "right_shoulder"), ("right_shoulder", "neck"),
        ),
        ("pelvis", "spine"), ("spine", "neck"), ("neck", "nose"), ("nose", "head_top"),
    ),
    root=("pelvis",),
    source="the 17 joints of METRO's Human3.6M regressor; meshes are centred on its pelvis for MPVPE",
)  # fmt: skip

COCO17 = JointSet(
    name="coco17",
    names=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
        "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip",
        "left_knee", "right_knee", "left_ankle", "right_ankle",
    ),
    bones=(
        *_both(
            ("right_ankle", "right_knee"), ("right_knee", "right_hip"), ("right_hip", "right_shoulder"),
            ("right_wrist", "right_elbow"), ("right_elbow", "right_shoulder"), ("right_ear", "right_eye"),
            ("right_eye", "nose"),
        ),
        ("right_hip", "left_hip"),
        ("right_shoulder", "left_shoulder"),
    ),
    root=("right_hip", "left_hip"),
    source="COCO person keypoints",
)  # fmt: skip

_FINGERS = ("thumb", "index", "middle", "ring", "little")
FREIHAND21 = JointSet(
    name="freihand21",
    names=("wrist", *(f"{finger}_{k}" for finger in _FINGERS for k in range(1, 5))),
    bones=tuple(
        (("wrist" if k == 1 else f"{finger}_{k - 1}"), f"{finger}_{k}") for finger in _FINGERS for k in range(1, 5)
    ),
    root=("wrist",),
    source="FreiHAND: wrist, then four joints per finger from the palm to the tip",
)

J24 = JointSet(
    name="j24",
    names=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
        "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
        "neck", "crown", "pelvis", "thorax", "spine", "jaw", "head_top",
        "nose", "left_eye", "right_eye", "left_ear", "right_ear",
    ),
    bones=(
        *_both(
            ("right_ankle", "right_knee"), ("right_knee", "right_hip"), ("right_hip", "pelvis"),
            ("right_wrist", "right_elbow"), ("right_elbow", "right_shoulder"), ("right_shoulder", "thorax"),
            ("right_ear", "right_eye"), ("right_eye", "nose"),
        ),
        ("pelvis", "spine"), ("spine", "thorax"), ("thorax", "neck"), ("neck", "jaw"), ("jaw", "head_top"),
        ("head_top", "crown"),
    ),
    root=("pelvis",),
    source=(
        "the 24 joints of the labels of METRO, GraphCMR and SPIN, a superset of their data sets' joints; `head_top` is "
        "their 19th, Human3.6M's head, and `crown` their 14th, the top of the head of LSP and MPII"
    ),
)  # fmt: skip

JOINT_SETS: dict[str, JointSet] = {s.name: s for s in (H36M14, H36M17, COCO17, FREIHAND21, J24)}


def joint_set(name: str) -> JointSet:
    """Return the joint set called `name`; raises UserError for an unknown one."""
    try:
        return JOINT_SETS[name]
    except KeyError:
        raise UserError(f"unknown joint set {name!r}; known: {', '.join(JOINT_SETS)}") from None
