"""`python -m training evaluate --protocol freihand` from pictures to scores, test-time augmentation and submission."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from metro_edge.metrics import procrustes
from metro_edge.preprocess import crop_images, normalise
from tests.smpl_files import metro_folder
from training.__main__ import main
from training.checkpoint import Checkpoint, build_model, save_checkpoint
from training.config import FitConfig
from training.data.freihand import COUNT
from training.networks import Network, open_network


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained network with MANO's mesh."""
    block = {"hidden": 16, "layers": 1, "heads": 2, "ffn": 16}
    config = FitConfig.from_dict(
        {
            "name": "hand",
            "body_path": str(metro_folder()),
            "crop_rule": "metro_eval",
            "model": {
                "preset": "metro_hand_hrnet_w64",
                "backbone": "test_resnet",
                "image_size": 64,
                "blocks": [{**block, "output": 16}, {**block, "output": 3}],
            },
        }
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("hand") / "hand.pt"
    save_checkpoint(path, Checkpoint(build_model(config).eval(), config))
    return path


def picture(number: int) -> np.ndarray:
    """(224, 224, 3): a smooth pattern of its own."""
    rng = np.random.default_rng(number)
    return cv2.resize(rng.integers(0, 255, (4, 4, 3), np.uint8), (224, 224), interpolation=cv2.INTER_CUBIC)


def write_pictures(folder: Path, count: int) -> Path:
    (folder / "evaluation" / "rgb").mkdir(parents=True)
    for number in range(count):
        cv2.imwrite(str(folder / "evaluation" / "rgb" / f"{number:08d}.jpg"), picture(number))
    return folder


def view(network: Network, path: Path, scale: float = 1.0, degrees: float = 0.0) -> np.ndarray:
    """The mesh (778, 3) about the wrist of one view: the square of 180 px about (112, 112), scaled and turned."""
    image = cv2.imread(str(path))
    if degrees:  # turned about the square's middle, which is where METRO turns
        matrix = cv2.getRotationMatrix2D((111.5, 111.5), degrees, 1.0)
        image = cv2.warpAffine(image, matrix, (224, 224), flags=cv2.INTER_LINEAR)
    spec = network.spec
    side = 180.0 * scale / spec.box_scale
    crop = crop_images(image, [112 - side / 2, 112 - side / 2, side, side], spec)
    mesh = network.predict(normalise(crop, spec))[0].astype(np.float64)
    return mesh - network.template.joints("freihand21", mesh)[:1]


def back(degrees: float) -> np.ndarray:
    """(3, 3), for rows: undoes a turn counter-clockwise on the screen, where y points down."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def evaluated(arguments: list[str], tmp_path: Path, capsys: Any) -> tuple[dict[str, Any], str]:
    report = tmp_path / "report.json"
    assert main(["evaluate", *arguments, "--protocol", "freihand", "--workers", "0", "-o", str(report)]) == 0
    return json.loads(report.read_text()), capsys.readouterr().out


@pytest.fixture
def labelled(hand: Path, tmp_path: Path) -> tuple[Path, Network, np.ndarray]:
    """A folder of three pictures with labels, the network, and the true meshes (3, 778, 3)."""
    folder, network = write_pictures(tmp_path / "freihand", 3), open_network(hand)
    truth = network.template.vertices + np.random.default_rng(0).normal(0, 0.01, (3, 778, 3))
    (folder / "evaluation_verts.json").write_text(json.dumps(truth.tolist()))
    (folder / "evaluation_xyz.json").write_text(json.dumps(network.template.joints("freihand21", truth).tolist()))
    return folder, network, truth


def pa_mpvpe(meshes: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(procrustes(meshes, truth) - truth, axis=-1).mean() * 1000)


def test_scores_of_one_view_and_of_chosen_ones(hand: Path, labelled: Any, tmp_path: Path, capsys: Any) -> None:
    folder, network, truth = labelled
    files = sorted((folder / "evaluation" / "rgb").iterdir())
    report, text = evaluated([str(hand), "--data", str(folder)], tmp_path, capsys)
    plain = np.stack([view(network, file) for file in files])
    assert report["rows"][0]["errors"]["pa_mpvpe"] == pytest.approx(pa_mpvpe(plain, truth), rel=1e-3)
    assert "test-time augmentation: none" in text and "METRO's published: PA-MPJPE mm 6.6" in text
    options = ["--scales", "0.8", "1.0", "--rotations", "0", "40"]
    report, _ = evaluated([str(hand), "--data", str(folder), *options], tmp_path, capsys)
    pairs = [(scale, degrees) for scale in (0.8, 1.0) for degrees in (0, 40)]
    views = [[view(network, file, *pair) @ back(pair[1]) for pair in pairs] for file in files]
    assert report["rows"][0]["errors"]["pa_mpvpe"] == pytest.approx(pa_mpvpe(np.mean(views, axis=1), truth), rel=0.01)


@pytest.mark.slow
def test_scores_of_metros_95_views(hand: Path, labelled: Any, tmp_path: Path, capsys: Any) -> None:
    folder, network, truth = labelled
    report, text = evaluated([str(hand), "--data", str(folder), "--tta"], tmp_path, capsys)
    fused = []
    for file in sorted((folder / "evaluation" / "rgb").iterdir()):
        pairs = [(scale, degrees) for scale in (0.7, 0.8, 0.9, 1.0, 1.1) for degrees in range(-90, 91, 10)]
        views = [view(network, file, *pair) for pair in pairs]  # the alignment turns them back
        fused.append(procrustes(np.stack(views), np.broadcast_to(view(network, file), (95, 778, 3))).mean(0))
    assert report["rows"][0]["errors"]["pa_mpvpe"] == pytest.approx(pa_mpvpe(np.stack(fused), truth), rel=0.02)
    assert report["run"]["test-time augmentation"]["views"] == 95 and "'views': 95" in text


@pytest.mark.slow
def test_the_submission_has_every_picture_in_order(hand: Path, tmp_path: Path, capsys: Any) -> None:
    """As many pictures as the official evaluation has."""
    folder, network = write_pictures(tmp_path / "freihand", COUNT), open_network(hand)
    zipped = tmp_path / "pred.zip"
    report, text = evaluated([str(hand), "--data", str(folder), "--submission", str(zipped)], tmp_path, capsys)
    assert report["submission"] == str(zipped) and report["rows"][0]["samples"] == COUNT == 3_960
    assert "undefined" in text and "hand in the submission file" in text  # no labels, no scores
    with zipfile.ZipFile(zipped) as archive:
        assert archive.namelist() == ["pred.json"]
        joints, vertices = (np.asarray(part) for part in json.loads(archive.read("pred.json")))
    assert joints.shape == (COUNT, 21, 3) and vertices.shape == (COUNT, 778, 3)
    for number in (0, 1, 777, COUNT - 1):
        mesh = view(network, folder / "evaluation" / "rgb" / f"{number:08d}.jpg")
        np.testing.assert_allclose(vertices[number], mesh, atol=2e-5)
        np.testing.assert_allclose(joints[number], network.template.joints("freihand21", mesh), atol=2e-5)
    assert np.abs(vertices[0] - vertices[1]).max() > 1e-3  # so that the order can be told
    (folder / "evaluation" / "rgb" / f"{COUNT - 1:08d}.jpg").unlink()
    command = ["evaluate", str(hand), "--protocol", "freihand", "--data", str(folder), "--submission", str(zipped)]
    assert main(command) == 2
    assert "wants 3960 pictures, there are 3959" in capsys.readouterr().err
