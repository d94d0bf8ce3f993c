"""Seeded pictures of rendered people with exact labels: pose, shape, look, light, camera, background, occluders, noise.

A sample is a function of (seed, index) alone. Bodies are computed in aligned groups of GROUP samples, always the same
ones together, so that not even rounding depends on the order in which samples are asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.raster import project, rasterise, vertex_normals
from training.data.appearance import Look, sample_light, sample_look, shade, tables
from training.data.backgrounds import sample_background, sample_texture
from training.data.camera import View, sample_view
from training.data.poses import FAMILIES, sample_pose
from training.data.rig import Rig, anny_model, euler, load_rig

GENERATOR_VERSION = 1
GROUP = 16
PHENOTYPES = ("gender", "age", "muscle", "weight", "height", "proportions")
VISIBLE_TOLERANCE_M = 0.015  # beyond what the clothes add

Floats = NDArray[np.float32]
Rng = Any  # numpy.random.Generator


@dataclass(frozen=True)
class GeneratedSample:
    """One picture and its truth.

    Attributes:
        frame: (H, W, 3) uint8 BGR.
        vertices: (V, 3) float32 metres, camera frame, where the body stands before the camera (not root-centred).
        focal_px, centre_px: pinhole camera of the frame; whole pixel numbers are pixel centres.
        box: (4,) float32 x, y, width, height in px about the part of the person inside the frame.
        visible: (V,) bool, inside the frame and hidden by nothing.
        family: of the pose.
        index: of the sample.
    """

    frame: NDArray[np.uint8]
    vertices: Floats
    focal_px: float
    centre_px: tuple[float, float]
    box: Floats
    visible: NDArray[np.bool_]
    family: str
    index: int


@dataclass(frozen=True)
class Body:
    """A posed person in the rig frame: vertices (V, 3) metres, its phenotype (6,) and its pose family."""

    vertices: Floats
    phenotype: Floats
    family: str


def sample_phenotype(rng: Rng) -> Floats:
    """Draw Anny's shape parameters (6,) in the order of PHENOTYPES: the whole range, adults most often."""
    gender = rng.uniform(0, 1) if rng.random() < 0.3 else float(rng.random() < 0.5) * 0.9 + rng.uniform(0, 0.1)
    kind = rng.random()
    age = rng.uniform(0.0, 0.2) if kind < 0.03 else rng.uniform(0.2, 0.6) if kind < 0.18 else rng.uniform(0.6, 1.0)
    muscle, weight = rng.beta(1.4, 1.4, 2)
    return np.array([gender, age, muscle, weight, rng.beta(1.5, 1.5), rng.uniform(0, 1)], np.float32)


def pose_bodies(poses: NDArray[np.floating], phenotypes: NDArray[np.floating]) -> Floats:
    """Return vertices (N, V, 3) float32, rig frame, of poses (N, 104, 3, 3) and phenotypes (N, 6)."""
    import torch

    model = anny_model()
    transforms = torch.eye(4).repeat(len(poses), poses.shape[1], 1, 1)
    transforms[:, :, :3, :3] = torch.from_numpy(np.ascontiguousarray(poses, np.float32))
    values = torch.from_numpy(np.ascontiguousarray(phenotypes, np.float32))
    named = {name: values[:, k] for k, name in enumerate(PHENOTYPES)}
    with torch.no_grad():
        vertices: Floats = model(pose_parameters=transforms, phenotype_kwargs=named)["vertices"].numpy()
    return vertices


def mesh_faces() -> NDArray[np.int32]:
    """Return the triangles (F, 3) int32 of the Anny mesh."""
    return np.ascontiguousarray(anny_model().get_triangular_faces().numpy(), np.int32)


