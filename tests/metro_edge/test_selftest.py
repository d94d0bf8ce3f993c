from __future__ import annotations

import types

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from metro_edge import selftest
from metro_edge.backends.gpu import Gpu, first_gpu
from metro_edge.bundle import write_bundle
from metro_edge.errors import MissingExtraError, UserError
from metro_edge.selftest import (
    FAILED,
    PASSED,
    REFERENCE,
    SKIPPED,
    Result,
    check_kernels,
    compare_engines,
    limits,
    names_of,
    results_table,
    shipped_images,
)


@pytest.fixture(scope="module")
def images(shared_bundle):
    return shipped_images(shared_bundle, 3)


def moved_bundle(tmp_path, template, spec, onnx_files, passport, metres: float, camera: float = 0.0):
    """A bundle whose fp16 network puts every second vertex `metres` further along x, and its camera aside."""
    model = onnx.load(onnx_files["fp16"])
    (rest,) = (tensor for tensor in model.graph.initializer if tensor.name == "rest")
    values = numpy_helper.to_array(rest).copy()
    values[1] += camera
    values[-3 * spec.vertex_count :: 6] += metres
    rest.CopyFrom(numpy_helper.from_array(values, "rest"))
    onnx.save(model, tmp_path / "moved.onnx")
    files = {**onnx_files, "fp16": tmp_path / "moved.onnx"}
    return write_bundle(tmp_path / "moved", spec, template, files, passport)


def test_images_are_the_picture_and_frames_of_the_clip(shared_bundle):
    assert shipped_images(shared_bundle, 1).shape == (1, 3, 64, 64)
    several = shipped_images(shared_bundle, 5)
    assert several.shape == (5, 3, 64, 64) and several.dtype == np.float32
    np.testing.assert_array_equal(several[:1], shipped_images(shared_bundle, 1))
    assert len({image.tobytes() for image in several}) == 5
    assert len(shipped_images(shared_bundle, 10_000)) == 61  # the picture and the whole clip
    with pytest.raises(UserError, match="at least one frame, got 0"):
        shipped_images(shared_bundle, 0)


def test_every_engine_passes_on_what_is_right(shared_bundle, images):
    results = list(compare_engines(shared_bundle, names_of(shared_bundle), images, threads=1))
    assert [r.name for r in results] == [
        f"{b} {p}" for b in ("onnxruntime", "openvino", "tensorrt") for p in ("fp32", "fp16", "int8")
    ]
    results, on_gpu = results[:6], results[6:]
    assert {r.state for r in results} == {PASSED}
    assert first_gpu() is not None or {(r.state, r.note) for r in on_gpu} == {(SKIPPED, "no NVIDIA GPU here")}
    assert results[0].moved_mm < 1e-3 and results[0].moved_px < 1e-3
    assert all(r.p50_ms > 0 and r.worst_mm >= r.moved_mm for r in results)
    assert results[1].note.startswith("onnxruntime ")


def test_millimetres_are_those_that_the_network_was_moved_by(
    tmp_path, template, spec, onnx_files, passport, images
):  # fmt: skip
    passport["accuracy"]["precisions"]["fp16"] = {**passport["accuracy"]["precisions"]["int8"], "moved_mm": 0.5}
    bundle = moved_bundle(tmp_path, template, spec, onnx_files, passport, metres=0.02)
    reference, moved = compare_engines(bundle, [REFERENCE, ("onnxruntime", "fp16")], images)
    assert reference.state == PASSED and moved.state == FAILED and "by more than the passport" in moved.note
    # Half of the vertices by 20 mm; the root, a mean of some of them, moves along.
    assert moved.moved_mm == pytest.approx(10, abs=1.0) and moved.limit_mm == 1.0


def test_a_camera_that_is_wrong_fails_in_pixels(tmp_path, template, spec, onnx_files, passport, images):
    bundle = moved_bundle(tmp_path, template, spec, onnx_files, passport, metres=0.0, camera=0.05)
    _, moved = compare_engines(bundle, [REFERENCE, ("onnxruntime", "fp16")], images)
    assert moved.moved_mm < moved.limit_mm and moved.state == FAILED
    assert moved.moved_px == pytest.approx(0.05 * 0.9 * 32, rel=0.15)


def test_a_batch_that_differs_from_single_images_fails(shared_bundle, images, monkeypatch):
    honest = selftest.open_session

    def dishonest(bundle, precision, backend, **options):
        session = honest(bundle, precision, backend, **options)
        inner = session.infer

        def infer(batch):
            outputs = inner(batch)
            return outputs if len(batch) == 1 else outputs._replace(vertices=outputs.vertices[::-1] * np.float32(1.1))

        session.infer = infer
        return session

    monkeypatch.setattr(selftest, "open_session", dishonest)
    (result,) = compare_engines(shared_bundle, [REFERENCE], images)
    assert result.state == FAILED and result.moved_mm > 10


