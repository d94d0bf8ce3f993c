"""Clip or Relu before QuantizeLinear as a Clip of the quantised numbers: quantising is monotone, so nothing changes.

ONNX Runtime makes a convolution an integer one only where its result is quantised at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.backends.cpu_twin.graph import Graph


def quantise_before_clipping(graph: Graph) -> int:
    """Rewrite x -> Clip or Relu -> Q as x -> Q -> Clip, wherever only Q reads the clipped values.

    Returns how many there were. The Clip's bounds get the type of Q's zero point.
    """
    readers, count = graph.readers(), 0
    for clip in [node for node in graph.nodes if node.op_type in ("Clip", "Relu") and not node.domain]:
        quantiser = graph.only_reader(readers, clip.output[0])
        bounds = _bounds(graph, clip)
        if quantiser is None or quantiser.op_type != "QuantizeLinear" or bounds is None or len(quantiser.input) != 3:
            continue
        scale, zero = graph.constant(quantiser.input[1]), graph.constant(quantiser.input[2])
        if scale is None or zero is None or scale.shape or zero.shape:
            continue
        target = quantiser.output[0]
        limits = [
            graph.add_constant(f"{target}_{side}", _level(bound, scale, zero))
            for side, bound in zip(("low", "high"), bounds, strict=True)
        ]
        middle = graph.new_name(f"{target}_unclipped")
        first = graph.node("QuantizeLinear", [clip.input[0], *quantiser.input[1:]], [middle])
        graph.replace([clip, quantiser], [first, graph.node("Clip", [middle, *limits], [target])])
        count += 1
    return count


def _bounds(graph: Graph, node: Any) -> tuple[float, float] | None:
    """Return what Clip or Relu clips to, None where it is not constant."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    limits = [-np.inf, np.inf]
    for place, name in enumerate(node.input[1:3]):
        if name:
            value = graph.scalar(name)
            if value is None:
                return None
            limits[place] = value
    return limits[0], limits[1]


def _level(bound: float, scale: NDArray[Any], zero: NDArray[Any]) -> NDArray[Any]:
    """Return what a bound is quantised to."""
    with np.errstate(over="ignore"):
        level = np.rint(np.float32(bound) / np.float32(scale)) + np.float32(zero)
    info = np.iinfo(zero.dtype)
    return np.array(np.clip(level, info.min, info.max), zero.dtype)
