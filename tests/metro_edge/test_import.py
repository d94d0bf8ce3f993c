from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import metro_edge

ROOT = Path(metro_edge.__path__[0]).parent


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout


def test_importing_is_light_and_quick():
    out = run_python(
        "import sys, time; start = time.perf_counter(); import metro_edge; print(time.perf_counter() - start);"
        "print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    seconds, modules = out.splitlines()
    assert float(seconds) < 0.3
    assert not {"cv2", "numpy", "onnxruntime", "torch", "tensorrt", "tensorrt_rtx"} & set(modules.split())


def test_the_estimator_loads_neither_torch_nor_a_gpu_library():
    modules = run_python(
        "import sys; from metro_edge import MeshEstimator; print(*{m.split('.')[0] for m in sys.modules})"
    )
    assert not {"torch", "tensorrt", "tensorrt_rtx", "onnxruntime", "pycuda"} & set(modules.split())


def test_public_names():
    for name in metro_edge.__all__:
        assert getattr(metro_edge, name)
        assert name in dir(metro_edge)
    assert metro_edge.MeshEstimator.__module__ == "metro_edge.estimator"
    with pytest.raises(AttributeError, match="no attribute 'Unknown'"):
        metro_edge.Unknown  # noqa: B018


def test_version_of_a_checkout_that_is_not_installed(monkeypatch):
    from importlib import metadata

    def missing(_name):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", missing)
    assert metro_edge.__version__ == "0+unknown"


def test_missing_extras_name_themselves():
    from metro_edge.errors import MissingExtraError, PredictionError, UserError

    error = MissingExtraError("tensorrt", "tensorrt", "build a plan")
    assert isinstance(error, UserError) and issubclass(PredictionError, UserError)
    assert str(error) == "tensorrt is needed to build a plan: pip install 'metro-edge[tensorrt]'"
