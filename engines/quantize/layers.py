"""What of a graph can be quantised, found by structure: plain or folded, whatever the nodes are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import onnx

from engines.graph import constants, consumers, nodes_after
from metro_edge.errors import UserError

MIN_WIDTH = 128  # of a linear layer, below which INT8 saves nothing worth its error
FLOAT_CONVOLUTIONS = 5  # the first ones, by default: few channels carry the whole picture there
ROLES = ("stem", "convolution", "depthwise", "residual", "linear", "narrow", "direct", "attention")
# Operators that are not linear in their input: what lies before one does not reach an output linearly.
_NOT_LINEAR = (
    "LayerNormalization", "Softmax", "Conv", "Gelu", "Erf", "Tanh", "Sigmoid", "HardSigmoid", "HardSwish", "Mish",
    "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Softplus", "Softsign", "Clip", "Abs", "Exp", "Log", "Pow",
    "Sqrt",
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One thing whose precision can be chosen.

    Attributes:
        name: of its first node, for an attention what the names of its two products begin with; unique.
        role: one of ROLES.
            stem: convolution of the picture itself.
            convolution: any other, also the one that mixes grid positions into tokens.
            depthwise: convolution of each channel alone.
            residual: sum of two feature maps of the backbone, needed between INT8 convolutions.
            linear: product of tokens with a weight matrix.
            narrow: the same, less than MIN_WIDTH wide on one side.
            direct: product with a weight matrix from which linear operators alone lead to an output: the blocks'
                residuals (the template's coordinates pass through them) and output projections, coordinates,
                camera, upsampling.
            attention: both products of an attention, queries with keys and weights with values.
        nodes: names of the nodes whose inputs are quantised.
        macs: multiply-adds for one image.
        weight_shape: of its constant factor, () where it has none.
    """

    name: str
    role: str
    nodes: tuple[str, ...]
    macs: int
    weight_shape: tuple[int, ...]


