"""Drawing a video's people fast, on one core: meshes, skeletons, boxes, identities and a view from the side.

Where `overlay.draw_bodies` aims at one good picture, this aims at a frame rate: a level of the mesh of some thousand
triangles, drawn into a picture of at most MOST_PX pixels a person, which is enlarged with its edges smooth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.preprocess import Frame
from metro_edge.raster import rasterise
from metro_edge.template import BodyTemplate
from metro_edge.video.glb import drawing_level
from metro_edge.video.overlay import PALETTE, draw_skeleton_into, shade
from metro_edge.video.people import Person
from metro_edge.video.stream import FrameResult

MOST_PX = 55_000  # of the small picture that a group of people who overlap is drawn into, per person
FINEST = 2.0  # samples per pixel and axis, for people who are small in the picture
SIDE_SHARE = 0.32  # of the frame's height, of the side view's sides
STRIP_PX = 48  # rows that are blended at once
FONT = cv2.FONT_HERSHEY_SIMPLEX
Region = tuple[int, int, int, int]


@dataclass(frozen=True)
class Style:
    """What is drawn.

    Attributes:
        mesh, skeleton, boxes, labels, side: draw the meshes, joints and bones, boxes, identities, the view from the
            side into the upper right corner. Bodies without a mesh have their skeleton drawn.
        opacity: of the meshes, 0 to 1.
    """

    mesh: bool = True
    skeleton: bool = False
    boxes: bool = True
    labels: bool = True
    side: bool = False
    opacity: float = 0.85

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise UserError(f"opacity must be 0 to 1, got {self.opacity}")


@dataclass(frozen=True, eq=False)
class _Mesh:
    """A person's drawing level: vertices (N, 3) metres in the camera frame and where they are in the frame."""

    vertices: NDArray[np.float32]
    colours: NDArray[np.float32]
    region: Region
    focal_px: float
    centre_px: tuple[float, float]


