"""The CPU twin of a bundle's graph: the same numbers, written the way CPU engines' kernels want them.

A bundle's graphs are what TensorRT takes: standard operators and, in `model.int8.onnx`, int8 activations with zero
point 0, quantised after the activation function. On the CPU the same network runs faster in other forms. Each
rewriting here is exact, up to the order in which a float sum is rounded, lives in a file of its own and is tested
alone. Weights, scales and structure stay, so one calibration and one file serve all engines, and what is measured of
the twin holds for the graph up to the rounding of kernels.
"""

from __future__ import annotations

from collections.abc import Callable

from metro_edge.backends.cpu_twin.clipping import quantise_before_clipping
from metro_edge.backends.cpu_twin.gather_sum import sum_by_coordinate, sum_long_vectors
from metro_edge.backends.cpu_twin.graph import Graph
from metro_edge.backends.cpu_twin.repeating import quantise_before_repeating
from metro_edge.backends.cpu_twin.zero_points import shift_zero_points

Rewriting = Callable[[Graph], int]

# What is done to a graph, in this order; each returns in how many places it did something.
INT8_REWRITINGS: tuple[Rewriting, ...] = (
    shift_zero_points,
    quantise_before_repeating,
    quantise_before_clipping,
    sum_long_vectors,
)
FLOAT_REWRITINGS: tuple[Rewriting, ...] = (sum_long_vectors,)
OPENVINO_REWRITINGS: tuple[Rewriting, ...] = (sum_by_coordinate,)


def rewrite(graph: bytes, rewritings: tuple[Rewriting, ...], name: str = "the network") -> bytes:
    """Return an ONNX graph after some rewritings; the bytes themselves where none found anything to do.

    Raises:
        BundleError: not an ONNX graph, or one that a rewriting refuses.
    """
    parsed = Graph(graph, name)
    return parsed.serialize() if sum([rewriting(parsed) for rewriting in rewritings]) else graph


def cpu_twin(graph: bytes) -> bytes:
    """Return the twin for ONNX Runtime of an INT8 ONNX graph that `python -m engines convert` made.

    Raises:
        BundleError: not an ONNX graph, or one whose activations are not quantised to int8 with zero point 0.
    """
    return rewrite(graph, INT8_REWRITINGS, "the int8 network")
