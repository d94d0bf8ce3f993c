"""Cameras about a person: heading, elevation, field of view and where in the picture the person stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.raster import project
from training.data.rig import RIG_TO_CAMERA, Array, euler, rotation

Floats = NDArray[np.float32]
Rng = Any  # numpy.random.Generator
NEAREST_M = 0.35
TRUNCATED_SHARE = 0.22
LEAST_INSIDE = 0.35


@dataclass(frozen=True)
class View:
    """A pinhole camera and the rigid motion that brings a body before it.

    Attributes:
        turn: (3, 3) rig frame to camera frame; shift: (3,) metres.
        focal_px, centre_px: of the frame.
    """

    turn: Array
    shift: Array
    focal_px: float
    centre_px: tuple[float, float]

    def apply(self, vertices: NDArray[np.floating]) -> Floats:
        """Return rig-frame points (..., 3) in the camera frame."""
        return (vertices @ self.turn.T.astype(np.float32) + self.shift.astype(np.float32)).astype(np.float32)

    @property
    def up(self) -> Floats:
        """The world's upward direction in the camera frame."""
        return self.turn[:, 2].astype(np.float32)


def look_from(heading_deg: float, elevation_deg: float, roll_deg: float = 0.0) -> Array:
    """Return the turn (3, 3) of a camera: 0, 0 sees the person's front; a positive elevation looks down."""
    tilt = rotation((1, 0, 0), np.radians(elevation_deg))
    return rotation((0, 0, 1), np.radians(roll_deg)) @ tilt @ RIG_TO_CAMERA @ euler(0, 0, heading_deg)


def sample_turn(rng: Rng) -> Array:
    """Draw heading (any, the front a little more often), elevation (-25 to 60 degrees, mostly level) and roll."""
    heading = rng.uniform(-180, 180) if rng.random() < 0.75 else rng.normal(0, 50)
    elevation = rng.uniform(-25, 60) if rng.random() < 0.15 else np.clip(rng.normal(7, 11), -25, 60)
    return look_from(float(heading), float(elevation), float(rng.normal(0, 4)))


def fit(
    body: Floats, focal_px: float, centre_px: tuple[float, float], middle_px: Array, side_px: float, by_height: bool
) -> Array:
    """Return the shift (3,) that puts a turned body (V, 3) where it shall appear.

    Args:
        body: a subset of vertices is enough.
        middle_px: where the middle of its bounding box shall be.
        side_px: how long the box's longer side, or with `by_height` its height, shall be.
    """
    low, high = body.min(0), body.max(0)
    extent = high[1] - low[1] if by_height else max(high[0] - low[0], high[1] - low[1])
    depth = focal_px * float(extent) / side_px
    aim = np.asarray(middle_px, float)
    shift = np.zeros(3)
    for _ in range(5):
        ray = (aim - centre_px) / focal_px
        shift = np.array([ray[0] * depth, ray[1] * depth, depth]) - (low + high) / 2
        nearest = float(body[:, 2].min() + shift[2])
        if nearest < 0.1:
            depth += 0.1 - nearest
            continue
        pixels = project(body + shift, focal_px, centre_px)
        first, last = pixels.min(0), pixels.max(0)
        size = last - first
        depth *= float((size[1] if by_height else size.max()) / side_px)
        aim = aim + (middle_px - (first + last) / 2)
    return shift


def sample_view(rng: Rng, vertices: Floats, areas: Floats, frame_wh: tuple[int, int]) -> View:
    """Draw a view of rig-frame vertices (V, 3): field of view 20 to 75 degrees, 40 to 95 % of the frame, some cut.

    At least LEAST_INSIDE of the body's surface is inside; `areas` (V,) is each vertex's part of it.
    """
    turn = sample_turn(rng)
    shares = areas[::7] / areas[::7].sum()
    sparse = vertices[::7] @ turn.T.astype(np.float32)
    width, height = frame_wh
    focal = min(frame_wh) / 2 / np.tan(np.radians(rng.uniform(20, 75)) / 2)
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    if rng.random() < 0.3:  # the frame itself was cut from a larger picture
        centre = centre + rng.uniform(-0.5, 0.5, 2) * frame_wh
    middle, side, by_height = _placement(rng, sparse, frame_wh)
    shift = np.zeros(3)
    for _ in range(8):
        where = (float(centre[0]), float(centre[1]))
        shift = fit(sparse, float(focal), where, middle, side, by_height)
        pixels = project(sparse + shift, float(focal), where)
        inside = ((pixels > 0) & (pixels < np.array(frame_wh) - 1)).all(1) @ shares
        if sparse[:, 2].min() + shift[2] < NEAREST_M:
            focal = focal * 1.35
        elif inside < LEAST_INSIDE:
            middle, side, by_height = _placement(rng, sparse, frame_wh, cut=False)
        else:
            break
    return View(turn, shift, float(focal), (float(centre[0]), float(centre[1])))


def _placement(rng: Rng, body: Floats, frame_wh: tuple[int, int], cut: bool | None = None) -> tuple[Array, float, bool]:
    """Draw the middle of the person's box, its side and whether that is the height."""
    frame = np.array(frame_wh, float)
    extent = np.ptp(body, axis=0)[:2]
    if cut is None:
        cut = bool(rng.random() < TRUNCATED_SHARE)
    if not cut:
        fill = rng.uniform(0.40, 0.95) if rng.random() < 0.25 else rng.uniform(0.42, 0.70)
        side = float((fill * frame / np.maximum(extent, 1e-6)).min() * extent.max())
        size = extent / extent.max() * side
        free = np.maximum(frame - size, 0)
        place = rng.uniform(0.05, 0.95, 2) if rng.random() < 0.25 else np.clip(rng.normal(0.5, 0.12, 2), 0.05, 0.95)
        return size / 2 + place * free, side, False
    if rng.random() < 0.7:  # the upper part, as in portraits, interviews and sports
        share = rng.uniform(0.30, 0.85)
        visible = rng.uniform(0.6, 0.97) * frame[1]
        side = visible / share
        return np.array([rng.uniform(0.3, 0.7) * frame[0], frame[1] - visible + side / 2]), float(side), True
    side = float(rng.uniform(0.6, 1.3) * frame.min())
    away = rng.uniform(0.1, 0.5) * side * np.array([rng.choice([-1, 1]), rng.normal(0, 0.5)])
    return frame / 2 + away + rng.normal(0, 0.05, 2) * frame, side, False
