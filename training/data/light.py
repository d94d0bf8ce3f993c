"""Light on made people: drawn at random, and the colours that it gives to a surface.

Light is linear as albedo is; `shade` returns display values, gamma 2.2. Colours are BGR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.raster import rasterise
from training.data.appearance import GAMMA, Look, noise3, tables

Floats = NDArray[np.float32]
Rng = Any  # numpy.random.Generator


@dataclass
class Light:
    """Light in the camera frame: ambient (3,) and its gradient (3 axes, 3), lamps as (direction to it, colour)."""

    ambient: Floats
    gradient: Floats
    lamps: list[tuple[Floats, Floats]]
    shadows: bool


def _tint(rng: Rng, strength: float = 0.12) -> Floats:
    warm = rng.normal(0, strength)
    return np.exp(np.array([-warm, rng.normal(0, 0.03), warm])).astype(np.float32)


def sample_light(rng: Rng, up: Floats) -> Light:
    """Draw the light; `up` (3,) is the world's upward direction in the camera frame."""
    level = float(np.exp(rng.uniform(np.log(0.15), np.log(0.75))))
    ambient = level * _tint(rng)
    gradient = np.outer(up, 0.35 * level * _tint(rng)) + np.outer(rng.normal(0, 0.15, 3), level * _tint(rng))
    lamps = []
    for k in range(int(rng.choice([1, 2, 3], p=[0.5, 0.33, 0.17]))):
        direction = rng.normal(0, 1, 3) + up * rng.uniform(0.3, 1.6) + np.array([0, 0, -0.7])
        direction /= np.linalg.norm(direction)
        strength = rng.uniform(0.25, 1.25) * (1.0 if k == 0 else 0.45)
        lamps.append((direction.astype(np.float32), (strength * _tint(rng)).astype(np.float32)))
    return Light(ambient.astype(np.float32), gradient.astype(np.float32), lamps, bool(rng.random() < 0.6))


def shade(vertices: Floats, normals: Floats, faces: NDArray[np.int32], look: Look, light: Light, rng: Rng) -> Floats:
    """Return display colours (V, 3) BGR in [0, 1] of a person in the camera frame.

    Wrinkles are small noise on the normals of cloth. The first lamp may cast shadows of the person on itself.
    """
    rest = tables().rest
    cloth = np.clip(look.thickness / 0.02, 0, 1)[:, None]
    bumps = np.stack([noise3(rest, rng, rng.uniform(0.05, 0.14), 4) for _ in range(3)], 1)
    normals = normals + bumps * cloth * np.float32(rng.uniform(0.05, 0.35))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    total = light.ambient + normals @ light.gradient
    total = np.maximum(total, 0.25 * light.ambient)
    wrap = np.float32(rng.uniform(0, 0.25))
    for k, (direction, colour) in enumerate(light.lamps):
        lit = np.clip((normals @ direction + wrap) / (1 + wrap), 0, None)
        if k == 0 and light.shadows:
            lit = lit * _unshadowed(vertices, faces, direction)
        total = total + lit[:, None] * colour
    shine = np.float32(rng.uniform(0, 0.12))
    if shine > 0.05:  # a soft highlight towards the camera
        half = light.lamps[0][0] + np.array([0, 0, -1], np.float32)
        gloss = np.clip(normals @ (half / np.linalg.norm(half)), 0, 1) ** 16
        total = total + (shine * gloss)[:, None]
    values = np.clip(look.albedo * total, 0, 1)
    return values ** np.float32(1 / GAMMA)


def _unshadowed(vertices: Floats, faces: NDArray[np.int32], direction: Floats, size: int = 128) -> Floats:
    """Return 1 for vertices that the lamp sees, 0.15 for others, softened; by a depth map seen from the lamp."""
    ahead = -direction
    side = np.cross(ahead, [0.0, 1.0, 0.0] if abs(ahead[1]) < 0.9 else [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    axes = np.stack((side, np.cross(ahead, side), ahead), 1).astype(np.float32)
    middle = (vertices.max(0) + vertices.min(0)) / 2
    radius = float(np.linalg.norm(np.ptp(vertices, axis=0))) / 2 + 0.05
    distance = 12 * radius  # far enough for nearly parallel rays
    seen = (vertices - middle) @ axes + np.array([0, 0, distance], np.float32)
    focal = 0.5 * size * distance / radius * 0.95
    _, depth = rasterise(
        seen, faces, np.zeros_like(seen), focal, ((size - 1) / 2, (size - 1) / 2), (size, size),
        near_m=distance * 0.5, far_m=distance * 2,
    )  # fmt: skip
    pixels = seen[:, :2] * (focal / seen[:, 2:]) + (size - 1) / 2
    xy = np.clip(np.rint(pixels), 0, size - 1).astype(np.intp)
    lit = (seen[:, 2] < depth[xy[:, 1], xy[:, 0]] + 0.03).astype(np.float32)
    return 0.15 + 0.85 * lit
