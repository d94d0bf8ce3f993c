"""METRO's two crops against values of the original code, against torchvision, and back into the frame."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metro_edge.crop_rules import demo_crop, demo_part, demo_spans, metro_crop, metro_spans
from metro_edge.errors import UserError
from metro_edge.postprocess import Intrinsics, translation_from_camera
from metro_edge.preprocess import border_bgr, crop_affine, crop_coordinates, crop_images, crop_squares, whole_frame_box
from metro_edge.spec import CROP_RULES, ModelSpec

REFERENCE = Path(__file__).parents[1] / "data" / "reference"


def spec_of(rule: str, size: int = 224, scale: float = 1.2) -> ModelSpec:
    return ModelSpec("tiny", size, "h36m14", "egg", 162, crop_rule=rule, box_scale=scale)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return cv2.imread(str(REFERENCE / "crop_input.png"))


@pytest.mark.parametrize("number", range(4))
def test_evaluation_crops_are_those_of_the_original_code(picture, number):
    reference = np.load(REFERENCE / "crop.npz")
    crop = metro_crop(picture, reference["centers"][number], float(reference["scales"][number]), 224)
    difference = np.abs(crop.astype(int) - reference["crops"][number])
    assert difference.mean() < 1
    assert np.percentile(difference, 99) <= 2
    assert difference.max() <= 1  # measured: rounding only


@pytest.mark.parametrize("number", range(4))
def test_the_rule_of_the_spec_cuts_the_same_square_from_a_box(picture, number):
    reference = np.load(REFERENCE / "crop.npz")
    side = 200 * reference["scales"][number]
    box = np.array([*(reference["centers"][number] - side / 2), side, side])
    crop = crop_images(picture, box, spec_of("metro_eval", scale=1.0))[0]
    difference = np.abs(crop.astype(int) - reference["crops"][number])
    assert difference.mean() < 1 and np.percentile(difference, 99) <= 2


def test_corners_are_cut_towards_zero_and_fall_on_whole_pixels():
    assert metro_spans((320.0, 240.0), 1.6, 224) == ((160, 480), (80, 400))
    assert metro_spans((100.3, 400.7), 2.2, 224) == ((-119, 320), (180, 620))


def original_spans(centre: np.ndarray, scale: float, size: int) -> list[tuple[int, int]]:
    """The arithmetic as it is written in METRO: a 1-indexed point through the inverse of the crop's matrix."""
    side = 200 * scale
    matrix = np.eye(3)
    matrix[0, 0] = matrix[1, 1] = size / side
    matrix[:2, 2] = size * (-centre / side + 0.5)
    corners = [(np.linalg.inv(matrix) @ (p, p, 1.0))[:2].astype(int) for p in (0.0, float(size))]
    return list(zip(*(corner.tolist() for corner in corners), strict=True))


@settings(deadline=None, max_examples=300)
@given(x=st.integers(0, 4000), y=st.integers(0, 4000), part=st.sampled_from([1, 2]), hundredths=st.integers(10, 900))
def test_corners_are_rounded_as_by_the_originals_matrix(x, y, part, hundredths):
    centre = np.array([x, y]) / part
    assert list(metro_spans(centre, hundredths / 100, 224)) == original_spans(centre, hundredths / 100, 224)


def test_rotation_turns_the_picture_counter_clockwise():
    frame = np.zeros((200, 200, 3), np.uint8)
    frame[95:105, 150:160] = 255  # right of the middle
    crop = metro_crop(frame, (100.0, 100.0), 1.0, 200, rotation_deg=90.0)
    rows, columns = np.nonzero(crop[..., 0] > 128)
    assert abs(rows.mean() - 44.5) < 1.5 and abs(columns.mean() - 99.5) < 1.5  # above the middle
    # A square that does not begin at the frame's corner turns about its own middle.
    crop = metro_crop(frame, (120.0, 110.0), 0.5, 100, rotation_deg=90.0)
    rows, columns = np.nonzero(crop[..., 0] > 128)
    assert abs(rows.mean() - 14.5) < 1.5 and abs(columns.mean() - 39.5) < 1.5
    turned = metro_crop(frame, (100.0, 100.0), 1.0, 200, rotation_deg=30.0)
    again = metro_crop(turned, (100.0, 100.0), 1.0, 200, rotation_deg=-30.0)
    rows, columns = np.nonzero(again[..., 0] > 128)
    assert abs(rows.mean() - 99.5) < 1 and abs(columns.mean() - 154.5) < 1


@pytest.mark.parametrize("shape", [(480, 640), (301, 200), (100, 150), (1003, 1000), (224, 224), (225, 900)])
def test_the_demo_crop_is_torchvisions_resize_and_centre_crop(shape):
    image_module = pytest.importorskip("PIL.Image")
    transforms = pytest.importorskip("torchvision.transforms")
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    chain = transforms.Compose([transforms.Resize(224), transforms.CenterCrop(224)])
    expected = np.asarray(chain(image_module.fromarray(frame)))
    crop = crop_images(frame, whole_frame_box(frame), spec_of("metro_demo"))[0]
    difference = np.abs(crop.astype(int) - expected)
    assert difference.mean() < 0.5 and difference.max() <= 1


def test_the_demo_crop_takes_the_boxs_part_for_the_picture(picture):
    crop = demo_crop(picture, (40.2, 30.4, 250, 380), 224)
    (left, right), (top, bottom) = demo_part((40.2, 30.4, 250, 380))
    assert (left, right, top, bottom) == (40, 290, 30, 410)
    np.testing.assert_array_equal(crop, demo_crop(np.ascontiguousarray(picture[30:410, 40:290]), (0, 0, 250, 380), 224))
    assert demo_spans((40.2, 30.4, 250, 380), 224)[0] == (40.0, 290.0)
    # A box smaller than a pixel still is a picture.
    assert demo_part((3.4, 3.4, 0.2, 0.2)) == ((3, 4), (3, 4))


