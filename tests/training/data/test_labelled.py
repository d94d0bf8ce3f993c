"""Items of labelled pictures: one change moves image, 2D, 3D and mesh; known values; bad pictures."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metro_edge.errors import UserError
from metro_edge.spec import ModelSpec
from training.data.augment import (
    AUGMENTATIONS,
    SMPL_MIRROR,
    Change,
    augmentation,
    edge_change,
    flip_pose,
    has_sides,
    metro_change,
    metro_recolour,
)
from training.data.labelled import (
    BadSampleError,
    LabelledPicture,
    LabelledSet,
    centred_joints,
    check_picture,
    crop_picture,
    make_item,
)
from training.data.mirror import mesh_mirror

RULES = ("box_area", "box_bilinear", "metro_eval")


def picture_of(template: Any, spec: ModelSpec, seed: int = 0, **changes: Any) -> LabelledPicture:
    """A body seen by a scaled orthographic camera, 2D joints and mesh in agreement, a smooth random picture."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 255, (12, 16, 3), np.uint8)
    image = np.kron(blocks, np.ones((10, 10, 1), np.uint8)).astype(np.uint8)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    vertices = (template.vertices @ turn.T).astype(np.float32)
    joints = template.joints(spec.joint_set, vertices)
    vertices, joints = vertices - spec.joints.root_of(joints), joints - spec.joints.root_of(joints)
    centre = np.array([80.25, 58.5])
    ones = np.ones((len(joints), 1), np.float32)
    values = {
        "key": "made:0", "image": image, "centre_px": centre, "side_px": 96.0, "vertices": vertices.astype(np.float32),
        "joints": np.hstack((joints, ones)).astype(np.float32),
        "joints_2d": np.hstack((centre + joints[:, :2] * 40.0, ones)).astype(np.float32),
    }  # fmt: skip
    return LabelledPicture(**{**values, **changes})


@settings(max_examples=12, deadline=None)
@given(
    ratio=st.floats(0.7, 1.3), x=st.floats(-0.3, 0.3), y=st.floats(-0.3, 0.3), turn=st.floats(-3, 3), flip=st.booleans()
)
def test_the_moved_body_projects_to_the_moved_2d_joints(ratio: float, x: float, y: float, turn: float, flip: bool):
    template, spec = _anny()
    picture = picture_of(template, spec, seed=1)
    change = Change(ratio, (x, y), turn, flip)
    item = make_item(picture, spec, change, mirror=mesh_mirror(template))
    # Scaled orthographic: 40 px a metre, in a square of 96 px; the crop's middle is at `shift` in it.
    offset = change.points(np.zeros((1, 2)))[0]
    projected = item["joints"][:, :2].numpy() * (2 * 40 / 96 / ratio) + offset
    np.testing.assert_allclose(projected, item["joints_2d"][:, :2], atol=1e-5)
    # The mesh turned and flipped regresses to the joints turned and flipped: exactly but for the body's asymmetry.
    regressed = template.joints(spec.joint_set, item["vertices"].numpy())
    np.testing.assert_allclose(regressed, item["joints"], atol=0.012 if flip else 1e-5)


def _anny() -> tuple[Any, ModelSpec]:
    from training.bodies.anny import load_anny_template

    template = load_anny_template()
    return template, ModelSpec("test", 96, "h36m14", "anny", len(template.vertices))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("turn", [0.0, 0.5])
