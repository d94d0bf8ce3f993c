"""The crop kernels against metro_edge.preprocess: the same levels, in every format, type and crop rule."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from metro_edge.cuda.arrays import YUV_RULES, DeviceArray, DeviceBuffer, DeviceFrame
from metro_edge.cuda.loading import KernelLoader
from metro_edge.cuda.preprocess import Preprocess, affine_people, box_people
from metro_edge.errors import UserError
from metro_edge.preprocess import (
    border_bgr,
    crop_affine,
    crop_images,
    network_input,
    normalise,
    resampled,
    taps_per_axis,
)
from metro_edge.spec import CROP_RULES, ModelSpec
from tests.virtual_gpu.device import Device, on_stand_in

SPEC = ModelSpec(name="test", image_size=56, joint_set="h36m14", body="anny", vertex_count=10, crop_rule="box_area")
ODD = dataclasses.replace(SPEC, image_size=45)
BLANK = KernelLoader(lambda name, capability: iter(()))


def with_rule(rule: str, spec: ModelSpec = SPEC) -> ModelSpec:
    return dataclasses.replace(spec, crop_rule=rule)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def waves(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    planes = [127 + 120 * np.sin(x / 17 + c) * np.cos(y / 13 - c) for c in range(3)]
    return np.stack(planes, axis=-1).astype(np.uint8)


# Whole and fractional, small and large, beyond every border, single pixels.
BOXES = np.array(
    [
        (10, 8, 40, 60), (33.3, 20.7, 17.9, 31.2), (-30, -20, 60, 50), (100, 60, 80, 70), (-200, 10, 600, 30),
        (0, 0, 131, 97), (60, -80, 20, 300), (125.5, 90.5, 5, 6), (0, 0, 1, 1), (50, 50, 1.5, 1),
        (-300, -300, 800, 900),
    ],
    np.float64,
)  # fmt: skip


class Pitched:
    """A picture in device memory whose rows have a gap of bytes that are never right."""

    def __init__(self, device: Device, planes: list[NDArray[np.uint8]], format: str, gap: int, yuv: str = "bt601"):
        rows = []
        for plane in planes:
            flat = plane.reshape(len(plane), -1)
            rows.append(np.hstack([flat, np.full((len(flat), gap), 77, np.uint8)]))
        self.held: list[DeviceBuffer] = [DeviceBuffer.of(plane) for plane in rows]
        height, width = planes[0].shape[:2]
        self.frame = DeviceFrame(
            self.held[0].pointer, width, height, format, rows[0].shape[1],
            *((self.held[1].pointer, rows[1].shape[1]) if len(planes) > 1 else ()), yuv=yuv,
        )  # fmt: skip


def run(device: Device, picture: Pitched, boxes: Any, spec: ModelSpec, **options: Any) -> NDArray[Any]:
    preprocess = Preprocess(spec, device.loader, **options)
    images = DeviceBuffer((len(boxes), 3, spec.image_size, spec.image_size), preprocess.dtype)
    preprocess(picture.frame, boxes, images)
    return images.get()


def levels(images: NDArray[Any], spec: ModelSpec) -> NDArray[np.float64]:
    std, mean = (np.array(v)[:, None, None] for v in (spec.std, spec.mean))
    return (images.astype(np.float64) * std + mean) * 255.0


def assert_same_levels(images: NDArray[Any], expected: NDArray[Any], spec: ModelSpec, share: float = 0.005) -> None:
    """All values bit for bit, but for `share` of them a level apart: 0 for the rules that do OpenCV's arithmetic.

    Where a crop's pixel is a simple fraction of a frame's (72 px to 45), many exact samples lie half-way between two
    levels, and the last bit of the position, which OpenCV computes in float32, decides the rounding.
    """
    apart = np.abs(levels(images, spec) - levels(expected, spec))
    assert apart.max(initial=0.0) < 1.01
    assert (images != expected).sum() <= share * images.size


@pytest.mark.gpu
@pytest.mark.parametrize("picture", [noise(97, 131), waves(97, 131)], ids=["noise", "waves"])
@pytest.mark.parametrize("rule", CROP_RULES)
@pytest.mark.parametrize("spec", [SPEC, ODD], ids=["56", "45"])
def test_every_rule_gives_the_levels_of_the_numpy_path(device, rule, picture, spec):
    spec = with_rule(rule, spec)
    boxes = BOXES[[0, 1, 2, 3, 5, 9]] if rule == "metro_demo" else BOXES
    if rule == "metro_eval":
        boxes = boxes[boxes[:, 2:].max(axis=1) > 2]
    images = run(device, Pitched(device, [picture], "bgr", 13), boxes, spec)
    # OpenCV fuses operations in its vectors alone: 45 px are no multiple of them, 56 px of three taps are none either.
    exact = rule.startswith("box_") and spec.image_size % 32 == 0
    assert_same_levels(images, network_input(picture, boxes, spec), spec, 0.0 if exact else 0.005)


# What a single crop may have apart: small boxes in noise are the worst. docs/cuda.md shows what this prints (-s).
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rule", "most"), [("box_area", 0.012), ("box_bilinear", 0.012), ("metro_eval", 0.025), ("metro_demo", 0.08)]
)
def test_single_crops_of_any_box(device, rule, most):
    rng, picture = np.random.default_rng(0), noise(120, 160)
    on_device = Pitched(device, [picture], "bgr", 0)
    for size in (45, 56, 160):
        spec = dataclasses.replace(SPEC, crop_rule=rule, image_size=size)
        shares, largest = [], 0.0
        for _ in range(100):
            box = np.array([[*rng.uniform((-20, -20), (150, 110)), *10 ** rng.uniform(0, 2.4, 2)]])
            try:
                expected = network_input(picture, box, spec)
            except UserError:  # beside the frame
                continue
            apart = np.abs(levels(run(device, on_device, box, spec), spec) - levels(expected, spec))
            shares.append(float((apart > 0.5).mean()))
            largest = max(largest, float(apart.max()))
        print(f"{rule}, S = {size}: of {len(shares)} crops the worst has {max(shares):.2%} apart, by {largest:.0f}")
        assert len(shares) > 60 and max(shares) <= most and largest < 2.5


@pytest.mark.gpu
@pytest.mark.parametrize("size", [160, 224])
@pytest.mark.parametrize("hw", [(480, 640), (360, 641), (1080, 1920)])
def test_crops_of_real_sizes_are_those_of_opencv_bit_for_bit(device, size, hw):
    """Whole frames and simple fractions of them, where every second sample lies half-way between two levels."""
    height, width = hw
    picture = cv2.resize(waves(97, 131), (width, height), interpolation=cv2.INTER_CUBIC)
    r = np.random.default_rng(size)
    boxes = [(0, 0, width / n, height / n) for n in (1, 2, 3, 4)]
    boxes += [(width / 4, 0, width / 2, height), (-width / 4, height / 2, width / 2, height)]
    boxes += [(*r.uniform(0, 0.6, 2) * (width, height), *r.uniform(0.05, 0.8, 2) * height) for _ in range(6)]
    spec = dataclasses.replace(with_rule("box_area"), image_size=size)
    images = run(device, Pitched(device, [picture], "bgr", 5), boxes, spec)
    np.testing.assert_array_equal(images, network_input(picture, boxes, spec))


def exact_bilinear(picture: NDArray[np.uint8], affine: NDArray[np.float64], size: int, border: Any) -> NDArray[Any]:
    """Samples (size, size, 3) float64, not rounded, of `picture` by the map from frame px to crop px."""
    inverse = np.linalg.inv(affine[:, :2])
    y, x = np.mgrid[:size, :size].astype(np.float64)
    places = np.stack([x, y], axis=-1) @ inverse.T - inverse @ affine[:, 2]
    first = np.floor(places).astype(np.int64)
    part = places - first
    height, width = picture.shape[:2]
    result = np.zeros((size, size, 3))
    for j in (0, 1):
        for i in (0, 1):
            at = first + np.array([i, j])
            inside = ((at >= 0) & (at < (width, height))).all(axis=-1)
            at = np.where(inside[..., None], at, 0)
            value = np.where(inside[..., None], picture[at[..., 1], at[..., 0]], np.array(border, np.float64))
            weight = np.abs(1 - i - part[..., 0]) * np.abs(1 - j - part[..., 1])
            result += weight[..., None] * value
    return result


@pytest.mark.gpu
def test_samples_are_the_exact_ones_correctly_rounded_also_at_the_far_edge_of_a_wide_frame(device):
    """float32 sums of four products: 4 x 2^-24 x 255 = 6e-5 levels; the position adds nothing, being fixed point."""
    spec, picture = with_rule("box_bilinear"), noise(40, 8000)
    boxes = np.array([(7900.3, 3.1, 37.7, 20.2), (7950.0, -10.6, 77.1, 44.4), (3.3, 2.2, 31.1, 20.0)])
    images = run(device, Pitched(device, [picture], "bgr", 5), boxes, spec)
    for image, affine in zip(images, crop_affine(boxes, spec), strict=True):
        exact = exact_bilinear(picture, affine, spec.image_size, border_bgr(spec))
        got = levels(image[None], spec)[0].transpose(1, 2, 0)[..., ::-1]
        assert np.abs(got - exact).max() < 0.5 + 1e-4 + 1e-3  # the last: back from float32 to levels


@pytest.mark.gpu
def test_turned_crops_are_those_of_opencv(device):
    spec, picture = with_rule("box_bilinear"), waves(120, 90)
    affines = [cv2.getRotationMatrix2D((40, 60), angle, gain) for angle, gain in ((17, 0.8), (-120, 2.3), (90, 0.3))]
    affines = np.array(affines) - np.array([[0, 0, 20.0], [0, 0, 33.0]])
    held = Pitched(device, [picture], "bgr", 0)
    for taps in (1, 3):
        fine = affines * taps
        images = DeviceBuffer((3, 3, 56, 56), np.float32)
        Preprocess(spec, device.loader).crop_affine(held.frame, fine, images, taps=taps)
        expected = np.stack([resampled(picture, affine, taps, spec) for affine in fine])
        assert_same_levels(images.get(), normalise(expected, spec), spec)


def yuv_planes(format: str, height: int, width: int, seed: int = 3) -> list[NDArray[np.uint8]]:
    r = np.random.default_rng(seed)
    if format == "nv12":
        shapes: tuple[tuple[int, ...], ...] = ((height, width), (height // 2, width // 2, 2))
    else:
        shapes = ((height, width, 2),)
    return [r.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


def split(planes: list[NDArray[np.uint8]], format: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Y, U and V of every pixel."""
    if format == "nv12":
        uv = planes[1].repeat(2, axis=0).repeat(2, axis=1)
        return planes[0], uv[..., 0], uv[..., 1]
    return planes[0][..., 0], planes[0][:, 0::2, 1].repeat(2, axis=1), planes[0][:, 1::2, 1].repeat(2, axis=1)


