"""METRO's sets with bodies: poses become meshes that agree with joints and pictures, flipped and turned alike."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from metro_edge.errors import UserError
from metro_edge.joints import J24
from metro_edge.smpl.files import find_smpl, read_smpl
from metro_edge.smpl.model import SkinnedBody
from metro_edge.spec import ModelSpec
from tests.smpl_files import metro_folder, write_smpl
from training.bodies import body_template
from training.config import FitConfig
from training.data.augment import Change
from training.data.labelled import BadSampleError, make_item
from training.data.metro_sets import MetroTsvSet
from training.data.sets import MixedSet, open_sets
from training.data.tsv import write_tsv
from training.fit import fit

GAIN_PX = 40.0
CENTRE = np.array([70.0, 62.0])  # from the picture's corner
FACING = np.array([np.pi, 0, 0])  # turns SMPL's y-up body into the camera's frame


@pytest.fixture(scope="module")
def smpl() -> tuple[Any, ModelSpec, SkinnedBody]:
    template = body_template("smpl", metro_folder())
    spec = ModelSpec("test", 64, "h36m14", "smpl", 6890, crop_rule="metro_eval")
    return template, spec, SkinnedBody(read_smpl(find_smpl(metro_folder(), "neutral")))


def make_smpl_set(folder: Path, smpl: tuple[Any, ModelSpec, SkinnedBody], **changes: Any) -> Path:
    """Write 3 rows, the first two with poses, labelled as an orthographic camera sees them."""
    template, _, body = smpl
    rng = np.random.default_rng(0)
    jpeg = cv2.imencode(".jpg", rng.integers(0, 255, (120, 140, 3), np.uint8))[1].tobytes()
    labels = []
    for i in range(3):
        pose = np.concatenate([FACING, rng.normal(scale=0.2, size=69)])
        betas = rng.normal(size=10)
        points = template.joints("h36m14", body.vertices(pose[None], betas[None])[0])
        joints, flat = np.zeros((24, 4)), np.zeros((24, 3))
        rows = [*range(13), 18]
        joints[rows] = np.hstack((points, np.ones((14, 1))))
        flat[rows] = np.hstack((CENTRE - 0.5 + (points[:, :2] - points[2:4, :2].mean(0)) * GAIN_PX, np.ones((14, 1))))
        label: dict[str, Any] = {
            "center": CENTRE.tolist(), "scale": 0.5, "2d_joints": [flat.tolist()], "has_2d_joints": 1,
            "3d_joints": [joints.tolist()], "has_3d_joints": 1, "pose": pose.tolist(), "betas": betas.tolist(),
            "has_smpl": int(i < 2), "gender": "mf"[i % 2],
        }  # fmt: skip
        labels.append({key: value for key, value in {**label, **(changes if i == 1 else {})}.items() if value != ""})
    keys = [f"{i}.jpg" for i in range(3)]
    write_tsv(folder / "train.img.tsv", [(key, base64.b64encode(jpeg)) for key in keys])
    write_tsv(folder / "train.label.tsv", [(k, json.dumps([v])) for k, v in zip(keys, labels, strict=True)])
    path = folder / "train.yaml"
    path.write_text("img: train.img.tsv\nlabel: train.label.tsv\n")
    return path


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turn", [0.0, 0.8])
def test_meshes_of_poses_agree_with_the_joints(smpl: Any, tmp_path: Path, flip: bool, turn: float) -> None:
    template, spec, body = smpl
    data = MetroTsvSet(make_smpl_set(tmp_path, smpl), spec, template, body)
    item = make_item(data.picture(0), spec, Change(1.1, turn_rad=turn, flip=flip))
    regressed = template.joints("h36m14", item["vertices"].numpy())
    # A pose is mirrored by exchanging joints; the shape, not symmetric, stays as METRO leaves it.
    np.testing.assert_allclose(regressed, item["joints"], atol=0.05 if flip else 1e-5)
    projected = item["joints"][:, :2].numpy() * (2 * GAIN_PX / 100 / 1.1)
    np.testing.assert_allclose(projected, item["joints_2d"][:, :2], atol=1e-5)
    assert item["has_vertices"] == 1 and data[2]["has_vertices"] == 0


def test_a_flip_exchanges_the_hands(smpl: Any, tmp_path: Path) -> None:
    template, spec, body = smpl
    raised = np.zeros((24, 3))
    raised[0] = FACING
    raised[16, 2] = 1.2  # the left shoulder
    data = MetroTsvSet(make_smpl_set(tmp_path, smpl, pose=raised.ravel().tolist()), spec, template, body)
    plain, flipped = (
        template.joints("h36m14", make_item(data.picture(1), spec, Change(1.0, flip=flip))["vertices"].numpy())
        for flip in (False, True)
    )
    left, right = (spec.joints.index(f"{side}_wrist") for side in ("left", "right"))
    assert plain[left, 1] < plain[right, 1] - 0.3 and flipped[right, 1] < flipped[left, 1] - 0.3
    np.testing.assert_allclose(flipped[right], plain[left] * (-1, 1, 1), atol=0.05)


def test_stored_meshes_are_flipped_by_the_smpl_files_own_map(smpl: Any, tmp_path: Path) -> None:
    """Of rows with a mesh instead of a pose; the file's map is exact where the nearest vertex may be another."""
    template, spec, body = smpl
    unit = 1e-4
    mesh = np.rint((template.vertices - template.root("h36m14", template.vertices)) / unit).astype("<i2")
    stored = {"vertices_int16": base64.b64encode(mesh.tobytes()).decode(), "vertices_unit_m": unit}
    path = make_smpl_set(tmp_path, smpl, **stored)
    data = MetroTsvSet(path, spec, template, body, train=True, augmentation="metro")
    np.testing.assert_array_equal(data.mirror, body.file.mirror)
    item = make_item(data.picture(1), spec, Change(1.0, flip=True), mirror=data.mirror)
    np.testing.assert_allclose(item["vertices"], mesh[body.file.mirror] * (-unit, unit, unit), atol=1e-6)
    flips = 0
    for epoch in range(8):  # as training draws them: the same row, flipped or not
        data.set_epoch(epoch)
        assert data[1]["has_vertices"] == 1
        flips += data.augmentation.change(np.random.default_rng([0, epoch, 1]), spec, 1.0).flip
    assert 0 < flips < 8
    # On the made body the nearest vertices are the same map: another one tells whose is used.
    other = SkinnedBody(dataclasses.replace(body.file, mirror=np.arange(6890, dtype=np.int32)[::-1]))
    np.testing.assert_array_equal(MetroTsvSet(path, spec, template, other, train=True).mirror, np.arange(6890)[::-1])
    without = SkinnedBody(dataclasses.replace(body.file, mirror=None))
    nearest = MetroTsvSet(path, spec, template, without, train=True).mirror
    assert nearest is not None and (nearest[nearest] == np.arange(6890)).mean() > 0.9