def test_a_flipped_item_is_the_item_of_the_mirrored_picture(template: Any, spec: ModelSpec, rule: str, turn: float):
    spec = dataclasses.replace(spec, crop_rule=rule)
    # A square whose corners are whole pixels, so that METRO's cutting of them is symmetric.
    picture = picture_of(template, spec, centre_px=np.array([79.5, 59.5]))
    width, order, mirror = picture.image.shape[1], list(spec.joints.mirror), mesh_mirror(template)
    away = np.array([-1, 1, 1], np.float32)
    flat = picture.joints_2d[order] * (-1, 1, 1) + (width - 1, 0, 0)
    other = dataclasses.replace(
        picture,
        image=np.ascontiguousarray(picture.image[:, ::-1]),
        centre_px=np.array([width - 1 - picture.centre_px[0], picture.centre_px[1]]),
        joints_2d=flat.astype(np.float32),
        joints=picture.joints[order] * np.append(away, 1).astype(np.float32),
        vertices=picture.vertices[mirror] * away,
    )
    flipped = make_item(picture, spec, Change(1.0, turn_rad=turn, flip=True), mirror=mirror)
    expected = make_item(other, spec, Change(1.0, turn_rad=-turn))  # turned, then mirrored: mirrored, turned back
    assert float((flipped["image"] - expected["image"]).abs().mean()) < 0.02
    for name in ("vertices", "joints", "joints_2d", "joints_confidence"):
        torch.testing.assert_close(flipped[name], expected[name], atol=2e-6, rtol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turn", [0.0, -0.6])
def test_labels_stay_on_the_picture(template: Any, spec: ModelSpec, rule: str, flip: bool, turn: float) -> None:
    spec = dataclasses.replace(spec, crop_rule=rule)
    at = np.array([97.0, 45.0])
    rows, columns = np.mgrid[0:120, 0:160]
    blob = np.uint8(255 * np.exp(-((columns - at[0]) ** 2 + (rows - at[1]) ** 2) / 18))
    flat = np.tile(np.append(at, 1), (14, 1)).astype(np.float32)
    picture = picture_of(template, spec, image=np.repeat(blob[..., None], 3, 2), joints_2d=flat)
    change = Change(0.9, (0.1, -0.1), turn, flip)
    grey = crop_picture(picture, spec, change).mean(2)
    weight = np.clip(grey - 130, 0, None)
    place = (2 * np.arange(spec.image_size) + 1) / spec.image_size - 1
    found = np.array([(weight.sum(0) * place).sum(), (weight.sum(1) * place).sum()]) / weight.sum()
    item = make_item(picture, spec, change, mirror=mesh_mirror(template))
    # METRO cuts corners to whole pixels: up to a pixel of 86, that is 0.023 of the crop's coordinates.
    np.testing.assert_allclose(found, item["joints_2d"][0, :2], atol=0.03 if rule == "metro_eval" else 0.01)


def test_a_given_flipped_mesh_is_turned_the_right_way(template: Any, spec: ModelSpec) -> None:
    mirror = mesh_mirror(template)
    picture = picture_of(template, spec)
    given_mesh = dataclasses.replace(
        picture, flipped_vertices=lambda: picture.vertices[mirror] * np.array([-1, 1, 1], np.float32)
    )
    change = Change(1.0, turn_rad=0.7, flip=True)
    a, b = make_item(picture, spec, change, mirror=mirror), make_item(given_mesh, spec, change)
    torch.testing.assert_close(a["vertices"], b["vertices"], atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="made:0: a mesh cannot be flipped"):
        make_item(picture, spec, change)


def test_missing_labels_are_zeros_that_do_not_count(template: Any, spec: ModelSpec) -> None:
    item = make_item(picture_of(template, spec, joints=None, joints_2d=None, vertices=None), spec, Change(1, flip=True))
    for name in ("joints", "joints_2d", "vertices", "joints_confidence", "joints_visible"):
        assert not item[name].any(), name
    assert not any(item[f"has_{name}"] for name in ("joints", "joints_2d", "vertices"))


def test_2d_joints_outside_the_crop_count_only_in_metros_augmentation(template: Any, spec: ModelSpec) -> None:
    picture = picture_of(template, spec)
    small = Change(0.3)
    inside = make_item(picture, spec, small)["joints_2d"]
    everywhere = make_item(picture, spec, small, labels_outside=True)["joints_2d"]
    outside = (inside[:, :2].abs() > 1).any(1)
    assert outside.any() and (inside[:, 2] == (~outside).float()).all() and (everywhere[:, 2] == 1).all()
    assert AUGMENTATIONS["metro"].labels_outside and not AUGMENTATIONS["edge"].labels_outside


def test_poses_are_mirrored_as_metro_does() -> None:
    pose = np.arange(72, dtype=np.float32)
    flipped = flip_pose(pose)
    # metro/utils/image_ops.py: entries 6, 7, 8 come to 3, 4, 5; y and z are negated.
    np.testing.assert_array_equal(flipped[:6], [0, -1, -2, 6, -7, -8])
    np.testing.assert_array_equal(flipped[-6:], [69, -70, -71, 66, -67, -68])
    np.testing.assert_array_equal(flip_pose(flipped), pose)
    assert [SMPL_MIRROR[i] for i in SMPL_MIRROR] == list(range(24))
    with pytest.raises(UserError, match=r"72 values\) can be flipped, got shape \(48,\)"):
        flip_pose(np.zeros(48))


def test_metros_parameters_have_its_ranges(spec: ModelSpec) -> None:
    hand = ModelSpec("hand", 96, "freihand21", "mano", 778)
    for one, degrees in ((spec, 30), (hand, 90)):
        rng = np.random.default_rng(0)
        changes = [metro_change(rng, one, 1.0) for _ in range(2000)]
        ratios, turns = np.array([c.ratio for c in changes]), np.degrees([c.turn_rad for c in changes])
        assert ratios.min() == 0.75 and ratios.max() == 1.25
        assert (turns == 0).mean() == pytest.approx(0.6, abs=0.04) and np.abs(turns).max() <= 2 * degrees + 1e-9
        assert turns[turns != 0].std() == pytest.approx(degrees * 0.94, rel=0.12)
        assert np.mean([c.flip for c in changes]) == pytest.approx(0.5 if has_sides(one.joints) else 0, abs=0.04)
    assert not any(edge_change(np.random.default_rng(k), hand, 1.0).flip for k in range(40))
    grey = np.full((4, 4, 3), 100, np.uint8)
    values = np.array([metro_recolour(np.random.default_rng(k), grey)[0, 0] for k in range(300)])
    assert values.min() >= 60 and values.max() <= 140 and len(np.unique(values)) > 50
    with pytest.raises(UserError, match="unknown augmentation 'none'; known: edge, metro"):
        augmentation("none")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"side_px": 0.0}, "box of no size"),
        ({"centre_px": np.array([np.nan, 0])}, "box of no size"),
        ({"centre_px": np.array([-90.0, 50])}, "lies outside the 160 x 120 px picture"),
        ({"joints": np.zeros((13, 4), np.float32)}, r"joints must be \(14, 4\), got \(13, 4\)"),
        ({"vertices": np.full((13_718, 3), np.nan, np.float32)}, "vertices holds values that are not finite"),
    ],
)
def test_bad_pictures_are_named(template: Any, spec: ModelSpec, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSampleError, match=f"made:0: .*{words}"):
        check_picture(picture_of(template, spec, **changes), spec)


