"""Networks that METRO released, from the file to what ONNX Runtime answers."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from engines.__main__ import main
from metro_edge.backends import open_session
from metro_edge.bundle import Bundle
from metro_edge.cli import main as metro_edge_main
from metro_edge.smpl.files import find_smpl, read_smpl
from metro_edge.smpl.model import SkinnedBody
from tests.reference_weights import reference_images
from tests.released_files import (
    SMALL_BODY,
    SMALL_HAND,
    made_body,
    released_shapes,
    released_state,
    standing_state,
)
from tests.smpl_files import metro_folder
from training.bodies import body_template
from training.checkpoint import load_any

# The weights are made up, so what FP16 and INT8 lose means nothing; the reference's outputs are of many metres.
LOOSE = ["--tolerance-mm", "fp32=1", "fp16=1000", "int8=100000"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(4):
        small = random.integers(0, 255, (7, 5, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), cv2.resize(small, (200, 280), interpolation=cv2.INTER_CUBIC))
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> tuple[Path, str]:
    """A small hand network, converted by the command, in the folder that holds the file; and what was printed."""
    folder = tmp_path_factory.mktemp("hand")
    torch.save(released_state(released_shapes(SMALL_HAND)), folder / "metro_hand_state_dict.bin")
    made_body(SMALL_HAND).save(folder / "mano.npz")
    command = ["convert", str(folder / "metro_hand_state_dict.bin"), "--body", f"mano={folder / 'mano.npz'}"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*command, "-o", str(folder / "bundle"), "--pictures", str(pictures), *LOOSE]) == 0
    return folder, printed.getvalue()


def test_one_command_from_file_to_bundle(hand):
    folder, printed = hand
    bundle = Bundle.load(folder / "bundle")
    assert bundle.precisions == ("fp32", "fp16", "int8")
    spec = bundle.spec
    assert (spec.name, spec.body, spec.crop_rule) == ("metro_hand_resnet50", "mano", "metro_eval")
    assert "21 joints and 195 vertices as tokens (global)" in printed
    metadata = {p.key: p.value for p in onnx.load(bundle.onnx_path("fp32")).metadata_props}
    assert metadata == {"spec": spec.name, "checkpoint_sha256": bundle.passport["checkpoint"]["sha256"]}
    assert "entries used, 4 known to be unused\n" in printed
    assert printed.splitlines()[-1].startswith("wrote ") and " s, peak memory " in printed.splitlines()[-1]


def test_the_bundle_answers_as_the_network(hand):
    folder, _ = hand
    checkpoint = load_any(folder / "metro_hand_state_dict.bin", made_body(SMALL_HAND))
    images = reference_images(2)
    with torch.inference_mode():
        expected = checkpoint.model(torch.from_numpy(images))
    with open_session(Bundle.load(folder / "bundle"), "fp32", "onnxruntime") as session:
        found = session.infer(images)
    for wanted, got in ((expected.camera, found.camera), (expected.vertices[-1], found.vertices)):
        assert np.abs(got - wanted.numpy()).max() <= 1e-4 * np.abs(wanted.numpy()).max()


def test_the_passport_states_distances_and_no_accuracy(hand):
    folder, _ = hand
    bundle = Bundle.load(folder / "bundle")
    passport = json.loads((folder / "bundle" / "passport.json").read_text())
    assert "accuracy" not in passport and bundle.accuracy("fp32") is None
    found = passport["verification"]
    assert found["samples"] == 2 and "without true meshes" in found["data"]
    assert "no accuracy is measured or stated" in found["protocol"]
    for values in found["precisions"].values():
        assert set(values) == {"moved_mm", "worst_vertex_mm", "joints_moved_mm", "image_moved_px", "tolerance_mm"}
    moved = [found["precisions"][precision]["moved_mm"] for precision in ("fp32", "fp16", "int8")]
    assert moved == sorted(moved)
    assert passport["calibration"]["samples"] == 2 and "user's pictures" in passport["calibration"]["data"]
    assert "4 heads" in passport["released"]["network"] and "known to be unused" in passport["released"]["entries"]
    assert passport["licences"] == {"weights": "not stated", "body": "made for a test"}


def test_the_bundle_runs(hand, pictures, tmp_path):
    folder, _ = hand
    command = ["run", str(pictures / "0.png"), "--bundle", str(folder / "bundle"), "-o", str(tmp_path)]
    assert metro_edge_main(command) == 0
    assert (tmp_path / "0.json").is_file()


def test_mistakes(hand, pictures, tmp_path, capsys):
    folder, _ = hand
    file, body = str(folder / "metro_hand_state_dict.bin"), f"mano={folder / 'mano.npz'}"
    start = ["convert", file, "-o", str(tmp_path / "out" / "bundle")]
    for more, message in (
        ([], "whose template it needs: mano=PATH"),
        (["--body", "mano"], "a body is given as NAME=PATH"),
        (["--body", f"smpl={folder / 'mano.npz'}"], "holds the body 'mano', not 'smpl'"),
        (["--body", body, "--pictures", str(tmp_path / "none")], "is no folder"),
        (["--body", body, "--pictures", str(folder)], "no picture in"),
    ):
        assert main([*start, *more]) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1 and message in error[0]
    assert not (tmp_path / "out" / "bundle").exists()


def test_own_checkpoint_of_another_body(converted, hand, tmp_path, capsys):
    folder, _ = hand
    command = ["convert", str(converted.checkpoint), "-o", str(tmp_path / "b"), "--body", f"mano={folder / 'mano.npz'}"]
    assert main(command) == 2
    assert "is a network of the body 'anny', not 'mano'" in capsys.readouterr().err


def test_one_picture_cannot_serve_both(converted, pictures, tmp_path, capsys):
    only = tmp_path / "one"
    only.mkdir()
    (only / "a.png").write_bytes((pictures / "0.png").read_bytes())
    command = ["convert", str(converted.checkpoint), "-o", str(tmp_path / "b"), "--pictures", str(only)]
    assert main([*command, "--precision", "int8"]) == 2
    assert "has one picture" in capsys.readouterr().err
    assert main([*command, "--precision", "fp32"]) == 0
    assert Bundle.load(tmp_path / "b").passport["verification"]["samples"] == 1


@pytest.mark.slow
def test_from_metros_folder_to_smpl_parameters(pictures, tmp_path, capsys):
    """`convert FILE --body smpl=FOLDER` with METRO's file names, default tolerances; then `run --smpl-parameters`."""
    folder, file, out = metro_folder(), tmp_path / "metro_3dpw_state_dict.bin", tmp_path / "out"
    template = body_template("smpl", folder)
    torch.save(standing_state(SMALL_BODY, template), file)
    counts = ["--calibration-samples", "16", "--verify-samples", "4"]
    assert main(["convert", str(file), "--body", f"smpl={folder}", "-o", str(tmp_path / "bundle"), *counts]) == 0
    printed = capsys.readouterr().out
    assert "metro_body_resnet50: resnet50, 14 joints and 431 vertices as tokens (grid)" in printed
    assert "entries used, 4 known to be unused\n" in printed
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.precisions == ("fp32", "fp16", "int8") and bundle.spec.body == "smpl"
    assert "not to be passed on" in bundle.passport["licences"]["body"]
    np.testing.assert_array_equal(bundle.template.vertices, template.vertices)
    verified = bundle.passport["verification"]
    assert verified["samples"] == 4 and "without true meshes of this body" in verified["data"]
    for name, limit in (("fp32", 0.01), ("fp16", 1.0), ("int8", 10.0)):
        assert verified["precisions"][name]["moved_mm"] < limit == verified["precisions"][name]["tolerance_mm"]

    command = ["run", str(pictures / "0.png"), "--bundle", str(tmp_path / "bundle"), "-o", str(out)]
    assert metro_edge_main([*command, "--smpl-parameters", "--smpl", str(folder)]) == 0
    printed = capsys.readouterr().out
    body = SkinnedBody(read_smpl(find_smpl(folder)))
    document = json.loads((out / "0.json").read_text())
    (person,) = document["people"]
    with np.load(out / "0.smpl.npz", allow_pickle=False) as written:
        values = {name: written[name] for name in written.files}
    assert {name: values[name].shape for name in ("pose", "betas", "translation", "error_mm")} == {
        "pose": (1, 72), "betas": (1, 10), "translation": (1, 3), "error_mm": (1,),
    }  # fmt: skip
    facts = {"model": "smpl", "gender": "neutral", "model_sha256": body.file.sha256}
    assert document["smpl"] == {"file": "0.smpl.npz", **facts}
    assert {name: str(values[name]) for name in facts} == facts
    for name, key in (("pose", "pose"), ("betas", "betas"), ("translation", "translation_m")):
        np.testing.assert_allclose(person["smpl"][key], values[name][0], atol=1e-6)

    obj = (out / "0.person0.obj").read_text().splitlines()
    mesh = np.array([line.split()[1:] for line in obj if line.startswith("v ")], float) * (1, -1, -1)  # OBJ: y up
    rest = template.vertices - template.root("h36m14", template.vertices)
    assert np.linalg.norm(mesh - rest, axis=1).mean() < 0.05  # what the made weights predict
    placed = mesh + person["translation_m"]
    again = body.vertices(values["pose"], values["betas"])[0] + values["translation"][0]
    error = 1000 * np.linalg.norm(again - placed, axis=1).mean()
    assert error == pytest.approx(float(values["error_mm"][0]), abs=0.02) and error < 30
    assert person["smpl"]["error_mm"] == pytest.approx(float(values["error_mm"][0]), abs=1e-3)
    assert f"SMPL refit error {values['error_mm'][0]:.2f} mm" in printed
    # At rest in camera axes: the root turned by half a turn about x, so that y points down.
    turned = cv2.Rodrigues(values["pose"][0, :3].astype(np.float64))[0]
    assert np.degrees(np.arccos((np.trace(turned @ np.diag((1.0, -1.0, -1.0))) - 1) / 2)) < 15
