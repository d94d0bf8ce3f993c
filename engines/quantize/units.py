"""The graph as units whose time can be known apart: each layer with what is fused to it, and the tensors between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx

from engines.graph import constants, consumers
from engines.quantize.layers import Layer, image_shapes, weight_place

# What engines run inside the kernel of the operator before it.
TAIL = ("Clip", "Relu", "Gelu", "Sigmoid", "HardSwish", "Add", "Mul")


@dataclass(frozen=True)
class Unit:
    """A layer, the operators inside it (of an attention: scaling, softmax) and those behind it that are fused.

    Attributes:
        layer: its name.
        role: see Layer.
        macs: multiply-adds for one image.
        inputs: activations that the unit reads, those that the layer's own nodes read first.
        quantised: which of `inputs` are quantised when the layer is.
        output: what it makes.
        nodes: names, in order.
        readers: layers that read the output; None among them stands for any other node, or an output of the graph.
        depth, width: how many inputs one output of the product has, and how many outputs; 0 without weights.
        weights: how many weights it has.
    """

    layer: str
    role: str
    macs: int
    inputs: tuple[str, ...]
    quantised: tuple[str, ...]
    output: str
    nodes: tuple[str, ...]
    readers: tuple[str | None, ...]
    depth: int
    width: int
    weights: int


@dataclass(frozen=True)
class Plan:
    """All units of a graph.

    Attributes:
        units: in the order in which they run.
        sizes: number of elements for one image, per activation, where it is known.
        readers: per activation that layers quantise, those layers.
        rest: names of the nodes that belong to no unit.
    """

    units: tuple[Unit, ...]
    sizes: Mapping[str, int]
    readers: Mapping[str, tuple[str, ...]]
    rest: tuple[str, ...]


def plan(model: onnx.ModelProto, layers: Sequence[Layer]) -> Plan:
    """Divide an FP32 graph into units."""
    known = constants(model)
    after = consumers(model)
    nodes = {node.name: node for node in model.graph.node}
    order = {node.name: index for index, node in enumerate(model.graph.node)}
    owner = {name: layer.name for layer in layers for name in layer.nodes}
    outputs = {value.name for value in model.graph.output}
    taken: set[str] = set()
    units = []
    for layer in layers:
        inside = _inside(layer, nodes, after)
        last = nodes[max(inside, key=order.__getitem__)]
        while (following := _tail(last, after, outputs, known)) is not None:
            last = following
            inside.append(last.name)
        taken.update(inside)
        units.append(_unit(layer, sorted(inside, key=order.__getitem__), nodes, after, owner, outputs, known))
    readers: dict[str, list[str]] = {}
    for unit in units:
        for name in unit.quantised:
            readers.setdefault(name, []).append(unit.layer)
    sizes = {name: prod(shape) for name, shape in image_shapes(model).items() if name not in known}
    rest = tuple(name for name in nodes if name not in taken)
    return Plan(tuple(units), sizes, {name: tuple(found) for name, found in readers.items()}, rest)


def _inside(layer: Layer, nodes: Mapping[str, onnx.NodeProto], after: Mapping[str, list[onnx.NodeProto]]) -> list[str]:
    """Return the layer's nodes and, of an attention, those on the way from its first to its last."""
    found = list(layer.nodes)
    current, last = nodes[layer.nodes[0]], layer.nodes[-1]
    while current.name != last and len(following := after.get(current.output[0], [])) == 1:
        current = following[0]
        if current.name not in found:
            found.append(current.name)
    return found


def _tail(
    node: onnx.NodeProto,
    after: Mapping[str, list[onnx.NodeProto]],
    outputs: set[str],
    known: Mapping[str, onnx.TensorProto],
) -> onnx.NodeProto | None:
    """Return the node behind one if it is fused to it: the only reader, of constants besides; so no layer's own."""
    readers = after.get(node.output[0], [])
    if len(readers) != 1 or node.output[0] in outputs or readers[0].op_type not in TAIL:
        return None
    others = [name for name in readers[0].input if name and name != node.output[0]]
    return readers[0] if all(name in known for name in others) else None


def _unit(
    layer: Layer,
    inside: Sequence[str],
    nodes: Mapping[str, onnx.NodeProto],
    after: Mapping[str, list[onnx.NodeProto]],
    owner: Mapping[str, str],
    outputs: set[str],
    known: Mapping[str, onnx.TensorProto],
) -> Unit:
    made = {name for node in inside for name in nodes[node].output}
    read = [name for node in (*layer.nodes, *inside) for name in nodes[node].input if name and name not in known]
    quantised = [name for node in layer.nodes for name in nodes[node].input if name and name not in known]
    output = nodes[inside[-1]].output[0]
    readers: list[str | None] = [owner.get(node.name) for node in after.get(output, [])]
    shape = layer.weight_shape
    place = weight_place(nodes[layer.nodes[0]], known)
    width = 0 if place is None else shape[place[1]]
    return Unit(
        layer=layer.name,
        role=layer.role,
        macs=layer.macs,
        inputs=tuple(name for name in dict.fromkeys(read) if name not in made),
        quantised=tuple(name for name in dict.fromkeys(quantised) if name not in made),
        output=output,
        nodes=tuple(inside),
        readers=tuple(dict.fromkeys(readers + [None] * (output in outputs))),
        depth=prod(shape) // width if width else 0,
        width=width,
        weights=prod(shape) if shape else 0,
    )
