"""Rows that products read: times the weight's rows they are what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from engines.graph import constants, value_of
from engines.quantize.layers import weight_place
from engines.quantize.products import (
    at_levels,
    groups_of,
    inputs_of,
    moments,
    observed,
    rows,
    weight_matrix,
    weight_of_matrix,
)
from metro_edge.errors import UserError
from tests.engines.quantize.graphs import graph, node, normal, run


@st.composite
def convolutions(draw) -> onnx.ModelProto:
    """One convolution of one, two or three axes, with any kernel, padding, stride, dilation and groups."""
    axes = draw(st.integers(1, 3))
    kernel, steps, spread = (draw(st.lists(st.integers(1, most), min_size=axes, max_size=axes)) for most in (3, 3, 2))
    pads = draw(st.lists(st.integers(0, 2), min_size=2 * axes, max_size=2 * axes))
    sizes = [(k - 1) * d + 1 + draw(st.integers(0, 3)) for k, d in zip(kernel, spread, strict=True)]
    groups, inputs, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    attributes = {"pads": pads, "strides": steps, "dilations": spread, "group": groups}
    if draw(st.booleans()):  # left out, they have their defaults
        attributes = {"group": groups}
    weight = normal(draw(st.integers(0, 99)), groups * outputs, inputs, *kernel)
    made = node("Conv", "images w", "y", **attributes)
    return graph([made], ("n", groups * inputs, *sizes), {"w": weight})


@st.composite
def products(draw) -> onnx.ModelProto:
    """A product with a constant on either side, of tensors with two to four axes."""
    depth, width, count = (draw(st.integers(1, 5)) for _ in range(3))
    kind = draw(st.sampled_from(["right", "left", "gemm"]))
    if kind == "gemm":
        first, second = draw(st.booleans()), draw(st.booleans())
        made = node("Gemm", "images w", "y", transA=int(first), transB=int(second))
        shape = (depth, count) if first else (count, depth)
        return graph([made], shape, {"w": normal(0, *((width, depth) if second else (depth, width)))})
    more = draw(st.lists(st.integers(1, 3), max_size=2))
    if kind == "right":
        return graph([node("MatMul", "images w", "y")], (*more, count, depth), {"w": normal(0, depth, width)})
    return graph([node("MatMul", "w images", "y")], (*more, depth, count), {"w": normal(0, width, depth)})


def product_of(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """Return rows times weight as (R, outputs): the rows of all of `images`."""
    made, known = model.graph.node[0], constants(model)
    place, axis = weight_place(made, known)
    read = rows(made, images, known, np.random.default_rng(0), 1 << 20)
    matrix = weight_matrix(value_of(known[made.input[place]]), axis, groups_of(made))
    assert read.shape[2] == matrix.shape[2] == inputs_of(made, known)
    return (read @ matrix.swapaxes(1, 2)).swapaxes(0, 1).reshape(read.shape[1], -1)


def images_of(model: onnx.ModelProto, batch: int) -> np.ndarray:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return normal(5, *(dim.dim_value or batch for dim in dims))


@settings(max_examples=100, deadline=None)
@given(convolutions(), st.integers(1, 3))
def test_convolution_is_rows_times_weight(model, batch):
    images = images_of(model, batch)
    exact = np.moveaxis(run(model, images)["y"], 1, -1)
    assert_allclose(product_of(model, images), exact.reshape(-1, exact.shape[-1]), atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(products())
def test_product_is_rows_times_weight(model):
    images = images_of(model, 1)
    exact = run(model, images)["y"]
    if model.graph.node[0].input[0] == "w":  # constant on the left: outputs are the last axis but one
        exact = np.swapaxes(exact, -1, -2)
    assert_allclose(product_of(model, images), exact.reshape(-1, exact.shape[-1]), atol=1e-4)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.integers(0, 4), st.integers(1, 3))
def test_weight_and_matrix_are_the_same_numbers(shape, axis, groups):
    axis = min(axis, len(shape) - 1)
    shape[axis] *= groups
    weight = normal(0, *shape)
    matrix = weight_matrix(weight, axis, groups)
    assert matrix.shape == (groups, shape[axis] // groups, weight.size // shape[axis])
    assert (weight_of_matrix(matrix, shape, axis) == weight).all()


def test_some_rows_are_drawn_from_many():
    model = graph([node("Conv", "images w", "y")], ("n", 2, 9, 9), {"w": normal(0, 3, 2, 2, 2)})
    images, known = normal(1, 3, 2, 9, 9), constants(model)
    made = model.graph.node[0]
    every = rows(made, images, known, np.random.default_rng(0), 64)  # 8 x 8 places
    assert every.shape == (1, 3 * 64, 8)
    some = rows(made, images, known, np.random.default_rng(0), 5)
    places = [int(np.flatnonzero((every[0] == row).all(1))[0]) for row in some[0]]
    assert some.shape == (1, 15, 8) and places == sorted(set(places))
    assert {place // 64 for place in places} == {0, 1, 2}


def two_products() -> tuple[onnx.ModelProto, np.ndarray]:
    nodes = [
        node("Conv", "images wa", "a", group=2, pads=[1, 0, 0, 1]),
        node("Relu", "a", "r"),
        node("Conv", "r wy", "y"),
    ]
    return graph(nodes, ("n", 4, 5, 5), {"wa": normal(0, 6, 2, 2, 2), "wy": normal(1, 3, 6, 1, 1)}), normal(
        2, 4, 4, 5, 5
    )


def test_moments_are_sums_over_rows():
    model, images = two_products()
    known, made = constants(model), model.graph.node
    thresholds = {"images": 1.5, "r": 2.0}
    found = moments(model, [made[0], made[2]], thresholds, [images[:3], images[3:]], second=True)
    relu = run(model, images, ["r"])["r"]
    for one, values in ((made[0], images), (made[2], relu)):
        read = rows(one, values, known, np.random.default_rng(0), 1 << 20).astype(np.float64)
        stored = at_levels(read, thresholds[one.input[0]])
        seen = found[one.name]
        assert seen.rows == read.shape[1]
        assert_allclose(seen.plain, read.sum(1), rtol=1e-4, atol=1e-4)
        assert_allclose(seen.quantised, stored.sum(1), rtol=1e-4, atol=1e-4)
        assert_allclose(seen.second, np.einsum("grk,grl->gkl", stored, stored), rtol=1e-4, atol=1e-4)
        assert_allclose(seen.shift[0], read.mean(1), rtol=1e-4, atol=1e-5)
        assert_allclose(seen.shift[1], stored.mean(1), rtol=1e-4, atol=1e-5)
    assert moments(model, [made[2]], thresholds, [images], second=False)["y"].second is None
    assert moments(model, [], {}, [images], second=True) == {}


def test_moments_that_cannot_be_taken():
    model, images = two_products()
    with pytest.raises(UserError, match=r"no threshold is known for 'r' \(1 such tensors\): calibrate them first"):
        moments(model, [model.graph.node[2]], {"images": 1.0}, [images], second=False)
    with pytest.raises(UserError, match="there is no image to run the network on"):
        moments(model, [model.graph.node[2]], {"r": 1.0}, [], second=False)


def test_values_at_levels():
    values = np.array([0.0, 0.4, 0.6, -0.6, 126.4, 127.9, -300.0], np.float32)
    assert at_levels(values, 127.0).tolist() == [0.0, 0.0, 1.0, -1.0, 126.0, 127.0, -127.0]
    assert_allclose(at_levels(values / 10, 12.7), at_levels(values, 127.0) / 10, rtol=1e-6)
    assert at_levels(np.zeros(2, np.float32), 0.0).tolist() == [0.0, 0.0]


def test_what_is_observed():
    model, images = two_products()
    seen = list(observed(model, ["r", "images", "r", "a"], [images[:1], images[1:]]))
    exact = run(model, images, ["a", "r"])
    for name, values in (exact | {"images": images}).items():
        if name != "y":
            assert_allclose(np.concatenate([one[name] for one in seen]), values, rtol=1e-5, atol=1e-6)
    assert [set(one) for one in observed(model, ["images"], [images])] == [{"images"}]
