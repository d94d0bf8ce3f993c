"""An ONNX graph read, changed and written with protobuf alone: a device that runs a bundle has no `onnx` package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import BundleError

MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators

# Elements of onnx.TensorProto.DataType that graphs of bundles hold, and the fields of tensors not stored raw.
_DTYPES = {1: "<f4", 2: "|u1", 3: "|i1", 6: "<i4", 7: "<i8", 10: "<f2"}
_FIELDS = {1: "float_data", 2: "int32_data", 3: "int32_data", 6: "int32_data", 7: "int64_data"}
_FLOAT, _INT, _INTS = 1, 2, 7  # onnx.AttributeProto.AttributeType

# The fields of onnx.proto3 that are used here, by number; protobuf carries all others through untouched.
_SCHEMA = {
    "Model": (("ir_version", 1, "int64", False), ("graph", 7, "Graph", False), ("opset_import", 8, "Opset", True)),
    "Opset": (("domain", 1, "string", False), ("version", 2, "int64", False)),
    "Graph": (
        ("node", 1, "Node", True),
        ("name", 2, "string", False),
        ("initializer", 5, "Tensor", True),
        ("input", 11, "Value", True),
        ("output", 12, "Value", True),
        ("value_info", 13, "bytes", True),
    ),
    "Value": (("name", 1, "string", False), ("type", 2, "Type", False)),
    "Type": (("tensor_type", 1, "TensorType", False),),
    "TensorType": (("elem_type", 1, "int32", False), ("shape", 2, "Shape", False)),
    "Shape": (("dim", 1, "Dimension", True),),
    "Dimension": (("dim_value", 1, "int64", False), ("dim_param", 2, "string", False)),
    "Node": (
        ("input", 1, "string", True),
        ("output", 2, "string", True),
        ("name", 3, "string", False),
        ("op_type", 4, "string", False),
        ("attribute", 5, "Attribute", True),
        ("domain", 7, "string", False),
    ),
    "Attribute": (
        ("name", 1, "string", False),
        ("f", 2, "float", False),
        ("i", 3, "int64", False),
        ("s", 4, "bytes", False),
        ("ints", 8, "int64", True),
        ("type", 20, "int32", False),
    ),
    "Tensor": (
        ("dims", 1, "int64", True),
        ("data_type", 2, "int32", False),
        ("float_data", 4, "float", True),
        ("int32_data", 5, "int32", True),
        ("int64_data", 7, "int64", True),
        ("name", 8, "string", False),
        ("raw_data", 9, "bytes", False),
    ),
}


class Graph:
    """Nodes in topological order, and constants by name.

    Attributes:
        nodes: messages with `op_type`, `domain`, `input`, `output` and `attribute`.
        outputs: names of the graph's outputs.

    Raises BundleError for bytes that are no ONNX graph.
    """

    def __init__(self, data: bytes, name: str = "the network") -> None:
        from google.protobuf.message import DecodeError

        try:
            self._model = _messages()["Model"].FromString(data)
        except DecodeError:
            raise BundleError(f"{name} is not an ONNX graph") from None
        if not self._model.graph.node:
            raise BundleError(f"{name} is not an ONNX graph, or one without a node")
        self.name = name
        self.nodes: list[Any] = list(self._model.graph.node)
        self.outputs = {value.name for value in self._model.graph.output}
        self._tensors = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._names = {name for node in self.nodes for name in (*node.input, *node.output)} | self._tensors.keys()

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return the value of a constant; None for what is none, or of a type that no rewriting reads."""
        tensor = self._tensors.get(name)
        if tensor is None or tensor.data_type not in _DTYPES:
            return None
        dtype = np.dtype(_DTYPES[tensor.data_type])
        if tensor.raw_data:
            values = np.frombuffer(tensor.raw_data, dtype)
        elif tensor.data_type in _FIELDS:
            values = np.array(getattr(tensor, _FIELDS[tensor.data_type]), dtype)
        else:
            return None
        shape = tuple(tensor.dims)
        if values.size != np.prod(shape, dtype=np.int64):
            raise BundleError(f"constant {name!r} of {self.name} holds {values.size} numbers, its shape is {shape}")
        return values.reshape(shape)

    def scalar(self, name: str) -> float | None:
        """Return the value of a constant of one number; None for anything else."""
        value = self.constant(name)
        return float(value.item()) if value is not None and value.size == 1 else None

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is a constant, without reading it."""
        return name in self._tensors

    def add_constant(self, name: str, values: NDArray[Any]) -> str:
        """Store a constant under `name` or, if that is taken, one derived from it; returns the name."""
        name = self.new_name(name)
        self.add_constant_as(name, values)
        return name

    def add_constant_as(self, name: str, values: NDArray[Any]) -> None:
        """Store a constant under the name of a tensor that no node makes any more."""
        tensor = self._model.graph.initializer.add(name=name)
        self._tensors[name] = tensor
        self._store(tensor, values)

    def replace_constant(self, name: str, values: NDArray[Any]) -> None:
        """Give a constant another value, type or shape."""
        tensor = self._tensors[name]
        tensor.Clear()
        tensor.name = name
        self._store(tensor, values)

    def new_name(self, name: str) -> str:
        """Return `name` or, if a tensor has it, one derived from it; it counts as taken from then on."""
        unique, number = name, 1
        while unique in self._names:
            number += 1
            unique = f"{name}_{number}"
        self._names.add(unique)
        return unique

    def makers(self) -> dict[str, Any]:
        """Return, per tensor, the node that makes it."""
        return {name: node for node in self.nodes for name in node.output if name}

    def readers(self) -> dict[str, list[Any]]:
        """Return, per tensor, the nodes that read it, as often as they do."""
        found: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    def only_reader(self, readers: Mapping[str, Sequence[Any]], name: str) -> Any | None:
        """Return the one node that reads a tensor, None where others do or the tensor is an output."""
        users = readers.get(name, ())
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def node(
        self, operator: str, inputs: Iterable[str], outputs: Iterable[str], domain: str = "", **attributes: Any
    ) -> Any:
        """Make a node, of an int, float or list of ints per attribute; `insert` puts it into the graph."""
        node = _messages()["Node"](op_type=operator, domain=domain, input=list(inputs), output=list(outputs))
        node.name = f"{operator}_{node.output[0]}"
        for name, value in attributes.items():
            if isinstance(value, float):
                node.attribute.add(name=name, f=value, type=_FLOAT)
            elif isinstance(value, int):
                node.attribute.add(name=name, i=value, type=_INT)
            else:
                node.attribute.add(name=name, ints=list(value), type=_INTS)
        if domain and domain not in {opset.domain for opset in self._model.opset_import}:
            self._model.opset_import.add(domain=domain, version=1)
        return node

    def replace(self, old: Sequence[Any], new: Sequence[Any]) -> None:
        """Put nodes where the last of some others is, and take those out."""
        gone = {id(node) for node in old}
        place = max(index for index, node in enumerate(self.nodes) if id(node) in gone)
        before = [node for node in self.nodes[:place] if id(node) not in gone]
        self.nodes = [*before, *new, *self.nodes[place + 1 :]]

    def serialize(self) -> bytes:
        """Return the graph's bytes, without constants that nobody reads and without the types it had before."""
        graph = self._model.graph
        nodes = [_messages()["Node"].FromString(node.SerializeToString()) for node in self.nodes]
        del graph.node[:]
        graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input} | self.outputs
        for index in reversed(range(len(graph.initializer))):
            if graph.initializer[index].name not in used:
                del graph.initializer[index]
        del graph.value_info[:]  # engines infer it anew
        data: bytes = self._model.SerializeToString()
        return data

    def _store(self, tensor: Any, values: NDArray[Any]) -> None:
        kind = next((k for k, text in _DTYPES.items() if np.dtype(text) == values.dtype), None)
        if kind is None:
            raise TypeError(f"{values.dtype} has no place in a graph")
        tensor.data_type = kind
        tensor.dims.extend(values.shape)
        tensor.raw_data = np.ascontiguousarray(values).astype(_DTYPES[kind], copy=False).tobytes()


