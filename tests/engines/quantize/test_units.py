"""A graph divided into what runs together: no node twice, none lost, and all multiply-adds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from engines.quantize.layers import image_shapes, node_macs, quantisable
from engines.quantize.units import Plan, Unit, plan
from tests.engines.quantize.graphs import attention, graph, node, normal


def planned(model: onnx.ModelProto) -> Plan:
    return plan(model, quantisable(model))


def by_layer(found: Plan) -> dict[str, Unit]:
    return {unit.layer: unit for unit in found.units}


def check_partition(model: onnx.ModelProto, found: Plan) -> None:
    shapes, nodes = image_shapes(model), {n.name: n for n in model.graph.node}
    taken = [name for unit in found.units for name in unit.nodes]
    assert sorted([*taken, *found.rest]) == sorted(nodes)
    assert sum(unit.macs for unit in found.units) == sum(node_macs(n, shapes) for n in nodes.values())
    makers = {name: n.name for n in nodes.values() for name in n.output}
    for unit in found.units:
        assert makers[unit.output] == unit.nodes[-1]
        assert not {makers.get(name) for name in unit.inputs} & set(unit.nodes)
        assert set(unit.quantised) <= set(unit.inputs)
        for name in unit.nodes[:-1]:  # what is made inside is read inside alone
            readers = [n.name for n in nodes.values() if set(nodes[name].output) & set(n.input)]
            assert set(readers) <= set(unit.nodes)
    assert found.sizes == {n: int(np.prod(s)) for n, s in shapes.items() if n in {"images", *makers}}


def test_a_network(network):
    found = plan(network.model, network.layers)
    check_partition(network.model, found)
    layers = {layer.name: layer for layer in network.layers}
    for unit in found.units:
        layer = layers[unit.layer]
        assert (unit.role, unit.macs) == (layer.role, layer.macs)
        assert (
            unit.depth * unit.width == unit.weights == (int(np.prod(layer.weight_shape)) if layer.weight_shape else 0)
        )
    readers = {name: {u.layer for u in found.units if name in u.quantised} for name in found.readers}
    assert {name: set(found) for name, found in found.readers.items()} == readers


def backbone(**outputs) -> onnx.ModelProto:
    nodes = [
        node("Conv", "images wa", "a"),
        node("Add", "a bias", "ab"),
        node("Clip", "ab low high", "ac"),
        node("Conv", "ac wb", "b"),
        node("Relu", "b", "br"),
        node("Add", "ac br", "sum"),
        node("Relu", "sum", "out"),
        node("MaxPool", "out", "pool", kernel_shape=[2, 2]),
        node("Conv", "pool wc", "c"),
        node("Mul", "c c", "square"),
        node("Sigmoid", "square", "y"),
    ]
    constants = {
        "wa": normal(0, 4, 3, 3, 3), "bias": normal(1, 4, 1, 1), "low": np.zeros((), np.float32),
        "high": np.full((), 6, np.float32), "wb": normal(2, 4, 4, 1, 1), "wc": normal(3, 6, 4, 2, 2),
    }  # fmt: skip
    return graph(nodes, ("n", 3, 8, 8), constants, **outputs)


def test_what_is_fused_to_a_layer():
    found = by_layer(planned(backbone()))
    check_partition(backbone(), planned(backbone()))
    assert found["a"] == Unit(
        layer="a", role="stem", macs=4 * 36 * 27, inputs=("images",), quantised=("images",), output="ac",
        nodes=("a", "ab", "ac"), readers=("b", "sum"), depth=27, width=4, weights=108,
    )  # fmt: skip
    assert found["b"].nodes == ("b", "br") and found["b"].readers == ("sum",)
    assert found["sum"].nodes == ("sum", "out") and found["sum"].inputs == ("ac", "br")
    assert found["sum"].readers == (None,)  # MaxPool is no layer
    assert found["c"].nodes == ("c",) and found["c"].readers == (None,)  # Mul reads it twice
    assert planned(backbone()).rest == ("pool", "square", "y")
    assert planned(backbone()).readers == {"images": ("a",), "ac": ("b", "sum"), "br": ("sum",), "pool": ("c",)}


def test_sums_of_tokens_belong_to_neither_of_their_makers():
    nodes = [node("MatMul", "images wa", "a"), node("MatMul", "images wb", "b"), node("Add", "a b", "y")]
    model = graph(nodes, ("n", 6, 16), {"wa": normal(0, 16, 4), "wb": normal(1, 16, 4)})
    check_partition(model, planned(model))
    assert [(unit.layer, unit.nodes) for unit in planned(model).units] == [("a", ("a",)), ("b", ("b",))]


def test_a_sum_of_one_map_with_itself_is_a_layer_of_its_own():
    nodes = [node("Conv", "images wa", "a"), node("Add", "a a", "y")]
    model = graph(nodes, ("n", 3, 4, 4), {"wa": normal(0, 4, 3, 1, 1)})
    assert [(unit.role, unit.nodes) for unit in planned(model).units] == [("stem", ("a",)), ("residual", ("y",))]


@pytest.mark.parametrize(("output", "nodes"), [("a", ("a",)), ("ab", ("a", "ab")), ("ac", ("a", "ab", "ac"))])
def test_an_output_ends_a_unit(output, nodes):
    model = backbone(outputs=["y", output])
    check_partition(model, planned(model))
    found = by_layer(planned(model))["a"]
    assert found.nodes == nodes and found.output == output
    assert found.readers == (("b", "sum", None) if output == "ac" else (None,))


def test_an_attention_holds_what_is_between_its_products():
    model = attention()
    index = next(i for i, n in enumerate(model.graph.node) if n.name == "weights")
    scale = node("Mul", "scores scale", "scaled")
    mask = node("Add", "mask scaled", "masked")
    nodes = [*model.graph.node[:index], scale, mask, node("Softmax", "masked", "weights", axis=-1)]
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    constants |= {"scale": np.full((), 0.5, np.float32), "mask": normal(0, 6, 6)}
    model = graph([*nodes, *model.graph.node[index + 1 :]], ("n", 6, 16), constants)
    check_partition(model, planned(model))
    found = by_layer(planned(model))
    assert found["scores"].nodes == ("scores", "scaled", "masked", "weights", "mix")
    assert found["scores"].inputs == found["scores"].quantised == ("qt", "kt", "vt")
    assert (found["scores"].depth, found["scores"].width, found["scores"].weights) == (0, 0, 0)
    assert found["qkv"].nodes == ("qkv", "qkv_sum") and (found["qkv"].depth, found["qkv"].width) == (16, 48)


@pytest.mark.parametrize(
    ("made", "shape", "weight"),
    [
        (node("MatMul", "images w", "y"), ("n", 6, 5), (5, 7)),
        (node("Gemm", "images w", "y", transB=1), ("n", 5), (7, 5)),
        (node("MatMul", "w images", "y"), ("n", 5, 6), (7, 5)),
        (node("Conv", "images w", "y"), ("n", 5, 6), (7, 5, 1)),
    ],
)
def test_depth_and_width_are_what_a_product_reads_and_makes(made, shape, weight):
    (unit,) = planned(graph([made], shape, {"w": normal(0, *weight)})).units
    assert (unit.depth, unit.width, unit.weights, unit.macs % 35) == (5, 7, 35, 0)
