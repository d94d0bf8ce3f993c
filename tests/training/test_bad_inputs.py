"""What is wrong with data or bodies, through the commands and with workers: one line that names it, exit code 2."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from tests.smpl_files import metro_folder, write_smpl
from training.__main__ import main
from training.checkpoint import Checkpoint, build_model, save_checkpoint
from training.config import FitConfig
from training.data.tsv import lineidx_path, write_tsv

ROWS, BAD = 6, 3
Labels = list[dict[str, Any]]


def run_values(**data: Any) -> dict[str, Any]:
    """Plain values of a run of a small network with SMPL's mesh."""
    block = {"hidden": 16, "layers": 1, "heads": 2, "ffn": 16}
    return {
        "name": "small",
        "body_path": str(metro_folder()),
        "crop_rule": "metro_eval",
        "model": {
            "preset": "metro_body_resnet50",
            "backbone": "test_resnet",
            "image_size": 64,
            "blocks": [{**block, "output": 16}, {**block, "output": 3}],
        },
        "optim": {"epochs": 1, "batch_size": 2, "pretrained": False, "warmup_steps": 0},
        "data": {"workers": 1, "smpl": str(metro_folder()), "augmentation": "metro", **data},
    }


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("network") / "small.pt"
    config = FitConfig.from_dict(run_values(train_sets=["a.yaml"], validation_sets=["a.yaml"]))
    torch.manual_seed(0)
    save_checkpoint(path, Checkpoint(build_model(config).eval(), config))
    return str(path)


def write_set(folder: Path, change: Callable[[Labels], None] | None = None, gender: bool = True) -> Path:
    """One of METRO's sets with meshes, 3D and 2D joints; `change` spoils its labels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(4)
    labels: Labels = [
        {
            "center": [30, 30], "scale": 0.2, "has_2d_joints": 1, "has_3d_joints": 1, "has_smpl": 1,
            "3d_joints": np.column_stack((rng.normal(0, 0.3, (24, 3)), np.ones(24))).tolist(),
            "2d_joints": np.column_stack((rng.uniform(15, 45, (24, 2)), np.ones(24))).tolist(),
            "pose": rng.normal(0, 0.2, 72).tolist(), "betas": rng.normal(0, 1, 10).tolist(),
            **({"gender": "fm"[i % 2]} if gender else {}),
        }
        for i in range(ROWS)
    ]  # fmt: skip
    if change:
        change(labels)
    keys = [f"{i}.jpg" for i in range(ROWS)]
    picture = base64.b64encode(cv2.imencode(".jpg", rng.integers(0, 255, (60, 60, 3), np.uint8))[1].tobytes())
    write_tsv(folder / "test.img.tsv", [(key, picture) for key in keys])
    write_tsv(folder / "test.label.tsv", [(k, json.dumps([v])) for k, v in zip(keys, labels, strict=True)])
    (folder / "test.yaml").write_text("img: test.img.tsv\nlabel: test.label.tsv\n")
    return folder / "test.yaml"


def spoil(key: str, value: Any) -> Callable[[Labels], None]:
    return lambda labels: labels[BAD].update({key: value})


def the_error(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command printed."""
    captured = capsys.readouterr()
    errors = [line for line in captured.err.replace("\r", "\n").splitlines() if "error: " in line]
    assert code == 2 and len(errors) == 1, captured.err
    assert "Traceback" not in errors[0] and "worker process" not in errors[0]
    return errors[0].split("error: ", 1)[1]


def cut_picture(folder: Path) -> None:
    rows = [line.split(b"\t") for line in (folder / "test.img.tsv").read_bytes().splitlines()]
    rows[BAD][1] = base64.b64encode(base64.b64decode(rows[BAD][1])[:-200])
    write_tsv(folder / "test.img.tsv", rows)


ROW_CASES: dict[str, tuple[Any, Any, str]] = {
    "zero-sized box": (spoil("scale", 0), None, r"test.label.tsv:3: box of no size: scale is 0"),
    "NaN label": (spoil("3d_joints", [[float("nan"), 0, 0, 1]] * 24), None, "test.label.tsv:3: 3d_joints holds values"),
    "NaN pose": (spoil("pose", [float("nan")] * 72), None, "test.label.tsv:3: pose holds values that are not finite"),
    "picture": (None, cut_picture, r"test.img.tsv:3 (3.jpg): the picture (last column, "),
}


