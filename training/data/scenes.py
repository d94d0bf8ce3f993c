"""Generated clips of several people with known identities: walkers who enter, leave, cross and come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from metro_edge.raster import project
from training.bodies.anny import load_anny_template
from training.data.appearance import sample_look
from training.data.backgrounds import make_background
from training.data.camera import View, look_from
from training.data.draw import box_of, draw_person
from training.data.effects import ground_shadow
from training.data.generator import mesh_faces, pose_bodies
from training.data.light import Light
from training.data.poser import Poser
from training.data.poses import stride
from training.data.rig import load_rig
from training.data.storage import ROOT_JOINT_SET

CYCLE_M = 1.35  # per two steps
CAMERA_HEIGHT_M = 1.4
ELEVATION_DEG = 6.0
LEAST_VISIBLE = 0.3  # of a person's box inside the frame, to count as there


@dataclass(frozen=True)
class Walker:
    """Someone who walks from `start` to `end` at a constant speed while `from_s` to `to_s`, and is away otherwise.

    Attributes:
        start, end: (x, depth) in metres on the ground; x to the camera's right, depth from the camera.
        from_s, to_s: when.
        seed: of build, clothes and gait.
    """

    identity: int
    start: tuple[float, float]
    end: tuple[float, float]
    from_s: float
    to_s: float
    seed: int


@dataclass(frozen=True, eq=False)
class SceneFrame:
    """A frame with its truth.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        identities: (N,) int64 of the people of whom at least LEAST_VISIBLE of their box is inside the frame.
        boxes: (N, 4) float64 x, y, width, height px, inside the frame.
        joints: (N, J, 3) float64 metres in the camera frame, of the shipped network's joint set.
    """

    image: NDArray[np.uint8]
    identities: NDArray[np.int64]
    boxes: NDArray[np.float64]
    joints: NDArray[np.float64]


SCENES: dict[str, tuple[Walker, ...]] = {
    "entering": (
        Walker(1, (-1.0, 4.5), (1.2, 4.2), 0.0, 5.0, 3),
        Walker(2, (3.8, 5.5), (-0.2, 5.2), 1.0, 5.0, 4),
        Walker(3, (-3.8, 6.0), (-1.0, 6.5), 2.0, 5.0, 5),
    ),
    "leaving": (
        Walker(1, (-0.6, 4.5), (-4.0, 4.7), 0.0, 4.0, 6),
        Walker(2, (0.8, 5.0), (4.5, 5.2), 0.0, 4.0, 7),
        Walker(3, (0.0, 6.5), (0.4, 6.2), 0.0, 4.0, 8),
    ),
    "crossing": (
        Walker(1, (-2.2, 5.0), (2.2, 5.0), 0.0, 4.0, 9),
        Walker(2, (2.2, 6.4), (-2.2, 6.4), 0.0, 4.0, 10),
    ),
    "reappearing": (
        Walker(1, (-1.2, 4.8), (-3.6, 4.8), 0.0, 1.8, 11),
        Walker(1, (-3.6, 4.8), (-1.0, 4.8), 2.6, 4.6, 11),
        Walker(2, (0.6, 5.2), (1.2, 5.0), 0.0, 4.6, 12),
    ),
}

# One person, for what follows them without a detector.
ALONE: dict[str, tuple[Walker, ...]] = {
    "alone, strolling": (Walker(1, (-1.6, 4.6), (1.6, 4.4), 0.0, 4.0, 13),),
    "alone, hurrying": (Walker(1, (2.0, 4.8), (-2.0, 4.9), 0.0, 2.4, 14),),
    "alone, coming": (Walker(1, (0.8, 7.5), (-0.3, 3.4), 0.0, 4.0, 15),),
}


def render_scene(
    walkers: Sequence[Walker], frames: int, fps: float = 25.0, size_wh: tuple[int, int] = (640, 360), seed: int = 1
) -> list[SceneFrame]:
    """Return a scene's frames; the same arguments give the same pixels."""
    focal_px = 0.9 * size_wh[0]
    centre = ((size_wh[0] - 1) / 2, (size_wh[1] - 1) / 2)
    room: Any = cv2.resize(make_background("field", np.random.default_rng(seed)), size_wh)
    room = cv2.GaussianBlur(room, (0, 0), 1.2)
    bodies = [_bodies_of(walker, frames, fps) for walker in walkers]
    looks = [sample_look(np.random.default_rng(walker.seed), 0.9, 0.6) for walker in walkers]
    result = []
    for number in range(frames):
        there = [k for k, _ in enumerate(walkers) if number in bodies[k]]
        there.sort(key=lambda k: -bodies[k][number][1][1])  # the farthest first, the others over them
        picture = room.astype(np.float32)
        ids, boxes, joints = [], [], []
        for k in there:
            mesh, place, heading = bodies[k][number]
            view = _view(place, heading, mesh, focal_px, centre)
            vertices = view.apply(mesh)
            ground_shadow(np.random.default_rng(seed), picture, vertices, view)
            draw_person(
                vertices, mesh_faces(), looks[k], _light(), view, size_wh, np.random.default_rng(walkers[k].seed)
            ).over(picture)
            pixels = project(vertices, focal_px, centre)
            box = np.asarray(box_of(pixels, size_wh), np.float64)
            whole = np.ptp(pixels, axis=0).prod()
            if box[2:].min() > 1 and box[2:].prod() >= LEAST_VISIBLE * whole:
                ids.append(walkers[k].identity)
                boxes.append(box)
                joints.append(load_anny_template().joints(ROOT_JOINT_SET, vertices))
        image = np.clip(picture, 0, 255).astype(np.uint8)
        result.append(
            SceneFrame(
                image,
                np.array(ids, np.int64),
                np.array(boxes, np.float64).reshape(-1, 4),
                np.array(joints, np.float64).reshape(len(ids), -1, 3),
            )
        )
    return result


