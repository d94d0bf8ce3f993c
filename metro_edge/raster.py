"""Z-buffered drawing of triangle meshes through a pinhole camera, on OpenCV's software rasteriser."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError

FloatArray = NDArray[np.float32]

NEAR_M = 0.05
FAR_M = 200.0


def rasterise(
    vertices: NDArray[np.floating],
    faces: NDArray[np.integer],
    colours: NDArray[np.floating],
    focal_px: float,
    centre_px: tuple[float, float],
    size_wh: tuple[int, int],
    colour: FloatArray | None = None,
    depth: FloatArray | None = None,
    cull_back: bool = False,
    near_m: float = NEAR_M,
    far_m: float = FAR_M,
) -> tuple[FloatArray, FloatArray]:
    """Draw a mesh with colours interpolated over each triangle (Gouraud), nearest surface in front.

    A vertex (x, y, z) lands on pixel (focal * x / z + cx, focal * y / z + cy), where whole numbers are pixel
    centres, as in cv2.projectPoints and cv2.circle.

    Args:
        vertices: (V, 3) metres, camera frame: x right, y down, z away from the camera.
        faces: (F, 3) triangles, indices into vertices.
        colours: (V, 3) floats in [0, 1], in the channel order that the result shall have.
        focal_px: focal length in pixels, the same for both axes.
        centre_px: principal point (x, y) in pixels; it may lie anywhere, also outside the picture.
        size_wh: width and height of the result in pixels.
        colour: (H, W, 3) float32 picture to draw over, kept as it is; None means black.
        depth: (H, W) float32 depths in metres that are already there, such as an earlier call's; None means far_m.
        cull_back: leave out triangles that face away; for closed meshes that are counter-clockwise seen from
            outside in a y-up frame, as BodyTemplate's are.
        near_m, far_m: depths in metres between which surfaces are drawn; surfaces within far_m * 4e-7 * far_m / near_m
            of far_m (a tenth of far_m at most) count as nothing in the depths that are returned.

    Returns:
        colour (H, W, 3) float32 and depth (H, W) float32 in metres, far_m where nothing is.

    Raises:
        UserError: for arrays, sizes or numbers that do not fit the above.
    """
    width, height = _checked_size(size_wh)
    _check_mesh(vertices, faces, colours)
    _check_camera(focal_px, centre_px, near_m, far_m)
    untouched = depth is None
    colour = _buffer("colour", colour, (height, width, 3), 0.0)
    depth = _buffer("depth", depth, (height, width), far_m)
    if not len(faces):
        return colour, depth
    # The rasteriser has no principal point: its axis goes through the middle of the picture. Shearing x and y by
    # depth moves the axis there, exactly, since the projection divides by depth. It works in OpenGL's frame
    # (y up, z towards the viewer) and its pixel i covers [i, i + 1) where ours is centred on i, hence the half.
    z = vertices[:, 2].astype(np.float64)
    x = vertices[:, 0] + z * ((centre_px[0] + 0.5 - width / 2) / focal_px)
    y = vertices[:, 1] + z * ((centre_px[1] + 0.5 - height / 2) / focal_px)
    points = np.stack((x, -y, -z), axis=1).astype(np.float32)
    # Triangles through the near plane are left out: clipping them would cost more than it gives.
    kept = np.ascontiguousarray(faces, np.int32)
    behind = z < near_m
    if behind.any():
        kept = kept[~behind[kept].any(axis=1)]
        if not len(kept):
            return colour, depth
    if cull_back:
        kept = kept[_seen(points, kept)]
        if not len(kept):
            return colour, depth
    empty = None if untouched else depth >= far_m
    settings = cv2.TriangleRasterizeSettings()
    settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
    settings.setCullingMode(cv2.RASTERIZE_CULLING_NONE)
    cv2.triangleRasterize(
        points,
        kept,
        np.ascontiguousarray(colours, np.float32),
        colour,
        depth,
        np.eye(4, dtype=np.float32),
        2 * math.atan(height / (2 * focal_px)),
        near_m,
        far_m,
        settings,
    )
    # It keeps inverse depths, in which float32 is coarse far away: what was empty comes back near far_m, not as it.
    lost = min(0.1, 1e-5 + 4e-7 * far_m / near_m)
    nothing = depth >= far_m * (1.0 - lost)
    np.copyto(depth, far_m, where=nothing if empty is None else nothing & empty)
    return colour, depth


def _seen(points: FloatArray, faces: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return which faces (F, 3) over points (V, 3), in OpenGL's camera frame, turn their front to the camera.

    OpenCV's own culling finds that out after its work on a triangle, for a sixth of the whole time of a body.
    """
    triangles = np.take(np.ascontiguousarray(points.T), faces.T.ravel(), axis=1).reshape(3, 3, len(faces))
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    volume = sum(a[i] * (b[j] * c[k] - b[k] * c[j]) for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)))
    return np.asarray(volume < 0)


