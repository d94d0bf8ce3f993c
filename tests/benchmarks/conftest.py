"""A tiny real bundle whose networks answer known meshes, and samples with known truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks.run import Material
from metro_edge.bundle import Bundle, write_bundle
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from tests.metro_edge.conftest import PASSPORT, SIZE, made_network, made_template

MOVED_M = 0.003  # what the tiny int8 network adds to x of the vertices that no joint is made of


class TinyPeople:
    """Samples held in memory; for images of value 0, the default, the networks answer one known mesh."""

    def __init__(
        self, spec: ModelSpec, meshes: Sequence[NDArray[np.floating]], values: Sequence[float] | None = None
    ) -> None:
        self.spec = spec
        self.meshes = meshes
        self.values = [0.0] * len(meshes) if values is None else values

    def __len__(self) -> int:
        return len(self.meshes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        shape = (3, self.spec.image_size, self.spec.image_size)
        image = np.full(shape, self.values[index], np.float32)
        return {"image": image, "vertices": np.asarray(self.meshes[index], np.float32)}


def free_vertices(template: BodyTemplate) -> NDArray[np.bool_]:
    """(V,) True for vertices that no joint depends on."""
    free = np.ones(len(template.vertices), bool)
    free[template.regressors["h36m14"].indices.ravel()] = False
    return free


def network_answering(template: BodyTemplate, vertices: NDArray[np.floating], precision: str = "fp32") -> Any:
    """A tiny network that answers `vertices` (V, 3) for a black image."""
    model = made_network(template, precision)
    rest = next(tensor for tensor in model.graph.initializer if tensor.name == "rest")
    values = numpy_helper.to_array(rest).copy()
    values[-vertices.size :] = vertices.ravel()
    rest.CopyFrom(numpy_helper.from_array(values, "rest"))
    return model


@pytest.fixture(scope="session")
def template() -> BodyTemplate:
    return made_template()


@pytest.fixture(scope="session")
def spec(template: BodyTemplate) -> ModelSpec:
    return ModelSpec("tiny", SIZE, "h36m14", "egg", len(template.vertices))


@pytest.fixture
def bundle_answering(
    tmp_path: Path, template: BodyTemplate, spec: ModelSpec
) -> Callable[[dict[str, NDArray[np.floating]]], Bundle]:
    """Makes a bundle from the mesh (V, 3) that each precision answers for a black image."""

    def make(meshes: dict[str, NDArray[np.floating]]) -> Bundle:
        files = {}
        for precision, mesh in meshes.items():
            files[precision] = tmp_path / f"made.{precision}.onnx"
            onnx.save(network_answering(template, mesh, precision), files[precision])
        return write_bundle(tmp_path / "bundle", spec, template, files, PASSPORT)

    return make


@pytest.fixture
def bundle(template: BodyTemplate, bundle_answering: Callable[[dict[str, NDArray[np.floating]]], Bundle]) -> Bundle:
    """fp32 and fp16 answer the template (fp16 rounds it); int8 moves the free vertices by MOVED_M."""
    moved = template.vertices.copy()
    moved[free_vertices(template), 0] += MOVED_M
    return bundle_answering({"fp32": template.vertices, "fp16": template.vertices, "int8": moved})


@pytest.fixture
def people(template: BodyTemplate, spec: ModelSpec) -> TinyPeople:
    """21 people: the template made larger by 0, 1, ... 20 %."""
    return TinyPeople(spec, [template.vertices * (1 + 0.01 * k) for k in range(21)])


@pytest.fixture
def material(people: TinyPeople) -> Material:
    """The tiny people and a frame of noise."""
    frame = np.random.default_rng(3).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    return Material(people, "tiny people", 0, frame, np.array([200.0, 40.0, 180.0, 400.0]))
