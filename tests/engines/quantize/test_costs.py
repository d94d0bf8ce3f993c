"""Times that are added up: of units, of changing types between them, and of a device's table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.quantize.costs import PLAIN, Costs
from engines.quantize.predict import predicted_costs
from engines.quantize.units import Plan, Unit, plan
from metro_edge.devices import device
from metro_edge.errors import UserError

PRECISIONS = ("int8", "fp16", "fp32")


def unit(layer: str, inputs: tuple[str, ...], output: str, readers: tuple[str | None, ...]) -> Unit:
    return Unit(layer, "convolution", 1000, inputs, inputs, output, (layer,), readers, 64, 64, 4096)


def chain() -> Costs:
    """images -> a -> x -> b -> y; x is also read by c, whose output nothing but other nodes read."""
    units = (
        unit("a", ("images",), "x", ("b", "c")),
        unit("b", ("x",), "y", (None,)),
        unit("c", ("x",), "z", (None,)),
    )
    readers = {"images": ("a",), "x": ("b", "c")}
    made = Plan(units, {"images": 10, "x": 10, "y": 10, "z": 10}, readers, ())
    ms = {("fp32", PLAIN): 10.0, ("fp16", PLAIN): 6.0, ("int8", PLAIN): 4.0, ("int8", "int8"): 3.0}
    names = ("images", "x", "y", "z")
    quantise = {name: {"int8": 0.5, "fp8": 0.5} for name in names}
    return Costs(made, dict.fromkeys("abc", ms), quantise, dict.fromkeys(names, 0.25), 1.0)


@pytest.mark.parametrize(
    ("choice", "ms"),
    [
        ("fp32 fp32 fp32", 31.0),
        ("int8 int8 int8", 1 + 3 + 4 + 4 + 0.5),  # x stays int8; the picture is quantised once
        ("int8 int8 fp32", 1 + 4 + 4 + 10 + 0.5 + 0.5),  # c wants floats: x is made float and quantised for b
        ("fp32 int8 int8", 1 + 10 + 4 + 4 + 0.5),  # quantised once for both
        ("fp16 fp32 fp32", 1 + 6 + 20 + 0.25 + 0.25),  # casts of the picture and of x
        ("fp16 fp16 fp32", 1 + 12 + 10 + 0.25 + 0.25 + 0.25),  # ... of picture, x for c, y
        ("fp16 int8 int8", 1 + 6 + 4 + 4 + 0.25 + 0.25 + 0.5),  # casts of the picture and, before Q, of x
        ("fp16 int8 fp32", 1 + 6 + 4 + 10 + 0.25 + 0.25 + 0.5),  # one cast of x for Q and for c
        ("int8 fp16 fp32", 1 + 4 + 6 + 10 + 0.5 + 0.25 + 0.25),
    ],
)
def test_ends_of_chains_cost(choice, ms):
    assert chain().ms(dict(zip("abc", choice.split(), strict=True))) == pytest.approx(ms)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_table_gives_the_same(network, data):
    costs = predicted_costs(network.model, plan(network.model, network.layers), device("agx-orin"), ("int8", "fp16"))
    codes = data.draw(st.lists(st.integers(0, 2), min_size=len(network.layers), max_size=len(network.layers)))
    choice = {layer.name: PRECISIONS[code] for layer, code in zip(network.layers, codes, strict=True)}
    assert costs.table(PRECISIONS).ms(np.array(codes)) == pytest.approx(costs.ms(choice))


def test_units_hold_every_layer_once_and_what_is_fused_to_it(network):
    found = plan(network.model, network.layers)
    nodes = {node.name: node for node in network.model.graph.node}
    taken = [name for u in found.units for name in u.nodes]
    assert len(taken) == len(set(taken)) and not set(taken) & set(found.rest)
    assert set(taken) | set(found.rest) == set(nodes)
    assert [u.layer for u in found.units] == [layer.name for layer in network.layers]
    kinds = {u.role: [nodes[name].op_type for name in u.nodes] for u in found.units}
    assert kinds["stem"] == ["Conv", "Relu"]
    assert kinds["attention"][0] == kinds["attention"][-1] == "MatMul" and "Softmax" in kinds["attention"]
    attention = next(u for u in found.units if u.role == "attention")
    assert len(attention.quantised) == 3  # queries, keys, values; the weights between them are its own
    assert any({"MatMul", "Add", "Gelu"} <= {nodes[n].op_type for n in u.nodes} for u in found.units)


def test_prediction_is_the_roofline(network):
    orin = device("agx-orin")
    costs = predicted_costs(network.model, plan(network.model, network.layers), orin, ("int8", "fp16"))
    assert costs.ms(network.all("fp16")) < costs.ms(network.all("fp32"))
    big = max(costs.plan.units, key=lambda u: u.macs if u.role == "linear" else 0)
    ms = costs.units[big.layer]["fp32", PLAIN]
    moved = 4 * (sum(costs.plan.sizes[n] for n in big.inputs) + big.weights + costs.plan.sizes[big.output])
    memory, compute = moved / (204.8e9 * 0.75) * 1e3, 2 * big.macs / (5.3e12 * 0.5) * 1e3
    assert ms == pytest.approx(max(memory, compute) + 0.004)
    assert costs.units[big.layer]["int8", "int8"] < costs.units[big.layer]["fp16", PLAIN] < ms


def test_small_channels_fill_blocks_of_tensor_cores():
    orin = device("agx-orin")
    from engines.quantize.predict import _filling, _peak

    narrow = Unit("a", "convolution", 0, (), (), "", (), (), 3, 40, 120)
    assert _filling(narrow, "int8") == pytest.approx(32 * 64 / 120)
    assert _filling(narrow, "fp32") == 1
    depthwise = Unit("a", "depthwise", 0, (), (), "", (), (), 9, 40, 360)
    assert _filling(depthwise, "int8") == 1 and _peak(depthwise, orin, "int8") == 2 * 5.3
    assert _peak(narrow, orin, "int8") == 85.0


def test_a_device_without_the_precision(network):
    with pytest.raises(UserError, match="Jetson Orin Nano 8 GB does not compute in fp8; it has fp32, fp16, int8"):
        predicted_costs(network.model, plan(network.model, network.layers), device("orin-nano"), ("fp8", "fp16"))
