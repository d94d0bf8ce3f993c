from __future__ import annotations

import numpy as np
import pytest

from metro_edge import estimator as estimator_module
from metro_edge.errors import PredictionError, UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.postprocess import Intrinsics, bodies_from_outputs
from metro_edge.preprocess import network_input

BOXES = [(10, 5, 50, 100), (80, 20, 60, 90), (100, 60, 80, 80)]


@pytest.fixture(scope="module")
def estimator(shared_bundle):
    with MeshEstimator.from_bundle(shared_bundle) as made:
        yield made


def test_it_is_the_chain_of_its_parts(estimator, shared_bundle, frame):
    bodies = estimator(frame, BOXES)
    outputs = estimator.session.infer(network_input(frame, BOXES, shared_bundle.spec))
    expected = bodies_from_outputs(
        outputs, np.array(BOXES, float), Intrinsics(200.0, (79.5, 59.5)), shared_bundle.spec, shared_bundle.template
    )
    assert len(bodies) == 3
    for body, other in zip(bodies, expected, strict=True):
        np.testing.assert_array_equal(body.vertices, other.vertices)
        np.testing.assert_array_equal(body.translation, other.translation)
        assert body.focal_px == 200.0  # the diagonal of 160 x 120


def test_the_frame_is_one_persons_box_when_none_is_given(estimator, frame):
    (whole,) = estimator(frame)
    np.testing.assert_array_equal(whole.box, (0, 0, 160, 120))
    (same,) = estimator(frame, (0, 0, 160, 120))
    np.testing.assert_array_equal(whole.vertices, same.vertices)
    assert estimator(frame, []) == []


def test_crowds_run_in_parts_with_the_same_result(estimator, frame, monkeypatch):
    whole = estimator(frame, BOXES)
    monkeypatch.setattr(estimator_module, "MAX_BATCH", 2)
    for body, other in zip(estimator(frame, BOXES), whole, strict=True):
        np.testing.assert_allclose(body.vertices, other.vertices, atol=1e-6)


def test_a_focal_length_moves_only_the_depth(shared_bundle, estimator, frame):
    (assumed,) = estimator(frame, BOXES[0])
    with MeshEstimator.from_bundle(shared_bundle.path, focal_px=400.0) as told:
        (body,) = told(frame, BOXES[0])
        (by_matrix,) = told(frame, BOXES[0], camera_matrix=[[400, 0, 79.5], [0, 400, 59.5], [0, 0, 1]])
    np.testing.assert_allclose(body.translation[2], 2 * assumed.translation[2], rtol=1e-5)
    np.testing.assert_array_equal(body.translation, by_matrix.translation)
    np.testing.assert_array_equal(body.vertices, assumed.vertices)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_precision(shared_bundle, estimator, frame, precision):
    with MeshEstimator.from_bundle(shared_bundle, precision, threads=1) as other:
        (body,) = other(frame, BOXES[1])
    np.testing.assert_allclose(body.vertices, estimator(frame, BOXES[1])[0].vertices, atol=5e-3)


def test_bad_input(estimator, shared_bundle, frame):
    for bad_frame in (frame[..., 0], frame.astype(np.float32)):
        with pytest.raises(UserError, match="a frame must be"):
            estimator(bad_frame)
    with pytest.raises(UserError, match="outside"):
        estimator(frame, (500, 0, 10, 10))
    with pytest.raises(UserError, match="camera matrix"):
        estimator(frame, camera_matrix=np.eye(2))
    with pytest.raises(UserError, match="focal length"):
        MeshEstimator.from_bundle(shared_bundle, focal_px=0)
    with pytest.raises(UserError, match="no bundle at"):
        MeshEstimator.from_bundle("nowhere")


def test_a_network_that_sees_nobody_is_an_error(bundle_of, network, frame):
    bundle = bundle_of(network(camera=(-0.5, 0, 0)))
    with MeshEstimator.from_bundle(bundle) as broken, pytest.raises(PredictionError, match="not positive"):
        broken(frame)


def test_after_with_it_is_closed(shared_bundle, frame):
    with MeshEstimator.from_bundle(shared_bundle) as made:
        pass
    with pytest.raises(UserError, match="closed"):
        made(frame)
