"""Learned steps from one mesh level to the next finer one; linear, with no activation between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metro_edge.errors import UserError
from metro_edge.template import SparseMatrix


class DenseUpsampling(nn.Linear):
    """Every fine vertex is a learned sum of all coarse ones, plus a bias (as released).

    weight (fine, coarse), bias (fine,), shared by x, y and z.
    """

    def forward(self, vertices: Tensor) -> Tensor:
        """Map (N, coarse, 3) to (N, fine, 3)."""
        return super().forward(vertices.transpose(1, 2)).transpose(1, 2)


class SparseUpsampling(nn.Module):
    """Every fine vertex is a learned sum of K fixed coarse ones.

    A fine vertex moves with the few coarse ones around it, and the full mesh is where a dense matrix hurts:
    1,227 -> 13,718 vertices are 16.8 million weights (67 MB) dense and 110 thousand with K = 8, and as many
    multiply-adds per coordinate; the step then costs little in file size, memory traffic and training data.

    Attributes:
        indices: (fine, K) int64 buffer, rows of the coarse level.
        weights: (fine, K) parameter.
    """

    indices: Tensor

    def __init__(self, indices: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("indices", indices)
        self.weights = nn.Parameter(weights)

    def forward(self, vertices: Tensor) -> Tensor:
        """Map (N, coarse, 3) to (N, fine, 3)."""
        fine, k = self.indices.shape
        # index_select, unlike advanced indexing, has a fast backward pass on the CPU.
        gathered = vertices.index_select(1, self.indices.flatten()).view(-1, fine, k, 3)
        return (gathered * self.weights[..., None]).sum(dim=2)


def make_upsampling(kind: str, coarse: int, fine: int, neighbours: int, init: Any = None) -> nn.Module:
    """Create one step.

    Args:
        kind: `dense` or `sparse`.
        coarse, fine: vertices of the two levels.
        neighbours: K of a sparse step.
        init: starting matrix: a dense (fine, coarse) array, or a SparseMatrix or pair (indices (fine, k),
            weights (fine, k)) with k <= K; None leaves a dense step random.

    Raises:
        UserError: the matrix does not fit the step, or a sparse step has none.
    """
    if kind == "dense":
        step = DenseUpsampling(coarse, fine)
        if init is not None:
            with torch.no_grad():
                step.weight.copy_(torch.from_numpy(_dense_matrix(init, coarse, fine)))
                step.bias.zero_()
        return step
    if init is None:
        raise UserError(f"the sparse step {coarse} -> {fine} needs upsampling_init to name the neighbours")
    indices, weights = _sparse_pair(init, coarse, fine)
    spare = neighbours - indices.shape[1]
    if spare < 0:
        raise UserError(
            f"upsampling {coarse} -> {fine}: the matrix has {indices.shape[1]} weights a row, "
            f"sparse_neighbours is {neighbours}"
        )
    # Unused places repeat the first neighbour with weight 0.
    indices = np.concatenate([indices, np.repeat(indices[:, :1], spare, axis=1)], axis=1)
    weights = np.pad(weights, ((0, 0), (0, spare)))
    return SparseUpsampling(torch.tensor(indices), torch.tensor(weights))


def _dense_matrix(init: Any, coarse: int, fine: int) -> np.ndarray:
    if isinstance(init, (SparseMatrix, tuple)):
        indices, weights = _sparse_pair(init, coarse, fine)
        return SparseMatrix(indices, weights).dense(coarse)
    matrix = np.array(init, np.float32)
    if matrix.shape != (fine, coarse):
        raise UserError(f"upsampling {coarse} -> {fine}: matrix {matrix.shape} must be {(fine, coarse)}")
    return matrix


def _sparse_pair(init: Any, coarse: int, fine: int) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(init, SparseMatrix):
        init = (init.indices, init.weights)
    if not (isinstance(init, tuple) and len(init) == 2):
        raise UserError(f"upsampling {coarse} -> {fine}: a sparse step needs a pair (indices, weights)")
    indices, weights = np.asarray(init[0]).astype(np.int64), np.asarray(init[1]).astype(np.float32)
    if indices.ndim != 2 or indices.shape != weights.shape or len(indices) != fine or indices.shape[1] < 1:
        raise UserError(
            f"upsampling {coarse} -> {fine}: indices {indices.shape} and weights {weights.shape} "
            f"must both have shape ({fine}, K)"
        )
    if indices.min() < 0 or indices.max() >= coarse:
        raise UserError(
            f"upsampling {coarse} -> {fine}: indices reach from {indices.min()} to {indices.max()}, "
            f"outside the {coarse} coarse vertices"
        )
    return indices, weights
