"""int8 with zero point 0 as uint8 with zero point 128 and the same scale: the same numbers.

ONNX Runtime's fast x86 kernels multiply uint8 activations with int8 weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from metro_edge.backends.cpu_twin.graph import Graph
from metro_edge.errors import BundleError

SHIFT = 128


def shift_zero_points(graph: Graph) -> int:
    """Give all activations uint8; returns how many quantisations there are.

    Raises:
        BundleError: an activation that is not quantised to int8 with zero point 0, or none that is quantised at all.
    """
    quantisers = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    if not quantisers:
        raise BundleError(f"{graph.name} quantises nothing: it has no QuantizeLinear")
    for name in dict.fromkeys(_zero_point_name(graph, node) for node in quantisers):
        value = graph.constant(name)
        if value is None or value.dtype != np.int8 or value.shape or value != 0:
            raise BundleError(f"zero point {name!r} of {graph.name} must be a single int8 0")
        graph.replace_constant(name, np.array(SHIFT, np.uint8))
    return len(quantisers)


def _zero_point_name(graph: Graph, node: Any) -> str:
    inputs = node.input
    if len(inputs) != 3:
        raise BundleError(f"{graph.name} quantises {inputs[0]!r} without a zero point")
    return str(inputs[2])
