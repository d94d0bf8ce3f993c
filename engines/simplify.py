"""ONNX -> the same ONNX with constants folded and needless operators gone, by onnx-simplifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxsim
from onnx import numpy_helper

from engines.export import strip_traces
from engines.fold.names import name_graph
from engines.graph import drop_unused_constants, operator_counts, value_of

# Each would be a fold that did not happen.
_UNWANTED = ("BatchNormalization", "Constant", "ConstantOfShape", "Dropout", "Identity", "If", "Loop")
# It would turn every Linear over tokens into Reshape, Gemm, Reshape: no faster on the CPU, and no longer the
# MatMul + Add that the INT8 kernels of ONNX Runtime and TensorRT's attention patterns are made for.
_SKIPPED = ["fuse_matmul_add_bias_into_gemm_batched"]


def simplify(model: onnx.ModelProto | Path) -> onnx.ModelProto:
    """Return the simplified graph, its nodes and tensors named after the network's modules; the metadata stays.

    Args:
        model: the graph, or its file, which takes less memory.

    Raises RuntimeError when something is left that should have been folded, or the result is no valid graph: a
    fault of an exporter or simplifier version, which no user can mend by another input.
    """
    source = str(model) if isinstance(model, Path) else model
    simplified, valid = onnxsim.simplify(source, skipped_optimizers=_SKIPPED)
    if not valid:
        raise RuntimeError("onnx-simplifier reports that its result differs from what it was given")
    left = {name: count for name, count in operator_counts(simplified, _UNWANTED).items() if count}
    if left:
        found = ", ".join(f"{count} {name}" for name, count in left.items())
        raise RuntimeError(f"onnx-simplifier {onnxsim.__version__} left {found} in the graph")
    _narrow_indices(simplified)
    drop_unused_constants(simplified)
    name_graph(simplified)
    kept = simplified if isinstance(model, Path) else model
    # The simplifier adds its own notes.
    metadata = {e.key: e.value for e in kept.metadata_props if not e.key.startswith("onnxsim.")}
    strip_traces(simplified)
    onnx.helper.set_model_props(simplified, metadata)
    simplified.graph.name, simplified.producer_name = kept.graph.name, kept.producer_name
    simplified.producer_version = kept.producer_version
    onnx.checker.check_model(simplified)
    return simplified


def _narrow_indices(model: onnx.ModelProto) -> None:
    """Store Gather's indices as int32, in place: a mesh step's take half the bytes and every engine reads them."""
    users: dict[str, set[tuple[str, int]]] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            users.setdefault(name, set()).add((node.op_type, place))
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 and users.get(tensor.name) == {("Gather", 1)}:
            tensor.CopyFrom(numpy_helper.from_array(value_of(tensor).astype(np.int32), tensor.name))
