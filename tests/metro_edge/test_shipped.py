"""The bundle that ships: whole, small enough, and as accurate as its passport says on people it never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metro_edge import Bundle, MeshEstimator
from metro_edge.bundle import shipped_bundle_path
from metro_edge.cli import main
from metro_edge.demo import DemoAssets, PrecisionResult, evaluate
from metro_edge.spec import PRECISIONS

MAX_FILE_MB = 25
CLIP_MPJPE_LIMIT_MM = 100.0  # the rest pose itself, seen from a fixed side, is far worse on a body that turns
FP16_LIMIT_MM, INT8_LIMIT_MM = 0.1, 2.0  # of MPJPE, against fp32


@pytest.fixture(scope="module")
def results() -> dict[str, PrecisionResult]:
    assets = DemoAssets.load()
    found = {}
    for precision in PRECISIONS:
        with MeshEstimator.from_bundle(precision=precision) as estimator:
            found[precision] = evaluate(estimator, assets, calls=3)
    return found


def test_bundle_is_whole_and_small() -> None:
    bundle = Bundle.load()
    assert bundle.precisions == PRECISIONS
    for precision in PRECISIONS:
        assert len(bundle.onnx_bytes(precision)) < MAX_FILE_MB * 1e6
        assert bundle.accuracy(precision) is not None
    assert bundle.passport["licences"]["weights"] == "Apache-2.0"
    assert "CC0" in bundle.passport["licences"]["body"]


def test_accuracy_on_the_clip(results: dict[str, PrecisionResult]) -> None:
    assert results["fp32"].means_mm["mpjpe"] < CLIP_MPJPE_LIMIT_MM
    assert results["fp32"].means_mm["pa_mpjpe"] < results["fp32"].means_mm["mpjpe"]


def test_what_the_smaller_types_cost(results: dict[str, PrecisionResult]) -> None:
    reference = results["fp32"].means_mm["mpjpe"]
    assert abs(results["fp16"].means_mm["mpjpe"] - reference) < FP16_LIMIT_MM
    assert abs(results["int8"].means_mm["mpjpe"] - reference) < INT8_LIMIT_MM
    moved = np.linalg.norm(results["int8"].vertices - results["fp32"].vertices, axis=-1).mean()
    assert 0 < moved < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_plans_build_without_a_gpu(precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    plan = tmp_path / "shipped.plan"
    command = ["build", str(shipped_bundle_path()), "--precision", precision, "-o", str(plan)]
    assert main([*command, "--library", "tensorrt_rtx"]) == 0
    assert plan.stat().st_size > 4e6
    assert precision in capsys.readouterr().out
