"""The two ways in which METRO's authors make the input of a picture; networks they trained expect the first.

`metro_eval`, of their training and evaluation: a square of 200 px times `scale`, its corners cut to whole pixels by
the 1-indexed arithmetic of the MPII tools, black outside the frame, one bilinear sample per output pixel and so no
antialiasing (metro/utils/image_ops.py of microsoft/MeshTransformer, after GraphCMR). `metro_demo`, of their
demonstration: the whole picture, its shorter side resized with antialiasing, then the middle square
(metro/tools/end2end_inference_bodymesh.py: torchvision's Resize and CenterCrop on a PIL image).

The arithmetic is theirs, the code is not. Spans (low, high) count whole pixels from the frame's edge: they hold the
pixels low to high - 1.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from metro_edge.errors import UserError

Frame = NDArray[np.uint8]
Span = tuple[float, float]

MPII_BOX_PX = 200.0  # side of the square at scale 1
MAX_TURNED_PX = 8_192  # side of a rotated square, which needs a canvas of its own


def metro_spans(centre_px: ArrayLike, scale: float, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the columns and the rows, each (low, high), that the crop `metro_eval` covers.

    Args:
        centre_px: (2,) x, y of the square's middle, counted from the frame's edge: (0, 0) is its top left corner.
        scale: side of the square over 200 px; METRO's labels have the margin of 1.2 in it.
        size: side of the crop in px; enters by its rounding only.

    Corners are cut towards zero, so beside the left and the upper edge a square is up to a pixel smaller.

    Raises:
        UserError: values that are not finite, or a square under one pixel.
    """
    centre = np.asarray(centre_px, np.float64)
    if centre.shape != (2,) or not np.isfinite(centre).all() or not (np.isfinite(scale) and scale > 0):
        raise UserError(f"a crop needs a finite centre x, y and a positive scale, got {centre.tolist()} and {scale}")
    side = MPII_BOX_PX * float(scale)
    pixel = 1.0 / (size / side)
    spans = []
    for middle in centre:
        # The rounding of their matrix and its inverse, so that corners on whole pixels are cut as theirs are.
        first = -(size * (-float(middle) / side + 0.5)) * pixel
        low, high = int(first), int(pixel * size + first)
        if high - low < 1:
            raise UserError(f"a crop of {side:g} px about ({centre[0]:g}, {centre[1]:g}) holds no whole pixel")
        spans.append((low, high))
    return spans[0], spans[1]


def metro_crop(
    image: Frame, centre_px: ArrayLike, scale: float, size: int, rotation_deg: float = 0.0
) -> NDArray[np.uint8]:
    """Cut and resample as METRO's evaluation does; returns (size, size, 3) uint8 in the channel order of `image`.

    Args:
        image: (H, W, 3) uint8.
        centre_px, scale, size: see `metro_spans`; the `center` and `scale` of METRO's labels go in as they are.
        rotation_deg: turns the picture counter-clockwise on the screen about the square's middle, as METRO's
            training and its evaluation at several scales do.

    Raises:
        UserError: see `metro_spans`; a rotated square of over 8192 px.
    """
    columns, rows = metro_spans(centre_px, scale, size)
    if rotation_deg:
        image = _turned(image, columns, rows, rotation_deg)
        columns, rows = (0, columns[1] - columns[0]), (0, rows[1] - rows[0])
    return _bilinear(image, columns, rows, size)


def _bilinear(image: Frame, columns: Span, rows: Span, size: int) -> NDArray[np.uint8]:
    """Resample whole-pixel spans to (size, size, 3), one bilinear sample each, black outside the frame."""
    taps = []
    for (low, high), length in zip((rows, columns), image.shape[:2], strict=True):
        places = np.clip((np.arange(size) + 0.5) * ((high - low) / size) - 0.5, 0.0, high - low - 1.0)
        first = np.floor(places).astype(np.int64)
        second = np.minimum(first + 1, int(high - low) - 1)
        share = (places - first).astype(np.float32)
        # A pixel outside the frame is black: its weight goes to zero and its index anywhere.
        indices = np.stack([first, second]) + int(low)
        weights = np.stack([1.0 - share, share]) * ((indices >= 0) & (indices < length))
        taps.append((np.clip(indices, 0, length - 1), weights.astype(np.float32)))
    (row_indices, row_weights), (column_indices, column_weights) = taps
    crop = np.zeros((size, size, 3), np.float32)
    for j, v in zip(row_indices, row_weights, strict=True):
        for i, u in zip(column_indices, column_weights, strict=True):
            crop += image[j[:, None], i[None, :]] * (v[:, None] * u[None, :])[..., None]
    return np.rint(crop).astype(np.uint8)


