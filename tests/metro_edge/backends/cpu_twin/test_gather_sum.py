from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from metro_edge.backends.cpu_twin import rewrite
from metro_edge.backends.cpu_twin.gather_sum import sum_by_coordinate, sum_long_vectors

COARSE, FINE, NEIGHBOURS, DEPTH = 7, 20, 4, 3
BOTH = pytest.mark.parametrize("rewriting", [sum_long_vectors, sum_by_coordinate])


@pytest.fixture(scope="module")
def step(graph_of):
    """Makes the mesh step x (N, 7, 3) -> y (N, 20, 3) as the exporter writes it."""
    random = np.random.default_rng(0)
    indices = random.integers(0, COARSE, FINE * NEIGHBOURS).astype(np.int32)
    weights = random.normal(size=(FINE, NEIGHBOURS, 1)).astype(np.float32)

    def make(dtype=np.float32, axis=1, reduced=2, keepdims=0, swap=False, outputs=("y",), **constants) -> bytes:
        nodes = [
            helper.make_node("Gather", ["x", "indices"], ["rows"], axis=axis),
            helper.make_node("Reshape", ["rows", "shape"], ["neighbours"]),
            helper.make_node("Mul", ["weights", "neighbours"] if swap else ["neighbours", "weights"], ["scaled"]),
            helper.make_node("ReduceSum", ["scaled", "axes"], ["y"], keepdims=keepdims),
        ]
        known = {
            "indices": indices, "weights": weights, "axes": np.array([reduced], np.int64),
            "shape": np.array([-1, FINE, NEIGHBOURS, DEPTH], np.int64),
        }  # fmt: skip
        return graph_of(nodes, known | constants, ["n", COARSE, DEPTH], outputs=outputs)

    make.indices, make.weights = indices.reshape(FINE, NEIGHBOURS), weights
    return make


@BOTH
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("swap", [False, True])
def test_same_sums(step, run, rewriting, count, swap):
    x = np.random.default_rng(1).normal(size=(count, COARSE, DEPTH)).astype(np.float32)
    twin = rewrite(step(swap=swap), (rewriting,))
    assert twin != step(swap=swap)
    expected = (x[:, step.indices] * step.weights).sum(axis=2)
    np.testing.assert_allclose(run(twin, x)[0], expected, atol=1e-6)
    np.testing.assert_allclose(run(step(swap=swap), x)[0], expected, atol=1e-6)


@BOTH
@pytest.mark.parametrize(
    "changed",
    [
        {"keepdims": 1},
        {"reduced": 1},
        {"axis": 2},
        {"outputs": ("y", "rows")},
        {"outputs": ("y", "scaled")},
        {"weights": np.ones((FINE, NEIGHBOURS, DEPTH), np.float32)},
        {"shape": np.array([-1, NEIGHBOURS, FINE, DEPTH], np.int64)},
    ],
)
def test_what_is_no_mesh_step_stays(step, rewriting, changed):
    graph = step(**changed)
    assert rewrite(graph, (rewriting,)) is graph


def test_operators_of_each_form(step, operators):
    assert operators(rewrite(step(), (sum_long_vectors,))) == ["Gather", "Reshape", "Mul", "ReduceSum", "Reshape"]
    by_coordinate = operators(rewrite(step(), (sum_by_coordinate,)))
    assert by_coordinate.count("Gather") == NEIGHBOURS and "ReduceSum" not in by_coordinate
