from __future__ import annotations

import os
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metro_edge import preprocess
from metro_edge.errors import UserError
from metro_edge.preprocess import (
    border_bgr,
    check_boxes,
    check_frame,
    crop_affine,
    crop_coordinates,
    crop_images,
    frame_from_image,
    network_input,
    normalise,
    read_picture,
    taps_per_axis,
    whole_frame_box,
)
from metro_edge.spec import ModelSpec


def spec_of(size: int = 64, rule: str = "box_area", scale: float = 1.2) -> ModelSpec:
    return ModelSpec("tiny", size, "h36m14", "egg", 162, crop_rule=rule, box_scale=scale)


def reference_crop(frame: np.ndarray, box, spec: ModelSpec) -> np.ndarray:
    """The definition of a crop, tap by tap in float64; (S, S, 3) unrounded."""
    x, y, w, h = box
    side, size = max(w, h) * spec.box_scale, spec.image_size
    taps = 1 if spec.crop_rule == "box_bilinear" else min(max(int(np.ceil(side / size)), 1), 4)
    # Places of the taps in crop px (S per side), then in frame px, both counted from pixel centres.
    places = (np.arange(size * taps) + 0.5) / taps - 0.5
    along = (places - (size - 1) / 2) * side / size
    columns, rows = np.meshgrid(along + x + (w - 1) / 2, along + y + (h - 1) / 2)
    left, top = np.floor(columns).astype(int), np.floor(rows).astype(int)
    a, b = (columns - left)[..., None], (rows - top)[..., None]

    def pixel(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        inside = (i >= 0) & (i < frame.shape[1]) & (j >= 0) & (j < frame.shape[0])
        values = frame[np.clip(j, 0, frame.shape[0] - 1), np.clip(i, 0, frame.shape[1] - 1)]
        return np.where(inside[..., None], values, border_bgr(spec)).astype(np.float64)

    upper = (1 - a) * pixel(left, top) + a * pixel(left + 1, top)
    lower = (1 - a) * pixel(left, top + 1) + a * pixel(left + 1, top + 1)
    return ((1 - b) * upper + b * lower).reshape(size, taps, size, taps, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("rule", ["box_area", "box_bilinear"])
@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 160, 120),
        (20.3, 10.7, 60, 80.2),
        (-30, -20, 90, 90),
        (140, 100, 30, 30),
        (3, 3, 40, 53.4),
        (50, 50, 9, 9),
    ],
)
def test_crops_agree_with_the_definition(frame, rule, box):
    spec = spec_of(rule=rule)
    difference = np.abs(crop_images(frame, box, spec)[0] - reference_crop(frame, box, spec))
    assert difference.mean() < 1
    assert np.percentile(difference, 99) < 2


@settings(deadline=None, max_examples=25)
@given(
    x=st.floats(-60, 150), y=st.floats(-60, 110), w=st.floats(2, 300), h=st.floats(2, 300),
    rule=st.sampled_from(["box_area", "box_bilinear"]), scale=st.floats(0.8, 2.0),
)  # fmt: skip
def test_any_crop_agrees_with_the_definition(x, y, w, h, rule, scale):
    frame = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    if x + w <= 0 or y + h <= 0:
        return
    spec = spec_of(32, rule, scale)
    difference = np.abs(crop_images(frame, (x, y, w, h), spec)[0] - reference_crop(frame, (x, y, w, h), spec))
    assert difference.mean() < 1
    assert np.percentile(difference, 99) < 2


def test_a_crop_at_the_networks_size_is_the_frame_itself(frame):
    spec = spec_of(64, scale=1.0)
    np.testing.assert_array_equal(crop_images(frame, (10, 20, 64, 64), spec)[0], frame[20:84, 10:74])


def test_whole_frame_reduced_by_two_is_the_mean_of_four_pixels():
    frame = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    crop = crop_images(frame, whole_frame_box(frame), spec_of(32, scale=1.0))[0]
    expected = frame.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(crop - expected).max() <= 0.5


def test_area_rule_does_not_alias_where_bilinear_does():
    frame = np.zeros((256, 256, 3), np.uint8)
    frame[:, ::4] = 255  # stripes finer than the crop can show
    area, bilinear = (
        crop_images(frame, (0, 0, 256, 256), spec_of(64, rule, 1.0))[0].astype(float)
        for rule in ("box_area", "box_bilinear")
    )
    assert area.std() < 2 and abs(area.mean() - 63.75) < 1
    assert bilinear.mean() == 0  # its samples fall between the stripes


