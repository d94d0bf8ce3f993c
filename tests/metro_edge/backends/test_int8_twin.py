"""The CPU twin of an INT8 graph computes the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from metro_edge.backends.int8_twin import cpu_twin
from metro_edge.errors import BundleError


def graph(
    activation: str = "Clip", low: float = 0.0, high: float = 6.0, scale: float = 6 / 127, zero_point: object = None
) -> bytes:
    """x (N) -> Clip or Relu -> Q -> DQ -> y."""
    zero_point = np.zeros((), np.int8) if zero_point is None else zero_point
    inputs = ["x", "low", "high"] if activation == "Clip" else ["x"]
    nodes = [
        helper.make_node(activation, inputs, ["clipped"]),
        helper.make_node("QuantizeLinear", ["clipped", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    constants = {"low": np.float32(low), "high": np.float32(high), "scale": np.float32(scale), "zero": zero_point}
    made = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"])] for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ends, made), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    return model.SerializeToString()


def run(model: bytes, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


@settings(max_examples=40, deadline=None)
@given(
    activation=st.sampled_from(["Clip", "Relu"]),
    low=st.floats(-3, 0, width=32),
    high=st.floats(0.125, 9, width=32),
    scale=st.floats(2**-7, 0.125, width=32),
)
def test_same_numbers(activation, low, high, scale):
    x = np.linspace(-20, 20, 4001, dtype=np.float32)
    original = graph(activation, low, high, scale)
    np.testing.assert_array_equal(run(cpu_twin(original), x), run(original, x))


def test_form():
    model = onnx.load_from_string(cpu_twin(graph()))
    onnx.checker.check_model(model, full_check=True)
    assert [n.op_type for n in model.graph.node] == ["QuantizeLinear", "Clip", "DequantizeLinear"]
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert constants["zero"] == 128 and constants["zero"].dtype == np.uint8
    assert {"low", "high"}.isdisjoint(constants)
    assert sorted(int(v) for v in constants.values() if v.dtype == np.uint8) == [128, 128, 255]


def test_a_clip_that_others_read_stays():
    model = onnx.load_from_string(graph())
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n"]))
    model.graph.node.append(helper.make_node("Neg", ["clipped"], ["z"]))
    twin = onnx.load_from_string(cpu_twin(model.SerializeToString()))
    assert [n.op_type for n in twin.graph.node][:2] == ["Clip", "QuantizeLinear"]


def test_bad_graphs():
    with pytest.raises(BundleError, match="not an ONNX graph"):
        cpu_twin(b"\xff\xff\xff garbage")
    with pytest.raises(BundleError, match="must be a single int8 0"):
        cpu_twin(graph(zero_point=np.int8(3)))
    with pytest.raises(BundleError, match="must be a single int8 0"):
        cpu_twin(graph(zero_point=np.uint8(128)))
    model = onnx.load_from_string(graph())
    del model.graph.node[1].input[2:]
    with pytest.raises(BundleError, match="without a zero point"):
        cpu_twin(model.SerializeToString())
    del model.graph.node[1:]
    with pytest.raises(BundleError, match="quantises nothing"):
        cpu_twin(model.SerializeToString())
