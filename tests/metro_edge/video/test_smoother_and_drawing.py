from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from metro_edge.errors import UserError
from metro_edge.metrics import acceleration_error_mm
from metro_edge.smoothing import OneEuro
from metro_edge.video.drawing import BAND_ROWS, Drawer, Style, blend, blend_scaled, colour_of
from metro_edge.video.people import Person, body_box
from metro_edge.video.smoother import OUTSIDE, BodySmoother

FPS = 25.0


def walk(body_at, noise_m: float, frames: int = 60, seed: int = 0, confidence: float = 1.0) -> list[Person]:
    """A person who walks by at a metre a second, with noise on joints, mesh and place."""
    rng = np.random.default_rng(seed)
    people = []
    for k in range(frames):
        body = body_at((-1.2 + k / FPS, 0.0, 4.0), 20 * np.sin(k / 8))
        body = dataclasses.replace(
            body,
            joints=body.joints + rng.normal(0, noise_m, body.joints.shape).astype(np.float32),
            vertices=body.vertices + rng.normal(0, noise_m, body.vertices.shape).astype(np.float32),
            translation=body.translation * (1 + rng.normal(0, noise_m, 3)).astype(np.float32),
        )
        people.append(Person(1, body, confidence, body_box(body)))
    return people


def smoothed(people: list[Person], **options) -> list[Person]:
    smoother = BodySmoother(**options)
    return [smoother([person], k / FPS, (120, 160))[0] for k, person in enumerate(people)]


def accelerations(people, truth, what=lambda body: body.joints) -> float:
    return acceleration_error_mm(*(np.stack([what(p.body) for p in ones]) for ones in (people, truth)))


def test_smoothing_takes_away_most_jitter_of_joints_mesh_and_place(body_at):
    truth, noisy = walk(body_at, 0.0), walk(body_at, 0.02)
    calm = smoothed(noisy)
    for what in (lambda b: b.joints, lambda b: b.vertices, lambda b: b.translation[None]):
        assert accelerations(calm, truth, what) < 0.5 * accelerations(noisy, truth, what)
    errors = [
        np.mean(
            [np.linalg.norm(p.body.joints - t.body.joints, axis=1).mean() for p, t in zip(ones, truth, strict=True)]
        )
        for ones in (noisy, calm)
    ]
    assert errors[1] < errors[0]  # the lag costs less than the noise


def test_the_lag_is_a_few_frames_at_most(body_at):
    truth = walk(body_at, 0.0, 80)
    calm = smoothed(truth)
    x = np.array([p.body.translation[0] for p in truth])
    smooth_x = np.array([p.body.translation[0] for p in calm])
    lag_s = (x - smooth_x)[40:].mean() / 1.0  # the person walks a metre a second
    assert 0 <= lag_s < 0.04


def test_joints_alone_and_people_who_come_and_go(body_at):
    people = [
        dataclasses.replace(p, body=dataclasses.replace(p.body, vertices=p.body.vertices))
        for p in walk(body_at, 0.01, 3)
    ]
    calm = smoothed(people, mesh=False)
    np.testing.assert_array_equal(calm[1].body.vertices, people[1].body.vertices)
    assert (calm[1].body.joints != people[1].body.joints).any()
    smoother = BodySmoother()
    assert smoother([], 0.0, (120, 160)) == []
    first = smoother(people[:1], 0.1, (120, 160))[0]
    np.testing.assert_allclose(first.body.joints, people[0].body.joints, atol=1e-6)


def test_joints_outside_the_picture_move_less(body_at):
    def second(place):
        smoother, step = BodySmoother(), np.float32(0.1)
        body = body_at(place)
        smoother([Person(1, body, 1.0, body_box(body))], 0.0, (120, 160))
        moved = dataclasses.replace(body, joints=body.joints + step)
        (person,) = smoother([Person(1, moved, 1.0, body_box(moved))], 0.04, (120, 160))
        return (person.body.joints - body.joints)[0, 0] / step

    assert second((10.0, 0.0, 4.0)) == pytest.approx(OUTSIDE * second((0.0, 0.0, 4.0)), rel=1e-3)


