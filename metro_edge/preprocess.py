"""From a frame and boxes to the network's input: the one definition for training, calibration and runtime.

Pixel coordinates count from pixel centres, as OpenCV's do: the pixel in column i and row j is centred on
(i, j) and covers [i - 0.5, i + 0.5) x [j - 0.5, j + 0.5). A box x, y, width, height covers the columns x to
x + width - 1 and the rows y to y + height - 1, so (0, 0, W, H) is the whole frame. A crop of S x S pixels
covers [-1, 1] of the network's crop coordinates: its pixel i is centred on (2 i + 1) / S - 1.
"""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from metro_edge.crop_rules import MPII_BOX_PX, demo_crop, demo_spans, metro_crop, metro_spans
from metro_edge.errors import UserError
from metro_edge.spec import ModelSpec

MAX_TAPS = 4  # bilinear taps per axis and output pixel of the rule box_area
MAX_SIDE_PX = 32_766  # cv2.warpAffine addresses pixels by int16
MAX_BOX_FACTOR = 100.0  # box side over the frame's longer side; beyond it the frame is 2 px of the crop
MAX_WIDENED = 4.0  # px of the frame's part over px of the samples, up to which a fourth channel pays
MAX_HELD_BYTES = 64 << 20  # of a thread's scratch memory that is kept from one picture to the next
MAT_GREY = 128.0  # shown through transparent pixels: near the ImageNet mean, so "nothing" for the network

Frame = NDArray[np.uint8]
_MEMORY = threading.local()


def check_frame(frame: Any) -> Frame:
    """Return `frame` if it is a BGR frame, (H, W, 3) uint8; raises UserError otherwise.

    Nothing is converted silently: `frame_from_image` does that for grey, BGRA and 16-bit pictures.
    """
    if not isinstance(frame, np.ndarray):
        raise UserError(f"a frame must be a NumPy array (H, W, 3) uint8 BGR, got {type(frame).__name__}")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise UserError(
            f"a frame must be (H, W, 3) uint8 BGR, got {frame.shape} {frame.dtype}; "
            "metro_edge.preprocess.frame_from_image converts grey, BGRA and 16-bit pictures"
        )
    height, width = frame.shape[:2]
    if not (1 <= height <= MAX_SIDE_PX and 1 <= width <= MAX_SIDE_PX):
        raise UserError(f"a frame must be 1 to {MAX_SIDE_PX} px in width and height, got {width} x {height}")
    return frame


def frame_from_image(image: Any) -> Frame:
    """Convert a decoded picture to a frame, (H, W, 3) uint8 BGR.

    Rules: grey (H, W) or (H, W, 1) is repeated into three channels; 16-bit values are divided by 257, which
    maps 0..65535 onto 0..255; BGRA is composited over mid-grey, because the colour stored under transparent
    pixels is arbitrary and a viewer never sees it. Anything else, floats included (their range is not known),
    raises UserError.
    """
    if not isinstance(image, np.ndarray):
        raise UserError(f"a picture must be a NumPy array, got {type(image).__name__}")
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"a picture must be uint8 or uint16, got {image.dtype}; scale it to uint8 first")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise UserError(f"a picture must be grey (H, W), BGR (H, W, 3) or BGRA (H, W, 4), got {image.shape}")
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    elif image.shape[2] == 4:
        alpha = image[:, :, 3:].astype(np.float32) / 255.0
        image = np.rint(image[:, :, :3] * alpha + MAT_GREY * (1.0 - alpha)).astype(np.uint8)
    return check_frame(np.ascontiguousarray(image))


