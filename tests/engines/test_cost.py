"""Multiply-adds and bytes of nodes, against sums by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engines.cost import node_costs, total_macs
from metro_edge.errors import UserError


def model_of(nodes: list, inputs: dict, outputs: list[str], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, 1, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_each_kind():
    f = np.float32
    constants = {
        "k": np.zeros((8, 2, 3, 3), f),
        "b": np.zeros(8, f),
        "w": np.zeros((64, 5), f),
        "g": np.zeros((7, 5), f),
        "s": np.array([0, 8, 64], np.int64),
        "t": np.zeros((4, 6, 2, 2), f),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"], "conv", group=2, pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["c", "s"], ["r"], "reshape"),
        helper.make_node("MatMul", ["r", "w"], ["m"], "matmul"),
        helper.make_node("Mul", ["m", "m"], ["y"], "mul"),
        helper.make_node("Gemm", ["z", "g"], ["v"], "gemm", transA=1, transB=1),
        helper.make_node("ConvTranspose", ["x", "t"], ["u"], "deconv", strides=[2, 2]),
    ]
    inputs = {"x": ["n", 4, 8, 8], "z": [5, 3]}
    found = {cost.name: cost for cost in node_costs(model_of(nodes, inputs, ["y", "v", "u"], constants))}
    assert {name: cost.macs for name, cost in found.items()} == {
        "conv": 8 * 64 * 2 * 9,
        "reshape": 0,
        "matmul": 8 * 64 * 5,
        "mul": 8 * 5,
        "gemm": 3 * 7 * 5,
        "deconv": 4 * 64 * 6 * 4,
    }
    conv = found["conv"]
    assert (conv.op_type, conv.weight_bytes) == ("Conv", (8 * 2 * 9 + 8) * 4)
    assert (conv.input_bytes, conv.output_bytes) == (4 * 64 * 4, 8 * 64 * 4)


def test_quantised_tensors_count_as_integers(converted):
    fp32 = {cost.name: cost for cost in node_costs(converted.graph)}
    int8 = {cost.name: cost for cost in node_costs(onnx.load(converted.bundle.onnx_path("int8")))}
    name = "encoders.0.layers.0.ffn_input"
    assert (
        int8[name].weight_bytes * 4 == fp32[name].weight_bytes and int8[name].input_bytes * 4 == fp32[name].input_bytes
    )
    assert int8[name].macs == fp32[name].macs and int8[name].output_bytes == fp32[name].output_bytes
    assert all(cost.output_bytes == 0 for cost in int8.values() if cost.op_type == "DequantizeLinear")
    assert total_macs(converted.graph) == sum(cost.macs for cost in int8.values())


def test_fp16_moves_half(converted):
    graph = onnx.load(converted.bundle.onnx_path("fp16"))
    for part in ("qkv", "ffn_output"):
        name = f"encoders.0.layers.0.{part}"
        single = next(cost for cost in node_costs(converted.graph) if cost.name == name)
        half = next(cost for cost in node_costs(graph) if cost.name == name)
        assert half.weight_bytes * 2 == single.weight_bytes and half.output_bytes * 2 == single.output_bytes


def test_a_shape_that_cannot_be_told():
    nodes = [helper.make_node("NonZero", ["x"], ["i"], "where"), helper.make_node("Cast", ["i"], ["y"], "cast", to=1)]
    with pytest.raises(UserError, match=r"the cost of node where \(NonZero\) is unknown: i has no fixed shape"):
        node_costs(model_of(nodes, {"x": [4, 4]}, ["y"], {}))