class GeneratedPeople:
    """A sequence of generated samples.

    Args:
        seed: of everything; sets for training, validation and test need different ones.
        size: how many samples it has.
        frame_wh: width and height of the frames in px.
        family: one pose family for all samples, or None for all families.

    Raises:
        UserError: for a size below 1, a frame under 64 px, an unknown family; IndexError past the end.
    """

    def __init__(self, seed: int, size: int, frame_wh: tuple[int, int] = (320, 320), family: str | None = None) -> None:
        if seed < 0 or size < 1:
            raise UserError(f"seed must be at least 0 and size at least 1, got {seed} and {size}")
        if min(frame_wh) < 64:
            raise UserError(f"frames must be at least 64 x 64 px, got {frame_wh[0]} x {frame_wh[1]}")
        if family is not None and family not in FAMILIES:
            raise UserError(f"unknown pose family {family!r}; known: {', '.join(FAMILIES)}")
        self.seed, self.size, self.frame_wh, self.family = seed, size, frame_wh, family
        self._groups: OrderedDict[int, list[Body]] = OrderedDict()
        self._faces: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> GeneratedSample:
        return self.sample(index)

    @property
    def faces(self) -> NDArray[np.int32]:
        """(F, 3) int32 triangles."""
        if self._faces is None:
            self._faces = mesh_faces()
        return self._faces

    def _rng(self, index: int, stream: int) -> Rng:
        return np.random.default_rng([self.seed, index, stream])

    def body(self, index: int) -> Body:
        """Return the posed person of a sample, without rendering it."""
        group = index // GROUP
        if group not in self._groups:
            self._groups[group] = self._make_group(group)
            while len(self._groups) > 4:
                self._groups.popitem(last=False)
        return self._groups[group][index % GROUP]

    def _make_group(self, group: int) -> list[Body]:
        import torch

        rig: Rig = load_rig()
        indices = range(group * GROUP, (group + 1) * GROUP)
        drawn = [sample_pose(rig, self._rng(index, 0), self.family) for index in indices]
        phenotypes = np.stack([sample_phenotype(self._rng(index, 1)) for index in indices])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums split over threads would round differently
        try:
            vertices = pose_bodies(np.stack([pose for pose, _ in drawn]), phenotypes)
        finally:
            torch.set_num_threads(threads)
        return [Body(v, p, family) for v, p, (_, family) in zip(vertices, phenotypes, drawn, strict=True)]

    def sample(self, index: int) -> GeneratedSample:
        """Render one sample; raises IndexError outside 0 .. size - 1."""
        if not 0 <= index < self.size:
            raise IndexError(f"sample {index} of {self.size}")
        cv2.setNumThreads(1)
        body = self.body(index)
        view = sample_view(self._rng(index, 2), body.vertices, tables().area, self.frame_wh)
        return self._render(index, body, view)

    def samples(self, indices: Iterable[int]) -> Iterator[GeneratedSample]:
        """Render many; fastest in rising order, where each group of bodies is computed once."""
        for index in indices:
            yield self.sample(index)

    def _render(self, index: int, body: Body, view: View) -> GeneratedSample:
        rng, size = self._rng(index, 3), self.frame_wh
        vertices = view.apply(body.vertices)
        light = sample_light(rng, view.up)
        picture = sample_background(rng, self.seed, size).astype(np.float32)
        if rng.random() < 0.5:
            _ground_shadow(rng, picture, vertices, view)
        look = sample_look(rng, float(body.phenotype[0]), float(body.phenotype[1]))
        layer = draw_person(vertices, self.faces, look, light, view, size, rng)
        front = None
        if rng.random() < 0.18:
            front = self._companion(index, view, vertices, light, layer, picture, rng)
        layer.over(picture)
        hidden = np.zeros(size[::-1], np.float32)
        if front is not None:
            front.over(picture)
            front.cover(hidden)
        if rng.random() < 0.22:
            _occlude(rng, self.seed, picture, hidden, layer)
        pixels = project(vertices, view.focal_px, view.centre_px)
        visible = _visible(vertices[:, 2], pixels, layer, hidden)
        frame = _photograph(rng, picture)
        return GeneratedSample(
            frame, vertices, view.focal_px, view.centre_px, _box(pixels, size), visible, body.family, index
        )

    def _companion(
        self, index: int, view: View, vertices: Floats, light: Any, layer: Layer, picture: Floats, rng: Rng
    ) -> Layer | None:
        """Draw another person behind into the picture, or return one to be laid in front."""
        other = self.body(index - index % GROUP + (index + 5) % GROUP)
        turned = other.vertices @ euler(0, 0, rng.uniform(-180, 180)).T.astype(np.float32)
        aside = rng.choice([-1, 1]) * rng.uniform(0.35, 1.3)
        beside = View(view.turn, view.shift, view.focal_px, view.centre_px)
        moved = beside.apply(turned)
        ahead = view.turn @ np.array([0.0, 1.0, 0.0])
        ahead = ahead - view.up * (ahead @ view.up)
        moved = moved + (np.array([aside, 0, 0]) + ahead * rng.uniform(-0.7, 3.0)).astype(np.float32)
        if moved[:, 2].min() < 0.4:
            return None
        look = sample_look(rng, float(other.phenotype[0]), float(other.phenotype[1]))
        drawn = draw_person(moved, self.faces, look, light, view, self.frame_wh, rng, fine=1)
        if moved[:, 2].mean() > vertices[:, 2].mean():
            drawn.over(picture)
            return None
        covered = np.zeros(self.frame_wh[::-1], np.float32)
        drawn.cover(covered)
        mine = np.zeros_like(covered)
        layer.cover(mine)
        return drawn if float((covered * mine).sum()) < 0.4 * float(mine.sum()) else None


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

    def _window(self, picture: NDArray) -> NDArray:
        (x, y), (h, w) = self.at, self.alpha.shape
        return picture[y : y + h, x : x + w]

    def over(self, picture: Floats) -> None:
        """Lay it over `picture`."""
        window = self._window(picture)
        window *= 1 - self.alpha[..., None]
        window += self.colour

    def cover(self, mask: Floats) -> None:
        """Add its alpha to `mask`."""
        window = self._window(mask)
        np.maximum(window, self.alpha, out=window)


def draw_person(
    vertices: Floats,
    faces: NDArray[np.int32],
    look: Look,
    light: Any,
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


def _visible(depths: Floats, pixels: Floats, layer: Layer, hidden: Floats) -> NDArray[np.bool_]:
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


def _box(pixels: Floats, size_wh: tuple[int, int]) -> Floats:
    """Return the box x, y, width, height about pixel centres (P, 2), clipped to the frame."""
    limit = np.array(size_wh) - 1
    first, last = np.clip(pixels.min(0), 0, limit), np.clip(pixels.max(0), 0, limit)
    return np.concatenate([first, last - first + 1]).astype(np.float32)


def _ground_shadow(rng: Rng, picture: Floats, vertices: Floats, view: View) -> None:
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


def _occlude(rng: Rng, seed: int, picture: Floats, hidden: Floats, layer: Layer) -> None:
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
        overlap = float((layer._window(mask) * layer.alpha).sum())
        if overlap > 0.4 * float(layer.alpha.sum()):
            continue
        texture = sample_texture(rng, seed, (width, height)).astype(np.float32)
        if skin is not None:
            texture = skin * (0.8 + 0.4 * texture.mean(axis=2, keepdims=True) / 255)
        picture += mask[..., None] * (texture - picture)
        np.maximum(hidden, mask, out=hidden)


def _photograph(rng: Rng, picture: Any) -> NDArray[np.uint8]:
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
    photograph: NDArray[np.uint8] = frame
    return photograph
