"""Plans of every precision, built for real by TensorRT-RTX on the CPU, with what can be asked of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.export import export_onnx
from engines.fold import fold
from engines.half import half
from engines.quantize import quantise
from engines.simplify import simplify
from metro_edge.bundle import Bundle
from metro_edge.plans import BatchProfile, BuildOptions, PlanInfo, build_plan, plan_for
from metro_edge.plans.layers import layers_path
from tests.engines.conftest import randomised
from training.config import FitConfig

pytest.importorskip("tensorrt_rtx")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tiny_network(converted, tmp_path, precision):
    plan = tmp_path / "tiny.plan"
    info = build_plan(
        converted.bundle.onnx_path(precision), plan, precision=precision, library="tensorrt_rtx", progress=False
    )
    assert info.precision == precision and plan.stat().st_size == info.plan_bytes > 100_000
    assert info.onnx_sha256 == converted.bundle.onnx_sha256(precision)


@pytest.mark.slow
def test_default_network(tmp_path, converted):
    """The shipped architecture, random weights: all three precisions build, and smaller types make smaller plans."""
    import numpy as np
    import onnx

    config = FitConfig.from_dict({"name": "metro_edge", "model": "metro_edge"})
    network, _ = fold(randomised(config), config.template)
    model = simplify(export_onnx(network, config.spec, ""))
    size = config.spec.image_size
    images = np.random.default_rng(0).normal(size=(4, 3, size, size)).astype(np.float32)
    sizes: dict[str, int] = {}
    for precision, graph in (("fp32", model), ("fp16", half(model)), ("int8", quantise(model, [images]))):
        onnx.save(graph, tmp_path / "model.onnx")
        info = build_plan(
            tmp_path / "model.onnx", tmp_path / "plan", precision=precision, library="tensorrt_rtx", progress=False
        )
        sizes[precision] = info.plan_bytes
    assert sizes["fp32"] > 1.2 * max(sizes["fp16"], sizes["int8"]), sizes


@pytest.mark.slow
class TestShippedBundle:
    """The bundle that users get, in every precision that it has."""

    PROFILES = (BatchProfile(1, 1, 1), BatchProfile(1, 4, 16))

    @pytest.fixture
    def bundle(self) -> Bundle:
        return Bundle.load()

    def test_every_precision_with_every_option(self, bundle: Bundle, tmp_path: Path) -> None:
        options = BuildOptions(
            profiles=self.PROFILES, workspace_mb=1024, level=2, capabilities=("8.0", "8.6", "8.9", "12.0")
        )
        sizes: dict[str, int] = {}
        for precision in ("fp32", "fp16", "int8"):
            plan = plan_for(bundle, precision, options, library="tensorrt_rtx", progress=False, folder=tmp_path)
            assert plan.built and PlanInfo.load(plan.path) == plan.info
            assert plan.info.profiles == self.PROFILES and plan.info.compute_capabilities == options.capabilities
            sizes[precision] = plan.info.plan_bytes
            layers = json.loads(layers_path(plan.path).read_text())["layers"]
            precisions = {tensor["precision"] for layer in layers for tensor in layer["outputs"]}
            assert {"fp32", precision} <= precisions, precision
            assert {"convolution", "matrix_multiply", "softmax"} <= {layer["type"] for layer in layers}
            inputs = [t for layer in layers for t in layer["inputs"] if t["name"] == "images"]
            size = bundle.spec.image_size
            assert inputs and inputs[0]["shape"] == [-1, 3, size, size]
            assert not plan_for(
                bundle, precision, options, library="tensorrt_rtx", progress=False, folder=tmp_path
            ).built
        onnx_bytes = {precision: bundle.onnx_path(precision).stat().st_size for precision in sizes}
        assert sizes["fp32"] > onnx_bytes["fp32"] and sizes["fp16"] > onnx_bytes["fp16"]  # the weights are in them
        assert sizes["fp32"] > sizes["int8"] and sizes["fp32"] > sizes["fp16"], sizes

    def test_a_second_profile_costs_space(self, bundle: Bundle, tmp_path: Path) -> None:
        one, two = (
            build_plan(
                bundle.onnx_path("fp16"),
                tmp_path / "a.plan",
                precision="fp16",
                options=BuildOptions(profiles=self.PROFILES[:count]),
                library="tensorrt_rtx",
                progress=False,
            ).plan_bytes
            for count in (1, 2)
        )
        assert one < two < 2 * one  # the weights are shared
