"""Finding people with a detector that the user brings as an ONNX file: its kind is told by its outputs.

| kind | outputs | input |
| --- | --- | --- |
| yolox | (1, A, 5 + C): x, y, w, h by cell (or decoded), objectness, classes | BGR 0..255, padded right and below |
| yolo | (1, 4 + C, A): x, y, w, h in input px, classes (YOLOv8 to 11) | RGB 0..1, padded in the middle |
| yolo-nms | (1, N, 6): x0, y0, x1, y1 in input px, score, class (YOLOv10, or exported with NMS) | the same |
| rtdetr | `labels`, `boxes`, `scores` (1, N[, 4]) and an input `orig_target_sizes` | RGB 0..1, stretched |
| detr | `logits` (1, N, C), `pred_boxes` (1, N, 4): x, y, w, h as shares of the picture | RGB 0..1, stretched |
| torchvision | `boxes` (N, 4): x0, y0, x1, y1 in input px, `labels` (N,), `scores` (N,) | RGB 0..1 |

A = (S / 8)^2 + (S / 16)^2 + (S / 32)^2 for an input of S px (sides may differ). Here C is the number of classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import PredictionError, UserError
from metro_edge.onnx_guard import check_onnx
from metro_edge.preprocess import Frame

KINDS = ("yolox", "yolo", "yolo-nms", "rtdetr", "detr", "torchvision")
STRIDES = (8, 16, 32)
DEFAULT_SIZE = 640  # of networks whose input may be of any size
GREY = 114  # around padded pictures, as these networks learnt it
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Detections:
    """People in a frame: `boxes` (N, 4) float64 x, y, width, height px, `scores` (N,) 0 to 1, best first."""

    boxes: Array
    scores: Array


class Detector(Protocol):
    """What finds people; `OnnxDetector` is one, and any other object with this call may take its place."""

    def __call__(self, frame: Frame) -> Detections:
        """Return the people in a frame (H, W, 3) uint8 BGR."""


class OnnxDetector:
    """A detector from an ONNX file, on ONNX Runtime's CPU.

    Attributes:
        kind: one of KINDS.
        size_wh: of the network's input in px.

    Raises:
        UserError: a file that is missing or not a network, or a kind that is not known.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        threshold: float = 0.4,
        nms_overlap: float = 0.6,
        person_class: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Open the network.

        Args:
            path: of the ONNX file.
            threshold: least score, 0 to 1.
            nms_overlap: of two boxes, from which on the lesser is left out, where the network does not do that itself.
            person_class: number of people among the classes; None is 0, and 1 of torchvision's, as in COCO.
            threads: CPU threads; None leaves it to ONNX Runtime.
        """
        if not (0 < threshold < 1 and 0 < nms_overlap < 1):
            raise UserError(f"threshold and nms_overlap must be between 0 and 1, got {threshold} and {nms_overlap}")
        self.path, self.threshold, self.nms_overlap = Path(path), threshold, nms_overlap
        self._session = _open(self.path, threads)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._image, self.size_wh = _image_input(inputs, self.path)
        self._sizes = next((one for one in inputs if one.name != self._image.name), None)
        self._names = [one.name for one in outputs]
        self.kind = kind_of([(one.name, one.shape) for one in outputs], self.size_wh, self._sizes is not None, path)
        self.person_class = (1 if self.kind == "torchvision" else 0) if person_class is None else person_class

    def __call__(self, frame: Frame) -> Detections:
        """Return the people in a frame (H, W, 3) uint8 BGR; raises PredictionError when the network fails."""
        image, scale_xy, shift_xy = self._prepared(frame)
        feeds: dict[str, Any] = {self._image.name: image}
        if self._sizes is not None:
            wanted = np.float32 if "float" in self._sizes.type else np.int64 if "64" in self._sizes.type else np.int32
            feeds[self._sizes.name] = np.array([[frame.shape[1], frame.shape[0]]], wanted)
        try:
            values = dict(zip(self._names, self._session.run(None, feeds), strict=True))
        except Exception as error:  # of ONNX Runtime's own kinds, which share no base of theirs
            raise PredictionError(f"the detector {self.path} failed: {str(error).splitlines()[0]}") from None
        corners, scores = READERS[self.kind](self, values, frame)
        kept = np.isfinite(corners).all(axis=1) & (scores >= self.threshold)
        corners, scores = corners[kept], scores[kept]
        # rtdetr gives the frame's own px, detr shares of it, which are scaled alike.
        if self.kind not in ("rtdetr", "detr"):
            corners = (corners - np.tile(shift_xy, 2)) / np.tile(scale_xy, 2)
        limits = np.array([frame.shape[1], frame.shape[0]] * 2, np.float64)
        corners = np.clip(corners, 0.0, limits)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        large = (boxes[:, 2:] >= 2.0).all(axis=1)
        return self._best(boxes[large], scores[large])

    def _best(self, boxes: Array, scores: Array) -> Detections:
        order = np.argsort(-scores, kind="stable")
        if self.kind in ("yolox", "yolo") and len(boxes):
            order = np.array(
                cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), self.threshold, self.nms_overlap)
            ).ravel()
        return Detections(boxes[order], scores[order])

    def _prepared(self, frame: Frame) -> tuple[NDArray[Any], Array, Array]:
        """Return the input (1, 3, H, W) or (3, H, W), and input px = frame px * scale + shift."""
        width, height = self.size_wh
        shift = np.zeros(2)
        if self.kind in ("rtdetr", "detr"):
            scale = np.array([width / frame.shape[1], height / frame.shape[0]])
            picture = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
        else:
            share = min(width / frame.shape[1], height / frame.shape[0])
            inner = (max(1, round(frame.shape[1] * share)), max(1, round(frame.shape[0] * share)))
            scale = np.array([inner[0] / frame.shape[1], inner[1] / frame.shape[0]])
            if self.kind in ("yolo", "yolo-nms"):  # these put the picture into the middle, the others into the corner
                shift = np.array([(width - inner[0]) // 2, (height - inner[1]) // 2], np.float64)
            picture = np.full((height, width, 3), GREY, np.uint8)
            x, y = int(shift[0]), int(shift[1])
            picture[y : y + inner[1], x : x + inner[0]] = cv2.resize(frame, inner, interpolation=cv2.INTER_LINEAR)
        if self.kind != "yolox":
            picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        values = np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32)
        if self.kind != "yolox":
            values /= 255.0
        if "float16" in self._image.type:
            values = values.astype(np.float16)
        return values if len(self._image.shape) == 3 else values[None], scale, shift


def kind_of(
    outputs: list[tuple[str, list[Any]]], size_wh: tuple[int, int], has_sizes: bool, path: str | os.PathLike[str]
) -> str:
    """Return the kind that outputs (name, shape) tell; raises UserError when none fits.

    Args:
        outputs: shapes hold numbers, and names or None for dimensions that are not fixed.
        size_wh: of the input in px.
        has_sizes: whether there is a second input, for the picture's size.
        path: of the file, for the error.
    """
    shapes = dict(outputs)
    if {"labels", "boxes", "scores"} <= shapes.keys():
        return "rtdetr" if has_sizes else "torchvision"
    if {"logits", "pred_boxes"} <= shapes.keys():
        return "detr"
    if len(outputs) == 1 and len(outputs[0][1]) == 3:
        _, rows, columns = outputs[0][1]
        cells = sum((size_wh[0] // stride) * (size_wh[1] // stride) for stride in STRIDES)
        if rows == cells and isinstance(columns, int) and columns > 5:
            return "yolox"
        if columns == cells and isinstance(rows, int) and rows > 4:
            return "yolo"
        if columns == 6 and rows != cells:
            return "yolo-nms"
    found = "; ".join(f"{name} {tuple(shape)}" for name, shape in outputs)
    raise UserError(
        f"{path} is a network of unknown outputs: {found}. Known are those of {', '.join(KINDS)}: see docs/live.md, or "
        "pass your own detector object"
    )


def _open(path: Path, threads: int | None) -> Any:
    import onnxruntime as ort

    try:
        graph = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no detector at {path}") from None
    except OSError as error:
        raise UserError(f"cannot read detector {path}: {error.strerror}") from None
    check_onnx(graph, str(path))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"{path} is not a network that ONNX Runtime runs: {str(error).splitlines()[0]}") from None


def _image_input(inputs: list[Any], path: Path) -> tuple[Any, tuple[int, int]]:
    for one in inputs:
        shape = one.shape
        if len(shape) in (3, 4) and shape[-3] in (3, "channels", None):
            height, width = (side if isinstance(side, int) else DEFAULT_SIZE for side in shape[-2:])
            return one, (width, height)
    found = "; ".join(f"{one.name} {tuple(one.shape)}" for one in inputs)
    raise UserError(f"{path} takes no picture (1, 3, H, W): its inputs are {found}")


def _corners(centres: Array) -> Array:
    return np.concatenate([centres[:, :2] - centres[:, 2:] / 2, centres[:, :2] + centres[:, 2:] / 2], axis=1)


def _read_yolox(detector: OnnxDetector, values: dict[str, Any], _frame: Frame) -> tuple[Array, Array]:
    rows = np.asarray(next(iter(values.values()))[0], np.float64)
    boxes = rows[:, :4].copy()
    width, height = detector.size_wh
    cells, strides = [], []
    for stride in STRIDES:
        x, y = np.meshgrid(np.arange(width // stride), np.arange(height // stride))
        cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
        strides.append(np.full((x.size, 1), stride))
    cell, stride_of = np.concatenate(cells), np.concatenate(strides)
    # Exported undecoded by default: places within cells and logarithms of sizes, far smaller than pixels.
    if np.abs(boxes[:, :2]).max(initial=0.0) < max(width, height) / 8 and boxes[:, 2:].max(initial=0.0) < 16.0:
        boxes[:, :2] = (boxes[:, :2] + cell) * stride_of
        boxes[:, 2:] = np.exp(np.minimum(boxes[:, 2:], 16.0)) * stride_of
    classes = rows[:, 5:]
    person = classes[:, detector.person_class]
    return _corners(boxes), np.where(person >= classes.max(axis=1), rows[:, 4] * person, 0.0)


def _read_yolo(detector: OnnxDetector, values: dict[str, Any], _frame: Frame) -> tuple[Array, Array]:
    rows = np.asarray(next(iter(values.values()))[0], np.float64).T
    person = rows[:, 4 + detector.person_class]
    return _corners(rows[:, :4]), np.where(person >= rows[:, 4:].max(axis=1), person, 0.0)


def _read_yolo_nms(detector: OnnxDetector, values: dict[str, Any], _frame: Frame) -> tuple[Array, Array]:
    rows = np.asarray(next(iter(values.values()))[0], np.float64)
    return rows[:, :4], np.where(rows[:, 5] == detector.person_class, rows[:, 4], 0.0)


def _read_labelled(detector: OnnxDetector, values: dict[str, Any], _frame: Frame) -> tuple[Array, Array]:
    boxes = np.asarray(values["boxes"], np.float64).reshape(-1, 4)
    labels, scores = np.asarray(values["labels"]).ravel(), np.asarray(values["scores"], np.float64).ravel()
    return boxes, np.where(labels == detector.person_class, scores, 0.0)


def _read_detr(detector: OnnxDetector, values: dict[str, Any], frame: Frame) -> tuple[Array, Array]:
    boxes = np.asarray(values["pred_boxes"][0], np.float64) * np.array([frame.shape[1], frame.shape[0]] * 2)
    logits = np.asarray(values["logits"][0], np.float64)
    scores = 1.0 / (1.0 + np.exp(-logits))
    person = scores[:, detector.person_class]
    return _corners(boxes), np.where(person >= scores.max(axis=1), person, 0.0)


READERS: dict[str, Callable[[OnnxDetector, dict[str, Any], Frame], tuple[Array, Array]]] = {
    "yolox": _read_yolox,
    "yolo": _read_yolo,
    "yolo-nms": _read_yolo_nms,
    "rtdetr": _read_labelled,
    "detr": _read_detr,
    "torchvision": _read_labelled,
}
