"""The exported repository, run end to end on real pictures, against MeshEstimator."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import onnx
import pytest

from metro_edge.bundle import Bundle, shipped_bundle_path, write_bundle
from metro_edge.demo import DemoAssets
from metro_edge.estimator import MeshEstimator
from metro_edge.triton import TritonOptions, export_triton
from tests.metro_edge.triton.server import Server

BOXES = np.array([(10, 5, 50, 100), (80, 20, 60, 90), (100, 60, 80, 80)], np.float32)


@pytest.fixture(autouse=True)
def without_triton():
    yield
    sys.modules.pop("triton_python_backend_utils", None)


@pytest.fixture
def served(tmp_path):
    """Exports a bundle and loads it."""

    def make(bundle, precision="fp32", **options) -> Server:
        repository = tmp_path / "models"
        export_triton(bundle, precision, repository, TritonOptions("net", **{"max_people": 4, **options}))
        return Server(repository)

    return make


def assert_bodies(result, bodies, atol_m: float) -> None:
    assert not isinstance(result, str), result
    assert list(result) == ["camera", "joints", "vertices", "translation", "joints_px"]
    for name in result:
        expected = np.stack([getattr(body, name) for body in bodies])
        atol = 2000 * atol_m if name == "joints_px" else 20 * atol_m if name == "translation" else atol_m
        np.testing.assert_allclose(result[name], expected, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_frame_gives_the_estimators_bodies(served, shared_bundle, frame, precision):
    server = served(shared_bundle, precision)
    (result,) = server.infer("net_frame", [{"frame": frame, "boxes": BOXES}])
    with MeshEstimator.from_bundle(shared_bundle, precision) as estimator:
        assert_bodies(result, estimator(frame, BOXES), 1e-5)


def test_a_picture_file_gives_the_same_as_its_frame(served, shared_bundle, frame):
    server = served(shared_bundle)
    _, data = cv2.imencode(".png", frame)
    (ours,) = server.infer("net_picture", [{"picture": data.ravel(), "boxes": BOXES}])
    (theirs,) = server.infer("net_frame", [{"frame": frame, "boxes": BOXES}])
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)


def test_the_shipped_bundle_on_the_shipped_picture(served):
    bundle, assets = Bundle.load(), DemoAssets.load()
    data = np.fromfile(shipped_bundle_path().parent / "demo" / "picture.jpg", np.uint8)
    boxes = assets.picture_box.astype(np.float32)
    (result,) = served(bundle).infer("net_picture", [{"picture": data, "boxes": boxes}])
    with MeshEstimator.from_bundle(bundle) as estimator:
        assert_bodies(result, estimator(assets.picture, boxes), 1e-5)


def test_a_focal_length(served, shared_bundle, frame):
    (result,) = served(shared_bundle, focal_px=432.5).infer("net_frame", [{"frame": frame, "boxes": BOXES}])
    with MeshEstimator.from_bundle(shared_bundle, focal_px=432.5) as estimator:
        assert_bodies(result, estimator(frame, BOXES), 1e-5)


def test_half_precision_borders(served, bundle_of, network, frame):
    bundle = bundle_of(network("fp16", half_borders=True))
    (result,) = served(bundle).infer("net_frame", [{"frame": frame, "boxes": BOXES}])
    with MeshEstimator.from_bundle(bundle) as estimator:
        assert_bodies(result, estimator(frame, BOXES), 1e-3)


def test_joints_alone(served, tmp_path, template, spec, passport, network, frame):
    import dataclasses

    spec = dataclasses.replace(spec, outputs=("camera", "joints", "mesh_joints"))
    onnx.save(network(joints_only=True), tmp_path / "joints.onnx")
    bundle = write_bundle(tmp_path / "joints", spec, template, {"fp32": tmp_path / "joints.onnx"}, passport)
    (result,) = served(bundle).infer("net_frame", [{"frame": frame, "boxes": BOXES}])
    assert list(result) == ["camera", "joints", "translation", "joints_px"]
    with MeshEstimator.from_bundle(bundle) as estimator:
        bodies = estimator(frame, BOXES)
    np.testing.assert_allclose(result["joints"], [body.joints for body in bodies], atol=1e-5)


def test_a_mistake_is_that_requests_own_error(served, shared_bundle, frame):
    server = served(shared_bundle, max_people=2)
    good = {"frame": frame, "boxes": BOXES[:1]}
    requests = [
        good,
        {"frame": frame, "boxes": BOXES},
        {"frame": frame, "boxes": BOXES[:0]},
        {"frame": frame, "boxes": np.full((1, 4), np.nan, np.float32)},
        {"picture": np.frombuffer(b"no picture", np.uint8), "boxes": BOXES[:1]},
        {"boxes": BOXES[:1]},
        {**good, "picture": np.zeros(4, np.uint8)},
    ]
    results = server.infer("net_preprocess", requests)
    assert results[0]["images"].shape == (1, 3, 64, 64)
    for result, message in zip(
        results[1:],
        (
            "boxes must be those of 1 to 2 people, got 3",
            "boxes must be those of 1 to 2 people, got 0",
            "box 0 (x=nan, y=nan, width=nan, height=nan) is not finite",
            "the picture is not a picture",
            "one of `frame` and `picture` must be given",
            "one of `frame` and `picture` must be given",
        ),
        strict=True,
    ):
        assert message in result


def test_a_network_that_sees_nobody_is_an_error(served, bundle_of, network, frame):
    (result,) = served(bundle_of(network(camera=(-0.5, 0, 0)))).infer("net_frame", [{"frame": frame, "boxes": BOXES}])
    assert "not positive" in result