def _turned(image: Frame, columns: tuple[int, int], rows: tuple[int, int], rotation_deg: float) -> Frame:
    """Return the square (rows, columns, 3) of the picture turned about the square's middle."""
    width, height = columns[1] - columns[0], rows[1] - rows[0]
    if max(width, height) > MAX_TURNED_PX:
        raise UserError(f"a rotated crop may be {MAX_TURNED_PX} px at most, got {width} x {height} px")
    turn = np.array(cv2.getRotationMatrix2D(((width - 1) / 2.0, (height - 1) / 2.0), rotation_deg, 1.0), np.float64)
    # From frame to canvas first: only the canvas is computed, the frame need not be padded.
    turn[:, 2] -= turn[:, :2] @ (columns[0], rows[0])
    turned = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0))
    return np.asarray(turned, np.uint8)


def demo_part(box: ArrayLike) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the columns and the rows of a box x, y, width, height that `metro_demo` takes for the picture.

    The edges are rounded to whole pixels, at least one of them wide.
    """
    x, y, w, h = (float(value) for value in np.asarray(box, np.float64))
    left, top = round(x), round(y)
    return (left, max(round(x + w), left + 1)), (top, max(round(y + h), top + 1))


def demo_spans(box: ArrayLike, size: int) -> tuple[Span, Span]:
    """Return the columns and the rows, fractions of pixels, that the crop `metro_demo` of a box covers."""
    columns, rows = demo_part(box)
    spans = []
    for (low, high), (resized, offset) in zip((columns, rows), demo_sizes(columns, rows, size), strict=True):
        pixel = (high - low) / resized
        spans.append((low + offset * pixel, low + (offset + size) * pixel))
    return spans[0], spans[1]


def demo_crop(image: Frame, box: ArrayLike, size: int) -> NDArray[np.uint8]:
    """Treat the box's part of the frame as the picture: resize its shorter side, take the middle square.

    Returns (size, size, 3) uint8. The resizing is the antialiased bilinear one of PIL: a triangle as wide as two
    output pixels, or two source pixels where the picture is enlarged. The longer side of a box is cut, so a box for
    this rule is the square that shall be seen; the whole frame stands for the authors' demonstration. Parts outside
    the frame are black.
    """
    columns, rows = demo_part(box)
    (wide, left), (high, top) = demo_sizes(columns, rows, size)
    top_rows = _triangle_rows(image, rows, high, top, size)
    turned = np.ascontiguousarray(top_rows.transpose(1, 0, 2))
    return np.ascontiguousarray(_triangle_rows(turned, columns, wide, left, size).transpose(1, 0, 2))


def demo_sizes(columns: Span, rows: Span, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return for columns and rows the resized length and the offset of the middle square in it."""
    width, height = columns[1] - columns[0], rows[1] - rows[0]
    short = min(width, height)
    lengths = [size if length == short else int(size * length / short) for length in (width, height)]
    first, second = ((length, round((length - size) / 2.0)) for length in lengths)
    return first, second


def _triangle_rows(image: Frame, span: tuple[int, int], resized: int, offset: int, size: int) -> NDArray[np.uint8]:
    """Resample rows: (size, W, 3) uint8, the rows offset to offset + size - 1 of `span` resized to `resized` rows."""
    length = span[1] - span[0]
    pixel = length / resized
    reach = max(pixel, 1.0)
    result = np.zeros((size, *image.shape[1:]), np.uint8)
    for i in range(size):
        middle = (offset + i + 0.5) * pixel
        low, high = max(int(middle - reach + 0.5), 0), min(int(middle + reach + 0.5), length)
        weights = np.maximum(1.0 - np.abs(np.arange(low, high) + 0.5 - middle) / reach, 0.0)
        weights = weights / weights.sum()
        first, last = max(low + span[0], 0), min(high + span[0], len(image))
        if first < last:  # the rest is black
            used = weights[first - span[0] - low : last - span[0] - low].astype(np.float32)
            result[i] = np.rint(np.tensordot(used, image[first:last].astype(np.float32), 1))
    return result
