"""`metro-edge run --smpl-parameters`, from a picture to the files, on a network of a MANO-like hand."""

from __future__ import annotations

import json

import cv2
import numpy as np
import onnx
import pytest

from metro_edge import cli
from metro_edge.bundle import write_bundle
from metro_edge.smpl.files import find_smpl, read_smpl
from metro_edge.smpl.model import SkinnedBody
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate, SparseMatrix
from tests.metro_edge.conftest import PASSPORT, SIZE, made_network
from tests.smpl_files import metro_folder


@pytest.fixture(scope="module")
def hand() -> SkinnedBody:
    return SkinnedBody(read_smpl(find_smpl(metro_folder(), kind="mano")))


@pytest.fixture(scope="module")
def hand_bundle(hand, tmp_path_factory):
    vertices = hand.file.v_template * np.float32((1, -1, -1))
    rows = np.linspace(0, 777, 14).astype(np.int32)[:, None]
    template = BodyTemplate(
        name="mano",
        vertices=vertices,
        faces=hand.file.faces,
        level_vertices=(np.arange(778, dtype=np.int32),),
        level_faces=(hand.file.faces,),
        upsampling=(),
        regressors={"h36m14": SparseMatrix(rows, np.ones((14, 1), np.float32))},
        licence="made up",
    )
    folder = tmp_path_factory.mktemp("hand")
    onnx.save(made_network(template), folder / "hand.onnx")
    spec = ModelSpec("hand", SIZE, "h36m14", "mano", 778)
    return write_bundle(folder / "bundle", spec, template, {"fp32": folder / "hand.onnx"}, PASSPORT)


@pytest.fixture
def picture(tmp_path, frame):
    cv2.imwrite(str(tmp_path / "hand.png"), frame)
    return tmp_path / "hand.png"


def test_parameters_give_the_written_mesh_within_the_printed_error(hand, hand_bundle, picture, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["run", "--bundle", str(hand_bundle.path), str(picture), "--box", "10,5,50,100", "-o", str(out)]
    assert cli.main([*arguments, "--smpl-parameters", "--smpl", str(metro_folder())]) == 0
    document = json.loads((out / "hand.json").read_text())
    person = document["people"][0]
    with np.load(out / "hand.smpl.npz", allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    assert document["smpl"] == {
        "file": "hand.smpl.npz", "model": "mano", "gender": "", "model_sha256": hand.file.sha256,
    }  # fmt: skip
    np.testing.assert_allclose(person["smpl"]["pose"], values["pose"][0], atol=1e-6)
    np.testing.assert_allclose(person["smpl"]["translation_m"], values["translation"][0], atol=1e-6)

    lines = [line.split()[1:] for line in (out / "hand.person0.obj").read_text().splitlines() if line.startswith("v ")]
    mesh = np.array(lines, float) * (1, -1, -1) + person["translation_m"]  # OBJ has y up, the camera y down
    again = hand.vertices(values["pose"], values["betas"])[0] + values["translation"][0]
    error = 1000 * np.linalg.norm(again - mesh, axis=1).mean()
    assert error == pytest.approx(float(values["error_mm"][0]), abs=0.02)
    assert f"MANO refit error {values['error_mm'][0]:.2f} mm" in capsys.readouterr().out


def parameters(folder, stem):
    with np.load(folder / f"{stem}.smpl.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_one_person_in_all_pictures_has_one_shape(hand, hand_bundle, frame, tmp_path):
    """The network's answer depends on the picture, so that apart the shapes differ."""
    for name, picture in (("a", frame), ("b", frame[:, ::-1]), ("c", 255 - frame)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
    pictures = [str(tmp_path / f"{name}.png") for name in "abc"]
    start = ["run", "--bundle", str(hand_bundle.path), *pictures, "--smpl-parameters", "--smpl", str(metro_folder())]
    assert cli.main([*start, "-o", str(tmp_path / "apart")]) == 0
    assert cli.main([*start, "-o", str(tmp_path / "one"), "--smpl-same-person"]) == 0
    apart, one = ([parameters(tmp_path / folder, name) for name in "abc"] for folder in ("apart", "one"))
    assert all(values["pose"].shape == (1, 48) for values in one)
    assert np.ptp([values["betas"] for values in apart], axis=0).max() > 1e-3
    assert np.ptp([values["betas"] for values in one], axis=0).max() == 0
    for name, values in zip("abc", one, strict=True):
        person = json.loads((tmp_path / "one" / f"{name}.json").read_text())["people"][0]
        np.testing.assert_allclose(person["smpl"]["betas"], values["betas"][0], atol=1e-6)
        lines = (tmp_path / "one" / f"{name}.person0.obj").read_text().splitlines()
        mesh = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float) * (1, -1, -1)
        again = hand.vertices(values["pose"], values["betas"])[0] + values["translation"][0]
        error = 1000 * np.linalg.norm(again - mesh - person["translation_m"], axis=1).mean()
        assert error == pytest.approx(float(values["error_mm"][0]), abs=0.02)


def test_shape_weight_keeps_to_the_mean_shape(hand_bundle, picture, tmp_path, capsys):
    start = ["run", "--bundle", str(hand_bundle.path), str(picture), "--smpl-parameters", "--smpl", str(metro_folder())]
    for weight in ("0", "1000"):
        assert cli.main([*start, "-o", str(tmp_path / weight), "--smpl-shape-weight", weight]) == 0
    loose, tight = (np.abs(parameters(tmp_path / weight, "hand")["betas"]).max() for weight in ("0", "1000"))
    assert tight < 0.1 * loose
    capsys.readouterr()
    assert cli.main([*start, "-o", str(tmp_path / "bad"), "--smpl-shape-weight", "-1"]) == 2
    assert "shape_weight_mm2 must be a number from 0 on" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--smpl-parameters"], "--smpl-parameters needs --smpl PATH"),
        (["--smpl", "x"], "--smpl goes with --smpl-parameters"),
        (["--smpl-gender", "male"], "--smpl-gender goes with --smpl-parameters"),
        (["--smpl-shape-weight", "1"], "--smpl-shape-weight goes with --smpl-parameters"),
        (["--smpl-same-person"], "--smpl-same-person goes with --smpl-parameters"),
        (
            ["--smpl-parameters", "--smpl", "x", "--smpl-same-person", "--box", "1,1,9,9", "--box", "2,2,9,9"],
            "takes one person a picture, got 2 boxes",
        ),
        (["--smpl-parameters", "--smpl", "nowhere.pkl"], "nowhere.pkl"),
    ],
)
def test_mistakes(hand_bundle, picture, tmp_path, capsys, options, message):
    out = tmp_path / "out"
    assert cli.main(["run", "--bundle", str(hand_bundle.path), str(picture), "-o", str(out), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not out.exists()


def test_a_body_without_smpl_parameters(shared_bundle, picture, tmp_path, capsys):
    arguments = ["run", "--bundle", str(shared_bundle.path), str(picture), "-o", str(tmp_path / "out")]
    assert cli.main([*arguments, "--smpl-parameters", "--smpl", str(metro_folder())]) == 2
    assert "which has no SMPL or MANO parameters" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
