"""The network's input as a frame of its own, so that predictions can be drawn over it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metro_edge.backends import Outputs
from metro_edge.body import Body
from metro_edge.postprocess import Intrinsics, bodies_from_outputs
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate

FOCAL_CROPS = 8.0  # a long lens: the network's own camera is a weak perspective


def crop_frames(images: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.uint8]:
    """Return network inputs (N, 3, S, S) as pictures (N, S, S, 3) uint8 BGR."""
    rgb = images.transpose(0, 2, 3, 1) * np.asarray(spec.std, np.float32) + np.asarray(spec.mean, np.float32)
    return np.ascontiguousarray((rgb[..., ::-1] * 255).clip(0, 255).astype(np.uint8))


def body_in_crop(outputs: Outputs, side_px: int, spec: ModelSpec, template: BodyTemplate) -> Body:
    """Return the body of one image's outputs (1, ...) in a frame that is its crop, drawn `side_px` large.

    Raises PredictionError for outputs of which no body can be made.
    """
    # The crop is the whole frame here, so the box is what the crop rule turns back into it.
    side = side_px / spec.box_scale
    box = np.array([[(side_px - side) / 2, (side_px - side) / 2, side, side]])
    camera = Intrinsics.for_frame((side_px, side_px), FOCAL_CROPS * side_px)
    return bodies_from_outputs(outputs, box, camera, spec, template)[0]