def quantisable(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """Return what can be quantised in an FP32 graph, in the order in which it runs.

    Raises UserError for nodes without names or with names that are not unique, as another exporter may leave them.
    """
    check_names(model)
    known = constants(model)
    shapes = image_shapes(model)
    tokens = nodes_after(model, lambda node: node.op_type in ("MatMul", "Gemm"))
    direct = linear_to_output(model)
    pairs = attention_pairs(model)
    seconds = {second.name for second in pairs.values()}
    found = []
    for node in model.graph.node:
        if node.name in seconds:
            continue
        role = _role(node, model, known, tokens, direct)
        if role is None:
            continue
        nodes = [node, pairs[node.name]] if node.name in pairs else [node]
        place = weight_place(node, known)
        found.append(
            Layer(
                name=node.name if len(nodes) == 1 else _common(nodes),
                role=role,
                nodes=tuple(n.name for n in nodes),
                macs=sum(node_macs(n, shapes) for n in nodes),
                weight_shape=() if place is None else tuple(known[node.input[place[0]]].dims),
            )
        )
    return tuple(found)


def default_layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """Return the layers that INT8 takes unless somebody chooses: docs/quantisation.md has what each role costs."""
    layers = quantisable(model)
    convolutions = [layer for layer in layers if layer.role in ("stem", "convolution", "depthwise")]
    early = {layer.name for layer in convolutions[:FLOAT_CONVOLUTIONS]}
    roles = ("convolution", "depthwise", "residual", "linear")
    return tuple(layer for layer in layers if layer.role in roles and layer.name not in early)


def node_names(layers: Iterable[Layer]) -> tuple[str, ...]:
    """Return the names of all nodes of some layers."""
    return tuple(name for layer in layers for name in layer.nodes)


def _role(
    node: onnx.NodeProto,
    model: onnx.ModelProto,
    known: dict[str, onnx.TensorProto],
    tokens: set[str],
    direct: set[str],
) -> str | None:
    """Return the role of a node, None for those that are not quantised."""
    if node.op_type == "Conv" and node.input[1] in known:
        if node.input[0] in {value.name for value in model.graph.input}:
            return "stem"
        filters, inputs = known[node.input[1]].dims[:2]
        return "depthwise" if inputs == 1 and filters > 1 and attribute(node, "group", 1) > 1 else "convolution"
    if node.op_type == "Add" and node.name not in tokens and not known.keys() & set(node.input):
        return "residual"
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    place = weight_place(node, known)
    if place is None:
        return "attention" if node.op_type == "MatMul" and not known.keys() & set(node.input) else None
    if node.name in direct:
        return "direct"
    return "narrow" if min(known[node.input[place[0]]].dims) < MIN_WIDTH else "linear"


def weight_place(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> tuple[int, int] | None:
    """Return which input of a node is its constant factor, and the axis of output channels in it; None without one."""
    if node.op_type == "Conv":
        return (1, 0) if node.input[1] in known else None
    if node.op_type == "Gemm":
        return (1, 0 if attribute(node, "transB", 0) else 1) if node.input[1] in known else None
    if node.op_type == "MatMul":
        for place, from_end in ((1, 1), (0, 2)):
            if node.input[place] in known and len(known[node.input[place]].dims) >= 2:
                return place, len(known[node.input[place]].dims) - from_end
    return None


def linear_to_output(model: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes from which some output is reached through linear operators alone."""
    wanted = {value.name for value in model.graph.output}
    names = set()
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output) and node.op_type not in _NOT_LINEAR:
            names.add(node.name)
            wanted.update(node.input)
    return names


def attention_pairs(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return, per name of a product of queries and keys, the product of its softmax with the values."""
    known, readers = constants(model), consumers(model)
    pairs = {}
    for node in model.graph.node:
        if node.op_type != "MatMul" or weight_place(node, known) is not None:
            continue
        current = node
        while len(after := readers.get(current.output[0], [])) == 1:
            softmax, current = current.op_type == "Softmax", after[0]
            if current.op_type == "MatMul":
                if softmax and weight_place(current, known) is None:
                    pairs[node.name] = current
                break
            if current.op_type not in ("Mul", "Div", "Add", "Cast", "Softmax"):
                break
    return pairs


def _common(nodes: list[onnx.NodeProto]) -> str:
    """Return `x` for nodes called `x.scores` and `x.mix`, else the first one's name."""
    stems = {node.name.rpartition(".")[0] for node in nodes}
    return stems.pop() if len(stems) == 1 and "" not in stems else nodes[0].name


def node_macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the multiply-adds of a convolution or product for one image, 0 for other nodes or unknown shapes."""
    if node.op_type not in ("Conv", "MatMul", "Gemm") or any(n not in shapes for n in (*node.input[:2], *node.output)):
        return 0
    output = prod(shapes[node.output[0]])
    if node.op_type == "Conv":
        return output * prod(shapes[node.input[1]][1:])
    depth = (
        shapes[node.input[0]][-1]
        if node.op_type == "MatMul"
        else shapes[node.input[0]][-1 - attribute(node, "transA", 0)]
    )
    return output * depth


def image_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors for a batch of one image, where they can be inferred; constants too."""
    one = onnx.ModelProto()
    one.CopyFrom(model)
    for value in (*one.graph.input, *one.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value:
            dims[0].dim_value = 1
    del one.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(one, data_prop=True).graph
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = tuple(dim.dim_value for dim in dims)
    return found


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return a node's attribute that is one whole number."""
    return next((a.i for a in node.attribute if a.name == name), default)


def check_names(model: onnx.ModelProto) -> None:
    """Raise UserError unless every node has a name of its own, by which it can be chosen."""
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in seen:
            what = f"two nodes called {node.name!r}" if node.name else f"a {node.op_type} without a name"
            raise UserError(f"the graph has {what}; a graph that `python -m engines convert` made was expected")
        seen.add(node.name)