def test_confidence_scales_what_a_new_point_moves():
    def moved(confidence):
        smoother = OneEuro()
        smoother(np.zeros((1, 2, 3)), ["a"], 0.0)
        return smoother(np.ones((1, 2, 3)), ["a"], 0.04, confidence)[0, :, 0]

    full = moved(None)
    np.testing.assert_allclose(moved([[1.0, 0.5]]), full * (1.0, 0.5))
    np.testing.assert_allclose(moved([[0.0]]), 0.0)
    for bad in ([[2.0]], [[-0.1]], [[np.nan]], [0.5], [[1, 1, 1]], [[1], [1]]):
        with pytest.raises(UserError, match="confidence must be"):
            moved(bad)


def test_acceleration_error():
    steady = np.arange(10)[:, None, None] * np.ones((1, 3, 3)) * 0.1
    assert acceleration_error_mm(steady, steady) == 0
    bent = steady + 0.5 * 0.002 * (np.arange(10) ** 2)[:, None, None] * np.array([1.0, 0, 0])
    assert acceleration_error_mm(bent, steady) == pytest.approx(2.0)
    assert acceleration_error_mm(bent) == pytest.approx(2.0)  # without a truth: the acceleration itself
    with pytest.raises(UserError, match="at least 3 frames"):
        acceleration_error_mm(steady[:2], steady[:2])
    with pytest.raises(UserError, match="one shape"):
        acceleration_error_mm(steady, steady[:5])


def covered(result, body) -> np.ndarray:
    mask = np.zeros(result.image.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(body.vertices_px).astype(np.int32)), 1)
    return mask.astype(bool)


def test_meshes_cover_their_silhouettes_and_nothing_else(template, result_of):
    draw = Drawer(template, Style(boxes=False, labels=False))
    result = result_of(0, {1: ((-0.4, 0, 4.0), 0), 2: ((0.5, 0, 5.0), 0)})
    changed = (draw(result) != result.image).any(axis=2)
    expected = np.any([covered(result, body) for body in result.bodies], axis=0)
    inner = cv2.erode(expected.astype(np.uint8), np.ones((5, 5))).astype(bool)
    outer = cv2.dilate(expected.astype(np.uint8), np.ones((5, 5))).astype(bool)
    assert changed[inner].all() and not changed[~outer].any()
    assert (result.image == 90).all()


def test_the_nearer_one_is_in_front_whatever_the_order(template, result_of):
    draw = Drawer(template, Style(boxes=False, labels=False, opacity=1.0))
    people = {1: ((0.0, 0, 3.0), 0), 2: ((0.1, 0, 5.0), 0)}
    one = draw(result_of(0, people))
    other = draw(result_of(0, dict(reversed(people.items()))))
    np.testing.assert_array_equal(one, other)
    pixel = one[60, 80].astype(float) / one[60, 80].max()
    wanted = [np.array(colour_of(k)) / max(colour_of(k)) for k in (1, 2)]
    assert np.abs(pixel - wanted[0]).max() < np.abs(pixel - wanted[1]).max()


def test_parts_of_the_picture(template, result_of):
    result = result_of(0, {1: ((0, 0, 4.0), 0)})
    bare = Drawer(template, Style(mesh=False, boxes=False, labels=False))(result)
    assert (bare != result.image).any()  # without its mesh a body has its skeleton drawn
    plain = Drawer(template, Style(boxes=False, labels=False))(result)
    parts = {
        "boxes": Drawer(template, Style(labels=False))(result),
        "labels": Drawer(template, Style(boxes=False))(result),
        "skeleton": Drawer(template, Style(boxes=False, labels=False, skeleton=True))(result),
        "side": Drawer(template, Style(boxes=False, labels=False, side=True))(result),
    }
    for name, picture in parts.items():
        assert (picture != plain).any(), name
    corner = parts["side"][: int(0.32 * 120), 160 - int(0.32 * 120) :]
    assert (corner != plain[: corner.shape[0], 160 - corner.shape[1] :]).mean() > 0.9
    np.testing.assert_array_equal(Drawer(template)(result_of(0, {})), result.image)
    joints = result_of(0, {1: ((0, 0, 4.0), 0)}, mesh=False)
    assert (Drawer(template, Style(side=True))(joints) != joints.image).any()
    with pytest.raises(UserError, match="opacity"):
        Style(opacity=1.5)