def read_picture(path: str | os.PathLike[str]) -> Frame:
    """Read a picture file as a frame, (H, W, 3) uint8 BGR, upright by its EXIF orientation.

    Raises UserError when the file is missing, unreadable, not a picture, or cut short.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"no picture at {path}") from None
    except OSError as error:
        raise UserError(f"cannot read picture {path}: {error.strerror}") from None
    except ValueError as error:  # a null character, or one that no file name can hold
        raise UserError(f"no picture at {str(path)!r}: {error}") from None
    return frame_from_bytes(data, str(path))


def frame_from_bytes(data: bytes, name: str) -> Frame:
    """Decode the bytes of a picture file called `name` as `read_picture` does; raises UserError as it does."""
    jpeg = data.startswith(b"\xff\xd8")
    if (jpeg and not _jpeg_is_complete(data)) or (data.startswith(b"\x89PNG") and b"IEND" not in data):
        raise UserError(f"{name} is a picture that is cut short; fetch the file again")
    buffer = np.frombuffer(data, np.uint8)
    # Only IMREAD_UNCHANGED keeps alpha, and it alone ignores the EXIF orientation; JPEG has no alpha.
    image = None if jpeg else _decode(buffer, cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 3 or image.shape[2] != 4:
        image = _decode(buffer, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise UserError(f"{name} is not a picture: damaged, or not JPEG, PNG, WebP, TIFF or BMP")
    try:
        return frame_from_image(image)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _decode(buffer: NDArray[np.uint8], flags: int) -> Any:
    if not buffer.size:
        return None
    try:
        return cv2.imdecode(buffer, flags)
    except cv2.error:
        return None


def _jpeg_is_complete(data: bytes) -> bool:
    """Whether an end-of-image marker follows the first scan (libjpeg fills what is missing with grey)."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:  # start of scan; thumbnails lie before it, inside a segment
            return data.find(b"\xff\xd9", at) >= 0
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def check_boxes(boxes: ArrayLike, frame_hw: tuple[int, int]) -> NDArray[np.float64]:
    """Return boxes (N, 4) float64, x, y, width, height in px, of a frame of height and width `frame_hw`.

    One box may come as (4,); N = 0 is allowed. A box may reach beyond the frame. Raises UserError for another
    shape, values that are not finite, sides under one pixel, a box without overlap with the frame, or one
    more than 100 times as long as the frame.
    """
    try:
        array = np.array(boxes, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"boxes must be numbers x, y, width, height, got {boxes!r}") from None
    if array.shape == (4,):
        array = array[None]
    if array.size == 0 and array.ndim <= 2:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise UserError(f"boxes must be (N, 4): x, y, width, height in px, got shape {array.shape}")
    height, width = frame_hw
    limit = MAX_BOX_FACTOR * max(height, width)
    for number, box in enumerate(array):
        x, y, w, h = (float(value) for value in box)
        text = f"box {number} (x={x:g}, y={y:g}, width={w:g}, height={h:g})"
        if not np.isfinite(box).all():
            raise UserError(f"{text} is not finite")
        if w < 1 or h < 1:
            raise UserError(f"{text} is empty: width and height must be at least 1 px")
        if max(w, h) > limit:
            raise UserError(f"{text} is over {MAX_BOX_FACTOR:g} times as long as the {width} x {height} px frame")
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            raise UserError(f"{text} lies outside the {width} x {height} px frame")
    return array


def whole_frame_box(frame: Frame) -> NDArray[np.float64]:
    """Return the box (1, 4) of the whole frame."""
    return np.array([[0.0, 0.0, frame.shape[1], frame.shape[0]]])


def crop_spans(boxes: NDArray[np.floating], spec: ModelSpec) -> NDArray[np.float64]:
    """Return (N, 2, 2): for x and y of each box (N, 4) where the crop begins and ends, in px from the frame's edge.

    Rules `box_area` and `box_bilinear`: the square with the box's centre and the side max(width, height) *
    box_scale. `metro_eval` cuts its corners to whole pixels, `metro_demo` takes the box's middle square without
    box_scale (metro_edge.crop_rules); their two sides may differ by a pixel.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    if spec.crop_rule == "metro_demo":
        spans = [demo_spans(box, spec.image_size) for box in boxes]
        return np.array(spans, np.float64).reshape(-1, 2, 2)
    centre = boxes[:, :2] + boxes[:, 2:] / 2.0
    side = boxes[:, 2:].max(axis=1, initial=0.0) * spec.box_scale
    if spec.crop_rule == "metro_eval":
        spans = [metro_spans(c, s / MPII_BOX_PX, spec.image_size) for c, s in zip(centre, side, strict=True)]
        return np.array(spans, np.float64).reshape(-1, 2, 2)
    return np.stack([centre - side[:, None] / 2.0, centre + side[:, None] / 2.0], axis=2)


def crop_squares(boxes: NDArray[np.floating], spec: ModelSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the centre (N, 2), counted from pixel centres, and the side (N,) in frame px of the crop of each box.

    The side is the mean of width and height where the crop rule makes them differ (`crop_spans`).
    """
    spans = crop_spans(boxes, spec)
    return (spans.sum(axis=2) - 1.0) / 2.0, (spans[..., 1] - spans[..., 0]).mean(axis=1)


def crop_affine(boxes: NDArray[np.floating], spec: ModelSpec) -> NDArray[np.float64]:
    """Return (N, 2, 3) float64 that maps frame px (x, y, 1) to px of the S x S crop of each box (N, 4).

    Both sides count from pixel centres, so a row of the result serves cv2.warpAffine as it is.
    """
    return span_affine(crop_spans(boxes, spec), spec.image_size)


