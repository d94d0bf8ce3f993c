"""`python -m training evaluate` from made 3DPW and Human3.6M folders to the printed numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metro_edge.bundle import shipped_bundle_path
from metro_edge.metrics import procrustes
from tests.own_sets_files import FRAMES_3DPW, sequence_values, write_3dpw, write_human36m, write_sequence
from tests.released_files import SMALL_BODY, standing_state
from tests.smpl_files import metro_folder
from training.__main__ import main
from training.bodies import body_template
from training.bodies.smpl import skinned_body
from training.checkpoint import Checkpoint, build_model, load_any, save_checkpoint
from training.config import FitConfig
from training.data.human36m import Human36M
from training.data.labelled import LabelledSet
from training.data.threedpw import ThreeDPW
from training.networks import Network, open_network


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders 3dpw and h36m, and small.pt, a small untrained network of ours with SMPL's mesh."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_3dpw(folder / "3dpw", skinned_body(metro_folder()))
    write_human36m(folder / "h36m", ("D3_Positions_mono", "D2_Positions"))
    block = {"hidden": 16, "layers": 1, "heads": 2, "ffn": 16}
    config = FitConfig.from_dict(
        {
            "name": "small",
            "body_path": str(metro_folder()),
            "crop_rule": "metro_eval",
            "model": {
                "preset": "metro_body_resnet50",
                "backbone": "test_resnet",
                "image_size": 64,
                "blocks": [{**block, "output": 16}, {**block, "output": 3}],
            },
        }
    )
    torch.manual_seed(0)
    save_checkpoint(folder / "small.pt", Checkpoint(build_model(config).eval(), config))
    return folder


@pytest.fixture
def changed(home: Path, tmp_path: Path) -> Path:
    """A copy of the 3DPW folder that a test may damage."""
    return Path(shutil.copytree(home / "3dpw", tmp_path / "3dpw"))


def evaluated(arguments: list[str], tmp_path: Path, capsys: Any) -> tuple[dict[str, Any], str]:
    """Run the command; returns its JSON and what it printed."""
    assert main(["evaluate", *arguments, "--workers", "0", "-o", str(tmp_path / "report.json")]) == 0
    return json.loads((tmp_path / "report.json").read_text()), capsys.readouterr().out


def printed_row(text: str) -> dict[str, str]:
    """The cells of the one row of the printed table, by their titles."""
    titles, _, cells = (
        [c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    )
    return dict(zip(titles, cells, strict=True))


def errors_mm(network: Network, people: LabelledSet, meshes: bool = True) -> dict[str, float]:
    """MPJPE, PA-MPJPE and MPVPE of a set, sample by sample, from the words of the protocols."""
    found: dict[str, list[float]] = {"mpjpe": [], "pa_mpjpe": [], "mpvpe": []}
    for index in range(len(people)):
        item = people[index]
        mesh = network.predict(item["image"][None].numpy())[0].astype(np.float64)
        joints, labels = network.template.joints("h36m14", mesh), item["joints"].numpy().astype(np.float64)
        hips = [points[2:4].mean(0) for points in (joints, labels)]
        found["mpjpe"].append(np.linalg.norm(joints - hips[0] - labels + hips[1], axis=-1).mean())
        found["pa_mpjpe"].append(np.linalg.norm(procrustes(joints[None], labels[None])[0] - labels, axis=-1).mean())
        if meshes:
            truth = item["vertices"].numpy().astype(np.float64)
            pelvis = [network.template.joints("h36m17", v)[0] for v in (mesh, truth)]
            found["mpvpe"].append(np.linalg.norm(mesh - pelvis[0] - truth + pelvis[1], axis=-1).mean())
    return {name: float(np.mean(values)) * 1000 for name, values in found.items() if values}


def three_dpw(home: Path, network: Network, ground_truth: str) -> ThreeDPW:
    genders = ("neutral",) if ground_truth == "neutral" else ("male", "female")
    bodies = {gender: skinned_body(metro_folder(), gender) for gender in genders}
    return ThreeDPW(home / "3dpw", network.spec, network.template, bodies, ground_truth=ground_truth)


@pytest.mark.parametrize("ground_truth", ["neutral", "gendered"])
def test_3dpw_from_its_folder_to_the_table(ground_truth: str, home: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = [str(home / "small.pt"), "--protocol", f"3dpw-{ground_truth}", "--data", str(home / "3dpw")]
    report, text = evaluated([*arguments, "--smpl", str(metro_folder()), "--batch-size", "4"], tmp_path, capsys)
    network = open_network(home / "small.pt")
    expected = errors_mm(network, three_dpw(home, network, ground_truth))
    (row,) = report["rows"]
    assert row["samples"] == 3 * FRAMES_3DPW and row["skipped"] == []
    assert row["errors"] == pytest.approx(expected, rel=1e-4)
    cells = printed_row(text)
    assert cells == {
        "crop rule": "metro_eval",
        "samples": "15",
        **{f"{name} mm": f"{row['errors'][key]:.2f}"
           for name, key in (("MPJPE", "mpjpe"), ("PA-MPJPE", "pa_mpjpe"), ("MPVPE", "mpvpe"))},
    }  # fmt: skip
    gender = "neutral SMPL for everybody" if ground_truth == "neutral" else "male or female SMPL, the person's"
    for words in (
        f"protocol: 3dpw-{ground_truth}",
        f"gender of the true bodies: {gender}",
        "pictures: 3DPW test split",
    ):
        assert words in text
    assert f"network: small, PyTorch fp32, checkpoint {network.sha256[:12]}" in text
    assert ("METRO's published: MPJPE mm 77.1" in text) == (ground_truth == "neutral")


def test_human36m_from_its_folder_to_the_table(home: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = [str(home / "small.pt"), "--protocol", "human36m-p2", "--data", str(home / "h36m")]
    report, text = evaluated(arguments, tmp_path, capsys)
    network = open_network(home / "small.pt")
    expected = errors_mm(network, Human36M(home / "h36m", network.spec), meshes=False)
    (row,) = report["rows"]
    assert row["samples"] == 9 and row["errors"].pop("mpvpe") is None
    assert row["errors"] == pytest.approx(expected, rel=1e-4)
    assert printed_row(text)["MPVPE mm"] == "undefined" and "MPVPE undefined: the data set has no true meshes" in text
    assert printed_row(text)["MPJPE mm"] == f"{row['errors']['mpjpe']:.2f}"
    assert "every 5th frame of camera 60457274" in text


@pytest.mark.slow
def test_a_released_network_needs_only_its_body(home: Path, tmp_path: Path, capsys: Any) -> None:
    """A state dictionary as METRO's, whose SMPL folder serves for the labels, too."""
    template = body_template("smpl", metro_folder())
    torch.save(standing_state(SMALL_BODY, template), tmp_path / "metro_3dpw_state_dict.bin")
    body = f"smpl={metro_folder()}"
    arguments = [str(tmp_path / "metro_3dpw_state_dict.bin"), "--protocol", "3dpw-neutral", "--body", body]
    report, text = evaluated([*arguments, "--data", str(home / "3dpw"), "--count", "3"], tmp_path, capsys)
    network = open_network(tmp_path / "metro_3dpw_state_dict.bin", body)
    assert (network.spec.name, network.spec.crop_rule) == ("metro_body_resnet50", "metro_eval")
    # What open_network predicts is what the network built from the file does.
    images = np.random.default_rng(0).normal(0, 1, (2, 3, 224, 224)).astype(np.float32)
    with torch.inference_mode():
        model = load_any(tmp_path / "metro_3dpw_state_dict.bin", template).model
        wanted = model(torch.from_numpy(images)).vertices[-1].numpy()
    np.testing.assert_allclose(network.predict(images), wanted, atol=1e-6)
    assert np.linalg.norm(wanted - template.vertices, axis=-1).mean() < 0.05  # the body at rest, so that numbers are
    people = three_dpw(home, network, "neutral")
    people.count = 3
    assert report["rows"][0]["errors"] == pytest.approx(errors_mm(network, people), rel=1e-4)
    assert report["checkpoint_sha256"] == network.sha256 and "network: metro_body_resnet50, PyTorch fp32" in text


