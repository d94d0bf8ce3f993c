from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from metro_edge.backends.cpu_twin import cpu_twin, rewrite
from metro_edge.backends.cpu_twin.repeating import quantise_before_repeating


@pytest.fixture(scope="module")
def enlarged(graph_of):
    """Makes x (1, 2, 3, 4) -> Resize -> Q -> DQ -> y."""

    def make(mode="nearest", rule="asymmetric", scale=0.05, outputs=("y",)) -> bytes:
        cropped = rule == "tf_crop_and_resize"
        nodes = [
            helper.make_node(
                "Resize", ["x", "roi" if cropped else "", "sizes"], ["large"], mode=mode, nearest_mode="floor",
                coordinate_transformation_mode=rule, extrapolation_value=7.0,
            ),
            helper.make_node("QuantizeLinear", ["large", "scale", "zero"], ["q"], axis=1),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], axis=1),
        ]  # fmt: skip
        constants = {
            "sizes": np.array([1, 1, 2, 4], np.float32), "roi": np.array([0, 0, 0, 0, 1, 1, 2, 2], np.float32),
            "scale": np.float32(scale), "zero": np.zeros(np.shape(scale), np.int8),
        }  # fmt: skip
        return graph_of(nodes, constants, [1, 2, 3, 4], outputs=outputs)

    return make


def test_same_numbers_and_the_resize_is_of_integers(enlarged, run, operators):
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 4)).astype(np.float32)
    twin = cpu_twin(enlarged())
    assert operators(twin) == ["QuantizeLinear", "Resize", "DequantizeLinear"]
    np.testing.assert_array_equal(run(twin, x)[0], run(enlarged(), x)[0])
    assert run(twin, x)[0].shape == (1, 2, 6, 16)


@pytest.mark.parametrize(
    "changed",
    [
        {"mode": "linear"},  # makes numbers that were not there
        {"rule": "tf_crop_and_resize"},  # fills in 7
        {"scale": np.array([0.05, 0.1], np.float32)},  # per channel
        {"outputs": ("y", "large")},
    ],
)
def test_what_is_no_repetition_stays(enlarged, changed):
    graph = enlarged(**changed)
    assert rewrite(graph, (quantise_before_repeating,)) is graph