def test_outside_the_frame_is_the_mean_colour_and_zero_for_the_network(frame):
    spec = spec_of()
    crop = crop_images(frame, (-100, -100, 102, 102), spec)[0]
    assert tuple(crop[0, 0]) == border_bgr(spec) == (104, 116, 124)
    assert np.abs(normalise(crop[None], spec)[0, :, 0, 0]).max() < 0.01


@pytest.mark.parametrize(("side", "taps"), [(10, 1), (64, 1), (64.1, 2), (128, 2), (129, 3), (200, 4), (5000, 4)])
def test_taps(side, taps):
    assert taps_per_axis(side, spec_of()) == taps
    assert taps_per_axis(side, spec_of(rule="box_bilinear")) == 1


@settings(deadline=None, max_examples=50)
@given(x=st.floats(-500, 500), y=st.floats(-500, 500), w=st.floats(1, 800), h=st.floats(1, 800))
def test_affine_and_crop_coordinates_agree(x, y, w, h):
    boxes = np.array([[x, y, w, h]])
    affine = crop_affine(boxes, spec_of())
    assert affine.shape == (1, 2, 3) and affine.dtype == np.float64
    middle = np.array([x + (w - 1) / 2, y + (h - 1) / 2])
    half = max(w, h) * 0.6
    points = np.array([[middle, middle - half, middle + np.array((half, -half))]])
    np.testing.assert_allclose(crop_coordinates(points, boxes, spec_of())[0], [(0, 0), (-1, -1), (1, -1)], atol=1e-9)
    crop_px = points[0] @ affine[0, :, :2].T + affine[0, :, 2]
    np.testing.assert_allclose(crop_px, [(31.5, 31.5), (-0.5, -0.5), (63.5, -0.5)], atol=1e-6)


def test_normalise_is_the_formula_in_rgb(frame):
    spec = spec_of()
    crops = crop_images(frame, [(0, 0, 100, 100), (50, 10, 60, 90)], spec)
    images = normalise(crops, spec)
    assert images.shape == (2, 3, 64, 64) and images.dtype == np.float32 and images.flags.c_contiguous
    expected = (crops[..., ::-1] / 255.0 - spec.mean) / spec.std
    np.testing.assert_allclose(images, expected.transpose(0, 3, 1, 2), atol=1e-5)
    np.testing.assert_array_equal(network_input(frame, [(0, 0, 100, 100), (50, 10, 60, 90)], spec), images)
    assert normalise(crops[:0], spec).shape == (0, 3, 64, 64)
    for bad in (crops[0], crops[:, :60], crops.astype(np.float32)):
        with pytest.raises(UserError, match="crops must be"):
            normalise(bad, spec)


@pytest.mark.parametrize("taps", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [3, 4])
def test_means_of_cells_are_opencvs(taps, channels):
    fine = np.random.default_rng(taps).integers(0, 256, (32 * taps, 32 * taps, channels), dtype=np.uint8)
    fine[:4] = 255  # the largest sums
    expected = cv2.resize(fine, (32, 32), interpolation=cv2.INTER_AREA)[..., :3]
    np.testing.assert_array_equal(preprocess._cell_means(fine, 32, taps), expected)


@settings(deadline=None, max_examples=60)
@given(
    st.floats(-150, 150), st.floats(-100, 100), st.floats(2, 400), st.integers(1, 4), st.floats(-1.5, 1.5),
    st.sampled_from([0.0, 4.0]),
)  # fmt: skip
def test_the_part_that_is_seen_is_all_that_counts(x, y, side, taps, angle, most_widened):
    """A turned square anywhere: the same picture as from the whole frame, but for the rounding of OpenCV's places."""
    frame = np.random.default_rng(3).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    spec, gain = spec_of(32), 32 * taps / side
    turn = gain * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    affine = np.column_stack([turn, -turn @ (x, y)])
    fine = cv2.warpAffine(frame, affine, (32 * taps, 32 * taps), flags=cv2.INTER_LINEAR, borderValue=border_bgr(spec))
    expected = cv2.resize(fine, (32, 32), interpolation=cv2.INTER_AREA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess, "MAX_WIDENED", most_widened)
        found = preprocess.resampled(frame, affine, taps, spec)
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 2 and difference.mean() < 0.05


