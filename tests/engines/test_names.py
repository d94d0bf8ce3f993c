"""Names in exported graphs: of the module that a weight belongs to, unique, the same at every export."""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import helper

from engines.export import export_onnx
from engines.fold import fold
from engines.fold.names import name_graph
from engines.graph import constants
from engines.simplify import simplify

# What every layer's weights are called in the trained network.
PARTS = ("qkv", "attention_output", "ffn_input", "ffn_output")


def nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


def test_every_weight_is_called_after_its_module(converted):
    known = constants(converted.graph)
    named = nodes(converted.graph)
    modules = dict(converted.model.named_modules())
    weighted = [n for n in named.values() if n.op_type in ("Conv", "MatMul", "Gemm") and n.input[1] in known]
    for node in weighted:
        assert node.input[1] == f"{node.name}.weight"
        if len(node.input) > 2:
            assert node.input[2] == f"{node.name}.bias"
        if node.op_type == "Conv" and node.name.startswith("backbone."):
            assert node.name.replace("backbone.", "backbone.model.", 1) in modules
    expected = {f"encoders.{i}.layers.0.{part}" for i in (0, 1) for part in PARTS}
    expected |= {"encoders.0.projection", "encoders.0.mixer", "encoders.1.input", "encoders.1.residual"}
    expected |= {"encoders.0.output", "encoders.1.output", "camera", "upsampling.0"}
    assert {node.name for node in weighted if not node.name.startswith("backbone.")} == expected


def test_attention(converted):
    named = nodes(converted.graph)
    for i in (0, 1):
        layer = f"encoders.{i}.layers.0.attention"
        scores, softmax, mix = (named[f"{layer}.{part}"] for part in ("scores", "softmax", "mix"))
        assert softmax.input[0] == scores.output[0] and mix.input[0] == softmax.output[0]
        assert scores.op_type == mix.op_type == "MatMul"
        norm = named[f"encoders.{i}.layers.0.ffn_norm"]
        assert norm.op_type == "LayerNormalization" and norm.input[1] == f"{norm.name}.weight"


def test_unique_and_stable(converted):
    graph = converted.graph.graph
    for names in (
        [node.name for node in graph.node],
        [name for node in graph.node for name in node.output] + [tensor.name for tensor in graph.initializer],
    ):
        assert max(Counter(names).values()) == 1 and all(names)
    network, _ = fold(converted.model, converted.bundle.template)
    again = simplify(export_onnx(network, converted.spec, converted.bundle.passport["checkpoint"]["sha256"]))
    assert again.SerializeToString(deterministic=True) == converted.graph.SerializeToString(deterministic=True)


def test_a_graph_of_somebody_else_gets_unique_names():
    value = helper.make_tensor_value_info
    weight = helper.make_tensor("w", 1, [2, 2], [1.0, 2.0, 3.0, 4.0])
    parts = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Softmax", ["b"], ["y"]),
    ]
    graph = helper.make_graph(parts, "g", [value("x", 1, [1, 2])], [value("y", 1, [1, 2])], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    name_graph(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.name for node in model.graph.node] == ["MatMul", "MatMul_2", "Softmax"]
    assert model.graph.node[0].input[1] == model.graph.node[1].input[1] == "MatMul.weight"
