"""Graphs of several precisions: the types are as chosen, and change where that costs least."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from engines.graph import nodes_after
from engines.quantize.layers import image_shapes
from engines.quantize.loss import session
from engines.quantize.mixed import PRECISIONS, mixed
from engines.quantize.rounding import round_on_data
from metro_edge.errors import UserError
from tests.engines.quantize.graphs import constant, graph, kinds, node, normal, run

HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Return the type of every tensor."""
    found = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*found.value_info, *found.input, *found.output)}
    return types | {tensor.name: tensor.data_type for tensor in found.initializer}


def check_types(model: onnx.ModelProto, original: onnx.ModelProto, wanted: dict[str, str]) -> None:
    """Every node has the precision that was chosen for it; `wanted`: by node."""
    types, makers = types_of(model), {name: n for n in model.graph.node for name in n.output}
    norms = [n.name for n in original.graph.node if n.op_type == "LayerNormalization"]
    tail = nodes_after(original, lambda n: bool(norms) and n.name == norms[-1])
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == SINGLE
    assert [v.name for v in model.graph.output] == [v.name for v in original.graph.output]
    for made in model.graph.node:
        if made.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast"):
            continue
        precision = wanted.get(made.name)
        if made.op_type == "LayerNormalization" or made.name in tail:
            assert HALF not in {types[name] for name in (*made.input, *made.output)}
        elif precision is not None:
            expected = HALF if precision == "fp16" else SINGLE
            assert {types[name] for name in (*made.input, *made.output) if name} == {expected}, made.name
        if precision in ("int8", "fp8"):
            levels = {TensorProto.INT8 if precision == "int8" else TensorProto.FLOAT8E4M3FN}
            quantised = [makers[name] for name in made.input if name in makers]
            assert quantised and {n.op_type for n in quantised} == {"DequantizeLinear"}
            assert {types[n.input[0]] for n in quantised} == levels
        elif precision is not None:
            assert all(makers[name].op_type != "DequantizeLinear" for name in made.input if name in makers)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_mix_of_a_network_runs(network, data):
    codes = st.sampled_from(["fp32", "fp16", "int8"])
    choice = {layer.name: data.draw(codes) for layer in network.layers if data.draw(st.booleans())}
    model = mixed(network.model, choice, network.thresholds)
    onnx.checker.check_model(model, full_check=True)
    check_types(model, network.model, wanted_of(network, choice))
    exact = session(network.model)({"images": network.images[:2]})
    for values, found in zip(exact, session(model)({"images": network.images[:2]}), strict=True):
        assert found.dtype == np.float32 and found.shape == values.shape
        assert np.abs(found - values).max() < 0.2 * np.abs(values).max()


def wanted_of(network, choice: dict[str, str]) -> dict[str, str]:
    return {name: choice.get(layer.name, "fp32") for layer in network.layers for name in layer.nodes}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_precision_for_all(network, precision):
    choice = network.all(precision)
    model = mixed(network.model, choice, network.thresholds)
    onnx.checker.check_model(model, full_check=True)
    check_types(model, network.model, wanted_of(network, choice))
    assert ("Cast" in kinds(model)) == (precision == "fp16")
    types = types_of(model)
    if precision == "fp16":
        # Everything but normalisation and what follows its last is FP16: activation functions, sums and softmax too.
        halves = {n.op_type for n in model.graph.node if n.output and types[n.output[0]] == HALF}
        assert {"Conv", "Relu", "Softmax", "Gelu", "MatMul", "Add", "Transpose"} <= halves
        assert kinds(model).count("LayerNormalization") == 4
    if precision == "fp32":
        assert kinds(model) == kinds(network.model)
    if precision == "fp8":
        kept = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT8E4M3FN and t.dims]
        weights = [layer for layer in network.layers if layer.weight_shape]
        assert len([t for t in kept if len(t.dims) > 1]) == len(weights)


