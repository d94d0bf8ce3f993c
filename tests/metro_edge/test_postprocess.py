from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metro_edge.backends import Outputs
from metro_edge.errors import PredictionError, UserError
from metro_edge.postprocess import (
    Intrinsics,
    bodies_from_outputs,
    centre_on_root,
    check_outputs,
    translation_from_camera,
)
from metro_edge.preprocess import crop_coordinates
from metro_edge.spec import CROP_RULES, ModelSpec

K = [[800.0, 0, 320], [0, 800.0, 240], [0, 0, 1]]


def rule_spec(rule: str = "box_area", box_scale: float = 1.2) -> ModelSpec:
    return ModelSpec("tiny", 224, "h36m14", "egg", 162, crop_rule=rule, box_scale=box_scale)


def outputs_of(template, cameras, shift=(0.0, 0.0, 0.0)) -> Outputs:
    vertices = np.repeat((template.vertices + np.float32(shift))[None], len(cameras), axis=0)
    joints = template.joints("h36m14", vertices).astype(np.float32)
    return Outputs(np.array(cameras, np.float32), joints, vertices.astype(np.float32))


def test_default_camera_looks_through_the_middle_with_the_diagonal():
    camera = Intrinsics.for_frame((480, 640))
    assert camera.focal_px == 800.0
    assert camera.centre_px == (319.5, 239.5)
    assert Intrinsics.for_frame((480, 640), 500).focal_px == 500.0


def test_camera_of_a_matrix():
    assert Intrinsics.from_matrix(K) == Intrinsics(800.0, (320.0, 240.0))
    nearly = np.array(K) + np.diag([4.0, 0, 0])
    assert Intrinsics.from_matrix(nearly).focal_px == 802.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (((0, 0), 900.0), "alike"),
        (((0, 0), -800.0), "alike"),
        (((0, 1), 50.0), "skew"),
        (((1, 0), 1.0), "skew"),
        (((2, 2), 2.0), "last row"),
        (((0, 2), np.nan), r"\(3, 3\) and finite, got \[\[800.0, 0.0, nan\]"),
    ],
)
def test_bad_matrices(change, message):
    matrix = np.array(K)
    matrix[change[0]] = change[1]
    with pytest.raises(UserError, match=message):
        Intrinsics.from_matrix(matrix)


def test_bad_cameras():
    with pytest.raises(UserError, match=r"\(3, 3\)"):
        Intrinsics.from_matrix(np.eye(4))
    with pytest.raises(UserError, match=r"\(3, 3\) numbers, got \[\['f'"):
        Intrinsics.from_matrix([["f", 0, 0]] * 3)
    for focal in (0.0, -5.0, np.nan, np.inf):
        with pytest.raises(UserError, match="focal length"):
            Intrinsics(focal, (0.0, 0.0))
    with pytest.raises(UserError, match="principal point"):
        Intrinsics(5.0, (np.inf, 0.0))


@settings(deadline=None, max_examples=50)
@given(
    x=st.floats(-100, 600), y=st.floats(-100, 400), w=st.floats(20, 500), h=st.floats(20, 500),
    s=st.floats(0.3, 2.0), tx=st.floats(-0.5, 0.5), ty=st.floats(-0.5, 0.5), focal=st.floats(200, 5000),
    rule=st.sampled_from(CROP_RULES),
)  # fmt: skip
def test_full_frame_projection_is_the_networks_own(x, y, w, h, s, tx, ty, focal, rule):
    """Points in the root's plane land where the crop's scaled orthography puts them, whatever box, camera and rule."""
    spec = rule_spec(rule)
    boxes = np.array([[x, y, w, h]])
    camera = np.array([[s, tx, ty]])
    intrinsics = Intrinsics(focal, (310.0, 205.0))
    translation = translation_from_camera(camera, boxes, spec, intrinsics)
    points = np.array([[(0, 0, 0), (0.5, -0.8, 0), (-0.3, 0.9, 0)]])
    placed = points + translation[:, None]
    pixels = placed[..., :2] / placed[..., 2:] * focal + intrinsics.centre_px
    expected = s * (points[..., :2] + (tx, ty))
    # METRO's own rules may make the crop a pixel wider than high; the network's one scale is then their mean.
    slack = 1e-9 if rule.startswith("box_") else 1.01 / min(w, h) * np.abs(expected).max()
    np.testing.assert_allclose(crop_coordinates(pixels, boxes, spec), expected, atol=slack)


