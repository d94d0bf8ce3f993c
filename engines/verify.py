"""Every converted graph against PyTorch on real samples, in millimetres; what errs too much is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from metro_edge.backends.int8_twin import cpu_twin
from metro_edge.errors import UserError
from metro_edge.metrics import METRIC_NAMES, mesh_errors
from metro_edge.spec import INPUT_NAME, OUTPUT_NAMES, ModelSpec
from metro_edge.template import BodyTemplate
from training.model import Metro

FloatArray = NDArray[np.float32]
BATCH = 8
# Largest mean distance from PyTorch that is accepted, in mm. FP32 only sums in another order; FP16 carries eleven
# bits, about 0.5 mm in a metre; INT8 may move the mesh by a small part of what networks of this kind err by.
TOLERANCES_MM = {"fp32": 0.01, "fp16": 1.0, "int8": 10.0}
MM = 1000.0
NOT_FINITE = "refused, nothing was written: the converted network's outputs are not finite; a value overflows"


class Predictions(NamedTuple):
    """A network's outputs for N images: camera (N, 3), joints (N, J, 3), vertices (N, V, 3); metres."""

    camera: FloatArray
    joints: FloatArray
    vertices: FloatArray


@dataclass(frozen=True)
class Fidelity:
    """How far one precision is from PyTorch in FP32; all in mm unless said otherwise.

    Attributes:
        moved_mm: mean distance between this precision's vertices and PyTorch's.
        worst_vertex_mm: the largest such distance of any vertex in any sample.
        joints_moved_mm: mean distance between this precision's predicted joints and PyTorch's.
        image_moved_px: mean distance between both meshes as their cameras put them on the crop, in px of the crop.
        tolerance_mm: what `moved_mm` and `joints_moved_mm` had to stay within.
    """

    moved_mm: float
    worst_vertex_mm: float
    joints_moved_mm: float
    image_moved_px: float
    tolerance_mm: float

    def to_dict(self) -> dict[str, float]:
        """Return the figures by name, rounded to a tenth of a micrometre."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Accuracy(Fidelity):
    """One precision, measured where true meshes are known; means over samples in mm.

    Attributes:
        mpjpe_mm, pa_mpjpe_mm, mpvpe_mm: against the truth.
        mpjpe_lost_mm, pa_mpjpe_lost_mm, mpvpe_lost_mm: how much more than PyTorch in FP32.
    """

    mpjpe_mm: float
    pa_mpjpe_mm: float
    mpvpe_mm: float
    mpjpe_lost_mm: float
    pa_mpjpe_lost_mm: float
    mpvpe_lost_mm: float


@torch.inference_mode()
def predictions_from_pytorch(model: Metro, images: FloatArray) -> Predictions:
    """Run the network as it was trained over images (N, 3, S, S)."""
    parts = []
    for batch in _batches(images, "PyTorch"):
        output = model(torch.from_numpy(batch))
        parts.append((output.camera.numpy(), output.joints.numpy(), output.vertices[-1].numpy()))
    return _joined(parts)


def predictions_from_onnx(path: Path, precision: str, images: FloatArray) -> Predictions:
    """Run an ONNX file on the CPU over images (N, 3, S, S), an INT8 one as its CPU twin."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    graph: Any = cpu_twin(path.read_bytes()) if precision == "int8" else str(path)
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = list(OUTPUT_NAMES)
    return _joined([session.run(names, {INPUT_NAME: batch}) for batch in _batches(images, precision)])


def fidelity(predicted: Predictions, reference: Predictions, spec: ModelSpec, tolerance_mm: float) -> Fidelity:
    """Measure how far a precision is from PyTorch, which needs no truth.

    Args:
        predicted: by the converted graph.
        reference: by PyTorch in FP32 from the same images.
        spec: of the network.
        tolerance_mm: noted in the result.

    Raises:
        UserError: a prediction is not finite.
    """
    if not all(np.isfinite(values).all() for values in predicted):
        raise UserError(NOT_FINITE)
    distances = _distances(predicted.vertices, reference.vertices)
    shift = _distances(_on_crop(predicted, spec), _on_crop(reference, spec))
    return Fidelity(
        moved_mm=float(distances.mean()) * MM,
        worst_vertex_mm=float(distances.max()) * MM,
        joints_moved_mm=float(_distances(predicted.joints, reference.joints).mean()) * MM,
        image_moved_px=float(shift.mean()),
        tolerance_mm=tolerance_mm,
    )


def accuracy(
    predicted: Predictions,
    reference: Predictions,
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
    errors, before = (
        mesh_errors(p.vertices, truth, template, spec.joint_set).means_mm() for p in (predicted, reference)
    )
    return Accuracy(
        **asdict(distance),
        **{f"{name}_mm": errors[name] for name in METRIC_NAMES},
        **{f"{name}_lost_mm": errors[name] - before[name] for name in METRIC_NAMES},
    )


def check(found: Fidelity, precision: str, image_size: int) -> None:
    """Raise UserError when a precision is further from PyTorch than its tolerance allows.

    The image plane has a tolerance of its own, as the camera shows only there: as many pixels as the tolerance
    is of a body of two metres that fills the crop.
    """
    limit_px = found.tolerance_mm / 2000.0 * image_size
    for value, limit, unit, what in (
        (found.moved_mm, found.tolerance_mm, "mm", "vertices"),
        (found.joints_moved_mm, found.tolerance_mm, "mm", "joints"),
        (found.image_moved_px, limit_px, "px", "projected vertices"),
    ):
        if value > limit:
            raise UserError(
                f"{precision} was refused, nothing was written: its {what} are {value:.4g} {unit} from PyTorch's "
                f"on average, {limit:.4g} {unit} are allowed (--tolerance-mm {precision}=...)"
            )


def _on_crop(predicted: Predictions, spec: ModelSpec) -> NDArray[np.float64]:
    """Return the vertices (N, V, 2) on the crop, in px."""
    camera = predicted.camera.astype(np.float64)
    flat = camera[:, None, :1] * (predicted.vertices[..., :2] + camera[:, None, 1:])
    return flat * (spec.image_size / 2)


def _distances(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.linalg.norm(first.astype(np.float64) - second, axis=-1)


def _batches(images: FloatArray, title: str) -> Iterator[FloatArray]:
    for start in tqdm(range(0, len(images), BATCH), desc=f"verify {title}", leave=False):
        yield images[start : start + BATCH]


def _joined(parts: list[Any]) -> Predictions:
    return Predictions(*(np.concatenate(values) for values in zip(*parts, strict=True)))
