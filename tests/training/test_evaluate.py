"""Evaluation against errors worked out by hand, and the baselines' defining properties."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metro_edge.backends import Outputs
from metro_edge.errors import UserError
from metro_edge.metrics import procrustes
from training.bodies import body_template
from training.checkpoint import Checkpoint, build_model
from training.config import FitConfig
from training.data.shards import ShardedPeople, people_shards
from training.evaluate import best_constant_pose, constant, evaluate, mean_body, predictor
from training.model import MetroOutput
from training.pictures import prediction_sheet
from training.report import accuracy_report, publish

TEMPLATE = body_template("anny")


@pytest.fixture(scope="module")
def people(tiny_run: dict[str, Any]) -> ShardedPeople:
    config = FitConfig.from_dict(tiny_run)
    folder = people_shards(Path(config.data.folder), config.spec, seed=2, count=8, workers=1)
    return ShardedPeople(folder, config.spec)


@pytest.fixture(scope="module")
def meshes(people: ShardedPeople) -> np.ndarray:
    return np.stack([people[i]["vertices"].numpy() for i in range(len(people))])


def test_the_truth_has_no_error_and_a_scaled_truth_only_an_aligned_one(
    people: ShardedPeople, meshes: np.ndarray
) -> None:
    queue = iter(np.array_split(meshes, 2))
    errors = evaluate(lambda images: next(queue), people, TEMPLATE, batch_size=4).means_mm()
    assert max(errors.values()) < 1e-3
    queue = iter(np.array_split(meshes * np.float32(1.1) + np.float32(0.2), 2))
    errors = evaluate(lambda images: next(queue), people, TEMPLATE, batch_size=4).means_mm()
    assert errors["pa_mpjpe"] < 0.01
    joints = TEMPLATE.joints("h36m14", meshes)
    expected = 0.1 * np.linalg.norm(joints - joints[:, [2, 3]].mean(1, keepdims=True), axis=-1).mean() * 1e3
    assert errors["mpjpe"] == pytest.approx(expected, rel=1e-3)


def test_mean_body_is_the_mean(people: ShardedPeople, meshes: np.ndarray) -> None:
    centred = meshes - TEMPLATE.root("h36m14", meshes)[:, None]
    np.testing.assert_allclose(mean_body(people, TEMPLATE), centred.mean(0), atol=1e-5)


def test_best_constant_pose_beats_the_rest_pose_after_alignment(people: ShardedPeople, meshes: np.ndarray) -> None:
    def aligned_error(mesh: np.ndarray) -> float:
        moved = procrustes(np.broadcast_to(mesh, meshes.shape), meshes)
        return float(np.linalg.norm(moved - meshes, axis=-1).mean())

    best = best_constant_pose(people, TEMPLATE, rounds=6)
    assert aligned_error(best) < aligned_error(TEMPLATE.vertices)
    # Its definition: it is, up to a similarity, the mean of all meshes once they are aligned to it.
    again = procrustes(meshes, np.broadcast_to(best, meshes.shape)).mean(0, keepdims=True)
    drift = np.linalg.norm(procrustes(again, best[None]) - best, axis=-1).mean()
    assert drift < 0.01, drift


def test_only_a_run_over_generated_people_has_held_out_samples_of_its_own(
    tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is rendered to find that out."""
    monkeypatch.setattr("training.report.people_shards", None)
    sets = tiny_run["data"] | {"train_sets": ["a.yaml", "3DPW"], "validation_sets": ["b.yaml"]}
    config = FitConfig.from_dict(tiny_run | {"data": sets})
    with pytest.raises(UserError, match=r"trained on the data sets a\.yaml, 3DPW, not on generated .* --protocol NAME"):
        accuracy_report(Checkpoint(build_model(config), config))
    config = FitConfig.from_dict(tiny_run)
    with pytest.raises(UserError, match="8 held-out samples, cannot take 0"):
        accuracy_report(Checkpoint(build_model(config), config), count=0)
    monkeypatch.setattr("training.data.shards.write_shards", None)
    smpl = dataclasses.replace(config.spec, body="smpl", vertex_count=6890)
    with pytest.raises(UserError, match="people have the body 'anny', the network 'tiny' has 'smpl': give data sets"):
        people_shards(tmp_path, smpl, seed=1, count=40_000)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_float16_cannot_hold_are_not_published(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    config = FitConfig.from_dict(tiny_run)
    model = build_model(config)
    with torch.no_grad():
        model.camera_head.output.bias[1] = 70_000.0
    with pytest.raises(UserError, match=r"float16 cannot hold the weights camera_head\.output\.bias: NaN, infinity or"):
        publish(Checkpoint(model, config), tmp_path / "net.pt")
    assert list(tmp_path.iterdir()) == []


def test_predictors(meshes: np.ndarray) -> None:
    images = np.zeros((3, 3, 8, 8), np.float32)
    assert constant(meshes[0])(images).shape == (3, *meshes[0].shape)

    def model(batch: torch.Tensor) -> MetroOutput:
        return MetroOutput(torch.zeros(3, 3), torch.zeros(3, 14, 3), (torch.zeros(1), batch.mean((2, 3))[:, None]))

    assert predictor(model)(images).shape == (3, 1, 3)


def test_prediction_sheet_shows_the_body_and_survives_a_camera_that_looks_backwards(
    people: ShardedPeople, meshes: np.ndarray
) -> None:
    images = np.stack([people[i]["image"].numpy() for i in range(3)])
    camera = np.array([[0.9, 0, 0], [-0.5, 0, 0], [0.9, 0, 0]], np.float32)
    centred = (meshes[:3] - TEMPLATE.root("h36m14", meshes[:3])[:, None]).astype(np.float32)
    outputs = Outputs(camera, TEMPLATE.joints("h36m14", centred).astype(np.float32), centred)
    sheet = prediction_sheet(images, outputs, people.spec, TEMPLATE, columns=2)
    assert sheet.shape == (2 * 64, 2 * 128, 3)
    first, second = sheet[:64, :128], sheet[:64, 128:]
    assert (first[:, :64] != first[:, 64:]).any()
    assert not second[:, 64:].any()
    assert not sheet[64:, 128:].any()  # the empty place of the fourth
