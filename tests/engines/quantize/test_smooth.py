"""Outliers moved into weights: exact in FP32, and INT8 loses much less where there are any."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from engines.quantize import quantise
from engines.quantize import smooth as smoothing
from engines.quantize.calibrate import channel_maxima
from engines.quantize.smooth import HELPS, SAMPLES, first_images, scale_stream, scales_of, smooth
from engines.quantize.streams import streams
from metro_edge.errors import UserError
from tests.engines.quantize.graphs import constant, graph, kinds, node, normal, run

EXACT = 1e-5


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean squared error as a share of the mean square."""
    return float(((found - exact).astype(np.float64) ** 2).mean() / (exact.astype(np.float64) ** 2).mean())


def int8_error(
    model: onnx.ModelProto, images: np.ndarray, nodes: list[str], exact: np.ndarray, name: str = "y"
) -> float:
    """Return what an output errs when `nodes` are quantised, every weight to its nearest level."""
    return relative(run(quantise(model, [images], nodes=nodes, rounding="nearest"), images)[name], exact)


def backbone() -> onnx.ModelProto:
    """A convolution, one of each channel alone, and one that mixes them."""
    nodes = [
        node("Conv", "images wa ba", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "ar"),
        node("Conv", "ar wd bd", "d", pads=[1, 1, 1, 1], group=16),
        node("Relu", "d", "dr"),
        node("Conv", "dr wy by", "y", pads=[1, 1, 1, 1]),
    ]
    constants = {
        "wa": normal(0, 16, 3, 3, 3), "ba": normal(1, 16), "wd": normal(2, 16, 1, 3, 3), "bd": normal(3, 16),
        "wy": normal(4, 6, 16, 3, 3), "by": normal(5, 6),
    }  # fmt: skip
    return graph(nodes, ("n", 3, 12, 12), constants)


