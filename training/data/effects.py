"""What happens to a picture around its person: the shadow on the ground, things before the person, the camera."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from metro_edge.raster import project
from training.data.backgrounds import sample_texture
from training.data.camera import View
from training.data.draw import Layer

Floats = NDArray[np.float32]
Rng = Any  # numpy.random.Generator


def ground_shadow(rng: Rng, picture: Floats, vertices: Floats, view: View) -> None:
    """Darken the ground under the person: an ellipse on the plane of the lowest vertices, blurred."""
    height = vertices @ view.up
    foot = vertices.mean(0) - view.up * (float(np.mean(height)) - float(height.min()))
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = (
        np.cos(angles)[:, None] * view.turn[:, 0] * rng.uniform(0.2, 0.7)
        + np.sin(angles)[:, None] * view.turn[:, 1] * rng.uniform(0.2, 0.7)
        + view.turn[:, 0] * rng.normal(0, 0.25)
    )
    points = foot + ring
    if points[:, 2].min() < 0.1:
        return
    outline = np.clip(project(points, view.focal_px, view.centre_px), -4000, 4000).astype(np.int32)
    mask = np.zeros(picture.shape[:2], np.float32)
    cv2.fillConvexPoly(mask, outline, float(rng.uniform(0.2, 0.7)))
    mask[:] = cv2.blur(cv2.blur(mask, (13, 13)), (13, 13))
    picture *= 1 - mask[..., None]


def occlude(rng: Rng, seed: int, picture: Floats, hidden: Floats, layer: Layer) -> None:
    """Lay one or two things before the person, none of which may hide much of what is seen."""
    height, width = hidden.shape
    x, y = layer.at
    h, w = layer.alpha.shape
    for _ in range(int(rng.integers(1, 3))):
        mask = np.zeros((height, width), np.float32)
        centre = np.array([x, y]) + rng.uniform(0, 1, 2) * (w, h)
        size = rng.uniform(0.08, 0.4) * max(w, h)
        kind = rng.integers(0, 5)
        skin = None
        if kind == 0:
            corners = centre + rng.normal(0, 0.6 * size, (int(rng.integers(3, 7)), 2))
            cv2.fillPoly(mask, [corners.astype(np.int32)], 1.0, cv2.LINE_AA)
        elif kind == 1:
            axes = (max(2, int(size * rng.uniform(0.3, 0.8))), max(2, int(size * rng.uniform(0.3, 0.8))))
            cv2.ellipse(mask, (int(centre[0]), int(centre[1])), axes, rng.uniform(0, 180), 0, 360, 1.0, -1, cv2.LINE_AA)
        elif kind == 2:  # a table or a wall before the lower part
            top = int(y + h * rng.uniform(0.5, 0.95))
            slope = int(rng.normal(0, 0.04) * width)
            corners = np.array([[-9, top - slope], [width + 9, top + slope], [width + 9, height], [-9, height]])
            if rng.random() < 0.5:
                corners[[0, 3], 0] = x + int(w * rng.uniform(-0.3, 0.5))
            cv2.fillPoly(mask, [corners.astype(np.int32)], 1.0, cv2.LINE_AA)
        elif kind == 3:  # a post
            end = centre + np.array([rng.normal(0, 0.1), 1]) * height
            start = 2 * centre - end
            thick = max(2, int(size * rng.uniform(0.1, 0.5)))
            cv2.line(mask, start.astype(int).tolist(), end.astype(int).tolist(), 1.0, thick, cv2.LINE_AA)
        else:  # somebody's arm or leg
            points = np.cumsum(np.vstack([centre, rng.normal(0, 0.7 * size, (2, 2))]), 0).astype(np.int32)
            cv2.polylines(mask, [points], False, 1.0, max(3, int(size * 0.3)), cv2.LINE_AA)
            skin = np.array([120, 150, 205], np.float32) * np.float32(rng.uniform(0.25, 1.1))
        overlap = float((layer.window(mask) * layer.alpha).sum())
        if overlap > 0.4 * float(layer.alpha.sum()):
            continue
        texture = sample_texture(rng, seed, (width, height)).astype(np.float32)
        if skin is not None:
            texture = skin * (0.8 + 0.4 * texture.mean(axis=2, keepdims=True) / 255)
        picture += mask[..., None] * (texture - picture)
        np.maximum(hidden, mask, out=hidden)


def photograph(rng: Rng, picture: Any) -> NDArray[np.uint8]:
    """Exposure, white balance, blur, noise, loss of resolution and JPEG."""
    height, width = picture.shape[:2]
    if rng.random() < 0.15:  # a small or distant picture, enlarged
        shrink = rng.uniform(0.35, 0.8)
        small = cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.5))
    elif rng.random() < 0.1:  # motion
        length = int(rng.integers(3, 9))
        kernel = np.zeros((length, length), np.float32)
        angle = rng.uniform(0, np.pi)
        end = (length - 1) / 2 * np.array([np.cos(angle), np.sin(angle)])
        middle = np.array([(length - 1) / 2] * 2)
        cv2.line(kernel, np.rint(middle - end).astype(int).tolist(), np.rint(middle + end).astype(int).tolist(), 1.0, 1)
        picture = cv2.filter2D(picture, -1, kernel / kernel.sum())
    if rng.random() < 0.6:
        sigma = float(rng.gamma(1.5, 2.5))
        noise = rng.standard_normal((height, width, 3 if rng.random() < 0.6 else 1), np.float32)
        picture = picture + np.float32(sigma) * noise
    frame: Any = np.clip(picture, 0, 255).astype(np.uint8)
    levels = np.arange(256, dtype=np.float32)[:, None] / 255
    gamma = np.exp(rng.normal(0, 0.15))
    gain = np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.05, 3))
    contrast = np.exp(rng.normal(0, 0.12))
    table = ((levels**gamma * gain - 0.5) * contrast + 0.5) * 255
    frame = cv2.LUT(frame, np.clip(table, 0, 255).astype(np.uint8).reshape(256, 1, 3))
    if rng.random() < 0.06:
        frame = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    if rng.random() < 0.7:
        quality = int(rng.integers(35, 96))
        _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
        frame = cv2.imdecode(data, cv2.IMREAD_COLOR)
    taken: NDArray[np.uint8] = frame
    return taken
