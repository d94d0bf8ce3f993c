"""Q/DQ nodes into a graph, as TensorRT takes them; the CPU twin of INT8 is metro_edge.backends.cpu_twin.

Weights are quantised per output channel, activations symmetrically per tensor, biases stay float (TensorRT refuses
DequantizeLinear of int32). Every quantised operator has Q/DQ at its inputs, behind the activation function that
made them, which is where TensorRT fuses best; a tensor is quantised once for all its readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from engines.graph import constants, drop_unused_constants, sort_nodes, value_of
from engines.quantize.layers import weight_place
from engines.quantize.rounding import Rounded, correct_biases
from engines.quantize.weights import FORMATS, quantised, weight_scale
from metro_edge.errors import UserError

FP8_OPSET = 19  # the first whose Q/DQ know float8
_SUFFIXES = {"int8": "", "fp8": "_fp8"}


def activations(model: onnx.ModelProto, nodes: Iterable[str]) -> list[str]:
    """Return the tensors that the named nodes read and that are not constants, in order."""
    known, chosen = constants(model), set(nodes)
    names = (name for node in model.graph.node if node.name in chosen for name in node.input)
    return list(dict.fromkeys(name for name in names if name and name not in known))


def insert_qdq(
    model: onnx.ModelProto,
    nodes: Iterable[str],
    thresholds: Mapping[str, float],
    kind: str = "int8",
    rounded: Mapping[str, Rounded] | None = None,
) -> onnx.ModelProto:
    """Return the graph with Q/DQ at the inputs of the named nodes.

    Args:
        model: FP32 graph.
        nodes: names of Conv, MatMul, Gemm and Add nodes.
        thresholds: per activation the magnitude of the greatest level: 127 of int8, 448 of float8e4m3fn.
        kind: int8 or fp8.
        rounded: of int8 nodes, by name, weights rounded on data; without, each weight goes to its nearest level.

    Raises:
        UserError: an unknown kind, a node or threshold that is missing, fp8 in a graph older than opset 19.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kinds = dict.fromkeys(nodes, kind)
    chosen = rounded_int8(kinds, rounded)
    correct_biases(result, chosen)
    quantise_inputs(result, kinds, thresholds, chosen)
    finish(result)
    return result


def quantise_inputs(
    model: onnx.ModelProto,
    kinds: Mapping[str, str],
    thresholds: Mapping[str, float],
    rounded: Mapping[str, Rounded],
) -> None:
    """Put Q/DQ at the inputs of nodes, in place and out of order; `kinds`: name of a node -> int8 or fp8.

    Raises UserError as insert_qdq does.
    """
    _check(model, kinds, thresholds)
    known = constants(model)
    writer = _Writer(model, thresholds)
    for node in [n for n in model.graph.node if n.name in kinds]:
        kind = kinds[node.name]
        place = weight_place(node, known)
        for index, name in enumerate(node.input):
            if name and name not in known:
                node.input[index] = writer.activation(name, kind)
            elif place is not None and index == place[0]:
                node.input[index] = writer.weight(known[name], place[1], kind, rounded.get(node.name))


def finish(model: onnx.ModelProto) -> None:
    """Sort, clean and check a rewritten graph, in place."""
    sort_nodes(model)
    drop_unused_constants(model)
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)


def rounded_int8(kinds: Mapping[str, str], rounded: Mapping[str, Rounded] | None) -> dict[str, Rounded]:
    """Return what of `rounded` belongs to nodes that become int8."""
    return {name: found for name, found in (rounded or {}).items() if kinds.get(name) == "int8"}


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators that a graph is written in."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _check(model: onnx.ModelProto, kinds: Mapping[str, str], thresholds: Mapping[str, float]) -> None:
    for kind in set(kinds.values()) - FORMATS.keys():
        raise UserError(f"unknown kind of quantisation {kind!r}; known: {', '.join(FORMATS)}")
    if missing := sorted(kinds.keys() - {node.name for node in model.graph.node}):
        raise UserError(f"the graph has no node called {missing[0]!r} ({len(missing)} such names)")
    if missing := [name for name in activations(model, kinds) if name not in thresholds]:
        raise UserError(f"no threshold is known for {missing[0]!r} ({len(missing)} such tensors): calibrate them first")
    if "fp8" in kinds.values() and opset_of(model) < FP8_OPSET:
        raise UserError(f"fp8 needs a graph of opset {FP8_OPSET} or newer, this one has {opset_of(model)}")


class _Writer:
    """Adds Q and DQ nodes to a graph, each once.

    Their scales are float32, and so is what they read and make: ONNX Runtime 1.32 takes float16 scales for float32
    ones when it fuses INT8 convolutions, and returns rubbish.
    """

    def __init__(self, model: onnx.ModelProto, thresholds: Mapping[str, float]) -> None:
        self.graph, self.thresholds = model.graph, thresholds
        self.made: set[str] = set()
        self.weights: dict[tuple[str, str], list[tuple[int, Rounded | None]]] = {}

    def activation(self, name: str, kind: str) -> str:
        """Quantise an activation and return it dequantised."""
        form, suffix = FORMATS[kind], _SUFFIXES[kind]
        result = f"{name}_dequantized{suffix}"
        if result not in self.made:
            parameters = [
                self._constant(f"{name}_scale{suffix}", form.scale(np.array(self.thresholds[name]))),
                self._constant(f"zero_point{suffix}", np.zeros((), form.dtype)),
            ]
            levels = f"{name}_quantized{suffix}"
            self._node("QuantizeLinear", [name, *parameters], levels, f"{name}_Q{suffix}")
            self._node("DequantizeLinear", [levels, *parameters], result, f"{name}_DQ{suffix}")
        return result

    def weight(self, tensor: onnx.TensorProto, axis: int, kind: str, rounded: Rounded | None) -> str:
        """Store a weight as levels with one scale per output channel, along `axis`, and return it dequantised."""
        form, name = FORMATS[kind], tensor.name
        # One tensor may be the factor of two products, rounded on the inputs of each, or along either axis.
        written = self.weights.setdefault((name, kind), [])
        key = (axis, rounded)
        if key not in written:
            written.append(key)
        place = written.index(key)
        suffix = _SUFFIXES[kind] + (f"_{place + 1}" if place else "")
        result = f"{name}_dequantized{suffix}"
        if result not in self.made:
            weight = value_of(tensor)
            scale = weight_scale(weight, axis, kind) if rounded is None else rounded.scale
            levels = quantised(weight, scale, axis, kind) if rounded is None else rounded.levels
            inputs = [
                self._constant(f"{name}_quantized{suffix}", levels),
                self._constant(f"{name}_scale{suffix}", scale),
                self._constant(f"{name}_zero_point{suffix}", np.zeros(len(scale), form.dtype)),
            ]
            self._node("DequantizeLinear", inputs, result, f"{name}_DQ{suffix}", axis=axis)
        return result

    def _node(self, operator: str, inputs: list[str], output: str, name: str, **attributes: int) -> None:
        self.made.add(output)
        self.graph.node.append(helper.make_node(operator, inputs, [output], name=name, **attributes))  # type: ignore[arg-type]

    def _constant(self, name: str, values: NDArray) -> str:
        if name not in self.made:
            self.made.add(name)
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name
