"""FP32 ONNX -> typed FP16 ONNX: the precision is in the graph, so every TensorRT version builds the same."""

from __future__ import annotations

import onnx

from engines.quantize.layers import quantisable
from engines.quantize.mixed import mixed


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with FP16 weights and arithmetic; inputs and outputs stay float32, see `mixed`."""
    return mixed(model, {layer.name: "fp16" for layer in quantisable(model)}, {})
