"""Each of METRO's data sets: made files in the folders and with the labels that its page names, read back."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import yaml

from metro_edge.joints import J24
from metro_edge.smpl.model import SkinnedBody
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from tests.smpl_files import metro_folder
from training.bodies import body_template
from training.bodies.smpl import skinned_body
from training.data.metro_sets import MetroTsvSet
from training.data.tsv import write_tsv

SPEC = ModelSpec("made", 64, "h36m14", "smpl", 6890, crop_rule="metro_eval")
ORDER = [J24.names.index(name) for name in SPEC.joints.names]
ROWS, USED = 3, (2, 0)


class Layout(NamedTuple):
    """Where a set's files lie and what its labels have."""

    img: str
    label: str
    linelist: str
    mesh: bool
    joints: bool
    missing_2d: tuple[str, ...] = ()  # joints whose confidence is 0


LAYOUTS = {
    "human3.6m": Layout(
        "human3.6m/train.img.tsv", "human3.6m/smpl/train.label.smpl.p1.tsv",
        "human3.6m/smpl/train.linelist.smpl.p1.tsv", mesh=True, joints=True,
    ),
    "muco": Layout("muco/train.img.tsv", "muco/train.label.tsv", "muco/train.linelist.tsv", mesh=True, joints=True),
    "up3d": Layout(
        "up3d/trainval.img.tsv", "up3d/trainval.label.tsv", "up3d/trainval.linelist.tsv", mesh=True, joints=False
    ),
    "coco": Layout(
        "coco_smpl/train.img.tsv", "coco_smpl/smpl/train.label.tsv", "coco_smpl/smpl/train.linelist.tsv",
        mesh=True, joints=False, missing_2d=("neck", "head_top"),
    ),
    "mpii": Layout(
        "mpii/train.img.tsv", "mpii/train.label.tsv", "mpii/train.linelist.tsv",
        mesh=False, joints=False, missing_2d=("head_top",),
    ),
    "3dpw": Layout("3dpw/train.img.tsv", "3dpw/train.label.tsv", "3dpw/train.linelist.tsv", mesh=True, joints=True),
}  # fmt: skip


@pytest.fixture(scope="module")
def smpl() -> tuple[BodyTemplate, SkinnedBody]:
    return body_template("smpl", metro_folder()), skinned_body(metro_folder())


def write_layout(folder: Path, name: str) -> list[dict[str, Any]]:
    """Write a set of ROWS pictures, whose grey level tells the row; returns its labels."""
    layout, rng = LAYOUTS[name], np.random.default_rng(list(LAYOUTS).index(name))
    files: dict[str, list[Any]] = {"img": [], "label": [], "hw": []}
    labels = []
    for i in range(ROWS):
        _, jpeg = cv2.imencode(".jpg", np.full((90, 110, 3), 30 + 40 * i, np.uint8))
        flat = np.column_stack((rng.uniform(20, 80, (24, 2)), np.ones(24)))
        flat[[J24.names.index(n) for n in layout.missing_2d]] = 0
        label = {
            "center": [55.0 + i, 45.0], "scale": 0.4 + 0.1 * i, "has_2d_joints": 1, "2d_joints": [flat.tolist()],
            "has_3d_joints": int(layout.joints), "has_smpl": int(layout.mesh),
            "3d_joints": [np.column_stack((rng.normal(0, 0.3, (24, 3)), np.ones(24))).tolist()],
            "pose": rng.normal(0, 0.2, 72).tolist(), "betas": rng.normal(0, 1, 10).tolist(), "gender": "mf"[i % 2],
        }  # fmt: skip
        labels.append(label)
        files["img"].append((f"{name}/{i}.jpg", base64.b64encode(jpeg.tobytes())))
        files["label"].append((f"{name}/{i}.jpg", json.dumps([label])))
        files["hw"].append((f"{name}/{i}.jpg", json.dumps([{"height": 90, "width": 110}])))
    paths = {"img": layout.img, "label": layout.label, "hw": layout.img.replace(".img.", ".hw.")}
    for kind, path in paths.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_tsv(folder / path, files[kind])
    (folder / layout.linelist).write_text("".join(f"{row}\n" for row in USED))
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**paths, "linelist": layout.linelist}))
    return labels


def check_row(
    data: MetroTsvSet, index: int, layout: Layout, row: int, label: dict[str, Any], smpl: tuple[Any, SkinnedBody]
) -> None:
    template, body = smpl
    picture, item = data.picture(index), data[index]
    assert abs(float(picture.image.mean()) - (30 + 40 * row)) < 2
    assert picture.centre_px.tolist() == [54.5 + row, 44.5] and picture.side_px == pytest.approx(200 * label["scale"])
    wanted = (float(layout.mesh), float(layout.joints), 1.0)
    assert tuple(float(item[f"has_{kind}"]) for kind in ("vertices", "joints", "joints_2d")) == wanted
    np.testing.assert_allclose(picture.joints_2d, np.array(label["2d_joints"][0])[ORDER], atol=1e-5)
    assert [SPEC.joints.names[j] for j in np.flatnonzero(picture.joints_2d[:, 2] == 0)] == [
        name for name in SPEC.joints.names if name in layout.missing_2d
    ]
    if layout.joints:
        points = np.array(label["3d_joints"][0])[ORDER, :3]
        np.testing.assert_allclose(picture.joints[:, :3], points - points[2:4].mean(0), atol=1e-6)
    if layout.mesh:
        mesh = body.vertices(np.array(label["pose"])[None], np.array(label["betas"])[None])[0]
        np.testing.assert_allclose(picture.vertices, mesh - template.joints("h36m14", mesh)[2:4].mean(0), atol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_was_written_comes_back(name: str, smpl: tuple[Any, SkinnedBody], tmp_path: Path) -> None:
    labels = write_layout(tmp_path, name)
    data = MetroTsvSet(tmp_path / f"{name}.yaml", SPEC, *smpl)
    assert [data.name(i) for i in range(len(data))] == [f"{name}/{row}.jpg" for row in USED]
    for index, row in enumerate(USED):
        check_row(data, index, LAYOUTS[name], row, labels[row], smpl)


def test_metros_mix_of_them_all(smpl: tuple[Any, SkinnedBody], tmp_path: Path) -> None:
    """The composite form: lists of files, and a linelist of (file, row)."""
    labels = {name: write_layout(tmp_path, name) for name in LAYOUTS}
    places = [(k, row) for row in USED for k in range(len(LAYOUTS))]
    (tmp_path / "mix.linelist.tsv").write_text("".join(f"{k}\t{row}\n" for k, row in places))
    lists = {
        "img": [layout.img for layout in LAYOUTS.values()],
        "label": [layout.label for layout in LAYOUTS.values()],
        "hw": [layout.img.replace(".img.", ".hw.") for layout in LAYOUTS.values()],
    }
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump({**lists, "composite": True, "linelist": "mix.linelist.tsv"}))
    data = MetroTsvSet(tmp_path / "mix.yaml", SPEC, *smpl)
    assert len(data) == len(places)
    names = list(LAYOUTS)
    for index, (k, row) in enumerate(places):
        check_row(data, index, LAYOUTS[names[k]], row, labels[names[k]][row], smpl)
        assert data.name(index) == f"{LAYOUTS[names[k]].label}_{names[k]}/{row}.jpg"
