"""The shipped demonstration: a picture and a short clip of made people, with the truth to measure against.

picture.jpg   a made person, 640 x 480
clip.mp4      one person walks, turns and waves, 60 frames, 24 per second
truth.npz     boxes (F, 4) float32 x, y, width, height px of every frame of the clip;
              frame_ids (K,) int32, every sixth frame;
                  vertices (K, V, 3) int16, 1/16 mm, root-centred, camera frame;
              picture_box (4,) float32 and picture_vertices (V, 3) int16 of the picture
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from metro_edge.errors import UserError
from metro_edge.files import replacing
from metro_edge.raster import project
from training.bodies.anny import load_anny_template
from training.data.appearance import sample_look
from training.data.backgrounds import make_background
from training.data.camera import View, look_from
from training.data.draw import box_of, draw_person
from training.data.effects import ground_shadow
from training.data.generator import GeneratedPeople, mesh_faces, pose_bodies
from training.data.gestures import set_arm
from training.data.light import Light
from training.data.poser import Poser, toward
from training.data.poses import stride
from training.data.rig import Array, Rig, load_rig, part_of
from training.data.storage import ROOT_JOINT_SET, quantised

SIZE_WH = (640, 480)
FRAMES, FRAMES_PER_SECOND, EVERY = 60, 24, 6
SEED = 4242  # never one of training's
WALK_FRAMES, BLEND_FRAMES = 34, 12
SPEED_M, CYCLE_M = 1.15, 1.35  # per second, per two steps
PICTURE_INDEX = 1


def _walking(rig: Rig, frame: int) -> Array:
    poser = Poser(rig)
    phase = 2 * np.pi * frame * SPEED_M / CYCLE_M / FRAMES_PER_SECOND
    stride(poser, np.random.default_rng(SEED), phase, 0.15)  # a new generator: the same person in every frame
    return poser.pose


def _waving(rig: Rig, frame: int) -> Array:
    poser, rng = Poser(rig), np.random.default_rng(SEED)
    poser.spine(2, 2, -4)
    poser.neck(2, 3 * np.sin(frame / 9), -6)
    for side in "LR":
        poser.leg_to(side, toward(side, 0.05, 0.0, -0.985), toward(side, 0.2, 1, 0))
        poser.plant(side, 0, 8)
    set_arm(poser, rng, "R", "relaxed", np.zeros(3))
    swing = 0.14 * np.sin(2 * np.pi * frame / 14)
    poser.arm_to("L", toward("L", 0.42 + swing, 0.25, 0.50), toward("L", 1, 0, -0.6))
    poser.hand("L", 5, 0, 0)
    return poser.pose


def _between(first: Array, second: Array, share: float) -> Array:
    """Return the pose `share` of the way from `first` to `second`, each bone by the shortest turn."""
    return np.stack([a @ part_of(a.T @ b, share) for a, b in zip(first, second, strict=True)])


def clip_poses(rig: Rig) -> tuple[Array, Array, Array]:
    """Return poses (F, 104, 3, 3), headings (F,) in degrees and positions (F, 2) in metres on the ground."""
    poses, headings, positions = [], [], []
    place = np.array([-1.15, 0.9])
    for frame in range(FRAMES):
        share = float(np.clip((frame - WALK_FRAMES) / BLEND_FRAMES, 0, 1))
        share = share * share * (3 - 2 * share)
        poses.append(_between(_walking(rig, min(frame, WALK_FRAMES + 4)), _waving(rig, frame), share))
        heading = np.interp(frame, [0, 14, WALK_FRAMES, WALK_FRAMES + BLEND_FRAMES, FRAMES], [80, 70, 30, 5, 0])
        way = np.radians(heading)
        place = place + np.array([np.sin(way), -np.cos(way)]) * SPEED_M / FRAMES_PER_SECOND * (1 - share)
        headings.append(heading)
        positions.append(place)
    return np.stack(poses), np.array(headings), np.stack(positions)


def _clip_bodies() -> tuple[Any, Any]:
    """Return vertices (F, V, 3) before the camera and the views (F) they were turned by."""
    rig = load_rig()
    poses, headings, positions = clip_poses(rig)
    phenotype = np.tile(np.array([0.95, 0.75, 0.55, 0.45, 0.55, 0.3], np.float32), (FRAMES, 1))
    bodies = pose_bodies(poses, phenotype)
    level = look_from(0, 6)
    centre = ((SIZE_WH[0] - 1) / 2, (SIZE_WH[1] - 1) / 2)
    vertices, views = [], []
    for body, heading, place in zip(bodies, headings, positions, strict=True):
        stand = np.array([place[0], place[1], 0.0])
        turn = look_from(heading, 6)
        # The soles on the ground, the camera 1.25 m above it and 3.8 m away.
        lift = np.array([0, 0, -float(body[:, 2].min()) - 1.25])
        view = View(turn, level @ (stand + lift) + level @ np.array([0, 3.8, 0]), 620.0, centre)
        vertices.append(view.apply(body))
        views.append(view)
    return np.stack(vertices), views


def render_clip() -> tuple[list[NDArray[np.uint8]], Any, NDArray[np.float32]]:
    """Return the clip's frames (H, W, 3) uint8 BGR, vertices (F, V, 3) camera frame and boxes (F, 4) px."""
    vertices, views = _clip_bodies()
    faces = mesh_faces()
    look = sample_look(np.random.default_rng(SEED + 3), 0.95, 0.75)
    light = Light(
        np.array([0.34, 0.33, 0.32], np.float32),
        np.array([[0, 0, 0], [-0.12, -0.12, -0.12], [0, 0, 0]], np.float32),
        [(np.array([-0.45, -0.70, -0.55], np.float32), np.array([0.78, 0.84, 0.90], np.float32))],
        True,
    )
    room: Any = cv2.resize(make_background("field", np.random.default_rng(SEED + 1)), SIZE_WH)
    room = cv2.GaussianBlur(room, (0, 0), 1.5)
    frames, boxes = [], []
    for body, view in zip(tqdm(vertices, desc="clip", leave=False), views, strict=True):
        picture = room.astype(np.float32)
        ground_shadow(np.random.default_rng(SEED + 12), picture, body, view)
        draw_person(body, faces, look, light, view, SIZE_WH, np.random.default_rng(SEED)).over(picture)
        frames.append(np.clip(picture, 0, 255).astype(np.uint8))
        boxes.append(box_of(project(body, view.focal_px, view.centre_px), SIZE_WH))
    return frames, vertices, np.stack(boxes)


