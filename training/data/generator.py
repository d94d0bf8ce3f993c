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
from metro_edge.raster import project
from training.data.appearance import sample_look, tables
from training.data.backgrounds import sample_background
from training.data.camera import View, sample_view
from training.data.draw import Layer, box_of, draw_person, visible_vertices
from training.data.effects import ground_shadow, occlude, photograph
from training.data.light import Light, sample_light
from training.data.poses import FAMILIES, sample_pose
from training.data.rig import Rig, anny_model, euler, load_rig

GENERATOR_VERSION = 1
GROUP = 16
PHENOTYPES = ("gender", "age", "muscle", "weight", "height", "proportions")

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
            ground_shadow(rng, picture, vertices, view)
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
            occlude(rng, self.seed, picture, hidden, layer)
        pixels = project(vertices, view.focal_px, view.centre_px)
        visible = visible_vertices(vertices[:, 2], pixels, layer, hidden)
        frame = photograph(rng, picture)
        return GeneratedSample(
            frame, vertices, view.focal_px, view.centre_px, box_of(pixels, size), visible, body.family, index
        )

    def _companion(
        self, index: int, view: View, vertices: Floats, light: Light, layer: Layer, picture: Floats, rng: Rng
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
