"""Generated people as a TSV set: the same items and losses as from the shards they were written from."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metro_edge.errors import UserError
from tests.training.conftest import tiny_values
from training.__main__ import main
from training.config import DataConfig, FitConfig
from training.data.metro_sets import MetroTsvSet, open_rows
from training.data.shards import ShardedPeople
from training.data.tsv import TsvFile, label_of
from training.data.tsv_export import export_people
from training.fit import fit


@pytest.fixture(scope="module")
def exported(shards: Path, spec: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_people(ShardedPeople(shards, spec).first(6), tmp_path_factory.mktemp("tsv"))


@pytest.mark.parametrize("train", [False, True])
def test_items_are_those_of_the_shards(exported: Path, shards: Path, spec: Any, template: Any, train: bool) -> None:
    people = ShardedPeople(shards, spec, train=train, seed=2)
    data = MetroTsvSet(exported, spec, template, train=train, seed=2)
    for index in range(6):
        a, b = people[index], data[index]
        assert set(a) == set(b) and b["key"] == f"train.label.tsv:{index}"
        torch.testing.assert_close(a["joints"], b["joints"], atol=1e-6, rtol=0)  # centred once more
        for name in a.keys() - {"key", "joints", "joints_visible"}:  # who hides whom is not in METRO's labels
            assert torch.equal(a[name], b[name]), name


def test_a_set_that_was_cut_must_say_so_consistently(exported: Path, spec: Any, template: Any, tmp_path: Path) -> None:
    for path in exported.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = exported.read_text()
    for margin, words in (("2.0", r"train\.label\.tsv:0: the set was cut with a margin of 2"), ("0.5", "at least 1")):
        (tmp_path / "train.yaml").write_text(text.replace("1.25", margin))
        with pytest.raises(UserError, match=words):
            MetroTsvSet(tmp_path / "train.yaml", spec, template)[0]


def test_without_that_entry_the_crop_is_cut_from_the_label(exported: Path, spec: Any, template: Any) -> None:
    """What METRO's own code, which knows no such entry, reads from the labels is the same crop."""
    rows = dataclasses.replace(open_rows(exported), cut_with_margin=0.0)
    a, b = MetroTsvSet(exported, spec, template)[2], MetroTsvSet(rows, spec, template)[2]
    torch.testing.assert_close(a["joints_2d"], b["joints_2d"], atol=1e-6, rtol=0)
    assert (a["image"] - b["image"]).abs().mean() < 0.05  # box_area takes more samples a pixel


def test_what_metro_needs_is_in_the_labels(exported: Path, spec: Any) -> None:
    file = TsvFile(exported.parent / "train.label.tsv")
    label = label_of(file.row(3), "x")
    assert file.key(3) == "seed5_00000003.jpg"
    assert np.shape(label["2d_joints"]) == (1, 24, 3) and np.shape(label["3d_joints"]) == (1, 24, 4)
    joints = np.array(label["3d_joints"][0])
    np.testing.assert_allclose(joints[14, :3], joints[2:4, :3].mean(0), atol=1e-7)  # the pelvis, METRO's origin
    assert set(np.flatnonzero(joints[:, 3] == 0)) == {13, 15, 16, 17}
    assert len(label["pose"]) == 72 and len(label["betas"]) == 10 and label["has_smpl"] == 0
    with pytest.raises(UserError, match="set's name must be a file name"):
        export_people(ShardedPeople.__new__(ShardedPeople), exported.parent, "a/b")


def run_values(tiny_run: dict[str, Any], folder: Path) -> dict[str, Any]:
    values = tiny_run | {"optim": tiny_run["optim"] | {"epochs": 1}}
    return values | {
        "data": values["data"]
        | {"train_sets": [str(folder / "train.yaml")], "validation_sets": [str(folder / "validation.yaml")]}
    }


def losses(folder: Path) -> dict[str, list[float]]:
    with open(folder / "csv" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith(("train/", "validation/"))]
    return {name: [float(row[name]) for row in rows if row[name]] for name in names}


def test_training_from_the_set_gives_the_losses_of_training_from_the_shards(
    tiny_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = tiny_run | {"optim": tiny_run["optim"] | {"epochs": 1}}
    fit(FitConfig.from_dict(values), tmp_path / "shards")
    (tmp_path / "run.yaml").write_text(json.dumps(values))  # JSON is YAML
    assert main(["tsv", str(tmp_path / "run.yaml"), "-o", str(tmp_path / "tsv")]) == 0
    assert f"wrote {tmp_path / 'tsv' / 'validation.yaml'}" in capsys.readouterr().out
    fit(FitConfig.from_dict(run_values(tiny_run, tmp_path / "tsv")), tmp_path / "from_tsv")
    expected, found = losses(tmp_path / "shards"), losses(tmp_path / "from_tsv")
    assert expected.keys() == found.keys() and len(expected["train/loss"]) >= 1
    assert {"train/vertices", "validation/mpvpe_mm"} <= expected.keys()
    for name, rows in expected.items():
        assert found[name] == pytest.approx(rows, rel=1e-4), name  # all but `joints`, to 1e-6 m, is bit-equal


def test_the_command_writes_as_many_as_asked_for(
    tiny_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(json.dumps(tiny_run | {"data": tiny_run["data"] | {"folder": str(tmp_path)}}))
    command = ["tsv", str(tmp_path / "run.yaml"), "-o", str(tmp_path / "tsv"), "--count"]
    assert main([*command, "2"]) == 0 and len(TsvFile(tmp_path / "tsv" / "train.img.tsv")) == 2
    assert main([*command, "0"]) == 2 and "count must be at least 1" in capsys.readouterr().err


def test_configurations_of_data_sets() -> None:
    config = FitConfig.from_dict(tiny_values(data={"train_sets": ["a.yaml"], "validation_sets": ["b.yaml"]}))
    assert config.data.train_sets == ("a.yaml",) and FitConfig.from_dict(config.to_dict()) == config
    for data, words in (
        ({"train_sets": ["a.yaml"]}, "give both train_sets and validation_sets"),
        ({"train_sets": "a.yaml"}, "train_sets must be a list of names"),
        ({"train_sets": [1]}, "train_sets must be a list of names"),
        ({"skip_bad": True}, "are for train_sets"),
        ({"augmentation": "wild"}, "unknown augmentation 'wild'"),
    ):
        with pytest.raises(UserError, match=words):
            FitConfig.from_dict(tiny_values(data=data))
    assert DataConfig().train_sets == ()
