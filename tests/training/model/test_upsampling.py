import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metro_edge.errors import UserError
from metro_edge.template import SparseMatrix
from training.model.upsampling import DenseUpsampling, SparseUpsampling, make_upsampling


@settings(max_examples=30, deadline=None)
@given(
    coarse=st.integers(1, 9), fine=st.integers(1, 30), k=st.integers(1, 6), seed=st.integers(0, 99),
    batch=st.integers(1, 3),
)  # fmt: skip
def test_sparse_equals_dense(coarse, fine, k, seed, batch):
    """The same matrix as a pair, as a SparseMatrix and as a dense array gives the same vertices."""
    random = np.random.default_rng(seed)
    matrix = SparseMatrix(
        random.integers(0, coarse, (fine, k)).astype(np.int32),
        random.normal(size=(fine, k)).astype(np.float32),
    )
    vertices = torch.tensor(random.normal(size=(batch, coarse, 3)), dtype=torch.float32)
    expected = matrix @ vertices.numpy()
    steps = [
        make_upsampling("sparse", coarse, fine, 6, (matrix.indices, matrix.weights)),
        make_upsampling("sparse", coarse, fine, k, matrix),
        make_upsampling("dense", coarse, fine, 6, matrix),
        make_upsampling("dense", coarse, fine, 6, matrix.dense(coarse)),
    ]
    for step in steps:
        np.testing.assert_allclose(step(vertices).detach(), expected, atol=1e-5)


def test_what_learns_and_what_is_fixed():
    dense = make_upsampling("dense", 4, 6, 2)
    assert isinstance(dense, DenseUpsampling) and dense.weight.shape == (6, 4) and dense.bias.shape == (6,)
    sparse = make_upsampling("sparse", 4, 6, 3, (np.zeros((6, 2)), np.ones((6, 2))))
    assert isinstance(sparse, SparseUpsampling)
    assert {name for name, _ in sparse.named_parameters()} == {"weights"}
    assert sparse.indices.shape == (6, 3) and sparse.indices.dtype == torch.int64
    sparse(torch.ones(1, 4, 3)).sum().backward()
    assert torch.all(sparse.weights.grad == 3)  # padding places can learn too


def test_starting_matrix_is_copied():
    weights = np.ones((6, 4), np.float32)
    step = make_upsampling("dense", 4, 6, 2, weights)
    weights[:] = 0
    assert torch.all(step.weight == 1) and torch.all(step.bias == 0)


PAIR = (np.zeros((6, 2), int), np.ones((6, 2)))


@pytest.mark.parametrize(
    ("kind", "init", "message"),
    [
        ("sparse", None, "needs upsampling_init to name the neighbours"),
        ("sparse", np.ones((6, 4)), r"needs a pair \(indices, weights\)"),
        ("sparse", (PAIR[0], np.ones((6, 1))), r"indices \(6, 2\) and weights \(6, 1\)"),
        ("sparse", (PAIR[0][:5], PAIR[1][:5]), r"must both have shape \(6, K\)"),
        ("sparse", (PAIR[0] + 4, PAIR[1]), "indices reach from 4 to 4, outside the 4 coarse"),
        ("sparse", (PAIR[0] - 1, PAIR[1]), "indices reach from -1"),
        ("sparse", (np.zeros((6, 4), int), np.ones((6, 4))), "4 weights a row, sparse_neighbours is 3"),
        ("dense", np.ones((4, 6)), r"matrix \(4, 6\) must be \(6, 4\)"),
    ],
)
def test_unfit_matrix_is_refused(kind, init, message):
    with pytest.raises(UserError, match=message):
        make_upsampling(kind, 4, 6, 3, init)
