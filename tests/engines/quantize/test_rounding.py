"""Weights rounded on data: never worse than the nearest levels, much better where inputs correlate."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.quantize import rounding
from engines.quantize.products import moments
from engines.quantize.qdq import insert_qdq
from engines.quantize.rounding import correct_biases, round_on_data, round_rows
from engines.quantize.weights import MAX, MSE, quantised, weight_scale
from metro_edge.errors import UserError
from tests.engines.quantize.graphs import constant, graph, node, normal, run


def largest_scale(weight: np.ndarray) -> np.ndarray:
    return np.abs(weight).max(1) / 127


def nearest(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(weight / scale[:, None]), -127, 127)


def errors(weight: np.ndarray, levels: np.ndarray, scale: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return x^T H x of each row of what rounding changed."""
    change = levels.astype(np.float64) * scale[:, None] - weight
    return np.einsum("rk,kl,rl->r", change, second, change)


def correlated(random: np.random.Generator, inputs: int, common: int, noise: float, count: int = 400) -> np.ndarray:
    """Return inputs (count, K) made of a few common causes and noise."""
    mix = random.normal(size=(common, inputs))
    return random.normal(size=(count, common)) @ mix + noise * random.normal(size=(count, inputs))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.integers(1, 90),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    st.sampled_from([5, 400]),
)
def test_no_row_errs_more_than_with_its_nearest_levels(seed, inputs, common, noise, count):
    """With levels that are clipped, inputs that are always zero, and fewer rows, or causes of them, than inputs."""
    random = np.random.default_rng(seed)
    found = correlated(random, inputs, common, noise, count)
    found[:, random.random(inputs) < 0.1] = 0.0
    weight, second = random.normal(size=(5, inputs)), found.T @ found
    scale = largest_scale(weight) * random.choice([0.7, 1.0], 5)
    levels = round_rows(weight, scale, second)
    assert levels.dtype == np.int8 and np.abs(levels.astype(int)).max() <= 127
    left, most = (errors(weight, one, scale, second) for one in (levels, nearest(weight, scale)))
    assert (left <= most * (1 + 1e-9) + 1e-12).all()


def test_correlated_inputs_make_good_much_of_the_error():
    random = np.random.default_rng(0)
    weight, scale = (values := random.normal(size=(64, 150))), largest_scale(values)
    for common, share in ((3, 0.05), (30, 0.5)):
        found = correlated(random, 150, common, 0.05)
        second = found.T @ found
        left, most = (
            errors(weight, one, scale, second).sum()
            for one in (round_rows(weight, scale, second), nearest(weight, scale))
        )
        assert left < share * most


@given(st.integers(0, 1 << 30), st.integers(1, 70))
def test_inputs_that_do_not_correlate_take_the_nearest_levels(seed, inputs):
    random = np.random.default_rng(seed)
    weight = random.normal(size=(3, inputs))
    second = np.diag(random.uniform(1e-3, 1e3, inputs))
    scale = largest_scale(weight)
    assert (round_rows(weight, scale, second) == nearest(weight, scale)).all()


def test_inputs_that_are_always_zero():
    """Their weights go to the nearest level, and the others are rounded as if they were not there."""
    random = np.random.default_rng(1)
    found = correlated(random, 20, 3, 0.1)
    weight, dead = random.normal(size=(6, 20)), np.arange(20) % 3 == 0
    scale = largest_scale(weight)
    found[:, dead] = 0.0
    levels = round_rows(weight, scale, found.T @ found)
    assert (levels[:, dead] == nearest(weight, scale)[:, dead]).all()
    second = (found.T @ found)[np.ix_(~dead, ~dead)] * (1 + 1e-12)
    left, most = (errors(weight[:, ~dead], one[:, ~dead], scale, second) for one in (levels, nearest(weight, scale)))
    assert left.sum() < 0.5 * most.sum()
    assert (round_rows(weight, scale, np.zeros((20, 20))) == nearest(weight, scale)).all()


