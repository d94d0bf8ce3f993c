"""Fits that turn a population of posed bodies into mesh levels and joint regressors.

A population is (N, V, 3) float32 vertices in metres. Nothing here knows one body from another, so that SMPL and
MANO templates can be made by the same code.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.template import SparseMatrix

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


def nearest(points: FloatArray, queries: FloatArray, count: int = 1) -> tuple[FloatArray, IntArray]:
    """Return distances and indices (Q, count) of the `points` (P, D) nearest to each of `queries` (Q, D)."""
    reference = torch.from_numpy(np.ascontiguousarray(points, np.float32))
    distances, indices = [], []
    for chunk in torch.from_numpy(np.ascontiguousarray(queries, np.float32)).split(2048):
        d, i = torch.cdist(chunk, reference, compute_mode="donot_use_mm_for_euclid_dist").topk(count, largest=False)
        distances.append(d)
        indices.append(i)
    return torch.cat(distances).numpy(), torch.cat(indices).numpy()


def mirror_permutation(rest: FloatArray, tolerance_m: float = 1e-3) -> IntArray:
    """Return (V,) indices of each vertex's mirror image across x = 0.

    Args:
        rest: (V, 3) left-right symmetric rest pose, metres.

    Raises:
        UserError: the mesh has no symmetric counterpart within `tolerance_m` for some vertex.
    """
    distance, index = nearest(rest, rest * np.array([-1, 1, 1], np.float32))
    mirror = index[:, 0]
    worst = float(distance.max())
    if worst > tolerance_m or not np.array_equal(mirror[mirror], np.arange(len(rest))):
        raise UserError(f"the rest mesh is not left-right symmetric: {worst * 1e3:.2f} mm to a mirror image")
    return mirror


def symmetric_subset(population: FloatArray, candidates: IntArray, mirror: IntArray, count: int) -> IntArray:
    """Choose `count` of `candidates` that best span the others linearly, in mirror pairs.

    Greedy column-subset selection (pivoted Gram-Schmidt): each round takes the vertex whose position is worst
    predicted by a linear combination of those already chosen, together with its mirror image. That puts vertices
    where bodies bend and differ (hands, feet, face) instead of spreading them evenly.

    Returns: (count,) sorted indices; raises UserError when there are too few candidates.
    """
    if not 2 <= count <= len(candidates):
        raise UserError(f"cannot choose {count} vertices out of {len(candidates)}")
    columns = population[:, candidates].transpose(0, 2, 1).reshape(-1, len(candidates)).astype(np.float64)
    place = {int(v): i for i, v in enumerate(candidates)}
    partner = np.array([place.get(int(mirror[v]), -1) for v in candidates])
    chosen: list[int] = []
    available = partner >= 0
    while len(chosen) < count:
        room = count - len(chosen)
        energy = np.where(available, (columns**2).sum(0), -1.0)
        if room == 1:  # only a vertex of the mid-plane fits into the last place
            energy = np.where(partner == np.arange(len(candidates)), energy, -1.0)
        pick = int(energy.argmax())
        if energy[pick] < 0:
            raise UserError(f"no symmetric vertex is left after {len(chosen)} of {count}")
        for i in dict.fromkeys((pick, int(partner[pick]))):
            chosen.append(i)
            available[i] = False
            direction = columns[:, i] / max(float(np.linalg.norm(columns[:, i])), 1e-12)
            columns -= np.outer(direction, direction @ columns)
    return np.sort(candidates[chosen])


def fit_upsampling(
    population: FloatArray, coarse: IntArray, fine: IntArray, neighbours: int, ridge: float = 1e-5
) -> SparseMatrix:
    """Fit each fine vertex as a weighted sum of the coarse vertices that move most like it.

    "Most like it" is the distance over a sample of the population, so that a hand beside a thigh in the rest pose is
    not mixed with the thigh. Weights solve a ridge regression on the population.

    Returns: matrix with (len(fine), neighbours) entries; columns count within `coarse`.
    """
    sample = population[:: max(1, len(population) // 24)]
    tracks = sample.transpose(1, 0, 2).reshape(population.shape[1], -1)
    _, columns = nearest(tracks[coarse], tracks[fine], neighbours)
    inputs = torch.from_numpy(population[:, coarse].transpose(1, 0, 2).reshape(len(coarse), -1).copy())
    targets = torch.from_numpy(population[:, fine].transpose(1, 0, 2).reshape(len(fine), -1).copy())
    weights = []
    for columns_chunk, target in zip(torch.from_numpy(columns).split(512), targets.split(512), strict=True):
        basis = inputs[columns_chunk].double()  # (v, K, N * 3)
        gram = basis @ basis.transpose(1, 2)
        scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        gram += ridge * scale * torch.eye(neighbours, dtype=gram.dtype)
        right = basis @ target.double()[:, :, None] + ridge * scale / neighbours
        weights.append(torch.linalg.solve(gram, right)[:, :, 0])
    return SparseMatrix(columns.astype(np.int32), torch.cat(weights).float().numpy())


def fit_regressor(
    population: FloatArray,
    joints: FloatArray,
    rest: FloatArray,
    rest_joints: FloatArray,
    support: int = 48,
    candidates: int = 480,
) -> SparseMatrix:
    """Fit non-negative weights, summing to one, that give joints (N, J, 3) from vertices (N, V, 3).

    Each joint is regressed from the vertices nearest to it in the rest pose; the `support` largest weights are kept
    and solved for again.
    """
    indices = np.zeros((joints.shape[1], support), np.int32)
    weights = np.zeros((joints.shape[1], support), np.float32)
    _, near = nearest(rest, rest_joints, candidates)
    for j, keep in enumerate(near):
        offsets = population[:, keep] - joints[:, j, None]
        largest = np.argsort(-_simplex_fit(offsets))[:support]
        indices[j], weights[j] = keep[largest], _simplex_fit(offsets[:, largest])
    return SparseMatrix(indices, weights)


def _simplex_fit(offsets: FloatArray, ridge: float = 1e-4) -> FloatArray:
    """Return w >= 0, sum 1, that minimises |sum_k w_k offsets_k| over (N, K, 3) offsets from the joint.

    Solved with the constraint w >= 0 left out, the most negative tenth dropped, and again until none is negative.
    """
    basis = offsets.transpose(1, 0, 2).reshape(offsets.shape[1], -1).astype(np.float64)
    gram = basis @ basis.T
    gram += ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    active = np.arange(len(gram))
    while True:
        solution = np.linalg.solve(gram[np.ix_(active, active)], np.ones(len(active)))
        solution /= solution.sum()
        negative = int((solution < 0).sum())
        if negative == 0:
            break
        active = np.delete(active, np.argsort(solution)[: max(1, negative // 10)])
    weights = np.zeros(len(gram), np.float32)
    weights[active] = solution
    return weights


def mirrored_regressor(matrix: SparseMatrix, mirror: IntArray, swap: tuple[int, ...]) -> SparseMatrix:
    """Return the regressor averaged with its mirror image, so that left and right are exact counterparts."""
    indices = np.concatenate([matrix.indices, mirror[matrix.indices[list(swap)]].astype(np.int32)], 1)
    weights = np.concatenate([matrix.weights, matrix.weights[list(swap)]], 1) / np.float32(2)
    return SparseMatrix(indices, weights)
