"""The INT8 graph: its structure, what is quantised, and its twin that the CPU runs."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from engines.quantize import ROUNDINGS, quantise
from engines.quantize.calibrate import METHODS, Magnitudes, calibrate
from engines.quantize.layers import FLOAT_CONVOLUTIONS, MIN_WIDTH, default_layers, node_names, quantisable
from engines.quantize.qdq import activations, insert_qdq
from metro_edge.backends.cpu_twin import cpu_twin
from metro_edge.backends.onnxruntime import products_saturate
from metro_edge.errors import UserError


@pytest.fixture(scope="module")
def int8(converted) -> onnx.ModelProto:
    return onnx.load(converted.bundle.onnx_path("int8"))


def run(graph: bytes, images: np.ndarray, optimise: bool) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if products_saturate():  # on CPUs without VNNI the fast products are wrong
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(["camera", "joints", "vertices"], {"images": images})


def test_structure(int8):
    constants = {t.name: t for t in int8.graph.initializer}
    makers = {name: node for node in int8.graph.node for name in node.output}
    weights = 0
    for node in int8.graph.node:
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[2]].data_type == TensorProto.INT8 and not constants[node.input[2]].dims
            assert numpy_helper.to_array(constants[node.input[2]]) == 0
        if node.op_type != "DequantizeLinear":
            continue
        assert not numpy_helper.to_array(constants[node.input[2]]).any()
        if node.input[0] not in constants:
            assert makers[node.input[0]].op_type == "QuantizeLinear"
            continue
        weights += 1
        weight = constants[node.input[0]]
        assert weight.data_type == TensorProto.INT8  # no int32 biases: TensorRT refuses them
        axis = next(a.i for a in node.attribute if a.name == "axis")
        assert list(constants[node.input[1]].dims) == [weight.dims[axis]] and weight.dims[axis] > 1
        assert np.abs(numpy_helper.to_array(weight)).max() == 127
    roles = {layer.role for layer in quantisable(int8)}
    assert weights > 10 and not {"linear", "depthwise"} & roles  # their weights are no constants now


def test_what_is_quantised(converted, int8):
    layers = quantisable(converted.graph)
    known = {t.name: t for t in converted.graph.graph.initializer}
    by_name = {node.name: node for node in converted.graph.graph.node}
    by_role = {layer.role: [one for one in layers if one.role == layer.role] for layer in layers}
    assert len(by_role["stem"]) == 1 and len(by_role["attention"]) == 2 and by_role["residual"]
    assert all(min(known[by_name[layer.name].input[1]].dims) >= MIN_WIDTH for layer in by_role["linear"])
    # Block 1: qkv, attention output, two of the feed-forward part. Its residual and its output projection lead
    # straight to outputs, its input projection reads 67 features, and block 2 is 64 wide.
    assert len(by_role["linear"]) == 4
    chosen = default_layers(converted.graph)
    convolutions = [layer for layer in layers if layer.role in ("stem", "convolution", "depthwise")]
    assert not set(convolutions[:FLOAT_CONVOLUTIONS]) & set(chosen) and set(convolutions[FLOAT_CONVOLUTIONS:]) <= set(
        chosen
    )
    dequantised = {name for node in int8.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    readers = {n.name for n in int8.graph.node if dequantised & set(n.input)}
    assert readers == set(node_names(chosen))


def test_weights_go_to_the_nearest_level_where_none_are_rounded_on_data(converted):
    """Within half a step, or clipped where that errs less in all."""
    chosen = node_names(default_layers(converted.graph))
    graph = insert_qdq(converted.graph, chosen, dict.fromkeys(activations(converted.graph, chosen), 4.0))
    constants = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    seen = 0
    for tensor in converted.graph.graph.initializer:
        if f"{tensor.name}_quantized" not in constants:
            continue
        weight, levels = numpy_helper.to_array(tensor), constants[f"{tensor.name}_quantized"].astype(np.float64)
        axis = 1 if weight.ndim == 2 else 0
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        others = tuple(i for i in range(weight.ndim) if i != axis)
        scale = constants[f"{tensor.name}_scale"].reshape(shape)
        clipped = np.abs(weight) > 127 * scale
        assert (np.abs(levels * scale - weight) <= scale * 0.501)[~clipped].all() and (
            np.abs(levels[clipped]) == 127
        ).all()
        unclipped = np.abs(weight).max(axis=others, keepdims=True) / 127
        plain = np.rint(weight / unclipped) * unclipped
        errors = [((stored - weight) ** 2).sum(axis=others) for stored in (levels * scale, plain)]
        assert (errors[0] <= errors[1] * 1.0001).all() and errors[0].sum() < errors[1].sum()
        seen += 1
    assert seen > 10


def test_twin_is_the_same_network(converted):
    graph, images = converted.bundle.onnx_bytes("int8"), converted.images(3)
    plain, twin = (run(g, images, optimise=False) for g in (graph, cpu_twin(graph)))
    for a, b in zip(plain, twin, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    moved = onnx.load_from_string(cpu_twin(graph))
    kinds = [node.op_type for node in moved.graph.node]
    assert "Relu" in [n.op_type for n in onnx.load_from_string(graph).graph.node]
    assert kinds.count("Clip") >= sum(layer.role == "residual" for layer in quantisable(converted.graph))
    # ... and ONNX Runtime's kernels, which round otherwise, keep it so: nearer than quantisation itself moved it.
    fast, exact = run(cpu_twin(graph), images, True), run(converted.bundle.onnx_bytes("fp32"), images, True)
    rounding, quantisation = (np.linalg.norm(v[2] - plain[2], axis=-1).mean() for v in (fast, exact))
    assert rounding < 0.8 * quantisation


def test_quantised_network_is_near(converted):
    images = converted.images(8)
    exact, quantised = (
        run(g, images, optimise=True)[2]
        for g in (converted.bundle.onnx_bytes("fp32"), cpu_twin(converted.bundle.onnx_bytes("int8")))
    )
    error = np.linalg.norm(exact - quantised, axis=-1).mean()
    assert 0 < error < 0.05 * np.linalg.norm(exact - exact.mean(1, keepdims=True), axis=-1).mean()


@pytest.mark.parametrize("method", METHODS)
def test_threshold(method):
    random = np.random.default_rng(0)
    seen = Magnitudes()
    for part in np.array_split(random.normal(size=200_000), 7):
        seen.add(part)
    outlier = np.zeros(10)
    outlier[3] = -40.0
    before = seen.threshold(method)
    seen.add(outlier)
    assert seen.counts.sum() == 200_010
    assert seen.largest == pytest.approx(40.0)
    # Clipping 40 to t costs (40 - t)^2, rounding 200,000 values in steps of t / 127 costs 200,000 / 12 (t / 127)^2:
    # the sum is least at 40 / (1 + 200,000 / (12 * 127^2)).
    expected = {"max": 40.0, "mse": 40 / (1 + 200_000 / (12 * 127**2)), "percentile": before, "entropy": before}[method]
    assert seen.threshold(method) == pytest.approx(expected, rel=0.05)


def test_entropy_keeps_all_levels_of_an_even_distribution_and_clips_a_thin_tail():
    even, tailed = Magnitudes(), Magnitudes()
    random = np.random.default_rng(0)
    even.add(random.uniform(-1, 1, 300_000))
    assert even.threshold("entropy") == pytest.approx(1.0, rel=0.01)
    # A tail of 30 values up to 50 behind 300,000 of a normal distribution: levels of 0.39 would tell little of it.
    tailed.add(np.concatenate([random.normal(size=300_000), random.uniform(5, 50, 30)]))
    assert 3.0 < tailed.threshold("entropy") < 8.0
    # ReLU's zeros lie on a level whatever the threshold is, and say nothing.
    with_zeros = Magnitudes()
    with_zeros.add(np.concatenate([random.uniform(0, 1, 30_000), np.zeros(3_000_000)]))
    assert with_zeros.threshold("entropy") == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("largest", [1.0, 1.37, 1.999])
def test_entropy_may_clip_nothing(largest):
    """Whatever bin the largest value lies in: half of all values are there, so clipping it keeps the least."""
    seen = Magnitudes()
    seen.add(np.array([1.0]))
    seen.add(np.concatenate([np.linspace(0.01, largest, 50_000), np.full(50_000, largest)]))
    assert seen.threshold("entropy") == largest


def test_threshold_of_nothing_but_zeros():
    seen = Magnitudes()
    seen.add(np.zeros((2, 3)))
    assert [seen.threshold(method) for method in METHODS] == [0.0] * 4


def test_unknown_method():
    with pytest.raises(UserError, match="unknown calibration method 'median'"):
        Magnitudes().threshold("median")


def test_calibration_sees_what_the_network_computes(converted):
    images = converted.images(4)
    names = activations(converted.graph, node_names(default_layers(converted.graph)))
    found = calibrate(converted.graph, ["images", *names], iter([images[:2], images[2:]]))
    assert found["images"].largest == pytest.approx(np.abs(images).max())
    assert all(magnitudes.largest > 0 for magnitudes in found.values())


def test_calibration_of_the_pictures_alone(converted):
    images = converted.images(4)
    (found,) = calibrate(converted.graph, ["images"], [images[:3], images[3:]]).values()
    assert found.largest == pytest.approx(np.abs(images).max()) and found.counts.sum() == images.size


def test_rounding_on_data_moves_the_mesh_less(converted):
    images = converted.images(8)
    exact = run(converted.graph.SerializeToString(), images, optimise=True)[2]
    moved = {}
    for rounding in ROUNDINGS:
        graph = quantise(converted.graph, iter([images]), rounding=rounding).SerializeToString()
        found = run(cpu_twin(graph), images, optimise=True)[2]
        moved[rounding] = np.linalg.norm(found - exact, axis=-1).mean()
    assert moved["data"] < 0.96 * moved["nearest"]


def test_bad_calibration(converted):
    with pytest.raises(UserError, match="unknown rounding of weights 'up'; known: data, nearest"):
        quantise(converted.graph, iter([converted.images(1)]), rounding="up")
    with pytest.raises(UserError, match="no image to calibrate on"):
        quantise(converted.graph, iter([]))
    with pytest.raises(UserError, match="not finite"):
        quantise(converted.graph, iter([np.full((1, 3, 64, 64), np.nan, np.float32)]))


def test_channels_that_are_always_zero_stay_zero(converted):
    model = onnx.ModelProto()
    model.CopyFrom(converted.graph)
    name = next(layer.name for layer in quantisable(model) if layer.role == "linear")
    node = next(n for n in model.graph.node if n.name == name)
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    weight = numpy_helper.to_array(tensor).copy()
    weight[:, 5] = 0
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    graph = insert_qdq(model, [name], dict.fromkeys(activations(model, [name]), 4.0))
    constants = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    assert constants[f"{tensor.name}_scale"][5] == 1.0 and not constants[f"{tensor.name}_quantized"][:, 5].any()
