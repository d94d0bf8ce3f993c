"""SMPL and MANO templates as METRO builds them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from metro_edge.bundle import Bundle, write_bundle
from metro_edge.errors import UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.joints import FREIHAND21, H36M14, H36M17
from metro_edge.smpl.files import Downsampling, find_smpl, read_downsampling, read_smpl
from metro_edge.smpl.model import SkinnedBody
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from tests.metro_edge.conftest import PASSPORT, made_network
from tests.smpl_files import h36m_regressor, metro_folder, smpl_arrays
from training.__main__ import main
from training.bodies import body_template, parse_body, smpl
from training.checkpoint import template_points
from training.model import preset


@pytest.fixture(scope="module")
def body() -> BodyTemplate:
    return body_template("smpl", metro_folder())


@pytest.fixture(scope="module")
def hand() -> BodyTemplate:
    return body_template("mano", metro_folder())


def test_body_is_the_rest_pose_turned_and_centred_as_released(body: BodyTemplate) -> None:
    assert body.level_sizes == (431, 1723, 6890)
    # METRO: zero pose but for 3.1416 about x at the root, then less the pelvis of its Human3.6M regressor.
    model = SkinnedBody(read_smpl(find_smpl(metro_folder())))
    pose = np.zeros((1, 72))
    pose[0, 0] = 3.1416
    released = model.vertices(pose, np.zeros((1, 10)))[0]
    regressor = h36m_regressor(smpl_arrays()["J_regressor"])
    released -= regressor[0] @ released
    np.testing.assert_allclose(body.vertices, released, atol=2e-5)
    joints = regressor[[3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10]] @ released  # H36M_J17_TO_J14
    np.testing.assert_allclose(body.joints_at_rest("h36m14"), joints, atol=2e-5)
    levels = read_downsampling(metro_folder() / "mesh_downsampling.npz")
    np.testing.assert_array_equal(body.vertices[body.level_vertices[0]], body.vertices[levels.down[0]][levels.down[1]])


def test_body_frame(body: BodyTemplate) -> None:
    np.testing.assert_allclose(body.root("h36m17", body.vertices), 0, atol=1e-6)
    joints = dict(zip(H36M14.names, body.joints("h36m14", body.vertices), strict=True))
    assert joints["head_top"][1] < joints["neck"][1] < 0 < joints["right_knee"][1] < joints["right_ankle"][1]
    # Facing the camera, the body's right side is on the image's left.
    assert joints["right_wrist"][0] < joints["right_hip"][0] < 0 < joints["left_wrist"][0]
    assert H36M17.names[0] == "pelvis"


def test_faces_still_point_outwards(body: BodyTemplate) -> None:
    def volume(vertices: np.ndarray) -> float:
        corners = vertices[body.faces].astype(np.float64)
        return float(np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6)

    assert volume(body.vertices) == pytest.approx(volume(smpl_arrays()["v_template"]), rel=1e-3)


def test_levels_agree(body: BodyTemplate, hand: BodyTemplate) -> None:
    for template in (body, hand):
        for i, step in enumerate(template.upsampling):
            coarse, fine = template.level_vertices[i], template.level_vertices[i + 1]
            assert set(coarse) <= set(fine)
            made = step @ template.vertices[coarse]
            where = {int(v): row for row, v in enumerate(fine)}
            kept = [where[int(v)] for v in coarse]
            np.testing.assert_allclose(made[kept], template.vertices[coarse], atol=1e-5)
        assert all(0 < error < 20 for error in smpl.upsampling_errors(template).values())


def test_hand_is_the_mean_pose_centred_on_the_wrist(hand: BodyTemplate) -> None:
    assert hand.level_sizes == (195, 778)
    model = SkinnedBody(read_smpl(find_smpl(metro_folder(), kind="mano")))
    zeros = np.zeros((1, 48)), np.zeros((1, 10))
    vertices, joints = model.vertices(*zeros)[0], model.joints(*zeros)[0]
    np.testing.assert_allclose(hand.vertices, vertices - joints[0], atol=1e-6)
    rest = dict(zip(FREIHAND21.names, hand.joints_at_rest("freihand21"), strict=True))
    np.testing.assert_array_equal(rest["wrist"], 0)
    # METRO's template has MANO's rotation centres, and vertices for the finger tips.
    for name, joint in (("thumb_1", 13), ("index_1", 1), ("middle_2", 5), ("ring_3", 12), ("little_3", 9)):
        np.testing.assert_allclose(rest[name], joints[joint] - joints[0], atol=1e-6)
    for name, vertex in (("thumb_4", 745), ("index_4", 317), ("middle_4", 444), ("ring_4", 556), ("little_4", 673)):
        np.testing.assert_allclose(rest[name], vertices[vertex] - joints[0], atol=1e-6)


def test_hand_regressor_is_metros(hand: BodyTemplate) -> None:
    joints = dict(zip(FREIHAND21.names, hand.joints("freihand21", hand.vertices), strict=True))
    np.testing.assert_array_equal(joints["middle_4"], hand.vertices[445])  # not the template's 444
    model = read_smpl(find_smpl(metro_folder(), kind="mano"))
    np.testing.assert_allclose(joints["little_2"], model.joint_regressor[8] @ hand.vertices, atol=1e-6)
    rest = hand.joints_at_rest("freihand21")
    assert 1e-5 < np.linalg.norm(rest - hand.joints("freihand21", hand.vertices), axis=1).max() < 0.02
    for finger in ("thumb", "index", "middle", "ring", "little"):  # each finger runs outwards
        lengths = [np.linalg.norm(joints[f"{finger}_{k}"] - joints["wrist"]) for k in range(1, 5)]
        assert lengths == sorted(lengths)


@pytest.mark.parametrize("name", ["smpl", "mano"])
def test_saved_template_is_the_one_made_from_the_folder(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    template = request.getfixturevalue({"smpl": "body", "mano": "hand"}[name])
    template.save(tmp_path / "t.npz")
    again = body_template(name, tmp_path / "t.npz")
    assert (again.name, again.level_sizes, again.licence) == (name, template.level_sizes, template.licence)
    assert "not to be passed on" in again.licence
    np.testing.assert_array_equal(again.vertices, template.vertices)
    for joint_set in template.regressors:
        np.testing.assert_array_equal(again.joints_at_rest(joint_set), template.joints_at_rest(joint_set))
    for ours, theirs in zip(again.upsampling, template.upsampling, strict=True):
        np.testing.assert_array_equal(ours.weights, theirs.weights)


def test_a_bundle_of_the_body(body: BodyTemplate, tmp_path: Path) -> None:
    onnx.save(made_network(body), tmp_path / "tiny.onnx")
    spec = ModelSpec("tiny", 64, "h36m14", "smpl", 6890)
    write_bundle(tmp_path / "bundle", spec, body, {"fp32": tmp_path / "tiny.onnx"}, PASSPORT)
    again = Bundle.load(tmp_path / "bundle")
    np.testing.assert_array_equal(again.template.vertices, body.vertices)
    with MeshEstimator.from_bundle(again, backend="onnxruntime") as estimator:
        (person,) = estimator(np.full((80, 60, 3), 128, np.uint8), np.array([[0, 0, 60, 80]], np.float32))
    assert person.vertices.shape == (6890, 3) and np.array_equal(person.faces, body.faces)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], body: BodyTemplate) -> None:
    output = tmp_path / "smpl.npz"
    assert main(["body", "smpl", "--folder", str(metro_folder()), "-o", str(output)]) == 0
    assert "smpl: levels (431, 1723, 6890)" in (text := capsys.readouterr().out)
    assert "1723 to 6890 vertices at rest" in text and "licence: SMPL" in text
    np.testing.assert_array_equal(body_template("smpl", output).vertices, body.vertices)
    files = ["--model", str(metro_folder() / "MANO_RIGHT.pkl")]
    files += ["--downsampling", str(metro_folder() / "mano_downsampling.npz")]
    assert main(["body", "mano", *files, "-o", str(tmp_path / "mano.npz")]) == 0
    assert body_template("mano", tmp_path / "mano.npz").level_sizes == (195, 778)


def test_command_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["-o", str(tmp_path / "x.npz")]
    model = str(metro_folder() / "MANO_RIGHT.pkl")
    for arguments, message in (
        (["mano"], "body mano needs --model and --downsampling, or --folder"),
        (["smpl", "--model", model], "body smpl needs --downsampling and --regressor, or --folder"),
        (["--model", model], "--model belongs to smpl and mano"),
        (["smpl", "--folder", str(metro_folder()), "--model", model], "made of a SMPL model; this is MANO"),
        (["smpl", "--folder", str(tmp_path)], "no neutral SMPL model in"),
        (["smpl", "--folder", str(metro_folder()), "--gender", "x"], "unknown gender 'x'"),
    ):
        assert main(["body", *arguments, *output]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_input(body: BodyTemplate, hand: BodyTemplate, tmp_path: Path) -> None:
    model = read_smpl(find_smpl(metro_folder(), kind="mano"))
    levels = read_downsampling(metro_folder() / "mano_downsampling.npz")
    with pytest.raises(UserError, match="the template 'smpl' is made of a SMPL model; this is MANO"):
        smpl.smpl_template(model, levels, np.zeros((17, 6890), np.float32))
    with pytest.raises(UserError, match=r"levels of MANO are \[778, 195\] vertices; these are \[778, 195, 49\]"):
        smpl.mano_template(model, levels)
    with pytest.raises(UserError, match="smpl and mano are made from one, 'anny' is read from a template file"):
        body_template("anny", metro_folder())
    with pytest.raises(UserError, match="no neutral SMPL model"):
        body_template("smpl", tmp_path)
    with pytest.raises(UserError, match="unknown body 'smpl'.*smpl=PATH"):
        body_template("smpl")
    hand.save(tmp_path / "hand.npz")
    with pytest.raises(UserError, match="holds the body 'mano', not 'smpl'"):
        body_template("smpl", tmp_path / "hand.npz")
    assert dataclasses.replace(levels, sizes=(778, 195)).sizes == smpl.MANO_LEVELS and isinstance(levels, Downsampling)


def test_what_enters_a_hand_network_are_its_own_joints_not_the_regressors(hand: BodyTemplate) -> None:
    joints, vertices = template_points(hand, preset("metro_hand_hrnet_w64"))
    np.testing.assert_array_equal(joints, hand.rest_joints["freihand21"])
    assert np.abs(joints - hand.joints("freihand21", hand.vertices)).max() > 1e-3
    np.testing.assert_array_equal(vertices, hand.vertices[hand.level_vertices[0]])


def test_the_model_that_makes_meshes_of_poses(tmp_path: Path) -> None:
    folder = metro_folder()
    one = smpl.skinned_body(find_smpl(folder))
    assert (one.file.kind, smpl.skinned_body(folder).file.sha256) == ("smpl", one.file.sha256)
    assert smpl.skinned_body(folder, kind="mano").file.kind == "mano"
    with pytest.raises(UserError, match="is one file: gendered bodies need the folder"):
        smpl.skinned_body(find_smpl(folder), "female")
    with pytest.raises(UserError, match="is not a folder with SMPL files"):
        smpl.skinned_body(tmp_path / "nowhere")


def test_a_body_on_a_command_line() -> None:
    assert parse_body("smpl=a=b") == ("smpl", "a=b")
    for text in ("smpl", "=path", "smpl="):
        with pytest.raises(UserError, match="NAME=PATH"):
            parse_body(text)
