"""The sample that a precision loses most on: its picture, the truth, FP32's mesh and this precision's, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import Accuracy, People
from metro_edge.backends import Outputs, Session
from metro_edge.errors import PredictionError
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from metro_edge.video.overlay import draw_bodies
from training.crop_frames import body_in_crop, crop_frames

TILE_PX, CAPTION_PX = 320, 28
FONT_SCALE = 0.45
Picture = NDArray[np.uint8]


def worst_entry(accuracy: Accuracy) -> dict[str, Any] | None:
    """Return the sample whose MPJPE rose most against the reference, as a result keeps it; None for the reference."""
    if accuracy.reference is None:
        return None
    ours, theirs = accuracy.errors.mpjpe * 1000.0, accuracy.reference.errors.mpjpe * 1000.0
    sample = int((ours - theirs).argmax())
    return {
        "sample": sample,
        "mpjpe_mm": float(ours[sample]),
        "fp32_mpjpe_mm": float(theirs[sample]),
        "loss_mm": float(ours[sample] - theirs[sample]),
        "picture": None,
    }


def worst_picture(
    worst: Mapping[str, Any], precision: str, sessions: Mapping[str, Session], people: People, template: BodyTemplate,
    reference: str,
) -> Picture:  # fmt: skip
    """Draw a sample of `worst_entry`: (348, 1280, 3) uint8 BGR, or without the truth's tile where there is no mesh."""
    item = people[worst["sample"]]
    image = np.asarray(item["image"], np.float32)[None]
    crop = crop_frames(image, people.spec)[0]
    crop = np.asarray(cv2.resize(crop, (TILE_PX, TILE_PX), interpolation=cv2.INTER_CUBIC), np.uint8)
    tiles = [_captioned(crop, f"sample {worst['sample']}")]
    outputs = {name: sessions[name].infer(image) for name in (reference, precision)}
    truth = true_outputs(item, outputs[reference], people.spec, template)
    if truth is not None:
        tiles.append(_captioned(_drawn(crop, truth, people.spec, template), "truth"))
    captions = (f"{worst['fp32_mpjpe_mm']:.0f} mm", f"{worst['mpjpe_mm']:.0f} mm ({worst['loss_mm']:+.1f})")
    for (name, found), caption in zip(outputs.items(), captions, strict=True):
        tiles.append(_captioned(_drawn(crop, found, people.spec, template), f"{name}, MPJPE {caption}"))
    return np.ascontiguousarray(np.hstack(tiles))


def png_bytes(picture: Picture) -> bytes:
    """Return a picture (H, W, 3) uint8 BGR as the bytes of a PNG file."""
    done, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done  # a picture of bytes can always be encoded
    return data.tobytes()


def true_outputs(item: Mapping[str, Any], guess: Outputs, spec: ModelSpec, template: BodyTemplate) -> Outputs | None:
    """Return the truth of a sample as a network would have given it; None where it has no mesh.

    The camera is the weak perspective that lays the true joints over their true places in the crop by least squares;
    without at least two such joints that of `guess`.
    """
    if float(item.get("has_vertices", 1.0)) <= 0:
        return None
    vertices = np.asarray(item["vertices"], np.float32)[None]
    joints = np.asarray(template.joints(spec.joint_set, vertices), np.float32)
    camera = np.asarray(guess.camera, np.float32)
    if "joints_2d" in item:
        known = np.asarray(item["joints_2d"], np.float64)
        known, points = known[known[:, 2] > 0, :2], joints[0, known[:, 2] > 0, :2].astype(np.float64)
        if len(points) > 1:
            camera = fitted_camera(points, known).astype(np.float32)[None]
    return Outputs(camera=camera, joints=joints, vertices=vertices)


def fitted_camera(points: NDArray[np.floating], places: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return (s, tx, ty), for which s (points + t) is nearest to `places`, both (P, 2), by least squares."""
    ones, zeros = np.ones(len(points)), np.zeros(len(points))
    columns = [
        np.column_stack((points[:, axis], *((ones, zeros) if axis == 0 else (zeros, ones)))) for axis in range(2)
    ]
    scale, x, y = np.linalg.lstsq(np.vstack(columns), places.T.ravel(), rcond=None)[0]
    return np.array([scale, x / scale, y / scale])


def _drawn(crop: Picture, outputs: Outputs, spec: ModelSpec, template: BodyTemplate) -> Picture:
    try:
        return draw_bodies(crop, [body_in_crop(outputs, TILE_PX, spec, template)])
    except PredictionError:  # a camera that looks backwards: there is nothing to draw, and that is to be seen
        return np.zeros_like(crop)


def _captioned(tile: Picture, text: str) -> Picture:
    strip = np.full((CAPTION_PX, TILE_PX, 3), 255, np.uint8)
    cv2.putText(strip, text, (6, 19), cv2.FONT_HERSHEY_SIMPLEX, FONT_SCALE, (30, 30, 30), 1, cv2.LINE_AA)
    return np.vstack([strip, tile])
