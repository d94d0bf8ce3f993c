"""FP32 ONNX -> typed FP16 ONNX: the precision is in the graph, so every TensorRT version builds the same."""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from engines.graph import consumers, drop_unused_constants, nodes_after, sort_nodes

# LayerNormalization's epsilon of 1e-12 is zero in FP16, and its sum of squares may overflow.
_IN_FP32 = (*DEFAULT_OP_BLOCK_LIST, "LayerNormalization")


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with FP16 weights and arithmetic; inputs and outputs stay float32.

    FP32 is kept for normalisation and for everything after the last one: coordinates, camera and upsampling. That
    changes the mean error little (the backbone's rounding leads it) but keeps the mesh from standing on FP16's
    grid, whose steps are 0.5 mm at a metre from the root and show as a rough, flickering surface.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    norms = [node.name for node in model.graph.node if node.op_type == "LayerNormalization"]
    tail = nodes_after(model, lambda node: bool(norms) and node.name == norms[-1])
    result: onnx.ModelProto = convert_float_to_float16(
        copy, keep_io_types=True, op_block_list=list(_IN_FP32), node_block_list=sorted(tail)
    )
    _drop_round_trips(result)
    sort_nodes(result)
    drop_unused_constants(result)
    del result.graph.value_info[:]
    onnx.checker.check_model(result, full_check=True)
    return result


def _drop_round_trips(model: onnx.ModelProto) -> None:
    """Remove, in place, casts from float32 to float16 and back, between neighbours that both stay in FP32."""
    makers = {name: node for node in model.graph.node for name in node.output}
    outputs = {value.name for value in model.graph.output}
    readers = consumers(model)
    for node in model.graph.node:
        if not _is_cast(node, onnx.TensorProto.FLOAT):
            continue
        down = makers.get(node.input[0])
        if down is None or not _is_cast(down, onnx.TensorProto.FLOAT16):
            continue
        source = down.input[0]
        if node.output[0] not in outputs:
            for reader in readers.get(node.output[0], []):
                for place, name in enumerate(reader.input):
                    if name == node.output[0]:
                        reader.input[place] = source
        elif source in makers:
            # The name of a graph's output cannot change: whoever makes `source` makes the output instead.
            maker = makers[source]
            maker.output[list(maker.output).index(source)] = node.output[0]
            for reader in readers.get(source, []):
                for place, name in enumerate(reader.input):
                    if name == source:
                        reader.input[place] = node.output[0]
            node.input[0], node.output[0] = node.output[0], f"{node.output[0]}_unused"
    _drop_unread(model)


def _is_cast(node: onnx.NodeProto, target: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == target for a in node.attribute)


def _drop_unread(model: onnx.ModelProto) -> None:
    """Remove, in place, casts whose result nobody reads."""
    outputs = {value.name for value in model.graph.output}
    while True:
        read = outputs | {name for node in model.graph.node for name in node.input}
        dead = [n for n in model.graph.node if n.op_type == "Cast" and n.output[0] not in read]
        if not dead:
            return
        for node in dead:
            model.graph.node.remove(node)
