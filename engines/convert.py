"""Checkpoint -> verified bundle: export, simplify, FP16, INT8, each measured against PyTorch, all of it or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from engines.cost import total_macs
from engines.export import export_onnx
from engines.fold import FOLDS, LIMIT, FoldReport, fold
from engines.half import half
from engines.quantize import DATA, METHOD, METHODS, ROUNDINGS, quantise
from engines.samples import Images, Sources, check_calibration_samples
from engines.simplify import simplify
from engines.usage import Usage
from engines.verify import (
    BATCH,
    TOLERANCES_MM,
    Accuracy,
    Fidelity,
    accuracy,
    check,
    fidelity,
    predictions_from_onnx,
    predictions_from_pytorch,
    true_errors,
)
from metro_edge.backends import Outputs
from metro_edge.bundle import Bundle, check_replaceable, onnx_file, write_bundle
from metro_edge.errors import UserError
from metro_edge.files import output_folder, staging_folder
from metro_edge.spec import OUTPUT_NAMES, PRECISIONS, ModelSpec, check_precision
from training.bodies import body_template
from training.checkpoint import Checkpoint, load_any
from training.evaluate import PROTOCOL
from training.model.infer import describe

LIBRARIES = ("metro-edge", "torch", "timm", "onnx", "onnxscript", "onnx-simplifier", "onnxruntime")
NO_LICENCE = "not stated"
LARGE = 200_000_000  # bytes of a graph whose activations, all kept while calibrating, take hundreds of MB an image
MOVED = (
    "moved_mm: mean distance of the vertices from PyTorch's in FP32, same images, not aligned; int8 is run as its CPU "
    "twin"
)
NO_TRUTH = "no true meshes of this body are known for these pictures, so no accuracy is measured or stated"


@dataclass(frozen=True)
class Settings:
    """How a checkpoint is converted.

    Attributes:
        precisions: what the bundle gets, of fp32, fp16, int8.
        calibration_samples: training samples whose activations set the INT8 ranges.
        verify_samples: held-out samples that every precision is compared with PyTorch on.
        seed: of the held-out samples; None takes the run's validation seed.
        method: of choosing INT8 ranges, see engines.quantize.calibrate.
        rounding: of INT8 weights, see engines.quantize.quantise; None takes what a checkpoint that `engines finetune`
            wrote says, and rounds on data otherwise.
        tolerances_mm: precision -> largest mean distance from PyTorch, for those that differ from TOLERANCES_MM.
        data: folder of generated samples; None takes the run's.
        pictures: folder of the user's pictures of one person each, to calibrate and verify on instead of generated
            people; there are no true meshes then, so the passport gives distances from PyTorch and no accuracy.
        body: name and place of the network's body, see `training.bodies.body_template`; a released network needs it.
        licence: of the weights, for the passport.
        outputs: what the network gives, of metro_edge.spec.KNOWN_OUTPUTS; without `vertices` the full mesh is left out.
        folds: names of engines.fold.FOLDS, the rewritings that make the graph smaller; none for a plain export.

    Raises UserError for unknown precisions or methods, too few samples, tolerances that are not positive, or an empty
    list of precisions.
    """

    precisions: tuple[str, ...] = PRECISIONS
    calibration_samples: int = 256
    verify_samples: int = 64
    seed: int | None = None
    method: str = METHOD
    rounding: str | None = None
    tolerances_mm: Mapping[str, float] = field(default_factory=dict)
    data: Path | None = None
    pictures: Path | None = None
    body: tuple[str, str] | None = None
    licence: str = NO_LICENCE
    outputs: tuple[str, ...] = OUTPUT_NAMES
    folds: tuple[str, ...] = tuple(FOLDS)

    def __post_init__(self) -> None:
        if not self.precisions:
            raise UserError(f"no precision was asked for; known: {', '.join(PRECISIONS)}")
        for precision in (*self.precisions, *self.tolerances_mm):
            check_precision(precision)
        check_calibration_samples(self.calibration_samples)
        if self.verify_samples < 1:
            raise UserError(f"verification needs at least one sample, got {self.verify_samples}")
        if self.method not in METHODS:
            raise UserError(f"unknown calibration method {self.method!r}; known: {', '.join(METHODS)}")
        if self.rounding is not None and self.rounding not in ROUNDINGS:
            raise UserError(f"unknown rounding of weights {self.rounding!r}; known: {', '.join(ROUNDINGS)}")
        for precision, value in self.tolerances_mm.items():
            if not value > 0:
                raise UserError(f"the tolerance of {precision} must be a positive number of mm, got {value}")

    def tolerance_mm(self, precision: str) -> float:
        """Return the tolerance that holds for a precision."""
        return float(self.tolerances_mm.get(precision, TOLERANCES_MM[precision]))


def convert(
    checkpoint_path: Path,
    output: Path,
    settings: Settings,
    say: Callable[[str], None] = print,
    usage: Usage | None = None,
) -> Bundle:
    """Convert a checkpoint and write its bundle.

    Args:
        checkpoint_path: of `python -m training fit` or `publish`, or a network that METRO released.
        output: folder or .zip; an older bundle there is replaced.
        settings: see Settings.
        say: takes one line of text per step.
        usage: counts stages.

    Raises:
        UserError: a checkpoint, setting or place that cannot be used, or a precision that errs beyond its
            tolerance. Nothing is written then.
    """
    usage = usage or Usage()
    # Known now rather than after minutes of work.
    check_replaceable(output)
    checkpoint = _load(checkpoint_path, settings, say)
    check_finite(checkpoint)
    settings = replace(settings, rounding=settings.rounding or fine_tuned_rounding(checkpoint.metrics))
    spec, template = replace(checkpoint.config.spec, outputs=settings.outputs), checkpoint.template
    output_folder(output.resolve().parent)
    sources = Sources(
        spec, checkpoint.config.data, settings.verify_samples, settings.calibration_samples, settings.seed,
        settings.data, settings.pictures,
    )  # fmt: skip
    held_out = sources.for_verification()
    images, truth = held_out.all()
    with staging_folder(output.resolve().parent) as staging:
        say(f"read checkpoint and pictures: {usage.stage()}")
        reference = predictions_from_pytorch(checkpoint.model, images, spec, template)
        say(f"run PyTorch: {usage.stage()}")
        network, report = fold(checkpoint.model, template, settings.folds, spec.outputs)
        _tell(report, settings, say)
        say(f"fold: {usage.stage()}")
        passport = _passport(checkpoint, settings) | {"folds": report.to_dict()}
        # An accuracy speaks of meshes too.
        section = "accuracy" if truth is not None and "vertices" in spec.outputs else "verification"
        passport[section] = _verification_head(held_out, reference, truth, template, spec)
        # Through a file: what PyTorch and Python hold of a large network need not be held twice while it is simplified.
        exported = staging / "exported.onnx"
        onnx.save(export_onnx(network, spec, checkpoint.sha256), exported)
        del checkpoint, network
        model = simplify(exported)
        exported.unlink()
        nodes, macs = len(model.graph.node), total_macs(model) / 1e6
        say(f"export {spec.name} to ONNX: {nodes} nodes, {macs:.1f} M multiply-adds for one image; {usage.stage()}")
        files = {}
        for precision in PRECISIONS:
            if precision not in settings.precisions:
                continue
            path = staging / onnx_file(precision)
            graph, about = _graph(model, precision, sources, settings)
            onnx.save(graph, path)
            del graph
            predicted = predictions_from_onnx(path, precision, images, spec)
            tolerance = settings.tolerance_mm(precision)
            found = (
                fidelity(predicted, reference, spec, tolerance)
                if truth is None
                else accuracy(predicted, reference, truth, template, spec, tolerance)
            )
            say(f"{_line(precision, path, found)}; {usage.stage()}")
            check(found, precision, spec.image_size)
            passport |= about
            passport[section]["precisions"][precision] = found.to_dict()
            files[precision] = path
        return write_bundle(output, spec, template, files, passport)


def _load(path: Path, settings: Settings, say: Callable[[str], None]) -> Checkpoint:
    """Read the checkpoint, with the body that the user named, and say what a released file held."""
    if settings.body is None:
        checkpoint = load_any(path)
    else:
        name, place = settings.body
        checkpoint = load_any(path, body_template(name, place), place)
        if checkpoint.config.model.body != name:
            raise UserError(f"{path} is a network of the body {checkpoint.config.model.body!r}, not {name!r}")
    if checkpoint.entries is not None:
        say(describe(checkpoint.config.model))
        say(f"released file: {checkpoint.entries}")
    return checkpoint


def _tell(report: FoldReport, settings: Settings, say: Callable[[str], None]) -> None:
    """Print what folding did."""
    if not settings.folds:
        say("plain export: nothing is folded")
        return
    say(str(report))
    if report.rounding is not None:
        say(
            f"beyond {LIMIT:.0e} by rounding: in float64 the same folds are exact, and {report.dtype} as trained is "
            f"{report.rounding:.1e} from that"
        )


def fine_tuned_rounding(metrics: Mapping[str, Any]) -> str:
    """Return how the INT8 weights of a checkpoint are rounded best: as its fine-tuning found, or on data."""
    tuned = metrics.get("fine_tuned")
    known = tuned.get("rounding") if isinstance(tuned, dict) else None
    return known if known in ROUNDINGS else DATA


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
    model: onnx.ModelProto, precision: str, sources: Sources, settings: Settings
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Make the graph of a precision; returns it and what the passport says of how it was made."""
    if precision == "fp32":
        return model, {}
    if precision == "fp16":
        return half(model), {}
    images = sources.for_calibration()
    digest = hashlib.sha256()

    with tqdm(total=images.count, desc="calibrate int8", leave=False) as bar:

        def shown():
            for batch in images.batches(BATCH if model.ByteSize() < LARGE else 1):
                digest.update(batch.tobytes())
                yield batch
                bar.update(len(batch))

        graph = quantise(model, shown(), settings.method, rounding=settings.rounding or DATA)
    about = {
        "samples": images.count,
        "method": settings.method,
        "rounding": settings.rounding,
        "images_sha256": digest.hexdigest(),
    }
    return graph, {"calibration": {"data": images.data, **images.about, **about}}


