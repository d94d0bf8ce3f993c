from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metro_edge.errors import UserError
from metro_edge.joints import H36M14
from metro_edge.metrics import (
    AUC_THRESHOLDS_M,
    auc,
    jitter_mm,
    joint_errors,
    mean_mm,
    mesh_errors,
    mpjpe,
    mpvpe,
    pa_joint_errors,
    pa_mpjpe,
    pck,
    procrustes,
)

REFERENCE = Path(__file__).parents[1] / "data" / "reference" / "metrics.npz"


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as file:
        return {name: file[name] for name in file.files}


def some_points(seed: int, samples: int = 3, points: int = 14) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.4, (samples, points, 3))


def some_similarity(seed: int) -> tuple[float, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return float(rng.uniform(0.2, 4)), q * np.sign(np.linalg.det(q)), rng.normal(size=3)


def test_equal_to_the_original_code(reference):
    predicted, truth, labels = (reference[k] for k in ("pred_joints", "gt_joints", "has_labels"))
    np.testing.assert_allclose(mpjpe(predicted, truth, H36M14, labels), reference["mpjpe"], atol=1e-6)
    np.testing.assert_allclose(pa_mpjpe(predicted, truth), reference["pa_mpjpe"], atol=1e-6)
    vertices = [reference[f"{k}_vertices_first_64"] for k in ("pred", "gt")]
    np.testing.assert_allclose(mpvpe(*vertices, labels), reference["mpvpe_first_64"], atol=1e-6)


def test_mpjpe_of_a_known_shift():
    truth = some_points(0)
    predicted = truth + 5.0  # a translation of everything does not count
    predicted[:, H36M14.index("neck")] += (0.0, 0.14, 0.0)
    np.testing.assert_allclose(mpjpe(predicted, truth, H36M14), 0.14 / 14)
    assert mean_mm(mpjpe(predicted, truth, H36M14)) == pytest.approx(10.0)


def test_labels_leave_samples_out_in_order():
    predicted, truth = some_points(0, 4), some_points(1, 4)
    whole = pa_mpjpe(predicted, truth)
    np.testing.assert_array_equal(pa_mpjpe(predicted, truth, [0, 1, 0, 1]), whole[[1, 3]])
    assert mpvpe(predicted, truth, [False] * 4).shape == (0,)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_small_batches_are_not_mistaken_for_coordinates(samples):
    predicted, truth = some_points(0, 3, 3), some_points(1, 3, 3)
    together = pa_mpjpe(predicted, truth)
    np.testing.assert_allclose(pa_mpjpe(predicted[:samples], truth[:samples]), together[:samples])


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_pa_mpjpe_ignores_similarities(seed):
    predicted, truth = some_points(seed), some_points(seed + 1)
    scale, rotation, shift = some_similarity(seed)
    moved = scale * predicted @ rotation.T + shift
    np.testing.assert_allclose(pa_mpjpe(moved, truth), pa_mpjpe(predicted, truth), atol=1e-9)
    np.testing.assert_allclose(procrustes(scale * truth @ rotation.T + shift, truth), truth, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_metrics_are_zero_at_the_truth_symmetric_and_ordered(seed):
    a, b = some_points(seed), some_points(seed + 1)
    for error in (lambda x, y: mpjpe(x, y, H36M14), mpvpe):
        assert (error(a, a) == 0).all()
        np.testing.assert_allclose(error(a, b), error(b, a))
    assert pa_mpjpe(a, a).max() < 1e-12
    # The alignment is optimal for squares: no worse than only moving the centroids together.
    centred = a - a.mean(1, keepdims=True) + b.mean(1, keepdims=True)
    assert (((procrustes(a, b) - b) ** 2).sum((1, 2)) <= ((centred - b) ** 2).sum((1, 2)) + 1e-12).all()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_a_mirrored_body_is_not_aligned_away(seed):
    truth = some_points(seed)
    assert pa_mpjpe(truth * (-1, 1, 1), truth).min() > 0.01


def test_points_that_coincide_go_to_the_centre():
    truth = some_points(0)
    moved = procrustes(np.ones_like(truth), truth)
    np.testing.assert_allclose(moved, np.broadcast_to(truth.mean(1, keepdims=True), truth.shape))


def test_mesh_errors_of_moved_and_bent_meshes(template):
    truth = np.repeat(template.vertices[None], 2, axis=0).astype(np.float64)
    moved = mesh_errors(truth + np.array((3.0, -1.0, 8.0)), truth, template, "h36m14")
    assert max(moved.means_mm().values()) < 1e-3
    errors = mesh_errors(truth * 1.1, truth, template, "h36m14")
    assert errors.means_mm()["pa_mpjpe"] < 1e-3
    expected = 0.1 * np.linalg.norm(truth[0] - template.root("h36m14", truth[0]), axis=-1).mean()
    np.testing.assert_allclose(errors.mpvpe, expected, rtol=1e-5)
    assert errors.mpjpe.shape == (2,) and errors.means_mm()["mpjpe"] > 10


def test_bad_input(template):
    points = some_points(0)
    for bad in (points[0], points[..., :2], points[:, :0], np.swapaxes(points, 1, 2)):
        with pytest.raises(UserError, match=r"points must be \(N, P, 3\)"):
            pa_mpjpe(bad, bad)
    with pytest.raises(UserError, match="same shape"):
        mpvpe(points, points[:2])
    with pytest.raises(UserError, match="14 joints"):
        mpjpe(points[:, :13], points[:, :13], H36M14)
    with pytest.raises(UserError, match="has_label"):
        mpvpe(points, points, [1, 1])
    with pytest.raises(UserError, match="no labelled sample"):
        mean_mm([])
    with pytest.raises(UserError, match="vertices"):
        mesh_errors(points, points, template, "h36m14")
    with pytest.raises(UserError, match="no regressor"):
        mesh_errors(template.vertices[None], template.vertices[None], template, "coco17")


def test_errors_by_joint_and_their_means():
    truth = some_points(0)
    predicted = truth + 5.0
    predicted[:, H36M14.index("neck")] += (0.0, 0.14, 0.0)
    predicted[:, H36M14.index("left_hip")] += (0.02, 0.0, 0.0)  # half of which the root takes along
    errors = joint_errors(predicted, truth, H36M14)
    assert errors.shape == (3, 14)
    np.testing.assert_allclose(errors[:, H36M14.index("left_hip")], 0.01)
    np.testing.assert_allclose(errors[:, H36M14.index("right_hip")], 0.01)
    np.testing.assert_allclose(errors[:, H36M14.index("neck")], np.hypot(0.14, 0.01))
    np.testing.assert_array_equal(errors.mean(axis=1), mpjpe(predicted, truth, H36M14))
    np.testing.assert_array_equal(pa_joint_errors(predicted, truth).mean(axis=1), pa_mpjpe(predicted, truth))
    assert joint_errors(predicted, truth, H36M14, [1, 0, 1]).shape == (2, 14)


def test_pck_and_auc_of_known_errors():
    errors_m = np.array([[0.0, 0.149, 0.150, 0.151], [0.004, 0.0051, 0.9, 0.146]])
    np.testing.assert_allclose(pck(errors_m), [0.5, 0.75])  # 150 mm itself is not nearer than 150 mm
    np.testing.assert_allclose(pck(errors_m, 0.0052), [0.25, 0.5])
    # Of the 31 thresholds 0, 5, ... 150 mm an error is below: 0 -> 30, 149 -> 1, 150 and 151 -> 0; 4 -> 30, 5.1 -> 29.
    np.testing.assert_allclose(auc(errors_m), [(30 + 1) / 4 / 31, (30 + 29 + 0 + 1) / 4 / 31])
    np.testing.assert_allclose(AUC_THRESHOLDS_M, np.linspace(0, 0.15, 31), atol=1e-12)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_auc_is_the_mean_of_pck_over_its_thresholds(seed):
    errors_m = np.random.default_rng(seed).gamma(2.0, 0.05, (3, 14))
    curve = [pck(errors_m, threshold) for threshold in AUC_THRESHOLDS_M]
    np.testing.assert_allclose(auc(errors_m), np.mean(curve, axis=0), atol=1e-12)


@pytest.mark.parametrize("bad", [[[np.nan, 0.1]], [[-0.1]], [[np.inf]], [0.1], np.zeros((3, 0))])
def test_no_share_is_taken_of_errors_that_are_none(bad):
    for share in (pck, auc):
        with pytest.raises(UserError, match="error"):
            share(bad)


def test_jitter_of_known_motion():
    frames = np.arange(6.0)[:, None, None]
    steady = frames**2 * (0.001, 0.0, 0.0)  # an even acceleration has no jerk
    assert jitter_mm(steady) == pytest.approx(0.0, abs=1e-9)
    assert jitter_mm(frames**3 * (0.0, 0.001, 0.0)) == pytest.approx(6.0)  # the third difference of n^3 is 6
    shaking = np.where(frames % 2 == 0, 0.0, 0.001) * np.array((1.0, 0.0, 0.0))
    assert jitter_mm(shaking) == pytest.approx(4.0)  # 1, -3, 3, -1 times 0, 1, 0, 1 mm
    with pytest.raises(UserError, match="at least 4 frames, got 3"):
        jitter_mm(steady[:3])
    with pytest.raises(UserError, match="must be \\(F, P, 3\\)"):
        jitter_mm(np.zeros((6, 3)))
