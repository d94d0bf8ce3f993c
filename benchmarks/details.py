"""What a mean error hides: errors joint by joint, shares of joints that are near enough, distances on the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bootstrap import Statistic, figure, interval, mean, p95
from metro_edge.backends import Outputs
from metro_edge.metrics import auc, joint_errors, pa_joint_errors, pck
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate

Floats = NDArray[np.float64]
REPROJECTION_UNITS = ("px", "box_share")
REPROJECTION_PROTOCOL = (
    "joints regressed from the predicted mesh, put by the predicted camera (s, tx, ty) on the crop and by its square "
    "on the frame, against the true joints as the true camera shows them; mean over the joints of a sample that lie "
    "inside its crop, then over samples; px of the full frame, and shares of the longer side of the box"
)


@dataclass(frozen=True, eq=False)
class Projected:
    """Distances on the picture between predicted and true joints.

    Attributes:
        halves: (N, J) in halves of the crop's side.
        counts: (N, J) bool, which joints have a true place inside the crop.
        side_px: (N,) side of the crop in px of the full frame; None where it is not known.
        box_scale: side of the crop over the longer side of the box.
    """

    halves: Floats
    counts: NDArray[np.bool_]
    side_px: Floats | None
    box_scale: float

    @property
    def seen(self) -> NDArray[np.bool_]:
        """(N,) which samples have a joint that counts."""
        return np.asarray(self.counts.any(axis=1))

    def per_sample(self, unit: str) -> Floats | None:
        """Return the mean over joints, (M,) of the `seen` samples, in `px` or as `box_share`; None where not known."""
        if unit == "px" and self.side_px is None:
            return None
        total = np.where(self.counts, self.halves, 0.0).sum(axis=1)[self.seen] / self.counts.sum(axis=1)[self.seen]
        if unit == "box_share":
            return np.asarray(total * self.box_scale / 2.0)
        assert self.side_px is not None
        return np.asarray(total * self.side_px[self.seen] / 2.0)


@dataclass(frozen=True, eq=False)
class Details:
    """Errors of one precision in detail.

    Attributes:
        names: (J) of the joints.
        joints, pa_joints: (N, J) metres, of metro_edge.metrics.joint_errors and pa_joint_errors.
        projected: distances on the picture; None where the data has no true 2D joints.
    """

    names: tuple[str, ...]
    joints: Floats
    pa_joints: Floats
    projected: Projected | None = None

    @classmethod
    def joined(cls, parts: Sequence[Details]) -> Details:
        """Return batches of one data set, at least one, as one."""
        projected = [part.projected for part in parts if part.projected is not None]
        joined = None
        if projected:
            sides = [p.side_px for p in projected if p.side_px is not None]
            joined = Projected(
                np.concatenate([p.halves for p in projected]),
                np.concatenate([p.counts for p in projected]),
                np.concatenate(sides) if len(sides) == len(projected) else None,
                projected[0].box_scale,
            )
        joints, pa_joints = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("joints", "pa_joints")
        )
        return cls(parts[0].names, joints, pa_joints, joined)

    def to_dict(self, reference: Details | None = None) -> dict[str, Any]:
        """Return `per_joint`, `shares` and `reprojection` of benchmarks.report, with losses against `reference`."""
        return {
            "per_joint": self._per_joint(reference),
            "shares": self._shares(reference),
            "reprojection": self._reprojection(reference),
        }

    def _per_joint(self, reference: Details | None) -> dict[str, Any]:
        table = {}
        for k, name in enumerate(self.names):
            change = None if reference is None else self.joints[:, k] - reference.joints[:, k]
            table[name] = {
                **_named("error", "_mm", self.joints[:, k] * 1000.0),
                **_named("pa_error", "_mm", self.pa_joints[:, k] * 1000.0),
                **_named("change", "_mm", None if change is None else change * 1000.0),
            }
        return table

    def _shares(self, reference: Details | None) -> dict[str, Any]:
        ours, theirs = _shares_of(self), None if reference is None else _shares_of(reference)
        table: dict[str, Any] = {}
        for name, values in ours.items():
            table |= _named(name, "", values)
            table |= _named(f"{name}_change", "", None if theirs is None else values - theirs[name])
        return table

    def _reprojection(self, reference: Details | None) -> dict[str, Any] | None:
        if self.projected is None or not self.projected.seen.any():
            return None
        table: dict[str, Any] = {"samples": int(self.projected.seen.sum())}
        for unit in REPROJECTION_UNITS:
            values, theirs = self.projected.per_sample(unit), None
            if reference is not None and reference.projected is not None:
                theirs = reference.projected.per_sample(unit)
            change = None if values is None or theirs is None else values - theirs
            table |= _named(unit, "", values) | _named(f"{unit}_p95", "", values, p95)
            table |= _named(f"{unit}_change", "", change) | _named(f"{unit}_change_p95", "", change, p95)
        return table


def batch_details(
    outputs: Outputs, truth: NDArray[np.floating], batch: Mapping[str, Any], template: BodyTemplate, spec: ModelSpec
) -> Details:
    """Compare the outputs of one batch with its true joints.

    Args:
        outputs: of N images, with their mesh.
        truth: (N, J, 3) true joints, metres.
        batch: may have `joints_2d` (N, J, 3), crop coordinates and which joints count, and `side_px` (N,).
        template, spec: of the network.
    """
    joints = np.asarray(template.joints(spec.joint_set, outputs.mesh.astype(np.float64)), np.float64)
    projected = None
    if "joints_2d" in batch:
        true_2d, camera = np.asarray(batch["joints_2d"], np.float64), np.asarray(outputs.camera, np.float64)
        ours = camera[:, None, :1] * (joints[..., :2] + camera[:, None, 1:])
        side_px = np.asarray(batch["side_px"], np.float64) if "side_px" in batch else None
        distance = np.linalg.norm(ours - true_2d[..., :2], axis=-1)
        projected = Projected(distance, true_2d[..., 2] > 0, side_px, spec.box_scale)
    return Details(
        spec.joints.names, joint_errors(joints, truth, spec.joints), pa_joint_errors(joints, truth), projected
    )


def _shares_of(details: Details) -> dict[str, Floats]:
    return {
        "pck": pck(details.joints),
        "auc": auc(details.joints),
        "pa_pck": pck(details.pa_joints),
        "pa_auc": auc(details.pa_joints),
    }


def _named(name: str, unit: str, values: Floats | None, statistic: Statistic = mean) -> dict[str, Any]:
    """Return a figure and its interval as `NAMEUNIT` and `NAME_interval`, null without values."""
    if values is None:
        return {f"{name}{unit}": None, f"{name}_interval": None}
    found = interval(values, statistic)
    return {f"{name}{unit}": figure(values, statistic), f"{name}_interval": found and found.to_dict()}