def test_rows_left_out_when_the_files_open_are_counted_and_shown(
    home: Path, changed: Path, tmp_path: Path, capsys: Any
) -> None:
    for frame in (1, 3):
        (changed / f"imageFiles/made_walk_01/image_{frame:05d}.jpg").unlink()
    broken = changed / "imageFiles/made_walk_02/image_00002.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    arguments = [str(home / "small.pt"), "--protocol", "3dpw-neutral", "--data", str(changed)]
    report, text = evaluated([*arguments, "--smpl", str(metro_folder()), "--skip-bad"], tmp_path, capsys)
    assert len(report["opening"]["bad"]) == 2 and "frame 1: no picture in" in report["opening"]["bad"][0]
    assert len(report["rows"][0]["skipped"]) == 2  # both people of the picture that does not decode
    assert report["rows"][0]["samples"] == 3 * FRAMES_3DPW - 4
    assert "labels: 2 bad rows or files left out, the first: " in text and "made_walk_01.pkl, person 0, frame 1" in text
    assert "metro_eval: 2 bad samples left out" in text


def test_rows_that_the_data_sets_rules_leave_out_are_shown(home: Path, tmp_path: Path, capsys: Any) -> None:
    values = sequence_values(skinned_body(metro_folder()), people=1, seed=4)
    values["campose_valid"][0][[0, 2]] = 0
    write_sequence(tmp_path / "3dpw", values)
    arguments = [str(home / "small.pt"), "--protocol", "3dpw-neutral", "--data", str(tmp_path / "3dpw")]
    report, text = evaluated([*arguments, "--smpl", str(metro_folder())], tmp_path, capsys)
    assert report["opening"] == {"bad": [], "left_out": {"camera pose not valid": 2, "no joint in the picture": 0}}
    assert text.splitlines()[-1] == "labels: rows that the data set's rules leave out: 2 (camera pose not valid)"


