"""A mesh step, the weighted sum of K coarse vertices per fine one, with the K sums outermost instead of innermost.

As exported, K neighbours of three coordinates lie side by side, and engines multiply and add three numbers at a time.
With the neighbours outermost, all fine vertices are one long vector. The sums are the same in the same order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metro_edge.backends.cpu_twin.graph import Graph, attribute


class _Step(NamedTuple):
    nodes: tuple[Any, ...]
    source: str  # (N, C, D)
    target: str  # (N, V, D)
    indices: NDArray[Any]  # (V, K)
    weights: NDArray[Any]  # (V, K)
    depth: int  # D


def sum_long_vectors(graph: Graph) -> int:
    """Rewrite each mesh step over rows of three coordinates; returns how many there were."""
    return _rewrite(graph, by_coordinate=False)


def sum_by_coordinate(graph: Graph) -> int:
    """Rewrite each mesh step over one coordinate at a time; returns how many there were."""
    return _rewrite(graph, by_coordinate=True)


def _rewrite(graph: Graph, by_coordinate: bool) -> int:
    readers = graph.readers()
    steps = [step for node in graph.nodes if (step := _step_from(graph, readers, node)) is not None]
    for step in steps:
        nodes = _by_coordinate(graph, step) if by_coordinate else _by_row(graph, step)
        graph.replace(step.nodes, nodes)
    return len(steps)


def _step_from(graph: Graph, readers: dict[str, list[Any]], gather: Any) -> _Step | None:
    """Return the step that begins with a node: Gather -> Reshape (., V, K, D) -> Mul (V, K, 1) -> ReduceSum."""
    if gather.op_type != "Gather" or attribute(gather, "axis", 0) != 1:
        return None
    indices = graph.constant(gather.input[1])
    chain = [gather]
    for operator in ("Reshape", "Mul", "ReduceSum"):
        node = graph.only_reader(readers, chain[-1].output[0])
        if node is None or node.op_type != operator:
            return None
        chain.append(node)
    _, reshape, multiply, reduce = chain
    shape = graph.constant(reshape.input[1])
    factor = multiply.input[1] if multiply.input[0] == reshape.output[0] else multiply.input[0]
    weights = graph.constant(factor)
    axes = graph.constant(reduce.input[1]) if len(reduce.input) == 2 else None
    if indices is None or shape is None or weights is None or axes is None:
        return None
    if (
        indices.ndim != 1
        or len(shape) != 4
        or attribute(reduce, "keepdims", 1) != 0
        or list(axes.ravel()) not in ([2], [-2])
    ):
        return None
    fine, neighbours, depth = (int(size) for size in shape[1:])
    if fine * neighbours != indices.size or weights.shape[-3:] != (fine, neighbours, 1) or weights.size != indices.size:
        return None
    return _Step(
        tuple(chain),
        gather.input[0],
        reduce.output[0],
        indices.reshape(fine, neighbours),
        weights.reshape(fine, neighbours),
        depth,
    )


def _by_row(graph: Graph, step: _Step) -> list[Any]:
    fine, neighbours = step.indices.shape
    weights = np.repeat(step.weights.T, step.depth, axis=1)
    gathered, long, scaled, summed = (graph.new_name(f"{step.target}_{part}") for part in ("g", "l", "m", "s"))
    indices = graph.add_constant(f"{step.target}_rows", np.ascontiguousarray(step.indices.T).ravel())
    shape = graph.add_constant(f"{step.target}_long", np.array([-1, neighbours, fine * step.depth], np.int64))
    factor = graph.add_constant(f"{step.target}_weights", weights)
    axis = graph.add_constant(f"{step.target}_axis", np.array([1], np.int64))
    back = graph.add_constant(f"{step.target}_shape", np.array([-1, fine, step.depth], np.int64))
    return [
        graph.node("Gather", [step.source, indices], [gathered], axis=1),
        graph.node("Reshape", [gathered, shape], [long]),
        graph.node("Mul", [long, factor], [scaled]),
        graph.node("ReduceSum", [scaled, axis], [summed], keepdims=0),
        graph.node("Reshape", [summed, back], [step.target]),
    ]


def _by_coordinate(graph: Graph, step: _Step) -> list[Any]:
    """One Gather per neighbour, of one coordinate after the other; the products and sums fuse into few loops."""
    neighbours = step.indices.shape[1]
    turned = graph.new_name(f"{step.target}_turned")
    nodes = [graph.node("Transpose", [step.source], [turned], perm=[0, 2, 1])]
    total = ""
    for k in range(neighbours):
        gathered, scaled = graph.new_name(f"{step.target}_g{k}"), graph.new_name(f"{step.target}_m{k}")
        indices = graph.add_constant(f"{step.target}_rows{k}", np.ascontiguousarray(step.indices[:, k]))
        factor = graph.add_constant(f"{step.target}_weights{k}", np.ascontiguousarray(step.weights[:, k]))
        nodes.append(graph.node("Gather", [turned, indices], [gathered], axis=2))
        nodes.append(graph.node("Mul", [gathered, factor], [scaled]))
        if total:
            summed = graph.new_name(f"{step.target}_s{k}")
            nodes.append(graph.node("Add", [total, scaled], [summed]))
            total = summed
        else:
            total = scaled
    return [*nodes, graph.node("Transpose", [total], [step.target], perm=[0, 2, 1])]
