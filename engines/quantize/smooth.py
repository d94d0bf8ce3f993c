"""Outliers of activations moved into weights, exactly: channels are scaled where a graph lets them be (`streams`).

A channel j of an activation is divided by s_j = max|X_j|^a / max|W_j|^(1 - a), and what reads it multiplied by s_j
(Xiao et al., SmoothQuant, ICML 2023, equations 3 and 4; with a = 1/2 on pairs of convolutions what Nagel et al., ICCV
2019, call cross-layer equalisation, here by the maxima of activations on images in place of weights'). The exponent a
is searched for each stream by the error of its quantised products, and a stream that gains little stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from tqdm import tqdm

from engines.graph import constants, drop_unused_constants, value_of
from engines.quantize.calibrate import Magnitudes, channel_maxima
from engines.quantize.layers import weight_place
from engines.quantize.products import at_levels, groups_of, inputs_of, observed, rows, weight_matrix
from engines.quantize.streams import Factor, Stream, streams
from engines.quantize.weights import along, quantised, weight_scale
from metro_edge.errors import UserError

SAMPLES = 32  # images whose rows are kept
EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
HELPS = 0.9  # of a stream's squared error, at most which scaling has to leave
_ROWS = 32  # of an image, per reader
_LARGEST = 64.0  # of a scale, and of its inverse
_MOST_VALUES = 1 << 28  # float32 rows held at once, 1 GiB


@dataclass(frozen=True)
class Smoothed:
    """What was found for one stream.

    Attributes:
        readers: names of the products that read it.
        exponent: a, None where the stream stays as it was.
        error: mean squared error of the quantised products as a share of their mean square, before.
        smoothed_error: the same with the best exponent.
    """

    readers: tuple[str, ...]
    exponent: float | None
    error: float
    smoothed_error: float


def smooth(
    model: onnx.ModelProto, batches: Iterable[NDArray[np.float32]], report: list[Smoothed] | None = None
) -> onnx.ModelProto:
    """Return a graph that computes the same (1e-5 relative in FP32) and loses less when it is quantised.

    Args:
        model: FP32 graph.
        batches: images (N, 3, S, S); the first SAMPLES are used.
        report: takes what was found for each stream.

    Raises UserError when there is no image.
    """
    images = first_images(batches, SAMPLES)
    if not images:
        raise UserError("there is no image to smooth on")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = {node.name: node for node in model.graph.node}
    known = constants(model)
    found = streams(model)
    with tqdm(total=len(found), desc="smooth", leave=False) as bar:
        for part in _parts(found, model):
            kept, maxima = _rows_of(model, part, images)
            for stream in part:
                largest = maxima[stream.tensors]
                smoothed, scale = _best(stream, [nodes[f.node] for f in stream.readers], known, kept, largest)
                if report is not None:
                    report.append(smoothed)
                if smoothed.exponent is not None:
                    scale_stream(result, stream, scale)
                bar.update()
    drop_unused_constants(result)
    onnx.checker.check_model(result, full_check=True)
    return result


def scale_stream(model: onnx.ModelProto, stream: Stream, scale: NDArray[np.floating]) -> None:
    """Divide the channels of a stream by `scale` (C,) and multiply its readers' weights, in place."""
    nodes = {node.name: node for node in model.graph.node}
    known = constants(model)
    for factors, by in ((stream.makers, 1.0 / scale), (stream.readers, scale)):
        for factor in factors:
            node = nodes[factor.node]
            old = known[node.input[factor.place]]
            values = value_of(old).astype(np.float64)
            part = [slice(None)] * values.ndim
            part[factor.axis] = slice(factor.start, factor.start + len(scale))
            values[tuple(part)] *= along(np.asarray(by, np.float64), factor.axis, values.ndim)
            # Another node may read the same constant, so each factor gets one of its own.
            name = _fresh(f"{factor.node}.smoothed_{factor.place}", known)
            tensor = numpy_helper.from_array(values.astype(np.float32), name)
            model.graph.initializer.append(tensor)
            known[name] = model.graph.initializer[-1]
            node.input[factor.place] = name


def first_images(batches: Iterable[NDArray[np.float32]], count: int) -> list[NDArray[np.float32]]:
    """Return the first `count` images of some batches, in batches; reads no further."""
    found: list[NDArray[np.float32]] = []
    for batch in batches:
        found.append(batch[: count - sum(len(b) for b in found)])
        if sum(len(b) for b in found) >= count:
            break
    return found


def _best(
    stream: Stream,
    readers: Sequence[onnx.NodeProto],
    known: dict[str, onnx.TensorProto],
    kept: dict[str, NDArray[np.float32]],
    largest: NDArray[np.float32],
) -> tuple[Smoothed, NDArray[np.float64]]:
    """Return what scaling a stream does to its readers' products, and the best scales."""
    products = [
        _Product(factor, node, known, kept[node.name]) for factor, node in zip(stream.readers, readers, strict=True)
    ]
    weights = np.max([product.largest_weights() for product in products], axis=0)
    before = float(np.mean([product.error(np.ones(stream.channels)) for product in products]))
    best, exponent, scales = before, None, np.ones(stream.channels)
    for a in EXPONENTS:
        scale = scales_of(largest, weights, a)
        error = float(np.mean([product.error(scale) for product in products]))
        if error < best:
            best, exponent, scales = error, a, scale
    names = tuple(node.name for node in readers)
    if best > HELPS * before:
        return Smoothed(names, None, before, best), np.ones(stream.channels)
    return Smoothed(names, exponent, before, best), scales


