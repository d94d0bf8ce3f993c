"""Every converted graph against PyTorch on real samples, in millimetres; what errs too much is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from engines.quantize.loss import started
from metro_edge.backends import Outputs
from metro_edge.errors import UserError
from metro_edge.metrics import mean_mm, mesh_errors, mpjpe, pa_mpjpe
from metro_edge.spec import INPUT_NAME, ModelSpec
from metro_edge.template import BodyTemplate
from training.model import Metro

FloatArray = NDArray[np.float32]
BATCH = 8
# Largest mean distance from PyTorch that is accepted, in mm. FP32 only sums in another order; FP16 carries eleven
# bits, about 0.5 mm in a metre; INT8 may move the mesh by a small part of what networks of this kind err by.
TOLERANCES_MM = {"fp32": 0.01, "fp16": 1.0, "int8": 10.0}
MM = 1000.0
NOT_FINITE = "refused, nothing was written: the converted network's outputs are not finite; a value overflows"


@dataclass(frozen=True)
class Fidelity:
    """How far one precision is from PyTorch in FP32; all in mm unless said otherwise.

    Attributes:
        moved_mm: mean distance between this precision's vertices and PyTorch's; of a network that gives no vertices,
            between the joints of the mesh.
        worst_vertex_mm: the largest such distance of any point in any sample.
        joints_moved_mm: mean distance between this precision's predicted joints and PyTorch's.
        image_moved_px: mean distance between the same points as their cameras put them on the crop, in px of the crop.
        tolerance_mm: what the distances in mm had to stay within.
        mesh_joints_moved_mm, coarse_moved_mm, joints_px_moved: mean distances of the outputs of these names, the last
            in px of the crop; None for what the network does not give.
    """

    moved_mm: float
    worst_vertex_mm: float
    joints_moved_mm: float
    image_moved_px: float
    tolerance_mm: float
    mesh_joints_moved_mm: float | None = field(default=None, kw_only=True)
    coarse_moved_mm: float | None = field(default=None, kw_only=True)
    joints_px_moved: float | None = field(default=None, kw_only=True)

    def to_dict(self) -> dict[str, float]:
        """Return the figures by name, rounded to a tenth of a micrometre; those that are None left out."""
        return {name: round(value, 4) for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Accuracy(Fidelity):
    """One precision, measured where true meshes are known; means over samples in mm.

    Attributes:
        mpjpe_mm, pa_mpjpe_mm, mpvpe_mm: against the truth; no MPVPE of a network that gives no vertices.
        mpjpe_lost_mm, pa_mpjpe_lost_mm, mpvpe_lost_mm: how much more than PyTorch in FP32.
    """

    mpjpe_mm: float
    pa_mpjpe_mm: float
    mpjpe_lost_mm: float
    pa_mpjpe_lost_mm: float
    mpvpe_mm: float | None = field(default=None, kw_only=True)
    mpvpe_lost_mm: float | None = field(default=None, kw_only=True)


@torch.inference_mode()
def predictions_from_pytorch(model: Metro, images: FloatArray, spec: ModelSpec, template: BodyTemplate) -> Outputs:
    """Run the network as it was trained over images (N, 3, S, S); returns the spec's outputs, with the full mesh.

    The joints of the mesh are regressed from the full one, and projected, here: by none of what an export contains.
    """
    parts = []
    for batch in _batches(images, "PyTorch"):
        found = model(torch.from_numpy(batch))
        camera, vertices = found.camera.numpy(), found.vertices[-1].numpy()
        made = {"camera": camera, "joints": found.joints.numpy(), "vertices": vertices}
        if {"mesh_joints", "joints_px"} & set(spec.outputs):
            joints = np.asarray(template.joints(spec.joint_set, vertices), np.float32)
            pixels = (_projected(camera, joints) + 1.0) * (spec.image_size / 2) - 0.5
            made |= {"mesh_joints": joints, "joints_px": pixels.astype(np.float32)}
        made["coarse"] = found.vertices[0].numpy()
        parts.append(Outputs(**{name: made[name] for name in made if name in (*spec.outputs, "vertices")}))
    return Outputs.joined(parts)


def predictions_from_onnx(path: Path, precision: str, images: FloatArray, spec: ModelSpec) -> Outputs:
    """Run an ONNX file on the CPU over images (N, 3, S, S), an INT8 one as its CPU twin; returns the spec's outputs."""
    run = started(path, precision, outputs=spec.outputs)
    batches = ({INPUT_NAME: batch} for batch in _batches(images, precision))
    return Outputs.joined([Outputs(**dict(zip(spec.outputs, run(feeds), strict=True))) for feeds in batches])


