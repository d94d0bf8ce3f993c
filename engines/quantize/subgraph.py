"""Parts of a graph: where it can be cut with little to remember, and the graph between two cuts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod

import onnx

from engines.graph import constants
from engines.quantize.layers import image_shapes, node_macs


@dataclass(frozen=True)
class Border:
    """A place between two nodes.

    Attributes:
        index: how many nodes lie before it.
        tensors: what the nodes after it read of the nodes before it; `images` at the start.
        size: of these tensors for one image, in bytes.
        work: share of the multiply-adds that lies before it, 0 to 1.
    """

    index: int
    tensors: tuple[str, ...]
    size: int
    work: float


def borders(model: onnx.ModelProto, count: int = 32, limit: int = 16_000_000) -> tuple[Border, ...]:
    """Return up to `count` borders in order, spread evenly over the work, the narrowest of each stretch.

    Args:
        model: FP32 graph, nodes in topological order.
        count: at most this many; the first is always the start.
        limit: bytes for one image, beyond which a border is not worth its memory.
    """
    shapes = image_shapes(model)
    macs = [node_macs(node, shapes) for node in model.graph.node]
    total = max(sum(macs), 1)
    chosen: dict[int, Border] = {}
    done = 0
    for index, tensors in enumerate(_live(model)):
        size = sum(4 * prod(shapes.get(name, (limit,))) for name in tensors)
        border = Border(index, tensors, size, done / total)
        stretch = min(int(border.work * count), count - 1)
        if index == 0 or (size <= limit and (stretch not in chosen or size < chosen[stretch].size)):
            chosen[-1 if index == 0 else stretch] = border
        done += macs[index] if index < len(macs) else 0
    return tuple(sorted(chosen.values(), key=lambda border: border.index))


def part(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """Return the graph that makes `outputs` of `inputs`.

    Args:
        model: the whole graph, with the types of its tensors in value_info (`typed`), nodes in topological order.
        inputs: tensors that become inputs; those that are not needed are left out.
        outputs: tensors that become outputs.
    """
    known = constants(model)
    values = {value.name: value for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    wanted, nodes = set(outputs), []
    given = set(inputs)
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output) - given:
            nodes.append(node)
            wanted.update(name for name in node.input if name)
    nodes.reverse()
    read = {name for node in nodes for name in node.input}
    graph = onnx.helper.make_graph(
        nodes,
        "part",
        [values[name] for name in inputs if name in read],
        [values[name] for name in outputs],
        [known[name] for name in known if name in read],
    )
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with the inferred types of all tensors in value_info."""
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _live(model: onnx.ModelProto) -> list[tuple[str, ...]]:
    """Return, per place between nodes, the tensors that are read after it and made before it; constants left out."""
    known: Collection[str] = constants(model).keys()
    last: dict[str, int] = {}
    for index, node in enumerate(model.graph.node):
        for name in node.input:
            if name and name not in known:
                last[name] = index
    places = []
    alive = {value.name: None for value in model.graph.input if value.name in last}
    for index, node in enumerate(model.graph.node):
        places.append(tuple(alive))
        for name in node.output:
            if name in last:
                alive[name] = None
        for name in [name for name in alive if last[name] <= index]:
            del alive[name]
    return places
