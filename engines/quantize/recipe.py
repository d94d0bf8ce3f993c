"""The whole way from an FP32 graph and images to the INT8 graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from engines.quantize.calibrate import calibrate
from engines.quantize.layers import default_layers, node_names
from engines.quantize.qdq import activations, insert_qdq

METHOD = "mse"


def quantise(
    model: onnx.ModelProto,
    batches: Iterable[NDArray[np.float32]],
    method: str = METHOD,
    nodes: Sequence[str] | None = None,
) -> onnx.ModelProto:
    """Calibrate a simplified FP32 graph on batches of images (N, 3, S, S) and return its INT8 graph.

    Args:
        model: FP32 graph.
        batches: normalised images as the network takes them.
        method: how a tensor's range is chosen, see Magnitudes.threshold.
        nodes: names of the nodes to quantise; None chooses (`default_layers`).

    Raises:
        UserError: no image, or values that are not finite.
    """
    chosen = node_names(default_layers(model)) if nodes is None else nodes
    magnitudes = calibrate(model, activations(model, chosen), batches)
    return insert_qdq(model, chosen, {name: found.threshold(method) for name, found in magnitudes.items()})
