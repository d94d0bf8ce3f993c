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

from benchmarks.accuracy import Accuracy
from benchmarks.crops import crops_entry
from benchmarks.details import Details, Projected
from benchmarks.motion import Walk, motion_entry, motion_facts
from benchmarks.people import Material
from benchmarks.pictures import worst_entry
from benchmarks.report import KIND, SCHEMA_VERSION
from benchmarks.run import _entry
from metro_edge.bundle import Bundle, write_bundle
from metro_edge.joints import H36M14
from metro_edge.metrics import MeshErrors
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from metro_edge.timing import Latency
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


def made_report(
    *, samples: int = 60, runs: int = 80, loss_mm: float = 1.0, ratio: float = 0.5, draw: int = 0
) -> dict[str, Any]:
    """A result of fp32 and int8 as `run` writes it, of errors and times drawn here.

    The errors of fp32 are always the same; `draw` says which times and which scatter of int8's losses.
    """
    truth = np.random.default_rng(7).gamma(4.0, 0.015, samples)
    noise = np.random.default_rng(draw)
    fp32 = MeshErrors(truth, 0.6 * truth, 1.2 * truth)
    lost = truth + loss_mm / 1000 + noise.normal(0, 0.0002, samples)
    int8 = MeshErrors(lost, 0.6 * lost, 1.2 * lost)
    first = Accuracy(fp32, truth_sha256="ab" * 32, details=made_details(truth))
    moved = np.abs(noise.normal(0.004, 0.001, samples))
    accuracy = {"fp32": first, "int8": Accuracy(int8, moved, first, "ab" * 32, made_details(lost))}
    walks = made_walks()
    crops = {p: {"box_area/true": e.mpjpe * 1000, "box_area/detected": e.mpjpe * 1100} for p, e in
             (("fp32", fp32), ("int8", int8))}  # fmt: skip
    times = {
        (precision, stage): Latency(slow * factor * noise.normal(1.0, 0.02, runs), 13)
        for precision, factor in (("fp32", 1.0), ("int8", ratio))
        for stage, slow in (("network", 10.0), ("end_to_end", 12.0))
    }
    versions = {"numpy": "2.0", "anny": None}
    machine = {"cpu": "Some CPU", "cores": 2, "memory_gb": 8.0, "system": "Linux 6", "architecture": "x86_64"}
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "created": "2026-01-02T03:04:05Z",
        "command": "python -m benchmarks run bundle",
        "metro_edge": "0.1.0",
        "bundle": {
            "name": "metro_edge",
            "checkpoint": {"name": "a.ckpt", "sha256": "0" * 64},
            "onnx_sha256": {"fp32": "ab" * 32, "int8": "cd" * 32},
        },
        "device": {
            "processor": "CPU",
            "name": "Some CPU",
            "backend": "onnxruntime",
            "engine": "onnxruntime 1.23.0 CPUExecutionProvider",
            "threads": 2,
        },
        "machine": {**machine, "python": "3.11.0", "versions": versions},
        "latency": {"frame_wh": [640, 480], "people": 1, "batch": 1, "runs": runs, "block": 10, "warmup": 13}
        | {"protocol": "interleaved"},
        "accuracy": {"data": "people of seed 3", "seed": 3, "samples": samples, "protocol": "by METRO"}
        | {"truth_sha256": "ab" * 32, "joint_set": "h36m14", "pck_mm": 150.0, "auc_mm": [0.0, 150.0, 31]}
        | {"reprojection": "in words"},
        "motion": motion_facts(walks, 0),
        "crops": {
            "samples": samples,
            "crops": [{"name": f"box_area/{b}", "crop_rule": "box_area", "box": b} for b in ("true", "detected")],
            "seed": 0,
            "protocol": "cut anew",
        },
        "intervals": {"level": 0.95, "resamples": 2000, "seed": 0},
        "precisions": {
            p: _entry(p, "fp32", times, accuracy[p], runs)
            | {"worst": worst_entry(accuracy[p])}
            | {"motion": motion_entry(walks, p, "fp32"), "crops": crops_entry(crops, p, "fp32")}
            for p in ("fp32", "int8")
        },
    }


def made_details(mpjpe: NDArray[np.float64]) -> Details:
    """Details of samples whose joints are all off by the mean error, and 0.1 of half a crop on the picture."""
    errors = np.repeat(mpjpe[:, None], len(H36M14), axis=1)
    places, counts = np.full(errors.shape, 0.1), np.ones(errors.shape, bool)
    return Details(H36M14.names, errors, 0.6 * errors, Projected(places, counts, np.full(len(mpjpe), 240.0), 1.2))


def made_walks() -> list[Walk]:
    """Seven walks of 12 frames: everybody stands still, fp32 trembles by 1 mm, int8 by 1.04 mm."""
    rng = np.random.default_rng(1)
    truth = np.zeros((12, len(H36M14), 3))
    return [Walk(truth, {"fp32": t, "int8": 1.04 * t}) for t in rng.normal(0, 0.001, (7, *truth.shape))]


def second_report() -> dict[str, Any]:
    """The same of schema 2."""
    report = made_report()
    report["schema_version"] = 2
    del report["motion"], report["crops"]
    for key in ("joint_set", "pck_mm", "auc_mm", "reprojection"):
        del report["accuracy"][key]
    for entry in report["precisions"].values():
        for key in ("worst", "motion", "crops"):
            del entry[key]
        for key in ("per_joint", "shares", "reprojection"):
            del entry["accuracy"][key]
    return report


def old_report() -> dict[str, Any]:
    """The same of schema 1."""
    report = second_report()
    report["schema_version"] = 1
    del report["intervals"], report["accuracy"]["truth_sha256"]
    for entry in report["precisions"].values():
        del entry["accuracy"]["intervals"], entry["accuracy"]["per_sample_mm"]
        for stage in entry["latency"].values():
            del stage["intervals"]
            if stage["ratio_to_fp32"]:
                del stage["ratio_to_fp32"]["interval"]
        if change := entry["accuracy"]["against_fp32"]:
            del change["intervals"]
            for key in [key for key in change if "p95" in key or ("worst" in key and "moved" not in key)]:
                del change[key]
    return report