def test_the_side_view_shows_depth_across_and_height_up(template, result_of):
    """Nearer people are further left, and heads are up."""
    result = result_of(0, {1: ((0, 0, 4.0), 0), 2: ((0, 0, 6.0), 0)})
    side = int(0.32 * 120)
    panel = Drawer(template, Style(mesh=False, boxes=False, labels=False, side=True))(result)[:side, -side:].astype(
        float
    )
    places = []
    for identity in (1, 2):
        tint = np.array(colour_of(identity)) - np.mean(colour_of(identity))
        match = (panel - panel.mean(axis=2, keepdims=True)) @ tint
        places.append(np.argwhere(match > 0.5 * match.max())[:, 1].mean())
    assert places[0] < places[1] - 5


def test_bodies_beyond_the_picture_do_not_stop_the_drawing(template, result_of):
    draw = Drawer(template, Style(side=True))
    for place in ((9.0, 0, 4.0), (0, 0, 0.3), (0, 0, 400.0), (0.9, 0, 2.5)):
        assert draw(result_of(0, {1: (place, 0)})).shape == (120, 160, 3)


def test_blending_is_what_it_says():
    rng = np.random.default_rng(0)
    part = rng.integers(0, 256, (130, 40, 3), dtype=np.uint8)
    alpha = np.zeros((130, 40), np.uint8)
    alpha[20:110, 5:30] = rng.integers(0, 256, (90, 25))
    colour = (rng.integers(0, 256, (130, 40, 3)) * (alpha[..., None] / 255.0)).astype(np.uint8)
    wanted = part * (1 - alpha[..., None] / 255.0) + colour
    blended = part.copy()
    blend(blended, np.dstack([colour, alpha]))
    np.testing.assert_allclose(blended, np.clip(wanted, 0, 255), atol=1.1)


@pytest.mark.parametrize("halves", [1, 2, 3, 5, 6])
def test_a_layer_enlarged_in_bands_is_the_layer_enlarged_as_a_whole(halves):
    rng = np.random.default_rng(halves)
    rows, columns = 2 * BAND_ROWS + 10, 40
    alpha = np.zeros((rows, columns), np.uint8)
    alpha[5:60, 8:20] = rng.integers(0, 256, (55, 12))
    alpha[BAND_ROWS + 3 :, 33:] = 255  # up to the lower right corner; the band between is empty at its left
    colour = (rng.integers(0, 256, (rows, columns, 3)) * (alpha[..., None] / 255.0)).astype(np.uint8)
    layer = np.dstack([colour, alpha])
    part = rng.integers(0, 256, (rows * halves // 2 - 1, columns * halves // 2 - 2, 3), dtype=np.uint8)
    how = cv2.INTER_AREA if halves < 2 else cv2.INTER_LINEAR
    whole = np.asarray(cv2.resize(layer, (columns * halves // 2, rows * halves // 2), interpolation=how))
    wanted = part.copy()
    blend(wanted, whole[: len(part), : part.shape[1]])
    blend_scaled(part, layer, halves)
    assert np.abs(part.astype(int) - wanted).max() <= 1


def test_people_of_different_cameras_are_each_where_their_own_camera_puts_them(template, result_of):
    """One call draws a group; a longer lens from further away gives the same outline."""
    result = result_of(0, {1: ((-0.1, 0, 3.0), 0), 2: ((0.2, 0, 4.0), 0)})
    one, other = result.people
    moved = dataclasses.replace(
        other.body,
        focal_px=other.body.focal_px * 1.5,
        centre_px=(other.body.centre_px[0] + 12.0, other.body.centre_px[1] - 7.0),
    )
    result = dataclasses.replace(result, people=(one, dataclasses.replace(other, body=moved)))
    draw = Drawer(template, Style(boxes=False, labels=False))
    apart = [draw(dataclasses.replace(result, people=(person,))) for person in result.people]
    changed = [(picture != result.image).any(axis=2) for picture in apart]
    together = (draw(result) != result.image).any(axis=2)
    assert (together != np.any(changed, axis=0)).mean() < 0.01 and changed[1].sum() > 50
