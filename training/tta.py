"""Test-time augmentation: predict from several turned and scaled crops of a picture, bring the bodies back, average.

METRO does so for hands (metro/tools/run_hand_multiscale.py of microsoft/MeshTransformer): 5 scales times 19 rotations,
95 runs of the network a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.metrics import procrustes
from metro_edge.preprocess import normalise
from metro_edge.spec import ModelSpec
from training.data.augment import Change
from training.data.labelled import LabelledPicture, crop_picture

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TestTimeViews:
    """The crops of a picture that are predicted from, and how the predictions become one.

    Attributes:
        scales: sides of the crop's square over the usual one.
        rotations_deg: of the picture, counter-clockwise on the screen.
        aligned: move each prediction onto that of the plain view by a similarity before the mean, as METRO does; it
            also evens out sizes. Without it they are only turned back.
    """

    scales: tuple[float, ...] = (1.0,)
    rotations_deg: tuple[float, ...] = (0.0,)
    aligned: bool = False

    __test__ = False  # for pytest: the name is the field's, this is no test

    def __post_init__(self) -> None:
        if not self.scales or not all(math.isfinite(s) and s > 0 for s in self.scales):
            raise UserError(f"test-time augmentation needs positive scales, got {self.scales}")
        if not self.rotations_deg or not all(math.isfinite(r) for r in self.rotations_deg):
            raise UserError(f"test-time augmentation needs finite rotations, got {self.rotations_deg}")
        if self.aligned and (1.0, 0.0) not in self.pairs:
            raise UserError("predictions are aligned to the plain view: scale 1 and rotation 0 must be among the views")

    @property
    def pairs(self) -> tuple[tuple[float, float], ...]:
        """(scale, rotation in degrees) of each view, in order."""
        return tuple((scale, rotation) for scale in self.scales for rotation in self.rotations_deg)

    def change(self, scale: float, rotation_deg: float, margin: float) -> Change:
        """Return the change of a picture with `margin` (see LabelledPicture) that makes a view."""
        return Change(scale / margin, turn_rad=-math.radians(rotation_deg))

    def images(self, picture: LabelledPicture, spec: ModelSpec) -> torch.Tensor:
        """Return the network's inputs (K, 3, S, S) float32 of the K views of a picture."""
        crops = [crop_picture(picture, spec, self.change(*pair, picture.margin)) for pair in self.pairs]
        return torch.from_numpy(normalise(np.stack(crops), spec))

    def turned_back(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Undo the views' rotations of predicted points (K, P, 3) in metres, camera frame."""
        back = np.tile(np.eye(3), (len(self.pairs), 1, 1))
        for spin, pair in zip(back, self.pairs, strict=True):
            spin[:2, :2] = self.change(*pair, 1.0).matrix
        turned: NDArray[np.float64] = np.asarray(points, np.float64) @ back
        return turned

    def fused(self, meshes: NDArray[np.floating], root: NDArray[np.floating]) -> Floats:
        """Return one mesh (V, 3) of the K views' meshes (K, V, 3), whose roots (K, 3) come to the origin.

        Raises UserError for another number of meshes than views.
        """
        if len(meshes) != len(self.pairs):
            raise UserError(f"there are {len(self.pairs)} views and {len(meshes)} predictions")
        back = self.turned_back(np.asarray(meshes, np.float64) - np.asarray(root, np.float64)[:, None])
        if self.aligned:
            plain = back[self.pairs.index((1.0, 0.0))]
            back = procrustes(back, np.broadcast_to(plain, back.shape))
        return np.asarray(back.mean(axis=0), np.float32)

    def describe(self) -> dict[str, Any]:
        """Return what a report says of the views."""
        return {
            "views": len(self.pairs),
            "scales": list(self.scales),
            "rotations_deg": list(self.rotations_deg),
            "fusion": "mean after a similarity onto the plain view" if self.aligned else "mean after turning back",
        }


PLAIN = TestTimeViews()
METRO_HANDS = TestTimeViews(
    (0.7, 0.8, 0.9, 1.0, 1.1), tuple(float(sign * 10 * i) for i in range(10) for sign in (1, -1)[: 1 + (i > 0)]), True
)
