"""MPJPE, PA-MPJPE and MPVPE by the protocols of METRO (CVPR 2021, section 4.2) and its released code, and others.

All take points in metres, (N, P, 3), compute in float64 and return one error per sample, in metres. Joints
are the ones regressed from the full mesh; `mesh_errors` runs the whole protocol. Means are over samples
(`MeshErrors.means_mm`). PCK and AUC as in MPI-INF-3DHP, acceleration error and jitter of people who move.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metro_edge.errors import UserError
from metro_edge.joints import JointSet, joint_set
from metro_edge.template import BodyTemplate

Errors = NDArray[np.float64]
METRIC_NAMES = ("mpjpe", "pa_mpjpe", "mpvpe")
PCK_THRESHOLD_M = 0.15
AUC_THRESHOLDS_M = tuple(k / 200 for k in range(31))  # 0, 5, ... 150 mm


def mpjpe(predicted: ArrayLike, truth: ArrayLike, joints: JointSet, has_label: ArrayLike | None = None) -> Errors:
    """Mean per joint position error after moving each sample's root to the origin.

    Args:
        predicted, truth: (N, J, 3) metres.
        joints: their joint set, which says what the root is: the middle of the hips for h36m14.
        has_label: (N,), samples without a label are left out.

    Returns:
        (M,) metres, M labelled samples in order.

    Raises:
        UserError: for shapes that do not fit.
    """
    return _mean_of_points(joint_errors(predicted, truth, joints, has_label))


def joint_errors(
    predicted: ArrayLike, truth: ArrayLike, joints: JointSet, has_label: ArrayLike | None = None
) -> Errors:
    """Return the position error of each joint, (M, J) metres; all else as for `mpjpe`, which is its mean over joints.

    The root itself, where it is one joint, has the error 0 by definition; a root between two joints leaves them some.
    """
    a, b = _pair(predicted, truth, has_label)
    if a.shape[1] != len(joints):
        raise UserError(f"joint set {joints.name} has {len(joints)} joints, got points of shape {a.shape}")
    return _distance(a - joints.root_of(a)[:, None], b - joints.root_of(b)[:, None])


def pa_mpjpe(predicted: ArrayLike, truth: ArrayLike, has_label: ArrayLike | None = None) -> Errors:
    """Mean per joint position error after the best similarity of each sample (`procrustes`).

    Arguments, result and errors as for `mpjpe`; needs no joint set because the alignment removes the root.
    """
    return _mean_of_points(pa_joint_errors(predicted, truth, has_label))


def pa_joint_errors(predicted: ArrayLike, truth: ArrayLike, has_label: ArrayLike | None = None) -> Errors:
    """Return the position error of each joint after each sample's best similarity, (M, J) metres; as `pa_mpjpe`."""
    a, b = _pair(predicted, truth, has_label)
    return _distance(procrustes(a, b), b)


def pck(errors: ArrayLike, threshold_m: float = PCK_THRESHOLD_M) -> Errors:
    """Return per sample the share of joints that are nearer than the threshold, (N,) in [0, 1].

    3D PCK of MPI-INF-3DHP (Mehta et al., 3DV 2017, section 5): 150 mm, strictly nearer as its evaluation counts. As
    every sample has the same joints, the mean over samples is the share of all joints.

    Args:
        errors: (N, J) metres, of `joint_errors` or, for PA-PCK, of `pa_joint_errors`.
        threshold_m: metres.

    Raises:
        UserError: for errors that are not (N, J), negative or not finite.
    """
    return _mean_of_points((_joint_errors(errors) < threshold_m).astype(np.float64))


def auc(errors: ArrayLike) -> Errors:
    """Return per sample the area under the curve of PCK over its threshold, (N,) in [0, 1].

    As in MPI-INF-3DHP the mean of PCK at 0, 5, ... 150 mm (AUC_THRESHOLDS_M). A perfect prediction has 30/31, as no
    error is below 0. Arguments and errors as for `pck`.
    """
    # How many thresholds an error is below: all those beyond it.
    thresholds = np.asarray(AUC_THRESHOLDS_M)
    above = len(thresholds) - np.searchsorted(thresholds, _joint_errors(errors), side="right")
    return _mean_of_points(above / len(thresholds))


