"""Checkpoint -> verified bundle: export, simplify, FP16, INT8, each measured against PyTorch, all of it or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from engines.calibrate import METHODS
from engines.export import export_onnx
from engines.half import half
from engines.quantize import METHOD, quantise
from engines.simplify import simplify
from engines.verify import (
    BATCH,
    TOLERANCES_MM,
    Accuracy,
    Predictions,
    accuracy,
    check,
    predictions_from_onnx,
    predictions_from_pytorch,
)
from metro_edge.bundle import Bundle, check_replaceable, onnx_file, write_bundle
from metro_edge.errors import UserError
from metro_edge.files import output_folder, staging_folder
from metro_edge.metrics import METRIC_NAMES, mesh_errors
from metro_edge.spec import PRECISIONS, ModelSpec, check_precision
from training.checkpoint import Checkpoint, load_checkpoint
from training.data.shards import ShardedPeople, people_shards
from training.evaluate import PROTOCOL

LIBRARIES = ("metro-edge", "torch", "timm", "onnx", "onnxscript", "onnx-simplifier", "onnxruntime")
NO_LICENCE = "not stated"


@dataclass(frozen=True)
class Settings:
    """How a checkpoint is converted.

    Attributes:
        precisions: what the bundle gets, of fp32, fp16, int8.
        calibration_samples: training samples whose activations set the INT8 ranges.
        verify_samples: held-out samples that every precision is compared with PyTorch on.
        seed: of the held-out samples; None takes the run's validation seed.
        method: of choosing INT8 ranges, see engines.calibrate.
        tolerances_mm: precision -> largest mean distance from PyTorch, for those that differ from TOLERANCES_MM.
        data: folder of generated samples; None takes the run's.
        licence: of the weights, for the passport.

    Raises UserError for unknown precisions or methods, numbers that are not positive, or an empty list.
    """

    precisions: tuple[str, ...] = PRECISIONS
    calibration_samples: int = 256
    verify_samples: int = 64
    seed: int | None = None
    method: str = METHOD
    tolerances_mm: Mapping[str, float] = field(default_factory=dict)
    data: Path | None = None
    licence: str = NO_LICENCE

    def __post_init__(self) -> None:
        if not self.precisions:
            raise UserError(f"no precision was asked for; known: {', '.join(PRECISIONS)}")
        for precision in (*self.precisions, *self.tolerances_mm):
            check_precision(precision)
        if min(self.calibration_samples, self.verify_samples) < 1:
            raise UserError(
                f"calibration and verification need at least one sample each, got {self.calibration_samples} "
                f"and {self.verify_samples}"
            )
        if self.method not in METHODS:
            raise UserError(f"unknown calibration method {self.method!r}; known: {', '.join(METHODS)}")
        for precision, value in self.tolerances_mm.items():
            if not value > 0:
                raise UserError(f"the tolerance of {precision} must be a positive number of mm, got {value}")

    def tolerance_mm(self, precision: str) -> float:
        """Return the tolerance that holds for a precision."""
        return float(self.tolerances_mm.get(precision, TOLERANCES_MM[precision]))


@dataclass(frozen=True)
class Samples:
    """Held-out people: images (N, 3, S, S) as the network takes them, true vertices (N, V, 3) in metres."""

    images: NDArray[np.float32]
    vertices: NDArray[np.float32]
    seed: int

    @classmethod
    def load(cls, checkpoint: Checkpoint, settings: Settings) -> Samples:
        """Make or read the samples; raises UserError when their seed is the training's."""
        data = checkpoint.config.data
        seed = data.validation_seed if settings.seed is None else settings.seed
        if seed == data.train_seed:
            raise UserError(f"seed {seed} is the training's: held-out samples need another one")
        people = _people(checkpoint, settings, seed, settings.verify_samples)
        items = [people[i] for i in range(len(people))]
        images, vertices = (np.stack([item[key].numpy() for item in items]) for key in ("image", "vertices"))
        return cls(images, vertices, seed)