@pytest.mark.gpu
@pytest.mark.parametrize("format", ["rgb", "grey", "nv12", "yuyv"])
def test_every_format_is_the_bgr_frame_that_opencv_makes_of_it(device, format):
    if format in ("nv12", "yuyv"):
        planes = yuv_planes(format, 98, 130)
        if format == "nv12":
            stacked = np.concatenate([planes[0], planes[1].reshape(49, 130)])
            picture = cv2.cvtColor(stacked, cv2.COLOR_YUV2BGR_NV12)
        else:
            picture = cv2.cvtColor(planes[0], cv2.COLOR_YUV2BGR_YUY2)
    else:
        picture = waves(97, 131)
        planes = [picture[..., ::-1]]
        if format == "grey":
            planes, picture = [picture[..., 1]], picture[..., 1:2].repeat(3, axis=2)
    images = run(device, Pitched(device, planes, format, 7), BOXES, SPEC)
    assert_same_levels(images, network_input(picture, BOXES, SPEC), SPEC)


@pytest.mark.gpu
@pytest.mark.parametrize(("yuv", "kr", "kb", "full"), [
    ("bt601", 0.299, 0.114, False), ("bt709", 0.2126, 0.0722, False),
    ("bt601-full", 0.299, 0.114, True), ("bt709-full", 0.2126, 0.0722, True),
])  # fmt: skip
def test_colours_are_those_of_the_standards(device, yuv, kr, kb, full):
    """Within 1.3 levels of the definition: half a level of rounding, and OpenCV's bt601 constants are 3 digits long."""
    planes = yuv_planes("nv12", 56, 56)
    y, u, v = (plane.astype(np.float64) for plane in split(planes, "nv12"))
    y = y if full else np.maximum(y - 16, 0) * 255 / 219
    u, v = ((c - 128) * (1 if full else 255 / 224) for c in (u, v))
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = y - (2 * (1 - kr) * kr * v + 2 * (1 - kb) * kb * u) / (1 - kr - kb)
    expected = np.clip(np.stack([red, green, blue]), 0, 255)
    spec = dataclasses.replace(with_rule("box_bilinear"), box_scale=1.0)
    images = run(device, Pitched(device, planes, "nv12", 0, yuv), [(0, 0, 56, 56)], spec)
    assert np.abs(levels(images, spec)[0] - expected).max() < 1.3


