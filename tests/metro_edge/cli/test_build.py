"""`metro-edge build` on a small real bundle, with the real builder of TensorRT-RTX."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import pytest

from metro_edge.backends.tensorrt import PlanInfo
from metro_edge.bundle import Bundle, write_bundle
from metro_edge.cli import build
from metro_edge.errors import UserError
from metro_edge.joints import joint_set
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate, SparseMatrix

onnx = pytest.importorskip("onnx")
pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tetrahedron with an fp32 network that pools the picture and multiplies."""
    folder = tmp_path_factory.mktemp("bundle")
    helper, float_ = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["camera"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", float_, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("camera", float_, ["batch", 3])],
    )
    onnx_path = folder / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), onnx_path)

    names = joint_set("h36m14").names
    corners = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = np.int32([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    first_corner = SparseMatrix(np.zeros((len(names), 1), np.int32), np.ones((len(names), 1), np.float32))
    template = BodyTemplate(
        name="tetrahedron",
        vertices=corners,
        faces=faces,
        level_vertices=(np.arange(4, dtype=np.int32),),
        level_faces=(faces,),
        upsampling=(),
        regressors={"h36m14": first_corner},
    )
    spec = ModelSpec("tiny", image_size=32, joint_set="h36m14", body="tetrahedron", vertex_count=4)
    passport = {"checkpoint": {"name": "tiny", "sha256": "0" * 64}, "licences": {}, "versions": {}}
    return write_bundle(folder / "tiny", spec, template, {"fp32": onnx_path}, passport).path


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    build.add_parser(parser.add_subparsers())
    return build.run(parser.parse_args(["build", *map(str, arguments)]))


def test_writes_the_plan_and_says_so(bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan_path = tmp_path / "model.plan"
    arguments = ("--precision", "fp32", "--max-batch", 4, "--optimal-batch", 2, "--library", "tensorrt_rtx")
    assert run(bundle_path, *arguments, "-o", plan_path) == 0
    info = PlanInfo.load(plan_path)
    assert (info.precision, info.max_batch, info.optimal_batch) == ("fp32", 4, 2)
    assert info.onnx_sha256 == Bundle.load(bundle_path).onnx_sha256("fp32")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{plan_path}: fp32, batch 1 to 4, ")
    assert second == f"runs on compute capability 8.0+; described in {plan_path}.json"


def test_default_name_is_in_the_current_folder(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(bundle_path, "--precision", "fp32", "--compute-capability", "7.5", "8.6") == 0
    assert PlanInfo.load("tiny.fp32.plan").compute_capabilities == ("7.5", "8.6")


@pytest.mark.parametrize(
    ("precision", "message"),
    [("fp16", "has no fp16 network; it has fp32"), ("fp8", "unknown precision 'fp8'")],
)
def test_precision_that_is_not_there(bundle_path: Path, tmp_path: Path, precision: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(bundle_path, "--precision", precision, "-o", tmp_path / "model.plan")
    assert list(tmp_path.iterdir()) == []


def test_altered_bundle(bundle_path: Path, tmp_path: Path) -> None:
    altered = shutil.copytree(bundle_path, tmp_path / "altered")
    with (altered / "model.fp32.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match=r"model\.fp32\.onnx in bundle .* is not the file"):
        run(altered, "--precision", "fp32", "-o", tmp_path / "model.plan")
    assert list(tmp_path.iterdir()) == [altered]