def scales_of(activations: NDArray[np.floating], weights: NDArray[np.floating], exponent: float) -> NDArray[np.float64]:
    """Return what each channel is divided by, 1 on geometric average; channels that say nothing keep 1.

    Args:
        activations: (C,) largest magnitude of each channel, as it is read.
        weights: (C,) largest magnitude of the weights that read it.
        exponent: a, from 0 (weights become even) to 1 (activations do).
    """
    live = (activations > 0) & (weights > 0)
    scale = np.ones(len(activations))
    scale[live] = activations[live].astype(np.float64) ** exponent / weights[live].astype(np.float64) ** (1 - exponent)
    if live.any():
        scale[live] /= np.exp(np.log(scale[live]).mean())
    return np.clip(scale, 1 / _LARGEST, _LARGEST)


class _Product:
    """A product that reads a stream, with some of the rows that it reads."""

    def __init__(
        self, factor: Factor, node: onnx.NodeProto, known: dict[str, onnx.TensorProto], kept: NDArray[np.float32]
    ) -> None:
        place = weight_place(node, known)
        assert place is not None
        self.weight, self.axis = value_of(known[node.input[place[0]]]), place[1]
        self.input_axis = factor.axis
        self.groups = groups_of(node)
        self.kept = kept
        self.exact = self._times(kept, self.weight)
        self.power = float((self.exact.astype(np.float64) ** 2).mean())

    def _times(self, values: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
        return values @ weight_matrix(weight, self.axis, self.groups).swapaxes(1, 2)

    def largest_weights(self) -> NDArray[np.float32]:
        """Return the largest magnitude (C,) of the weights that read each channel."""
        others = tuple(i for i in range(self.weight.ndim) if i != self.input_axis)
        return np.abs(self.weight).max(axis=others)

    def error(self, scale: NDArray[np.float64]) -> float:
        """Return the quantised product's mean squared error as a share of its mean square."""
        weight = (self.weight * along(scale, self.input_axis, self.weight.ndim)).astype(np.float32)
        groups, _, inputs = self.kept.shape
        taps = np.repeat(scale, inputs * groups // len(scale)).reshape(groups, 1, inputs)
        values = (self.kept / taps).astype(np.float32)
        seen = Magnitudes()
        seen.add(values)
        step = weight_scale(weight, self.axis, "int8")
        stored = quantised(weight, step, self.axis, "int8") * along(step, self.axis, weight.ndim)
        found = self._times(at_levels(values, seen.threshold("mse")), stored.astype(np.float32))
        return float(((found - self.exact).astype(np.float64) ** 2).mean()) / self.power if self.power else 0.0


def _rows_of(
    model: onnx.ModelProto, part: Sequence[Stream], images: Sequence[NDArray[np.float32]]
) -> tuple[dict[str, NDArray[np.float32]], dict[tuple[str, ...], NDArray[np.float32]]]:
    """Return rows that the readers of some streams read, by node, and the largest magnitude of each channel there."""
    known = constants(model)
    readers = {factor.node for stream in part for factor in stream.readers}
    nodes = [node for node in model.graph.node if node.name in readers]
    tensors = {node.input[0] for node in nodes}  # not all of a stream's: what is quantised comes behind the Relu
    random = np.random.default_rng(0)
    kept: dict[str, list[NDArray[np.float32]]] = {node.name: [] for node in nodes}
    maxima: dict[tuple[str, ...], NDArray[np.float32]] = {}
    for values in observed(model, tensors, images):
        for node in nodes:
            kept[node.name].append(rows(node, values[node.input[0]], known, random, _ROWS))
        for stream in part:
            seen = [channel_maxima(values[name], stream.axis) for name in stream.tensors if name in tensors]
            maxima[stream.tensors] = np.max([*seen, maxima.get(stream.tensors, seen[0])], axis=0)
    return {name: np.concatenate(found, axis=1) for name, found in kept.items()}, maxima


def _parts(found: Sequence[Stream], model: onnx.ModelProto) -> Iterator[list[Stream]]:
    """Divide streams so that the rows of a part's readers fit into memory."""
    nodes, known = {node.name: node for node in model.graph.node}, constants(model)
    part: list[Stream] = []
    held = 0
    for stream in found:
        readers = [nodes[factor.node] for factor in stream.readers]
        size = SAMPLES * _ROWS * sum(groups_of(node) * inputs_of(node, known) for node in readers)
        if part and held + size > _MOST_VALUES:
            yield part
            part, held = [], 0
        part.append(stream)
        held += size
    if part:
        yield part


def _fresh(name: str, known: dict[str, onnx.TensorProto]) -> str:
    """Return a name that no constant has: a weight may be scaled by its input's stream and by its output's."""
    while name in known:
        name += "_"
    return name