def biased(kind: str) -> tuple[onnx.ModelProto, np.ndarray, int]:
    """Return a graph with one product of positive inputs and a bias, images and the axis of its output channels."""
    picture, tokens = np.abs(normal(0, 8, 6, 7, 7)), np.abs(normal(1, 8, 10, 20))
    if kind == "Conv":
        nodes = [node("Conv", "images w b", "y", strides=[2, 1], pads=[1, 1, 0, 1])]
        return graph(nodes, picture.shape, {"w": normal(2, 5, 6, 3, 3), "b": normal(3, 5)}), picture, 1
    if kind == "Conv and Add":
        nodes = [node("Conv", "images w", "p"), node("Add", "b p", "y")]
        return graph(nodes, picture.shape, {"w": normal(2, 5, 6, 1, 1), "b": normal(3, 1, 5, 1, 1)}), picture, 1
    if kind == "depthwise":
        nodes = [node("Conv", "images w b", "y", group=6, pads=[1, 1, 1, 1])]
        return graph(nodes, picture.shape, {"w": normal(2, 6, 1, 3, 3), "b": normal(3, 6)}), picture, 1
    if kind == "MatMul and Add":
        nodes = [node("MatMul", "images w", "p"), node("Add", "p b", "y")]
        return graph(nodes, tokens.shape, {"w": normal(2, 20, 7), "b": normal(3, 10, 7)}), tokens, 2
    if kind == "constant on the left":
        nodes = [node("MatMul", "w images", "p"), node("Add", "p b", "y")]
        return graph(nodes, tokens.shape, {"w": normal(2, 7, 10), "b": normal(3, 7, 20)}), tokens, 1
    rows = tokens.reshape(-1, 20)
    nodes = [node("Gemm", "images w b", "y", transB=1)]
    bias = normal(3, 1, 7) if kind == "Gemm with a row" else normal(3, 7)
    return graph(nodes, rows.shape, {"w": normal(2, 7, 20), "b": bias}), rows, 1


@pytest.mark.parametrize(
    "kind",
    ["Conv", "Conv and Add", "depthwise", "MatMul and Add", "constant on the left", "Gemm", "Gemm with a row"],
)
def test_corrected_biases_leave_no_shift(kind):
    model, images, axis = biased(kind)
    name = model.graph.node[0].name
    thresholds = {"images": 0.6 * float(np.abs(images).max())}  # what is clipped shifts the mean
    rounded = round_on_data(model, [name], thresholds, [images])
    others = tuple(i for i in range(images.ndim) if i != axis)
    exact = run(model, images)["y"].astype(np.float64).mean(axis=others)
    shifts = []
    for one in (None, rounded):
        found = run(insert_qdq(model, [name], thresholds, rounded=one), images)["y"]
        shifts.append(np.abs(found.astype(np.float64).mean(axis=others) - exact).max())
    assert shifts[1] < 1e-5 < 0.01 < shifts[0]


def test_rounded_weights_err_less_in_the_product():
    """... also on images that they were not rounded on."""
    random = np.random.default_rng(3)
    images = correlated(random, 24, 3, 0.3, 60 * 10).reshape(60, 10, 24).astype(np.float32)
    model = graph([node("MatMul", "images w", "y")], ("n", 10, 24), {"w": normal(0, 24, 30)})
    thresholds = {"images": float(np.abs(images).max())}
    rounded = round_on_data(model, ["y"], thresholds, [images[:40]])["y"]
    assert rounded.levels.shape == (24, 30) and rounded.scale.shape == rounded.shift.shape == (30,)
    exact = images[40:] @ constant(model, "w")
    plain = np.abs(constant(model, "w")).max(0) / 127
    left = images[40:] @ (rounded.levels * rounded.scale) - exact
    most = images[40:] @ (np.rint(constant(model, "w") / plain) * plain) - exact
    assert (left**2).mean() < 0.3 * (most**2).mean()


def chain() -> tuple[onnx.ModelProto, np.ndarray, dict[str, float]]:
    """Three products; the first reads 54 inputs, the second 9, the third 6."""
    nodes = [
        node("Conv", "images wa ba", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "ar"),
        node("Conv", "ar wb ba", "b", group=6, pads=[1, 1, 1, 1]),
        node("Conv", "b wc", "y"),
    ]
    constants = {
        "wa": normal(0, 6, 6, 3, 3),
        "ba": normal(1, 6),
        "wb": normal(2, 6, 1, 3, 3),
        "wc": normal(3, 4, 6, 1, 1),
    }
    model, images = graph(nodes, ("n", 6, 7, 7), constants), normal(5, 6, 6, 7, 7)
    seen = run(model, images, ["ar", "b"])
    return model, images, {"images": 3.0} | {name: float(np.abs(seen[name]).max()) for name in ("ar", "b")}