def write_demo(folder: str | os.PathLike[str]) -> None:
    """Write picture.jpg, clip.mp4 and truth.npz; raises UserError when the folder cannot be written."""
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the demonstration to {target}: {error.strerror}") from None
    template = load_anny_template()

    def stored(vertices: Any) -> NDArray[np.int16]:
        return quantised(vertices - template.root(ROOT_JOINT_SET, vertices)[..., None, :])

    frames, vertices, boxes = render_clip()
    sample = GeneratedPeople(SEED, PICTURE_INDEX + 1, SIZE_WH).sample(PICTURE_INDEX)
    frame_ids = np.arange(0, FRAMES, EVERY, dtype=np.int32)
    with replacing(target / "picture.jpg") as path:
        cv2.imwrite(str(path), sample.frame, [cv2.IMWRITE_JPEG_QUALITY, 92])
    with replacing(target / "clip.mp4") as path:
        _write_clip(path, frames)
    with replacing(target / "truth.npz") as path, open(path, "wb") as file:
        np.savez_compressed(
            file,
            boxes=boxes,
            frame_ids=frame_ids,
            vertices=stored(vertices[frame_ids]),
            picture_box=sample.box,
            picture_vertices=stored(sample.vertices),
        )


def _write_clip(path: Path, frames: list[NDArray[np.uint8]]) -> None:
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), code, FRAMES_PER_SECOND, SIZE_WH)
    if not writer.isOpened():
        raise UserError(f"cannot write the clip {path}: this OpenCV has no MPEG-4 encoder")
    try:
        for frame in frames:
            writer.write(frame)
    finally:
        writer.release()
