"""Names in a graph: a node is called after the module whose weight it holds, others after what they follow."""

from __future__ import annotations

import onnx

from engines.graph import consumers

_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_PREFIXES = ("network.", "backbone.model.")  # of the exported wrapper, and of the timm model inside our backbone


def name_graph(model: onnx.ModelProto) -> None:
    """Name nodes, their results and constants, in place; unique, and the same whenever the same network is exported.

    - a convolution or product with a constant weight: the weight's module path, `encoders.0.layers.1.ffn_input`;
      weight and bias are NAME.weight and NAME.bias;
    - the products of attention: `LAYER.attention.scores`, `LAYER.attention.mix`, between them `.softmax`;
    - normalisation: the path of its module;
    - any other: the name of the node before it and its operator, `encoders.0.layers.1.ffn_input/Gelu`.
    A tensor is called after the node that makes it; the graph's inputs and outputs keep their names.
    """
    names = _node_names(model)
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    new: dict[str, str] = {}
    taken = set(kept)
    for node, name in zip(model.graph.node, names, strict=True):
        for place, tensor in enumerate(node.output):
            if tensor and tensor not in kept:
                new[tensor] = _unique(name if len(node.output) == 1 else f"{name}.{place}", taken)
    known = {tensor.name for tensor in model.graph.initializer}
    for node, name in zip(model.graph.node, names, strict=True):
        for place, tensor in enumerate(node.input):
            if tensor in known and tensor not in new:
                new[tensor] = _unique(_constant_name(node, name, place, tensor), taken)
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
        node.input[:] = [new.get(tensor, tensor) for tensor in node.input]
        node.output[:] = [new.get(tensor, tensor) for tensor in node.output]
    for stored in model.graph.initializer:
        stored.name = new.get(stored.name, stored.name)
    for value in model.graph.value_info:  # ONNX Runtime fuses sums with the norms after them only where shapes are told
        value.name = new.get(value.name, value.name)


def _node_names(model: onnx.ModelProto) -> list[str]:
    known = {tensor.name for tensor in model.graph.initializer}
    attention = _attention(model, known)
    names: list[str] = []
    after: dict[str, str] = {}  # tensor -> name of the weighted node that it follows
    layer = ""
    taken: set[str] = set()
    for node in model.graph.node:
        weights = [name for name in node.input[1:2] if name in known]
        own = node.op_type in (*_WEIGHTED, "LayerNormalization", "BatchNormalization") and weights
        path = _module_path(weights[0]) if own else ""
        if part := attention.get(node.output[0]):
            name = root = f"{layer}.attention.{part}" if layer else f"attention.{part}"
        elif path:
            name = root = path
            layer = path.removesuffix(".qkv") if path.endswith(".qkv") else layer
        else:
            # A network without weights before the node starts with the operator's name alone.
            root = next((after[tensor] for tensor in node.input if tensor in after), "")
            name = f"{root}/{node.op_type}" if root else node.op_type
        names.append(_unique(name, taken))
        after.update(dict.fromkeys(node.output, root))
    return names


def _attention(model: onnx.ModelProto, known: set[str]) -> dict[str, str]:
    """Return, per tensor, what part of attention makes it: the softmax between two products of activations, or they."""
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = consumers(model)
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "Softmax":
            continue
        before = makers.get(node.input[0])
        while before is not None and before.op_type in ("Mul", "Div", "Add"):
            before = next((makers[name] for name in before.input if name in makers), None)
        mixes = [n for n in readers.get(node.output[0], []) if n.op_type == "MatMul"]
        if before is not None and before.op_type == "MatMul" and not known & set(before.input) and mixes:
            found |= {before.output[0]: "scores", node.output[0]: "softmax", mixes[0].output[0]: "mix"}
    return found


def _module_path(weight: str) -> str:
    """Return the module path that a weight's name tells; empty for a constant that the exporter named."""
    path = weight.removesuffix(".weight")
    if path == weight:
        return ""
    for prefix in _PREFIXES:
        path = path.replace(prefix, "backbone." if prefix.startswith("backbone") else "", 1)
    return path


def _constant_name(node: onnx.NodeProto, name: str, place: int, tensor: str) -> str:
    if node.op_type in (*_WEIGHTED, "LayerNormalization"):
        return f"{name}.{ {1: 'weight', 2: 'bias'}.get(place, f'input{place}') }"
    if "network." in tensor:  # a parameter of the module that was exported
        return _module_path(f"{tensor}.weight")
    return f"{name}.input{place}"


def _unique(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free