@pytest.mark.parametrize(("most", "expected"), [(6 * 81 + 36, [1, 2]), (6 * 81 + 35, [1, 1, 1])])
def test_parts_that_fit_into_memory_give_the_same(monkeypatch, most, expected):
    """The second has 6 groups of 9 inputs, the third 6 inputs."""
    model, images, thresholds = chain()
    names = ["a", "b", "y"]
    whole = round_on_data(model, names, thresholds, [images])
    parts: list[int] = []
    monkeypatch.setattr(rounding, "_MOST_MOMENTS", most)
    monkeypatch.setattr(rounding, "moments", lambda *a, **k: parts.append(len(a[1])) or moments(*a, **k))
    divided = round_on_data(model, names, thresholds, [images[:2], images[2:]])
    assert parts == expected
    assert set(divided) == set(whole) == set(names)
    for name in names:
        assert (divided[name].levels != whole[name].levels).mean() < 0.02  # sums of floats in another order
        assert (divided[name].scale == whole[name].scale).all()
        np.testing.assert_allclose(divided[name].shift, whole[name].shift, atol=0.05)


def test_products_of_very_many_inputs_take_the_nearest_levels(monkeypatch):
    """Solving for them takes too long; their biases are corrected all the same."""
    model, images, thresholds = chain()
    monkeypatch.setattr(rounding, "_MOST_INPUTS", 10)
    found = round_on_data(model, ["a", "b", "y"], thresholds, [images])
    weight = constant(model, "wa")
    scale = weight_scale(weight, 0, "int8", MSE)
    assert (found["a"].scale == scale).all() and (found["a"].levels == quantised(weight, scale, 0, "int8")).all()
    assert np.abs(found["a"].shift).max() > 0
    assert (found["b"].scale == weight_scale(constant(model, "wb"), 0, "int8", MAX)).all()


def test_only_the_own_bias_is_corrected():
    """Two products share a constant; one is rounded. What has no bias stays without one."""
    model, images, thresholds = chain()
    rounded = round_on_data(model, ["b", "y"], thresholds, [images])
    corrected = onnx.ModelProto()
    corrected.CopyFrom(model)
    correct_biases(corrected, rounded)
    inputs = {n.name: list(n.input) for n in corrected.graph.node}
    assert inputs["a"] == ["images", "wa", "ba"] and inputs["y"] == ["b", "wc"]
    assert (constant(corrected, "ba") == constant(model, "ba")).all()
    np.testing.assert_allclose(
        constant(corrected, inputs["b"][2]), constant(model, "ba") - rounded["b"].shift, rtol=1e-6
    )


@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": 2.0}])
def test_a_bias_that_is_multiplied_stays(attributes):
    model = graph([node("Gemm", "images w b", "y", **attributes)], ("n", 4), {"w": normal(0, 4, 3), "b": normal(1, 3)})
    correct_biases(model, round_on_data(model, ["y"], {"images": 0.5}, [normal(2, 9, 4)]))
    assert list(model.graph.node[0].input) == ["images", "w", "b"]


def test_what_is_no_product_with_a_matrix_is_passed_over():
    nodes = [node("MatMul", "images stack", "a"), node("MatMul", "a a", "b"), node("Add", "b a", "y")]
    model = graph(nodes, (2, 4, 4), {"stack": normal(0, 2, 4, 4)})
    assert round_on_data(model, ["a", "b", "y"], {}, [normal(1, 2, 4, 4)]) == {}


def test_bad_input():
    model, images, thresholds = chain()
    with pytest.raises(UserError, match="there is no image"):
        round_on_data(model, ["a"], thresholds, [])
    with pytest.raises(UserError, match="no threshold is known for 'b'"):
        round_on_data(model, ["a", "y"], {"images": 1.0}, [images])