def mpvpe(predicted: ArrayLike, truth: ArrayLike, has_label: ArrayLike | None = None) -> Errors:
    """Mean per vertex position error of meshes (N, V, 3) that the caller has centred on their own roots.

    Arguments, result and errors as for `mpjpe`. The meshes are compared as they are: centre them first
    (`BodyTemplate.root`), as `mesh_errors` does.
    """
    return _mean_distance(*_pair(predicted, truth, has_label))


def pa_mpvpe(predicted: ArrayLike, truth: ArrayLike, has_label: ArrayLike | None = None) -> Errors:
    """Mean per vertex position error of meshes (N, V, 3) after the best similarity of each sample (`procrustes`).

    Arguments, result and errors as for `mpjpe`.
    """
    return pa_mpjpe(predicted, truth, has_label)


def f_score(predicted: ArrayLike, truth: ArrayLike, threshold_m: float) -> Errors:
    """Return per sample the F-score of meshes at a distance, (N,) in [0, 1]; align them first where that is wanted.

    The harmonic mean of two shares: of predicted vertices that have a true vertex within `threshold_m`, and of true
    vertices that have a predicted one (Knapitsch et al., "Tanks and Temples", 2017, equations 1 to 3; FreiHAND's
    evaluation takes 5 and 15 mm). Raises UserError for shapes that do not fit.
    """
    a, b = _pair(predicted, truth, None)
    scores = np.empty(len(a))
    for i, (ours, theirs) in enumerate(zip(a, b, strict=True)):
        squared = np.zeros((len(ours), len(theirs)))
        for k in range(3):
            squared += (ours[:, None, k] - theirs[None, :, k]) ** 2
        near = squared < threshold_m**2
        precision, recall = near.any(axis=1).mean(), near.any(axis=0).mean()
        scores[i] = 2 * precision * recall / max(precision + recall, 1e-12)
    return scores


def procrustes(points: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """Move `points` (N, P, 3) onto `target` by the similarity of least squares; no reflection.

    Per sample: scale, rotation (determinant +1) and translation of Umeyama, "Least-squares estimation of
    transformation parameters between two point patterns", 1991, equations 40 to 42. Points that all coincide
    are moved onto the target's centre.
    """
    a, b = _pair(points, target, None)
    centre_a, centre_b = a.mean(axis=1, keepdims=True), b.mean(axis=1, keepdims=True)
    a, b = a - centre_a, b - centre_b
    u, singular, vt = np.linalg.svd(np.swapaxes(b, 1, 2) @ a)
    sign = np.ones_like(singular)
    sign[:, 2] = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)
    rotation = (u * sign[:, None, :]) @ vt
    spread = (a**2).sum(axis=(1, 2))
    scale = np.divide((singular * sign).sum(axis=1), spread, out=np.zeros_like(spread), where=spread > 0)
    moved: NDArray[np.float64] = scale[:, None, None] * (a @ np.swapaxes(rotation, 1, 2)) + centre_b
    return moved


@dataclass(frozen=True)
class MeshErrors:
    """Errors per sample in metres, each (N,) float64."""

    mpjpe: Errors
    pa_mpjpe: Errors
    mpvpe: Errors

    def means_mm(self) -> dict[str, float]:
        """Return the means over samples in mm by name (METRIC_NAMES); raises UserError for no samples."""
        return {name: mean_mm(getattr(self, name)) for name in METRIC_NAMES}


def mesh_errors(predicted: ArrayLike, truth: ArrayLike, template: BodyTemplate, joint_set_name: str) -> MeshErrors:
    """Compare meshes (N, V, 3) in metres: joints regressed from both, each mesh centred on its own root.

    Raises UserError for shapes that do not fit or a joint set for which `template` has no regressor.
    """
    a, b = _pair(predicted, truth, None)
    if a.shape[1] != len(template.vertices):
        raise UserError(f"body {template.name} has {len(template.vertices)} vertices, got meshes of shape {a.shape}")
    joints_a = np.asarray(template.joints(joint_set_name, a), np.float64)
    joints_b = np.asarray(template.joints(joint_set_name, b), np.float64)
    joints = joint_set(joint_set_name)
    return MeshErrors(
        mpjpe=mpjpe(joints_a, joints_b, joints),
        pa_mpjpe=pa_mpjpe(joints_a, joints_b),
        mpvpe=mpvpe(a - joints.root_of(joints_a)[:, None], b - joints.root_of(joints_b)[:, None]),
    )


