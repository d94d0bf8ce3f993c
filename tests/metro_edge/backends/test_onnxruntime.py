from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from metro_edge.backends import open_session
from metro_edge.backends.onnxruntime import OnnxRuntimeSession
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
    assert [v.shape for v in outputs] == [(count, 3), (count, 14, 3), (count, spec.vertex_count, 3)]
    assert all(v.dtype == np.float32 for v in outputs)
    for name, values, reference in zip(outputs._fields, outputs, expected, strict=True):
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
            for one, many in zip(session.infer(images[i : i + 1]), together, strict=True):
                np.testing.assert_allclose(one[0], many[i], atol=1e-6)
    for first, second in zip(together, again, strict=True):
        np.testing.assert_array_equal(first, second)


def test_half_precision_borders_are_converted(bundle_of, network, shared_bundle):
    bundle = bundle_of(network("fp16", half_borders=True))
    images = some_images(bundle.spec, 2)
    with open_session(bundle) as session, open_session(shared_bundle) as exact:
        outputs, expected = session.infer(images), exact.infer(images)
    for values, reference in zip(outputs, expected, strict=True):
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, reference, atol=5e-3)


def test_zipped_bundles_run(tmp_path, shared_bundle, template, spec, onnx_files, passport):
    from metro_edge.bundle import write_bundle

    zipped = write_bundle(tmp_path / "b.zip", spec, template, onnx_files, passport)
    with open_session(zipped) as session:
        assert session.infer(some_images(spec, 1)).joints.shape == (1, 14, 3)


def test_bad_options(shared_bundle):
    with pytest.raises(UserError, match="unknown backend 'abacus'; known: onnxruntime"):
        open_session(shared_bundle, "fp32", "abacus")
    with pytest.raises(UserError, match="unknown precision 'fp8'"):
        open_session(shared_bundle, "fp8")
    with pytest.raises(UserError, match="threads must be at least 1"):
        open_session(shared_bundle, threads=0)
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
        lambda graph, options, providers: real(graph, options, providers=["CPUExecutionProvider"]),
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


def test_a_file_that_is_no_network(tmp_path, spec, template, passport):
    from metro_edge.bundle import write_bundle

    (tmp_path / "no.onnx").write_bytes(b"not a protobuf message")
    bundle = write_bundle(tmp_path / "b", spec, template, {"fp32": tmp_path / "no.onnx"}, passport)
    with pytest.raises(BundleError, match="cannot load the fp32 network"):
        open_session(bundle)
