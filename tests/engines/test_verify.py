"""Verification: what it measures, and that it refuses networks that err too much."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from engines.fold import fold
from engines.verify import (
    TOLERANCES_MM,
    accuracy,
    check,
    fidelity,
    predictions_from_onnx,
    predictions_from_pytorch,
)
from metro_edge.backends import Outputs
from metro_edge.errors import UserError
from metro_edge.metrics import mesh_errors
from metro_edge.spec import KNOWN_OUTPUTS
from training.bodies import body_template


@pytest.fixture(scope="module")
def template():
    return body_template("anny")


@pytest.fixture(scope="module")
def reference(converted) -> Outputs:
    return predictions_from_pytorch(converted.model, converted.images(8), converted.spec, converted.bundle.template)


def moved(reference: Outputs, **changes: np.ndarray) -> Outputs:
    return reference._replace(**{name: getattr(reference, name) + change for name, change in changes.items()})


def measure(converted, template, predicted: Outputs, reference: Outputs, tolerance_mm: float = 1.0):
    truth = np.repeat(template.vertices[None], len(reference.vertices), 0)
    return accuracy(predicted, reference, truth, template, converted.spec, tolerance_mm)


def test_identical_loses_nothing(converted, template, reference):
    found = measure(converted, template, reference, reference)
    assert found.moved_mm == found.worst_vertex_mm == found.joints_moved_mm == found.image_moved_px == 0
    assert found.mpjpe_lost_mm == found.pa_mpjpe_lost_mm == found.mpvpe_lost_mm == 0
    check(found, "fp32", 64)


def test_known_shift(converted, template, reference):
    shift = np.array([0.003, 0.0, 0.004], np.float32)  # 5 mm
    found = measure(converted, template, moved(reference, vertices=shift), reference)
    assert found.moved_mm == pytest.approx(5.0, rel=1e-3) == found.worst_vertex_mm
    assert found.mpvpe_lost_mm == pytest.approx(0.0, abs=1e-3)  # protocols centre, this comparison does not
    scale = np.abs(reference.camera[:, 0]).mean()
    assert found.image_moved_px == pytest.approx(0.003 * scale * 32, rel=1e-3)
    errors = mesh_errors(reference.vertices, np.repeat(template.vertices[None], 8, 0), template, "h36m14").means_mm()
    assert found.mpjpe_mm == pytest.approx(errors["mpjpe"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"vertices": np.float32(0.002)}, "vertices are 3.46"),
        ({"joints": np.float32(0.002)}, "joints are 3.46"),
        ({"camera": np.array([0.5, 0, 0], np.float32)}, "projected vertices"),
    ],
)
def test_refuses(converted, template, reference, changes, what):
    found = measure(converted, template, moved(reference, **changes), reference)
    with pytest.raises(UserError, match=f"fp16 was refused, nothing was written: its {what}"):
        check(found, "fp16", 64)


def test_every_output_is_compared(converted, template, reference):
    spec = dataclasses.replace(converted.spec, outputs=KNOWN_OUTPUTS)
    images = converted.images(8)
    whole = predictions_from_pytorch(converted.model, images, spec, template)
    network, _ = fold(converted.model, template, outputs=KNOWN_OUTPUTS)
    for name, limit, what in (
        ("mesh_joints", 3.46, "joints of the mesh"),
        ("coarse", 3.46, "coarse vertices"),
        ("joints_px", 2.82, "projected joints"),
    ):
        change = 0.002 if name != "joints_px" else 2.0
        found = fidelity(moved(whole, **{name: np.float32(change)}), whole, spec, 1.0)
        with pytest.raises(UserError, match=f"its {what} are {limit}"):
            check(found, "fp16", 64)
    with torch.inference_mode():
        folded = network(torch.from_numpy(images))
    predicted = Outputs(**{n: values.numpy() for n, values in zip(KNOWN_OUTPUTS, folded, strict=True)})
    check(fidelity(predicted, whole, spec, TOLERANCES_MM["fp32"]), "fp32", 64)


def test_joints_alone_are_measured_by_the_joints_of_the_mesh(converted, template):
    spec = dataclasses.replace(converted.spec, outputs=("camera", "joints", "mesh_joints"))
    whole = predictions_from_pytorch(converted.model, converted.images(8), spec, template)
    shift = np.zeros((1, 14, 3), np.float32)
    shift[:, 5] = 0.014
    predicted = moved(whole, mesh_joints=shift)._replace(vertices=None)
    truth = np.repeat(template.vertices[None], 8, 0)
    found = accuracy(predicted, whole, truth, template, spec, 10.0)
    assert found.moved_mm == found.mesh_joints_moved_mm == pytest.approx(3**0.5, rel=1e-3)
    assert found.mpvpe_mm is None and "mpvpe_mm" not in found.to_dict()
    expected = template.joints("h36m14", whole.vertices)
    assert found.mpjpe_mm - found.mpjpe_lost_mm == pytest.approx(
        mesh_errors(whole.vertices, truth, template, "h36m14").means_mm()["mpjpe"], rel=1e-5
    )
    np.testing.assert_allclose(whole.mesh_joints, expected, atol=1e-6)
    with pytest.raises(UserError, match="gives neither"):
        fidelity(predicted._replace(mesh_joints=None), whole, spec, 1.0)


def test_refuses_what_is_not_finite(converted, template, reference):
    with pytest.raises(UserError, match="not finite"):
        measure(converted, template, moved(reference, camera=np.float32(np.nan)), reference)


def test_a_corrupted_graph_is_seen(converted, template, reference, tmp_path):
    model = onnx.load(converted.bundle.onnx_path("fp32"))
    tensor = max(model.graph.initializer, key=lambda t: np.prod(t.dims))
    weight = numpy_helper.to_array(tensor).copy()
    weight.flat[: weight.size // 50] *= 1.5
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    predicted = predictions_from_onnx(tmp_path / "model.onnx", "fp32", converted.images(8), converted.spec)
    with pytest.raises(UserError, match="fp32 was refused"):
        check(measure(converted, template, predicted, reference, TOLERANCES_MM["fp32"]), "fp32", 64)


def test_passport(converted):
    passport = json.loads((converted.bundle.path / "passport.json").read_text())
    found = passport["accuracy"]
    assert found["samples"] == 8 and "seed 2" in found["data"] and "not aligned" in found["protocol"]
    assert list(found["precisions"]) == ["fp32", "fp16", "int8"]
    assert found["precisions"]["fp32"]["moved_mm"] < 0.01 < found["precisions"]["fp16"]["moved_mm"] < 1
    assert found["precisions"]["fp16"]["moved_mm"] < found["precisions"]["int8"]["moved_mm"]
    for name in ("mpjpe", "pa_mpjpe", "mpvpe"):
        for values in found["precisions"].values():
            expected = found["pytorch"][f"{name}_mm"] + values[f"{name}_lost_mm"]
            assert values[f"{name}_mm"] == pytest.approx(expected, abs=2e-4)
    assert passport["calibration"] == passport["calibration"] | {"seed": 1, "samples": 16, "method": "mse"}
    assert len(passport["calibration"]["images_sha256"]) == 64
    assert passport["licences"]["weights"] == "CC0" and "Anny" in passport["licences"]["body"]
    assert passport["versions"].keys() >= {"torch", "onnx", "onnxruntime", "onnx-simplifier"}
    assert converted.bundle.accuracy("int8")["moved_mm"] == found["precisions"]["int8"]["moved_mm"]