def span_affine(spans: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return the affines (N, 2, 3) from frame px to px of crops of `size` a side, of spans (N, 2, 2)."""
    gain = size / (spans[..., 1] - spans[..., 0])
    affine = np.zeros((len(spans), 2, 3))
    affine[:, 0, 0], affine[:, 1, 1] = gain[:, 0], gain[:, 1]
    affine[:, :, 2] = (size - 1.0) / 2.0 - (spans.sum(axis=2) - 1.0) / 2.0 * gain
    return affine


def crop_coordinates(
    points_px: NDArray[np.floating], boxes: NDArray[np.floating], spec: ModelSpec
) -> NDArray[np.float64]:
    """Return frame px (N, P, 2) in the crop coordinates of boxes (N, 4): [-1, 1] inside the crop."""
    spans = crop_spans(boxes, spec)
    centre, side = (spans.sum(axis=2) - 1.0) / 2.0, spans[..., 1] - spans[..., 0]
    coordinates: NDArray[np.float64] = (points_px - centre[:, None]) * (2.0 / side)[:, None]
    return coordinates


def taps_per_axis(side_px: float, spec: ModelSpec) -> int:
    """Return the bilinear taps per axis of box_area (MAX_TAPS at most) and box_bilinear for a crop of `side_px` px."""
    if spec.crop_rule == "box_bilinear":
        return 1
    # The small slack keeps a side that is a whole multiple but for rounding from costing another tap.
    return min(max(math.ceil(side_px / spec.image_size - 1e-9), 1), MAX_TAPS)


def border_bgr(spec: ModelSpec) -> tuple[int, int, int]:
    """Return the BGR colour outside the frame: the spec's mean, after normalisation zero, as padding is.

    METRO's own crop rules leave it black, as their networks learnt it.
    """
    if spec.crop_rule.startswith("metro_"):
        return 0, 0, 0
    red, green, blue = (round(255.0 * value) for value in spec.mean)
    return blue, green, red


def crop_images(frame: Frame, boxes: ArrayLike, spec: ModelSpec) -> NDArray[np.uint8]:
    """Cut the square around each box and resample it to S x S; returns (N, S, S, 3) uint8 BGR.

    Rule `box_bilinear` takes one bilinear sample at the centre of each output pixel. Rule `box_area` divides
    the output pixel into n x n equal cells, n = clamp(ceil(side / S), 1, 4), takes one bilinear sample at the
    centre of each and averages them, which keeps a large person from aliasing. Outside the frame is
    `border_bgr`. Rules `metro_eval` and `metro_demo`: see metro_edge.crop_rules. Raises UserError for a bad frame
    or box.
    """
    frame = check_frame(frame)
    boxes = check_boxes(boxes, frame.shape[:2])
    size = spec.image_size
    crops = np.empty((len(boxes), size, size, 3), np.uint8)
    if not spec.crop_rule.startswith("metro_"):
        _warp_all(frame, crop_spans(boxes, spec), crops, spec)
        return crops
    for crop, box in zip(crops, boxes, strict=True):
        if spec.crop_rule == "metro_demo":
            crop[:] = demo_crop(frame, box, size)
        else:
            crop[:] = metro_crop(frame, box[:2] + box[2:] / 2.0, box[2:].max() * spec.box_scale / MPII_BOX_PX, size)
    return crops


def _warp_all(frame: Frame, spans: NDArray[np.float64], crops: NDArray[np.uint8], spec: ModelSpec) -> None:
    """Fill crops (N, S, S, 3) with the spans (N, 2, 2) of the frame by the rule box_area or box_bilinear."""
    sides = spans[:, 0, 1] - spans[:, 0, 0]
    picture = frame
    if (sides**2).sum() > frame.shape[0] * frame.shape[1]:  # a crowd: widened once, not person by person
        picture = _widened(frame)
    for crop, span, side in zip(crops, spans, sides, strict=True):
        taps = taps_per_axis(float(side), spec)
        crop[:] = resampled(picture, span_affine(span[None], spec.image_size * taps)[0], taps, spec)


def resampled(frame: Frame, affine: NDArray[np.float64], taps: int, spec: ModelSpec) -> Frame:
    """Return (S, S, 3) uint8 BGR: bilinear samples of the frame, `taps` x `taps` of them averaged to an output pixel.

    Args:
        affine: (2, 3), frame px to px of the crop of taps * S pixels a side, both counted from pixel centres.
        taps: what `taps_per_axis` returned.
    """
    size = spec.image_size
    side = size * taps
    columns, rows, affine = part_seen(frame.shape[:2], affine, side)
    part = frame[rows, columns]
    # A part of many times the size of the result costs more to widen than that gains.
    if part.shape[2] == 3 and part.shape[0] * part.shape[1] <= MAX_WIDENED * side * side:
        part = _widened(part)
    blue, green, red = border_bgr(spec)
    fine = cv2.warpAffine(
        part,
        affine,
        (side, side),
        dst=_scratch("fine", (side, side, part.shape[2])),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(blue, green, red, 0),
    )
    return _cell_means(np.asarray(fine, np.uint8), size, taps)


def _widened(frame: Frame) -> Frame:
    """Return (H, W, 4), the frame with a fourth channel: OpenCV samples four in half the time, to the same values."""
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2BGRA, dst=_scratch("wide", (*frame.shape[:2], 4))), np.uint8)


def _scratch(name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return memory of this thread for a result: fresh megabytes cost more in page faults than the step itself."""
    size = math.prod(shape)
    held: NDArray[np.uint8] | None = getattr(_MEMORY, name, None)
    if held is None or held.size < size:
        held = np.empty(size, np.uint8)
        if size <= MAX_HELD_BYTES:
            setattr(_MEMORY, name, held)
    return held[:size].reshape(shape)


def part_seen(
    frame_hw: tuple[int, ...], affine: NDArray[np.float64], side: int
) -> tuple[slice, slice, NDArray[np.float64]]:
    """Return columns and rows of the frame that a crop of `side` px a side samples, and the affine from that part.

    Its edges are the frame's, or lie beyond what is sampled. Smaller coordinates also round less: OpenCV computes
    them in float32.
    """
    (a, b, c), (d, e, f) = affine.tolist()
    area = a * e - b * d
    xs, ys = [], []
    for x, y in ((-c, -f), (side - c, -f), (-c, side - f), (side - c, side - f)):
        xs.append((e * x - b * y) / area)
        ys.append((a * y - d * x) / area)
    columns, rows = _with_margin(xs, frame_hw[1]), _with_margin(ys, frame_hw[0])
    moved = affine.copy()
    moved[:, 2] += affine[:, :2] @ (columns.start, rows.start)
    return columns, rows, moved


def _with_margin(places: list[float], length: int) -> slice:
    """Return the pixels about `places` with two more on each side, inside 0 to `length` and at least one."""
    low = min(max(math.floor(min(places)) - 2, 0), length - 1)
    return slice(low, min(max(math.ceil(max(places)) + 3, low + 1), length))


def _cell_means(fine: NDArray[np.uint8], size: int, taps: int) -> NDArray[np.uint8]:
    """Return (size, size, 3): means of the cells of taps x taps px, of (size taps, size taps, 3 or 4) uint8.

    The same numbers as cv2.resize with INTER_AREA, which for three or four taps takes twice to five times as long.
    """
    if taps == 1:
        small: Any = fine.copy() if fine.shape[2] == 3 else fine  # what is returned may not be scratch memory
    elif taps == 2 or fine.shape[2] == 3:
        small = cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA)
    else:
        # A pixel's four channels of 16 bits are added as one number of 64: no sum of a cell exceeds 16 bits.
        rows = fine.reshape(size, taps, -1)
        sums = np.add(rows[:, 0], rows[:, 1], dtype=np.uint16)
        for tap in range(2, taps):
            sums += rows[:, tap]
        pixels = sums.view(np.uint64)
        total = pixels[:, 0::taps] + pixels[:, 1::taps]
        for tap in range(2, taps):
            total += pixels[:, tap::taps]
        small = cv2.convertScaleAbs(total.view(np.uint16).reshape(size, size, 4), alpha=1.0 / taps**2)
    return np.asarray(small if small.shape[2] == 3 else cv2.cvtColor(small, cv2.COLOR_BGRA2BGR), np.uint8)


def normalise(crops: NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.float32]:
    """Return (N, 3, S, S) float32 RGB, (value / 255 - mean) / std, of crops (N, S, S, 3) uint8 BGR."""
    size = spec.image_size
    if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1:] != (size, size, 3):
        raise UserError(f"crops must be (N, {size}, {size}, 3) uint8 BGR, got {crops.shape} {crops.dtype}")
    std = np.array(spec.std)
    gain = (1.0 / (255.0 * std)).astype(np.float32)
    offset = (-np.array(spec.mean) / std).astype(np.float32)
    images = np.empty((len(crops), 3, size, size), np.float32)
    for channel in range(3):
        np.multiply(crops[..., 2 - channel], gain[channel], out=images[:, channel])
        images[:, channel] += offset[channel]
    return images


def network_input(frame: Frame, boxes: ArrayLike, spec: ModelSpec) -> NDArray[np.float32]:
    """Return (N, 3, S, S) float32 for the network: `crop_images`, then `normalise`; raises UserError."""
    return normalise(crop_images(frame, boxes, spec), spec)
