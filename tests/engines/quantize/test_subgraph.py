"""Cutting a graph changes nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from engines.quantize.loss import session
from engines.quantize.subgraph import borders, part, typed


def test_every_border_parts_the_graph_in_two_that_make_the_same(network):
    model = typed(network.model)
    feeds = {"images": network.images[:3]}
    outputs = [value.name for value in model.graph.output]
    whole = session(network.model)(feeds)
    cuts = borders(network.model, 8)
    assert cuts[0].index == 0 and cuts[0].tensors == ("images",) and cuts[0].work == 0
    assert len(cuts) >= 5 and [b.index for b in cuts] == sorted({b.index for b in cuts})
    for border in cuts[1:]:
        made = [name for name in border.tensors if name != "images"]
        before = dict(zip(made, session(part(model, ["images"], made))(feeds), strict=True)) | feeds
        behind = {name for node in model.graph.node[border.index :] for name in node.output}
        after = [name for name in outputs if name in behind]
        second = session(part(model, border.tensors, after))
        for name, values in zip(after, second(before), strict=True):
            np.testing.assert_allclose(values, whole[outputs.index(name)], atol=1e-5)


def test_borders_are_narrow_and_spread_over_the_work(network):
    cuts = borders(network.model, 8)
    assert max(np.diff([b.work for b in cuts])) < 0.45
    few = borders(network.model, 8, limit=40_000)
    assert all(b.size <= 40_000 for b in few[1:]) and len(few) < len(cuts)


def test_a_part_holds_what_it_needs_and_no_more(network):
    model = typed(network.model)
    node = next(n for n in model.graph.node if n.op_type == "Conv" and n.input[0] != "images")
    graph = part(model, [node.input[0], "images"], [node.output[0]])
    assert [n.name for n in graph.graph.node] == [node.name]
    assert [v.name for v in graph.graph.input] == [node.input[0]]
    assert {t.name for t in graph.graph.initializer} == set(node.input[1:])
    onnx.checker.check_model(graph, full_check=True)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_more_borders_than_wanted(network, count):
    assert 1 <= len(borders(network.model, count)) <= count + 1
