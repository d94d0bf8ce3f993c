"""Errors of every precision against the truth, and against the reference on the same samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.bootstrap import Statistic, figure, interval, mean, p95
from benchmarks.details import Details, batch_details
from benchmarks.report import pack_samples
from metro_edge.backends import Outputs, Session
from metro_edge.errors import UserError
from metro_edge.metrics import METRIC_NAMES, MeshErrors, mesh_errors
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from training.protocols import Protocol as Rules
from training.protocols import Truth

BATCH = 16
FloatArray = NDArray[np.float32]


class People(Protocol):
    """Samples as benchmarks.people gives them.

    An item has `image` (3, S, S) float32, normalised RGB, and `vertices` (V, 3) metres, camera frame. It may have
    `joints_2d` (J, 3), true joints in crop coordinates [-1, 1] and which of them count, `side_px`, the side of the
    crop in px of the full frame, and, for comparison by a protocol, what training.data.labelled.make_item gives.
    """

    spec: ModelSpec

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Accuracy:
    """Errors of one precision, per sample, in metres.

    Attributes:
        errors: against the truth; empty where the data has no truth for it.
        moved: (N,) mean distance of the vertices from the reference's, each mesh centred on its own root; None
            for the reference itself, and without one.
        reference: the reference's accuracy; None alike.
        truth_sha256: of the true meshes, or joints where there are no meshes, float32, in order: which samples these
            are.
        details: per joint and on the picture; None leaves them out.
    """

    errors: MeshErrors
    moved: NDArray[np.float64] | None = None
    reference: Accuracy | None = None
    truth_sha256: str | None = None
    details: Details | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return means, intervals and packed errors per sample in mm; see benchmarks.report for the keys."""
        per_sample = {name: getattr(self.errors, name) * 1000.0 for name in METRIC_NAMES}
        values: dict[str, Any] = {f"{name}_mm": _mean(errors) for name, errors in per_sample.items()}
        values["intervals"] = {f"{name}_mm": _interval(errors) for name, errors in per_sample.items()}
        values["per_sample_mm"] = {name: pack_samples(errors) for name, errors in per_sample.items()}
        if self.details is not None:
            values |= self.details.to_dict(None if self.reference is None else self.reference.details)
        if self.moved is None or self.reference is None:
            return {**values, "against_fp32": None}
        return {**values, "against_fp32": self._against(self.moved, self.reference.errors)}

    def _against(self, moved: NDArray[np.float64], reference: MeshErrors) -> dict[str, Any]:
        losses = {"moved": moved * 1000.0}
        for name in METRIC_NAMES:
            losses[f"{name}_change"] = (getattr(self.errors, name) - getattr(reference, name)) * 1000.0
        against: dict[str, Any] = {"intervals": {}}
        for name, loss in losses.items():
            worst = int(loss.argmax()) if loss.size else None
            against |= {
                f"{name}_mm": _mean(loss),
                f"{name}_p95_mm": figure(loss, p95),
                f"{name}_worst_mm": None if worst is None else float(loss[worst]),
                f"{name}_worst_sample": worst,
            }
            # None for the worst: no resampling can tell what a sample that was not drawn would have been.
            against["intervals"] |= {f"{name}_mm": _interval(loss), f"{name}_p95_mm": _interval(loss, p95)}
        return against


def _mean(values_mm: NDArray[np.float64]) -> float | None:
    return float(values_mm.mean()) if values_mm.size else None


def _interval(values_mm: NDArray[np.float64], statistic: Statistic = mean) -> dict[str, float] | None:
    found = interval(values_mm, statistic)
    return None if found is None else found.to_dict()


def measure_accuracy(
    sessions: Mapping[str, Session],
    people: People,
    template: BodyTemplate,
    reference: str | None = "fp32",
    batch_size: int = BATCH,
    rules: Rules | None = None,
) -> dict[str, Accuracy]:
    """Run every session on every sample, in one pass, and compare with the truth and with the reference.

    Args:
        sessions: precision -> network ready to run.
        people: the samples.
        template: of the body that is predicted.
        reference: key of `sessions` that the others are held against; None for no such comparison.
        batch_size: samples per inference.
        rules: protocol of a data set, with joints of its own and perhaps without meshes; None compares with the true
            meshes.

    Raises:
        UserError: no sample or session, a network that gives joints alone, a prediction or a truth that is not finite,
            by the sample's number, a sample without the labels that the protocol needs, or a reference that is not
            among the sessions.
    """
    if not len(people) or not sessions:
        raise UserError(f"nothing to measure: {len(people)} samples, {len(sessions)} networks")
    if reference is not None and reference not in sessions:
        raise UserError(f"the reference {reference} is not measured; measured are {', '.join(sessions)}")
    joint_set = people.spec.joint_set
    errors: dict[str, list[MeshErrors]] = {name: [] for name in sessions}
    details: dict[str, list[Details]] = {name: [] for name in sessions}
    moved: dict[str, list[NDArray[np.float64]]] = {name: [] for name in sessions}
    digest = hashlib.sha256()
    for start, batch in _batches(people, batch_size):
        truth = BatchTruth(start, batch, people.spec, template, rules)
        digest.update(truth.bytes())
        meshes = {}
        for name, session in sessions.items():
            outputs = session.infer(batch["image"])
            meshes[name] = outputs.mesh
            check_prediction(outputs, start, name)
            errors[name].append(truth.errors(outputs.mesh))
            details[name].append(batch_details(outputs, truth.joints, batch, template, people.spec))
        for name in sessions:
            if reference is not None and name != reference:
                moved[name].append(mesh_errors(meshes[name], meshes[reference], template, joint_set).mpvpe)
    found: dict[str, Accuracy] = {}
    for name in sorted(sessions, key=lambda name: name != reference):  # the reference first
        against = reference is not None and name != reference
        found[name] = Accuracy(
            _joined(errors[name]),
            np.concatenate(moved[name]) if against else None,
            found[str(reference)] if against else None,
            digest.hexdigest(),
            Details.joined(details[name]),
        )
    return {name: found[name] for name in sessions}


