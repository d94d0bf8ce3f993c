"""Least-squares refinement of SMPL and MANO parameters: Levenberg-Marquardt with analytic derivatives, in NumPy.

smplfitter's closed-form alternation, from which this starts, gets within millimetres and then moves slowly, and turns
no toes; the derivatives of linear blend skinning are cheap and a few steps reach the minimum.

A joint's global rotation G_k turns all that hangs on it, D(k), about the joint's place T_k, so that for a small turn
w of it in the world's axes vertex i moves by

    w x sum over m in D(k) of W_im (v_im - T_k),    v_im = G_m (p_i - j_m) + T_m,

plus what the pose directions add, and the derivatives for shape and translation are linear (SMPL: Loper et al.,
SIGGRAPH Asia 2015, equations 2 to 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from metro_edge.smpl.files import SmplFile

Array = NDArray[np.float64]

MAX_STEPS = 30
MIN_GAIN = 1e-4  # relative fall of the objective below which a step was the last
MIN_MM2 = 1e-8  # objective below which nothing is left to gain
FIRST_DAMPING = 1e-5
MAX_DAMPING = 1e5


@dataclass(frozen=True)
class Pose:
    """One body: rotations (K, 3, 3) of each joint in its parent's frame (a hand's mean included), translation (3,)."""

    rotations: Array
    translation: Array


class Skinning:
    """The arrays of a model, float64, arranged for positions and their derivatives.

    Args:
        file: the model.
        chosen: indices of the vertices that it stands for.
    """

    def __init__(self, file: SmplFile, chosen: NDArray[np.intp]) -> None:
        self.parents = file.parents
        count, joints = len(chosen), len(file.parents)
        regressor = file.joint_regressor.astype(np.float64)
        self.joint_template = regressor @ file.v_template
        self.joint_shapedirs = np.einsum("kv,vcb->kcb", regressor, file.shapedirs, optimize=True)
        self.template = file.v_template[chosen].astype(np.float64)
        self.shapedirs = file.shapedirs[chosen].astype(np.float64)
        self.weights = file.weights[chosen].astype(np.float64)
        # per joint after the root: (3 V, 9), in one piece for the products below
        posedirs = file.posedirs[chosen].astype(np.float64).reshape(3 * count, joints - 1, 9)
        self.posedirs = np.ascontiguousarray(posedirs.transpose(1, 0, 2))
        self.below = np.eye(joints)  # below[k, m]: m hangs on k, or is k
        for joint in range(joints - 1, 0, -1):
            self.below[self.parents[joint]] += self.below[joint]
        self.weights_below = self.below @ self.weights.T

    def shaped(self, betas: Array) -> tuple[Array, Array]:
        """Return vertices (V, 3) and joints (K, 3) at rest."""
        return self.template + self.shapedirs @ betas, self.joint_template + self.joint_shapedirs @ betas

    def chain(self, rotations: Array, joints: Array) -> tuple[Array, Array]:
        """Return the joints' global rotations (K, 3, 3) and places (K, 3), without the translation."""
        turned, places = np.empty_like(rotations), np.empty_like(joints)
        turned[0], places[0] = rotations[0], joints[0]
        for joint, parent in enumerate(self.parents[1:], 1):
            turned[joint] = turned[parent] @ rotations[joint]
            places[joint] = places[parent] + turned[parent] @ (joints[joint] - joints[parent])
        return turned, places

    def vertices(self, pose: Pose, betas: Array) -> Array:
        """Return (V, 3) metres."""
        shaped, joints = self.shaped(betas)
        turned, places = self.chain(pose.rotations, joints)
        blended, offsets = self._blend(turned, places, joints)
        bent = shaped + self._bend(pose.rotations)
        posed: Array = (blended @ bent[:, :, None])[:, :, 0] + offsets + pose.translation
        return posed

    def _bend(self, rotations: Array) -> Array:
        features = (rotations[1:] - np.eye(3)).reshape(-1, 9)
        moved: Array = np.einsum("kvn,kn->v", self.posedirs, features, optimize=True).reshape(-1, 3)
        return moved

    def _blend(self, turned: Array, places: Array, joints: Array) -> tuple[Array, Array]:
        """Return each vertex's blended rotation (V, 3, 3) and offset (V, 3)."""
        moved = places - (turned @ joints[:, :, None])[:, :, 0]
        return (self.weights @ turned.reshape(-1, 9)).reshape(-1, 3, 3), self.weights @ moved

    def linearised(self, pose: Pose, betas: Array) -> tuple[Array, Array]:
        """Return vertices (V, 3) and their derivatives (3 V, 3 K + 3 + B).

        Columns: per joint the turn of its global rotation in the world's axes, radians; translation; betas.
        """
        shaped, joints = self.shaped(betas)
        turned, places = self.chain(pose.rotations, joints)
        blended, offsets = self._blend(turned, places, joints)
        bent = shaped + self._bend(pose.rotations)
        vertices = (blended @ bent[:, :, None])[:, :, 0] + offsets + pose.translation

        count, size = len(self.template), len(self.parents)
        columns = np.empty((count, 3, 3 * size + 3 + self.shapedirs.shape[2]))
        lever = self._levers(turned, places, joints, bent)
        turns = columns[:, :, : 3 * size].reshape(count, 3, size, 3)
        for axis, (plus, minus) in enumerate(((1, 2), (2, 0), (0, 1))):  # e_axis x lever
            turns[:, axis, :, axis] = 0
            turns[:, minus, :, axis] = lever[:, :, plus]
            turns[:, plus, :, axis] = -lever[:, :, minus]
        self._add_bending(turns, pose.rotations, turned, blended)
        columns[:, :, : 3 * size] = turns.reshape(count, 3, 3 * size)
        columns[:, :, 3 * size : 3 * size + 3] = np.eye(3)
        columns[:, :, 3 * size + 3 :] = self._shape_columns(turned, blended)
        return vertices, columns.reshape(3 * count, -1)

    def _levers(self, turned: Array, places: Array, joints: Array, bent: Array) -> Array:
        """Return (V, K, 3): what hangs on a joint, weighted, from the joint."""
        parts = np.einsum("mab,vmb->mva", turned, bent[:, None] - joints, optimize=True) + places[:, None]
        parts *= self.weights.T[:, :, None]
        hanging = (self.below @ parts.reshape(len(joints), -1)).reshape(parts.shape)
        lever: Array = (hanging - self.weights_below[:, :, None] * places[:, None]).transpose(1, 0, 2)
        return lever

    def _add_bending(self, turns: Array, rotations: Array, turned: Array, blended: Array) -> None:
        """Add what the pose directions do: a turn w changes the joint's own rotation R by (parent^T w) x R."""
        for joint, parent in enumerate(self.parents[1:], 1):
            change = turned[parent].T @ _CROSS @ turned[parent] @ rotations[joint]  # (3 axes, 3, 3)
            bending = (self.posedirs[joint - 1] @ change.reshape(3, 9).T).reshape(-1, 3, 3)
            turns[:, :, joint] += blended @ bending

    def _shape_columns(self, turned: Array, blended: Array) -> Array:
        """Return (V, 3, B)."""
        directions = self.joint_shapedirs
        places = np.empty_like(directions)
        places[0] = directions[0]
        for joint, parent in enumerate(self.parents[1:], 1):
            places[joint] = places[parent] + turned[parent] @ (directions[joint] - directions[parent])
        moved = places - turned @ directions
        offsets = (self.weights @ moved.reshape(len(moved), -1)).reshape(-1, *moved.shape[1:])
        columns: Array = blended @ self.shapedirs + offsets
        return columns

    def stepped(self, pose: Pose, turns: Array, shift: Array) -> Pose:
        """Return the pose after turns (K, 3) of the global rotations, as `linearised` means them, and a shift (3,)."""
        turned, _ = self.chain(pose.rotations, self.joint_template)
        rotations = np.empty_like(pose.rotations)
        for joint, parent in enumerate(self.parents):
            local = turns[joint] if joint == 0 else turned[parent].T @ turns[joint]
            rotations[joint] = cv2.Rodrigues(local)[0] @ pose.rotations[joint]
        return Pose(rotations, pose.translation + shift)


