"""The rasteriser against projected points, exact quads and hand-made normals."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metro_edge.errors import UserError
from metro_edge.raster import project, rasterise, vertex_normals

FOCAL, CENTRE = 300.0, (70.3, 110.8)
FACES = np.array([[0, 1, 2], [0, 2, 3]])


def quad(left, top, right, bottom, depths=(2.0, 2.0, 2.0, 2.0)):
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    depths = np.array(depths)[:, None]
    return np.hstack([(corners - CENTRE) / FOCAL * depths, depths]).astype(np.float32)


@pytest.mark.parametrize("size_wh", [(200, 150), (150, 201), (333, 77)])
def test_a_quad_covers_exactly_its_pixels_wherever_the_principal_point_is(size_wh):
    colour, depth = rasterise(quad(19.5, 29.5, 60.5, 50.5), FACES, np.ones((4, 3)), FOCAL, CENTRE, size_wh)
    expected = np.zeros(size_wh[::-1], bool)
    expected[30:51, 20:61] = True
    np.testing.assert_array_equal(colour[..., 1] > 0, expected)
    np.testing.assert_allclose(depth[expected], 2.0, atol=1e-4)
    assert (depth[~expected] == 200.0).all()


@settings(max_examples=40, deadline=None)
@given(x=st.floats(5, 90), y=st.floats(5, 70), z=st.floats(0.5, 20), cx=st.floats(-60, 160), cy=st.floats(-60, 160))
def test_a_small_patch_lands_within_half_a_pixel_of_its_projection(x, y, z, cx, cy):
    focal, size = 120.0, (96, 80)
    middle = np.array([(x - cx) / focal * z, (y - cy) / focal * z, z])
    half = 2.5 / focal * z
    offsets = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * half
    vertices = (middle + offsets).astype(np.float32)
    colour, _ = rasterise(vertices, FACES, np.ones((4, 3)), focal, (cx, cy), size)
    rows, columns = np.nonzero(colour[..., 0])
    pixel = project(middle, focal, (cx, cy))
    assert abs(columns.mean() - pixel[0]) <= 0.5 + 1e-3
    assert abs(rows.mean() - pixel[1]) <= 0.5 + 1e-3
    circle = np.zeros((80, 96), np.uint8)
    cv2.circle(circle, np.rint(pixel).astype(int).tolist(), 0, 1, -1)
    assert colour[circle > 0].all()


def test_depth_is_right_across_a_slanted_quad():
    vertices = quad(19.5, 29.5, 60.5, 50.5, depths=(2.0, 4.0, 4.0, 2.0))
    _, depth = rasterise(vertices, FACES, np.ones((4, 3)), FOCAL, CENTRE, (200, 150))
    assert depth[40, 40] == pytest.approx(1 / (0.5 / 2 + 0.5 / 4), rel=1e-3)


def test_the_nearer_surface_wins_in_either_order_and_buffers_are_kept():
    near, far = quad(20, 20, 60, 60, (2,) * 4), quad(0, 0, 100, 100, (3,) * 4)
    red, blue = np.tile([0.0, 0, 1], (4, 1)), np.tile([1.0, 0, 0], (4, 1))
    paper = np.full((120, 120, 3), 0.5, np.float32)
    results = []
    for first, second in (((near, red), (far, blue)), ((far, blue), (near, red))):
        colour, depth = rasterise(first[0], FACES, first[1], FOCAL, CENTRE, (120, 120), colour=paper)
        results.append(rasterise(second[0], FACES, second[1], FOCAL, CENTRE, (120, 120), colour, depth)[0])
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)
    np.testing.assert_allclose(results[0][40, 40], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(results[0][10, 10], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(results[0][115, 115], 0.5)
    assert (paper == 0.5).all()


def test_culling_drops_faces_that_look_away():
    facing_away = quad(20, 20, 60, 60)  # its normal is +z, away from the camera
    assert vertex_normals(facing_away, FACES)[0] == pytest.approx([0, 0, 1])
    for faces, drawn in ((FACES, False), (FACES[:, ::-1].copy(), True)):
        colour, _ = rasterise(facing_away, faces, np.ones((4, 3)), FOCAL, CENTRE, (99, 99), cull_back=True)
        assert colour.any() == drawn


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), cx=st.floats(-60, 160))
def test_faces_that_are_left_out_are_those_whose_projection_turns_the_other_way(seed, cx):
    rng = np.random.default_rng(seed)
    vertices = (rng.normal(0, 0.3, (3, 3)) + np.array((0, 0, 2))).astype(np.float32)
    vertices[:, 0] += 2 * (50 - cx) / 100  # into the picture
    a, b, c = project(vertices.astype(np.float64), 100.0, (cx, 40.0))
    area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    face = np.array([[0, 1, 2]])
    both = rasterise(vertices, face, np.ones((3, 3)), 100.0, (cx, 40.0), (100, 80))[0]
    one = rasterise(vertices, face, np.ones((3, 3)), 100.0, (cx, 40.0), (100, 80), cull_back=True)[0]
    if abs(area) > 1:
        np.testing.assert_array_equal(one, both if area < 0 else np.zeros_like(both))


def test_surfaces_just_before_the_far_plane_are_there():
    near_m, far_m = 2.7, 3.3
    for share, drawn in ((0.999, True), (0.9999, True), (1.01, False)):
        patch = quad(19.5, 29.5, 60.5, 50.5, (far_m * share,) * 4)
        colour, depth = rasterise(
            patch, FACES, np.ones((4, 3)), FOCAL, CENTRE, (99, 99), near_m=near_m, far_m=far_m
        )  # fmt: skip
        assert (depth < far_m)[30:51, 20:61].all() == drawn and colour[30:51, 20:61].all() == drawn
        np.testing.assert_array_equal(depth < np.float32(far_m), colour[..., 0] > 0)


def test_what_is_behind_the_camera_is_not_drawn():
    for depths in ((-2,) * 4, (0.01,) * 4):
        colour, _ = rasterise(quad(20, 20, 60, 60, depths), FACES, np.ones((4, 3)), FOCAL, CENTRE, (99, 99))
        assert not colour.any()


def test_no_faces_give_an_empty_picture():
    colour, depth = rasterise(np.zeros((0, 3)), np.zeros((0, 3), int), np.zeros((0, 3)), FOCAL, CENTRE, (9, 7))
    assert colour.shape == (7, 9, 3) and not colour.any() and (depth == 200).all()


def test_normals_of_a_ball_point_outwards():
    steps = np.linspace(0, np.pi, 20)
    around = np.linspace(0, 2 * np.pi, 41)[:-1]
    ball = np.array([[np.sin(a) * np.cos(b), np.cos(a), np.sin(a) * np.sin(b)] for a in steps for b in around])
    faces = []
    for i in range(19):
        for j in range(40):
            a, b, c, d = i * 40 + j, i * 40 + (j + 1) % 40, (i + 1) * 40 + j, (i + 1) * 40 + (j + 1) % 40
            faces += [[a, b, c], [b, d, c]]
    normals = vertex_normals(ball, np.array(faces))
    inner = np.abs(ball[:, 1]) < 0.95
    assert ((normals * ball).sum(1)[inner] > 0.99).all()
    assert (vertex_normals(np.zeros((3, 3)), np.array([[0, 1, 2]])) == 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vertices": np.zeros((4, 2))}, r"vertices must be \(V, 3\)"),
        ({"vertices": np.full((4, 3), np.nan)}, "must be finite"),
        ({"faces": np.zeros((2, 4), int)}, r"faces must be \(F, 3\)"),
        ({"faces": np.zeros((2, 3))}, "integers"),
        ({"faces": np.array([[0, 1, 4]])}, r"0\.\.3"),
        ({"colours": np.ones((3, 3))}, "colours must have"),
        ({"focal_px": 0.0}, "focal_px"),
        ({"focal_px": np.nan}, "focal_px"),
        ({"centre_px": (np.inf, 0)}, "centre_px"),
        ({"size_wh": (0, 5)}, "size_wh"),
        ({"near_m": 3.0, "far_m": 2.0}, "near_m"),
        ({"colour": np.zeros((5, 5, 3), np.float32)}, "colour must be"),
        ({"depth": np.zeros((80, 90), np.float64)}, "depth must be"),
    ],
)
def test_bad_input_is_named(change, words):
    arguments = {
        "vertices": quad(20, 20, 60, 60), "faces": FACES, "colours": np.ones((4, 3)), "focal_px": FOCAL,
        "centre_px": CENTRE, "size_wh": (90, 80),
    }  # fmt: skip
    with pytest.raises(UserError, match=words):
        rasterise(**(arguments | change))
