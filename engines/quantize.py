"""FP32 ONNX -> INT8 ONNX with Q/DQ nodes, as TensorRT takes it; its CPU twin is metro_edge.backends.int8_twin.

Weights are int8 per output channel, activations symmetric int8 per tensor, biases stay float32 (TensorRT refuses
DequantizeLinear of int32). Every quantised operator has Q/DQ at its inputs, behind the activation function that
made them, which is where TensorRT fuses best; a tensor is quantised once for all its readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from engines.calibrate import LEVELS, calibrate
from engines.graph import constants, drop_unused_constants, nodes_after, sort_nodes, value_of

METHOD = "mse"
MIN_WIDTH = 128  # of a linear layer, below which INT8 saves nothing worth its error
FLOAT_CONVOLUTIONS = 5
_ZERO_POINT = "zero_point"
_NOT_LINEAR = ("LayerNormalization", "Softmax", "Gelu", "Erf", "Relu", "Clip", "Sigmoid", "HardSwish", "Conv")


@dataclass(frozen=True)
class Groups:
    """Names of the nodes that could be quantised, by the part they play, and what quantising them costs.

    The costs were measured on a briefly trained `metro_edge` whose predictions vary by 180 mm: mean vertex
    distance from FP32, each group alone, 24 held-out people.

    Attributes:
        convolutions: of the backbone, and the one that mixes grid positions into tokens.
        residuals: sums of two feature maps in the backbone; needed between INT8 convolutions, 1 to 2 mm.
        linear: products of tokens with a weight matrix inside the encoder's layers; under 0.2 mm each.
        first: the first FLOAT_CONVOLUTIONS convolutions, where few channels carry the whole picture: 11 and 13 mm
            for the first two, nearly half of what the whole backbone costs; three more take the shipped network
            from 10.8 to 9.8 mm.
        direct: products with a weight matrix from which only linear operators lead to an output: the blocks'
            residuals (up to 36 mm: the template's coordinates pass through them, in steps of 4 cm when
            quantised) and output projections, coordinates, camera, upsampling (6 mm).
        narrow: products with a weight matrix less than MIN_WIDTH wide, such as those of the last block; no gain.
        attention: products of two activations; no gain, and TensorRT's fused attention is lost.
    """

    convolutions: tuple[str, ...]
    residuals: tuple[str, ...]
    linear: tuple[str, ...]
    first: tuple[str, ...]
    direct: tuple[str, ...]
    narrow: tuple[str, ...]
    attention: tuple[str, ...]

    @property
    def chosen(self) -> tuple[str, ...]:
        """What is quantised: the first three groups."""
        return (*self.convolutions, *self.residuals, *self.linear)


def node_groups(model: onnx.ModelProto) -> Groups:
    """Sort the nodes of a simplified graph into Groups."""
    known = constants(model)
    tokens = nodes_after(model, lambda node: node.op_type == "MatMul")
    direct = linear_to_output(model)
    found: dict[str, list[str]] = {name: [] for name in Groups.__dataclass_fields__}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in known:
            early = len(found["first"]) < FLOAT_CONVOLUTIONS
            found["first" if early else "convolutions"].append(node.name)
        elif node.op_type == "Add" and node.name not in tokens and not known.keys() & set(node.input):
            found["residuals"].append(node.name)
        elif node.op_type == "MatMul" and node.input[1] in known:
            narrow = min(known[node.input[1]].dims) < MIN_WIDTH
            group = "direct" if node.name in direct else "narrow" if narrow else "linear"
            found[group].append(node.name)
        elif node.op_type == "MatMul":
            found["attention"].append(node.name)
    return Groups(**{name: tuple(names) for name, names in found.items()})


def linear_to_output(model: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes from which some output is reached through linear operators alone."""
    wanted = {value.name for value in model.graph.output}
    names = set()
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output) and node.op_type not in _NOT_LINEAR:
            names.add(node.name)
            wanted.update(node.input)
    return names


