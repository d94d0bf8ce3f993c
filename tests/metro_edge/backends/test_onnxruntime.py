from __future__ import annotations

import os
import time

import numpy as np
import onnx
import onnxruntime
import pytest

from metro_edge.backends import onnxruntime as onnxruntime_backend
from metro_edge.backends import open_session
from metro_edge.backends.cpu_twin import FLOAT_REWRITINGS, cpu_twin, rewrite
from metro_edge.backends.onnxruntime import OnnxRuntimeSession
from metro_edge.bundle import Bundle
from metro_edge.errors import BundleError, PredictionError, UserError


def some_images(spec, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    colours = rng.normal(size=(count, 3, 1, 1))
    return (colours + 0.1 * rng.normal(size=(count, 3, spec.image_size, spec.image_size))).astype(np.float32)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_shapes_types_and_closeness_in_every_precision(shared_bundle, precision, count):
    spec = shared_bundle.spec
    images = some_images(spec, count)
    with open_session(shared_bundle, precision) as session, open_session(shared_bundle, "fp32") as exact:
        outputs, expected = session.infer(images), exact.infer(images)
    found = outputs.given
    shapes = {"camera": (count, 3), "joints": (count, 14, 3), "vertices": (count, spec.vertex_count, 3)}
    assert {name: values.shape for name, values in found.items()} == shapes
    assert all(values.dtype == np.float32 for values in found.values())
    for name, values in found.items():
        reference = getattr(expected, name)
        np.testing.assert_allclose(values, reference, atol=2e-3, err_msg=name)
    assert session.precision == precision
    assert session.device == f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider"


def test_the_outputs_follow_the_image(shared_bundle, template):
    """The tiny network is pooled colour times known weights: NumPy gives the same."""
    images = some_images(shared_bundle.spec, 3)
    weights = 0.02 * np.random.default_rng(5).standard_normal((3, 3 + 42 + 3 * len(template.vertices)))
    sway = images.mean(axis=(2, 3)) @ weights
    with open_session(shared_bundle) as session:
        vertices = session.infer(images).vertices
    expected = template.vertices + sway[:, 45:].reshape(3, -1, 3)
    np.testing.assert_allclose(vertices, expected, atol=1e-5)


def test_images_do_not_depend_on_their_batch_and_runs_are_equal(shared_bundle):
    images = some_images(shared_bundle.spec, 4)
    with open_session(shared_bundle, "fp32", threads=2) as session:
        together = session.infer(images)
        again = session.infer(images)
        for i in range(4):
            for one, many in zip(session.infer(images[i : i + 1]).given.values(), together.given.values(), strict=True):
                np.testing.assert_allclose(one[0], many[i], atol=1e-6)
    for first, second in zip(together.given.values(), again.given.values(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_half_precision_borders_are_converted(bundle_of, network, shared_bundle):
    bundle = bundle_of(network("fp16", half_borders=True))
    images = some_images(bundle.spec, 2)
    with open_session(bundle) as session, open_session(shared_bundle) as exact:
        outputs, expected = session.infer(images), exact.infer(images)
    for values, reference in zip(outputs.given.values(), expected.given.values(), strict=True):
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, reference, atol=5e-3)


def test_zipped_bundles_run(tmp_path, shared_bundle, template, spec, onnx_files, passport):
    from metro_edge.bundle import write_bundle

    zipped = write_bundle(tmp_path / "b.zip", spec, template, onnx_files, passport)
    with open_session(zipped) as session:
        assert session.infer(some_images(spec, 1)).joints.shape == (1, 14, 3)


def test_bad_options(shared_bundle):
    with pytest.raises(UserError, match="unknown backend 'abacus'; known: onnxruntime, openvino"):
        open_session(shared_bundle, "fp32", "abacus")
    with pytest.raises(BundleError, match="has no fp8 network; it has fp32, fp16, int8"):
        open_session(shared_bundle, "fp8")
    with pytest.raises(UserError, match="unknown precision 'fp64'; known: fp32, fp16, int8, fp8"):
        open_session(shared_bundle, "fp64")
    with pytest.raises(UserError, match="threads must be 1 to"):
        open_session(shared_bundle, threads=0)
    with pytest.raises(UserError, match="has no option colour; it has threads, affinity, provider"):
        open_session(shared_bundle, colour="red")
    with pytest.raises(UserError, match="no provider 'TpuExecutionProvider'; it has"):
        OnnxRuntimeSession(shared_bundle, provider="TpuExecutionProvider")


def test_a_provider_that_does_not_start_is_an_error_not_a_fallback(shared_bundle, monkeypatch):
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["SlowExecutionProvider", "CPUExecutionProvider"]
    )
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda graph, options, providers, **more: real(graph, options, providers=["CPUExecutionProvider"], **more),
    )
    with pytest.raises(UserError, match="SlowExecutionProvider did not start"):
        OnnxRuntimeSession(shared_bundle, provider="SlowExecutionProvider")


