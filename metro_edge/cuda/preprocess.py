"""From a frame on the GPU and boxes to the network's input on the GPU: the twin of metro_edge.preprocess."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metro_edge.crop_rules import demo_part, demo_sizes
from metro_edge.cuda.arrays import MAX_PEOPLE, YUV_RULES, DeviceFrame, launches, pointer_of
from metro_edge.cuda.loading import KernelLoader
from metro_edge.errors import UserError
from metro_edge.preprocess import border_bgr, check_boxes, crop_spans, part_seen, span_affine, taps_per_axis
from metro_edge.spec import ModelSpec

BLOCK = (32, 8, 1)
ONE_PX = float(1 << 32)
NO_LIMIT = 1 << 30
FORMATS = ("bgr", "rgb", "grey", "nv12", "yuyv")  # in the kernels' numbering
OUTPUTS = {"float32": 0, "float16": 1, "int8": 2}

# The structures of kernels/preprocess.cu.
PERSON = np.dtype(
    [
        ("origin", "i8", 2),
        ("slope", "i4", (2, 2)),
        ("limits", "i4", (2, 2)),
        ("taps", "i2"),
        ("shift", "i2"),
        ("unused", "i4"),
    ]
)
BOX = np.dtype([("start", "f4", 2), ("step", "f4", 2), ("first", "i4", 2), ("taps", "i4"), ("unused", "i4")])
RESIZED = np.dtype([("axis", "i4", (2, 4))])
FRAME = np.dtype([("pitch", "u8", 2), ("size", "i4", 2), ("format", "i4"), ("yuv", "i4", 6), ("border", "i4", 3)])
TARGET = np.dtype([("size", "i4"), ("type", "i4"), ("gain", "f4", 3), ("offset", "f4", 3), ("inverse_scale", "f4")])


def affine_people(affines: ArrayLike, taps: ArrayLike = 1) -> NDArray[np.void]:
    """Return (N,) PERSON for crops given by maps, which may turn and shear.

    Args:
        affines: (N, 2, 3) from frame px (x, y, 1) to px of the crop's grid of taps * S samples a side, both counted
            from pixel centres, as cv2.warpAffine takes them.
        taps: samples per axis and output pixel, one number or (N,).

    Raises:
        UserError: for another shape, values that are not finite, or maps that cannot be inverted.
    """
    maps = np.asarray(affines, np.float64)
    if maps.ndim != 3 or maps.shape[1:] != (2, 3) or not np.isfinite(maps).all():
        raise UserError(f"affines must be finite and (N, 2, 3), got shape {maps.shape}")
    if (np.abs(np.linalg.det(maps[:, :, :2])) < 1e-12).any():
        raise UserError("affines must be invertible: a crop of no area was asked for")
    inverse: NDArray[np.float64] = np.asarray(np.linalg.inv(maps[:, :, :2]), np.float64)
    people = np.zeros(len(maps), PERSON)
    people["origin"] = np.rint(-np.einsum("nij,nj->ni", inverse, maps[:, :, 2]) * ONE_PX)
    _set_slopes(people, inverse)
    people["limits"][:] = (-NO_LIMIT, NO_LIMIT)
    people["taps"] = taps
    return people


def _set_slopes(people: NDArray[np.void], inverse: NDArray[np.float64]) -> None:
    """Set the slopes (N, 2, 2), px of the frame per sample, as 31 bits and a shift for each person."""
    largest = np.abs(inverse).reshape(len(inverse), 4).max(axis=1, initial=0.0)
    shift = np.maximum(np.ceil(np.log2(np.maximum(largest, 1e-9) * ONE_PX)) - 30, 0).astype(np.int64)
    people["slope"] = np.rint(inverse * ONE_PX / np.exp2(shift)[:, None, None])
    people["shift"] = shift


def box_people(boxes: NDArray[np.floating], spec: ModelSpec, frame_hw: tuple[int, int]) -> NDArray[np.void]:
    """Return (N,) BOX for checked boxes (N, 4) and the rules box_area and box_bilinear.

    The numbers are those that cv2.warpAffine makes of the same affine map: inverted in float64, used in float32.
    """
    spans = crop_spans(boxes, spec)
    people = np.zeros(len(spans), BOX)
    for person, span in zip(people, spans, strict=True):
        taps = taps_per_axis(float(span[0, 1] - span[0, 0]), spec)
        side = spec.image_size * taps
        columns, rows, affine = part_seen(frame_hw, span_affine(span[None], side)[0], side)
        inverse = 1.0 / (affine[0, 0] * affine[1, 1])
        step = affine[1, 1] * inverse, affine[0, 0] * inverse
        person["step"] = step
        person["start"] = -step[0] * affine[0, 2], -step[1] * affine[1, 2]
        person["first"] = columns.start, rows.start
        person["taps"] = taps
    return people


def evaluation_people(boxes: NDArray[np.floating], spec: ModelSpec) -> NDArray[np.void]:
    """Return (N,) PERSON for checked boxes (N, 4) and the rule metro_eval."""
    spans = crop_spans(boxes, spec)
    width = spans[..., 1] - spans[..., 0]
    people = np.zeros(len(spans), PERSON)
    people["limits"] = spans - (0, 1)
    people["taps"] = 1
    # Sample X of n is centred on low + (X + 1/2) width / n - 1/2.
    pixel = width / float(spec.image_size)
    people["origin"] = np.rint((spans[..., 0] + pixel / 2.0 - 0.5) * ONE_PX)
    _set_slopes(people, pixel[:, :, None] * np.eye(2))
    return people


def resized_people(boxes: NDArray[np.floating], spec: ModelSpec) -> NDArray[np.void]:
    """Return (N,) RESIZED for checked boxes (N, 4) and the rule metro_demo."""
    people = np.zeros(len(boxes), RESIZED)
    for person, box in zip(people, boxes, strict=True):
        columns, rows = demo_part(box)
        sizes = demo_sizes(columns, rows, spec.image_size)
        person["axis"] = [(low, high - low, *size) for (low, high), size in zip((columns, rows), sizes, strict=True)]
    return people


class Preprocess:
    """Crops people from frames on the GPU into the network's input.

        preprocess = Preprocess(spec, KernelLoader())
        preprocess(DeviceFrame(pointer, 1920, 1080, "nv12"), boxes, images, stream)

    Nothing is allocated and nothing is copied: what is known of the people goes with the launch, one for up to 64 of
    them. The levels are those of metro_edge.preprocess.network_input, see docs/cuda.md for the last bit.

    Args:
        spec: of the network.
        loader: of the current context.
        dtype: of the result: float32, float16, or int8 for an input quantised as round(value / scale).
        scale: of int8, in normalised units a level.

    Raises:
        UserError: for another dtype, a scale that is missing or not positive.
    """

    def __init__(
        self, spec: ModelSpec, loader: KernelLoader, dtype: str = "float32", scale: float | None = None
    ) -> None:
        if dtype not in OUTPUTS:
            raise UserError(f"the network's input may be {', '.join(OUTPUTS)}, got {dtype!r}")
        if (dtype == "int8") != (scale is not None) or (scale is not None and not 0 < scale < np.inf):
            raise UserError(f"int8, and only it, needs a positive scale: got {dtype} with scale {scale}")
        self.spec = spec
        self.dtype = np.dtype(dtype)
        self._loader = loader
        std = np.array(spec.std)
        self._target = np.zeros((), TARGET)
        self._target["size"], self._target["type"] = spec.image_size, OUTPUTS[dtype]
        self._target["gain"] = 1.0 / (255.0 * std)
        self._target["offset"] = -np.array(spec.mean) / std
        self._target["inverse_scale"] = 1.0 / (scale or 1.0)

    def __call__(self, frame: DeviceFrame, boxes: ArrayLike, images: Any, stream: Any = None) -> None:
        """Write the input of the network for each box.

        Args:
            frame: stays as it is, and must stay alive until the stream has passed.
            boxes: (N, 4) x, y, width, height in px, as metro_edge.preprocess.check_boxes takes them; none is fine.
            images: (N, 3, S, S) in device memory, of this object's dtype.
            stream: pycuda.driver.Stream; None is the default stream. The call does not wait for it.

        Raises:
            UserError: for boxes or an array that do not fit.
        """
        checked = check_boxes(boxes, (frame.height, frame.width))
        if self.spec.crop_rule == "metro_demo":
            self._launch("crop_resized", frame, resized_people(checked, self.spec), images, stream)
        elif self.spec.crop_rule == "metro_eval":
            self._launch("crop", frame, evaluation_people(checked, self.spec), images, stream)
        else:
            people = box_people(checked, self.spec, (frame.height, frame.width))
            self._launch("crop_boxes", frame, people, images, stream)

    def crop_affine(
        self, frame: DeviceFrame, affines: ArrayLike, images: Any, stream: Any = None, taps: ArrayLike = 1
    ) -> None:
        """Write crops given by maps instead of boxes, see `affine_people`; the rest as for a call."""
        self._launch("crop", frame, affine_people(affines, taps), images, stream)

    def _launch(self, kernel: str, frame: DeviceFrame, people: NDArray[np.void], images: Any, stream: Any) -> None:
        size = self.spec.image_size
        pointer = pointer_of("images", images, (len(people), 3, size, size), self.dtype)
        if not len(people):
            return
        function = self._loader.function("preprocess", kernel)
        blocks = tuple(-(-size // side) for side in BLOCK[:2])
        for first, last in launches(len(people)):
            padded = np.zeros(MAX_PEOPLE, people.dtype)
            padded[: last - first] = people[first:last]
            function(
                padded,
                self._frame(frame),
                self._target,
                np.uint64(frame.pointer),
                np.uint64(frame.uv_address),
                pointer + np.uint64(first * 3 * size * size * self.dtype.itemsize),
                block=BLOCK,
                grid=(*blocks, last - first),
                stream=stream,
            )

    def _frame(self, frame: DeviceFrame) -> NDArray[np.void]:
        record = np.zeros((), FRAME)
        record["pitch"] = frame.row_pitch, frame.uv_row_pitch
        record["size"] = frame.width, frame.height
        record["format"] = FORMATS.index(frame.format)
        record["yuv"] = YUV_RULES[frame.yuv]
        record["border"] = border_bgr(self.spec)
        return record
