"""Drawing one made person: its layer of colour and depth, which vertices can be seen, the box about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from metro_edge.raster import project, rasterise, vertex_normals
from training.data.appearance import Look
from training.data.camera import View
from training.data.light import Light, shade

VISIBLE_TOLERANCE_M = 0.015  # beyond what the clothes add

Floats = NDArray[np.float32]
Rng = Any  # numpy.random.Generator


@dataclass
class Layer:
    """A drawn person: colour (h, w, 3) 0..255 times alpha, alpha (h, w), depth (h, w) m, at (x, y) of the frame.

    `facing` (V,) is true for vertices that look towards the camera; `thickness` (V,) m lies over them.
    """

    colour: Floats
    alpha: Floats
    depth: Floats
    at: tuple[int, int]
    facing: NDArray[np.bool_]
    thickness: Floats

    def window(self, picture: NDArray) -> NDArray:
        """Return the part of `picture` that the layer covers, as a view."""
        (x, y), (h, w) = self.at, self.alpha.shape
        return picture[y : y + h, x : x + w]

    def over(self, picture: Floats) -> None:
        """Lay it over `picture`."""
        window = self.window(picture)
        window *= 1 - self.alpha[..., None]
        window += self.colour

    def cover(self, mask: Floats) -> None:
        """Add its alpha to `mask`."""
        window = self.window(mask)
        np.maximum(window, self.alpha, out=window)


def draw_person(
    vertices: Floats,
    faces: NDArray[np.int32],
    look: Look,
    light: Light,
    view: View,
    frame_wh: tuple[int, int],
    rng: Rng,
    fine: int = 2,
) -> Layer:
    """Draw one person in the camera frame, antialiased by `fine` x `fine` samples per pixel."""
    normals = vertex_normals(vertices, faces)
    colours = shade(vertices, normals, faces, look, light, rng)
    surface = vertices + normals * look.thickness[:, None]
    pixels = project(surface, view.focal_px, view.centre_px)
    limit = np.array(frame_wh)
    first = np.clip(np.floor(pixels.min(0)) - 2, 0, limit - 1).astype(int)
    last = np.clip(np.ceil(pixels.max(0)) + 3, first + 1, limit).astype(int)
    width, height = (int(v) for v in last - first)
    centre = tuple(float(v) for v in fine * (np.array(view.centre_px) - first) + (fine - 1) / 2)
    colour: Any
    depth: Any
    colour, depth = rasterise(
        surface, faces, colours, view.focal_px * fine, (centre[0], centre[1]), (width * fine, height * fine)
    )
    mask: Any = (depth < 199).astype(np.float32)
    farthest = np.float32(vertices[:, 2].max())
    near: Any = np.where(mask > 0, depth, farthest)
    if fine > 1:
        colour = cv2.resize(colour, (width, height), interpolation=cv2.INTER_AREA)
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
        depth = np.ascontiguousarray(depth[fine // 2 :: fine, fine // 2 :: fine])
        near = np.ascontiguousarray(near[fine // 2 :: fine, fine // 2 :: fine])
    # Creases and gaps between limbs get less of the ambient light: darken what lies behind its surroundings.
    reach = max(3, int(0.07 * view.focal_px / max(float(np.median(vertices[:, 2])), 0.3) * 2) | 1)
    around = cv2.blur(np.minimum(near, farthest), (reach, reach))
    shadow = np.clip((near - around) * np.float32(rng.uniform(1.5, 5)), 0, 0.45)
    colour *= ((1 - shadow) * 255)[..., None]
    facing = (normals * vertices).sum(1) < 0.1 * vertices[:, 2]
    return Layer(colour, mask, depth, (int(first[0]), int(first[1])), facing, look.thickness)


def visible_vertices(depths: Floats, pixels: Floats, layer: Layer, hidden: Floats) -> NDArray[np.bool_]:
    """Return (V,) bool: inside the frame, towards the camera, nothing nearer drawn there, no occluder over it."""
    height, width = hidden.shape
    inside = ((pixels > -0.5) & (pixels < np.array([width, height]) - 0.5)).all(1)
    xy = np.rint(np.clip(pixels, 0, np.array([width, height]) - 1)).astype(int)
    local = xy - layer.at
    h, w = layer.depth.shape
    local = np.clip(local, 0, [w - 1, h - 1])
    drawn = layer.depth[local[:, 1], local[:, 0]]
    seen = layer.facing & (depths < drawn + layer.thickness + VISIBLE_TOLERANCE_M)
    return inside & seen & (hidden[xy[:, 1], xy[:, 0]] < 0.5)


def box_of(pixels: Floats, size_wh: tuple[int, int]) -> Floats:
    """Return the box x, y, width, height about pixel centres (P, 2), clipped to the frame."""
    limit = np.array(size_wh) - 1
    first, last = np.clip(pixels.min(0), 0, limit), np.clip(pixels.max(0), 0, limit)
    return np.concatenate([first, last - first + 1]).astype(np.float32)