def mean_mm(errors: ArrayLike) -> float:
    """Return the mean of errors (N,) in metres as mm; raises UserError when there is none to average."""
    values = np.asarray(errors, np.float64)
    if values.size == 0:
        raise UserError("no labelled sample: the mean error is undefined")
    return float(values.mean() * 1000.0)


def acceleration_error_mm(points: ArrayLike, truth: ArrayLike | None = None) -> float:
    """Return the jitter of points (F, P, 3) metres of F frames in a row: the mean acceleration error, mm per frame^2.

    That is the mean norm of the second difference of points minus truth (HMMR, Kanazawa et al., CVPR 2019; VIBE).
    Without a truth it is the mean acceleration itself, which contains the person's own.

    Raises:
        UserError: fewer than 3 frames, or shapes that differ.
    """
    a = np.asarray(points, np.float64)
    b = np.zeros_like(a) if truth is None else np.asarray(truth, np.float64)
    if a.shape != b.shape or a.ndim != 3:
        raise UserError(f"points and truth must have one shape (F, P, 3), got {a.shape} and {b.shape}")
    if len(a) < 3:
        raise UserError(f"an acceleration needs at least 3 frames, got {len(a)}")
    return mean_mm(np.linalg.norm(np.diff(a - b, n=2, axis=0), axis=-1))


def jitter_mm(points: ArrayLike) -> float:
    """Return how much points (F, P, 3) metres of F frames in a row tremble: their mean jerk, mm per frame^3.

    The mean norm of the third difference, which needs no truth (Flash and Hogan, J. Neuroscience 1985; as the jitter
    of joints in TransPose, Yi et al., SIGGRAPH 2021). What truth there is has some of its own: hold both beside.

    Raises:
        UserError: fewer than 4 frames, or points of another shape.
    """
    a = np.asarray(points, np.float64)
    if a.ndim != 3:
        raise UserError(f"points must be (F, P, 3), got {a.shape}")
    if len(a) < 4:
        raise UserError(f"a jerk needs at least 4 frames, got {len(a)}")
    return mean_mm(np.linalg.norm(np.diff(a, n=3, axis=0), axis=-1))


def _joint_errors(errors: ArrayLike) -> Errors:
    array = np.asarray(errors, np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise UserError(f"errors must be (N, J), one a joint, got {array.shape}")
    if not (np.isfinite(array) & (array >= 0)).all():
        raise UserError("an error of a joint is negative, NaN or infinite: no share is taken of it")
    return array


def _pair(first: ArrayLike, second: ArrayLike, has_label: ArrayLike | None) -> tuple[Errors, Errors]:
    """Return both as float64 (N, P, 3), labelled samples only."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    # By the last axis explicitly: guessing the coordinate axis from a size of 3 breaks batches of 3.
    if a.ndim != 3 or a.shape[-1] != 3 or a.shape[1] == 0:
        raise UserError(f"points must be (N, P, 3) in metres, got {a.shape}")
    if a.shape != b.shape:
        raise UserError(f"predicted and true points must have the same shape, got {a.shape} and {b.shape}")
    if has_label is None:
        return a, b
    mask = np.asarray(has_label)
    if mask.shape != (len(a),):
        raise UserError(f"has_label must be ({len(a)},), one per sample, got {mask.shape}")
    return a[mask.astype(bool)], b[mask.astype(bool)]


def _mean_distance(a: Errors, b: Errors) -> Errors:
    return _mean_of_points(_distance(a, b))


def _distance(a: Errors, b: Errors) -> Errors:
    distance: Errors = np.linalg.norm(a - b, axis=-1)
    return distance


def _mean_of_points(values: Errors) -> Errors:
    mean: Errors = values.mean(axis=-1)
    return mean
