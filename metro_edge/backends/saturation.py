"""Whether a CPU engine's integer products are right: on x86 without VNNI they may saturate.

Without VNNI, kernels add two products of uint8 and int8 in 16 bits, which clips sums beyond 32767 and costs an INT8
network many millimetres. It depends on the CPU, the engine and its version, so it is tried and not looked up.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from metro_edge.backends.cpu_twin.graph import Graph, empty_graph

WIDTH = 64  # of the product that is tried: whole vectors of every kernel
LARGEST = 127

Run = Callable[[bytes, NDArray[np.float32]], NDArray[np.float32]]


def saturates(run: Run, *, unsigned: bool) -> bool:
    """Whether an engine clips sums of integer products.

    Args:
        run: runs an ONNX graph x (1, 64) -> y (1, 64) and returns y.
        unsigned: try uint8 activations with zero point 128, else int8 with 0.
    """
    found = run(probe(unsigned), np.full((1, WIDTH), LARGEST, np.float32))
    return not np.allclose(found, WIDTH * LARGEST * LARGEST, rtol=1e-3)


def probe(unsigned: bool) -> bytes:
    """Return a graph of one quantised product, of activations and weights that are all as large as they can be."""
    graph: Graph = empty_graph("x", "y", (1, WIDTH))
    zero = np.array(128, np.uint8) if unsigned else np.array(0, np.int8)
    graph.add_constant("scale", np.array(1.0, np.float32))
    graph.add_constant("zero", zero)
    graph.add_constant("weight", np.full((WIDTH, WIDTH), LARGEST, np.int8))
    graph.add_constant("weight_scale", np.ones(WIDTH, np.float32))
    graph.add_constant("weight_zero", np.zeros(WIDTH, np.int8))
    graph.nodes = [
        graph.node("QuantizeLinear", ["x", "scale", "zero"], ["levels"]),
        graph.node("DequantizeLinear", ["levels", "scale", "zero"], ["values"]),
        graph.node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["weights"], axis=1),
        graph.node("MatMul", ["values", "weights"], ["y"]),
    ]
    return graph.serialize()
