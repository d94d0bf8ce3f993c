"""Distillation: a small METRO learns from a large one's vertices, joints, projections and image features.

The teacher sees the student's augmented pictures, so it also labels pictures that have no labels. Features are matched
through a learned 1x1 convolution (the hint of FitNets, Romero et al., ICLR 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metro_edge.errors import UserError
from training.checkpoint import Checkpoint, load_any
from training.config import FitConfig
from training.losses import project
from training.model import Metro, MetroOutput

TERMS = ("vertices", "joints", "joints_2d", "features")


class Teacher:
    """A trained network that stays as it is: no module, so that no optimiser, average or checkpoint includes it.

    Args:
        checkpoint: of a network with the student's body and joints.
        config: of the student's run: its normalisation and its crop.

    Raises:
        UserError: the two predict different bodies or joints, or see different parts of a picture.
    """

    def __init__(self, checkpoint: Checkpoint, config: FitConfig) -> None:
        ours, theirs = config.spec, checkpoint.config.spec
        for name in ("body", "joint_set", "box_scale"):
            if getattr(ours, name) != getattr(theirs, name):
                raise UserError(
                    f"distill: the teacher has {name} {getattr(theirs, name)!r}, this network "
                    f"{getattr(ours, name)!r}; they must be the same"
                )
        self.model = checkpoint.model.eval().requires_grad_(False)
        self.template, self.size = checkpoint.template, theirs.image_size
        self._ours = [torch.tensor(values).reshape(3, 1, 1) for values in (ours.mean, ours.std)]
        self._theirs = [torch.tensor(values).reshape(3, 1, 1) for values in (theirs.mean, theirs.std)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self  # it never changes

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[MetroOutput, Tensor]:
        """Return the prediction and feature map (N, C, h, w) for the student's images (N, 3, S, S)."""
        if next(self.model.parameters()).device != images.device:
            self.model.to(images.device)
        with captured(self.model.backbone) as features:
            output = self.model(self.images(images))
        return output, features[0]

    def images(self, images: Tensor) -> Tensor:
        """Bring the student's normalised images (N, 3, S, S) to the teacher's normalisation and size."""
        mean, std = (t.to(images) for t in self._ours)
        own_mean, own_std = (t.to(images) for t in self._theirs)
        if images.shape[-1] != self.size:
            size = (self.size, self.size)
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
        return (images * std + mean - own_mean) / own_std


class Distiller(nn.Module):
    """The losses of a student against its teacher, over all samples of a batch, labelled or not.

    Terms are L1 in metres as in MetroLoss; the teacher's mesh is moved to its root. `features` is the squared
    difference of feature maps over the teacher's mean square.

    Raises:
        UserError: as Teacher, or no mesh level is shared.
    """

    def __init__(self, config: FitConfig, student: Metro, regress: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weights = config.distill
        teacher = load_any(config.distill.teacher, config.template, config.body_path)
        self.teacher = Teacher(teacher, config)
        self.regress, self.root = regress, list(config.spec.joints.root_indices)
        self.levels = shared_levels(config.template.level_vertices, self.teacher.template.level_vertices)
        if not self.levels and config.distill.vertices > 0:
            raise UserError(f"distill: teacher and {config.name} share no mesh level; set distill.vertices to 0")
        self.projection: nn.Module | None = None
        if config.distill.features > 0:
            self.projection = nn.Conv2d(student.backbone.channels, teacher.model.backbone.channels, kernel_size=1)

    def forward(self, output: MetroOutput, features: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Return each unweighted term and their weighted sum as `loss`, all scalars.

        Args:
            output: the student's prediction.
            features: its feature map (N, C, h, w).
            images: what it saw, (N, 3, S, S) normalised by its spec.
        """
        truth, wanted = self.teacher(images)
        joints, camera = truth.joints.float(), truth.camera.float()
        regressed = self.regress(truth.vertices[-1].float())
        root = regressed[:, self.root].mean(1, keepdim=True)
        levels = [F.l1_loss(output.vertices[a], truth.vertices[b].float() - root) for a, b in self.levels]
        projections = [
            F.l1_loss(project(points, output.camera), project(target, camera))
            for points, target in ((output.joints, joints), (self.regress(output.vertices[-1]), regressed))
        ]
        terms = {
            "vertices": torch.stack(levels).mean() if levels else output.camera.sum() * 0,
            "joints": F.l1_loss(self._centred(output.joints), self._centred(joints)),
            "joints_2d": torch.stack(projections).mean(),
        }
        if self.projection is not None:
            terms["features"] = self._feature_term(self.projection(features), wanted)
        total = sum(getattr(self.weights, name) * value for name, value in terms.items())
        return {"loss": torch.as_tensor(total), **terms}

    def _centred(self, joints: Tensor) -> Tensor:
        return joints - joints[:, self.root].mean(1, keepdim=True)

    @staticmethod
    def _feature_term(features: Tensor, wanted: Tensor) -> Tensor:
        features, wanted = features.float(), wanted.float()
        if features.shape[2:] != wanted.shape[2:]:
            features = F.interpolate(features, size=wanted.shape[2:], mode="bilinear", align_corners=False)
        return F.mse_loss(features, wanted) / wanted.square().mean().clamp_min(1e-12)


def shared_levels(ours: Any, theirs: Any) -> list[tuple[int, int]]:
    """Return pairs of mesh levels (student, teacher) that are the same vertices of the full mesh."""
    return [(a, b) for a, one in enumerate(ours) for b, other in enumerate(theirs) if np.array_equal(one, other)]


@contextmanager
def captured(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the feature maps that `backbone` returns meanwhile."""
    maps: list[Tensor] = []
    handle = backbone.register_forward_hook(lambda module, inputs, output: maps.append(output))
    try:
        yield maps
    finally:
        handle.remove()