@pytest.mark.gpu
def test_half_and_int8_are_the_rounded_float(device):
    picture = waves(97, 131)
    held = Pitched(device, [picture], "bgr", 1)
    single = run(device, held, BOXES, SPEC)
    half = run(device, held, BOXES, SPEC, dtype="float16")
    np.testing.assert_array_equal(half, single.astype(np.float16))
    for scale in (0.02, 0.005):  # the second clips
        quantised = run(device, held, BOXES, SPEC, dtype="int8", scale=scale)
        wanted = np.clip(np.rint(single * np.float32(1.0 / scale)), -128, 127)
        np.testing.assert_array_equal(quantised, wanted.astype(np.int8))
    assert quantised.max() == 127 and quantised.min() == -128


@pytest.mark.gpu
def test_a_box_far_beyond_the_frame_costs_what_the_frame_does(device):
    """Rule metro_demo visits every pixel of the box in the reference; black ones beyond the frame need no visit."""
    spec, picture, took = with_rule("metro_demo"), noise(60, 80), {}
    on_device = Pitched(device, [picture], "bgr", 0)
    for side in (500, 7900):
        box = np.array([[-side / 2, -side / 2, side, side]])
        assert_same_levels(run(device, on_device, box, spec), network_input(picture, box, spec), spec)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            run(device, on_device, box, spec)
            times.append(time.perf_counter() - began)
        took[side] = min(times)
    assert took[7900] < 30 * took[500], took  # 250 times the pixels