_CROSS = np.array(
    [[[0, 0, 0], [0, 0, -1], [0, 1, 0]], [[0, 0, 1], [0, 0, 0], [-1, 0, 0]], [[0, -1, 0], [1, 0, 0], [0, 0, 0]]], float
)  # _CROSS[axis] @ x = e_axis x x


def refine(
    skinning: Skinning, targets: Sequence[Array], poses: Sequence[Pose], betas: Array, shape_weight: float
) -> tuple[list[Pose], Array]:
    """Fit poses of bodies that share one shape.

    Minimises the sum over bodies of the mean squared vertex distance in mm^2, plus shape_weight |betas|^2.

    Args:
        skinning: the model.
        targets: N arrays (V, 3), metres.
        poses: N, where to start.
        betas: (B,), where to start.
        shape_weight: mm^2.

    Returns:
        The N poses and betas (B,) of the lowest objective that was reached, never higher than at the start.
    """
    poses, scale = list(poses), 1000.0 / np.sqrt(len(skinning.template))

    def objective(poses: Sequence[Pose], betas: Array) -> float:
        squares = (
            np.square(scale * (skinning.vertices(p, betas) - t)).sum() for p, t in zip(poses, targets, strict=True)
        )
        return float(sum(squares) + shape_weight * betas @ betas)

    best, damping = objective(poses, betas), FIRST_DAMPING
    for _ in range(MAX_STEPS):
        normal = _normal_equations(skinning, targets, poses, betas, scale, shape_weight)
        gain = 0.0
        while damping <= MAX_DAMPING:
            steps, betas_step = normal.solve(damping)
            tried = [skinning.stepped(p, s[:-3].reshape(-1, 3), s[-3:]) for p, s in zip(poses, steps, strict=True)]
            value = objective(tried, betas + betas_step)
            if value < best:
                gain, best, poses, betas = best - value, value, tried, betas + betas_step
                damping = max(damping / 10, 1e-9)
                break
            damping *= 10
        if gain <= MIN_GAIN * best or best < MIN_MM2:
            break
    return poses, betas


