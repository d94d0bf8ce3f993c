"""One graph of INT8, FP8, FP16 and FP32 layers: the types are in the graph, so every engine library builds the same.

A layer has the precision chosen for it; quantised ones give and take float32, and so do Q and DQ. Everything else
(activation functions, sums, shapes) takes float16 or float32 so that the casts move as few values as possible: a
minimum cut between the nodes that must be float16 and those that must be float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.graph import constants, nodes_after, value_of
from engines.quantize.cut import minimum_cut
from engines.quantize.layers import image_shapes, quantisable
from engines.quantize.qdq import finish, quantise_inputs, rounded_int8
from engines.quantize.rounding import Rounded, correct_biases
from engines.quantize.weights import FORMATS
from metro_edge.errors import UserError

PRECISIONS = ("fp32", "fp16", "int8", "fp8")
# LayerNormalization's epsilon of 1e-12 is zero in FP16, and its sum of squares may overflow.
_IN_FP32 = ("LayerNormalization",)
_FLOAT32_INPUTS = {"Resize": (1, 2)}  # float32 by the standard, whatever the picture's type
_EITHER = ("Shape", "Size")  # read tensors of any type
_LARGEST_HALF = 65504.0
_MOST = 1 << 20  # values a tensor counts for at most, which keeps sums small
_HALF, _SINGLE = "_fp16", "_fp32"


def mixed(
    model: onnx.ModelProto,
    choice: Mapping[str, str],
    thresholds: Mapping[str, float],
    rounded: Mapping[str, Rounded] | None = None,
) -> onnx.ModelProto:
    """Return the graph with a precision per layer; inputs and outputs stay float32.

    Normalisation stays FP32, and so does everything after the last one (coordinates, camera, upsampling) unless it
    is quantised: the mesh would stand on FP16's grid, whose steps are 0.5 mm at a metre from the root and show as a
    rough, flickering surface.

    Args:
        model: FP32 graph.
        choice: name of a layer (`quantisable`) -> fp32, fp16, int8 or fp8; those left out are fp32.
        thresholds: of the activations that int8 and fp8 layers read, see insert_qdq.
        rounded: weights rounded on data, by node (`round_on_data`), of which int8 layers take theirs.

    Raises:
        UserError: an unknown layer or precision, or a missing threshold.
    """
    layers = {layer.name: layer for layer in quantisable(model)}
    for name, precision in choice.items():
        if name not in layers:
            raise UserError(f"the graph has no layer called {name!r}; known: {', '.join(list(layers)[:5])}, ...")
        if precision not in PRECISIONS:
            raise UserError(f"layer {name}: unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    wanted = {node: choice.get(name, "fp32") for name, layer in layers.items() for node in layer.nodes}
    kinds = {node: precision for node, precision in wanted.items() if precision in FORMATS}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    chosen = rounded_int8(kinds, rounded)
    correct_biases(result, chosen)
    floats = float_tensors(result)
    halves = _half_nodes(result, wanted, floats) if "fp16" in wanted.values() else set()
    made_half = {name for node in result.graph.node if node.name in halves for name in node.output if name in floats}
    quantise_inputs(result, kinds, thresholds, chosen)
    _insert_casts(result, halves, floats, made_half)
    _cast_outputs(result, made_half)
    finish(result)
    return result


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Return the names of the tensors, constants included, that are float32."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            found.add(value.name)
    return found


def _half_nodes(model: onnx.ModelProto, wanted: Mapping[str, str], floats: set[str]) -> set[str]:
    """Return the names of the nodes that compute in float16, so that the fewest values are cast."""
    norms = [node.name for node in model.graph.node if node.op_type in _IN_FP32]
    tail = nodes_after(model, lambda node: bool(norms) and node.name == norms[-1])
    known = constants(model)
    nodes = [node for node in model.graph.node if floats & set(node.output)]
    half, single = set(), {""}  # "" stands for what is outside of the graph
    for node in nodes:
        inputs = [name for name in node.input if name in floats]
        if node.op_type in _IN_FP32 or node.name in tail or not inputs or _too_large(node, known):
            single.add(node.name)
        elif wanted.get(node.name) == "fp16":
            half.add(node.name)
        elif node.name in wanted:
            single.add(node.name)
    shapes = image_shapes(model)
    outside = {value.name for value in model.graph.output}
    makers = {name: node.name for node in nodes for name in node.output if name in floats}
    makers |= {value.name: "" for value in model.graph.input if value.name in floats}
    edges = []
    for tensor, maker in makers.items():
        readers = [node.name for node in nodes if tensor in _typed_inputs(node)]
        readers += [""] if tensor in outside else []
        if readers:
            edges.append((maker, readers, min(_MOST, prod(shapes.get(tensor, (1,))))))
    return minimum_cut([node.name for node in nodes], half, single, edges) - single


def _typed_inputs(node: onnx.NodeProto) -> list[str]:
    """Return the inputs that have the type the node computes in, if they are floats."""
    fixed = _FLOAT32_INPUTS.get(node.op_type, ())
    return [name for index, name in enumerate(node.input) if index not in fixed]


def _too_large(node: onnx.NodeProto, known: Mapping[str, TensorProto]) -> bool:
    """Return whether a constant of the node overflows in float16."""
    for name in node.input:
        if name in known and known[name].data_type == TensorProto.FLOAT:
            values = value_of(known[name])
            if np.abs(values[np.isfinite(values)]).max(initial=0.0) > _LARGEST_HALF:
                return True
    return False


def _insert_casts(model: onnx.ModelProto, halves: set[str], floats: set[str], made_half: set[str]) -> None:
    """Give every node, in place, its float inputs in the type it computes in."""
    known = constants(model)
    casts: dict[str, onnx.NodeProto] = {}
    added: dict[str, TensorProto] = {}
    for node in model.graph.node:
        half, typed = node.name in halves, set(_typed_inputs(node))
        if node.op_type in _EITHER:
            continue
        for index, name in enumerate(node.input):
            if name not in floats or name not in typed or half == (name in made_half):
                continue
            target = f"{name}{_HALF if half else _SINGLE}"
            if name in known:
                added[target] = numpy_helper.from_array(value_of(known[name]).astype(np.float16), target)
            else:
                kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
                casts[target] = helper.make_node("Cast", [name], [target], f"{target}_cast", to=kind)
            node.input[index] = target
    model.graph.initializer.extend(added.values())
    model.graph.node.extend(casts.values())


def _cast_outputs(model: onnx.ModelProto, made_half: set[str]) -> None:
    """Cast, in place, the graph's outputs that a float16 node makes; their names stay the outputs'."""
    for name in [value.name for value in model.graph.output if value.name in made_half]:
        inner = f"{name}_before_cast"
        for node in model.graph.node:
            for names in (node.input, node.output):
                for index, found in enumerate(names):
                    if found == name:
                        names[index] = inner
        model.graph.node.append(helper.make_node("Cast", [inner], [name], f"{name}_cast", to=TensorProto.FLOAT))