def convert(checkpoint_path: Path, output: Path, settings: Settings, say: Callable[[str], None] = print) -> Bundle:
    """Convert a checkpoint and write its bundle.

    Args:
        checkpoint_path: of `python -m training fit` or `publish`.
        output: folder or .zip; an older bundle there is replaced.
        settings: see Settings.
        say: takes one line of text per step.

    Raises:
        UserError: a checkpoint, setting or place that cannot be used, or a precision that errs beyond its
            tolerance. Nothing is written then.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    check_finite(checkpoint)
    spec = checkpoint.config.spec
    template = checkpoint.config.template
    # Known now rather than after minutes of work.
    check_replaceable(output)
    output_folder(output.resolve().parent)
    samples = Samples.load(checkpoint, settings)
    with staging_folder(output.resolve().parent) as staging:
        say(f"export {spec.name} to ONNX")
        model = simplify(export_onnx(checkpoint.model, spec, checkpoint.sha256))
        reference = predictions_from_pytorch(checkpoint.model, samples.images)
        passport = _passport(checkpoint, settings)
        passport["accuracy"] = _accuracy_head(samples, reference, template, spec)
        files = {}
        for precision in PRECISIONS:
            if precision not in settings.precisions:
                continue
            path = staging / onnx_file(precision)
            graph, about = _graph(model, precision, checkpoint, settings)
            onnx.save(graph, path)
            del graph
            found = accuracy(
                predictions_from_onnx(path, precision, samples.images),
                reference, samples.vertices, template, spec, settings.tolerance_mm(precision),
            )  # fmt: skip
            say(_line(precision, path, found))
            check(found, precision, spec.image_size)
            passport |= about
            passport["accuracy"]["precisions"][precision] = found.to_dict()
            files[precision] = path
        return write_bundle(output, spec, template, files, passport)


def check_finite(checkpoint: Checkpoint) -> None:
    """Raise UserError when a weight is NaN or infinite, as after a training that diverged."""
    wrong = [
        name
        for name, value in checkpoint.model.state_dict().items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if wrong:
        raise UserError(f"the checkpoint has weights that are not finite: {', '.join(wrong[:3])}")


def _graph(
    model: onnx.ModelProto, precision: str, checkpoint: Checkpoint, settings: Settings
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Make the graph of a precision; returns it and what the passport says of how it was made."""
    if precision == "fp32":
        return model, {}
    if precision == "fp16":
        return half(model), {}
    seed, count = checkpoint.config.data.train_seed, settings.calibration_samples
    people = _people(checkpoint, settings, seed, count)
    digest = hashlib.sha256()

    def batches():
        for start in range(0, len(people), BATCH):
            stop = min(start + BATCH, len(people))
            images = np.stack([people[i]["image"].numpy() for i in range(start, stop)])
            digest.update(images.tobytes())
            yield images

    with tqdm(total=count, desc="calibrate int8", leave=False) as bar:

        def shown():
            for images in batches():
                yield images
                bar.update(len(images))

        graph = quantise(model, shown(), settings.method)
    return graph, {
        "calibration": {
            "data": "generated people of the training seed",
            "seed": seed,
            "samples": count,
            "method": settings.method,
            "images_sha256": digest.hexdigest(),
        }
    }


def _people(checkpoint: Checkpoint, settings: Settings, seed: int, count: int) -> ShardedPeople:
    spec = checkpoint.config.spec
    folder = settings.data or Path(checkpoint.config.data.folder)
    return ShardedPeople(people_shards(folder, spec, seed=seed, count=count, workers=1), spec, train=False)


def _passport(checkpoint: Checkpoint, settings: Settings) -> dict[str, Any]:
    spec = checkpoint.config.spec
    return {
        "checkpoint": {"name": spec.name, "sha256": checkpoint.sha256},
        "licences": {"weights": settings.licence, "body": checkpoint.config.template.licence},
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
        "training": checkpoint.metrics,
    }


def _accuracy_head(samples: Samples, reference: Predictions, template: Any, spec: ModelSpec) -> dict[str, Any]:
    errors = mesh_errors(reference.vertices, samples.vertices, template, spec.joint_set).means_mm()
    return {
        "data": f"generated people, seed {samples.seed}, held out from training",
        "samples": len(samples.images),
        "protocol": f"{PROTOCOL}; moved_mm: mean distance of the vertices from PyTorch's in FP32, same images, "
        "not aligned; int8 is run as its CPU twin",
        "pytorch": {f"{name}_mm": round(errors[name], 4) for name in METRIC_NAMES},
        "precisions": {},
    }


def _line(precision: str, path: Path, found: Accuracy) -> str:
    return (
        f"{precision}: {path.stat().st_size / 1e6:.1f} MB, MPJPE {found.mpjpe_mm:.2f} mm "
        f"({found.mpjpe_lost_mm:+.3f}), MPVPE {found.mpvpe_mm:.2f} mm ({found.mpvpe_lost_mm:+.3f}), vertices "
        f"{found.moved_mm:.4g} mm from PyTorch's, worst {found.worst_vertex_mm:.4g} mm, "
        f"tolerance {found.tolerance_mm:g} mm"
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def tolerances_from_text(entries: Sequence[str]) -> dict[str, float]:
    """Read `precision=mm` entries, such as `int8=5`; raises UserError for others."""
    found = {}
    for entry in entries:
        precision, _, value = entry.partition("=")
        try:
            found[check_precision(precision)] = float(value)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"a tolerance must look like int8=5 (mm), got {entry!r}") from None
    return found
