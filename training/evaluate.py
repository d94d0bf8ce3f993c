"""Accuracy of a network over generated people, beside two predictions that look at no image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from tqdm import tqdm

from metro_edge.errors import UserError
from metro_edge.metrics import METRIC_NAMES, MeshErrors, mesh_errors, procrustes
from metro_edge.template import BodyTemplate
from training.data.shards import ShardedPeople

FloatArray = NDArray[np.float32]
Predict = Callable[[FloatArray], FloatArray]
PROTOCOL = (
    "generated people, joints h36m14 regressed from the full mesh, MPJPE and MPVPE after centring on the middle of "
    "the hips, PA-MPJPE after a similarity per sample without reflection, crop from the true box"
)


def evaluate(predict: Predict, people: ShardedPeople, template: BodyTemplate, batch_size: int = 50) -> MeshErrors:
    """Return errors per sample, in metres, in the order of `people`.

    Args:
        predict: maps images (N, 3, S, S) float32, normalised, to full meshes (N, V, 3) in metres.
        people: the samples.
        template: of the body that is predicted.
        batch_size: samples per call of `predict`.
    """
    parts = [
        mesh_errors(predict(images), vertices, template, people.spec.joint_set)
        for images, vertices in _batches(people, batch_size)
    ]
    if not parts:
        raise UserError("there is no sample to evaluate on")
    return MeshErrors(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in METRIC_NAMES})


def predictor(model: Any, device: str = "cpu") -> Predict:
    """Return a `Predict` that runs a PyTorch METRO, which is on `device`."""

    @torch.inference_mode()
    def predict(images: FloatArray) -> FloatArray:
        return np.asarray(model(torch.from_numpy(images).to(device)).vertices[-1].cpu().numpy())

    return predict


def mean_body(people: ShardedPeople, template: BodyTemplate) -> FloatArray:
    """Return the mean mesh (V, 3) of the training samples, each centred on its root, in the camera's frame."""
    meshes = (v - template.root(people.spec.joint_set, v)[:, None] for _, v in _batches(people, 200, "mean body"))
    return _mean(meshes)


def best_constant_pose(people: ShardedPeople, template: BodyTemplate, rounds: int = 3) -> FloatArray:
    """Return the mesh (V, 3) that fits the training samples best when each may be aligned to it.

    Generalised Procrustes analysis: align every mesh to the current mean by a similarity, average, repeat.
    """
    mean = template.vertices
    for i in range(rounds):
        title = f"constant pose {i + 1}/{rounds}"
        mean = _mean(
            procrustes(v, np.broadcast_to(mean, v.shape)).astype(np.float32) for _, v in _batches(people, 200, title)
        )
    return mean


def constant(mesh: FloatArray) -> Predict:
    """Return a `Predict` that always answers with `mesh` (V, 3)."""
    return lambda images: np.broadcast_to(mesh, (len(images), *mesh.shape))


def _mean(meshes: Iterable[FloatArray]) -> FloatArray:
    total, count = np.float64(0), 0
    for batch in meshes:
        total = total + batch.sum(0, dtype=np.float64)
        count += len(batch)
    return np.asarray(total / count, np.float32)


def _batches(people: ShardedPeople, size: int, title: str = "evaluate") -> Iterator[tuple[FloatArray, FloatArray]]:
    loader: DataLoader[Any] = DataLoader(people, batch_size=size)
    for batch in tqdm(loader, desc=title, leave=False):
        yield batch["image"].numpy(), batch["vertices"].numpy()