def quantise(
    model: onnx.ModelProto,
    batches: Iterable[NDArray[np.float32]],
    method: str = METHOD,
    nodes: Sequence[str] | None = None,
) -> onnx.ModelProto:
    """Calibrate a simplified FP32 graph on batches of images (N, 3, S, S) and return its INT8 graph.

    Args:
        model: FP32 graph.
        batches: normalised images as the network takes them.
        method: how a tensor's range is chosen, see Magnitudes.threshold.
        nodes: names of the nodes to quantise; None chooses (`Groups.chosen`).

    Raises:
        UserError: no image, or values that are not finite.
    """
    chosen = node_groups(model).chosen if nodes is None else nodes
    magnitudes = calibrate(model, activations(model, chosen), batches)
    return insert_qdq(model, chosen, {name: found.threshold(method) for name, found in magnitudes.items()})


def activations(model: onnx.ModelProto, nodes: Iterable[str]) -> list[str]:
    """Return the tensors that the named nodes read and that are not constants, in order."""
    known, chosen = constants(model), set(nodes)
    names = (name for node in model.graph.node if node.name in chosen for name in node.input)
    return list(dict.fromkeys(name for name in names if name and name not in known))


def insert_qdq(model: onnx.ModelProto, nodes: Iterable[str], thresholds: Mapping[str, float]) -> onnx.ModelProto:
    """Return the graph with Q/DQ at the inputs of the named nodes.

    Args:
        model: FP32 graph.
        nodes: names of Conv, MatMul and Add nodes.
        thresholds: per activation the magnitude of int8 level 127.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    known, chosen = constants(result), set(nodes)
    made: dict[str, str] = {}
    _add_constant(result, _ZERO_POINT, np.zeros((), np.int8))
    for node in [n for n in result.graph.node if n.name in chosen]:
        for place, name in enumerate(node.input):
            if name in known and not (place == 1 and node.op_type in ("Conv", "MatMul")):
                continue  # a bias
            if name not in made:
                axis = 0 if node.op_type == "Conv" else 1
                made[name] = (
                    _dequantised_weight(result, known[name], axis)
                    if name in known
                    else _quantised_activation(result, name, thresholds[name])
                )
            node.input[place] = made[name]
    sort_nodes(result)
    drop_unused_constants(result)
    del result.graph.value_info[:]
    onnx.checker.check_model(result, full_check=True)
    return result


def _quantised_activation(model: onnx.ModelProto, name: str, threshold: float) -> str:
    scale = _add_constant(model, f"{name}_scale", np.float32(_scale(np.array(threshold))))
    quantised, result = f"{name}_quantized", f"{name}_dequantized"
    model.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", [name, scale, _ZERO_POINT], [quantised], f"{name}_Q"),
            helper.make_node("DequantizeLinear", [quantised, scale, _ZERO_POINT], [result], f"{name}_DQ"),
        ]
    )
    return result


def _dequantised_weight(model: onnx.ModelProto, tensor: onnx.TensorProto, axis: int) -> str:
    """Store a weight as int8 with one scale per output channel, along `axis`, and return what stands for it."""
    weight = value_of(tensor)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = _scale(np.abs(weight).max(axis=others))
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    levels = np.clip(np.rint(weight / scale.reshape(shape)), -LEVELS, LEVELS).astype(np.int8)
    name = tensor.name
    inputs = [
        _add_constant(model, f"{name}_quantized", levels),
        _add_constant(model, f"{name}_scale", scale),
        _add_constant(model, f"{name}_zero_point", np.zeros(len(scale), np.int8)),
    ]
    node = helper.make_node("DequantizeLinear", inputs, [f"{name}_dequantized"], f"{name}_DQ", axis=axis)
    model.graph.node.append(node)
    return f"{name}_dequantized"


def _scale(largest: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the step between int8 levels; what is always zero gets any positive one."""
    return np.where(largest > 0, largest / LEVELS, 1.0).astype(np.float32)


def _add_constant(model: onnx.ModelProto, name: str, values: NDArray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name
