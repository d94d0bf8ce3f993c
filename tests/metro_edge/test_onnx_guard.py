"""ONNX files from strangers: what refers outside the file or to foreign code is refused, and named."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from metro_edge.bundle import Bundle, onnx_file
from metro_edge.errors import BundleError
from metro_edge.onnx_guard import check_onnx
from tests.metro_edge.conftest import made_network, made_template

FLOATS = TensorProto.FLOAT


def outside(name: str = "stolen") -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../etc/passwd"
    return tensor


def graph_of(*nodes: onnx.NodeProto, tensors=()) -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(name, FLOATS, [4]) for name in ("x", "y")]
    return helper.make_graph(list(nodes), "g", values[:1], values[1:], list(tensors))


def bytes_of(graph: onnx.GraphProto, **kwargs) -> bytes:
    return helper.make_model(graph, **kwargs).SerializeToString()


RELU = helper.make_node("Relu", ["x"], ["y"], name="relu")


def tensor_of(shape: list[int], kind: int = FLOATS, **numbers) -> TensorProto:
    """A tensor that holds what is given, whatever its shape."""
    return TensorProto(name="t", dims=shape, data_type=kind, **numbers)


def with_tensor(tensor: TensorProto) -> bytes:
    return bytes_of(graph_of(RELU, tensors=[tensor]))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_our_networks_pass(precision, template):
    check_onnx(made_network(template, precision).SerializeToString(), "model")


def test_the_shipped_networks_pass_in_no_time():
    bundle = Bundle.load()
    for precision in bundle.precisions:
        graph = (bundle.path / onnx_file(precision)).read_bytes()
        start = time.perf_counter()
        check_onnx(graph, precision)
        assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes_of(graph_of(RELU, tensors=[outside()])), "tensor 'stolen' lies in another file"),
        (bytes_of(graph_of(helper.make_node("Constant", [], ["y"], value=outside("inner")))), "tensor 'inner' lies"),
        (bytes_of(graph_of(helper.make_node("Run", ["x"], ["y"], name="evil", domain="their.ops"))),
         "node 'evil' is Run of the domain 'their.ops'"),
        (bytes_of(graph_of(helper.make_node("Loop", ["x"], ["y"], name="endless", body=graph_of(RELU)))),
         r"node 'endless' \(Loop\) holds a graph of its own"),
        (bytes_of(graph_of(RELU), functions=[helper.make_function("a.b", "F", ["x"], ["y"], [RELU], [])]), "functions"),
        (b"", "it has none"),
        (b"no protobuf", "not an ONNX graph"),
        (bytes_of(graph_of(RELU))[:-1], "in the middle of a field"),
        (b"\x3a" + b"\xff" * 11, "ten bytes"),
        (b"\x3a", "not an ONNX graph"),
    ],
)  # fmt: skip
def test_refused(data, message):
    with pytest.raises(BundleError, match=message):
        check_onnx(data, "model.fp32.onnx in bundle b")


def test_a_sparse_tensor_outside():
    graph = graph_of(RELU)
    sparse = graph.sparse_initializer.add()
    sparse.values.CopyFrom(outside("values"))
    with pytest.raises(BundleError, match="b holds sparse tensors"):
        check_onnx(bytes_of(graph), "b")
    node = helper.make_node("Constant", [], ["y"], name="thin", sparse_value=sparse)
    with pytest.raises(BundleError, match=r"node 'thin' \(Constant\) holds sparse tensors"):
        check_onnx(bytes_of(graph_of(node)), "b")


@pytest.mark.parametrize(
    "tensor",
    [
        numpy_helper.from_array(np.zeros((2, 3), np.float32), "t"),
        numpy_helper.from_array(np.float16(3), "t"),
        numpy_helper.from_array(np.zeros((0, 4), np.float32), "t"),
        helper.make_tensor("t", FLOATS, [2], [1, 2]),
        helper.make_tensor("t", TensorProto.DOUBLE, [2], [1, 2]),
        helper.make_tensor("t", TensorProto.FLOAT16, [3], [1, 2, 3]),
        helper.make_tensor("t", TensorProto.INT64, [3], [1, -1, 300]),
        helper.make_tensor("t", TensorProto.INT8, [2], [1, -128]),
        helper.make_tensor("t", TensorProto.FLOAT8E4M3FN, [2], [1, 2]),
        helper.make_tensor("t", TensorProto.INT4, [3], [1, 2, -3]),
        tensor_of([3], TensorProto.INT4, raw_data=b"\0\0"),
    ],
)
def test_tensors_that_hold_what_they_claim(tensor):
    check_onnx(with_tensor(tensor), "b")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (tensor_of([2**20, 2**20], raw_data=b"\0" * 16), r"'t' claims to be of shape \(1048576, .* where 16 bytes are"),
        (tensor_of([2**20, 2**20], float_data=[0.0]), "where 1 numbers are"),
        (tensor_of([2**32, 2**32]), r"18446744073709551616 numbers, where 0 numbers are"),  # 0 in 64 bits
        (tensor_of([-1, -4], raw_data=b"\0" * 16), "negative"),
        (tensor_of([1] * 17, raw_data=b"\0" * 4), "more than 16 sizes"),
        (tensor_of([3], raw_data=b"\0" * 16), "where 16 bytes are"),
        (tensor_of([4], raw_data=b"\0" * 16, float_data=[1.0]), "where 16 bytes are"),  # which would be read?
        (tensor_of([2], TensorProto.INT64, int64_data=[300]), "where 1 numbers are"),
        (tensor_of([1], TensorProto.STRING, string_data=[b"x"]), "is of type 8, which no network"),
        (tensor_of([], 0), "is of type 0"),
    ],
)
def test_tensors_that_claim_more_or_less_than_they_hold(tensor, message):
    with pytest.raises(BundleError, match=message):
        check_onnx(with_tensor(tensor), "b")


def test_a_tensor_in_parts():
    """A reader merges them: shapes of 2^22, 2^22 and 2^20 numbers, each of which is held, are one of 2^64."""
    node = helper.make_node("Constant", [], ["y"], name="parts", value=tensor_of([2], raw_data=b"\0" * 8))
    part = node.attribute[0].t.SerializeToString()
    attribute = node.attribute[0].SerializeToString() + varint(5 << 3 | 2) + varint(len(part)) + part
    del node.attribute[:]
    data = node.SerializeToString() + varint(5 << 3 | 2) + varint(len(attribute)) + attribute
    assert list(onnx.NodeProto.FromString(data).attribute[0].t.dims) == [2, 2]
    graph = varint(1 << 3 | 2) + varint(len(data)) + data
    with pytest.raises(BundleError, match=r"node 'parts' \(Constant\) holds one tensor in several parts"):
        check_onnx(bytes_of(graph_of(RELU)) + varint(7 << 3 | 2) + varint(len(graph)) + graph, "b")


def test_the_named_location_alone_is_enough():
    """A reader that looks at `external_data` and not at `data_location` would follow it."""
    tensor = outside()
    tensor.data_location = TensorProto.DEFAULT
    with pytest.raises(BundleError, match="another file"):
        check_onnx(bytes_of(graph_of(RELU, tensors=[tensor])), "b")


def test_a_bundle_with_such_a_file_is_refused_before_any_engine(bundle_of, network):
    model = network()
    model.graph.initializer.append(outside())
    with pytest.raises(BundleError, match="lies in another file"):
        bundle_of(model).onnx_bytes("fp32")


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def test_field_numbers_that_engines_read_otherwise_are_refused():
    """ONNX Runtime keeps the low 32 bits of a field's key: what looks like field 2**29 + 1 is a node to it."""
    node = helper.make_node("Run", ["x"], ["z"], domain="their.ops").SerializeToString()
    graph = varint(1 << 3 | 2 | 1 << 32) + varint(len(node)) + node
    with pytest.raises(BundleError, match="more than 32 bits"):
        check_onnx(bytes_of(graph_of(RELU)) + varint(7 << 3 | 2) + varint(len(graph)) + graph, "b")


def test_any_other_data_location_is_outside():
    """As above: a location of 2**32 + 1 is EXTERNAL to a reader of 32 bits."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "far").SerializeToString()
    tensor += varint(14 << 3) + varint(1 << 32 | 1)
    graph = varint(5 << 3 | 2) + varint(len(tensor)) + tensor
    with pytest.raises(BundleError, match="tensor 'far' lies"):
        check_onnx(bytes_of(graph_of(RELU)) + varint(7 << 3 | 2) + varint(len(graph)) + graph, "b")


def test_graphs_for_training_are_refused():
    model = helper.make_model(graph_of(RELU))
    model.training_info.add().algorithm.CopyFrom(graph_of(RELU, tensors=[outside()]))
    with pytest.raises(BundleError, match="graphs for training"):
        check_onnx(model.SerializeToString(), "b")


GOOD = made_network(made_template()).SerializeToString()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_damage_passes_or_is_a_bundle_error(changes):
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    with contextlib.suppress(BundleError):
        check_onnx(bytes(data), "b")