def project(points: NDArray[np.floating], focal_px: float, centre_px: tuple[float, float]) -> NDArray[np.floating]:
    """Project points (..., 3) in metres, camera frame, to pixels (..., 2); depths must not be zero."""
    points = np.asarray(points)
    return points[..., :2] * (focal_px / points[..., 2:]) + np.asarray(centre_px, points.dtype)


def vertex_normals(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> FloatArray:
    """Return unit normals (V, 3) float32 of vertices (V, 3), weighted by the area of the faces (F, 3) around.

    They point to the side from which the faces are counter-clockwise in a right-handed y-up frame. The camera frame
    (x right, y down, z away) is a half turn of such a frame about x, so outwards stays outwards. A vertex
    without faces, or whose faces cancel out, gets a zero normal.
    """
    vertices = np.asarray(vertices, np.float32)
    corners = np.asarray(faces, np.intp).T.ravel()
    # Numbers of one axis side by side, and np.take: a third of the time of rows of three.
    triangles = np.take(np.ascontiguousarray(vertices.T), corners, axis=1).reshape(3, 3, len(faces))
    first = triangles[:, 0]
    u, v = triangles[:, 1] - first, triangles[:, 2] - first
    normals = np.empty((3, len(vertices)), np.float32)
    for axis, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):
        crossed = np.tile(u[i] * v[j] - u[j] * v[i], 3)
        normals[axis] = np.bincount(corners, crossed, minlength=len(vertices))  # np.add.at takes several times as long
    lengths = np.sqrt((normals * normals).sum(axis=0))
    unit: FloatArray = np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 1e-20)
    return np.ascontiguousarray(unit.T)


def _checked_size(size_wh: tuple[int, int]) -> tuple[int, int]:
    width, height = (int(v) for v in size_wh)
    if width < 1 or height < 1:
        raise UserError(f"size_wh must be at least 1 x 1 pixels, got {width} x {height}")
    return width, height


def _check_mesh(vertices: NDArray[Any], faces: NDArray[Any], colours: NDArray[Any]) -> None:
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise UserError(f"vertices must be (V, 3), got {vertices.shape}")
    if faces.ndim != 2 or faces.shape[1] != 3 or not np.issubdtype(faces.dtype, np.integer):
        raise UserError(f"faces must be (F, 3) integers, got {faces.shape} {faces.dtype}")
    if colours.shape != vertices.shape:
        raise UserError(f"colours must have the shape of vertices {vertices.shape}, got {colours.shape}")
    if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise UserError(f"faces must point to vertices 0..{len(vertices) - 1}, got {faces.min()}..{faces.max()}")
    if not np.isfinite(vertices).all():
        raise UserError("vertices must be finite, got NaN or infinity")


def _check_camera(focal_px: float, centre_px: tuple[float, float], near_m: float, far_m: float) -> None:
    if not (math.isfinite(focal_px) and focal_px > 0):
        raise UserError(f"focal_px must be a positive number of pixels, got {focal_px}")
    if len(centre_px) != 2 or not all(math.isfinite(v) for v in centre_px):
        raise UserError(f"centre_px must be two finite numbers, got {centre_px}")
    if not 0 < near_m < far_m:
        raise UserError(f"near_m must be positive and below far_m, got {near_m} and {far_m}")


def _buffer(name: str, given: FloatArray | None, shape: tuple[int, ...], fill: float) -> FloatArray:
    """Return a copy of `given`, so that the caller's picture stays as it was, or a new buffer."""
    if given is None:
        return np.full(shape, fill, np.float32)
    if given.shape != shape or given.dtype != np.float32:
        raise UserError(f"{name} must be {shape} float32 for this size_wh, got {given.shape} {given.dtype}")
    return np.array(given, np.float32, order="C")
