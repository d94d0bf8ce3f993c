"""Small graphs for tests: nodes are named after what they make, constants are given by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
TOKENS = ("n", 6, 16)  # what `attention` reads


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """Return a node; `inputs` and `output` are names, with one space between them: two leave an input out."""
    outputs = output.split()
    return helper.make_node(operator, inputs.split(" "), outputs, name=outputs[0], **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    constants: Mapping[str, np.ndarray],
    outputs: Sequence[str] = ("y",),
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Return a checked graph whose input `images` has `shape`, a word standing for an open size."""
    model = helper.make_model(
        helper.make_graph(
            list(nodes),
            "small",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(shape))],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )
    inferred = onnx.shape_inference.infer_shapes(model).graph.output
    for value, known in zip(model.graph.output, inferred, strict=True):
        value.CopyFrom(known)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, images: np.ndarray, tensors: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return the outputs of a graph by name, and those of its other `tensors`; kernels are not fused."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    outputs = [value.name for value in model.graph.output]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in tensors if name not in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [*outputs, *(name for name in tensors if name not in outputs)]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def normal(seed: int, *shape: int) -> np.ndarray:
    """Return float32 numbers of a normal distribution."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Return a constant of a graph."""
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def kinds(model: onnx.ModelProto) -> list[str]:
    """Return the operators of a graph, in order."""
    return [n.op_type for n in model.graph.node]


def attention(split: str = "flat", biases: bool = True, extra: str = "") -> onnx.ModelProto:
    """One attention of 4 heads over 6 tokens of 16.

    Args:
        split: what makes queries, keys and values: one product, split as it is (`flat`), at its heads (`heads`), inside
            of each head, before or after heads and tokens change places (`inner`, `last`), or three products (`none`).
        biases: what is made is added to a constant.
        extra: a tensor that is an output too.
    """
    nodes, values = [], {}

    def product(name: str, width: int, seed: int) -> str:
        nodes.append(node("MatMul", f"images w_{name}", name))
        values[f"w_{name}"] = normal(seed, 16, width)
        if biases:
            nodes.append(node("Add", f"{name} b_{name}", f"{name}_sum"))
            values[f"b_{name}"] = normal(seed + 1, width)
        return f"{name}_sum" if biases else name

    def parts(tensor: str, *shape: int) -> str:
        values[f"{tensor}_shape"] = np.array((0, 0, *shape))
        nodes.append(node("Reshape", f"{tensor} {tensor}_shape", f"{tensor}_parts"))
        return f"{tensor}_parts"

    def swap(tensor: str, result: str, *order: int) -> None:
        nodes.append(node("Transpose", tensor, result, perm=order))

    names = ("q", "k", "v")
    if split == "none":
        made = [parts(product(name, 16, 2 * i), 4, 4) for i, name in enumerate(names)]
    else:
        whole, axis = product("qkv", 48, 0), 2
        if split in ("inner", "last"):
            whole, axis = parts(whole, 4, 12), -1
        elif split == "heads":
            whole = parts(whole, 12, 4)
        if split == "last":
            swap(whole, "whole", 0, 2, 1, 3)
            whole = "whole"
        nodes.append(node("Split", whole, "q k v", num_outputs=3, axis=axis))
        made = [parts(name, 4, 4) if split == "flat" else name for name in names]
    if split == "last":
        swap("k", "kt", 0, 1, 3, 2)
        queries, mixed = "q", "v"
    else:
        queries, mixed = "qt", "vt"
        for tensor, result, order in zip(
            made, ("qt", "kt", "vt"), ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)), strict=True
        ):
            swap(tensor, result, *order)
    nodes += [
        node("MatMul", f"{queries} kt", "scores"),
        node("Softmax", "scores", "weights", axis=-1),
        node("MatMul", f"weights {mixed}", "mix"),
    ]
    swap("mix", "context", 0, 2, 1, 3)
    nodes.append(node("MatMul", f"{parts('context', 16)} wo", "y"))
    return graph(nodes, TOKENS, values | {"wo": normal(9, 16, 5)}, ["y", extra] if extra else ["y"])
