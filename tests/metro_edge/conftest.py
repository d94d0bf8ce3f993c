"""A small body, small real networks in ONNX for every precision, and bundles of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from metro_edge.bundle import Bundle, write_bundle
from metro_edge.joints import H36M14
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate, SparseMatrix

SIZE = 64
# Rough places of the joints of a standing person, metres, y down, origin between the hips.
JOINTS = {
    "ankle": (0.12, 0.85, 0.0), "knee": (0.11, 0.45, -0.02), "hip": (0.10, 0.0, 0.0),
    "wrist": (0.35, 0.05, -0.05), "elbow": (0.30, -0.25, 0.02), "shoulder": (0.18, -0.5, 0.0),
    "neck": (0.0, -0.55, 0.0), "head_top": (0.0, -0.85, 0.0),
}  # fmt: skip


def icosphere(subdivisions: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit sphere, faces counter-clockwise seen from outside in a right-handed frame."""
    g = (1 + 5**0.5) / 2
    points = [
        (-1, g, 0), (1, g, 0), (-1, -g, 0), (1, -g, 0), (0, -1, g), (0, 1, g),
        (0, -1, -g), (0, 1, -g), (g, 0, -1), (g, 0, 1), (-g, 0, -1), (-g, 0, 1),
    ]  # fmt: skip
    faces = [
        (0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11), (1, 5, 9), (5, 11, 4), (11, 10, 2),
        (10, 7, 6), (7, 1, 8), (3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8), (3, 8, 9), (4, 9, 5),
        (2, 4, 11), (6, 2, 10), (8, 6, 7), (9, 8, 1),
    ]  # fmt: skip
    vertices = [np.array(p, float) / np.linalg.norm(p) for p in points]
    for _ in range(subdivisions):
        middles: dict[tuple[int, int], int] = {}

        def middle(a: int, b: int, middles: dict[tuple[int, int], int] = middles) -> int:
            key = (min(a, b), max(a, b))
            if key not in middles:
                middles[key] = len(vertices)
                m = vertices[a] + vertices[b]
                vertices.append(m / np.linalg.norm(m))
            return middles[key]

        finer = []
        for a, b, c in faces:
            ab, bc, ca = middle(a, b), middle(b, c), middle(c, a)
            finer += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        faces = finer
    return np.array(vertices), np.array(faces, np.int32)


def made_template() -> BodyTemplate:
    """A closed egg 1.8 m tall whose joints are weighted means of its nearest vertices."""
    vertices, faces = icosphere(2)
    vertices = vertices * (0.35, 0.9, 0.25)
    places = []
    for name in H36M14.names:
        side = -1.0 if name.startswith("right_") else 1.0
        x, y, z = JOINTS[name.removeprefix("right_").removeprefix("left_")]
        places.append((side * x, y, z))
    nearest = np.argsort(np.linalg.norm(np.array(places)[:, None] - vertices, axis=2), axis=1)[:, :6]
    regressor = SparseMatrix(nearest.astype(np.int32), np.full(nearest.shape, 1 / 6, np.float32))
    vertices = vertices - H36M14.root_of(regressor @ vertices)
    coarse = np.arange(12, dtype=np.int32)
    up = np.argsort(np.linalg.norm(vertices[:, None] - vertices[coarse], axis=2), axis=1)[:, :3]
    return BodyTemplate(
        name="egg",
        vertices=vertices.astype(np.float32),
        faces=faces,
        level_vertices=(coarse, np.arange(len(vertices), dtype=np.int32)),
        level_faces=(np.zeros((0, 3), np.int32), faces),
        upsampling=(SparseMatrix(up.astype(np.int32), np.full(up.shape, 1 / 3, np.float32)),),
        regressors={"h36m14": regressor},
        licence="CC0-1.0",
    )