class Drawer:
    """Draws results of one bundle's body.

    draw = Drawer(bundle.template)
    picture = draw(result)
    """

    def __init__(self, template: BodyTemplate, style: Style = Style()) -> None:
        self.style = style
        self._vertices, self._faces = drawing_level(template)

    def __call__(self, result: FrameResult) -> Frame:
        """Return a copy of the frame with its people drawn over it, nearest surface in front."""
        picture: Frame = result.image.copy()
        style = self.style
        if style.mesh and style.opacity > 0:
            meshes = [mesh for person in result.people if (mesh := self._mesh(person, picture.shape[:2])) is not None]
            for group in _groups(meshes):
                self._draw(picture, group)
        for person in result.people:
            if style.skeleton or not (person.body.has_mesh and style.mesh):
                draw_skeleton_into(picture, person.body)
            draw_label(picture, person, style)
        if style.side and result.people:
            self._draw_side(picture, result)
        return picture

    def _mesh(self, person: Person, frame_hw: tuple[int, ...]) -> _Mesh | None:
        body = person.body
        if not body.has_mesh:
            return None
        vertices = body.vertices[self._vertices] + body.translation
        pixels = vertices[:, :2] * (body.focal_px / vertices[:, 2:]) + np.array(body.centre_px, np.float32)
        low = np.clip(np.floor(pixels.min(axis=0)) - 1, 0, (frame_hw[1], frame_hw[0])).astype(int)
        high = np.clip(np.ceil(pixels.max(axis=0)) + 2, 0, (frame_hw[1], frame_hw[0])).astype(int)
        if (high <= low).any() or float(vertices[:, 2].min()) <= 0:
            return None
        region = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        colours = shade(vertices, self._faces, colour_of(person.identity))
        return _Mesh(vertices, colours, region, body.focal_px, body.centre_px)

    def _draw(self, picture: Frame, group: Sequence[_Mesh]) -> None:
        x0, y0, x1, y1 = _union([mesh.region for mesh in group])
        area = (x1 - x0) * (y1 - y0)
        scale = min(FINEST, math.sqrt(MOST_PX * len(group) / area))
        size_wh = (max(2, math.ceil((x1 - x0) * scale)), max(2, math.ceil((y1 - y0) * scale)))
        # The same scale on both axes for the camera; the last pixel may reach past the region, and is cut by resize.
        scale = size_wh[0] / (x1 - x0)
        near = max(0.01, min(float(mesh.vertices[:, 2].min()) for mesh in group) * 0.9)
        far = float(np.float32(max(float(mesh.vertices[:, 2].max()) for mesh in group) * 1.1))
        colour, depth = None, None
        for mesh in group:
            centre = tuple((c - o + 0.5) * scale - 0.5 for c, o in zip(mesh.centre_px, (x0, y0), strict=True))
            colour, depth = rasterise(
                mesh.vertices, self._faces, mesh.colours, mesh.focal_px * scale, (centre[0], centre[1]), size_wh,
                colour=colour, depth=depth, cull_back=True, near_m=near, far_m=far,
            )  # fmt: skip
        assert colour is not None and depth is not None
        # Where nothing was drawn the colour is still black: it is multiplied by alpha as it is.
        full = 255.0 * self.style.opacity
        alpha = cv2.bitwise_and(
            cv2.compare(depth, np.full_like(depth, far), cv2.CMP_LT), np.full(depth.shape, round(full), np.uint8)
        )
        layer = cv2.merge([*cv2.split(cv2.convertScaleAbs(colour, alpha=full)), alpha])
        wanted_wh = (x1 - x0, y1 - y0)
        how = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
        blend(picture[y0:y1, x0:x1], np.asarray(cv2.resize(layer, wanted_wh, interpolation=how), np.uint8))

    def _draw_side(self, picture: Frame, result: FrameResult) -> None:
        """Draw the people as seen from their right, level with the ground, into the upper right corner."""
        side = int(SIDE_SHARE * picture.shape[0])
        panel = picture[:side, picture.shape[1] - side :]
        panel[:] = panel // 3
        meshes, ground = [], result.ground
        for person in result.people:
            body = person.body
            points = (body.vertices[self._vertices] if body.has_mesh else body.joints) + body.translation
            meshes.append((person, points @ ground[:3, :3].T + ground[:3, 3]))
        everything = np.concatenate([points for _, points in meshes])
        low, high = everything.min(axis=0), everything.max(axis=0)
        middle, size = (low + high) / 2, max(1.2 * float((high - low)[1:].max()), 0.5)
        metre_px = side / size
        small = max(2, side // 2)  # drawn at half the size, enlarged with smooth edges
        far = 100.0  # metres: from so far away perspective does not show
        colour, depth = None, None
        for person, points in meshes:
            # The camera's depth becomes x: whoever is nearer to the camera is further left.
            turned = np.stack((middle[2] - points[:, 2], middle[1] - points[:, 1], points[:, 0] - middle[0]), axis=1)
            if not person.body.has_mesh:
                bgr = [int(255 * value) for value in colour_of(person.identity)]
                for x, y in turned[:, :2] * metre_px + side / 2.0:
                    cv2.circle(panel, (round(float(x)), round(float(y))), 2, bgr, -1, cv2.LINE_AA)
                continue
            shading = shade(turned, self._faces, colour_of(person.identity))
            turned[:, 2] += far
            colour, depth = rasterise(
                turned.astype(np.float32), self._faces, shading, small / size * far, (small / 2.0, small / 2.0),
                (small, small), colour=colour, depth=depth, cull_back=True, near_m=far - 20.0, far_m=far + 20.0,
            )  # fmt: skip
        if colour is not None and depth is not None:
            solid = (depth < np.float32(far + 20.0)).astype(np.uint8) * 255
            layer = cv2.merge([*cv2.split(cv2.convertScaleAbs(colour, alpha=255.0)), solid])
            blend(panel, np.asarray(cv2.resize(layer, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8))
        floor = round(side / 2.0 + middle[1] * metre_px)
        cv2.line(panel, (0, floor), (side - 1, floor), (150, 150, 150), 1)
        cv2.putText(panel, "side", (8, 18), FONT, 0.5, (220, 220, 220), 1, cv2.LINE_AA)


def draw_label(picture: Frame, person: Person, style: Style) -> None:
    """Draw a person's box, and their identity and confidence above it, into `picture`."""
    x, y, width, height = (float(value) for value in person.box)
    if not all(math.isfinite(value) and abs(value) < 30_000 for value in (x, y, width, height)):
        return
    bgr = [int(255 * value) for value in colour_of(person.identity)]
    unit = max(0.4, len(picture) / 1080.0 * 0.8)
    line = max(1, round(2 * unit))
    if style.boxes:
        cv2.rectangle(picture, (round(x), round(y)), (round(x + width), round(y + height)), bgr, line)
    if style.labels:
        text = f"{person.identity}  {person.confidence:.2f}"
        (wide, tall), _ = cv2.getTextSize(text, FONT, unit, line)
        left, top = max(0, round(x)), max(tall + 6, round(y))
        cv2.rectangle(picture, (left, top - tall - 6), (left + wide + 6, top), bgr, -1)
        cv2.putText(picture, text, (left + 3, top - 4), FONT, unit, (20, 20, 20), line, cv2.LINE_AA)


def colour_of(identity: int) -> tuple[float, float, float]:
    """Return an identity's colour, BGR in [0, 1]."""
    return PALETTE[(identity - 1) % len(PALETTE)]


def blend(part: Frame, layer: NDArray[np.uint8]) -> None:
    """Lay `layer` (H, W, 4), BGR times alpha and alpha, over `part` (H, W, 3), in place."""
    for top in range(0, len(part), STRIP_PX):
        strip = layer[top : top + STRIP_PX]
        # Much of a person's box is empty: only the columns that have something are blended.
        columns = np.flatnonzero(cv2.reduce(strip[..., 3], 0, cv2.REDUCE_MAX))
        if len(columns):
            _blend_all(part[top : top + STRIP_PX, columns[0] : columns[-1] + 1], strip[:, columns[0] : columns[-1] + 1])


def _blend_all(part: Frame, layer: NDArray[np.uint8]) -> None:
    remaining = cv2.cvtColor(cv2.bitwise_not(layer[..., 3]), cv2.COLOR_GRAY2BGR)
    dimmed = cv2.multiply(part, remaining, scale=1.0 / 255.0)
    part[:] = cv2.add(dimmed, cv2.cvtColor(layer, cv2.COLOR_BGRA2BGR))


def _groups(meshes: Sequence[_Mesh]) -> list[list[_Mesh]]:
    """Return the meshes in groups whose regions overlap: only within one does it matter who is in front."""
    groups: list[list[_Mesh]] = []
    for mesh in meshes:
        touching = [group for group in groups if _touch(_union([one.region for one in group]), mesh.region)]
        groups = [group for group in groups if all(group is not one for one in touching)]
        groups.append([mesh, *(one for group in touching for one in group)])
    return groups


def _touch(a: Region, b: Region) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _union(regions: Sequence[Region]) -> Region:
    x0, y0 = min(r[0] for r in regions), min(r[1] for r in regions)
    return x0, y0, max(r[2] for r in regions), max(r[3] for r in regions)
