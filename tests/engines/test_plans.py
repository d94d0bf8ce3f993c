"""Plans of every precision, built for real by TensorRT-RTX on the CPU."""

from __future__ import annotations

import pytest

from engines.export import export_onnx
from engines.half import half
from engines.quantize import quantise
from engines.simplify import simplify
from metro_edge.backends.tensorrt import build_plan
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
    model = simplify(export_onnx(randomised(config), config.spec, ""))
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