def test_what_a_bundle_does_not_take(capsys: Any) -> None:
    bundle = str(shipped_bundle_path())
    assert main(["evaluate", bundle]) == 2
    assert "is a bundle, which needs --protocol" in capsys.readouterr().err
    assert main(["evaluate", bundle, "--protocol", "generated", "--count", "1", "--device", "cpu"]) == 2
    assert "--device is for checkpoints" in capsys.readouterr().err


def test_bad_folders_are_one_line_and_exit_2(home: Path, changed: Path, tmp_path: Path, capsys: Any) -> None:
    (changed / "imageFiles/made_walk_01/image_00001.jpg").unlink()
    (tmp_path / "empty").mkdir()
    network, smpl = str(home / "small.pt"), ["--smpl", str(metro_folder())]
    for protocol, data, more, message in (
        ("3dpw-neutral", changed, smpl, "made_walk_01.pkl, person 0, frame 1: no picture in"),
        ("3dpw-neutral", home / "3dpw", [], "name the folder with your SMPL model files"),
        ("3dpw-neutral", home / "3dpw", ["--smpl", str(tmp_path / "empty")], "no neutral SMPL model in"),
        ("3dpw-neutral", home / "h36m", smpl, "is not data for protocol 3dpw-neutral: it holds human36m"),
        ("human36m-p2", home / "3dpw", [], "is not data for protocol human36m-p2: it holds 3dpw"),
        ("human36m-p2", tmp_path / "empty", [], "neither METRO's .yaml nor a data set's own files"),
        ("human36m-p2", tmp_path / "nowhere", [], "there is no data at"),
        ("human36m-p2", home / "h36m", ["--count", "99"], "the set has 9 samples, cannot take 99"),
        ("freihand", home / "h36m", [], "protocol freihand is for mano"),
    ):
        arguments = ["evaluate", network, "--protocol", protocol, "--data", str(data), *more, "--workers", "0"]
        assert main([*arguments, "-o", str(tmp_path / "report.json")]) == 2
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and message in errors[0], (message, captured.err)
        assert "Traceback" not in captured.err and captured.out == "" and not (tmp_path / "report.json").exists()
