"""BVH: the joint skeleton's motion for animation programs, one file a person; joint positions turned into rotations.

A BVH skeleton has constant bone lengths; a network's joints have not. Lengths are means over the clip, and each joint's
rotation turns the bones that hang on it as closely as a rotation can (one bone: the least turn, so that twist about
it, which joints do not tell, is none; several: Kabsch's least squares). Centimetres, y up, as most programs expect.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from metro_edge.files import replacing
from metro_edge.joints import JointSet
from metro_edge.video.sinks import Sink
from metro_edge.video.spool import Spool
from metro_edge.video.stream import FrameResult
from metro_edge.video.writing import written

Array = NDArray[np.float64]
ROOT = "root"
CM = 100.0
TO_Y_UP = np.array([1.0, -1.0, -1.0])  # camera frame (y down, z away) to y up, z towards the viewer


@dataclass(frozen=True)
class Skeleton:
    """A tree over a joint set: `parents` (K,), the root first with -1; `names` (K,); `rows` (K,) of the joints.

    The root node is the joint set's root, row -1 when it is a mean of joints.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, joints: JointSet) -> Skeleton:
        """Return the tree that the bones span from the root, breadth first; what no bone reaches hangs on the head."""
        single = joints.root_indices[0] if len(joints.root_indices) == 1 else -1
        names, parents, rows = [joints.names[single] if single >= 0 else ROOT], [-1], [single]
        near: dict[int, list[int]] = {}
        for a, b in joints.bone_indices:
            near.setdefault(a, []).append(b)
            near.setdefault(b, []).append(a)
        first = list(near.get(single, ())) if single >= 0 else [*joints.root_indices, *_middle_neighbours(joints)]
        waiting = [(row, 0) for row in first]
        while waiting:
            row, parent = waiting.pop(0)
            if row in rows:
                continue
            names.append(joints.names[row])
            parents.append(parent)
            rows.append(row)
            waiting += [(other, len(rows) - 1) for other in near.get(row, ()) if other not in rows]
        _hang_the_rest(joints, names, parents, rows)
        return cls(tuple(names), tuple(parents), tuple(rows))

    def points(self, joints: Array) -> Array:
        """Return node positions (K, 3) of joints (J, 3) from their root, y up."""
        nodes = np.zeros((len(self.rows), 3))
        for node, row in enumerate(self.rows):
            if row >= 0:
                nodes[node] = joints[row] * TO_Y_UP
        return nodes

    def children(self, node: int) -> list[int]:
        """Return the nodes that hang on `node`."""
        return [child for child, parent in enumerate(self.parents) if parent == node]


def _hang_the_rest(joints: JointSet, names: list[str], parents: list[int], rows: list[int]) -> None:
    """Add joints that no bone reaches, such as eyes and ears: on the head, else the neck, else the root."""
    upper = [names.index(name) for name in ("jaw", "head_top", "neck") if name in names]
    for row, name in enumerate(joints.names):
        if row not in rows:
            names.append(name)
            parents.append(upper[0] if upper else 0)
            rows.append(row)


def _middle_neighbours(joints: JointSet) -> list[int]:
    """Joints on the body's middle that hang on the root's joints: the neck, where there is no pelvis."""
    middle = [n for n, name in enumerate(joints.names) if not name.startswith(("left_", "right_"))]
    pairs = [(a, b) for a, b in (*joints.bone_indices, *((b, a) for a, b in joints.bone_indices))]
    return [b for a, b in pairs if a in joints.root_indices and b in middle]


def local_rotations(skeleton: Skeleton, offsets: Array, points: Array) -> Array:
    """Return rotations (K, 3, 3) of the nodes, each relative to its parent, that turn `offsets` towards `points`.

    Args:
        skeleton: of both.
        offsets: (K, 3) of each node from its parent in the rest pose.
        points: (K, 3) of a frame.
    """
    count = len(skeleton.parents)
    world, local = np.tile(np.eye(3), (count, 1, 1)), np.tile(np.eye(3), (count, 1, 1))
    for node in range(count):
        above = np.eye(3) if node == 0 else world[skeleton.parents[node]]
        kids = skeleton.children(node)
        rest = np.array([offsets[kid] for kid in kids]).reshape(-1, 3) @ above.T
        seen = np.array([points[kid] - points[node] for kid in kids]).reshape(-1, 3)
        turn = np.eye(3) if not kids else _least_turn(rest[0], seen[0]) if len(kids) == 1 else _kabsch(rest, seen)
        world[node] = turn @ above
        local[node] = above.T @ world[node]
    return local


def _least_turn(a: Array, b: Array) -> Array:
    """Return the rotation by the smallest angle that turns direction `a` into `b`."""
    a, b = a / max(float(np.linalg.norm(a)), 1e-9), b / max(float(np.linalg.norm(b)), 1e-9)
    axis, cosine = np.cross(a, b), float(a @ b)
    if cosine < -0.999999:  # opposite: half a turn about anything across
        across = np.cross(a, np.eye(3)[int(np.abs(a).argmin())])
        across /= max(float(np.linalg.norm(across)), 1e-9)
        half: Array = 2.0 * np.outer(across, across) - np.eye(3)
        return half
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn: Array = np.eye(3) + k + k @ k / (1.0 + cosine)
    return turn


def _kabsch(rest: Array, seen: Array) -> Array:
    u, _, vt = np.linalg.svd(rest.T @ seen)
    sign = np.sign(np.linalg.det(vt.T @ u.T)) or 1.0
    turn: Array = vt.T @ np.diag([1.0, 1.0, sign]) @ u.T
    return turn