def _bodies_of(walker: Walker, frames: int, fps: float) -> dict[int, tuple[Any, NDArray[np.float64], float]]:
    """Return frame -> mesh before the camera, place (x, depth) and heading in degrees."""
    rig, rng = load_rig(), np.random.default_rng(walker.seed)
    phenotype = np.concatenate([rng.uniform(0, 1, 1), [0.7], rng.uniform(0.3, 0.7, 4)]).astype(np.float32)
    start, end = np.array(walker.start), np.array(walker.end)
    way = end - start
    heading = float(np.degrees(np.arctan2(way[0], -way[1])))
    speed = float(np.linalg.norm(way)) / (walker.to_s - walker.from_s)
    numbers = [n for n in range(frames) if walker.from_s <= n / fps < walker.to_s]
    if not numbers:
        return {}
    poses = []
    for number in numbers:
        poser = Poser(rig)
        stride(poser, np.random.default_rng(walker.seed), 2 * np.pi * number / fps * max(speed, 0.3) / CYCLE_M, 0.15)
        poses.append(poser.pose)
    meshes = pose_bodies(np.stack(poses), np.tile(phenotype, (len(poses), 1)))
    shares = [(n / fps - walker.from_s) / (walker.to_s - walker.from_s) for n in numbers]
    return {n: (mesh, start + share * way, heading) for n, mesh, share in zip(numbers, meshes, shares, strict=True)}


def _view(place: Any, heading: float, mesh: Any, focal_px: float, centre: tuple[float, float]) -> View:
    """Return the view of a body at `place`, turned by `heading`, its soles on the ground."""
    level = look_from(0, ELEVATION_DEG)
    lift = np.array([0.0, 0.0, -float(mesh[:, 2].min()) - CAMERA_HEIGHT_M])
    stand = np.array([place[0], place[1], 0.0])
    return View(look_from(heading, ELEVATION_DEG), level @ (stand + lift), focal_px, centre)


def _light() -> Light:
    return Light(
        np.array([0.34, 0.33, 0.32], np.float32),
        np.array([[0, 0, 0], [-0.12, -0.12, -0.12], [0, 0, 0]], np.float32),
        [(np.array([-0.45, -0.70, -0.55], np.float32), np.array([0.78, 0.84, 0.90], np.float32))],
        True,
    )