@pytest.mark.parametrize("most_widened", [0.0, 4.0])
def test_a_crop_is_no_scratch_memory(frame, monkeypatch, most_widened):
    monkeypatch.setattr(preprocess, "MAX_WIDENED", most_widened)
    for taps, side in ((1, 50), (2, 100), (3, 150)):
        spec, affine = spec_of(64), crop_affine(np.array([[0.0, 0, side, side]]), spec_of(64 * taps))[0]
        first = preprocess.resampled(frame, affine, taps, spec)
        before = first.copy()
        preprocess.resampled(255 - frame, affine, taps, spec)
        np.testing.assert_array_equal(first, before)


def test_scratch_memory_is_kept_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(preprocess, "MAX_HELD_BYTES", 1000)
    kept = preprocess._scratch("of_a_test", (10, 10, 4))
    assert np.shares_memory(kept, preprocess._scratch("of_a_test", (9, 9, 3)))
    assert not np.shares_memory(kept, preprocess._scratch("of_a_test", (30, 30, 4)))
    assert np.shares_memory(kept, preprocess._scratch("of_a_test", (10, 10, 4)))


def test_a_crop_does_not_depend_on_the_people_beside_it(frame):
    spec = spec_of()
    boxes = [(0, 0, 100, 100), (50, 10, 60, 90), (10, 10, 300, 20)]
    together = crop_images(frame, boxes, spec)
    for box, crop in zip(boxes, together, strict=True):
        np.testing.assert_array_equal(crop_images(frame, box, spec)[0], crop)
    assert crop_images(frame, np.zeros((0, 4)), spec).shape == (0, 64, 64, 3)


def test_boxes_are_accepted(frame):
    assert check_boxes((1, 2, 3, 4), (120, 160)).shape == (1, 4)
    assert check_boxes([(1, 2, 3, 4)] * 3, (120, 160)).dtype == np.float64
    assert check_boxes([], (120, 160)).shape == (0, 4)
    given_boxes = np.array([[1.0, 2, 3, 4]])
    assert check_boxes(given_boxes, (120, 160)) is not given_boxes
    np.testing.assert_array_equal(whole_frame_box(frame), [[0, 0, 160, 120]])


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ((0, 0, 0, 10), "empty"),
        ((0, 0, 10, -3), "empty"),
        ((0, 0, 10, 0.5), "empty"),
        ((np.nan, 0, 10, 10), "not finite"),
        ((0, 0, np.inf, 10), "not finite"),
        ((160, 0, 10, 10), "outside the 160 x 120 px frame"),
        ((-10, 0, 10, 10), "outside"),
        ((0, 130, 10, 10), "outside"),
        ((0, -50, 10, 20), "outside"),
        ((0, 0, 1e6, 10), "100 times"),
        ([(1, 2, 3)], "shape"),
        ([[(1, 2, 3, 4)]], "shape"),
        ("a box", "must be numbers"),
        ([(1, 2, 3, 4), (1, 2)], "must be numbers"),
    ],
)
def test_bad_boxes(boxes, message):
    with pytest.raises(UserError, match=message):
        check_boxes(boxes, (120, 160))


def test_the_bad_box_is_named():
    with pytest.raises(UserError, match=r"box 1 \(x=500"):
        check_boxes([(0, 0, 10, 10), (500, 0, 10, 10)], (120, 160))


@pytest.mark.parametrize(
    "bad",
    [
        "picture.jpg",
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((5, 5, 3), np.uint16),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((1, 40_000, 3), np.uint8),
    ],
)
def test_bad_frames(bad):
    with pytest.raises(UserError, match="a frame must be"):
        check_frame(bad)


