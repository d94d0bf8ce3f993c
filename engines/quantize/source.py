"""The FP32 graph of a bundle, checked to be one that a search can take."""

from __future__ import annotations

import onnx

from engines.quantize.layers import Layer, quantisable
from metro_edge.bundle import Bundle
from metro_edge.errors import BundleError, UserError
from metro_edge.spec import INPUT_NAME

MENDING = "a graph that `python -m engines convert` made was expected"


def fp32_graph(bundle: Bundle) -> tuple[onnx.ModelProto, tuple[Layer, ...]]:
    """Return the bundle's FP32 graph and what of it can be quantised.

    Raises:
        BundleError: the bundle has no fp32 network, or it is altered.
        UserError: not an ONNX graph, other inputs or outputs than the spec's, an operator that is not standard (named
            with its node), a graph that is quantised already, nothing to quantise.
    """
    data = bundle.onnx_bytes("fp32")
    name = f"the fp32 network of {bundle.path}"
    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # protobuf's own exceptions
        raise BundleError(f"{name} is not an ONNX graph: {error}") from None
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]
    if inputs != [INPUT_NAME] or set(outputs) != set(bundle.spec.outputs):
        raise UserError(
            f"{name} has inputs {', '.join(inputs) or 'none'} and outputs {', '.join(outputs) or 'none'}; expected "
            f"{INPUT_NAME} and {', '.join(bundle.spec.outputs)}: {MENDING}"
        )
    _check_operators(model, name)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError and InferenceError have no common base but Exception
        raise UserError(f"{name} is no valid graph: {str(error).strip().splitlines()[0]}; {MENDING}") from None
    layers = quantisable(model)
    if not layers:
        raise UserError(f"{name} has no convolution and no product that could be quantised; {MENDING}")
    return model, layers


def _check_operators(model: onnx.ModelProto, name: str) -> None:
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    for node in model.graph.node:
        what = f"node {node.name or node.output[0]!r} of {name}"
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise UserError(f"{what} is a {node.op_type}: the graph is quantised already; {MENDING}")
        standard = node.domain in ("", "ai.onnx")
        if not standard or not onnx.defs.has(node.op_type, max_inclusive_version=max(version, 1), domain=""):
            operator = node.op_type if standard else f"{node.domain}.{node.op_type}"
            raise UserError(f"{what} is a {operator}, which is no operator of ONNX opset {version}; {MENDING}")
