from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from benchmarks.accuracy import measure_accuracy
from benchmarks.pictures import fitted_camera, png_bytes, true_outputs, worst_entry, worst_picture
from metro_edge.backends import Outputs, open_session
from metro_edge.bundle import Bundle
from metro_edge.template import BodyTemplate
from tests.benchmarks.conftest import TinyPeople


def test_a_camera_is_fitted_exactly() -> None:
    points = np.random.default_rng(0).normal(0, 0.5, (6, 2))
    camera = np.array([0.8, 0.1, -0.2])
    np.testing.assert_allclose(fitted_camera(points, camera[0] * (points + camera[1:])), camera, atol=1e-12)


def test_the_worst_sample_is_drawn_beside_the_truth(bundle: Bundle, people: TinyPeople, template: BodyTemplate) -> None:
    with open_session(bundle, "fp32", threads=1) as fp32, open_session(bundle, "int8", threads=1) as int8:
        sessions = {"fp32": fp32, "int8": int8}
        found = measure_accuracy(sessions, people, template)
        assert worst_entry(found["fp32"]) is None
        worst = worst_entry(found["int8"])
        assert worst is not None
        change_mm = 1000 * (found["int8"].errors.mpjpe - found["fp32"].errors.mpjpe)
        assert worst["sample"] == change_mm.argmax()
        assert worst["loss_mm"] == pytest.approx(change_mm.max())
        assert worst["mpjpe_mm"] - worst["fp32_mpjpe_mm"] == pytest.approx(worst["loss_mm"])
        picture = worst_picture(worst, "int8", sessions, people, template, "fp32")
    assert picture.shape == (348, 1280, 3)
    crop, *bodies = np.split(picture[28:], 4, axis=1)
    assert np.ptp(crop, axis=(0, 1)).max() <= 1  # a picture of one colour
    for tile in bodies:
        assert 0.02 < (np.abs(tile.astype(int) - crop).max(axis=2) > 20).mean() < 0.9
    decoded = cv2.imdecode(np.frombuffer(png_bytes(picture), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded, picture)


def test_without_a_mesh_there_is_no_truth_to_draw(template: BodyTemplate, people: TinyPeople) -> None:
    item: dict[str, Any] = people[0]
    guess = Outputs(np.array([[0.9, 0.0, 0.0]], np.float32), np.zeros((1, 14, 3), np.float32))
    assert true_outputs({**item, "has_vertices": np.float32(0)}, guess, people.spec, template) is None
    truth = true_outputs(item, guess, people.spec, template)
    assert truth is not None
    np.testing.assert_array_equal(truth.camera, guess.camera)
    places = np.hstack((0.5 * truth.joints[0, :, :2] + 0.1, np.ones((14, 1))))
    truth = true_outputs({**item, "joints_2d": places}, guess, people.spec, template)
    assert truth is not None
    np.testing.assert_allclose(truth.camera, [[0.5, 0.2, 0.2]], atol=1e-6)
