from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from metro_edge.backends.cpu_twin.graph import Graph, attribute, empty_graph
from metro_edge.errors import BundleError

VALUES = [
    np.float32([[1.5, -2.0]]), np.array(3, np.int8), np.uint8([7]), np.int32([-4, 5]), np.array([2**40, -1]),
    np.float16([0.5]), np.zeros((0,), np.int64),
]  # fmt: skip


@pytest.fixture
def graph(graph_of) -> Graph:
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]), helper.make_node("Add", ["t", "c"], ["y"])]
    return Graph(graph_of(nodes, {"c": np.float32(2)}, [2, 3]))


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value.dtype))
def test_constants_are_read_as_they_were_written(graph, value):
    name = graph.add_constant("c", value)
    assert name == "c_2"
    np.testing.assert_array_equal(graph.constant(name), value, strict=True)


@pytest.mark.parametrize(
    ("kind", "values"),
    [("FLOAT", [1.5, 2.0]), ("INT8", [-3, 4]), ("INT32", [5, -6]), ("INT64", [7, 8])],
)
def test_constants_that_are_not_stored_raw(graph_of, kind, values):
    model = onnx.load_from_string(graph_of([helper.make_node("Identity", ["x"], ["y"])], {}, [2]))
    model.graph.initializer.append(helper.make_tensor("typed", TensorProto.DataType.Value(kind), [2], values))
    assert not model.graph.initializer[0].raw_data
    np.testing.assert_array_equal(Graph(model.SerializeToString()).constant("typed"), values)


def test_a_constant_of_too_few_numbers(graph_of):
    model = onnx.load_from_string(graph_of([helper.make_node("Identity", ["x"], ["y"])], {"c": np.ones(4)}, [2]))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones(4, np.float32), "c"))
    model.graph.initializer[0].dims[0] = 5
    with pytest.raises(BundleError, match="holds 4 numbers"):
        Graph(model.SerializeToString()).constant("c")


def test_types_without_a_place(graph):
    with pytest.raises(TypeError, match="float64"):
        graph.add_constant("d", np.ones(2))


def test_replacing_nodes_keeps_the_rest(graph, run):
    transpose, add = graph.nodes
    graph.replace([add], [graph.node("Sub", ["t", "c"], ["y"])])
    assert attribute(transpose, "perm", ()) == (1, 0) and attribute(transpose, "axis", 5) == 5
    assert graph.makers()["t"] is transpose
    assert graph.only_reader(graph.readers(), "t") is graph.nodes[1]
    assert graph.only_reader(graph.readers(), "y") is None  # an output
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(run(graph.serialize(), x)[0], x.T - 2)


def test_unread_constants_go(graph):
    graph.add_constant("left", np.float32(1))
    assert [t.name for t in onnx.load_from_string(graph.serialize()).graph.initializer] == ["c"]


def test_a_graph_made_from_nothing(run):
    graph = empty_graph("x", "y", (1, 2))
    graph.nodes = [graph.node("Neg", ["x"], ["y"])]
    onnx.checker.check_model(onnx.load_from_string(graph.serialize()), full_check=True)
    assert run(graph.serialize(), np.float32([[1, 2]]))[0].tolist() == [[-1, -2]]