@pytest.mark.parametrize("rule", ["metro_eval", "metro_demo"])
def test_outside_the_frame_is_black(rule):
    frame = np.full((100, 100, 3), 200, np.uint8)
    spec = spec_of(rule, 64)
    crop = crop_images(frame, (-50, -50, 100, 100), spec)[0]
    assert border_bgr(spec) == (0, 0, 0)
    assert not crop[:16, :16].any() and (crop[-8:, -8:] == 200).all()


def drawn_dot(place: tuple[float, float]) -> np.ndarray:
    """A frame with a round dot about `place`, its grey levels weighing to that place."""
    rows, columns = np.mgrid[0:300, 0:400]
    distance = (columns - place[0]) ** 2 + (rows - place[1]) ** 2
    return np.repeat((255 * np.exp(-distance / 72)).astype(np.uint8)[..., None], 3, 2)


@pytest.mark.parametrize("rule", CROP_RULES)
@pytest.mark.parametrize("box", [(100.0, 50.0, 160.0, 160.0), (60.7, 30.3, 201.0, 240.6), (-40.4, -20.9, 300.0, 260.0)])
def test_a_dot_in_the_crop_is_placed_back_where_it_was_in_the_frame(rule, box):
    """Crop a frame with a dot, let the camera point at the dot in the crop, and project the placed point."""
    place, spec = (171.3, 128.9), spec_of(rule)
    crop = crop_images(drawn_dot(place), box, spec)[0, ..., 0].astype(float)
    rows, columns = np.mgrid[0:224, 0:224]
    top, left = np.unravel_index(crop.argmax(), crop.shape)
    crop[(rows - top) ** 2 + (columns - left) ** 2 > 40**2] = 0  # what is outside the frame
    weight = crop / crop.sum()
    seen = np.array([(weight.sum(0) * np.arange(224)).sum(), (weight.sum(1) * np.arange(224)).sum()])
    boxes = np.array([box])
    affine = crop_affine(boxes, spec)[0]
    pixel = 1.0 / affine[0, 0]  # of the crop, in frame px
    tolerance = 0.15 * max(pixel, 1.0)
    back = (seen - affine[:, 2]) / np.diag(affine[:, :2])
    np.testing.assert_allclose(back, place, atol=tolerance)
    coordinates = (2 * seen + 1) / 224 - 1
    np.testing.assert_allclose(crop_coordinates(np.array([[place]]), boxes, spec)[0, 0], coordinates, atol=0.01)
    # The network's camera (s, tx, ty) that sees a point of the body at its origin there.
    camera = np.array([[0.8, *(coordinates / 0.8)]])
    intrinsics = Intrinsics(500.0, (199.5, 149.5))
    x, y, z = translation_from_camera(camera, boxes, spec, intrinsics)[0]
    projected = np.array([x, y]) / z * 500.0 + (199.5, 149.5)
    np.testing.assert_allclose(projected, place, atol=tolerance + 0.5 / 2)  # width and height differ by 1 px at most


@settings(deadline=None, max_examples=60)
@given(
    x=st.floats(-300, 300), y=st.floats(-300, 300), w=st.floats(2, 900), h=st.floats(2, 900),
    rule=st.sampled_from(["metro_eval", "metro_demo"]),
)  # fmt: skip
def test_metros_squares_are_whole_pixels_near_the_box(x, y, w, h, rule):
    spec, boxes = spec_of(rule), np.array([[x, y, w, h]])
    centre, side = crop_squares(boxes, spec)
    middle = boxes[0, :2] + (boxes[0, 2:] - 1) / 2
    wanted = max(w, h) * 1.2 if rule == "metro_eval" else min(w, h)
    # Both corners may lose up to a pixel; the demo cuts whole pixels of the resized picture too.
    slack = 0 if rule == "metro_eval" else 0.01 * wanted
    assert np.abs(centre[0] - middle).max() <= 1.01 + slack
    assert abs(side[0] - wanted) <= 2.0 + slack


@pytest.mark.parametrize(
    ("centre", "scale", "message"),
    [
        ((np.nan, 3), 1.0, "finite centre"),
        ((1.0, 2.0, 3.0), 1.0, "finite centre"),
        ((5, 5), 0.0, "positive scale"),
        ((5, 5), np.inf, "positive scale"),
        ((0.2, 0.2), 0.001, "no whole pixel"),
    ],
)
def test_bad_squares(centre, scale, message):
    with pytest.raises(UserError, match=message):
        metro_spans(centre, scale, 224)


def test_a_rotated_square_of_absurd_size_is_refused():
    frame = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="8192 px at most"):
        metro_crop(frame, (4, 4), 100.0, 32, rotation_deg=10.0)
    assert metro_crop(frame, (4, 4), 1000.0, 32).shape == (32, 32, 3)  # unrotated ones cost no memory


def test_all_rules_agree_on_a_smooth_picture(picture):
    """What differs is sampling and half pixels: on a picture without detail the rules give the same crop."""
    smooth = cv2.GaussianBlur(picture, (0, 0), 12)
    box = (200.0, 100.0, 200.0, 200.0)
    crops = [crop_images(smooth, box, spec_of(rule, scale=1.0))[0].astype(int) for rule in CROP_RULES]
    for crop in crops[1:]:
        assert np.abs(crop - crops[0]).mean() < 1.5


def test_the_rule_is_chosen_by_name_only():
    spec = spec_of("metro_eval")
    with pytest.raises(UserError, match="metro_demo"):
        dataclasses.replace(spec, crop_rule="demo")
