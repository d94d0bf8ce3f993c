from __future__ import annotations

import numpy as np
import pytest

from metro_edge.raster import project
from training.data.scenes import SCENES, Walker, render_scene

SIZE_WH = (160, 90)
WALKERS = (
    Walker(1, (-1.0, 5.0), (1.0, 5.0), 0.0, 1.0, 3),
    Walker(2, (9.0, 5.0), (9.5, 5.0), 0.0, 1.0, 4),  # outside the picture
    Walker(3, (0.5, 6.5), (-0.5, 6.5), 0.6, 1.0, 5),
)


@pytest.fixture(scope="module")
def frames():
    return render_scene(WALKERS, 5, fps=5, size_wh=SIZE_WH)


def test_identities_are_those_who_are_there_and_seen(frames):
    assert [sorted(frame.identities.tolist()) for frame in frames] == [[1], [1], [1], [1, 3], [1, 3]]
    x = [frame.boxes[list(frame.identities).index(1), 0] for frame in frames]
    assert x == sorted(x) and x[-1] - x[0] > 20
    for frame in frames:
        assert frame.image.shape == (90, 160, 3) and frame.image.dtype == np.uint8
        assert (frame.boxes[:, :2] >= 0).all() and (frame.boxes[:, :2] + frame.boxes[:, 2:] <= SIZE_WH).all()


def test_joints_lie_in_the_boxes_at_their_depth(frames):
    for frame in frames:
        for who, box, joints in zip(frame.identities, frame.boxes, frame.joints, strict=True):
            pixels = project(joints, 0.9 * SIZE_WH[0], ((SIZE_WH[0] - 1) / 2, (SIZE_WH[1] - 1) / 2))
            assert (pixels > box[:2] - 3).all() and (pixels < box[:2] + box[2:] + 3).all()
            assert joints[:, 2].mean() == pytest.approx({1: 5.0, 3: 6.5}[int(who)], abs=0.4)


def test_the_same_scene_again_is_the_same(frames):
    again = render_scene(WALKERS, 2, fps=5, size_wh=SIZE_WH)
    apart = np.abs(again[1].image.astype(int) - frames[1].image)
    assert apart.max() <= 1  # bodies are skinned together, and how many there are decides on the last bits
    assert all({walker.identity for walker in walkers} >= {1, 2} for walkers in SCENES.values())
