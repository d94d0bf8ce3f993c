"""The FP16 graph is typed, keeps float32 at its ends and in its normalisations, and has no needless casts."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from engines.half import half


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    return found | {t.name: t.data_type for t in inferred.initializer}


def test_types(converted):
    model = onnx.load(converted.bundle.onnx_path("fp16"))
    types = types_of(model)
    assert all(types[v.name] == TensorProto.FLOAT for v in (*model.graph.input, *model.graph.output))
    for node in model.graph.node:
        if node.op_type in ("Conv", "Softmax", "Gelu"):
            assert types[node.output[0]] == TensorProto.FLOAT16, node.name
        elif node.op_type == "LayerNormalization":
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}
    weights = [t for t in model.graph.initializer if np.prod(t.dims) > 1000 and t.data_type != TensorProto.INT32]
    halves = sum(np.prod(t.dims) for t in weights if t.data_type == TensorProto.FLOAT16)
    assert halves > 0.5 * sum(np.prod(t.dims) for t in weights)


def test_no_cast_up_follows_a_cast_down(converted):
    model = onnx.load(converted.bundle.onnx_path("fp16"))
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in makers:
            assert makers[node.input[0]].op_type != "Cast", node.name


def test_the_mesh_is_not_on_a_grid_of_half_floats(converted):
    session = onnxruntime.InferenceSession(converted.bundle.onnx_path("fp16"), providers=["CPUExecutionProvider"])
    vertices = session.run(["vertices"], {"images": converted.images(2)})[0]
    assert vertices.dtype == np.float32
    assert (vertices.astype(np.float16) == vertices).mean() < 0.05


def test_the_fp32_graph_is_left_alone(converted):
    before = converted.graph.SerializeToString()
    half(converted.graph)
    assert converted.graph.SerializeToString() == before