def test_a_rule_of_whole_pictures_cannot_be_trained_with(template: Any, spec: ModelSpec) -> None:
    with pytest.raises(UserError, match="'metro_demo' takes whole pictures"):
        crop_picture(
            picture_of(template, spec), dataclasses.replace(spec, crop_rule="metro_demo"), Change(1.0, turn_rad=1)
        )
    with pytest.raises(UserError, match="unknown crop rule 'none'"):
        crop_picture(picture_of(template, spec, crop_rule="none"), spec, Change(1.0))


def test_joints_are_centred_on_their_root_or_not_used() -> None:
    joints = np.random.default_rng(0).normal(size=(14, 4))
    joints[:, 3] = 1
    joints[5, 3] = 0
    centred = centred_joints(joints, "h36m14")
    assert centred is not None and np.abs(centred[2:4, :3].mean(0)).max() < 1e-7 and not centred[5].any()
    joints[2, 3] = 0
    assert centred_joints(joints, "h36m14") is None


class Made(LabelledSet):
    """A set of the least kind."""

    def picture(self, index: int) -> LabelledPicture:
        template, spec = _anny()
        return picture_of(template, spec, seed=index, side_px=0.0 if index == 1 else 96.0)


def test_sets_augment_by_seed_epoch_and_sample(spec: ModelSpec, template: Any) -> None:
    data = Made(3, spec, train=True, seed=4, augmentation="metro", mirror=mesh_mirror(template))
    first = data[0]["image"]
    assert torch.equal(data[0]["image"], first)
    data.set_epoch(1)
    assert not torch.equal(data[0]["image"], first)
    with pytest.raises(BadSampleError, match="box of no size"):
        data[1]
    with pytest.raises(IndexError):
        data[3]
