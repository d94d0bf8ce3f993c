"""Drawing bodies over the frame they were found in."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from metro_edge.body import Body
from metro_edge.errors import UserError
from metro_edge.joints import joint_set
from metro_edge.preprocess import Frame, check_frame
from metro_edge.raster import rasterise, vertex_normals

# One colour per person in turn, BGR in [0, 1]: light and unsaturated, so that the shading shows the shape.
PALETTE = (
    (0.93, 0.80, 0.67),
    (0.68, 0.80, 0.95),
    (0.74, 0.90, 0.72),
    (0.90, 0.74, 0.86),
    (0.66, 0.90, 0.93),
    (0.84, 0.84, 0.84),
)
LEFT_BGR, RIGHT_BGR, MIDDLE_BGR = (60, 170, 255), (255, 150, 50), (110, 210, 110)
MAX_SUPERSAMPLED_PX = 4_000_000  # larger regions are drawn at one sample per pixel: edges are fine there anyway

# Unit vectors towards the lights. The key light comes from above, the left and behind the camera.
KEY_LIGHT = np.array((-0.45, -0.65, -0.85), np.float32) / np.float32(np.linalg.norm((-0.45, -0.65, -0.85)))
FILL_LIGHT = np.array((0.8, -0.1, -0.5), np.float32) / np.float32(np.linalg.norm((0.8, -0.1, -0.5)))


def draw_bodies(
    frame: Frame, bodies: Sequence[Body], opacity: float = 0.85, skeleton: bool = False, supersample: int = 2
) -> Frame:
    """Return a copy of `frame` with the shaded meshes of all bodies over it, nearest surface in front.

    Bodies without a mesh are drawn as skeletons.

    Args:
        frame: (H, W, 3) uint8 BGR.
        bodies: found in this frame; they share one depth buffer.
        opacity: of the meshes, 0 to 1.
        skeleton: draw the joints and bones on top.
        supersample: samples per pixel and axis, for smooth edges.

    Raises:
        UserError: for a bad frame or number.
    """
    canvas = check_frame(frame).copy()
    if not 0 <= opacity <= 1 or supersample < 1:
        raise UserError(f"opacity must be 0 to 1 and supersample at least 1, got {opacity} and {supersample}")
    _draw_meshes(canvas, [body for body in bodies if body.has_mesh], opacity, supersample)
    return draw_skeletons(canvas, [body for body in bodies if skeleton or not body.has_mesh])


def draw_skeletons(frame: Frame, bodies: Sequence[Body]) -> Frame:
    """Return a copy of `frame` with joints and bones, left orange, right blue, middle green."""
    canvas: Frame = check_frame(frame).copy()
    for body in bodies:
        draw_skeleton_into(canvas, body)
    return canvas


def draw_skeleton_into(canvas: Frame, body: Body) -> None:
    """Draw a body's joints and bones into `canvas` itself."""
    joints = joint_set(body.joint_set)
    points = body.joints_px
    thickness = max(1, round(float(np.ptp(points, axis=0).max()) / 120))
    for a, b in joints.bone_indices:
        colour = side_bgr(joints.names[a], joints.names[b])
        cv2.line(canvas, _fixed(points[a]), _fixed(points[b]), colour, thickness, cv2.LINE_AA, _SHIFT)
    for name, point in zip(joints.names, points, strict=True):
        radius = (thickness + 1) << _SHIFT
        cv2.circle(canvas, _fixed(point), radius, side_bgr(name, name), -1, cv2.LINE_AA, _SHIFT)


def side_by_side(*frames: Frame) -> Frame:
    """Return frames of one height next to each other; raises UserError when heights differ."""
    checked = [check_frame(frame) for frame in frames]
    if len({len(frame) for frame in checked}) != 1:
        raise UserError(f"frames must have one height, got {[frame.shape for frame in checked]}")
    joined: Frame = np.concatenate(checked, axis=1)
    return joined