def test_nothing_chosen_changes_nothing(network):
    model = mixed(network.model, {}, {})
    assert [n.SerializeToString() for n in model.graph.node] == [
        n.SerializeToString() for n in network.model.graph.node
    ]
    assert {t.name for t in model.graph.initializer} == {t.name for t in network.model.graph.initializer}


def cast_sizes(model: onnx.ModelProto) -> list[tuple[str, int]]:
    """Return which tensors are cast to what, in order, with how many values."""
    shapes = image_shapes(model)
    return [(n.input[0], prod(shapes[n.input[0]])) for n in model.graph.node if n.op_type == "Cast"]


def backbone(last: str = "Conv") -> onnx.ModelProto:
    """Two convolutions and, between them, activation function and pooling; then a Relu."""
    nodes = [
        node("Conv", "images wa ba", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p wb", "b"),
        node("Relu", "b", "y"),
    ]
    constants = {"wa": normal(0, 4, 3, 3, 3), "ba": normal(1, 4), "wb": normal(2, 6, 4, 1, 1)}
    return graph(nodes, ("n", 3, 8, 8), constants)


@pytest.mark.parametrize(
    ("choice", "casts"),
    [
        ({"a": "fp16", "b": "fp16"}, ["images", "y_before_cast"]),
        ({"a": "fp16"}, ["images", "p"]),  # 64 values, where r has 256
        ({"b": "fp16"}, ["p", "y_before_cast"]),
        ({"a": "fp16", "b": "int8"}, ["images", "p"]),
        ({"a": "int8", "b": "fp16"}, ["p", "y_before_cast"]),
        ({"a": "int8", "b": "int8"}, []),
    ],
)
def test_casts_are_where_least_is_moved(choice, casts):
    model = backbone()
    images = normal(5, 2, 3, 8, 8)
    thresholds = {name: float(np.abs(values).max()) for name, values in run(model, images, ["p"]).items()}
    made = mixed(model, choice, thresholds | {"images": 4.0})
    assert [name for name, _ in cast_sizes(made)] == casts
    check_types(made, model, {"a": "fp32", "b": "fp32"} | choice)
    exact = run(model, images)["y"]
    assert np.abs(run(made, images)["y"] - exact).max() < 0.05 * np.abs(exact).max()


def test_one_cast_serves_all_readers():
    """Four layers of FP16 read what one of FP32 makes, and a Relu whose result is FP32 again."""
    nodes = [node("Conv", "images wa", "a")]
    nodes += [node("Conv", f"a w{i}", f"c{i}") for i in range(4)]
    nodes += [node("Conv", "a w4", "d"), node("Sum", "c0 c1 c2 c3", "s"), node("Add", "s d", "y")]
    constants = {"wa": normal(0, 4, 3, 1, 1)} | {f"w{i}": normal(i, 4, 4, 1, 1) for i in range(5)}
    model = graph(nodes, ("n", 3, 8, 8), constants)
    made = mixed(model, {f"c{i}": "fp16" for i in range(4)}, {})
    assert [name for name, _ in cast_sizes(made)] == ["a", "s"]


def test_an_output_that_is_read_on_keeps_name_and_type():
    nodes = [node("Conv", "images wa", "x"), node("Relu", "x", "r"), node("Conv", "r wb", "y")]
    model = graph(nodes, ("n", 3, 4, 4), {"wa": normal(0, 4, 3, 1, 1), "wb": normal(1, 2, 4, 1, 1)}, ["x", "y"])
    made = mixed(model, {"x": "fp16", "y": "fp16"}, {})
    check_types(made, model, {"x": "fp16", "y": "fp16"})
    images = normal(2, 2, 3, 4, 4)
    found = run(made, images)
    for name, values in run(model, images).items():
        np.testing.assert_allclose(found[name], values, atol=0.02)
    assert kinds(made).count("Cast") == 3


def test_constants_that_overflow_stay_fp32():
    large = np.full(4, 70_000.0, np.float32)
    model = backbone()
    next(t for t in model.graph.initializer if t.name == "ba").CopyFrom(onnx.numpy_helper.from_array(large, "ba"))
    made = mixed(model, {"a": "fp16", "b": "fp16"}, {})
    types = types_of(made)
    assert types["a"] == SINGLE and types["b"] == HALF
    assert (constant(made, "ba") == large).all()
    # Infinity, as masks have it, is the same in FP16.
    mask = np.array([0.0, -np.inf, 0.0, -np.inf], np.float32)
    next(t for t in model.graph.initializer if t.name == "ba").CopyFrom(onnx.numpy_helper.from_array(mask, "ba"))
    assert types_of(mixed(model, {"a": "fp16"}, {}))["a"] == HALF


def test_inputs_that_have_a_type_of_their_own():
    """Resize's scales are float32 whatever it resizes; Shape reads anything."""
    nodes = [
        node("Conv", "images wa", "a"),
        node("Resize", "a  scales", "z", mode="nearest"),
        node("Shape", "a", "size", start=0, end=1),
        node("Concat", "size rest", "shape", axis=0),
        node("Reshape", "z shape", "flat"),
        node("MatMul", "flat wb", "y"),
    ]
    constants = {
        "wa": normal(0, 4, 3, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32), "rest": np.array([-1]),
        "wb": normal(1, 4 * 8 * 8, 5),
    }  # fmt: skip
    model = graph(nodes, ("n", 3, 4, 4), constants)
    made = mixed(model, {"a": "fp16", "y": "fp16"}, {})
    types = types_of(made)
    assert types["z"] == HALF and types["scales"] == SINGLE
    assert [name for name, _ in cast_sizes(made)] == ["images", "y_before_cast"]
    images = normal(2, 2, 3, 4, 4)
    np.testing.assert_allclose(run(made, images)["y"], run(model, images)["y"], atol=0.1)


def test_rounded_weights_are_those_of_int8_layers():
    model, images, thresholds = backbone(), normal(5, 4, 3, 8, 8), {"images": 3.0, "p": 8.0}
    rounded = round_on_data(model, ["a", "b"], thresholds, [images])
    made = mixed(model, {"a": "int8", "b": "fp16"}, thresholds, rounded)
    assert (constant(made, "wa_quantized") == rounded["a"].levels).all()
    assert (constant(made, "wa_scale") == rounded["a"].scale).all()
    np.testing.assert_allclose(
        constant(made, "a.corrected_bias"), constant(model, "ba") - rounded["a"].shift, rtol=1e-6
    )
    assert (constant(made, "wb_fp16") == constant(model, "wb").astype(np.float16)).all()
    plain = mixed(model, {"a": "fp8"}, thresholds, rounded)
    assert (constant(plain, "ba") == constant(model, "ba")).all()


def test_the_fp32_graph_is_not_touched(network):
    before = network.model.SerializeToString()
    mixed(network.model, network.all("int8") | {network.layers[0].name: "fp16"}, network.thresholds)
    assert network.model.SerializeToString() == before


def test_bad_input(network):
    name = network.layers[0].name
    with pytest.raises(UserError, match="the graph has no layer called 'conv9'; known: backbone.conv1.0, "):
        mixed(network.model, {"conv9": "int8"}, network.thresholds)
    with pytest.raises(UserError, match=f"layer {name}: unknown precision 'int4'; known: fp32, fp16, int8, fp8"):
        mixed(network.model, {name: "int4"}, network.thresholds)
    with pytest.raises(UserError, match=r"no threshold is known for 'images' \(1 such tensors\)"):
        mixed(network.model, {name: "int8"}, {})
    nodes = [node("Conv", "images w", "y")]
    old = graph(nodes, ("n", 3, 4, 4), {"w": normal(0, 2, 3, 1, 1)}, opset=17)
    with pytest.raises(UserError, match="fp8 needs a graph of opset 19 or newer, this one has 17"):
        mixed(old, {"y": "fp8"}, {"images": 1.0})
    assert "QuantizeLinear" in kinds(mixed(old, {"y": "int8"}, {"images": 1.0}))
