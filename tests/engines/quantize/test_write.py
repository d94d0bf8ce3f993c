"""The bundle of a result: one graph is new, everything else as it was, and every figure measured anew."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest

from engines.quantize.mixed import mixed
from engines.quantize.write import NO_TRUTH, write_result, written_as
from metro_edge.backends.cpu_twin import cpu_twin
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError
from metro_edge.metrics import mesh_errors
from tests.engines.quantize.graphs import run

CALIBRATION = {"data": "pictures", "samples": 16, "method": "max", "images_sha256": "0" * 64}
ABOUT = {"calibration": CALIBRATION | {"compared": [{"loss": None}]}, "best": {"ms": 1.0}}


def written(network, output, precision: str, truth: bool = True) -> tuple[Bundle, onnx.ModelProto]:
    graph = mixed(network.model, network.all(precision), network.thresholds)
    images, meshes = network.images[:4], network.truth[:4] if truth else None
    return write_result(network.bundle, output, graph, precision, images, meshes, "some samples", ABOUT), graph


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp8"])
def test_only_its_precision_is_new(network, tmp_path, precision):
    made, graph = written(network, tmp_path / "out", precision)
    assert Bundle.load(tmp_path / "out").passport == made.passport
    assert set(made.precisions) == {"fp32", "fp16", "int8", precision}
    for kept in made.precisions:
        expected = graph.SerializeToString() if kept == precision else network.bundle.onnx_bytes(kept)
        assert made.onnx_bytes(kept) == expected
    assert made.spec == network.bundle.spec and (made.template.vertices == network.bundle.template.vertices).all()
    before, after = network.bundle.passport, made.passport
    changed = {"files", "accuracy", "quantization"} | ({"calibration"} if precision == "int8" else set())
    assert {key: value for key, value in after.items() if key not in changed} == {
        key: value for key, value in before.items() if key not in changed
    }
    assert after["quantization"] == {precision: ABOUT}
    assert after["calibration"] == (CALIBRATION if precision == "int8" else before["calibration"])


def test_searches_for_other_precisions_stay_in_the_passport(network, tmp_path):
    first, _ = written(network, tmp_path / "a", "fp8")
    graph = mixed(network.model, network.all("int8"), network.thresholds)
    images, truth, other = network.images[:4], network.truth[:4], ABOUT | {"best": {"ms": 2.0}}
    for _ in range(2):  # the second takes the place of the first
        second = write_result(first, tmp_path / "b", graph, "int8", images, truth, "some samples", other)
        assert second.passport["quantization"] == {"fp8": ABOUT, "int8": other}
        first, other = second, ABOUT | {"best": {"ms": 3.0}}
    damaged = replace(first, passport={**first.passport, "quantization": "?"})
    third = write_result(damaged, tmp_path / "c", graph, "int8", images, truth, "some samples", ABOUT)
    assert third.passport["quantization"] == {"int8": ABOUT}


def test_figures_of_all_precisions_are_measured_on_the_same_samples(network, tmp_path):
    made, graph = written(network, tmp_path / "out", "int8")
    measured = made.passport["accuracy"]
    assert (measured["data"], measured["samples"]) == ("some samples", 4)
    rows = measured["precisions"]
    assert set(rows) == set(made.precisions) and not any("tolerance_mm" in row for row in rows.values())
    images, truth = network.images[:4], network.truth[:4]
    graphs = {p: onnx.load_from_string(made.onnx_bytes(p)) for p in ("fp32", "fp16")}
    graphs["int8"] = onnx.load_from_string(cpu_twin(graph.SerializeToString()))
    exact = run(graphs["fp32"], images)["vertices"]
    for precision, row in rows.items():
        vertices = run(graphs[precision], images)["vertices"]
        distance = np.linalg.norm(vertices - exact, axis=-1).mean() * 1000
        errors = mesh_errors(vertices, truth, made.template, made.spec.joint_set).means_mm()
        # ONNX Runtime's fused kernels round otherwise than those here.
        assert row["moved_mm"] == pytest.approx(distance, rel=0.1, abs=0.01)
        assert row["mpvpe_mm"] == pytest.approx(errors["mpvpe"], rel=1e-2)
        assert row["mpjpe_lost_mm"] == pytest.approx(row["mpjpe_mm"] - measured["fp32"]["mpjpe_mm"], abs=2e-4)
    assert rows["fp32"]["moved_mm"] == rows["fp32"]["mpjpe_lost_mm"] == 0.0 < rows["fp16"]["moved_mm"]
    assert rows["fp16"]["moved_mm"] < rows["int8"]["moved_mm"]


def test_without_truth_distances_take_the_place_of_accuracy_and_back(network, tmp_path):
    made, _ = written(network, tmp_path / "out", "int8", truth=False)
    assert "accuracy" not in made.passport and made.passport["verification"]["protocol"].startswith(NO_TRUTH)
    row = made.passport["verification"]["precisions"]["int8"]
    assert row["moved_mm"] > 0 and not any("mpjpe" in key for key in row)
    graph = onnx.load_from_string(made.onnx_bytes("fp16"))
    again = write_result(made, tmp_path / "out", graph, "fp16", network.images[:2], network.truth[:2], "others", ABOUT)
    assert "verification" not in again.passport and again.passport["accuracy"]["samples"] == 2


def test_in_place_and_as_a_zip(network, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(network.bundle.path, copy)
    graph = mixed(network.model, network.all("int8"), network.thresholds)
    arguments = (graph, "int8", network.images[:2], None, "some samples", ABOUT)
    made = write_result(Bundle.load(copy), copy, *arguments)
    assert made.path == copy and made.onnx_bytes("int8") == graph.SerializeToString()
    packed = write_result(made, tmp_path / "new" / "out.zip", *arguments)
    assert packed.onnx_bytes("fp16") == network.bundle.onnx_bytes("fp16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "new"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out.zip"]


def test_what_cannot_be_written_changes_nothing(network, tmp_path):
    graph = mixed(network.model, network.all("int8"), network.thresholds)
    arguments = ("int8", network.images[:2], None, "some samples", ABOUT)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for place, message in (("mine", "neither empty nor a bundle"), ("file/out", "cannot write into folder")):
        with pytest.raises(UserError, match=message):
            write_result(network.bundle, tmp_path / place, graph, *arguments)
    copy = tmp_path / "bundle"
    shutil.copytree(network.bundle.path, copy)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    broken = onnx.ModelProto()
    broken.CopyFrom(graph)
    scale = next(t for t in broken.graph.initializer if t.name == "upsampling.0.weight_scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.full(list(scale.dims), np.nan, np.float32), scale.name))
    with pytest.raises(UserError, match="not finite"):
        write_result(Bundle.load(copy), copy, broken, *arguments)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "file", "mine"]


def test_passport_is_plain_json(network, tmp_path):
    made, _ = written(network, tmp_path / "out", "int8", truth=False)
    assert json.loads((tmp_path / "out" / "passport.json").read_text()) == made.passport


@pytest.mark.parametrize(
    ("kinds", "precision"),
    [
        ("int8 fp16 fp32", "int8"), ("fp16 fp8", "fp8"), ("fp32 fp16", "fp16"), ("fp32", "fp32"), ("", "fp32"),
    ],
)  # fmt: skip
def test_a_mix_goes_by_its_least_exact_layers(kinds, precision):
    assert written_as(dict(enumerate(kinds.split()))) == precision
