"""Small real graphs and a small real bundle for the builder of TensorRT-RTX, which needs no GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metro_edge.bundle import Bundle, write_bundle
from metro_edge.joints import joint_set
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate, SparseMatrix

SIZE = 8
GraphMaker = Callable[..., Path]


def save(path: Path, nodes: list, inputs: list, outputs: list, constants: list) -> Path:
    """Write a graph of opset 20."""
    onnx = pytest.importorskip("onnx")
    body = onnx.helper.make_graph(nodes, "test", inputs, outputs, constants)
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def write_graph(
    path: Path,
    precision: str = "fp32",
    *,
    batch: int | str = "batch",
    height: int | str = SIZE,
    names: tuple[str, str] = ("images", "camera"),
    weight_scale: float = 1.0,
) -> Path:
    """Write convolution and ReLU in a precision, and return the path."""
    onnx = pytest.importorskip("onnx")
    helper, types, name = onnx.helper, onnx.TensorProto, names
    half = precision == "fp16"
    weight = (weight_scale * np.linspace(-1, 1, 12)).reshape(4, 3, 1, 1).astype(np.float16 if half else np.float32)
    constants = [onnx.numpy_helper.from_array(weight, "weight")]
    nodes = []
    data, kernel = name[0], "weight"
    if half:
        nodes.append(helper.make_node("Cast", [data], ["half"], to=types.FLOAT16, name="to_half"))
        data = "half"
    if precision in ("int8", "fp8"):
        zero = {"int8": types.INT8, "fp8": types.FLOAT8E4M3FN}[precision]
        constants.append(onnx.numpy_helper.from_array(np.float32(1 / 64), "scale"))
        constants.append(types(name="zero", data_type=zero, dims=[], int32_data=[0]))
        for tensor, label in ((data, "data"), (kernel, "weight")):
            nodes += [
                helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [f"{label}_q"], name=f"q_{label}"),
                helper.make_node(
                    "DequantizeLinear", [f"{label}_q", "scale", "zero"], [f"{label}_dq"], name=f"dq_{label}"
                ),
            ]
        data, kernel = "data_dq", "weight_dq"
    nodes.append(helper.make_node("Conv", [data, kernel], ["features"], name="conv"))
    nodes.append(helper.make_node("Relu", ["features"], ["relu" if half else name[1]], name="relu"))
    if half:
        nodes.append(helper.make_node("Cast", ["relu"], [name[1]], to=types.FLOAT, name="to_float"))
    inputs = [helper.make_tensor_value_info(name[0], types.FLOAT, [batch, 3, height, SIZE])]
    outputs = [helper.make_tensor_value_info(name[1], types.FLOAT, [batch, 4, height, SIZE])]
    return save(path, nodes, inputs, outputs, constants)


@pytest.fixture
def graph(tmp_path: Path) -> GraphMaker:
    """Write a graph of a precision into the test's folder."""

    def make(precision: str = "fp32", **options: object) -> Path:
        return write_graph(tmp_path / f"model.{precision}.onnx", precision, **options)

    return make


def left_in(folder: Path) -> set[str]:
    """Names of the files in a folder."""
    return {path.name for path in folder.iterdir()}


def write_tiny_bundle(folder: Path, *, weight_scale: float = 1.0) -> Path:
    """A tetrahedron with fp32 and fp16 graphs."""
    onnx_paths = {p: write_graph(folder / f"{p}.onnx", p, weight_scale=weight_scale) for p in ("fp32", "fp16")}
    names = joint_set("h36m14").names
    corners = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = np.int32([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    template = BodyTemplate(
        name="tetrahedron",
        vertices=corners,
        faces=faces,
        level_vertices=(np.arange(4, dtype=np.int32),),
        level_faces=(faces,),
        upsampling=(),
        regressors={"h36m14": SparseMatrix(np.zeros((len(names), 1), np.int32), np.ones((len(names), 1), np.float32))},
    )
    spec = ModelSpec("tiny", image_size=32, joint_set="h36m14", body="tetrahedron", vertex_count=4)
    passport = {"checkpoint": {"name": "tiny", "sha256": "0" * 64}, "licences": {}, "versions": {}}
    return write_bundle(folder / "tiny", spec, template, onnx_paths, passport).path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A loaded bundle with fp32 and fp16 graphs."""
    return Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("bundle")))
