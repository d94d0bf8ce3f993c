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


@pytest.mark.parametrize(
    "options, message",
    [
        (["--smpl-parameters"], "--smpl-parameters needs --smpl PATH"),
        (["--smpl", "x"], "--smpl and --smpl-gender go with --smpl-parameters"),
        (["--smpl-gender", "male"], "--smpl and --smpl-gender go with --smpl-parameters"),
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