@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 1, 64, 65, 130])
def test_any_number_of_people(device, count):
    spec = dataclasses.replace(SPEC, image_size=33)
    r = np.random.default_rng(count)
    boxes = np.column_stack([r.uniform(-20, 80, (count, 2)), r.uniform(20, 90, (count, 2))])
    picture = noise(97, 131, 5)
    before = device.count("kernel crop_boxes") if on_stand_in() else 0
    images = run(device, Pitched(device, [picture], "bgr", 3), boxes, spec)
    assert_same_levels(images, network_input(picture, boxes, spec), spec)
    if on_stand_in():
        assert device.count("kernel crop_boxes") - before == -(-count // 64)


@pytest.mark.gpu
def test_a_frame_costs_no_allocation_and_no_copy(device):
    if not on_stand_in():
        pytest.skip("the stand-in counts, a GPU does not")
    held, preprocess = Pitched(device, [noise(97, 131)], "bgr", 3), Preprocess(SPEC, device.loader)
    images = DeviceBuffer((len(BOXES), 3, 56, 56), np.float32)
    preprocess(held.frame, BOXES, images)
    names = (
        "cuMemAlloc",
        "cuMemHostAlloc",
        "bytes to device",
        "bytes to host",
        "bytes within device",
        "kernel crop_boxes",
    )
    before = [device.count(name) for name in names]
    preprocess(held.frame, BOXES, images)
    assert [device.count(name) - b for name, b in zip(names, before, strict=True)] == [0, 0, 0, 0, 0, 1]


@pytest.mark.gpu
def test_work_goes_to_the_caller_s_stream(device):
    stream = device.driver.Stream()
    held = Pitched(device, [noise(97, 131)], "bgr", 3)
    images = DeviceBuffer((1, 3, 56, 56), np.float32)
    Preprocess(SPEC, device.loader)(held.frame, BOXES[:1], images, stream)
    stream.synchronize()
    np.testing.assert_array_equal(images.get(), run(device, held, BOXES[:1], SPEC))


def test_slopes_keep_thirty_bits_whatever_their_size():
    for step in (1e-3, 0.37, 1.0, 1.9999999, 57.3, 3e4):
        person = affine_people(np.array([[[1 / step, 0, 0], [0, -1 / step, 0]]]))[0]
        kept = person["slope"].astype(np.float64) * 2.0 ** (int(person["shift"]) - 32)
        assert abs(kept[0, 0] - step) <= max(step * 2**-29, 2**-32)
        assert abs(kept[1, 1] + step) <= max(step * 2**-29, 2**-32)


def test_boxes_and_their_affines_say_the_same():
    spec = with_rule("box_area")
    by_box = box_people(BOXES, spec, (97, 131))
    taps = by_box["taps"].astype(np.int64)
    fine = crop_affine(BOXES, spec) * taps[:, None, None]
    fine[:, :, 2] += (taps[:, None] - 1) / 2.0  # pixel centres of the finer grid
    by_affine = affine_people(fine, taps)
    places = by_box["first"] + by_box["start"].astype(np.float64)
    assert np.abs(places - by_affine["origin"] / 2.0**32).max() < 1e-4
    slopes = by_affine["slope"].astype(np.float64) * np.exp2(by_affine["shift"] - 32.0)[:, None, None]
    np.testing.assert_allclose(by_box["step"], np.diagonal(slopes, axis1=1, axis2=2), rtol=1e-6)
    assert taps.tolist() == [taps_per_axis(float(max(box[2:])) * 1.2, spec) for box in BOXES]


GOOD = DeviceFrame(4096, 64, 48)
IMAGES = DeviceArray(8192, (1, 3, 56, 56), np.dtype(np.float32))


@pytest.mark.parametrize(("values", "text"), [
    ({"format": "bgra"}, "unknown format"), ({"yuv": "bt2020"}, "unknown format"), ({"width": 0}, "1 to 32766"),
    ({"height": 40_000}, "1 to 32766"), ({"pitch": 191}, "below the 192 bytes"), ({"pitch": -5}, "below the 192 bytes"),
    ({"pointer": 0}, "its address"), ({"uv_pointer": 77}, "one plane"), ({"format": "nv12", "width": 63}, "even width"),
    ({"format": "nv12", "height": 47}, "even width and height"), ({"format": "yuyv", "width": 63}, "even width, got"),
    ({"format": "nv12", "uv_pitch": 60}, "uv_pitch 60 is below"),
])  # fmt: skip
def test_frames_that_cannot_be(values, text):
    with pytest.raises(UserError, match=text):
        dataclasses.replace(GOOD, **values)


@pytest.mark.parametrize(("boxes", "images", "text"), [
    ([(0, 0, np.nan, 5)], IMAGES, "not finite"), ([(70, 0, 5, 5)], IMAGES, "outside"), (["a"], IMAGES, "numbers"),
    ([(0, 0, 9, 9)] * 2, IMAGES, r"must be \(2, 3, 56, 56\)"),
    ([(0, 0, 9, 9)], np.zeros((1, 3, 56, 56)), "device memory"),
    ([(0, 0, 9, 9)], dataclasses.replace(IMAGES, dtype=np.dtype(np.float16)), "float32, got"),
    ([(0, 0, 9, 9)], dataclasses.replace(IMAGES, pointer=0), "address 0"),
    ([(0, 0, 9, 9)], dataclasses.replace(IMAGES, pointer=8194), "no multiple of 4"),
    ([(0, 0, 9, 9)], IMAGES, "no image of the kernels|pycuda is needed|driver|no CUDA context"),
])  # fmt: skip
def test_calls_that_cannot_be(boxes, images, text):
    with pytest.raises(UserError, match=text):
        Preprocess(SPEC, BLANK)(GOOD, boxes, images)


@pytest.mark.parametrize(
    "options", [{"dtype": "float64"}, {"dtype": "int8"}, {"scale": 0.1}, {"dtype": "int8", "scale": 0}]
)
def test_types_that_cannot_be(options):
    with pytest.raises(UserError, match="got"):
        Preprocess(SPEC, BLANK, **options)


@pytest.mark.parametrize("affines", [np.zeros((1, 2, 3)), np.zeros((2, 3)), np.full((1, 2, 3), np.nan)])
def test_affines_that_cannot_be(affines):
    with pytest.raises(UserError, match="affines must be"):
        affine_people(affines)


def test_every_rule_of_colours_keeps_grey_grey_and_sums_in_31_bits():
    for black, luma, red_v, green_u, green_v, blue_u in YUV_RULES.values():
        assert abs((235 if black else 255) - black) * luma / 2**20 == pytest.approx(255, abs=1.01)
        assert 255 * luma + 128 * max(red_v, blue_u, -green_u - green_v) + 2**19 < 2**31


def test_crops_of_the_reference_are_what_the_kernel_is_held_against():
    crops = crop_images(waves(97, 131), BOXES[:1], SPEC)
    np.testing.assert_allclose(levels(normalise(crops, SPEC), SPEC), crops.transpose(0, 3, 1, 2)[:, ::-1], atol=1e-4)
