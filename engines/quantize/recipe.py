"""The whole way from an FP32 graph and images to the INT8 graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from engines.quantize.calibrate import calibrate
from engines.quantize.layers import default_layers, node_names
from engines.quantize.qdq import activations, insert_qdq
from engines.quantize.rounding import SAMPLES, round_on_data
from metro_edge.errors import UserError

METHOD = "mse"
NEAREST, DATA = "nearest", "data"
ROUNDINGS = (DATA, NEAREST)


def quantise(
    model: onnx.ModelProto,
    batches: Iterable[NDArray[np.float32]],
    method: str = METHOD,
    nodes: Sequence[str] | None = None,
    rounding: str = DATA,
) -> onnx.ModelProto:
    """Calibrate a simplified FP32 graph on batches of images (N, 3, S, S) and return its INT8 graph.

    Args:
        model: FP32 graph.
        batches: normalised images as the network takes them.
        method: how a tensor's range is chosen, see Magnitudes.threshold.
        nodes: names of the nodes to quantise; None chooses (`default_layers`).
        rounding: of weights: `nearest` level, or on `data`, see `round_on_data`.

    Raises:
        UserError: no image, values that are not finite, or an unknown rounding.
    """
    if rounding not in ROUNDINGS:
        raise UserError(f"unknown rounding of weights {rounding!r}; known: {', '.join(ROUNDINGS)}")
    chosen = node_names(default_layers(model)) if nodes is None else nodes
    kept: list[NDArray[np.float32]] = []
    magnitudes = calibrate(model, activations(model, chosen), _keeping(batches, kept))
    thresholds = {name: found.threshold(method) for name, found in magnitudes.items()}
    rounded = round_on_data(model, chosen, thresholds, kept) if rounding == DATA else None
    return insert_qdq(model, chosen, thresholds, rounded=rounded)


def _keeping(batches: Iterable[NDArray[np.float32]], kept: list[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Pass batches on and keep the first SAMPLES images of them."""
    for batch in batches:
        if (missing := SAMPLES - sum(len(one) for one in kept)) > 0:
            kept.append(batch[:missing])
        yield batch
