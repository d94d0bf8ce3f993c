"""Drawing a video's people fast, on one core: meshes, skeletons, boxes, identities and a view from the side.

Where `overlay.draw_bodies` aims at one good picture, this aims at a frame rate: a level of the mesh of some thousand
triangles, drawn into a picture of about MOST_PX pixels a person, which is enlarged with its edges smooth.
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

MOST_PX = 36_000  # of the small picture that a group of people who overlap is drawn into, per person
SIDE_SHARE = 0.32  # of the frame's height, of the side view's sides
SIDE_FAR_M = 100.0  # metres: from so far away perspective does not show
SIDE_HALVES = 4  # half pixels per sample there
BAND_ROWS = 64  # of the small picture that are enlarged and blended at once
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

    def seen_by(self, other: _Mesh) -> NDArray[np.float32]:
        """Return vertices that the camera of `other` sees on the same pixels, at the same depths."""
        if (self.focal_px, self.centre_px) == (other.focal_px, other.centre_px):
            return self.vertices
        vertices = self.vertices * (self.focal_px / other.focal_px)
        moved = np.subtract(self.centre_px, other.centre_px) / other.focal_px
        vertices[:, :2] += self.vertices[:, 2:] * moved.astype(np.float32)
        vertices[:, 2] = self.vertices[:, 2]
        return vertices


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
        # Halves of pixels per sample, so that whole pairs of samples make whole pixels.
        halves = max(1, round(2.0 * math.sqrt((x1 - x0) * (y1 - y0) / (MOST_PX * len(group)))))
        scale = 2.0 / halves
        # The last samples may reach past the region.
        size_wh = (2 * math.ceil((x1 - x0) / halves), 2 * math.ceil((y1 - y0) / halves))
        near = max(0.01, min(float(mesh.vertices[:, 2].min()) for mesh in group) * 0.9)
        far = float(np.float32(max(float(mesh.vertices[:, 2].max()) for mesh in group) * 1.1))
        first = group[0]
        centre = tuple((c - o + 0.5) * scale - 0.5 for c, o in zip(first.centre_px, (x0, y0), strict=True))
        colour, depth = rasterise(
            np.concatenate([mesh.seen_by(first) for mesh in group]),
            self._faces_of(len(group)),
            np.concatenate([mesh.colours for mesh in group]),
            first.focal_px * scale, (centre[0], centre[1]), size_wh, cull_back=True, near_m=near, far_m=far,
        )  # fmt: skip
        blend_scaled(picture[y0:y1, x0:x1], layer_of(colour, depth, far, self.style.opacity), halves)

    def _faces_of(self, people: int) -> NDArray[np.int32]:
        """Return the faces of so many bodies whose vertices follow each other."""
        return np.concatenate([self._faces + np.int32(len(self._vertices) * number) for number in range(people)])

    def _draw_side(self, picture: Frame, result: FrameResult) -> None:
        """Draw the people as seen from their right, level with the ground, into the upper right corner."""
        side = int(SIDE_SHARE * picture.shape[0])
        panel = picture[:side, picture.shape[1] - side :]
        panel[:] = cv2.convertScaleAbs(panel, alpha=1.0 / 3.0)
        meshes, ground = [], result.ground.astype(np.float32)
        for person in result.people:
            body = person.body
            points = (body.vertices[self._vertices] if body.has_mesh else body.joints) + body.translation
            meshes.append((person, points @ ground[:3, :3].T + ground[:3, 3]))
        everything = np.concatenate([points for _, points in meshes])
        low, high = everything.min(axis=0), everything.max(axis=0)
        middle, size = (low + high) / 2, max(1.2 * float((high - low)[1:].max()), 0.5)
        metre_px = side / size
        solids, shadings = [], []
        for person, points in meshes:
            # The camera's depth becomes x: whoever is nearer to the camera is further left.
            turned = np.stack((middle[2] - points[:, 2], middle[1] - points[:, 1], points[:, 0] - middle[0]), axis=1)
            if not person.body.has_mesh:
                bgr = [int(255 * value) for value in colour_of(person.identity)]
                for x, y in turned[:, :2] * metre_px + side / 2.0:
                    cv2.circle(panel, (round(float(x)), round(float(y))), 2, bgr, -1, cv2.LINE_AA)
                continue
            shadings.append(shade(turned, self._faces, colour_of(person.identity)))
            solids.append(turned + np.array((0.0, 0.0, SIDE_FAR_M), np.float32))
        if solids:
            small = 2 * math.ceil(side / SIDE_HALVES)
            centre = (side / 2.0 + 0.5) * 2.0 / SIDE_HALVES - 0.5
            colour, depth = rasterise(
                np.concatenate(solids), self._faces_of(len(solids)), np.concatenate(shadings),
                metre_px * SIDE_FAR_M * 2.0 / SIDE_HALVES, (centre, centre), (small, small), cull_back=True,
                near_m=SIDE_FAR_M - 20.0, far_m=SIDE_FAR_M + 20.0,
            )  # fmt: skip
            blend_scaled(panel, layer_of(colour, depth, SIDE_FAR_M + 20.0, 1.0), SIDE_HALVES)
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


def layer_of(
    colour: NDArray[np.float32], depth: NDArray[np.float32], far_m: float, opacity: float
) -> NDArray[np.uint8]:
    """Return (H, W, 4) uint8, BGR times alpha and alpha, of a drawn picture; nothing is where the depth is `far_m`."""
    full = round(255.0 * opacity)
    alpha = np.multiply(depth < np.float32(far_m), np.uint8(full))
    # Where nothing was drawn the colour is still black.
    return np.asarray(cv2.merge([*cv2.split(cv2.convertScaleAbs(colour, alpha=float(full))), alpha]), np.uint8)


def blend_scaled(part: Frame, layer: NDArray[np.uint8], halves: int) -> None:
    """Lay `layer` (H, W, 4), BGR times alpha and alpha, over `part`, in place, each sample on halves / 2 pixels.

    The layer's size is even and reaches over the part's right and lower edge. Much of a person's box is empty: band by
    band, only the columns that hold something are enlarged (bilinear) and blended, to the same values as the whole.
    """
    if halves < 2:
        wanted_wh = (layer.shape[1] // 2, layer.shape[0] // 2)
        small = np.asarray(cv2.resize(layer, wanted_wh, interpolation=cv2.INTER_AREA), np.uint8)
        blend(part, small[: part.shape[0], : part.shape[1]])
        return
    rows, columns = layer.shape[:2]
    for top in range(0, rows, BAND_ROWS):
        end = min(top + BAND_ROWS, rows)
        # A sample reaches over one beside it.
        filled = np.flatnonzero(cv2.reduce(layer[max(top - 1, 0) : end + 1, :, 3], 0, cv2.REDUCE_MAX))
        if not len(filled):
            continue
        left, right = (int(filled[0]) - 1) // 2 * 2, (int(filled[-1]) + 3) // 2 * 2
        left, right = max(left, 0), min(right, columns)
        # Two more samples on each side, so that the edges of what is used are computed as within the whole.
        y, x = max(top - 2, 0), max(left - 2, 0)
        piece = layer[y : min(end + 2, rows), x : min(right + 2, columns)]
        if halves > 2:
            wanted_wh = (piece.shape[1] * halves // 2, piece.shape[0] * halves // 2)
            piece = np.asarray(cv2.resize(piece, wanted_wh, interpolation=cv2.INTER_LINEAR), np.uint8)
        target = part[top * halves // 2 : end * halves // 2, left * halves // 2 : right * halves // 2]
        skipped_y, skipped_x = (top - y) * halves // 2, (left - x) * halves // 2
        blend(target, piece[skipped_y : skipped_y + target.shape[0], skipped_x : skipped_x + target.shape[1]])


def blend(part: Frame, layer: NDArray[np.uint8]) -> None:
    """Lay `layer` (H, W, 4), BGR times alpha and alpha, over `part` (H, W, 3), in place."""
    remaining = cv2.cvtColor(cv2.bitwise_not(layer[..., 3]), cv2.COLOR_GRAY2BGR)
    dimmed = cv2.multiply(part, remaining, scale=1.0 / 255.0)
    cv2.add(dimmed, cv2.cvtColor(layer, cv2.COLOR_BGRA2BGR), dst=part)


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
