"""The CPU twin of a bundle's INT8 graph: the same numbers, written the way ONNX Runtime's kernels want them.

A bundle's `model.int8.onnx` is what TensorRT takes: int8 activations with zero point 0, quantised after the
activation function. ONNX Runtime's fast x86 kernels want uint8 activations, and fuse a convolution only when its
result is quantised at once. Both are exact rewritings:

- int8 with zero point 0 and uint8 with zero point 128 and the same scale stand for the same numbers;
- quantisation is monotone, so quantising after Clip or Relu equals clipping between the quantised bounds.

Weights, scales and structure stay, so one calibration and one file serve both, and what is measured of the twin
holds for the graph up to the rounding of kernels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from metro_edge.errors import BundleError

_INT8, _UINT8 = 3, 2  # onnx.TensorProto.DataType
_SHIFT = 128

# The few fields of onnx.proto3 that are rewritten, by number; protobuf carries all others through untouched.
_SCHEMA = {
    "Model": (("graph", 7, "Graph", False),),
    "Graph": (
        ("node", 1, "Node", True),
        ("initializer", 5, "Tensor", True),
        ("value_info", 13, "bytes", True),
    ),
    "Node": (("input", 1, "string", True), ("output", 2, "string", True), ("op_type", 4, "string", False)),
    "Tensor": (
        ("dims", 1, "int64", True),
        ("data_type", 2, "int32", False),
        ("float_data", 4, "float", True),
        ("int32_data", 5, "int32", True),
        ("name", 8, "string", False),
        ("raw_data", 9, "bytes", False),
    ),
}


def cpu_twin(graph: bytes) -> bytes:
    """Return the CPU twin of an INT8 ONNX graph that `python -m engines convert` made.

    Raises:
        BundleError: not an ONNX graph, or one whose activations are not quantised to int8 with zero point 0.
    """
    from google.protobuf.message import DecodeError

    try:
        model = _model_class().FromString(graph)
    except DecodeError:
        raise BundleError("the int8 network is not an ONNX graph") from None
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    _quantise_before_clipping(model.graph, tensors)
    quantisers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    if not quantisers:
        raise BundleError("the int8 network quantises nothing: it has no QuantizeLinear")
    for name in dict.fromkeys(_zero_point_name(node) for node in quantisers):
        _shift_zero_point(tensors.get(name), name)
    used = {name for node in model.graph.node for name in node.input}
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in used:  # what Clip was bounded by
            del model.graph.initializer[index]
    del model.graph.value_info[:]  # it holds the old types; ONNX Runtime infers them anew
    twin: bytes = model.SerializeToString()
    return twin


def _zero_point_name(node: Any) -> str:
    if len(node.input) != 3:
        raise BundleError(f"the int8 network quantises {node.input[0]!r} without a zero point")
    return str(node.input[2])


def _shift_zero_point(tensor: Any, name: str) -> None:
    """Turn an int8 zero point 0 into uint8 128."""
    if tensor is None or tensor.data_type != _INT8 or tensor.dims or _scalar(tensor) != 0:
        raise BundleError(f"zero point {name!r} of the int8 network must be a single int8 0")
    _store_uint8(tensor, _SHIFT)


def _quantise_before_clipping(graph: Any, tensors: dict[str, Any]) -> None:
    """Rewrite x -> Clip or Relu -> QuantizeLinear as x -> QuantizeLinear -> Clip of uint8, wherever possible."""
    consumers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            consumers.setdefault(name, []).append(index)
    for node in list(graph.node):
        if node.op_type not in ("Clip", "Relu"):
            continue
        users = [graph.node[index] for index in consumers.get(node.output[0], [])]
        if len(users) != 1 or users[0].op_type != "QuantizeLinear":
            continue  # somebody wants the clipped value itself
        bounds = _bounds(node, tensors)
        scale = tensors.get(users[0].input[1])
        if bounds is None or scale is None or scale.dims:
            continue
        _swap(graph, node, users[0], tensors, bounds, _scalar(scale))


def _bounds(node: Any, tensors: dict[str, Any]) -> tuple[float, float] | None:
    """Return what Clip or Relu clips to, None where it is not constant."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    limits = [-np.inf, np.inf]
    for place, name in enumerate(node.input[1:3]):
        if name and name not in tensors:
            return None
        if name:
            limits[place] = _scalar(tensors[name])
    return limits[0], limits[1]


def _swap(
    graph: Any, clip: Any, quantise: Any, tensors: dict[str, Any], bounds: tuple[float, float], scale: float
) -> None:
    """Exchange two neighbouring nodes in place; the order of nodes stays topological."""
    source, target = clip.input[0], quantise.output[0]
    middle = f"{target}_unclipped"
    limits = []
    for side, bound in zip(("low", "high"), bounds, strict=True):
        with np.errstate(over="ignore"):
            level = np.rint(np.float32(bound) / np.float32(scale)) + _SHIFT
        tensor = graph.initializer.add(name=f"{target}_{side}")
        _store_uint8(tensor, int(np.clip(level, 0, 255)))
        tensors[tensor.name] = tensor
        limits.append(tensor.name)
    parameters = list(quantise.input[1:])
    rest = clip.SerializeToString()
    clip.CopyFrom(quantise)
    _rename(clip, [source, *parameters], middle)
    quantise.ParseFromString(rest)
    quantise.op_type = "Clip"
    _rename(quantise, [middle, *limits], target)


def _rename(node: Any, inputs: list[str], output: str) -> None:
    del node.input[:], node.output[:]
    node.input.extend(inputs)
    node.output.append(output)


def _scalar(tensor: Any) -> float:
    """Return the value of a tensor of one float32 or int8 number."""
    if tensor.raw_data:
        return float(np.frombuffer(tensor.raw_data, "<i1" if tensor.data_type == _INT8 else "<f4")[0])
    values = tensor.int32_data if tensor.data_type == _INT8 else tensor.float_data
    return float(values[0]) if values else float("nan")


def _store_uint8(tensor: Any, value: int) -> None:
    del tensor.int32_data[:]
    tensor.data_type = _UINT8
    tensor.raw_data = bytes([value])


@lru_cache(maxsize=1)
def _model_class() -> Any:
    """Make the message class of _SCHEMA."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="onnx_subset.proto", package="onnx_subset", syntax="proto2")
    for message, fields in _SCHEMA.items():
        descriptor = file.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            field = descriptor.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind in _SCHEMA:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".onnx_subset.{kind}"
            else:
                field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("onnx_subset.Model"))
