"""The network that rounds in PyTorch against the INT8 graph: the same layers, the same levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from engines.quantize.fake import OUTPUTS, FakeNetwork
from engines.quantize.layers import default_layers, node_names
from engines.quantize.qdq import insert_qdq
from engines.quantize.rounding import Rounded, round_on_data
from metro_edge.errors import UserError
from tests.engines.quantize.graphs import run


@pytest.fixture(scope="module")
def rounded(network) -> dict[str, Rounded]:
    names = node_names(default_layers(network.model))
    return round_on_data(network.model, names, network.thresholds, [network.images])


def fake(converted, network, thresholds: Mapping[str, float] | None = None, rounded=None) -> FakeNetwork:
    ranges = network.thresholds if thresholds is None else thresholds
    return FakeNetwork(converted.model, converted.bundle.template, network.model, ranges, rounded)


@torch.no_grad()
def answers(model: torch.nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    found = model(torch.from_numpy(images))
    return {name: values.numpy() for name, values in zip(OUTPUTS, found, strict=True)}


def far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b, axis=-1).mean())


@pytest.mark.parametrize("on_data", [False, True])
def test_rounds_as_the_int8_graph_does(converted, network, rounded, on_data):
    weights = rounded if on_data else None
    graph = insert_qdq(network.model, node_names(default_layers(network.model)), network.thresholds, rounded=weights)
    found, expected = answers(fake(converted, network, rounded=weights), network.images), run(graph, network.images)
    exact = run(network.model, network.images)
    for name in ("joints", "camera"):
        # What is left is rounding that fell the other way, by sums in another order.
        assert far(found[name], expected[name]) < 0.25 * far(expected[name], exact[name]), name


def test_no_layer_is_left_out_or_mistaken_for_another(converted, network):
    """With the ranges of one layer's inputs far too wide, both say the same of what that costs."""
    nodes = {node.name: node for node in network.model.graph.node}
    layers = default_layers(network.model)
    every, images = node_names(layers), network.images[:2]
    exact = run(network.model, images)["joints"]
    assert {"residual", "convolution", "linear"} <= {layer.role for layer in layers}
    for layer in layers:
        names = [name for name in nodes[layer.nodes[0]].input if name in network.thresholds]
        wide = network.thresholds | {name: 60 * network.thresholds[name] for name in names}
        expected = run(insert_qdq(network.model, every, wide), images)["joints"]
        found = answers(fake(converted, network, wide), images)["joints"]
        assert far(found, expected) < 0.3 * far(expected, exact), layer.name


def test_the_trained_network_is_left_alone_and_comes_back_under_its_names(converted, network):
    before = {name: value.clone() for name, value in converted.model.state_dict().items()}
    made = fake(converted, network)
    state = made.trained_state()
    assert state.keys() == before.keys() and all(torch.equal(state[name], before[name]) for name in before)
    for parameter in made.parameters_of("all"):
        parameter.data.add_(0.01)
    changed = made.trained_state()
    assert all(torch.equal(value, before[name]) for name, value in converted.model.state_dict().items())
    moved = {name for name, value in changed.items() if not torch.equal(value, before[name])}
    assert any("conv" in name for name in moved) and any("qkv.weight" in name for name in moved)
    converted.model.__class__.from_state_dict(converted.model.config, changed)  # a network again


@pytest.mark.parametrize(("what", "on_data"), [("shifts", True), ("all", False)])
def test_gradients_pass_through_the_rounding(converted, network, rounded, what, on_data):
    """Out of place by 5 cm, a step down the gradient brings the mesh back; rounding alone moves it by millimetres."""
    made = fake(converted, network, rounded=rounded if on_data else None)
    images = torch.from_numpy(network.images[:4])
    with torch.no_grad():
        wanted = converted.model(images).vertices[0]
        made.model.encoders[-1].output.bias.add_(torch.tensor([0.03, 0.0, -0.04]))
    parameters = made.parameters_of(what)
    start = [p.detach().clone() for p in parameters]
    loss = (made(images)[2] - wanted).norm(dim=-1).mean()
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    assert sum(bool((g != 0).any()) for g in gradients) > 0.6 * len(parameters)
    found = []
    with torch.no_grad():
        for step in (1e-5, 3e-5, 1e-4, 3e-4):
            for parameter, old, gradient in zip(parameters, start, gradients, strict=True):
                parameter.copy_(old - step * gradient)
            made.refresh()
            found.append(float((made(images)[2] - wanted).norm(dim=-1).mean()))
    assert min(found) < 0.8 * float(loss.detach()), found
    assert what == "all" or all(p.ndim == 1 for p in parameters)


def test_a_network_that_is_not_the_graphs(converted, network):
    other = network.model.__class__()
    other.CopyFrom(network.model)
    layer = next(layer for layer in default_layers(other) if layer.role == "linear")
    next(node for node in other.graph.node if node.name == layer.nodes[0]).name = "elsewhere"
    with pytest.raises(
        UserError, match=r"the INT8 export rounds elsewhere, which cannot be fine-tuned \(1 such layers\)"
    ):
        fake(converted, replace(network, model=other))
    made = fake(converted, network)
    made.network.backbone.scales = made.network.backbone.scales[:-1]
    with pytest.raises(UserError, match=r"rounds \d+ sums of feature maps, the network adds \d+"):
        answers(made, network.images[:1])