def test_bad_images(shared_bundle):
    with open_session(shared_bundle) as session:
        for bad in (
            np.zeros((1, 3, 32, 32), np.float32),
            np.zeros((3, 64, 64), np.float32),
            np.zeros((1, 64, 64, 3), np.float32),
            np.zeros((1, 3, 64, 64), np.float64),
        ):
            with pytest.raises(UserError, match=r"images must be \(N, 3, 64, 64\) float32"):
                session.infer(bad)
    with pytest.raises(UserError, match="closed"):
        session.infer(np.zeros((1, 3, 64, 64), np.float32))
    session.close()


def test_networks_that_are_not_the_specs(bundle_of, network, template, spec):
    for model, message in (
        (network(outputs=("cam", "joints", "vertices")), r"outputs \['cam'"),
        (network(size=32), r"takes images \['n', 3, 32, 32\]"),
        (network(dynamic=False), r"takes images \[1, 3, 64, 64\]; expected \(any"),
    ):
        with pytest.raises(BundleError, match=message):
            open_session(bundle_of(model))
    with (
        open_session(bundle_of(network(vertex_count=100))) as session,
        pytest.raises(PredictionError, match=r"vertices are \(1, 100, 3\), its spec says"),
    ):
        session.infer(np.zeros((1, 3, 64, 64), np.float32))


def test_inputs_of_another_type(bundle_of, network):
    model = network()
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    cast = onnx.helper.make_node("Cast", ["images"], ["floats"], to=onnx.TensorProto.FLOAT)
    model.graph.node[0].input[0] = "floats"
    model.graph.node.insert(0, cast)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    with pytest.raises(BundleError, match=r"tensor\(double\); expected float or float16"):
        open_session(bundle_of(model))


def test_a_graph_that_it_cannot_load(bundle_of, network):
    model = network()
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(BundleError, match="cannot load the fp32 network.*NoSuchOperator"):
        open_session(bundle_of(model))


def test_a_network_that_fails_when_it_runs(fails_over_batches):
    with open_session(fails_over_batches) as session:
        session.infer(some_images(session.spec, 1))
        with pytest.raises(PredictionError, match="the fp32 network of .* failed on ONNX Runtime: .*Reshape"):
            session.infer(some_images(session.spec, 2))


def test_fp8_is_computed_with_floats(bundle_of, network, shared_bundle):
    """Also where Clip stands before the quantisation, over which an optimiser of ONNX Runtime's fails."""
    images = some_images(shared_bundle.spec, 2)
    with open_session(bundle_of(network("fp8"), "fp8"), "fp8") as session:
        assert session.device.endswith("CPUExecutionProvider, fp8 computed in float32")
        found = session.infer(images)
    with open_session(shared_bundle) as exact:
        moved = np.abs(found.vertices - exact.infer(images).vertices)
    assert 1e-6 < moved.max() < 1e-2


def test_the_threads_are_on_their_cores(shared_bundle):
    """One worker per core besides the caller's; the caller is on its core during the call and free behind it."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        pytest.skip("needs two cores")
    before = set(os.listdir("/proc/self/task"))
    with open_session(shared_bundle, affinity=cores[::-1]) as session:
        workers = [task for task in os.listdir("/proc/self/task") if task not in before]
        session.infer(some_images(shared_bundle.spec, 1))
        for _ in range(100):  # a worker moves to its core as the first thing it does, whenever that is
            places = [os.sched_getaffinity(int(task)) for task in workers]
            if places == [{cores[0]}]:
                break
            time.sleep(0.05)
        assert places == [{cores[0]}]
    assert os.sched_getaffinity(0) >= set(cores)


def test_products_that_saturate_are_made_exact(shared_bundle, monkeypatch):
    """On a CPU without VNNI the option that sums in 32 bits is set, for int8 alone; and it gives the same network."""
    images = some_images(shared_bundle.spec, 2)
    with open_session(shared_bundle, "int8") as session:
        expected = session.infer(images)
    set_options = []
    monkeypatch.setattr(onnxruntime_backend, "products_saturate", lambda: True)
    real = onnxruntime.SessionOptions.add_session_config_entry
    monkeypatch.setattr(
        onnxruntime.SessionOptions,
        "add_session_config_entry",
        lambda self, key, value: (set_options.append((key, value)), real(self, key, value)),
    )
    open_session(shared_bundle, "fp32").close()
    assert not set_options
    with open_session(shared_bundle, "int8") as session:
        found = session.infer(images)
    assert set_options == [("session.x64quantprecision", "1")]
    np.testing.assert_allclose(found.vertices, expected.vertices, atol=1e-6)


def test_the_mesh_step_of_the_shipped_network_is_rewritten():
    bundle = Bundle.load(None)
    for precision, rewritten in (("fp32", rewrite(bundle.onnx_bytes("fp32"), FLOAT_REWRITINGS)),
                                 ("int8", cpu_twin(bundle.onnx_bytes("int8")))):  # fmt: skip
        sums = [n for n in onnx.load_from_string(bundle.onnx_bytes(precision)).graph.node if n.op_type == "ReduceSum"]
        twins = [n for n in onnx.load_from_string(rewritten).graph.node if n.op_type == "ReduceSum"]
        assert len(sums) == len(twins) == 1 and sums[0].input[0] != twins[0].input[0]
