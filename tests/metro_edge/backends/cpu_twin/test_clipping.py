from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from metro_edge.backends.cpu_twin import cpu_twin, rewrite
from metro_edge.backends.cpu_twin.clipping import quantise_before_clipping
from metro_edge.errors import BundleError


@pytest.fixture(scope="module")
def clipped(graph_of):
    """Makes x (N) -> Clip or Relu -> Q -> DQ -> y."""

    def make(activation="Clip", low=0.0, high=6.0, scale=6 / 127, zero_point=None, more=(), outputs=("y",)) -> bytes:
        nodes = [
            helper.make_node(activation, ["x", "low", "high"] if activation == "Clip" else ["x"], ["clipped"]),
            helper.make_node("QuantizeLinear", ["clipped", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
            *more,
        ]
        zero_point = np.zeros((), np.int8) if zero_point is None else zero_point
        constants = {"low": np.float32(low), "high": np.float32(high), "scale": np.float32(scale), "zero": zero_point}
        return graph_of(nodes, constants, ["n"], outputs=outputs)

    return make


@settings(max_examples=40, deadline=None)
@given(
    activation=st.sampled_from(["Clip", "Relu"]),
    low=st.floats(-3, 0, width=32),
    high=st.floats(0.125, 9, width=32),
    scale=st.floats(2**-7, 0.125, width=32),
)
def test_same_numbers(clipped, run, activation, low, high, scale):
    x = np.linspace(-20, 20, 4001, dtype=np.float32)
    original = clipped(activation, low, high, scale)
    for twin in (cpu_twin(original), rewrite(original, (quantise_before_clipping,))):
        np.testing.assert_array_equal(run(twin, x)[0], run(original, x)[0])


def test_form(clipped):
    model = onnx.load_from_string(cpu_twin(clipped()))
    onnx.checker.check_model(model, full_check=True)
    assert [n.op_type for n in model.graph.node] == ["QuantizeLinear", "Clip", "DequantizeLinear"]
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert constants["zero"] == 128 and constants["zero"].dtype == np.uint8
    assert {"low", "high"}.isdisjoint(constants)
    assert sorted(int(v) for v in constants.values() if v.dtype == np.uint8) == [128, 128, 255]


def test_a_clip_that_others_read_stays(clipped, operators):
    read = clipped(more=[helper.make_node("Neg", ["clipped"], ["z"])], outputs=("y", "z"))
    put_out = clipped(outputs=("y", "clipped"))
    for graph in (read, put_out):
        assert operators(cpu_twin(graph))[:2] == ["Clip", "QuantizeLinear"]


def test_bounds_that_are_computed_stay(graph_of, operators):
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["high"], keepdims=0),
        helper.make_node("Clip", ["x", "low", "high"], ["clipped"]),
        helper.make_node("QuantizeLinear", ["clipped", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    constants = {"low": np.float32(0), "scale": np.float32(1), "zero": np.zeros((), np.int8)}
    twin = operators(cpu_twin(graph_of(nodes, constants, ["n"])))
    assert twin == ["ReduceMax", "Clip", "QuantizeLinear", "DequantizeLinear"]


def test_graphs_that_are_not_int8(clipped):
    with pytest.raises(BundleError, match="not an ONNX graph"):
        cpu_twin(b"\xff\xff\xff garbage")
    with pytest.raises(BundleError, match="without a node"):
        cpu_twin(b"")
    for zero_point in (np.int8(3), np.uint8(128), np.zeros(2, np.int8)):
        with pytest.raises(BundleError, match="must be a single int8 0"):
            cpu_twin(clipped(zero_point=zero_point))
    model = onnx.load_from_string(clipped())
    del model.graph.node[1].input[2:]
    with pytest.raises(BundleError, match="without a zero point"):
        cpu_twin(model.SerializeToString())
    del model.graph.node[1:]
    with pytest.raises(BundleError, match="quantises nothing"):
        cpu_twin(model.SerializeToString())
