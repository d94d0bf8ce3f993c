"""What a graph loses, against figures worked out otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engines.quantize.calibrate import calibrate
from engines.quantize.layers import node_names, quantisable
from engines.quantize.loss import NOT_FINITE_MM, Judge, Loss, quantises, session
from engines.quantize.mixed import mixed
from engines.quantize.qdq import activations
from engines.verify import predictions_from_onnx
from metro_edge.bundle import Bundle, shipped_bundle_path
from metro_edge.errors import UserError
from metro_edge.metrics import mesh_errors


def outputs(judge: Judge, change) -> list[list[np.ndarray]]:
    """The FP32 results with the vertices changed."""
    place = judge.outputs.index("vertices")
    found = []
    for batch in judge.reference:
        values = [np.array(v) for v in batch]
        values[place] = change(values[place])
        found.append(values)
    return found


def test_figures_are_those_of_the_metrics(network):
    judge, bundle = network.judge, network.bundle
    random = np.random.default_rng(0)
    results = outputs(judge, lambda v: v + random.normal(0, 0.01, v.shape).astype(np.float32))
    loss = judge.loss(results)
    place = judge.outputs.index("vertices")
    before, after = (np.concatenate([batch[place] for batch in r]) for r in (judge.reference, results))
    for name in ("mpjpe", "mpvpe"):
        errors = [
            getattr(mesh_errors(v, network.truth, bundle.template, bundle.spec.joint_set), name)
            for v in (after, before)
        ]
        lost = (errors[0] - errors[1]) * 1000
        assert loss.of(name) == pytest.approx(lost.mean(), abs=1e-4)
        assert loss.error_of(name) == pytest.approx(lost.std(ddof=1) / np.sqrt(len(lost)), rel=1e-3)
        assert judge.fp32_mm[name] == pytest.approx(errors[1].mean() * 1000, abs=1e-3)
    assert loss.moved_mm == pytest.approx(np.linalg.norm(after - before, axis=-1).mean() * 1000, rel=1e-5)
    assert loss.mpjpe_error_mm > 0


def test_a_shift_of_everything_moves_and_loses_nothing(network):
    loss = network.judge.loss(outputs(network.judge, lambda v: v + np.float32([0.003, 0, 0.004])))
    assert loss.moved_mm == pytest.approx(5.0, rel=1e-4)
    assert loss.mpjpe_mm == pytest.approx(0, abs=1e-3) and loss.mpvpe_mm == pytest.approx(0, abs=1e-3)


def test_fp32_itself_loses_nothing(network):
    loss = network.judge.loss_of(network.model)
    assert max(abs(loss.of(name)) for name in ("mpjpe", "mpvpe", "moved")) < 1e-6


def test_fp8_of_the_shipped_network_runs(tmp_path):
    """ONNX Runtime 1.32 fails to load it with all its rewritings: Clip stands before float8 there."""
    bundle = Bundle.load(shipped_bundle_path())
    model = onnx.load_from_string(bundle.onnx_bytes("fp32"))
    layers = quantisable(model)
    images = np.random.default_rng(0).normal(0, 1, (2, 3, *[bundle.spec.image_size] * 2)).astype(np.float32)
    seen = calibrate(model, activations(model, node_names(layers)), [images])
    thresholds = {name: magnitudes.threshold("max") for name, magnitudes in seen.items()}
    graph = mixed(model, {layer.name: "fp8" for layer in layers}, thresholds)
    assert quantises(graph, onnx.TensorProto.FLOAT8E4M3FN) and "Clip" in {n.op_type for n in graph.graph.node}
    exact, found = (session(g)({"images": images})[2] for g in (model, graph))
    size = np.linalg.norm(exact - exact.mean(1, keepdims=True), axis=-1).mean()
    assert 0 < np.linalg.norm(found - exact, axis=-1).mean() < 0.2 * size
    onnx.save(graph, tmp_path / "fp8.onnx")
    verified = predictions_from_onnx(tmp_path / "fp8.onnx", "fp8", images, bundle.spec)
    np.testing.assert_allclose(verified.vertices, found, atol=1e-4)


def test_int8_is_run_as_what_it_is(network):
    graph = network.make(network.model, network.all("int8"))
    assert quantises(graph) and not quantises(network.model)
    loss = network.judge.loss_of(graph)
    assert 0.05 < loss.moved_mm < 500


def test_outputs_that_are_not_finite_lose_more_than_any_budget(network):
    loss = network.judge.loss(outputs(network.judge, lambda v: v * np.float32(np.nan)))
    assert loss.of("mpjpe") == loss.of("moved") == NOT_FINITE_MM and loss.error_of("mpvpe") == 0


def test_without_truth_the_distance_is_known_alone(network):
    judge = Judge(network.model, network.bundle.spec, network.bundle.template, network.images, None)
    assert judge.knows("moved") and not judge.knows("mpjpe") and judge.fp32_mm == {}
    loss = judge.loss(outputs(judge, lambda v: v + np.float32(0.001)))
    assert loss.moved_mm == pytest.approx(np.sqrt(3), rel=1e-3)
    with pytest.raises(UserError, match="mpjpe cannot be measured on these samples.*--metric moved"):
        loss.of("mpjpe")


def test_network_of_joints_alone(network):
    """A bundle without the full mesh: joints of the mesh stand for it."""
    bundle, model = network.bundle, onnx.ModelProto()
    model.CopyFrom(network.model)
    regressor = bundle.template.regressors[bundle.spec.joint_set]
    matrix = np.asarray(regressor @ np.eye(bundle.spec.vertex_count, dtype=np.float32), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(matrix, "regressor"))
    model.graph.node.append(helper.make_node("MatMul", ["regressor", "vertices"], ["mesh_joints"], "mesh_joints"))
    kept = [value for value in model.graph.output if value.name != "vertices"]
    del model.graph.output[:]
    shape = ["n", len(bundle.spec.joints), 3]
    model.graph.output.extend([*kept, helper.make_tensor_value_info("mesh_joints", onnx.TensorProto.FLOAT, shape)])
    spec = replace(bundle.spec, outputs=("camera", "joints", "mesh_joints"))
    judge = Judge(model, spec, bundle.template, network.images, network.truth)
    assert judge.fp32_mm == pytest.approx({"mpjpe": network.judge.fp32_mm["mpjpe"]}, rel=1e-4)
    assert judge.loss_of(model).mpvpe_mm is None


def test_unusable_samples(network):
    spec, template = network.bundle.spec, network.bundle.template
    with pytest.raises(UserError, match=r"samples must be \(N, 3, 64, 64\) float32, got \(12, 3, 32, 64\)"):
        Judge(network.model, spec, template, network.images[:, :, ::2], None)
    with pytest.raises(UserError, match=r"float32, got \(12, 3, 64, 64\) float64"):
        Judge(network.model, spec, template, network.images.astype(np.float64), None)
    with pytest.raises(UserError, match=r"true meshes must be \(12, 13718, 3\), got \(12, 13717, 3\)"):
        Judge(network.model, spec, template, network.images, network.truth[:, 1:])
    with pytest.raises(UserError, match="not finite on these samples"):
        Judge(network.model, spec, template, network.images * np.float32(np.nan), None)


def test_unknown_metric():
    with pytest.raises(UserError, match="unknown metric 'pa'; known: mpjpe, mpvpe, moved"):
        Loss(0, 0, 0, 0, 0, 0).of("pa")


def test_a_graph_that_does_not_load(network):
    broken = onnx.ModelProto()
    broken.CopyFrom(network.model)
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(UserError, match="ONNX Runtime cannot load the graph"):
        session(broken)