@dataclass(frozen=True)
class NormalEquations:
    """Blocks of the Gauss-Newton system: N poses of P numbers each and one shape of B.

    Attributes:
        pose: (N, P, P); cross: (N, P, B); shape: (B, B).
        pose_side: (N, P); shape_side: (B,).
    """

    pose: Array
    cross: Array
    shape: Array
    pose_side: Array
    shape_side: Array

    def solve(self, damping: float) -> tuple[Array, Array]:
        """Return the steps (N, P) and (B,), the diagonal raised by `damping` of itself (Marquardt).

        What the vertices do not determine, such as a joint that carries none, stays as it is.
        """
        pose, shape = _damped(self.pose, damping), _damped(self.shape[None], damping)[0]
        inner = np.linalg.solve(pose, np.concatenate([self.cross, self.pose_side[:, :, None]], axis=2))
        by_shape, by_side = inner[:, :, :-1], inner[:, :, -1]
        # the poses eliminated (Schur complement)
        left = shape - np.einsum("npb,npc->bc", self.cross, by_shape)
        right = self.shape_side - np.einsum("npb,np->b", self.cross, by_side)
        betas = np.linalg.solve(left, right)
        return by_side - by_shape @ betas, betas


def _damped(blocks: Array, damping: float) -> Array:
    size = blocks.shape[-1]
    diagonal = np.diagonal(blocks, axis1=1, axis2=2)
    floor = 1e-10 * diagonal.max(axis=1, keepdims=True, initial=0) + 1e-12
    damped: Array = blocks + np.eye(size) * (damping * diagonal + floor)[:, None]
    return damped


def _normal_equations(
    skinning: Skinning, targets: Sequence[Array], poses: Sequence[Pose], betas: Array, scale: float, shape_weight: float
) -> NormalEquations:
    pose_blocks, cross_blocks, sides = [], [], []
    shape = shape_weight * np.eye(len(betas))
    shape_side = -shape_weight * betas
    for target, pose in zip(targets, poses, strict=True):
        vertices, columns = skinning.linearised(pose, betas)
        columns *= scale
        missing = scale * (target - vertices).ravel()
        blocks, side = columns.T @ columns, columns.T @ missing
        split = blocks.shape[0] - len(betas)
        pose_blocks.append(blocks[:split, :split])
        cross_blocks.append(blocks[:split, split:])
        sides.append(side[:split])
        shape = shape + blocks[split:, split:]
        shape_side = shape_side + side[split:]
    return NormalEquations(np.stack(pose_blocks), np.stack(cross_blocks), shape, np.stack(sides), shape_side)
