"""The exported and simplified graph: same numbers as PyTorch, dynamic batch, nothing left to fold."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from engines import export
from engines.export import OPSET, export_onnx
from engines.fold import fold
from engines.graph import nodes_after, sort_nodes
from engines.simplify import simplify
from metro_edge.errors import UserError


def dims(value: onnx.ValueInfoProto) -> list:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("batch", [1, 3])
def test_equals_pytorch(converted, batch):
    images = converted.images(batch)
    path = converted.bundle.onnx_path("fp32")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        output = converted.model(torch.from_numpy(images))
    expected = (output.camera, output.joints, output.vertices[-1])
    for ours, theirs in zip(session.run(["camera", "joints", "vertices"], {"images": images}), expected, strict=True):
        assert ours.shape == tuple(theirs.shape)
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


def test_interface(converted):
    graph = converted.graph.graph
    batch = dims(graph.input[0])[0]
    assert isinstance(batch, str)
    assert [v.name for v in graph.input] == ["images"] and dims(graph.input[0]) == [batch, 3, 64, 64]
    shapes = {v.name: dims(v) for v in graph.output}
    assert list(shapes) == ["camera", "joints", "vertices"]
    assert [shape[1:] for shape in shapes.values()] == [[3], [14, 3], [13718, 3]]
    assert all(isinstance(shape[0], str) for shape in shapes.values())
    assert converted.graph.opset_import[0].version == OPSET >= 17


def test_operators(converted):
    counts = Counter(node.op_type for node in converted.graph.graph.node)
    assert counts["LayerNormalization"] == 2 * 2  # two a layer, two layers
    assert counts["Gelu"] == 2 and counts["Softmax"] == 2
    assert counts["BatchNormalization"] == counts["Identity"] == counts["Constant"] == 0
    # The sparse mesh step stays Gather + Mul + ReduceSum with few, narrow constants.
    assert counts["Gather"] == counts["ReduceSum"] == 1
    names = {node.input[1] for node in converted.graph.graph.node if node.op_type == "Gather"}
    indices = next(t for t in converted.graph.graph.initializer if t.name in names)
    assert indices.data_type == onnx.TensorProto.INT32 and list(indices.dims) == [13718 * 8]
    assert max(np.prod(t.dims) for t in converted.graph.graph.initializer) < 200_000


def test_onnx_runtime_fuses_what_it_can(converted, tmp_path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    data = converted.graph.SerializeToString()
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert counts["SkipLayerNormalization"] == 2 * 2 and counts["LayerNormalization"] == 0  # needs the shapes told
    assert counts["BiasGelu"] == 2 and counts["Gelu"] == 0
    assert counts["Mul"] == 1  # of the sparse mesh step: none scales attention scores


def test_attention_is_two_products_about_a_softmax(converted):
    """As TensorRT's and ONNX Runtime's patterns want it: nothing between them, heads cut once before."""
    makers = {name: node for node in converted.graph.graph.node for name in node.output}
    for node in converted.graph.graph.node:
        if node.op_type == "Softmax":
            scores = makers[node.input[0]]
            assert scores.op_type == "MatMul"
            assert [makers[name].op_type for name in scores.input] == ["Transpose", "Transpose"]
    counts = Counter(node.op_type for node in converted.graph.graph.node)
    # Two per layer about attention, one before the tokens, one of the camera's points, one of the sparse mesh step.
    assert counts["Reshape"] == 2 * 2 + 3


def test_other_outputs_than_the_spec_says(converted):
    network, _ = fold(converted.model, converted.bundle.template, (), ("camera", "joints", "coarse"))
    with pytest.raises(UserError, match="the network gives camera, joints, coarse; the spec of tiny says camera"):
        export_onnx(network, converted.spec, "")


def test_metadata_tells_the_model_and_nothing_of_the_machine(converted):
    metadata = {entry.key: entry.value for entry in converted.graph.metadata_props}
    assert metadata["spec"] == "tiny" and len(metadata["checkpoint_sha256"]) == 64
    for precision in ("fp32", "fp16", "int8"):
        data = converted.bundle.onnx_bytes(precision)
        assert b"/home" not in data and b".py" not in data and b"site-packages" not in data
        kept = {entry.key: entry.value for entry in onnx.load_from_string(data).metadata_props}
        assert kept["spec"] == "tiny"


def test_too_large_for_protobuf(converted, monkeypatch):
    monkeypatch.setattr(export, "PROTOBUF_LIMIT", 17 << 20)
    with pytest.raises(UserError, match="less than 2 GiB"):
        export_onnx(fold(converted.model, converted.bundle.template)[0], converted.spec, "")


def test_simplifier_refuses_what_it_could_not_fold():
    node = onnx.helper.make_node("Loop", ["n", "", "x"], ["y"], body=_counting_body(), name="loop")
    tensors = [onnx.helper.make_tensor_value_info(*v) for v in (("n", 7, []), ("x", 1, [2]), ("y", 1, [2]))]
    graph = onnx.helper.make_graph([node], "g", tensors[:2], tensors[2:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)
    with pytest.raises(RuntimeError, match="1 Loop"):
        simplify(model)


def _counting_body() -> onnx.GraphProto:
    make = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Identity", ["go"], ["still"]),
        onnx.helper.make_node("Add", ["a", "a"], ["b"]),
    ]
    return onnx.helper.make_graph(
        nodes,
        "body",
        [make("i", 7, []), make("go", 9, []), make("a", 1, [2])],
        [make("still", 9, []), make("b", 1, [2])],
    )


def test_sort_nodes_and_what_depends_on_what():
    def relu(source, target):
        return onnx.helper.make_node("Relu", [source], [target], name=target)

    make = onnx.helper.make_tensor_value_info
    nodes = [relu("b", "c"), relu("a", "b"), relu("x", "a"), relu("x", "d")]
    graph = onnx.helper.make_graph(nodes, "g", [make("x", 1, [1])], [make("c", 1, [1])])
    model = onnx.helper.make_model(graph)
    sort_nodes(model)
    assert [n.name for n in model.graph.node] == ["a", "b", "c", "d"]
    assert nodes_after(model, lambda node: node.name == "b") == {"b", "c"}
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ValueError, match="nowhere"):
        sort_nodes(model)