def test_depth_by_hand():
    """Two metres fill a 400 px crop at focal 800: 200 px per metre is a depth of 4 m."""
    translation = translation_from_camera(
        np.array([[1.0, 0.25, 0.0]]),
        np.array([[0.0, 0, 400, 300]]),
        rule_spec(box_scale=1.0),
        Intrinsics(800.0, (199.5, 149.5)),
    )
    np.testing.assert_allclose(translation, [[0.25, 0.0, 4.0]])


def test_bodies_are_centred_on_the_mesh_root_and_stay_where_they_were(template, spec):
    boxes = np.array([[10.0, 20, 100, 200], [200, 40, 80, 160]])
    intrinsics = Intrinsics(900.0, (160.0, 120.0))
    cameras = [(0.9, 0.05, -0.02), (1.1, 0.0, 0.1)]
    centred = bodies_from_outputs(outputs_of(template, cameras), boxes, intrinsics, spec, template)
    shifted_cameras = np.array(cameras) - [(0, 0.3, -0.2)] * 2
    shifted = bodies_from_outputs(
        outputs_of(template, shifted_cameras, (0.3, -0.2, 0.7)), boxes, intrinsics, spec, template
    )
    for body, other, box in zip(centred, shifted, boxes, strict=True):
        assert np.abs(template.root("h36m14", body.vertices)).max() < 1e-6
        assert body.joints.dtype == body.vertices.dtype == body.translation.dtype == np.float32
        np.testing.assert_allclose(body.vertices, other.vertices, atol=1e-5)
        np.testing.assert_allclose(body.joints, other.joints, atol=1e-5)
        np.testing.assert_allclose(body.translation, other.translation, atol=1e-4)
        np.testing.assert_allclose(body.joints_px, other.joints_px, atol=0.05)
        np.testing.assert_array_equal(body.box, box.astype(np.float32))


def test_centring_keeps_the_scaled_orthographic_projection(template, spec):
    outputs = outputs_of(template, [(0.8, 0.1, 0.2)], (0.2, 0.4, -0.3))
    camera, joints, vertices = centre_on_root(outputs, spec, template)
    for before, after in ((outputs.joints, joints), (outputs.vertices, vertices)):
        old = outputs.camera[0, 0] * (before[0, :, :2] + outputs.camera[0, 1:])
        np.testing.assert_allclose(camera[0, 0] * (after[0, :, :2] + camera[0, 1:]), old, atol=1e-6)


def test_bodies_are_the_float64_centring_rounded_once(template, spec):
    outputs = outputs_of(template, [(0.8, 0.1, 0.2), (0.9, 0, 0)], (0.2, 0.4, -0.3))
    camera, joints, vertices = centre_on_root(outputs, spec, template)
    boxes = np.array([[10.0, 20, 100, 200]] * 2)
    for i, body in enumerate(bodies_from_outputs(outputs, boxes, Intrinsics(900.0, (0.0, 0.0)), spec, template)):
        np.testing.assert_array_equal(body.vertices, vertices[i].astype(np.float32))
        np.testing.assert_array_equal(body.joints, joints[i].astype(np.float32))
        np.testing.assert_array_equal(body.camera, camera[i].astype(np.float32))


@pytest.mark.parametrize("name", ["camera", "joints", "vertices"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_refused(template, name, value):
    outputs = outputs_of(template, [(0.9, 0, 0)] * 3)
    broken = getattr(outputs, name).copy()
    broken[1].flat[-1] = value
    with pytest.raises(PredictionError, match=rf"{name} of person 1 has NaN or infinity"):
        check_outputs(outputs._replace(**{name: broken}))


@pytest.mark.parametrize("scale", [0.0, -0.4])
def test_scales_that_are_not_positive_are_refused(template, spec, scale):
    outputs = outputs_of(template, [(0.9, 0, 0), (scale, 0, 0)])
    with pytest.raises(PredictionError, match="scale of person 1"):
        bodies_from_outputs(outputs, np.ones((2, 4)), Intrinsics(100.0, (0.0, 0.0)), spec, template)


def test_a_body_behind_the_camera_is_refused(template, spec):
    outputs = outputs_of(template, [(0.9, 0, 0)])
    with pytest.raises(PredictionError, match="behind the camera.*focal length of 10 px"):
        bodies_from_outputs(outputs, np.array([[0.0, 0, 300, 300]]), Intrinsics(10.0, (0.0, 0.0)), spec, template)


def test_a_joint_set_without_regressor_is_refused(template, spec):
    other = dataclasses.replace(spec, joint_set="coco17")
    outputs = outputs_of(template, [(0.9, 0, 0)])
    with pytest.raises(UserError, match="no regressor"):
        centre_on_root(outputs, other, template)