@pytest.mark.parametrize("case", ROW_CASES)
def test_bad_rows_stop_an_evaluation_or_are_counted(
    case: str, network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, damage, words = ROW_CASES[case]
    data = write_set(tmp_path / "set", change)
    if damage:
        damage(data.parent)
    command = ["evaluate", network, "--protocol", "up3d", "--data", str(data), "--smpl", str(metro_folder())]
    command += ["--workers", "1", "-o", str(tmp_path / "report.json")]
    assert the_error(main(command), capsys).startswith(words)
    assert not (tmp_path / "report.json").exists()
    assert main([*command, "--skip-bad"]) == 0
    (row,) = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert row["samples"] == ROWS - 1 and row["skipped"][0].startswith(words)
    assert "metro_eval: 1 bad samples left out" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["picture", pytest.param("zero-sized box", marks=pytest.mark.slow)])
def test_bad_rows_stop_a_training_or_are_counted(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, damage, words = ROW_CASES[case]
    good, bad = write_set(tmp_path / "good"), write_set(tmp_path / "bad", change)
    if damage:
        damage(bad.parent)
    values = run_values(train_sets=[str(bad)], validation_sets=[str(good)])
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    command = ["fit", str(tmp_path / "run.yaml"), "-o", str(tmp_path / "run")]
    assert the_error(main(command), capsys).startswith(words)
    values["data"]["skip_bad"] = True
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    assert main(command) == 0
    assert f"1 of {ROWS} samples could not be used, such as: {words}" in capsys.readouterr().err


def stale(folder: Path) -> None:
    index = lineidx_path(folder / "test.label.tsv")
    numbers = index.read_text().split()
    index.write_text("\n".join([*numbers[:BAD], str(int(numbers[BAD]) + 2), *numbers[BAD + 1 :], ""]))


def cut(folder: Path) -> None:
    path = folder / "test.label.tsv"
    path.write_bytes(path.read_bytes()[:-20])


def drop_picture(folder: Path) -> None:
    lines = (folder / "test.img.tsv").read_bytes().splitlines()[:-1]
    write_tsv(folder / "test.img.tsv", [line.split(b"\t") for line in lines])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (stale, "test.label.tsv:3: row 3 does not begin where the index says; test.label.lineidx is stale"),
        (cut, "test.label.tsv:5: row 5 has no line end: the file is cut short"),
        (drop_picture, "test.label.tsv has 6 rows, "),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_files_that_do_not_belong_together_always_stop(
    damage: Any, words: str, skip: bool, network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_set(tmp_path / "set")
    damage(data.parent)
    command = ["evaluate", network, "--protocol", "up3d", "--data", str(data), "--smpl", str(metro_folder())]
    assert words in the_error(main([*command, *["--skip-bad"] * skip]), capsys)


def test_a_gender_that_is_missing(network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_set(tmp_path / "set", gender=False)
    command = ["evaluate", network, "--protocol", "3dpw-gendered", "--data", str(data), "--smpl", str(metro_folder())]
    error = the_error(main([*command, "--workers", "1"]), capsys)
    assert error == "test.label.tsv:0: gender must be male or female, got None"


def test_another_version_of_smpl(network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_set(tmp_path / "set")
    (tmp_path / "smpl").mkdir()
    other = write_smpl(tmp_path / "smpl", kintree_table=np.zeros((2, 55)))
    command = ["evaluate", network, "--protocol", "up3d", "--data", str(data), "--smpl", str(tmp_path / "smpl")]
    error = the_error(main(command), capsys)
    assert error.startswith(f"{other} has 6890 vertices and 55 joints (SMPL-X); SMPL has 6890 and 24")
    values = run_values(train_sets=[str(data)], validation_sets=[str(data)], smpl=str(tmp_path / "smpl"))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    assert the_error(main(["fit", str(tmp_path / "run.yaml"), "-o", str(tmp_path / "run")]), capsys) == error


def test_numbers_and_places_are_tried_before_the_work(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data are not there either: what comes first is what was given on the command line."""
    command = ["evaluate", network, "--protocol", "up3d", "--data", "nowhere.yaml"]
    for more, words in (
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--workers", "-1"], "--workers must be at least 0, got -1"),
        (["--count", "0"], "--count must be at least 1, got 0"),
        (["-o", str(tmp_path / "none" / "report.json")], f"cannot write {tmp_path / 'none' / 'report.json'}: No such"),
        (["-o", str(tmp_path)], f"cannot write {tmp_path}: a folder is in the way"),
    ):
        assert the_error(main([*command, *more]), capsys).startswith(words)
    hand = ["evaluate", network, "--protocol", "freihand", "--data", "nowhere"]
    error = the_error(main([*hand, "--submission", str(tmp_path / "none" / "pred.zip")]), capsys)
    assert error.startswith(f"cannot write {tmp_path / 'none' / 'pred.zip'}")
    error = the_error(main([*hand, "--submission", str(tmp_path / "pred.zip"), "--count", "3"]), capsys)
    assert error == "--submission needs every picture of the set: leave --count away"
    assert list(tmp_path.iterdir()) == []
