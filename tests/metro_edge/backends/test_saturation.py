from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from metro_edge.backends.saturation import LARGEST, WIDTH, probe, saturates


def exact(graph: bytes, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


def clipping(graph: bytes, x: np.ndarray) -> np.ndarray:
    """As a CPU without VNNI: pairs of products of uint8 and int8 are summed in 16 bits, which clip."""
    constants = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(graph).graph.initializer}
    zero, weight = constants["zero"].astype(int), constants["weight"].astype(int)
    levels = np.rint(x).astype(int) + 128
    pairs = (levels[:, :, None] * weight).reshape(len(x), WIDTH // 2, 2, WIDTH).sum(axis=2)
    assert int(zero) in (0, 128) and pairs.max() > 32767
    return np.clip(pairs, -32768, 32767).sum(axis=1) - 128 * weight.sum(axis=0)


@pytest.mark.parametrize("unsigned", [False, True])
def test_clipped_sums_are_noticed(unsigned):
    onnx.checker.check_model(onnx.load_from_string(probe(unsigned)), full_check=True)
    assert not saturates(exact, unsigned=unsigned)
    assert saturates(clipping, unsigned=unsigned)


def test_the_product_is_as_large_as_it_can_be():
    found = exact(probe(True), np.full((1, WIDTH), LARGEST, np.float32))
    np.testing.assert_array_equal(found, np.full((1, WIDTH), WIDTH * LARGEST**2))
