"""Training runs: they learn, stop, resume and say what they did."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import yaml

from metro_edge.errors import UserError
from training.__main__ import main
from training.checkpoint import load_checkpoint
from training.config import FitConfig, OptimConfig
from training.fit import fit
from training.module import MetroModule, learning_rate_factor, scheduled_factor


@pytest.fixture
def values(tiny_run: dict[str, Any]) -> dict[str, Any]:
    return tiny_run


def csv_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_everything_it_promises(values: dict[str, Any], tmp_path: Path) -> None:
    config = FitConfig.from_dict(values)
    best = fit(config, tmp_path / "run")
    checkpoint = load_checkpoint(best)
    assert checkpoint.config == config
    logged = {key for row in csv_rows(tmp_path / "run" / "csv") for key, value in row.items() if value}
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


def test_resuming_within_an_epoch_gives_exactly_what_an_unbroken_run_gives(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """With masks, dropout, accumulation and averaged weights, all of which a checkpoint must bring back."""
    optim = {"batch_size": 4, "accumulate": 2, "ema_decay": 0.9, "validations_per_epoch": 2}
    model = values["model"] | {"dropout": 0.1, "mvm_fraction": 0.3}
    config = FitConfig.from_dict(values | {"model": model, "optim": values["optim"] | optim})
    fit(config, tmp_path / "whole")
    fit(config, tmp_path / "broken", max_steps=3)  # 4 steps an epoch, validation after 2: one step after it
    state = torch.load(tmp_path / "broken" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (state["epoch"], state["global_step"]) == (0, 3)
    fit(config, tmp_path / "broken", resume=True)
    whole, broken = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "broken")
    )
    assert whole["global_step"] == broken["global_step"] == 8  # optimiser steps, not batches
    for kind in ("state_dict", "current_model_state"):
        for name, value in whole[kind].items():
            torch.testing.assert_close(broken[kind][name], value, rtol=0, atol=1e-6, msg=name)
    assert any(not torch.equal(whole["state_dict"][n], v) for n, v in whole["current_model_state"].items())
    resumed = csv_rows(tmp_path / "broken" / "csv-2")
    assert resumed[-1]["validation/mpjpe_mm"] == csv_rows(tmp_path / "whole" / "csv")[-1]["validation/mpjpe_mm"]
    # The schedule ends where the steps do.
    assert [group["lr"] for group in whole["optimizer_states"][0]["param_groups"]][-1] == pytest.approx(3e-5, rel=0.05)


def test_accumulating_equals_larger_batches(values: dict[str, Any], tmp_path: Path) -> None:
    model = values["model"] | {"mvm_fraction": 0.0}
    losses = []
    for batch_size, accumulate in ((8, 1), (4, 2)):
        optim = values["optim"] | {"epochs": 1, "batch_size": batch_size, "accumulate": accumulate}
        output = tmp_path / f"by{accumulate}"
        fit(FitConfig.from_dict(values | {"model": model, "optim": optim}), output)
        losses.append(float(csv_rows(output / "csv")[-1]["validation/mpjpe_mm"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_mixed_precision_stays_close_and_predicts_in_fp32(values: dict[str, Any], tmp_path: Path) -> None:
    model = values["model"] | {"mvm_fraction": 0.0}
    found = {}
    for precision in ("fp32", "bf16"):
        optim = values["optim"] | {"epochs": 1, "precision": precision}
        fit(FitConfig.from_dict(values | {"model": model, "optim": optim}), tmp_path / precision)
        found[precision] = [float(r["train/loss"]) for r in csv_rows(tmp_path / precision / "csv") if r["train/loss"]]
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.05) and found["bf16"] != found["fp32"]
    module = MetroModule(FitConfig.from_dict(values))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        output = module(torch.randn(1, 3, 64, 64))
    assert {t.dtype for t in (output.camera, output.joints, *output.vertices)} == {torch.float32}


def test_fp16_needs_a_gpu(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    values = {**values, "optim": {**values["optim"], "precision": "fp16"}}
    with pytest.raises(UserError, match="precision fp16 needs a GPU"):
        fit(FitConfig.from_dict(values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_output_that_cannot_be_written(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=f"cannot write into folder {output}"):
            fit(FitConfig.from_dict(values), output)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_resumed_is_named_and_stays(values: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "run"
    last = output / "checkpoints" / "last.ckpt"
    fit(FitConfig.from_dict(values), output, max_steps=1)
    whole = last.read_bytes()
    for change, words in (
        ({"model": values["model"] | {"camera_hidden": 9}}, "differs from 'tiny' in camera_hidden"),
        ({"distill": {"teacher": str(last)}}, "differs from 'tiny' in distill"),
    ):
        with pytest.raises(UserError, match=rf"cannot resume from .*last\.ckpt: its run {words}; resume with the same"):
            fit(FitConfig.from_dict(values | change), output, resume=True)
    assert last.read_bytes() == whole
    for damaged, words in (
        (whole[: len(whole) // 2], "damaged or cut short"),
        (b"", "not a readable checkpoint"),
    ):
        last.write_bytes(damaged)
        with pytest.raises(UserError, match=words):
            fit(FitConfig.from_dict(values), output, resume=True)
    torch.save({"state_dict": {}}, last)
    with pytest.raises(UserError, match="no checkpoint of a run"):
        fit(FitConfig.from_dict(values), output, resume=True)


def test_ctrl_c_ends_with_130_and_a_run_that_goes_on(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, handler = MetroModule.training_step, signal.getsignal(signal.SIGINT)

    def interrupted(self: MetroModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        if self.global_step == 2:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    (tmp_path / "tiny.yaml").write_text(
        yaml.safe_dump(values | {"optim": values["optim"] | {"checkpoint_every_steps": 1}})
    )
    command = ["fit", str(tmp_path / "tiny.yaml"), "-o", str(tmp_path / "run")]
    monkeypatch.setattr(MetroModule, "training_step", interrupted)
    try:
        assert main(command) == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    monkeypatch.setattr(MetroModule, "training_step", step)
    assert main([*command, "--resume", "--max-steps", "3"]) == 0


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
    losses = [float(row["train/loss"]) for row in csv_rows(tmp_path / "run" / "csv") if row.get("train/loss")]
    assert losses[-1] < 0.8 * losses[0]


def test_schedule() -> None:
    factors = [learning_rate_factor(step, 100, 10) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == pytest.approx(1.0)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0.01)


def test_step_and_constant_schedules() -> None:
    step = OptimConfig(schedule="step", warmup_steps=10)  # METRO's: a tenth from the middle on
    factors = [scheduled_factor(step, k, 100) for k in range(100)]
    assert factors[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert factors[10:] == [1.0] * 40 + [0.1] * 50
    constant = OptimConfig(schedule="constant", warmup_steps=0)
    assert {scheduled_factor(constant, k, 100) for k in range(100)} == {1.0}
    assert scheduled_factor(OptimConfig(warmup_steps=10), 60, 100) == learning_rate_factor(60, 100, 10)


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
    assert main(["fit", str(config), "-o", str(tmp_path / "new"), "--max-steps", "0"]) == 2
    assert "--max-steps must be at least 1, or -1" in capsys.readouterr().err.splitlines()[-1]
    assert main(["evaluate", str(last), "--count", "9"]) == 2
    assert "the run has 8 held-out samples, cannot take 9" in capsys.readouterr().err.splitlines()[-1]
    assert main(["publish", str(last), "-o", str(tmp_path / "none" / "net.pt")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: cannot write {tmp_path / 'none' / 'net.pt'}: No such file or directory"
    ]


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
