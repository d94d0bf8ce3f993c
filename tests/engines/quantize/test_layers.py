"""What of a graph can be quantised, whatever its nodes are called; roles and multiply-adds by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from engines.quantize.layers import (
    FLOAT_CONVOLUTIONS,
    MIN_WIDTH,
    Layer,
    attention_pairs,
    attribute,
    check_names,
    default_layers,
    image_shapes,
    linear_to_output,
    node_macs,
    node_names,
    quantisable,
    weight_place,
)
from metro_edge.errors import UserError
from tests.engines.quantize.graphs import TOKENS, attention, graph, node, normal

WIDE = MIN_WIDTH


def network() -> onnx.ModelProto:
    """Picture to tokens to a mesh, with every role but attention."""
    nodes = [
        node("Conv", "images w0 b0", "stem", strides=[2, 2], pads=[1, 1, 1, 1]),  # 8 x 4 x 4
        node("Relu", "stem", "stem_relu"),
        node("Conv", "stem_relu w1", "each", group=8, pads=[1, 1, 1, 1]),
        node("Conv", "each w2", "point"),
        node("Add", "point stem_relu", "sum"),
        node("Add", "sum table", "biased"),  # of a constant: no residual
        node("Conv", "biased w3", "groups", group=2),
        node("Reshape", "groups flat", "tokens"),  # 16 x 8
        node("MatMul", "tokens w4", "wide"),
        node("Gelu", "wide", "gelu"),
        node("MatMul", "gelu w5", "back"),
        node("Add", "back wide", "token_sum"),  # of tokens: no residual
        node("LayerNormalization", "token_sum gamma", "norm", axis=-1),
        node("MatMul", "norm w6", "thin"),
        node("Relu", "thin", "thin_relu"),
        node("MatMul", "thin_relu w7", "coordinates"),
        node("MatMul", "w8 coordinates", "y"),
    ]
    constants = {
        "w0": normal(0, 8, 3, 3, 3), "b0": normal(1, 8), "w1": normal(2, 8, 1, 3, 3), "w2": normal(3, 8, 8, 1, 1),
        "table": normal(4, 1, 8, 1, 1), "w3": normal(5, 8, 4, 1, 1), "flat": np.array([0, 16, 8]),
        "w4": normal(6, 8, WIDE), "w5": normal(7, WIDE, WIDE), "gamma": normal(8, WIDE),
        "w6": normal(9, WIDE, WIDE - 1), "w7": normal(10, WIDE - 1, 3), "w8": normal(11, 20, 16),
    }  # fmt: skip
    return graph(nodes, ("n", 3, 8, 8), constants)


def test_roles_and_multiply_adds():
    expected = [
        ("stem", "stem", 8 * 16 * 27, (8, 3, 3, 3)),
        ("each", "depthwise", 8 * 16 * 9, (8, 1, 3, 3)),
        ("point", "convolution", 8 * 16 * 8, (8, 8, 1, 1)),
        ("sum", "residual", 0, ()),
        ("groups", "convolution", 8 * 16 * 4, (8, 4, 1, 1)),
        ("wide", "narrow", 16 * 8 * WIDE, (8, WIDE)),
        ("back", "linear", 16 * WIDE * WIDE, (WIDE, WIDE)),
        ("thin", "narrow", 16 * WIDE * (WIDE - 1), (WIDE, WIDE - 1)),
        ("coordinates", "direct", 16 * 3 * (WIDE - 1), (WIDE - 1, 3)),
        ("y", "direct", 20 * 16 * 3, (20, 16)),
    ]
    assert quantisable(network()) == tuple(
        Layer(name, role, (name,), macs, shape) for name, role, macs, shape in expected
    )


@pytest.mark.parametrize("split", ["flat", "none"])
def test_an_attention_is_one_layer(split):
    model = attention(split)
    found = {layer.name: layer for layer in quantisable(model)}
    attentions = [layer for layer in found.values() if layer.role == "attention"]
    assert attentions == [Layer("scores", "attention", ("scores", "mix"), 2 * 4 * 6 * 6 * 4, ())]
    # What the values are made of reaches the output by linear operators alone, queries and keys do not.
    roles = {"qkv": "direct"} if split == "flat" else {"q": "narrow", "k": "narrow", "v": "direct"}
    assert {name: layer.role for name, layer in found.items()} == roles | {"scores": "attention", "y": "direct"}
    assert {name: second.name for name, second in attention_pairs(model).items()} == {"scores": "mix"}


def test_names_of_an_attention():
    """By what its products' names begin with, where they begin alike."""
    model = attention()
    for made in model.graph.node:
        if made.name in ("scores", "mix"):
            made.name = f"block.attention.{made.name}"
    found = next(layer for layer in quantisable(model) if layer.role == "attention")
    assert found.name == "block.attention" and found.nodes == ("block.attention.scores", "block.attention.mix")


def test_products_of_activations_that_are_no_pair():
    """Softmax is missing, read twice, or what is mixed is a constant: each product by itself."""
    nodes = [
        node("Transpose", "images", "t", perm=[0, 2, 1]), node("MatMul", "images t", "a"), node("Mul", "a half", "r"),
        node("MatMul", "r images", "y"),
    ]  # fmt: skip
    model = graph(nodes, TOKENS, {"half": np.full((), 0.5, np.float32)})
    assert [(layer.name, layer.role, layer.nodes) for layer in quantisable(model)] == [
        ("a", "attention", ("a",)), ("y", "attention", ("y",)),
    ]  # fmt: skip
    nodes[2] = node("Softmax", "a", "r", axis=-1)
    nodes += [node("Sigmoid", "r", "z")]
    assert attention_pairs(graph(nodes, TOKENS, {}, ["y", "z"])) == {}
    nodes[3:] = [node("MatMul", "r w", "y")]
    assert attention_pairs(graph(nodes, TOKENS, {"w": normal(0, 6, 4)})) == {}