class BatchTruth:
    """The truth of one batch, and how predictions are compared with it.

    Args:
        start: number of its first sample, for messages.
        batch: of `batch_of`.
        spec, template: of the network.
        rules: protocol of the data; None compares with the true meshes.

    Attributes:
        joints: (N, J, 3) metres.
        vertices: (N, V, 3) metres; None where the data has no meshes.

    Raises:
        UserError: a truth that is not finite, or without a label that is compared.
    """

    def __init__(
        self, start: int, batch: dict[str, FloatArray], spec: ModelSpec, template: BodyTemplate, rules: Rules | None
    ) -> None:
        self.spec, self.template, self.rules = spec, template, rules
        self.vertices: FloatArray | None = batch["vertices"]
        joints: NDArray[np.floating] | None = None
        if rules is not None:
            self._check_labels(start, batch, rules)
            if "mpvpe" in rules.undefined:
                self.vertices = None
            if rules.truth_joints == "labels":
                joints = batch["joints"]
        for points in (self.vertices, joints):
            if points is not None:
                _check_finite(points, start, "the truth")
        if joints is None:
            assert self.vertices is not None  # joints are regressed from the mesh
            joints = template.joints(spec.joint_set, self.vertices.astype(np.float64))
        self.joints = joints

    def errors(self, meshes: FloatArray) -> MeshErrors:
        """Return the errors of predicted meshes (N, V, 3)."""
        if self.rules is None:
            assert self.vertices is not None
            return mesh_errors(meshes, self.vertices, self.template, self.spec.joint_set)
        everyone = np.ones(len(meshes), bool)
        vertices = np.zeros_like(meshes) if self.vertices is None else self.vertices
        truth = Truth(self.joints, everyone, vertices, everyone)
        found = self.rules.errors(meshes, truth, self.template)
        return MeshErrors(**{name: found[name] for name in METRIC_NAMES})

    def bytes(self) -> bytes:
        """Return what tells these samples from others."""
        points = self.joints if self.vertices is None else self.vertices
        return np.ascontiguousarray(points, "<f4").tobytes()

    @staticmethod
    def _check_labels(start: int, batch: dict[str, FloatArray], rules: Rules) -> None:
        needed = [] if "mpvpe" in rules.undefined else ["has_vertices"]
        needed += ["has_joints"] if rules.truth_joints == "labels" else []
        for name in needed:
            has = np.asarray(batch[name]) > 0
            if name == "has_joints":
                has &= (np.asarray(batch["joints_confidence"]) > 0).all(axis=1)
            if not has.all():
                what = name.removeprefix("has_")
                raise UserError(
                    f"sample {start + int(has.argmin())} has no label of its {what}, which protocol {rules.name} "
                    "compares with"
                )


def _batches(people: People, size: int) -> Iterator[tuple[int, dict[str, FloatArray]]]:
    """Yield the number of the first sample and what its items hold, each (N, ...): images (N, 3, S, S) and so on."""
    with tqdm(total=len(people), desc="accuracy", unit="sample", leave=False) as bar:
        for start in range(0, len(people), size):
            items = [people[index] for index in range(start, min(start + size, len(people)))]
            yield start, batch_of(items)
            bar.update(len(items))


def batch_of(items: list[Any]) -> dict[str, FloatArray]:
    """Return items of `People` as one: what they hold, each (N, ...) float32, keys and other words left out."""
    keys = [key for key, value in items[0].items() if not isinstance(value, str)]
    return {key: np.stack([np.asarray(item[key], np.float32) for item in items]) for key in keys}


def check_prediction(outputs: Outputs, start: int, name: str) -> None:
    """Raise UserError, by the sample's number, for a mesh or camera that is not finite; `start` is the first one's."""
    _check_finite(outputs.mesh, start, f"the {name} prediction")
    _check_finite(outputs.camera[:, None], start, f"the {name} prediction")


def _check_finite(points: NDArray[np.floating], start: int, what: str) -> None:
    bad = ~np.isfinite(points).all(axis=(1, 2))
    if bad.any():
        raise UserError(
            f"{what} of sample {start + int(bad.argmax())} has NaN or infinity: no mean is made over it; "
            "the weights, this precision of them, or the data are broken"
        )


def _joined(parts: list[MeshErrors]) -> MeshErrors:
    return MeshErrors(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in METRIC_NAMES})
