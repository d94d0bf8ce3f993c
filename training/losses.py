"""METRO's losses: L1 on vertices, joints, regressed joints and projected joints (paper, section 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metro_edge.errors import UserError
from metro_edge.joints import JointSet
from metro_edge.template import BodyTemplate
from training.model import MetroOutput


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term; every term is an L1 in metres (2D: in half crop widths) averaged over coordinates.

    Attributes:
        vertices: the mean over mesh levels, each compared with the same level of the ground truth.
        joints: joints predicted by the joint tokens.
        regressed_joints: joints regressed from the predicted full mesh.
        joints_2d: both kinds of joints, projected by the predicted camera.
    """

    vertices: float = 1.0
    joints: float = 1.0
    regressed_joints: float = 1.0
    joints_2d: float = 0.5

    def __post_init__(self) -> None:
        values = list(vars(self).values())
        if not all(math.isfinite(value) and value >= 0 for value in values) or not any(values):
            raise UserError(f"loss weights must be numbers from 0 on, not all zero, got {vars(self)}")


class MetroLoss(nn.Module):
    """The weighted sum of the paper's losses over the samples that carry each label.

    Args:
        template: the body; gives mesh levels and the joint regressor.
        joints: the joint set of the labels and of the network's joint tokens.
        weights: of the terms.

    Batch entries: `vertices` (N, V, 3) and `joints` (N, J, 3), metres, camera frame, any common origin;
    `joints_2d` (N, J, 3), x and y in crop coordinates [-1, 1] and confidence; `joints_confidence` (N, J), 1 for all
    where it is missing; `has_vertices`, `has_joints`, `has_joints_2d` (N,), 1 where the sample carries the label.
    """

    regressor_indices: Tensor
    regressor_weights: Tensor

    def __init__(self, template: BodyTemplate, joints: JointSet, weights: LossWeights) -> None:
        super().__init__()
        self.weights = weights
        self.root = list(joints.root_indices)
        regressor = template.regressors[joints.name]
        self.register_buffer("regressor_indices", torch.from_numpy(regressor.indices).long(), persistent=False)
        self.register_buffer("regressor_weights", torch.from_numpy(regressor.weights), persistent=False)
        for i, level in enumerate(template.level_vertices):
            self.register_buffer(f"level{i}", torch.from_numpy(level).long(), persistent=False)

    def regress(self, vertices: Tensor) -> Tensor:
        """Return joints (N, J, 3) of full meshes (N, V, 3)."""
        gathered = vertices.index_select(1, self.regressor_indices.flatten())
        gathered = gathered.unflatten(1, self.regressor_indices.shape)
        return (gathered * self.regressor_weights[..., None]).sum(2)

    def forward(self, output: MetroOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return each unweighted term and their weighted sum as `loss`, all scalars."""
        regressed = self.regress(output.vertices[-1])
        truth_root = self.regress(batch["vertices"])[:, self.root].mean(1, keepdim=True)
        truth_vertices = batch["vertices"] - truth_root
        levels = [
            _mean_l1(predicted - truth_vertices.index_select(1, getattr(self, f"level{i}")), batch["has_vertices"])
            for i, predicted in enumerate(output.vertices)
        ]
        truth_joints = self._centred(batch["joints"])
        confidence = batch["joints_confidence"][..., None] if "joints_confidence" in batch else None
        projections = [
            _mean_l1(
                project(points, output.camera) - batch["joints_2d"][..., :2],
                batch["has_joints_2d"],
                batch["joints_2d"][..., 2:],
            )
            for points in (output.joints, regressed)
        ]
        terms = {
            "vertices": torch.stack(levels).mean(),
            "joints": _mean_l1(self._centred(output.joints) - truth_joints, batch["has_joints"], confidence),
            "regressed_joints": _mean_l1(self._centred(regressed) - truth_joints, batch["has_joints"], confidence),
            "joints_2d": torch.stack(projections).mean(),
        }
        total = sum(getattr(self.weights, name) * value for name, value in terms.items())
        return {"loss": torch.as_tensor(total), **terms}

    def _centred(self, joints: Tensor) -> Tensor:
        return joints - joints[:, self.root].mean(1, keepdim=True)


def project(points: Tensor, camera: Tensor) -> Tensor:
    """Project points (N, P, 3) by cameras (N, 3) = (s, tx, ty) to crop coordinates (N, P, 2): s * (x + t)."""
    return camera[:, None, :1] * (points[..., :2] + camera[:, None, 1:])


def _mean_l1(difference: Tensor, has_label: Tensor, confidence: Tensor | None = None) -> Tensor:
    """Mean |difference| over the labelled samples of (N, P, D); 0 where there is none.

    Unlabelled samples are selected away rather than multiplied by 0, so that NaN placeholders stay out of the sum.
    """
    chosen = has_label > 0
    absolute = difference[chosen].abs()
    if confidence is not None:
        absolute = torch.where(confidence[chosen] > 0, absolute * confidence[chosen], 0.0)
    # Kept attached to the graph: a batch without the label must still give every parameter a gradient (DDP).
    return absolute.sum() / max(absolute.numel(), 1)