def _passport(checkpoint: Checkpoint, settings: Settings) -> dict[str, Any]:
    spec = checkpoint.config.spec
    passport: dict[str, Any] = {
        "checkpoint": {"name": spec.name, "sha256": checkpoint.sha256},
        "licences": {"weights": settings.licence, "body": checkpoint.template.licence},
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
        "training": checkpoint.metrics,
    }
    if checkpoint.entries is not None:
        passport["released"] = {
            "network": describe(checkpoint.config.model),
            "entries": str(checkpoint.entries),
        }
    return passport


def _verification_head(
    held_out: Images, reference: Outputs, truth: NDArray[np.float32] | None, template: Any, spec: ModelSpec
) -> dict[str, Any]:
    head: dict[str, Any] = {"data": held_out.data, "samples": held_out.count}
    if truth is None:
        return head | {"protocol": f"{NO_TRUTH}; {MOVED}", "precisions": {}}
    like = reference if "vertices" in spec.outputs else reference._replace(vertices=None)
    errors = true_errors(reference, like, truth, template, spec)
    return head | {
        "protocol": f"{PROTOCOL}; {MOVED}",
        "pytorch": {f"{name}_mm": round(value, 4) for name, value in errors.items()},
        "precisions": {},
    }


def _line(precision: str, path: Path, found: Fidelity) -> str:
    errors = ""
    if isinstance(found, Accuracy):
        errors = f"MPJPE {found.mpjpe_mm:.2f} mm ({found.mpjpe_lost_mm:+.3f}), "
        if found.mpvpe_mm is not None:
            errors += f"MPVPE {found.mpvpe_mm:.2f} mm ({found.mpvpe_lost_mm:+.3f}), "
    return (
        f"{precision}: {path.stat().st_size / 1e6:.1f} MB, {errors}mesh {found.moved_mm:.4g} mm from PyTorch's, "
        f"worst {found.worst_vertex_mm:.4g} mm, tolerance {found.tolerance_mm:g} mm"
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
