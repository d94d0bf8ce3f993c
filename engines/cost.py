"""What the nodes of an ONNX graph cost for one image: multiply-adds, and bytes that come and go.

Multiply-adds are those of convolutions and matrix products, one per value of a batch norm, and one per value of an
elementwise product. Additions alone, normalisation, softmax and activations count as none; `engines.fold.trace` counts
PyTorch networks by the same rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import onnx
from onnx import helper

from metro_edge.errors import UserError

_SMALL = 4096  # elements; smaller constants may say shapes and axes, larger ones need not be copied to tell shapes
Tensors = dict[str, tuple[tuple[int, ...], int]]  # name -> shape, ONNX element type


@dataclass(frozen=True)
class NodeCost:
    """What one node costs for one image.

    Attributes:
        name, op_type: of the node.
        macs: multiply-adds.
        weight_bytes: of its constants; of a quantised one, of the integers behind its DequantizeLinear.
        input_bytes, output_bytes: of the activations that it reads and writes; read ones likewise.
    """

    name: str
    op_type: str
    macs: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int


def node_costs(model: onnx.ModelProto) -> list[NodeCost]:
    """Return the cost of every node, in the graph's order, by ONNX's shape inference with a batch of one.

    A DequantizeLinear costs nothing: its reader is charged for the integers, as engines fuse the two.

    Raises:
        UserError: a tensor whose shape cannot be told; it is named with its node.
    """
    tensors = _tensors(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    sources = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    costs = []
    for node in model.graph.node:
        for name in (*node.input, *node.output):
            if name and (name not in tensors or min(tensors[name][0], default=1) < 0):
                raise UserError(f"the cost of node {node.name} ({node.op_type}) is unknown: {name} has no fixed shape")
        if node.op_type == "DequantizeLinear":
            costs.append(NodeCost(node.name, node.op_type, 0, 0, 0, 0))
            continue
        read = [sources.get(name, name) for name in node.input if name]
        costs.append(
            NodeCost(
                name=node.name,
                op_type=node.op_type,
                macs=_macs(node, tensors),
                weight_bytes=sum(_bytes(tensors[name]) for name in read if name in constants),
                input_bytes=sum(_bytes(tensors[name]) for name in read if name not in constants),
                output_bytes=sum(_bytes(tensors[name]) for name in node.output if name),
            )
        )
    return costs


def total_macs(model: onnx.ModelProto) -> int:
    """Return the multiply-adds of a graph for one image; errors as `node_costs`."""
    return sum(cost.macs for cost in node_costs(model))


def _tensors(model: onnx.ModelProto) -> Tensors:
    """Return shape and type of all tensors of a graph for a batch of one; -1 where a dimension is unknown."""
    graph = model.graph
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.name = "shapes"
    light.graph.node.extend(graph.node)
    found: Tensors = {}
    for tensor in graph.initializer:
        found[tensor.name] = (tuple(tensor.dims), tensor.data_type)
        if prod(tensor.dims) <= _SMALL:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for value in graph.input:
        kind = value.type.tensor_type
        shape = [axis.dim_value if axis.HasField("dim_value") else 1 for axis in kind.shape.dim]
        light.graph.input.append(helper.make_tensor_value_info(value.name, kind.elem_type, shape))
    for value in graph.output:
        # Without shape, or a dynamic batch in it would contradict the one of the input.
        light.graph.output.append(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None))
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            shape = [axis.dim_value if axis.HasField("dim_value") else -1 for axis in kind.shape.dim]
            found[value.name] = (tuple(shape), kind.elem_type)
    return found


def _macs(node: onnx.NodeProto, tensors: Tensors) -> int:
    made = prod(tensors[node.output[0]][0])
    if node.op_type == "Conv":
        return made * prod(tensors[node.input[1]][0][1:])  # a weight is (out, in / groups, kernel)
    if node.op_type == "ConvTranspose":
        return prod(tensors[node.input[0]][0]) * prod(tensors[node.input[1]][0][1:])
    if node.op_type in ("MatMul", "Gemm"):
        turned = node.op_type == "Gemm" and _attribute(node, "transA", 0)
        return made * tensors[node.input[0]][0][-2 if turned else -1]
    return made if node.op_type in ("Mul", "Div", "BatchNormalization") else 0


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _bytes(tensor: tuple[tuple[int, ...], int]) -> int:
    shape, kind = tensor
    return prod(shape) * int(helper.tensor_dtype_to_np_dtype(kind).itemsize)
