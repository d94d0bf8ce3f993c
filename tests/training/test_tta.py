"""Test-time augmentation: the plain view changes nothing, and what is turned comes back exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metro_edge.errors import UserError
from metro_edge.joints import H36M14
from metro_edge.spec import ModelSpec
from training.data.augment import Change
from training.data.labelled import LabelledPicture, make_item
from training.tta import METRO_HANDS, PLAIN, TestTimeViews

SPEC = ModelSpec("made", 64, "h36m14", "egg", 50, crop_rule="metro_eval")
RNG = np.random.default_rng(0)


@pytest.fixture
def picture() -> LabelledPicture:
    joints = RNG.normal(0, 0.3, (len(H36M14), 4)).astype(np.float32)
    joints[:, 3] = 1
    image = RNG.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    vertices = RNG.normal(0, 0.3, (50, 3)).astype(np.float32)
    return LabelledPicture("made:0", image, np.array([80.0, 60.0]), 90.0, joints=joints, vertices=vertices)


def test_metros_views_for_hands() -> None:
    assert len(METRO_HANDS.pairs) == 95 and METRO_HANDS.aligned
    assert METRO_HANDS.scales == (0.7, 0.8, 0.9, 1.0, 1.1)
    assert sorted(METRO_HANDS.rotations_deg) == [10.0 * i for i in range(-9, 10)]
    assert METRO_HANDS.describe()["views"] == 95


@pytest.mark.parametrize("rule", ["metro_eval", "box_area", "box_bilinear"])
def test_the_plain_view_is_the_evaluations_picture(picture: LabelledPicture, rule: str) -> None:
    spec = ModelSpec("made", 64, "h36m14", "egg", 50, crop_rule=rule)
    assert torch.equal(PLAIN.images(picture, spec)[0], make_item(picture, spec)["image"])
    mesh = picture.vertices[None]
    np.testing.assert_allclose(PLAIN.fused(mesh, np.zeros((1, 3))), mesh[0], atol=1e-7)


def test_predictions_that_follow_the_picture_come_back_to_one_mesh(picture: LabelledPicture) -> None:
    """The labels of turned pictures, as training makes them, are such predictions."""
    for aligned in (False, True):
        views = TestTimeViews((0.8, 1.0, 1.2), (0.0, 25.0, -90.0), aligned)
        items = [make_item(picture, SPEC, views.change(*pair, picture.margin)) for pair in views.pairs]
        meshes = np.stack([item["vertices"].numpy() for item in items])
        assert np.abs(meshes - picture.vertices).max() > 0.1
        np.testing.assert_allclose(
            views.turned_back(meshes), np.broadcast_to(picture.vertices, meshes.shape), atol=1e-6
        )
        np.testing.assert_allclose(views.fused(meshes, np.zeros((9, 3))), picture.vertices, atol=1e-6)
        images = views.images(picture, SPEC)
        assert torch.equal(images[4], items[4]["image"]) and images.shape == (9, 3, 64, 64)


def test_rotations_are_counter_clockwise_on_the_screen() -> None:
    right = np.array([[[1.0, 0.0, 0.0]]])
    up = right @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])  # y is down: up on the screen is (0, -1, 0)
    np.testing.assert_allclose(TestTimeViews((1.0,), (90.0,)).turned_back(up), right, atol=1e-12)
    change = TestTimeViews().change(1.0, 90.0, 1.0)
    assert isinstance(change, Change)
    np.testing.assert_allclose(change.points(np.array([1.0, 0.0])), (0, -1), atol=1e-12)


def test_alignment_evens_out_size_and_place_and_the_mean_is_over_views() -> None:
    mesh = RNG.normal(0, 0.1, (30, 3))
    views = TestTimeViews((0.9, 1.0), (0.0,), aligned=True)
    np.testing.assert_allclose(views.fused(np.stack([mesh * 1.3, mesh]), np.zeros((2, 3))), mesh, atol=1e-6)
    plain = TestTimeViews((0.9, 1.0), (0.0,))
    np.testing.assert_allclose(plain.fused(np.stack([mesh * 1.3, mesh]), np.zeros((2, 3))), mesh * 1.15, atol=1e-6)
    root = np.array([[1.0, 2.0, 3.0], [0, 0, 0]])
    np.testing.assert_allclose(plain.fused(np.stack([mesh + root[0], mesh]), root), mesh, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0.0,), (0.0,)), "positive scales"),
        (((), (0.0,)), "positive scales"),
        (((1.0,), ()), "finite rotations"),
        (((1.0,), (float("nan"),)), "finite rotations"),
        (((0.9,), (0.0,), True), "scale 1 and rotation 0 must be among"),
    ],
)
def test_bad_views(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TestTimeViews(*arguments)


def test_another_number_of_predictions_than_views() -> None:
    with pytest.raises(UserError, match="1 views and 2 predictions"):
        PLAIN.fused(np.zeros((2, 5, 3)), np.zeros((2, 3)))
