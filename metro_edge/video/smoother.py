"""Bodies over time: joints, mesh and place in space smoothed by One-Euro filters, one a person."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metro_edge.smoothing import OneEuro
from metro_edge.video.people import Person

OUTSIDE = 0.3  # confidence of a joint outside the picture, which the network guesses


class BodySmoother:
    """Smooths the people of a video; call it with every frame's, in order.

    A filter's output lags behind: at rest by 1 / (2 pi min_cutoff_hz) s, less the faster a joint moves (docs/live.md
    has the measured lag). It needs no later frames, so no frame is held back.

    Attributes:
        points: filter of joints and vertices, metres from the root.
        place: filter of the root's direction, x / z and y / z, and of the logarithm of its depth z. Direction is what
            one sees in the picture and is known well; depth is guessed from the size.
    """

    def __init__(self, min_cutoff_hz: float = 1.5, beta: float = 1.0, mesh: bool = True) -> None:
        self.mesh = mesh
        self.joints = OneEuro(min_cutoff_hz, beta)
        self.vertices = OneEuro(min_cutoff_hz, beta)
        self.direction = OneEuro(2.0 * min_cutoff_hz, 60.0 * beta)  # 0.1 of the focal length a second is fast
        self.depth = OneEuro(0.5 * min_cutoff_hz, beta)

    def __call__(self, people: Sequence[Person], time_s: float, frame_hw: tuple[int, int]) -> list[Person]:
        """Return the people with smoothed bodies; their boxes and cameras stay those of the network."""
        if not people:
            return []
        tracks = [person.identity for person in people]
        bodies = [person.body for person in people]
        sure = np.array([[person.confidence] for person in people])
        joint_sure = sure * np.stack([_inside(body.joints_px, frame_hw) for body in bodies])
        joints = self.joints(np.stack([body.joints for body in bodies]), tracks, time_s, joint_sure)
        places = np.stack([body.translation.astype(np.float64) for body in bodies])[:, None]
        direction = self.direction(places[..., :2] / places[..., 2:], tracks, time_s)
        depth = np.exp(self.depth(np.log(places[..., 2:]), tracks, time_s, sure))
        translation = np.concatenate([direction * depth, depth], axis=2)[:, 0].astype(np.float32)
        meshes: list[NDArray[np.float32]] = [body.vertices for body in bodies]
        if self.mesh and all(body.has_mesh for body in bodies):
            meshes = list(self.vertices(np.stack(meshes), tracks, time_s, sure).astype(np.float32))
        return [
            dataclasses.replace(
                person,
                body=dataclasses.replace(
                    person.body,
                    joints=joints[number].astype(np.float32),
                    vertices=meshes[number],
                    translation=translation[number],
                ),
            )
            for number, person in enumerate(people)
        ]


def _inside(joints_px: NDArray[np.floating], frame_hw: tuple[int, int]) -> NDArray[np.float64]:
    """Return (J,): 1 for joints in the picture, OUTSIDE for others."""
    within = ((joints_px > -0.5) & (joints_px < np.array([frame_hw[1], frame_hw[0]]) - 0.5)).all(axis=1)
    return np.where(within, 1.0, OUTSIDE)