def fidelity(predicted: Outputs, reference: Outputs, spec: ModelSpec, tolerance_mm: float) -> Fidelity:
    """Measure how far a precision is from PyTorch, which needs no truth.

    Args:
        predicted: by the converted graph.
        reference: by PyTorch in FP32 from the same images.
        spec: of the network.
        tolerance_mm: noted in the result.

    Raises:
        UserError: a prediction is not finite.
    """
    given = predicted.given
    if not all(np.isfinite(values).all() for values in given.values()):
        raise UserError(NOT_FINITE)
    distances = _distances(_points(predicted, predicted), _points(reference, predicted))
    shift = _distances(_on_crop(predicted, predicted, spec), _on_crop(reference, predicted, spec))
    others = {
        name: float(_distances(given[name], reference.given[name]).mean())
        for name in ("mesh_joints", "coarse", "joints_px")
        if name in given
    }
    return Fidelity(
        moved_mm=float(distances.mean()) * MM,
        worst_vertex_mm=float(distances.max()) * MM,
        joints_moved_mm=float(_distances(predicted.joints, reference.joints).mean()) * MM,
        image_moved_px=float(shift.mean()),
        tolerance_mm=tolerance_mm,
        mesh_joints_moved_mm=others["mesh_joints"] * MM if "mesh_joints" in others else None,
        coarse_moved_mm=others["coarse"] * MM if "coarse" in others else None,
        joints_px_moved=others.get("joints_px"),
    )


def accuracy(
    predicted: Outputs,
    reference: Outputs,
    truth: FloatArray,
    template: BodyTemplate,
    spec: ModelSpec,
    tolerance_mm: float,
) -> Accuracy:
    """Measure a precision where the true meshes are known.

    Args:
        predicted, reference, spec, tolerance_mm: see fidelity.
        truth: (N, V, 3) true vertices in metres.
        template: of the network.

    Raises:
        UserError: a prediction is not finite.
    """
    distance = fidelity(predicted, reference, spec, tolerance_mm)
    errors, before = (true_errors(outputs, predicted, truth, template, spec) for outputs in (predicted, reference))
    return Accuracy(
        **asdict(distance),
        **{f"{name}_mm": value for name, value in errors.items()},
        **{f"{name}_lost_mm": errors[name] - before[name] for name in errors},
    )


def true_errors(
    outputs: Outputs, like: Outputs, truth: FloatArray, template: BodyTemplate, spec: ModelSpec
) -> dict[str, float]:
    """Return mean errors against true meshes (N, V, 3), in mm by name (METRIC_NAMES).

    Where `like`, the converted network's outputs, has no vertices, there is no MPVPE, and joints are the mesh's.
    """
    if like.vertices is not None:
        return mesh_errors(outputs.mesh, truth, template, spec.joint_set).means_mm()
    found, true = _points(outputs, like), template.joints(spec.joint_set, truth)
    return {"mpjpe": mean_mm(mpjpe(found, true, spec.joints)), "pa_mpjpe": mean_mm(pa_mpjpe(found, true))}


def check(found: Fidelity, precision: str, image_size: int) -> None:
    """Raise UserError when a precision is further from PyTorch than its tolerance allows.

    The image plane has a tolerance of its own, as the camera shows only there: as many pixels as the tolerance
    is of a body of two metres that fills the crop.
    """
    limit_px = found.tolerance_mm / 2000.0 * image_size
    for value, limit, unit, what in (
        (found.moved_mm, found.tolerance_mm, "mm", "vertices"),
        (found.joints_moved_mm, found.tolerance_mm, "mm", "joints"),
        (found.mesh_joints_moved_mm, found.tolerance_mm, "mm", "joints of the mesh"),
        (found.coarse_moved_mm, found.tolerance_mm, "mm", "coarse vertices"),
        (found.image_moved_px, limit_px, "px", "projected vertices"),
        (found.joints_px_moved, limit_px, "px", "projected joints"),
    ):
        if value is not None and value > limit:
            raise UserError(
                f"{precision} was refused, nothing was written: its {what} are {value:.4g} {unit} from PyTorch's "
                f"on average, {limit:.4g} {unit} are allowed (--tolerance-mm {precision}=...)"
            )


def _points(outputs: Outputs, like: Outputs) -> FloatArray:
    """Return the vertices (N, V, 3), or the joints of the mesh (N, J, 3) where `like` has no vertices."""
    points = outputs.vertices if like.vertices is not None else outputs.mesh_joints
    if points is None:
        raise UserError("a network is compared by its vertices or mesh_joints: it gives neither")
    return points


def _projected(camera: FloatArray, points: FloatArray) -> NDArray[np.float64]:
    """Return points (N, P, 3) in crop coordinates (N, P, 2), [-1, 1] on the crop."""
    wide = camera.astype(np.float64)
    flat: NDArray[np.float64] = wide[:, None, :1] * (points[..., :2] + wide[:, None, 1:])
    return flat


def _on_crop(outputs: Outputs, like: Outputs, spec: ModelSpec) -> NDArray[np.float64]:
    """Return the points (N, P, 2) on the crop, in px from its middle."""
    return _projected(outputs.camera, _points(outputs, like)) * (spec.image_size / 2)


def _distances(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.linalg.norm(first.astype(np.float64) - second, axis=-1)


def _batches(images: FloatArray, title: str) -> Iterator[FloatArray]:
    for start in tqdm(range(0, len(images), BATCH), desc=f"verify {title}", leave=False):
        yield images[start : start + BATCH]
