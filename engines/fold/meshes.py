"""After the encoders everything is linear: upsampling, camera, joints of the mesh."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engines.fold.network import Affine, AffineUpsampling, Camera, FoldedCamera, InferenceNetwork
from engines.fold.tokens import bias_of
from training.model.upsampling import SparseUpsampling


def upsampling(network: InferenceNetwork) -> str:
    """Multiply the matrices of neighbouring steps where the product is cheaper than the steps are."""
    levels, steps = network.levels, list(network.upsampling)
    if len(steps) < 2:
        return "left: there is no second step"
    costs = [_cost(step) for step in steps]
    groups = cheapest_groups(levels, costs)
    chain = " -> ".join(map(str, levels))
    if len(groups) == len(steps):
        joint, apart = levels[0] * levels[-1] * 3 / 1e6, sum(costs) * 3 / 1e6
        return f"left: {chain} in one matrix is {joint:.2f} M multiply-adds, in steps {apart:.2f} M"
    made = [steps[start] if end - start == 1 else _product(steps[start:end], levels[start]) for start, end in groups]
    network.upsampling = nn.ModuleList(made)
    network.levels = (levels[0], *(levels[end] for _, end in groups))
    return f"{chain} became {' -> '.join(map(str, network.levels))}"


def cheapest_groups(levels: Sequence[int], costs: Sequence[int]) -> list[tuple[int, int]]:
    """Return how to group steps, as (start, end) pairs in order, so that the least multiply-adds are left.

    Args:
        levels: vertices before the first step and after each one.
        costs: multiply-adds of each step per coordinate, if it stays alone; a longer group is a dense matrix.
    """
    best: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]
    for end in range(1, len(costs) + 1):
        choices = []
        for start in reversed(range(end)):  # of equal ones the first, which changes least, is taken
            cost = costs[start] if end - start == 1 else levels[start] * levels[end]
            choices.append((best[start][0] + cost, [*best[start][1], (start, end)]))
        best.append(min(choices, key=lambda choice: choice[0]))
    return best[-1][1]


def camera(network: InferenceNetwork) -> str:
    """Multiply the camera's three linear maps into one, and put its map of the pooled image features beside it."""
    head = network.camera
    assert isinstance(head, Camera)
    x, points, output = (Affine.of(module) for module in (head.coordinates, head.points, head.output))
    joint = points.weight.double() @ output.weight.double()  # (P, 3): from a point's number to the camera
    weight = (x.weight.double()[None] * joint[:, None]).flatten(0, 1)
    bias = bias_of(x) * joint.sum(0) + bias_of(points) @ output.weight.double() + bias_of(output)
    if head.image is not None:
        image = Affine.of(head.image)
        weight, bias = torch.cat([weight, image.weight.double()]), bias + bias_of(image)
    dtype = x.weight.dtype
    network.camera = FoldedCamera(weight.to(dtype), bias.to(dtype))
    return f"{len(weight)} numbers to 3"


def mesh_joints(network: InferenceNetwork) -> str:
    """Multiply the joint regressor with the upsampling: joints straight from the coarse vertices."""
    if not network.wants_mesh_joints:
        return "left: no output reads the joints of the mesh"
    regressor = network.regressor
    assert isinstance(regressor, SparseUpsampling)
    rows = _matrix(regressor, network.levels[-1])
    bias = rows.new_zeros(len(rows))
    for step, count in reversed(list(zip(network.upsampling, network.levels[:-1], strict=True))):
        if isinstance(step, SparseUpsampling):
            rows = _times_sparse(rows, step, count)
        else:
            affine = Affine.of(step)
            bias = bias + rows @ bias_of(affine)
            rows = rows @ affine.weight.double().t()
    dtype = regressor.weights.dtype
    network.regressor = AffineUpsampling(rows.t().contiguous().to(dtype), bias.to(dtype))
    network.joints_from_coarse = True
    return f"{network.levels[0]} coarse vertices to {len(rows)} joints"


def _cost(step: nn.Module) -> int:
    """Return the multiply-adds of a step for one coordinate."""
    return step.weights.numel() if isinstance(step, SparseUpsampling) else Affine.of(step).weight.numel()


def _matrix(step: SparseUpsampling, count: int) -> Tensor:
    """Return a sparse step as a dense (fine, count) float64 matrix."""
    dense = torch.zeros(len(step.weights), count, dtype=torch.float64)
    return dense.scatter_add_(1, step.indices, step.weights.double())


def _times_sparse(rows: Tensor, step: SparseUpsampling, count: int) -> Tensor:
    """Return rows (R, fine) times a sparse step's matrix (fine, count)."""
    result = rows.new_zeros(len(rows), count)
    for indices, weights in zip(step.indices.t(), step.weights.double().t(), strict=True):
        result.index_add_(1, indices, rows * weights)
    return result


def _product(steps: Sequence[nn.Module], count: int) -> AffineUpsampling:
    """Return steps from a level of `count` vertices as one matrix, multiplied in float64."""
    first, dtype = steps[0], next(steps[0].parameters()).dtype
    if isinstance(first, SparseUpsampling):
        rows = _matrix(first, count)
        bias = rows.new_zeros(len(rows))
    else:
        rows, bias = Affine.of(first).weight.double().t(), bias_of(first)
    for step in steps[1:]:
        if isinstance(step, SparseUpsampling):
            weights = step.weights.double()
            bias = (bias[step.indices] * weights).sum(1)
            coarser, rows = rows, rows.new_zeros(len(weights), count)
            for indices, column in zip(step.indices.t(), weights.t(), strict=True):
                rows += coarser[indices] * column[:, None]
        else:
            affine = Affine.of(step)
            rows, bias = affine.weight.double().t() @ rows, bias @ affine.weight.double() + bias_of(affine)
    return AffineUpsampling(rows.t().contiguous().to(dtype), bias.to(dtype))