def test_gendered_bodies_are_chosen_by_row(smpl: Any, tmp_path: Path) -> None:
    template, spec, neutral = smpl
    bodies = {gender: SkinnedBody(read_smpl(find_smpl(metro_folder(), gender))) for gender in ("male", "female")}
    path = make_smpl_set(tmp_path, smpl)
    data, plain = MetroTsvSet(path, spec, template, bodies), MetroTsvSet(path, spec, template, neutral)
    assert not torch.allclose(data[0]["vertices"], plain[0]["vertices"], atol=1e-4)
    only = {"male": bodies["male"]}
    torch.testing.assert_close(MetroTsvSet(path, spec, template, only)[0]["vertices"], data[0]["vertices"])
    with pytest.raises(BadSampleError, match=r"train\.label\.tsv:1: gender must be male, got 'f'"):
        MetroTsvSet(path, spec, template, only)[1]
    (tmp_path / "none").mkdir()
    path = make_smpl_set(tmp_path / "none", smpl, gender="")
    with pytest.raises(BadSampleError, match=r"train\.label\.tsv:1: gender must be male or female, got None"):
        MetroTsvSet(path, spec, template, bodies)[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pose": [0.0] * 48}, r"pose must have shape \(72,\), got \(48,\)"),
        ({"pose": [float("nan")] * 72}, "pose holds values that are not finite"),
        ({"betas": [0.0] * 300}, "betas must be up to 10 numbers"),
        ({"betas": ""}, "the label has no betas"),
    ],
)
def test_bad_poses_are_named(smpl: Any, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    template, spec, body = smpl
    with pytest.raises(BadSampleError, match=rf"train\.label\.tsv:1: {words}"):
        MetroTsvSet(make_smpl_set(tmp_path, smpl, **changes), spec, template, body)[1]


def test_poses_need_a_body_of_the_networks_size(smpl: Any, tmp_path: Path) -> None:
    template, spec, _ = smpl
    path = make_smpl_set(tmp_path, smpl)
    with pytest.raises(UserError, match=r"train\.label\.tsv:0 has a pose: give the SMPL or MANO file"):
        MetroTsvSet(path, spec, template, skip_bad=True)[0]
    assert MetroTsvSet(path, spec, template, meshes=False)[0]["has_vertices"] == 0
    small = SkinnedBody(read_smpl(find_smpl(metro_folder(), kind="mano")))
    with pytest.raises(UserError, match="mano file has 778 vertices, the network's body 'smpl' has 6890"):
        MetroTsvSet(path, spec, template, small)


def test_hands(tmp_path: Path) -> None:
    template = body_template("mano", metro_folder())
    spec = ModelSpec("hand", 64, "freihand21", "mano", 778, crop_rule="metro_eval")
    body = SkinnedBody(read_smpl(find_smpl(metro_folder(), kind="mano")))
    pose, betas = np.random.default_rng(0).normal(scale=0.1, size=48), np.zeros(10)
    joints = template.joints("freihand21", body.vertices(pose[None], betas[None])[0])
    label = {
        "center": [112, 112], "scale": 0.9, "2d_joints": np.ones((21, 3)).tolist(), "has_2d_joints": 1,
        "3d_joints": np.hstack((joints, np.ones((21, 1)))).tolist(), "has_3d_joints": 1, "has_smpl": 1,
        "pose": pose.tolist(), "betas": betas.tolist(),
    }  # fmt: skip
    jpeg = cv2.imencode(".jpg", np.zeros((224, 224, 3), np.uint8))[1].tobytes()
    write_tsv(tmp_path / "a.img.tsv", [("0.jpg", base64.b64encode(jpeg))])
    write_tsv(tmp_path / "a.label.tsv", [("0.jpg", json.dumps([label]))])
    (tmp_path / "a.yaml").write_text("img: a.img.tsv\nlabel: a.label.tsv\n")
    data = MetroTsvSet(tmp_path / "a.yaml", spec, template, body, train=True, augmentation="metro")
    for epoch in range(6):  # never flipped, however often
        data.set_epoch(epoch)
        item = data[0]
        np.testing.assert_allclose(template.joints("freihand21", item["vertices"].numpy()), item["joints"], atol=1e-5)
        assert item["joints"][0].abs().max() < 1e-6
    assert data.picture(0).side_px == 180 and data.picture(0).centre_px.tolist() == [111.5, 111.5]
    with pytest.raises(UserError, match=r"labels' joints \(freihand21\) lack right_ankle"):
        MetroTsvSet(tmp_path / "a.yaml", dataclasses.replace(spec, joint_set="h36m14"), template, body)[0]


def test_several_sets_as_one(smpl: Any, tmp_path: Path) -> None:
    template, spec, _ = smpl
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    paths = [str(make_smpl_set(tmp_path / "a", smpl)), str(make_smpl_set(tmp_path / "b", smpl, scale=0))]
    data = open_sets(paths, spec, template, str(metro_folder()), train=True, skip_bad=True, augmentation="metro")
    assert len(data) == 6 and data[3]["has_vertices"] == 1 and not data.skip_report()
    assert not torch.equal(data[0]["image"], data[3]["image"])  # the same row of equal sets, augmented otherwise
    assert data[4]["key"] == "train.label.tsv:2"
    assert data.skip_report().startswith("1 of 3 samples could not be used, such as: train.label.tsv:1: box of no size")
    before = data[0]["image"]
    data.set_epoch(1)
    assert not torch.equal(data[0]["image"], before)
    with pytest.raises(IndexError):
        data[6]
    with pytest.raises(UserError, match="is no data set: neither METRO's YAML file"):
        open_sets([str(tmp_path)], spec, template)
    with pytest.raises(UserError, match="there is no data set"):
        MixedSet([])
    with pytest.raises(UserError, match="the network's body is 'anny'"):
        open_sets(paths, dataclasses.replace(spec, body="anny"), template, str(write_smpl(tmp_path)))


def test_the_order_of_the_labels_is_metros() -> None:
    assert J24.index("pelvis") == 14 and J24.index("head_top") == 18 and J24.index("crown") == 13


def test_a_run_over_metros_sets(smpl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A body network in miniature learns from poses, 3D and 2D labels, and the run says what it could not use."""
    path = str(make_smpl_set(tmp_path, smpl, scale=0))
    block = {"hidden": 16, "layers": 1, "heads": 2, "ffn": 16}
    blocks = [{**block, "output": 16}, {**block, "output": 3}]
    config = FitConfig.from_dict(
        {
            "name": "mix",
            "model": {"preset": "metro_body_resnet50", "name": "mix", "blocks": blocks},
            "data": {
                "train_sets": [path], "validation_sets": [path], "smpl": str(metro_folder()), "augmentation": "metro",
                "skip_bad": True, "workers": 0,
            },
            "optim": {"epochs": 1, "batch_size": 3, "pretrained": False, "warmup_steps": 0},
            "crop_rule": "metro_eval",
            "body_path": str(metro_folder()),
        }
    )  # fmt: skip
    assert fit(config, tmp_path / "run").exists()
    assert capsys.readouterr().err.count("1 of 3 samples could not be used, such as: train.label.tsv:1: box of no") == 2


def test_the_configuration_in_the_docs_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "datasets" / "README.md").read_text(encoding="utf-8")
    block = next(part for part in page.split("```yaml\n")[1:] if "name: metro_h36m" in part).split("```")[0]
    values = yaml.safe_load(block)
    config = FitConfig.from_dict({**values, "body_path": str(metro_folder())})
    assert config.spec.crop_rule == "metro_eval" and config.data.augmentation == "metro"
    assert config.model.backbone == "hrnet_w64" and config.optim.schedule == "step"