def euler_zxy_deg(rotation: Array) -> tuple[float, float, float]:
    """Return degrees (z, x, y) with R = Rz @ Rx @ Ry, BVH's usual order."""
    x = np.arcsin(np.clip(rotation[2, 1], -1.0, 1.0))
    if abs(rotation[2, 1]) > 0.999999:
        z, y = np.arctan2(rotation[1, 0], rotation[0, 0]), 0.0
    else:
        z, y = np.arctan2(-rotation[0, 1], rotation[1, 1]), np.arctan2(-rotation[2, 0], rotation[2, 2])
    degrees = np.degrees([z, x, y])
    return float(degrees[0]), float(degrees[1]), float(degrees[2])


class BvhFiles(Sink):
    """STEM.person1.bvh, STEM.person2.bvh, ...: one file an identity, from their first frame to their last.

    Frames are evenly spaced, as the format wants: each holds the pose of the last result before it, so that gaps and a
    varying rate keep their length.
    """

    def __init__(self, path: str | os.PathLike[str], joints: JointSet, fps: float) -> None:
        """Check that the folder can be written; `path` is STEM.bvh."""
        self.path, self.notes, self._fps = Path(path), [], fps
        self._written: list[Path] = []
        self._skeleton = Skeleton.of(joints)
        self._spool = Spool(self.path.parent, (len(joints) + 2, 3))  # joints, translation, time
        self._rows: dict[int, list[int]] = {}

    @property
    def paths(self) -> list[Path]:
        """The files, one a person."""
        return self._written

    def write(self, result: FrameResult) -> None:
        """Keep the frame's joints."""
        for person in result.people:
            self._rows.setdefault(person.identity, []).append(self._spool.rows)
            body = person.body
            self._spool.append(np.concatenate([body.joints, [body.translation], [[result.time_s, 0, 0]]]))

    def close(self, complete: bool = True) -> None:
        """Write a file per person."""
        assert self.path is not None
        try:
            if not self._rows:
                self.notes.append(f"nobody was seen: no {self.path.stem}.person*.bvh was written")
            for identity, rows in sorted(self._rows.items()):
                path = self.path.with_name(f"{self.path.stem}.person{identity}.bvh")
                with written(path), replacing(path) as partial, open(partial, "w", encoding="ascii") as file:
                    self._write_person(file, rows)
                self._written.append(path)
        finally:
            self.discard()

    def discard(self) -> None:
        """Free what waits on the disk."""
        self._spool.close()

    def _write_person(self, file: TextIO, rows: list[int]) -> None:
        lengths = np.zeros(len(self._skeleton.rows))
        for row in rows:
            lengths += np.linalg.norm(self._bones(row), axis=1) / len(rows)
        # The rest pose is the first frame's, with the mean lengths.
        first = self._bones(rows[0])
        offsets = first / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-9) * lengths[:, None]
        lines = ["HIERARCHY", *self._hierarchy(0, offsets, 0), "MOTION"]
        times = [float(self._spool.row(row)[-1, 0]) for row in rows]
        frames = max(1, round((times[-1] - times[0]) * self._fps) + 1)
        lines += [f"Frames: {frames}", f"Frame Time: {1.0 / self._fps:.6f}"]
        print("\n".join(lines), file=file)
        at = 0
        for number in range(frames):
            now = times[0] + number / self._fps + 0.25 / self._fps
            while at + 1 < len(rows) and times[at + 1] <= now:
                at += 1
            print(self._motion(self._spool.row(rows[at]).astype(np.float64), offsets), file=file)

    def _bones(self, row: int) -> Array:
        """Return the nodes' places (K, 3) from their parents in a row."""
        points = self._skeleton.points(self._spool.row(row)[:-2].astype(np.float64))
        return points - points[np.maximum(self._skeleton.parents, 0)]

    def _hierarchy(self, node: int, offsets: Array, depth: int) -> list[str]:
        pad, kids = "  " * depth, self._skeleton.children(node)
        offset = " ".join(f"{value:.4f}" for value in offsets[node] * CM)
        turns = "Zrotation Xrotation Yrotation"
        channels = f"CHANNELS 6 Xposition Yposition Zposition {turns}" if node == 0 else f"CHANNELS 3 {turns}"
        kind = "ROOT" if node == 0 else "JOINT"
        lines = [f"{pad}{kind} {self._skeleton.names[node]}", f"{pad}{{"]
        lines += [f"{pad}  OFFSET {offset}", f"{pad}  {channels}"]
        for kid in kids:
            lines += self._hierarchy(kid, offsets, depth + 1)
        if not kids:
            lines += [f"{pad}  End Site", f"{pad}  {{", f"{pad}    OFFSET 0.0000 0.0000 0.0000", f"{pad}  }}"]
        return [*lines, f"{pad}}}"]

    def _motion(self, row: Array, offsets: Array) -> str:
        points = self._skeleton.points(row[:-2])
        turns = local_rotations(self._skeleton, offsets, points)
        values = list(row[-2] * TO_Y_UP * CM)
        for node in self._order(0):
            values += euler_zxy_deg(turns[node])
        return " ".join(f"{value:.4f}" for value in values)

    def _order(self, node: int) -> list[int]:
        """Nodes in the order of the hierarchy, depth first, in which BVH lists its channels."""
        return [node, *(inner for kid in self._skeleton.children(node) for inner in self._order(kid))]