def test_products_with_a_vector_are_no_layers():
    nodes = [node("MatMul", "images v", "a"), node("Relu", "a", "y")]
    assert quantisable(graph(nodes, TOKENS, {"v": normal(0, 16)})) == ()


def test_default_layers():
    """Neither the first convolutions, nor narrow and direct products, nor attention."""
    nodes, constants, now = [], {}, "images"
    for index in range(FLOAT_CONVOLUTIONS + 2):
        nodes.append(node("Conv", f"{now} w{index}", f"c{index}"))
        constants[f"w{index}"] = normal(index, 3, 3, 1, 1)
        now = f"c{index}"
    nodes[-1:] = [nodes[-1], node("Add", "c5 c6", "sum"), node("Relu", "sum", "y")]
    found = default_layers(graph(nodes, ("n", 3, 4, 4), constants))
    assert node_names(found) == ("c5", "c6", "sum")
    assert node_names(default_layers(network())) == ("sum", "back")
    assert default_layers(attention()) == ()


@pytest.mark.parametrize(
    ("made", "shape", "place"),
    [
        (node("Conv", "images w", "y"), (4, 3, 1, 1), (1, 0)),
        (node("MatMul", "images w", "y"), (5, 7), (1, 1)),
        (node("MatMul", "w images", "y"), (7, 5), (0, 0)),
        (node("MatMul", "images w", "y"), (2, 5, 7), (1, 2)),
        (node("MatMul", "w images", "y"), (2, 7, 5), (0, 1)),
        (node("MatMul", "images w", "y"), (5,), None),
        (node("Gemm", "images w", "y"), (5, 7), (1, 1)),
        (node("Gemm", "images w", "y", transB=1), (7, 5), (1, 0)),
        (node("Gemm", "w images", "y"), (5, 7), None),
        (node("Conv", "images v", "y"), (4, 3, 1, 1), None),
        (node("Add", "images w", "y"), (4,), None),
    ],
)
def test_places_of_weights(made, shape, place):
    known = {"w": onnx.numpy_helper.from_array(np.zeros(shape, np.float32), "w")}
    assert weight_place(made, known) == place


@pytest.mark.parametrize(
    ("made", "shapes", "macs"),
    [
        (node("Conv", "a b", "y", group=2), {"a": (1, 6, 9, 9), "b": (8, 3, 3, 3), "y": (1, 8, 7, 7)}, 8 * 49 * 27),
        (node("MatMul", "a b", "y"), {"a": (1, 4, 6, 5), "b": (1, 4, 5, 7), "y": (1, 4, 6, 7)}, 4 * 6 * 5 * 7),
        (node("Gemm", "a b", "y", transB=1), {"a": (6, 5), "b": (7, 5), "y": (6, 7)}, 6 * 5 * 7),
        (node("Gemm", "a b", "y", transA=1), {"a": (5, 6), "b": (5, 7), "y": (6, 7)}, 6 * 5 * 7),
        (node("Relu", "a", "y"), {"a": (6, 5), "y": (6, 5)}, 0),
        (node("MatMul", "a b", "y"), {"a": (6, 5), "y": (6, 7)}, 0),
    ],
)
def test_multiply_adds(made, shapes, macs):
    assert node_macs(made, shapes) == macs


@pytest.mark.parametrize("operator", ["Tanh", "Exp", "Softplus", "LeakyRelu", "Elu", "Sigmoid", "Sqrt", "Gelu"])
def test_what_is_not_linear_ends_the_way_to_an_output(operator):
    weights = {"w": normal(0, 16, 16), "v": normal(1, 16, 16)}
    nodes = [node("MatMul", "images w", "a"), node(operator, "a", "b"), node("MatMul", "b v", "y")]
    assert linear_to_output(graph(nodes, ("n", 6, 16), weights)) == {"y"}
    nodes[1] = node("Identity", "a", "b")
    assert linear_to_output(graph(nodes, ("n", 6, 16), weights)) == {"a", "b", "y"}


def test_what_reaches_an_output_linearly():
    model = network()
    assert linear_to_output(model) == {"y", "coordinates"}


def test_shapes_for_one_image():
    shapes = image_shapes(network())
    assert shapes["images"] == (1, 3, 8, 8) and shapes["stem"] == (1, 8, 4, 4) and shapes["tokens"] == (1, 16, 8)
    assert shapes["w4"] == (8, WIDE) and shapes["y"] == (1, 20, 3)


def test_attributes():
    made = node("Conv", "a b", "y", group=3)
    assert attribute(made, "group", 1) == 3 and attribute(made, "axis", -1) == -1


def test_nodes_must_have_names_of_their_own():
    model = network()
    check_names(model)
    model.graph.node[2].name = "stem"
    with pytest.raises(
        UserError, match="the graph has two nodes called 'stem'; a graph that `python -m engines convert`"
    ):
        quantisable(model)
    model.graph.node[2].name = ""
    with pytest.raises(UserError, match="the graph has a Conv without a name"):
        check_names(model)