def test_frames_from_grey_deep_and_transparent_pictures(frame):
    grey = frame[..., 0]
    for image in (grey, grey[..., None]):
        np.testing.assert_array_equal(frame_from_image(image), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(frame_from_image(frame.astype(np.uint16) * 257), frame)
    assert frame_from_image(np.full((1, 1), 65535, np.uint16)).max() == 255
    assert frame_from_image(np.full((1, 1), 385, np.uint16)).max() == 1  # 1.498 rounds down
    opaque = np.dstack([frame, np.full_like(grey, 255)])
    np.testing.assert_array_equal(frame_from_image(opaque), frame)
    half = np.dstack([frame, np.full_like(grey, 51)])
    expected = np.rint(0.2 * frame + 0.8 * 128)
    assert np.abs(frame_from_image(half) - expected).max() <= 1
    assert (frame_from_image(np.zeros((2, 2, 4), np.uint8)) == 128).all()


@pytest.mark.parametrize(
    "bad", [[[1, 2]], np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((2, 4, 4, 3), np.uint8)]
)
def test_bad_images(bad):
    with pytest.raises(UserError, match="a picture must be"):
        frame_from_image(bad)


def encoded(image: np.ndarray, suffix: str) -> bytes:
    ok, data = cv2.imencode(suffix, image)
    assert ok
    return data.tobytes()


def jpeg_with_orientation(image: np.ndarray, orientation: int) -> bytes:
    """A JPEG whose EXIF block has the orientation, and a thumbnail-like end-of-image marker inside."""
    tag = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + tag + b"\0\0\0\0" + b"\xff\xd9"
    data = encoded(image, ".jpg")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def test_pictures_are_read(tmp_path, frame):
    cases = {
        "colour.png": (frame, frame),
        "grey.png": (frame[..., 0], np.repeat(frame[..., :1], 3, axis=2)),
        "deep.png": (frame.astype(np.uint16) * 257, frame),
        "deep.tiff": (frame.astype(np.uint16) * 257, frame),
        "deepgrey.png": (frame[..., 0].astype(np.uint16) * 257, np.repeat(frame[..., :1], 3, axis=2)),
        "clear.png": (np.dstack([frame, np.zeros((120, 160), np.uint8)]), np.full_like(frame, 128)),
        "colour.bmp": (frame, frame),
    }
    for name, (image, expected) in cases.items():
        path = tmp_path / name
        path.write_bytes(encoded(image, path.suffix))
        np.testing.assert_array_equal(read_picture(path), expected, err_msg=name)


def test_exif_orientation_is_honoured(tmp_path):
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, :40] = 255  # left half white
    path = tmp_path / "turned.jpg"
    path.write_bytes(jpeg_with_orientation(image, 6))  # shown after a quarter turn clockwise
    upright = read_picture(path)
    assert upright.shape == (80, 40, 3)
    assert upright[:30].min() > 200 and upright[50:].max() < 50


def test_bad_pictures(tmp_path, frame):
    with pytest.raises(UserError, match="no picture at 'a.x00b': embedded null byte"):
        read_picture("a\0b")
    with pytest.raises(UserError, match="cannot read picture .*File name too long"):
        read_picture(tmp_path / ("a" * 300))
    with pytest.raises(UserError, match="no picture at"):
        read_picture(tmp_path / "none.jpg")
    with pytest.raises(UserError, match="cannot read picture"):
        read_picture(tmp_path)
    cases = {
        "empty.jpg": (b"", "not a picture"),
        "text.png": (b"hello, I am a picture", "not a picture"),
        "cut.jpg": (jpeg_with_orientation(frame, 1)[:-400], "cut short"),
        "stub.jpg": (jpeg_with_orientation(frame, 1)[:10], "cut short"),
        "cut.png": (encoded(frame, ".png")[:-400], "cut short"),
        "cut.webp": (encoded(frame, ".webp")[:-400], "not a picture"),
        "broken.png": (encoded(frame, ".png").replace(b"IHDR", b"IHDX"), "not a picture"),
        "float.tiff": (encoded(frame.astype(np.float32), ".tiff"), "float.tiff: a picture must be"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message):
            read_picture(tmp_path / name)


def test_a_jpeg_with_fill_bytes_is_complete(tmp_path, frame):
    data = encoded(frame, ".jpg")
    (tmp_path / "filled.jpg").write_bytes(data[:2] + b"\xff\xff" + data[2:])
    assert read_picture(tmp_path / "filled.jpg").shape == frame.shape


def test_opencvs_own_exceptions_do_not_come_through(tmp_path, frame, monkeypatch):
    def refuse(*_):
        raise cv2.error("too many pixels")

    (tmp_path / "a.png").write_bytes(encoded(frame, ".png"))
    monkeypatch.setattr(preprocess.cv2, "imdecode", refuse)
    with pytest.raises(UserError, match="not a picture"):
        read_picture(os.fspath(tmp_path / "a.png"))