def with_outliers(model: onnx.ModelProto, factor: float = 40.0) -> onnx.ModelProto:
    """Return the same network with two channels of each stream that are large, and read by small weights."""
    planted = onnx.ModelProto()
    planted.CopyFrom(model)
    for stream in streams(model):
        scale = np.ones(stream.channels)
        scale[[1, stream.channels // 2]] = 1 / factor
        scale_stream(planted, stream, scale)
    return planted


def test_outliers_of_convolutions_go_away():
    model, images = with_outliers(backbone()), normal(9, 24, 3, 12, 12)
    report: list[smoothing.Smoothed] = []
    smoothed = smooth(model, [images[:10], images[10:]], report)
    exact = run(model, images)["y"]
    same = run(smoothed, images)["y"]
    assert 0 < np.abs(same - exact).max() <= EXACT * np.abs(exact).max()
    nodes = ["d", "y"]
    before, after = (int8_error(g, images, nodes, exact) for g in (model, smoothed))
    assert after < before / 20
    assert [found.readers for found in report] == [("d",), ("y",)]
    assert all(found.exponent is not None and found.smoothed_error < found.error for found in report)
    # ... and the network without outliers is no better than the one rid of them.
    assert after < 1.5 * int8_error(backbone(), images, nodes, exact)


def test_outliers_of_one_reader_are_taken_from_all_makers():
    """Behind a sum, and at products of tokens whose normalisation makes the outliers."""
    images = normal(8, 16, 5, 24)
    nodes = [
        node("LayerNormalization", "images gamma beta", "norm", axis=-1),
        node("MatMul", "norm wa", "a"),
        node("MatMul", "norm wb", "b"),
        node("Add", "a b", "sum"),
        node("Add", "sum bias", "biased"),
        node("MatMul", "biased wy", "y"),
    ]
    constants = {
        "gamma": 1 + 0.2 * normal(0, 24), "beta": 0.1 * normal(1, 24), "wa": normal(2, 24, 12), "wb": normal(3, 24, 12),
        "bias": normal(4, 12), "wy": normal(5, 12, 7),
    }  # fmt: skip
    plain = graph(nodes, ("n", 5, 24), constants)
    model = with_outliers(plain)
    smoothed = smooth(model, [images])
    exact, same = run(model, images)["y"], run(smoothed, images)["y"]
    assert 0 < np.abs(same - exact).max() <= EXACT * np.abs(exact).max()
    before, after = (int8_error(g, images, ["a", "b", "y"], exact) for g in (model, smoothed))
    assert after < before / 20
    assert kinds(smoothed) == kinds(plain) and len(smoothed.graph.initializer) == len(plain.graph.initializer)


def test_a_network_is_the_same_and_loses_less(converted):
    """Values of attentions and sums of residuals are among its streams."""
    images = converted.images(4)
    model = with_outliers(converted.graph, 8.0)
    report: list[smoothing.Smoothed] = []
    smoothed = smooth(model, [images], report)
    assert len(report) == len(streams(converted.graph))
    exact, same = run(model, images), run(smoothed, images)
    for name, values in exact.items():
        assert np.abs(same[name] - values).max() <= EXACT * np.abs(values).max()
    nodes = [name for found in report for name in found.readers]
    before, after = (int8_error(g, images, nodes, exact["vertices"], "vertices") for g in (model, smoothed))
    assert after < before / 10


def test_scales_by_hand():
    activations, weights = np.array([16.0, 1.0, 4.0]), np.array([1.0, 4.0, 2.0])
    # max|X|^a / max|W|^(1 - a) is (4, 1/2, sqrt 2) at a half, 2^(2 - 1 + 1/2) over three is sqrt 2 on average.
    np.testing.assert_allclose(scales_of(activations, weights, 0.5), [2 * np.sqrt(2), np.sqrt(2) / 4, 1.0])
    np.testing.assert_allclose(scales_of(activations, weights, 1.0), np.array([16, 1, 4]) / 4)
    np.testing.assert_allclose(scales_of(activations, weights, 0.0), np.array([1, 1 / 4, 1 / 2]) * 2)


def test_activations_or_weights_become_even_at_the_ends():
    activations, weights = np.exp(normal(0, 20)), np.exp(normal(1, 20))
    assert np.ptp(activations / scales_of(activations, weights, 1.0)) < 1e-5
    assert np.ptp(weights * scales_of(activations, weights, 0.0)) < 1e-5
    half = scales_of(activations, weights, 0.5)
    assert np.ptp(activations / half / (weights * half)) < 1e-5 and np.exp(np.log(half).mean()) == pytest.approx(1.0)


def test_channels_that_say_nothing_keep_their_scale():
    scale = scales_of(np.array([0.0, 8.0, 2.0, 5.0]), np.array([1.0, 1.0, 1.0, 0.0]), 1.0)
    np.testing.assert_allclose(scale, [1.0, 2.0, 0.5, 1.0])
    assert (scales_of(np.zeros(3), np.ones(3), 0.5) == 1.0).all()
    assert scales_of(np.array([1e9, 1.0, 1e-9]), np.ones(3), 1.0).tolist() == [64.0, 1.0, 1 / 64]


def test_what_gains_too_little_stays(monkeypatch):
    """Where all of the error but a share would have to go, and somewhat more is left."""
    model, images = with_outliers(backbone()), normal(3, 4, 3, 12, 12)
    report: list[smoothing.Smoothed] = []
    assert kinds(smooth(model, [images], report)) == kinds(model)
    share = max(found.smoothed_error / found.error for found in report)
    assert 0 < share < HELPS
    monkeypatch.setattr(smoothing, "HELPS", 0.999 * min(found.smoothed_error / found.error for found in report))
    refused: list[smoothing.Smoothed] = []
    smoothed = smooth(model, [images], refused)
    assert [n.SerializeToString() for n in smoothed.graph.node] == [n.SerializeToString() for n in model.graph.node]
    for taken, left in zip(report, refused, strict=True):
        assert left == smoothing.Smoothed(taken.readers, None, taken.error, taken.smoothed_error)


def test_nothing_but_zeros_has_no_error_to_lower():
    report: list[smoothing.Smoothed] = []
    model = graph(
        [node("Conv", "images wa", "a"), node("Conv", "a wy", "y")], ("n", 3, 6, 6),
        {"wa": normal(0, 8, 3, 1, 1), "wy": normal(1, 4, 8, 1, 1)},
    )  # fmt: skip
    smooth(model, [np.zeros((1, 3, 6, 6), np.float32)], report)
    assert report == [smoothing.Smoothed(("y",), None, 0.0, 0.0)]


def test_magnitudes_are_those_that_readers_see():
    """What Relu takes away is never quantised, however large it was."""
    model, images = backbone(), normal(3, 6, 3, 12, 12)
    bias = constant(model, "ba").copy()
    bias[2] = -30.0
    next(t for t in model.graph.initializer if t.name == "ba").CopyFrom(onnx.numpy_helper.from_array(bias, "ba"))
    found = streams(model)
    _, maxima = smoothing._rows_of(model, found, [images[:2], images[2:]])
    seen = run(model, images, ["a", "ar"])
    np.testing.assert_allclose(maxima[found[0].tensors], channel_maxima(seen["ar"], 1), rtol=1e-5)
    assert np.abs(seen["a"][:, 2]).max() > 10 * seen["ar"][:, 2].max()


def test_parts_that_fit_into_memory_give_the_same(monkeypatch):
    model, images = with_outliers(backbone()), normal(9, 4, 3, 12, 12)
    reports: list[list[smoothing.Smoothed]] = [[], []]
    smooth(model, [images], reports[0])
    monkeypatch.setattr(smoothing, "_MOST_VALUES", 1)
    assert [len(part) for part in smoothing._parts(streams(model), model)] == [1, 1]
    smoothed = smooth(model, [images], reports[1])
    exact = run(model, images)["y"]
    assert np.abs(run(smoothed, images)["y"] - exact).max() <= EXACT * np.abs(exact).max()
    for whole, divided in zip(*reports, strict=True):  # which rows are drawn differs
        assert divided.readers == whole.readers
        assert divided.smoothed_error == pytest.approx(whole.smoothed_error, rel=0.3)
    size = SAMPLES * smoothing._ROWS * 16 * 9  # of 16 channels under 3 x 3, each alone or all together
    for most, parts in ((2 * size, [2]), (2 * size - 1, [1, 1])):
        monkeypatch.setattr(smoothing, "_MOST_VALUES", most)
        assert [len(part) for part in smoothing._parts(streams(model), model)] == parts


def test_no_more_images_are_read_than_needed():
    def batches():
        yield np.zeros((3, 1), np.float32)
        yield np.ones((3, 1), np.float32)
        raise AssertionError("read too far")

    found = first_images(batches(), 5)
    assert [len(batch) for batch in found] == [3, 2] and found[1].all()
    assert [len(batch) for batch in first_images([np.zeros((2, 1), np.float32)], 5)] == [2]


def test_no_image():
    with pytest.raises(UserError, match="there is no image to smooth on"):
        smooth(backbone(), [])
