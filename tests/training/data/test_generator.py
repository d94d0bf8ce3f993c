"""Generated samples: repeatable whatever the order, and labels that fit the picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from metro_edge.errors import UserError
from metro_edge.raster import project, rasterise
from training.data.appearance import noise3, sample_look
from training.data.backgrounds import KINDS, make_background, sample_background
from training.data.camera import look_from
from training.data.draw import draw_person
from training.data.generator import GeneratedPeople
from training.data.light import sample_light
from training.data.sheet import contact_sheet


def same(a, b):
    return (
        np.array_equal(a.frame, b.frame) and np.array_equal(a.vertices, b.vertices) and np.array_equal(a.box, b.box)
        and np.array_equal(a.visible, b.visible) and (a.focal_px, a.centre_px) == (b.focal_px, b.centre_px)
    )  # fmt: skip


def test_a_sample_depends_on_seed_and_index_alone(people):
    straight = list(people.samples(range(6)))
    other = GeneratedPeople(seed=5, size=100)
    assert all(same(other.sample(k), straight[k]) for k in (5, 0, 3))
    assert not same(GeneratedPeople(seed=6, size=40).sample(0), straight[0])
    assert not np.array_equal(straight[0].vertices, straight[1].vertices)


@pytest.mark.parametrize("count", [0, 1, 110, 13718])
def test_noise_is_a_sum_of_waves_in_random_directions(count):
    points = np.random.default_rng(1).normal(0, 0.4, (count, 3)).astype(np.float32)
    noise, rng = noise3(points, np.random.default_rng(2), 0.1), np.random.default_rng(2)
    directions, phases = rng.normal(0, 1, (3, 5)) * 2 / 0.1, rng.uniform(0, 2 * np.pi, 5)
    assert noise.dtype == np.float32 and noise.shape == (count,)
    assert np.allclose(noise, np.sin(points @ directions + phases).sum(1) / np.sqrt(5), atol=1e-4)


def test_samples_are_what_they_say(people):
    for sample in people.samples(range(16)):
        assert sample.frame.shape == (320, 320, 3) and sample.frame.dtype == np.uint8
        assert sample.vertices.shape == (13718, 3) and sample.vertices.dtype == np.float32
        assert sample.vertices[:, 2].min() > 0.05
        x, y, w, h = sample.box
        assert x >= 0 and y >= 0 and x + w <= 320 and y + h <= 320 and max(w, h) > 0.3 * 320
        pixels = project(sample.vertices, sample.focal_px, sample.centre_px)
        inside = pixels[sample.visible]
        assert 0.02 < sample.visible.mean() < 0.75
        assert (inside >= [x - 0.5, y - 0.5]).all() and (inside <= [x + w - 0.5, y + h - 0.5]).all()


def test_vertices_land_on_the_drawn_silhouette(people):
    sample, rng = people.sample(2), np.random.default_rng(1)
    look, light = sample_look(rng, 1.0, 0.7), sample_light(rng, np.float32([0, -1, 0]))
    look.thickness[:] = 0

    class Camera:
        focal_px, centre_px = sample.focal_px, sample.centre_px

    layer = draw_person(sample.vertices, people.faces, look, light, Camera, (320, 320), rng)
    mask = np.zeros((320, 320), np.float32)
    layer.cover(mask)
    pixels = project(sample.vertices, sample.focal_px, sample.centre_px)
    inside = ((pixels >= 0) & (pixels <= 319)).all(1)
    xy = np.rint(pixels[inside]).astype(int)
    wide = cv2.dilate(mask, np.ones((3, 3)))
    assert (wide[xy[:, 1], xy[:, 0]] > 0).mean() > 0.999
    alone, _ = rasterise(
        sample.vertices, people.faces, np.ones_like(sample.vertices), sample.focal_px, sample.centre_px, (320, 320)
    )
    assert abs(float(mask.sum()) / float(alone[..., 0].sum()) - 1) < 0.05


def test_visible_vertices_face_the_camera_and_hidden_ones_exist(people):
    from metro_edge.raster import vertex_normals

    sample = people.sample(1)
    normals = vertex_normals(sample.vertices, people.faces)
    toward = -(normals * sample.vertices).sum(1) / np.linalg.norm(sample.vertices, axis=1)
    assert toward[sample.visible].mean() > 0.2 > toward[~sample.visible].mean()


@pytest.mark.parametrize(("heading", "axis"), [(0, 2), (180, 2), (90, 0)])
def test_heading_turns_the_person(heading, axis):
    turn = look_from(heading, 0)
    front = turn @ np.array([0.0, -1, 0])  # where the person looks, in the camera frame
    assert abs(front[axis]) == pytest.approx(1)
    assert (turn @ [0, 0, 1])[1] == pytest.approx(-1)
    if heading == 0:
        assert front[2] == pytest.approx(-1)  # at the camera
        assert (turn @ [1, 0, 0])[0] == pytest.approx(1)  # the left side is on the right of the picture


def test_a_camera_from_above_sees_the_head_nearer():
    assert (look_from(0, 50) @ [0, 0, 1.0])[2] < -0.7


@pytest.mark.parametrize("kind", KINDS)
def test_backgrounds_are_pictures_and_repeat(kind):
    first, again, other = (make_background(kind, np.random.default_rng(k), 128) for k in (1, 1, 2))
    assert first.shape == (128, 128, 3) and first.dtype == np.uint8 and first.std() > 1
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_background_crops_have_the_asked_size():
    assert sample_background(np.random.default_rng(1), 5, (200, 90)).shape == (90, 200, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seed": 1, "size": 0}, "size at least 1"),
        ({"seed": -1, "size": 4}, "seed must be at least 0"),
        ({"seed": 1, "size": 4, "frame_wh": (32, 320)}, "at least 64 x 64"),
        ({"seed": 1, "size": 4, "family": "moonwalk"}, "unknown pose family 'moonwalk'"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(UserError, match=words):
        GeneratedPeople(**arguments)


def test_past_the_end_is_an_index_error(people):
    with pytest.raises(IndexError):
        people.sample(40)
    with pytest.raises(UserError, match="unknown background 'sea'"):
        make_background("sea", np.random.default_rng(0))


def test_contact_sheet(people, template, tmp_path):
    path = tmp_path / "sheet.jpg"
    contact_sheet(people, 5, path, template, tile_px=96, limit_bytes=60_000)
    picture = cv2.imread(str(path))
    assert picture.shape == (192, 288, 3) and path.stat().st_size <= 60_000
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.jpg"]
    with pytest.raises(UserError, match="count must be 1 to 40"):
        contact_sheet(people, 0, path)
    with pytest.raises(UserError, match="cannot write"):
        contact_sheet(people, 1, tmp_path / "nowhere" / "sheet.jpg")
    with pytest.raises(UserError, match=r"a contact sheet is a picture, \.jpg or \.jpeg or \.png, not sheet\.txt"):
        contact_sheet(people, 1, tmp_path / "sheet.txt")
