"""Levels and scales of weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from engines.quantize.weights import FORMATS, MAX, MSE, along, quantised, weight_error, weight_scale
from metro_edge.errors import UserError
from tests.engines.quantize.graphs import normal

weights = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=6),
    elements=st.floats(-1e3, 1e3, width=32),
)


def stored(weight: np.ndarray, axis: int, kind: str, method: str) -> np.ndarray:
    """Return what a quantised weight stands for, in float64."""
    scale = weight_scale(weight, axis, kind, method)
    assert scale.dtype == np.float32 and scale.shape == (weight.shape[axis],) and (scale > 0).all()
    levels = quantised(weight, scale, axis, kind)
    assert levels.dtype == FORMATS[kind].dtype and levels.shape == weight.shape
    return levels.astype(np.float64) * along(scale, axis, weight.ndim)


def squared_errors(weight: np.ndarray, axis: int, kind: str, method: str) -> np.ndarray:
    error = (stored(weight, axis, kind, method) - weight) ** 2
    return np.moveaxis(error, axis, 0).reshape(weight.shape[axis], -1).sum(1)


@given(weights, st.integers(0, 3))
def test_least_squares_never_err_more_than_the_largest_weight(weight, axis):
    axis = min(axis, weight.ndim - 1)
    power = np.moveaxis(weight.astype(np.float64) ** 2, axis, 0).reshape(weight.shape[axis], -1).sum(1)
    least, plain = (squared_errors(weight, axis, "int8", method) for method in (MSE, MAX))
    assert (least <= plain * (1 + 1e-4) + 1e-10 * power).all()


@given(weights, st.integers(0, 3), st.sampled_from(["int8", "fp8"]))
def test_the_largest_weight_gets_the_greatest_level(weight, axis, kind):
    axis = min(axis, weight.ndim - 1)
    form = FORMATS[kind]
    found = stored(weight, axis, kind, MAX)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True).astype(np.float64)
    live = largest > 1e-30
    levels = np.where(live, np.abs(found) / np.where(live, largest, 1.0) * form.greatest, form.greatest)
    np.testing.assert_allclose(levels.max(axis=others), form.greatest, rtol=1e-5)
    # An int8 level is half a step away at most; a float8e4m3fn 1/16, by its three digits, or half of its least step.
    allowed = largest / 127 / 2 if kind == "int8" else np.maximum(np.abs(weight) / 16, largest / 448 * 2.0**-10)
    assert (np.abs(found - weight) <= allowed * 1.001 + 1e-37).all()


def test_clipping_one_large_weight_pays():
    """The many others would lie half-way between the levels that it takes."""
    weight = np.full((2, 10_000), 1.0, np.float32)
    weight[0, 0], weight[1] = 2.0, 0.5
    weight[0, 1:] = 63.5 / 127 * 2
    scale = weight_scale(weight, 0, "int8")
    assert scale[0] < 2 / 127 and scale[1] == np.float32(0.5 / 127)
    least, plain = (squared_errors(weight, 0, "int8", method) for method in (MSE, MAX))
    assert least[0] < plain[0] and least[1] == plain[1] < 1e-10


def test_normal_weights_err_less_when_the_largest_is_clipped():
    weight = normal(0, 8, 4096)
    assert weight_error(weight, 0) < weight_error(weight, 0, method=MAX) < 0.02
    assert weight_error(weight, 0, "fp8") == weight_error(weight, 0, "fp8", MAX)


def test_weight_error_is_relative():
    weight = np.array([[127.0, 0.5, 0.25, 0.0]], np.float32)  # 0.5 and 0.25 become 0
    exact = np.sqrt((0.5**2 + 0.25**2) / (127**2 + 0.5**2 + 0.25**2))
    assert weight_error(weight, 0, method=MAX) == pytest.approx(exact, rel=1e-5)
    assert weight_error(weight * 1000, 0, method=MAX) == pytest.approx(exact, rel=1e-5)
    assert weight_error(np.zeros((2, 3), np.float32), 1) == 0.0


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("method", [MAX, MSE])
def test_what_is_zero_or_next_to_it_stays_zero(kind, method):
    """A scale below the smallest normal float32 would be flushed to zero, and divided by."""
    weight = np.array([[0.0, 0.0], [1e-44, -1e-44], [1e-37, 0.0], [1.0, 0.5]], np.float32)
    found = stored(weight, 0, kind, method)
    assert (found[:3] == 0.0).all() and found[3, 0] == pytest.approx(1.0)


def test_values_along_an_axis():
    assert along(np.arange(3), 1, 4).shape == (1, 3, 1, 1)


def test_unknown_method():
    with pytest.raises(UserError, match="unknown method 'median' for scales of weights; known: max, mse"):
        weight_scale(np.ones((2, 2), np.float32), 0, "int8", "median")