def shade(
    vertices: NDArray[np.floating], faces: NDArray[np.integer], base: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Return vertex colours (V, 3) float32 in [0, 1] of a camera-frame mesh: matt clay under two lights."""
    normals = vertex_normals(vertices, faces)
    key = np.clip(normals @ KEY_LIGHT, 0.0, 1.0)
    fill = np.clip(normals @ FILL_LIGHT, 0.0, 1.0)
    sky = 0.5 - 0.5 * normals[:, 1]  # brighter where the surface looks up
    light = 0.30 + 0.64 * key + 0.16 * fill + 0.14 * sky
    eighth = np.square(np.square(np.square(key)))
    highlight = 0.10 * (eighth * eighth * eighth)  # key**24: the power function takes several times as long
    colours: NDArray[np.float32] = light[:, None] * np.array(base, np.float32) + highlight[:, None]
    return np.clip(colours, 0.0, 1.0, out=colours)


def _draw_meshes(canvas: Frame, bodies: Sequence[Body], opacity: float, supersample: int) -> None:
    """Blend the meshes into `canvas`, drawing only the part of the frame that they cover."""
    region = _covered(canvas.shape[:2], bodies)
    if region is None:
        return
    x0, y0, x1, y1 = region
    scale = supersample if (x1 - x0) * (y1 - y0) * supersample**2 <= MAX_SUPERSAMPLED_PX else 1
    size_wh = ((x1 - x0) * scale, (y1 - y0) * scale)
    placed = [body.vertices + body.translation for body in bodies]
    near, far = _depth_range(placed)
    colour = np.zeros((size_wh[1], size_wh[0], 3), np.float32)
    depth = np.full((size_wh[1], size_wh[0]), far, np.float32)
    for number, (body, vertices) in enumerate(zip(bodies, placed, strict=True)):
        colour, depth = rasterise(
            vertices,
            body.faces,
            shade(vertices, body.faces, PALETTE[number % len(PALETTE)]),
            body.focal_px * scale,
            # Sample k of the region is at pixel x0 + (k + 0.5) / scale - 0.5.
            (
                (body.centre_px[0] - x0 + 0.5) * scale - 0.5,
                (body.centre_px[1] - y0 + 0.5) * scale - 0.5,
            ),
            size_wh,
            colour=colour,
            depth=depth,
            near_m=near,
            far_m=far,
        )
    alpha = (depth < np.float32(far)).astype(np.float32)
    colour *= alpha[..., None]
    if scale > 1:
        colour, alpha = _shrink(colour, scale), _shrink(alpha, scale)
    part = canvas[y0:y1, x0:x1]
    blended = part * (1.0 - opacity * alpha[..., None]) + (255.0 * opacity) * colour
    part[:] = np.rint(np.clip(blended, 0.0, 255.0)).astype(np.uint8)


def _shrink(picture: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    size_wh = (picture.shape[1] // factor, picture.shape[0] // factor)
    return np.asarray(cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA), np.float32)


def _covered(frame_hw: tuple[int, ...], bodies: Sequence[Body]) -> tuple[int, int, int, int] | None:
    """Return x0, y0, x1, y1 of the frame's part that the bodies cover, None when there is none."""
    if not bodies:
        return None
    points = np.concatenate([body.vertices_px for body in bodies])
    low = np.clip(np.floor(points.min(axis=0)) - 1, 0, (frame_hw[1], frame_hw[0])).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)) + 2, 0, (frame_hw[1], frame_hw[0])).astype(int)
    if (high <= low).any():
        return None
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _depth_range(placed: Sequence[NDArray[np.floating]]) -> tuple[float, float]:
    """Return near and far planes in metres just around the meshes, for the best depth resolution."""
    depths = np.concatenate([vertices[:, 2] for vertices in placed])
    return max(0.005, float(depths.min()) * 0.9), float(depths.max()) * 1.2


_SHIFT = 4  # fractional bits of the coordinates given to OpenCV's drawing


def _fixed(point: NDArray[np.floating]) -> tuple[int, int]:
    x, y = (round(float(value) * (1 << _SHIFT)) for value in np.clip(point, -10_000, 50_000))
    return x, y


def side_bgr(*joints: str) -> tuple[int, int, int]:
    """Return the colour of a joint or bone: a side's if it has one, also where it ends in the middle."""
    sides = {name.split("_")[0] for name in joints} & {"left", "right"}
    if len(sides) != 1:
        return MIDDLE_BGR
    return LEFT_BGR if sides == {"left"} else RIGHT_BGR
