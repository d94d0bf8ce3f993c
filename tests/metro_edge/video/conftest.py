"""People as results, with known motion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from metro_edge.body import Body
from metro_edge.video.people import Person, body_box
from metro_edge.video.stream import FrameResult

SIZE_WH = (160, 120)


@pytest.fixture
def body_at(template) -> Callable[..., Body]:
    """Makes the template's body at a place in metres, turned about the vertical, in a frame of 160 x 120."""

    def make(place=(0.0, 0.0, 4.0), turn_deg: float = 0.0, mesh: bool = True) -> Body:
        a = np.radians(turn_deg)
        turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
        return Body(
            joints=(template.joints("h36m14", template.vertices) @ turn.T).astype(np.float32),
            vertices=(template.vertices @ turn.T if mesh else np.zeros((0, 3))).astype(np.float32),
            camera=np.array([0.9, 0.1, 0.2], np.float32),
            translation=np.array(place, np.float32),
            box=np.array([0, 0, 160, 120], np.float32),
            focal_px=200.0,
            centre_px=(79.5, 59.5),
            joint_set="h36m14",
            faces=template.faces if mesh else np.zeros((0, 3), np.int32),
        )

    return make


@pytest.fixture
def result_of(body_at) -> Callable[..., FrameResult]:
    """Makes the result of frame `index` with people {identity: (place, turn)}."""

    def make(index: int, people: dict[int, tuple], fps: float = 25.0, mesh: bool = True) -> FrameResult:
        image = np.full((SIZE_WH[1], SIZE_WH[0], 3), 90, np.uint8)
        found = []
        for identity, (place, turn_deg) in people.items():
            body = body_at(place, turn_deg, mesh)
            found.append(Person(identity, body, 0.9, body_box(body)))
        return FrameResult(index, index / fps, image, tuple(found), {"network": 1.0})

    return make


@pytest.fixture
def clip(result_of) -> list[FrameResult]:
    """30 frames: person 1 walks and turns, person 2 is there from frame 5 to 14 and from 20 on."""
    frames = []
    for k in range(30):
        people = {1: ((-0.5 + 0.02 * k, 0.0, 4.0), 3.0 * k)}
        if 5 <= k < 15 or k >= 20:
            people[2] = ((0.6, 0.05, 5.0 - 0.01 * k), -2.0 * k)
        frames.append(result_of(k, people))
    return frames
