"""Errors of several precisions on the same samples, and what each precision changes against a reference."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.bootstrap import Statistic, figure, interval, mean, p95
from benchmarks.report import pack_samples
from metro_edge.backends import Session
from metro_edge.errors import UserError
from metro_edge.metrics import METRIC_NAMES, MeshErrors, mesh_errors
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate

BATCH = 16
FloatArray = NDArray[np.float32]


class People(Protocol):
    """Samples as training.data.shards.ShardedPeople gives them.

    An item has `image` (3, S, S) float32, normalised RGB, and `vertices` (V, 3) metres, camera frame.
    """

    spec: ModelSpec

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Accuracy:
    """Errors of one precision, per sample, in metres.

    Attributes:
        errors: against the truth.
        moved: (N,) mean distance of the vertices from the reference's, each mesh centred on its own root; None
            for the reference itself, and without one.
        reference: the reference's errors; None alike.
        truth_sha256: of the true meshes, float32, in order: which samples these are.
    """

    errors: MeshErrors
    moved: NDArray[np.float64] | None = None
    reference: MeshErrors | None = None
    truth_sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return means, intervals and packed errors per sample in mm; see benchmarks.report for the keys."""
        values: dict[str, Any] = {f"{name}_mm": value for name, value in self.errors.means_mm().items()}
        per_sample = {name: getattr(self.errors, name) * 1000.0 for name in METRIC_NAMES}
        values["intervals"] = {f"{name}_mm": _interval(errors) for name, errors in per_sample.items()}
        values["per_sample_mm"] = {name: pack_samples(errors) for name, errors in per_sample.items()}
        if self.moved is None or self.reference is None:
            return {**values, "against_fp32": None}
        return {**values, "against_fp32": self._against(self.moved, self.reference)}

    def _against(self, moved: NDArray[np.float64], reference: MeshErrors) -> dict[str, Any]:
        losses = {"moved": moved * 1000.0}
        for name in METRIC_NAMES:
            losses[f"{name}_change"] = (getattr(self.errors, name) - getattr(reference, name)) * 1000.0
        against: dict[str, Any] = {"intervals": {}}
        for name, loss in losses.items():
            worst = int(loss.argmax())
            against |= {
                f"{name}_mm": float(loss.mean()),
                f"{name}_p95_mm": figure(loss, p95),
                f"{name}_worst_mm": float(loss[worst]),
                f"{name}_worst_sample": worst,
            }
            # None for the worst: no resampling can tell what a sample that was not drawn would have been.
            against["intervals"] |= {f"{name}_mm": _interval(loss), f"{name}_p95_mm": _interval(loss, p95)}
        return against


def _interval(values_mm: NDArray[np.float64], statistic: Statistic = mean) -> dict[str, float] | None:
    found = interval(values_mm, statistic)
    return None if found is None else found.to_dict()


def measure_accuracy(
    sessions: Mapping[str, Session],
    people: People,
    template: BodyTemplate,
    reference: str | None = "fp32",
    batch_size: int = BATCH,
) -> dict[str, Accuracy]:
    """Run every session on every sample, in one pass, and compare with the truth and with the reference.

    Args:
        sessions: precision -> network ready to run.
        people: the samples.
        template: of the body that is predicted.
        reference: key of `sessions` that the others are held against; None for no such comparison.
        batch_size: samples per inference.

    Raises:
        UserError: no sample or session, a network that gives joints alone, a prediction or a truth that is not finite,
            by the sample's number, or a reference that is not among the sessions.
    """
    if not len(people) or not sessions:
        raise UserError(f"nothing to measure: {len(people)} samples, {len(sessions)} networks")
    if reference is not None and reference not in sessions:
        raise UserError(f"the reference {reference} is not measured; measured are {', '.join(sessions)}")
    joint_set = people.spec.joint_set
    errors: dict[str, list[MeshErrors]] = {name: [] for name in sessions}
    moved: dict[str, list[NDArray[np.float64]]] = {name: [] for name in sessions}
    digest = hashlib.sha256()
    for start, images, truth in _batches(people, batch_size):
        digest.update(np.ascontiguousarray(truth, "<f4").tobytes())
        _check_finite(truth, start, "the truth")
        meshes = {}
        for name, session in sessions.items():
            meshes[name] = session.infer(images).mesh
            _check_finite(meshes[name], start, f"the {name} prediction")
            errors[name].append(mesh_errors(meshes[name], truth, template, joint_set))
        for name in sessions:
            if reference is not None and name != reference:
                moved[name].append(mesh_errors(meshes[name], meshes[reference], template, joint_set).mpvpe)
    joined = {name: _joined(parts) for name, parts in errors.items()}
    truth_sha256 = digest.hexdigest()
    return {
        name: Accuracy(joined[name], np.concatenate(moved[name]), joined[reference], truth_sha256)
        if reference is not None and name != reference
        else Accuracy(joined[name], truth_sha256=truth_sha256)
        for name in sessions
    }


def _batches(people: People, size: int) -> Iterator[tuple[int, FloatArray, FloatArray]]:
    """Yield the number of the first sample, images (N, 3, S, S) and true meshes (N, V, 3)."""
    with tqdm(total=len(people), desc="accuracy", unit="sample", leave=False) as bar:
        for start in range(0, len(people), size):
            items = [people[index] for index in range(start, min(start + size, len(people)))]
            images, meshes = (
                np.stack([np.asarray(item[key], np.float32) for item in items]) for key in ("image", "vertices")
            )
            yield start, images, meshes
            bar.update(len(items))


def _check_finite(meshes: FloatArray, start: int, what: str) -> None:
    bad = ~np.isfinite(meshes).all(axis=(1, 2))
    if bad.any():
        raise UserError(
            f"{what} of sample {start + int(bad.argmax())} has NaN or infinity: no mean is made over it; "
            "the weights, this precision of them, or the data are broken"
        )


def _joined(parts: list[MeshErrors]) -> MeshErrors:
    return MeshErrors(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in METRIC_NAMES})