def made_network(
    template: BodyTemplate,
    precision: str = "fp32",
    *,
    camera: tuple[float, float, float] = (0.9, 0.02, -0.03),
    half_borders: bool = False,
    outputs: tuple[str, str, str] = ("camera", "joints", "vertices"),
    size: int = SIZE,
    dynamic: bool = True,
    vertex_count: int | None = None,
    joints_only: bool = False,
) -> onnx.ModelProto:
    """Mean colour of the image -> linear layer -> camera, joints, vertices; the body sways with the colour.

    With `joints_only` the third output is the same mesh's joints.
    """
    vertices = np.asarray(template.vertices, np.float64)[:vertex_count]
    joints = np.asarray(template.joints("h36m14", template.vertices), np.float64)
    rest = np.concatenate([camera, joints.ravel(), vertices.ravel()])
    half = precision == "fp16"
    dtype = np.float16 if half else np.float32
    border = TensorProto.FLOAT16 if half_borders else TensorProto.FLOAT
    rng = np.random.default_rng(5)
    weights = 0.02 * rng.standard_normal((3, len(rest)))
    weights[:, 0] = 0.05
    if joints_only:
        outputs, head = ("camera", "joints", "mesh_joints"), 3 + joints.size
        sway = template.joints("h36m14", weights[:, head:].reshape(3, -1, 3)).reshape(3, -1)
        weights = np.concatenate([weights[:, :head], sway], axis=1)
        vertices = joints
        rest = np.concatenate([rest[:head], joints.ravel()])
    constants = {
        "weights": weights.astype(dtype),
        "rest": rest.astype(dtype),
        "sizes": np.array([3, joints.size, vertices.size], np.int64),
        "flat": np.array([0, 3], np.int64),
        "points": np.array([0, -1, 3], np.int64),
        "step": np.array(0.02, np.float32),
        "zero": np.array(0, np.int8),
    }
    nodes = [helper.make_node("GlobalAveragePool", ["images"], ["pooled"])]
    last = "pooled"
    if precision == "fp8":
        constants |= {"least": np.array(-6, np.float32), "most": np.array(6, np.float32)}
        nodes.append(helper.make_node("Clip", [last, "least", "most"], ["clipped"]))
        last = "clipped"
    if precision in ("int8", "fp8"):
        nodes.append(helper.make_node("QuantizeLinear", [last, "step", "zero"], ["q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["dq"]))
        last = "dq"
    if half and not half_borders:
        nodes.append(helper.make_node("Cast", [last], ["halved"], to=TensorProto.FLOAT16))
        last = "halved"
    names = [f"{name}_raw" for name in outputs] if half and not half_borders else list(outputs)
    nodes += [
        helper.make_node("Reshape", [last, "flat"], ["features"]),
        helper.make_node("MatMul", ["features", "weights"], ["product"]),
        helper.make_node("Add", ["product", "rest"], ["all"]),
        helper.make_node("Split", ["all", "sizes"], [names[0], "joints_flat", "vertices_flat"], axis=1),
        helper.make_node("Reshape", ["joints_flat", "points"], [names[1]]),
        helper.make_node("Reshape", ["vertices_flat", "points"], [names[2]]),
    ]
    if half and not half_borders:
        nodes += [
            helper.make_node("Cast", [raw], [name], to=TensorProto.FLOAT)
            for raw, name in zip(names, outputs, strict=True)
        ]
    batch: str | int = "n" if dynamic else 1
    shapes = ([batch, 3], [batch, len(joints), 3], [batch, len(vertices), 3])
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", border, [batch, 3, size, size])],
        [helper.make_tensor_value_info(n, border, s) for n, s in zip(outputs, shapes, strict=True)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    if precision == "fp8":
        zero = next(tensor for tensor in graph.initializer if tensor.name == "zero")
        zero.data_type = TensorProto.FLOAT8E4M3FN
    opset, ir_version = (19, 9) if precision == "fp8" else (17, 8)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model)
    return model


PASSPORT = {
    "checkpoint": {"name": "tiny.ckpt", "sha256": "0" * 64},
    "licences": {"weights": "Apache-2.0", "body": "CC0-1.0"},
    "versions": {"torch": "2.14.1"},
    "accuracy": {
        "data": "made-up figures for tests",
        "samples": 2000,
        "protocol": "h36m14",
        "precisions": {
            "fp32": {"mpjpe_mm": 61.25, "pa_mpjpe_mm": 41.5, "mpvpe_mm": 71.75, "moved_mm": 0.0},
            "int8": {"mpjpe_mm": 62.5, "pa_mpjpe_mm": 42.0, "mpvpe_mm": 73.0, "moved_mm": 1.25},
        },
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def template() -> BodyTemplate:
    return made_template()


@pytest.fixture(scope="session")
def spec(template: BodyTemplate) -> ModelSpec:
    return ModelSpec("tiny", SIZE, "h36m14", "egg", len(template.vertices))


@pytest.fixture
def passport() -> dict[str, Any]:
    import copy

    return copy.deepcopy(PASSPORT)


@pytest.fixture(scope="session")
def network(template: BodyTemplate) -> Callable[..., onnx.ModelProto]:
    """Builds tiny networks, see made_network."""
    return lambda *args, **kwargs: made_network(template, *args, **kwargs)


@pytest.fixture(scope="session")
def onnx_files(template: BodyTemplate, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    files = {}
    for precision in ("fp32", "fp16", "int8"):
        files[precision] = folder / f"tiny.{precision}.onnx"
        onnx.save(made_network(template, precision), files[precision])
    return files


@pytest.fixture(scope="session")
def shared_bundle(
    template: BodyTemplate,
    spec: ModelSpec,
    onnx_files: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """All precisions; for tests that only read it."""
    return write_bundle(tmp_path_factory.mktemp("shared") / "bundle", spec, template, onnx_files, PASSPORT)


@pytest.fixture
def bundle_of(tmp_path: Path, template: BodyTemplate, spec: ModelSpec) -> Callable[..., Bundle]:
    """Makes a bundle of one network, as fp32 unless said otherwise."""

    def make(model: onnx.ModelProto, precision: str = "fp32") -> Bundle:
        onnx.save(model, tmp_path / "made.onnx")
        return write_bundle(tmp_path / "made", spec, template, {precision: tmp_path / "made.onnx"}, PASSPORT)

    return make


@pytest.fixture
def fails_over_batches(bundle_of: Callable[..., Bundle], network: Callable[..., onnx.ModelProto]) -> Bundle:
    """Its network runs a single image, and fails when it is given several."""
    model = network()
    flat = next(tensor for tensor in model.graph.initializer if tensor.name == "flat")
    flat.raw_data = np.array([1, 3], np.int64).tobytes()
    return bundle_of(model)


@pytest.fixture
def frame() -> np.ndarray:
    """(120, 160, 3) uint8 BGR noise with a smooth part."""
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    picture[40:] = np.linspace(0, 255, 160, dtype=np.uint8)[None, :, None]
    return picture
