"""Where channels of activations can be scaled without changing what a graph computes, found by structure.

A stream is a set of activations that carry the same channels: what convolutions or products make, sums of it, and
what passes through operators that treat channels alike (Relu, pooling, resizing). Where every maker can multiply a
channel and every reader divide it, any positive scales are exact. ReLU6 and other bounded Clips stop a stream: their
bounds are one number for all channels. So do Gelu, normalisation's input and the graph's ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx

from engines.graph import constants, consumers
from engines.quantize.layers import attention_pairs, attribute, image_shapes, weight_place

_SAME_CHANNELS = ("Relu", "Identity")
_SPATIAL = ("MaxPool", "AveragePool", "GlobalAveragePool", "Resize")  # channels are axis 1
_LAST = -1
_HEADS = [0, 2, 1, 3]  # how attention's heads and tokens change places


@dataclass(frozen=True)
class Factor:
    """A constant that is scaled with a stream: input `place` of node `node`, its channels `start`.. along `axis`."""

    node: str
    place: int
    axis: int
    start: int = 0


@dataclass(frozen=True)
class Stream:
    """Activations with the same channels.

    Attributes:
        tensors: their names.
        channels: how many channels they have.
        axis: of the channels in them: 1, or -1 for tokens.
        makers: constants that channels are multiplied in.
        readers: constants that channels are divided in, weights of products of a stream's tensor.
    """

    tensors: tuple[str, ...]
    channels: int
    axis: int
    makers: tuple[Factor, ...]
    readers: tuple[Factor, ...]


@dataclass
class _Open:
    """A stream while it is being found."""

    tensors: set[str]
    axis: int | None = None
    fixed: bool = False
    makers: list[Factor] = field(default_factory=list)
    readers: list[Factor] = field(default_factory=list)
    added: list[tuple[str, int]] = field(default_factory=list)  # constants that are added: node and place


class _Finder:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.known, self.shapes = constants(model), image_shapes(model)
        self.of: dict[str, _Open] = {}
        for value in (*model.graph.input, *model.graph.output):
            self.stream(value.name).fixed = True
        for node in model.graph.node:
            self.visit(node)

    def stream(self, tensor: str) -> _Open:
        return self.of.setdefault(tensor, _Open({tensor}))

    def join(self, *tensors: str) -> _Open:
        """Make one stream of those that some tensors belong to."""
        first = self.stream(tensors[0])
        for tensor in tensors[1:]:
            other = self.stream(tensor)
            if other is first:
                continue
            self.set_axis(first, other.axis)
            first.fixed |= other.fixed
            first.tensors |= other.tensors
            first.makers += other.makers
            first.readers += other.readers
            first.added += other.added
            self.of.update(dict.fromkeys(other.tensors, first))
        return first

    @staticmethod
    def set_axis(stream: _Open, axis: int | None) -> None:
        if axis is not None and stream.axis not in (None, axis):
            stream.fixed = True  # channels in one tensor are something else in another
        stream.axis = axis if stream.axis is None else stream.axis

    def visit(self, node: onnx.NodeProto) -> None:
        active = [name for name in node.input if name and name not in self.known]
        place = weight_place(node, self.known)
        if not active:
            self.fix(node.output)  # what is made of constants is not scaled
        elif node.op_type == "Conv" and place is not None:
            self.convolution(node)
        elif node.op_type in ("MatMul", "Gemm") and place is not None and place[0] == 1 and self.plain(node, place[1]):
            axis = place[1]
            self.product(node, _LAST, Factor(node.name, 1, 1 - axis), Factor(node.name, 1, axis))
        elif node.op_type == "LayerNormalization" and attribute(node, "axis", -1) == -1:
            self.fix(active)
            stream = self.stream(node.output[0])
            self.set_axis(stream, _LAST)
            stream.makers += [Factor(node.name, index, 0) for index in (1, 2)[: len(node.input) - 1]]
            stream.fixed |= any(name not in self.known or len(self.known[name].dims) != 1 for name in node.input[1:])
        elif node.op_type in _SAME_CHANNELS:
            self.join(active[0], node.output[0])
        elif node.op_type in _SPATIAL and len(active) == 1 and len(node.output) == 1:
            self.set_axis(self.join(active[0], node.output[0]), 1)
        elif node.op_type == "Add" and self.same_shapes(active, node.output[0]):
            stream = self.join(*active, node.output[0])
            if len(active) == 1:
                stream.added.append((node.name, next(i for i, name in enumerate(node.input) if name in self.known)))
        else:
            self.fix((*active, *node.output))

    def fix(self, tensors: Iterable[str]) -> None:
        for name in tensors:
            self.stream(name).fixed = True

    def plain(self, node: onnx.NodeProto, axis: int) -> bool:
        """Say whether a product is one of rows with a matrix, and a Gemm adds nothing but a constant per column."""
        dims = self.known[node.input[1]].dims
        if len(dims) != 2 or attribute(node, "transA", 0):
            return False
        biases = [self.known.get(name) for name in node.input[2:] if name]
        return all(bias is not None and list(bias.dims) == [dims[axis]] for bias in biases)

    def same_shapes(self, active: list[str], output: str) -> bool:
        shape = self.shapes.get(output)
        return shape is not None and all(self.shapes.get(name) == shape for name in active)

    def convolution(self, node: onnx.NodeProto) -> None:
        dims = self.known[node.input[1]].dims
        groups = attribute(node, "group", 1)
        reader: Factor | None = Factor(node.name, 1, 1)
        if groups > 1:
            reader = Factor(node.name, 1, 0) if groups == dims[0] and dims[1] == 1 else None
        self.product(node, 1, reader, Factor(node.name, 1, 0))

    def product(self, node: onnx.NodeProto, axis: int, reader: Factor | None, maker: Factor) -> None:
        before, after = self.stream(node.input[0]), self.stream(node.output[0])
        for stream in (before, after):
            self.set_axis(stream, axis)
        if reader is None:
            before.fixed = True
        else:
            before.readers.append(reader)
        after.makers.append(maker)
        if len(node.input) > 2 and node.input[2]:
            after.makers.append(Factor(node.name, 2, 0))
            after.fixed |= node.input[2] not in self.known


def streams(model: onnx.ModelProto) -> tuple[Stream, ...]:
    """Return the streams of a graph that are made and read, in the order in which their first reader runs."""
    finder = _Finder(model)
    order = {node.name: index for index, node in enumerate(model.graph.node)}
    inputs = {node.name: list(node.input) for node in model.graph.node}
    found = [*_values(model)]
    for stream in {id(s): s for s in finder.of.values()}.values():
        if stream.fixed or not stream.makers or not stream.readers or stream.axis is None:
            continue
        sizes = {finder.shapes[name][stream.axis] for name in stream.tensors if name in finder.shapes}
        if len(sizes) != 1 or any(name not in finder.shapes for name in stream.tensors):
            continue
        channels = sizes.pop()
        rank = len(finder.shapes[next(iter(stream.tensors))])
        makers = list(stream.makers)
        for node, place in stream.added:
            dims = tuple(finder.known[inputs[node][place]].dims)
            axis = len(dims) - rank + (stream.axis % rank)
            if axis < 0 or dims[axis] != channels:
                break  # the same constant for all channels cannot be scaled per channel
            makers.append(Factor(node, place, axis))
        else:
            readers = tuple(sorted(stream.readers, key=lambda factor: order[factor.node]))
            found.append(Stream(tuple(sorted(stream.tensors)), channels, stream.axis, tuple(makers), readers))
    return tuple(sorted(found, key=lambda stream: order[stream.readers[0].node]))


def _values(model: onnx.ModelProto) -> list[Stream]:
    """Return the streams from the values of an attention to its output projection.

    Softmax's weights mix tokens and leave channels alone, so scales pass from the projection's rows to the columns of
    the values.
    """
    known, readers, shapes = constants(model), consumers(model), image_shapes(model)
    for output in model.graph.output:
        readers.setdefault(output.name, []).append(onnx.NodeProto())  # somebody outside of the graph
    makers = {name: node for node in model.graph.node for name in node.output}
    found = []
    for mix in attention_pairs(model).values():
        forward = _single_path(mix.output[0], readers)
        value = _value_product(mix, makers, readers, known, shapes)
        if forward is None or value is None or weight_place(forward, known) != (1, 1):
            continue
        product, thirds, biases = value
        channels = known[forward.input[1]].dims[0]
        width = known[product.input[1]].dims[1]
        start = width - channels if thirds else 0
        if width != (3 * channels if thirds else channels):
            continue
        if any(tuple(known[add.input[place]].dims) != (width,) for add, place in biases):
            continue
        scaled = [Factor(product.name, 1, 1, start), *(Factor(add.name, place, 0, start) for add, place in biases)]
        reader = Factor(forward.name, 1, 0)
        found.append(Stream((forward.input[0],), channels, _LAST, tuple(scaled), (reader,)))
    return found


def _single_path(tensor: str, readers: Mapping[str, list[onnx.NodeProto]]) -> onnx.NodeProto | None:
    """Follow the heads of an attention, joined again, to the one product that reads them."""
    order = None
    while len(after := readers.get(tensor, [])) == 1:
        node = after[0]
        if node.op_type == "MatMul":
            return node if order == _HEADS else None
        if node.op_type == "Transpose" and order is None:
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        elif node.op_type != "Reshape":
            return None
        tensor = node.output[0]
    return None


def _value_product(
    mix: onnx.NodeProto,
    makers: Mapping[str, onnx.NodeProto],
    readers: Mapping[str, list[onnx.NodeProto]],
    known: Mapping[str, onnx.TensorProto],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[onnx.NodeProto, bool, list[tuple[onnx.NodeProto, int]]] | None:
    """Return the product that makes an attention's values, whether they are its last third, and added biases."""
    tensor, thirds = mix.input[1], False
    order: list[int] | None = None
    biases: list[tuple[onnx.NodeProto, int]] = []
    while (node := makers.get(tensor)) is not None and len(readers[tensor]) == 1:
        if node.op_type == "MatMul":
            return (node, thirds, biases) if weight_place(node, known) == (1, 1) and order == _HEADS else None
        if node.op_type == "Transpose" and order is None:
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        elif node.op_type == "Split":
            rank = len(shapes.get(node.input[0], ()))
            axis = attribute(node, "axis", 0)
            # Channels begin at axis 2, until heads and tokens change places: a split further on takes thirds of heads.
            if len(node.output) != 3 or tensor != node.output[2] or axis not in (2, 2 - rank) or order is None:
                return None
            thirds = True
        elif node.op_type == "Add":
            place = next((i for i, name in enumerate(node.input) if name in known), None)
            if place is None:
                return None
            biases.append((node, place))
            tensor = node.input[1 - place]
            continue
        elif node.op_type != "Reshape":
            return None
        tensor = node.input[0]
    return None
