"""What the products of a graph read on real images: their inputs as rows, before and after quantisation.

A convolution or product is y = W x for rows x: the pixels under the kernel, or a token's features. Rounding W on data
needs the second moments of x as it is quantised, and correcting the bias the means of x before and after.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray

from engines.graph import constants
from engines.quantize.layers import attribute, weight_place
from engines.quantize.weights import FORMATS
from metro_edge.errors import UserError
from metro_edge.spec import INPUT_NAME

FloatArray = NDArray[np.float32]
_ROWS = 512  # of an image, for moments; neighbours say much the same


@dataclass
class Moments:
    """Sums over the rows that a product reads, per group of channels.

    Attributes:
        rows: how many were seen.
        plain: (G, K) sum of the rows.
        quantised: (G, K) sum of the quantised rows.
        second: (G, K, K) sum of x x^T of the quantised rows, None where it is not wanted.
    """

    rows: int
    plain: NDArray[np.float64]
    quantised: NDArray[np.float64]
    second: NDArray[np.float64] | None

    @property
    def shift(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the means (G, K) of the plain and of the quantised rows."""
        return self.plain / self.rows, self.quantised / self.rows


def moments(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    thresholds: Mapping[str, float],
    batches: Iterable[FloatArray],
    second: bool,
) -> dict[str, Moments]:
    """Run images through the FP32 graph and return the moments of what `nodes` read, by name.

    Args:
        model: FP32 graph.
        nodes: of it, with a constant weight.
        thresholds: per activation the magnitude of int8 level 127.
        batches: images (N, 3, S, S).
        second: take second moments too.

    Raises UserError when there is no image, or no threshold of an activation.
    """
    known = constants(model)
    if missing := [name for node in nodes if (name := _activation(node, known)) not in thresholds]:
        raise UserError(f"no threshold is known for {missing[0]!r} ({len(missing)} such tensors): calibrate them first")
    random = np.random.default_rng(0)
    found: dict[str, Moments] = {}
    for values in observed(model, [_activation(node, known) for node in nodes], batches):
        for node in nodes:
            name = _activation(node, known)
            plain = rows(node, values[name], known, random, _ROWS)
            quantised = at_levels(plain, thresholds[name])
            one = Moments(
                rows=plain.shape[1],
                plain=plain.sum(1, dtype=np.float64),
                quantised=quantised.sum(1, dtype=np.float64),
                second=(quantised.transpose(0, 2, 1) @ quantised).astype(np.float64) if second else None,
            )
            found[node.name] = _sum(found[node.name], one) if node.name in found else one
    if nodes and not found:
        raise UserError("there is no image to run the network on")
    return found


def _sum(first: Moments, other: Moments) -> Moments:
    if first.second is not None and other.second is not None:
        first.second += other.second
    return Moments(first.rows + other.rows, first.plain + other.plain, first.quantised + other.quantised, first.second)


def at_levels(values: FloatArray, threshold: float) -> FloatArray:
    """Return activations as int8 levels stand for them."""
    form = FORMATS["int8"]
    scale = form.scale(np.array(threshold))
    return form.levels(values / scale).astype(np.float32) * scale


def observed(
    model: onnx.ModelProto, tensors: Iterable[str], batches: Iterable[FloatArray]
) -> Iterator[dict[str, NDArray]]:
    """Run batches of images through a graph and yield the values of `tensors` by name."""
    import onnxruntime as ort

    names = list(dict.fromkeys(tensors))
    inner = [name for name in names if name != INPUT_NAME]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    del copy
    for images in batches:
        values = session.run(inner, {INPUT_NAME: images}) if inner else []
        yield {INPUT_NAME: images} | dict(zip(inner, values, strict=True))


def rows(
    node: onnx.NodeProto,
    values: FloatArray,
    known: Mapping[str, onnx.TensorProto],
    random: np.random.Generator,
    most: int,
) -> FloatArray:
    """Return the rows (G, R, K) that a product with a constant weight reads, by chance `most` per image where more.

    K is in the order of the weight's own axes: rows times the rows of `weight_matrix` is the product.
    """
    if node.op_type != "Conv":
        place = weight_place(node, known)
        assert place is not None
        flat = np.swapaxes(values, -1, -2) if place[0] == 0 or attribute(node, "transA", 0) else values
        flat = flat.reshape(1, -1, flat.shape[-1])
        return flat[:, _some(flat.shape[1], most * len(values), random)]
    kernel = tuple(known[node.input[1]].dims)[2:]
    size = len(kernel)
    pads, steps, dilations = (_integers(node, name) for name in ("pads", "strides", "dilations"))
    if pads and any(pads):
        sides = [(pads[i], pads[i + size]) for i in range(size)]
        values = np.pad(values, [(0, 0), (0, 0), *sides])
    spread = dilations or [1] * size
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, spread, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(values, reach, axis=tuple(range(2, 2 + size)))
    places = tuple(slice(None, None, step) for step in steps or [1] * size)
    taps = tuple(slice(None, None, d) for d in spread)
    chosen = (slice(None), slice(None), *places, *taps)
    windows = windows[chosen]
    windows = np.moveaxis(windows, 1, 1 + size)  # (N, *places, C, *kernel)
    count = prod(windows.shape[: 1 + size])
    picks = np.unravel_index(_some(count, most * len(values), random), windows.shape[: 1 + size])
    groups = groups_of(node)
    picked = windows[picks]  # (R, C, *kernel)
    return np.ascontiguousarray(picked.reshape(len(picked), groups, -1).swapaxes(0, 1))


def weight_matrix(weight: FloatArray, axis: int, groups: int) -> FloatArray:
    """Return a weight as (G, R, K): output channels of each group, and what they read in the order of `rows`."""
    moved = np.moveaxis(weight, axis, 0)
    return moved.reshape(groups, moved.shape[0] // groups, -1)


def weight_of_matrix(matrix: NDArray, shape: Sequence[int], axis: int) -> NDArray:
    """Undo weight_matrix for a weight of `shape`."""
    moved = [shape[axis], *(size for i, size in enumerate(shape) if i != axis)]
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), 0, axis))


def groups_of(node: onnx.NodeProto) -> int:
    """Return in how many groups the channels of a product are."""
    return attribute(node, "group", 1) if node.op_type == "Conv" else 1


def inputs_of(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> int:
    """Return how many inputs one output of a product with a constant weight has."""
    place = weight_place(node, known)
    assert place is not None
    dims = list(known[node.input[place[0]]].dims)
    return prod(dims) // dims[place[1]]


def _some(count: int, most: int, random: np.random.Generator) -> NDArray[np.int64]:
    return np.arange(count) if count <= most else np.sort(random.choice(count, most, replace=False))


def _activation(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> str:
    place = weight_place(node, known)
    assert place is not None
    return node.input[1 - place[0]]


def _integers(node: onnx.NodeProto, name: str) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == name), [])
