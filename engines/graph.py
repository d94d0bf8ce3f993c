"""Small questions about ONNX graphs, and the order of their nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the graph's constants by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def value_of(tensor: onnx.TensorProto) -> NDArray:
    """Return a constant as an array."""
    return numpy_helper.to_array(tensor)


def nodes_after(model: onnx.ModelProto, starts: Callable[[onnx.NodeProto], bool]) -> set[str]:
    """Return the names of all nodes that depend on a node for which `starts` holds, those nodes included."""
    reached: set[str] = set()
    names = set()
    for node in model.graph.node:  # in topological order
        if starts(node) or any(name in reached for name in node.input):
            reached.update(node.output)
            names.add(node.name)
    return names


def consumers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Return, per tensor, the nodes that read it."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def sort_nodes(model: onnx.ModelProto) -> None:
    """Bring nodes into topological order, in place, otherwise keeping the order they have.

    Raises ValueError when a node reads a tensor that nothing makes.
    """
    maker = {name: index for index, node in enumerate(model.graph.node) for name in node.output}
    ready = {"", *constants(model), *(value.name for value in model.graph.input)}
    order: list[int] = []
    done: set[int] = set()
    for start in range(len(model.graph.node)):
        stack = [start]
        while stack:
            index = stack[-1]
            if index in done:
                stack.pop()
                continue
            missing = [name for name in model.graph.node[index].input if name not in ready]
            if lost := [name for name in missing if name not in maker]:
                raise ValueError(f"node {model.graph.node[index].name} reads {lost[0]}, which nothing makes")
            if missing:
                stack += [maker[name] for name in missing]
                continue
            stack.pop()
            done.add(index)
            order.append(index)
            ready.update(model.graph.node[index].output)
    nodes = [onnx.NodeProto.FromString(model.graph.node[index].SerializeToString()) for index in order]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def drop_unused_constants(model: onnx.ModelProto) -> None:
    """Remove, in place, the constants that no node reads."""
    used = {name for node in model.graph.node for name in node.input}
    used |= {value.name for value in model.graph.output}
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in used:
            del model.graph.initializer[index]


def operator_counts(model: onnx.ModelProto, operators: Iterable[str]) -> dict[str, int]:
    """Return how often each of `operators` occurs."""
    kinds = [node.op_type for node in model.graph.node]
    return {name: kinds.count(name) for name in operators}