def empty_graph(source: str, target: str, shape: Sequence[int]) -> Graph:
    """Return a graph without nodes, of one float32 input and one output of the same shape."""
    classes = _messages()
    model = classes["Model"](ir_version=8)
    model.opset_import.add(domain="", version=17)
    model.graph.name = "graph"
    for value in (model.graph.input.add(name=source), model.graph.output.add(name=target)):
        value.type.tensor_type.elem_type = 1
        for size in shape:
            value.type.tensor_type.shape.dim.add(dim_value=size)
    model.graph.node.add(op_type="Identity", input=[source], output=[target])
    graph = Graph(model.SerializeToString(), "a made graph")
    graph.nodes = []
    return graph


def attribute(node: Any, name: str, default: Any) -> Any:
    """Return the value of a node's attribute, of the type of `default`: an int or a tuple of ints."""
    for found in node.attribute:
        if found.name == name:
            return tuple(found.ints) if isinstance(default, tuple) else found.i
    return default


@lru_cache(maxsize=1)
def _messages() -> dict[str, Any]:
    """Make the message classes of _SCHEMA."""
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
    names = {name: pool.FindMessageTypeByName(f"onnx_subset.{name}") for name in _SCHEMA}
    return {name: message_factory.GetMessageClass(found) for name, found in names.items()}
