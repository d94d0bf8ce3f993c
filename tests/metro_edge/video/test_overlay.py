from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from metro_edge.body import Body
from metro_edge.errors import UserError
from metro_edge.video import overlay
from metro_edge.video.overlay import LEFT_BGR, MIDDLE_BGR, RIGHT_BGR, draw_bodies, draw_skeletons, shade, side_by_side


@pytest.fixture
def body(template) -> Body:
    """Standing in the middle of a 160 x 120 frame, about 90 px tall."""
    return Body(
        joints=template.joints("h36m14", template.vertices).astype(np.float32),
        vertices=template.vertices,
        camera=np.array([1, 0, 0], np.float32),
        translation=np.array([0, 0, 4], np.float32),
        box=np.array([0, 0, 160, 120], np.float32),
        focal_px=200.0,
        centre_px=(79.5, 59.5),
        joint_set="h36m14",
        faces=template.faces,
    )


@pytest.fixture
def grey() -> np.ndarray:
    return np.full((120, 160, 3), 90, np.uint8)


def silhouette(body: Body, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels inside the projected convex body, by OpenCV's own polygon filling."""
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(body.vertices_px).astype(np.int32)), 1)
    return mask.astype(bool)


@pytest.mark.parametrize("supersample", [1, 2, 3])
def test_the_mesh_covers_its_silhouette_and_nothing_else(body, grey, supersample):
    drawn = draw_bodies(grey, [body], supersample=supersample)
    changed = (drawn != grey).any(axis=2)
    expected = silhouette(body, grey.shape)
    inner = cv2.erode(expected.astype(np.uint8), np.ones((3, 3))).astype(bool)
    outer = cv2.dilate(expected.astype(np.uint8), np.ones((3, 3))).astype(bool)
    assert changed[inner].all() and not changed[~outer].any()
    assert (grey == 90).all()  # the given frame is untouched


def test_it_is_lit_from_above_left_and_blended(body, grey):
    solid = draw_bodies(grey, [body], opacity=1.0).astype(float)
    rows = np.nonzero(silhouette(body, grey.shape).any(axis=1))[0]
    top, bottom = rows[0] + 12, rows[-1] - 12
    assert solid[top, 79].sum() > solid[bottom, 79].sum() + 60
    assert solid[60, 70].sum() > solid[60, 92].sum()
    half = draw_bodies(grey, [body], opacity=0.5).astype(float)
    np.testing.assert_allclose(half[60, 80], (solid[60, 80] + 90) / 2, atol=1)
    np.testing.assert_array_equal(draw_bodies(grey, [body], opacity=0.0), grey)


def test_edges_are_smooth_with_supersampling(body, grey):
    white = np.full_like(grey, 255)
    values = [len(np.unique(draw_bodies(white, [body], opacity=1.0, supersample=s)[60], axis=0)) for s in (1, 3)]
    assert values[1] > values[0]


def test_the_nearer_body_hides_the_farther(body, grey):
    far = dataclasses.replace(body, translation=np.array([0, 0, 6], np.float32))
    alone = draw_bodies(grey, [body], opacity=1.0)
    behind = draw_bodies(grey, [body, far], opacity=1.0)
    np.testing.assert_allclose(behind[60, 75:85].astype(int), alone[60, 75:85], atol=1)
    reverse = draw_bodies(grey, [far, body], opacity=1.0)[60, 80].astype(int)
    assert np.abs(reverse - alone[60, 80]).max() > 5  # second person, second colour


def test_bodies_at_and_beyond_the_edge(body, grey):
    gone = dataclasses.replace(body, translation=np.array([50, 0, 4], np.float32))
    np.testing.assert_array_equal(draw_bodies(grey, [gone]), grey)
    np.testing.assert_array_equal(draw_bodies(grey, []), grey)
    half = dataclasses.replace(body, translation=np.array([-1.6, 0, 4], np.float32))
    changed = (draw_bodies(grey, [half]) != grey).any(axis=2)
    assert changed[60, 0] and not changed[:, 40:].any()


def test_large_regions_fall_back_to_one_sample(body, grey, monkeypatch):
    expected = draw_bodies(grey, [body], supersample=1)
    monkeypatch.setattr(overlay, "MAX_SUPERSAMPLED_PX", 10)
    np.testing.assert_array_equal(draw_bodies(grey, [body], supersample=2), expected)


def test_skeleton_colours_lie_on_the_joints(body, grey):
    drawn = draw_skeletons(grey, [body])
    for name, colour in (("left_wrist", LEFT_BGR), ("right_ankle", RIGHT_BGR), ("head_top", MIDDLE_BGR)):
        x, y = np.rint(body.joints_px[body.joint_names.index(name)]).astype(int)
        np.testing.assert_array_equal(drawn[y, x], colour)
    both = draw_bodies(grey, [body], skeleton=True)
    assert (both[y, x] == MIDDLE_BGR).all()
    a, b = (body.joints_px[body.joint_names.index(n)] for n in ("left_hip", "right_hip"))
    x, y = np.rint((a + b) / 2).astype(int)
    assert np.abs(drawn[y, x].astype(int) - MIDDLE_BGR).max() < 50  # a thin smoothed line


def test_side_by_side(grey):
    assert side_by_side(grey, grey, grey).shape == (120, 480, 3)
    with pytest.raises(UserError, match="one height"):
        side_by_side(grey, grey[:50])


def test_shade_is_in_range(template):
    colours = shade(template.vertices, template.faces, (1.0, 1.0, 1.0))
    assert colours.dtype == np.float32 and colours.shape == template.vertices.shape
    assert colours.min() > 0.1 and colours.max() <= 1.0


def test_bad_input(body, grey):
    with pytest.raises(UserError, match="a frame must be"):
        draw_bodies(grey[..., 0], [body])
    for bad in ({"opacity": 1.5}, {"opacity": -0.1}, {"supersample": 0}):
        with pytest.raises(UserError, match="opacity must be"):
            draw_bodies(grey, [body], **bad)
