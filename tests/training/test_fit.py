"""Training runs: they learn, stop, resume and say what they did."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import yaml

from metro_edge.errors import UserError
from training.__main__ import main
from training.checkpoint import load_checkpoint
from training.config import FitConfig
from training.fit import fit
from training.module import MetroModule, learning_rate_factor


@pytest.fixture
def values(tiny_run: dict[str, Any]) -> dict[str, Any]:
    return tiny_run


def _rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "csv" / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_everything_it_promises(values: dict[str, Any], tmp_path: Path) -> None:
    config = FitConfig.from_dict(values)
    best = fit(config, tmp_path / "run")
    checkpoint = load_checkpoint(best)
    assert checkpoint.config == config
    logged = {key for row in _rows(tmp_path / "run") for key, value in row.items() if value}
    assert {"train/loss", "validation/mpjpe_mm", "validation/pa_mpjpe_mm", "validation/mpvpe_mm"} <= logged
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    sheets = sorted((tmp_path / "run" / "pictures").glob("step-*.jpg"))
    assert len(sheets) == 2
    assert cv2.imread(str(sheets[0])).shape == (2 * 64, 4 * 2 * 64, 3)
    with pytest.raises(UserError, match="already holds a run"):
        fit(config, tmp_path / "run")


def test_resuming_gives_what_an_unbroken_run_gives(values: dict[str, Any], tmp_path: Path) -> None:
    values = values | {"model": values["model"] | {"dropout": 0.0, "mvm_fraction": 0.0}}
    config = FitConfig.from_dict(values)
    fit(config, tmp_path / "whole")
    fit(config, tmp_path / "broken", max_steps=4)  # one epoch
    fit(config, tmp_path / "broken", resume=True)
    whole, broken = (load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "broken"))
    for (name, a), b in zip(whole.model.state_dict().items(), broken.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


def test_nothing_to_resume(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to resume"):
        fit(FitConfig.from_dict(values), tmp_path, resume=True)


def test_batch_norm_keeps_its_statistics_and_only_the_backbone_does(values: dict[str, Any], tmp_path: Path) -> None:
    config = FitConfig.from_dict(values)
    fit(config, tmp_path / "run", max_steps=3)
    trained = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").model.state_dict()
    fresh = MetroModule(config).model.state_dict()
    means = [name for name in fresh if name.endswith("running_mean")]
    assert means and all(torch.equal(trained[name], fresh[name]) for name in means)


def test_the_template_prediction_improves_on_a_few_samples(values: dict[str, Any], tmp_path: Path) -> None:
    optim = values["optim"] | {"epochs": 12}
    fit(FitConfig.from_dict(values | {"optim": optim}), tmp_path / "run")
    losses = [float(row["train/loss"]) for row in _rows(tmp_path / "run") if row.get("train/loss")]
    assert losses[-1] < 0.8 * losses[0]


def test_schedule() -> None:
    factors = [learning_rate_factor(step, 100, 10) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == pytest.approx(1.0)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0.01)


def test_command_line(values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(values))
    assert main(["fit", str(config), "-o", str(tmp_path / "run"), "--max-steps", "2"]) == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert main(["evaluate", str(last), "-o", str(tmp_path / "accuracy.json")]) == 0
    assert "mean body" in capsys.readouterr().out
    assert main(["publish", str(last), "-o", str(tmp_path / "net.pt")]) == 0
    published = load_checkpoint(tmp_path / "net.pt")
    assert set(published.metrics["errors_mm"]) == {"tiny", "mean body", "best constant pose"}
    errors = published.metrics["errors_mm"]
    # The mean body minimises nothing after alignment: the best constant pose must not be worse there.
    assert errors["best constant pose"]["pa_mpjpe"] <= errors["mean body"]["pa_mpjpe"]
    assert main(["fit", str(tmp_path / "none.yaml")]) == 2
    assert "error: cannot read the configuration" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_two_processes_under_torchrun(values: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(values | {"optim": values["optim"] | {"epochs": 1}}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "training", "fit", str(config), "-o", str(tmp_path / "run")]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2  # 32 samples, two processes of 8


def test_starting_from_another_run(values: dict[str, Any], tmp_path: Path) -> None:
    config = FitConfig.from_dict(values)
    first = fit(config, tmp_path / "first", max_steps=2)
    optim = values["optim"] | {"start_from": str(first)}
    started = MetroModule(FitConfig.from_dict(values | {"optim": optim})).model.state_dict()
    for name, value in load_checkpoint(first).model.state_dict().items():
        assert torch.equal(started[name], value), name
    other = values["model"] | {"camera_hidden": 9}
    with pytest.raises(UserError, match="another architecture"):
        MetroModule(FitConfig.from_dict(values | {"model": other, "optim": optim}))
