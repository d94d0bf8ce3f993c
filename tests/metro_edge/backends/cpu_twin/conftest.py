"""Small graphs, and ONNX Runtime running them operator by operator, so that nothing but the rewriting differs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper


def make_graph(nodes, constants, x_shape, outputs=("y",)) -> bytes:
    """x (float32) through `nodes` to `outputs`, whose shapes are inferred."""
    made = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    ends = [helper.make_empty_tensor_value_info(name) for name in outputs]
    start = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", start, ends, made), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    model = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value for value in model.graph.value_info}
    for value in model.graph.output:
        if value.name in types:
            value.CopyFrom(types[value.name])
    return model.SerializeToString()


def run_graph(model: bytes, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def operators_of(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


@pytest.fixture(scope="session")
def graph_of() -> Callable[..., bytes]:
    return make_graph


@pytest.fixture(scope="session")
def run() -> Callable[[bytes, np.ndarray], list[np.ndarray]]:
    return run_graph


@pytest.fixture(scope="session")
def operators() -> Callable[[bytes], list[str]]:
    return operators_of