def test_limits_come_from_the_passport(tmp_path, template, spec, onnx_files, passport, shared_bundle):
    assert limits(shared_bundle, "int8") == (2.5, 4.0)  # twice the 1.25 mm; no pixels are stated
    assert limits(shared_bundle, "fp32") == (0.05, 0.05)
    assert limits(shared_bundle, "fp16") == (2.0, 0.5)  # not in this passport
    passport["verification"] = passport.pop("accuracy")
    passport["verification"]["precisions"]["int8"] |= {"tolerance_mm": 4.0, "image_moved_px": 0.3}
    verified = write_bundle(tmp_path / "v", spec, template, onnx_files, passport)
    assert limits(verified, "int8") == (8.0, 0.6)
    passport["verification"]["precisions"]["int8"]["image_moved_px"] = "none"
    assert limits(write_bundle(tmp_path / "w", spec, template, onnx_files, passport), "int8")[1] == 4.0


def test_what_is_tested(shared_bundle, bundle_of, network):
    assert names_of(shared_bundle, ["openvino"], ["int8"]) == [REFERENCE, ("openvino", "int8")]
    assert names_of(shared_bundle, ["onnxruntime"], ["fp32"]) == [REFERENCE]
    for arguments, message in (
        ((["tvm"], []), "unknown backend 'tvm'; known: onnxruntime, openvino"),
        (([], ["fp4"]), "unknown precision 'fp4'"),
        (([], ["fp8"]), r"the selftest needs fp8, bundle .* has fp32, fp16, int8"),
    ):
        with pytest.raises(UserError, match=message):
            names_of(shared_bundle, *arguments)
    with pytest.raises(UserError, match="needs int8"):
        names_of(bundle_of(network()), [], ["int8"])


@pytest.mark.parametrize(
    ("error", "state", "note"),
    [
        (MissingExtraError("openvino", "openvino", "run"), SKIPPED, "pip install 'metro-edge[openvino]'"),
        (RuntimeError("illegal instruction"), FAILED, "RuntimeError: illegal instruction"),
        (UserError("not the spec's network"), FAILED, "UserError: not the spec's network"),
    ],
)
def test_an_engine_that_cannot_be_opened(shared_bundle, images, monkeypatch, error, state, note):
    honest = selftest.open_session

    def broken(bundle, precision, backend, **options):
        if backend == "openvino":
            raise error
        return honest(bundle, precision, backend, **options)

    monkeypatch.setattr(selftest, "open_session", broken)
    first, second = compare_engines(shared_bundle, [REFERENCE, ("openvino", "fp32")], images)
    assert first.state == PASSED and second.state == state and note in second.note


def test_outputs_that_are_not_finite_fail(bundle_of, network, images):
    (result,) = compare_engines(bundle_of(network(camera=(np.nan, 0, 0))), [REFERENCE], images)
    assert result.state == FAILED and "camera have NaN or infinity" in result.note


def test_without_a_reference_nothing_passes(shared_bundle, images, monkeypatch):
    honest = selftest.open_session

    def without_the_first(bundle, precision, backend, **options):
        return honest(bundle, precision, backend, **options) if backend == "openvino" else 1 / 0

    monkeypatch.setattr(selftest, "open_session", without_the_first)
    states = [r.state for r in compare_engines(shared_bundle, [REFERENCE, ("openvino", "fp32")], images)]
    assert states == [FAILED, FAILED]


def test_joints_alone_are_compared(tmp_path, template, spec, passport, network, images):
    import dataclasses

    spec = dataclasses.replace(spec, outputs=("camera", "joints", "mesh_joints"))
    onnx.save(network(joints_only=True), tmp_path / "joints.onnx")
    bundle = write_bundle(tmp_path / "joints", spec, template, {"fp32": tmp_path / "joints.onnx"}, passport)
    results = list(compare_engines(bundle, names_of(bundle, ("onnxruntime", "openvino")), images))
    assert [r.state for r in results] == [PASSED, PASSED]


def test_kernels_are_tested_where_a_gpu_is(monkeypatch):
    monkeypatch.setattr(selftest, "first_gpu", lambda: None)
    assert [(r.state, r.note) for r in check_kernels()] == [(SKIPPED, "no NVIDIA GPU here")]
    monkeypatch.setattr(selftest, "first_gpu", lambda: Gpu("Orin", "8.7"))
    row = Result("kernels crop", PASSED)
    asked = []
    for checks, state, note in (
        (lambda: [row], PASSED, ""),
        (lambda: 1 / 0, FAILED, "division by zero"),
        (missing, SKIPPED, "pip install 'metro-edge[tensorrt]'"),
    ):
        module = types.SimpleNamespace(checks=checks)
        monkeypatch.setattr(selftest.importlib, "import_module", lambda name, m=module: asked.append(name) or m)
        results = list(check_kernels())
        assert [r.state for r in results] == [state]
        assert all(note in r.note for r in results)
    assert set(asked) == {"metro_edge.cuda.selftest"}


def missing():
    raise MissingExtraError("pycuda", "tensorrt", "run CUDA kernels")


def test_table():
    lines = results_table(
        [Result("a fp32", PASSED, "cpu", 0.1234, 0.2, 1.0, 0.01, 0.05, 4.56), Result("b fp32", FAILED, "Oh: no")]
    ).splitlines()
    assert lines[2].split() == ["a", "fp32", "passed", "0.123", "1.000", "0.200", "0.010", "0.050", "4.6"]
    assert lines[3].split() == ["b", "fp32", "FAILED", *["-"] * 6] and lines[4:] == ["b fp32: Oh: no"]
