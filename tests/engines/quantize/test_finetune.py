"""`python -m engines finetune`: what it trains on, that it never makes INT8 worse, and that it goes on where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import engines.quantize.finetune as finetuning
from engines.__main__ import main
from engines.convert import fine_tuned_rounding
from engines.quantize.finetune import STATE, Settings, _order, distance
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError
from training.checkpoint import load_checkpoint

FEW = [
    "--steps", "4", "--every", "2", "--batch", "4", "--samples", "16", "--calibration-samples", "16",
    "--choice-samples", "8", "--proof-samples", "8",
]  # fmt: skip


def arguments(converted, output: Path, *more: str) -> list[str]:
    return ["finetune", str(converted.checkpoint), "-o", str(output), "--data", str(converted.data), *FEW, *more]


def test_every_sample_once_before_any_twice():
    order = _order(10, 4, 6)
    assert order.shape == (6, 4)
    assert sorted(order.ravel()[:10]) == sorted(order.ravel()[10:20]) == list(range(10))
    assert np.array_equal(order, _order(10, 4, 6)) and len(set(order.ravel()[20:])) == 4


def test_distance_is_in_metres_and_sees_the_camera():
    random = np.random.default_rng(0)
    camera = torch.tensor([[0.9, 0.1, 0.0]])
    joints, coarse = (torch.from_numpy(random.normal(size=(1, n, 3)).astype(np.float32)) for n in (3, 5))
    wanted = {"camera": camera, "joints": joints, "coarse": coarse}
    shift = torch.tensor([0.03, 0.0, 0.04])
    assert float(distance((camera, joints, coarse), wanted)) == 0.0
    assert float(distance((camera, joints, coarse + shift), wanted)) == pytest.approx(0.05, rel=1e-4)
    assert float(distance((camera, joints + shift, coarse), wanted)) == pytest.approx(0.025, rel=1e-4)
    moved = camera + torch.tensor([[0.0, 0.02, 0.0]])
    assert float(distance((moved, joints, coarse), wanted)) == pytest.approx(0.5 * 0.9 * 0.02, rel=1e-4)


@pytest.mark.parametrize(
    ("metrics", "rounding"),
    [({}, "data"), ({"fine_tuned": {"rounding": "nearest"}}, "nearest"), ({"fine_tuned": "?"}, "data"),
     ({"fine_tuned": {"rounding": "up"}}, "data")],
)  # fmt: skip
def test_convert_rounds_as_fine_tuning_found_best(metrics, rounding):
    assert fine_tuned_rounding(metrics) == rounding


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--train", "some"], "--train takes shifts or all, got 'some'"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--proof-samples", "-1"], "--proof-samples must be at least 1, got -1"),
        (["--learning-rate", "2"], "--learning-rate must lie between 0 and 1, got 2.0"),
        (["--learning-rate", "nan"], "--learning-rate must lie between 0 and 1, got nan"),
    ],
)
def test_bad_settings(converted, tmp_path, capsys, more, message):
    assert main(arguments(converted, tmp_path / "out.pt", *more)) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_bundle_cannot_be_trained(converted, tmp_path, capsys):
    command = arguments(converted, tmp_path / "out.pt")
    command[1] = str(converted.bundle.path)
    assert main(command) == 2
    assert "is a bundle, whose weights are folded and cannot be trained: give the checkpoint" in capsys.readouterr().err
    assert main(arguments(converted, tmp_path)) == 2
    assert "is a folder; a file for the checkpoint was expected" in capsys.readouterr().err


def test_a_rate_for_each_kind():
    assert Settings().rate == finetuning.RATES["all"] < Settings(train="shifts").rate == finetuning.RATES["shifts"]
    assert Settings(learning_rate=0.5).rate == 0.5
    assert Settings().rounding == "nearest" and Settings(train="shifts").rounding == "data"


@pytest.mark.slow
@pytest.mark.parametrize("train", ["shifts", "all"])
def test_from_checkpoint_to_bundle(converted, tmp_path, capsys, monkeypatch, train):
    """A run, the same run stopped and taken up again, and a bundle of what came out."""
    rate = ["--train", train, "--learning-rate", "3e-4"]
    assert main(arguments(converted, tmp_path / "whole.pt", *rate)) == 0
    printed = capsys.readouterr().out
    assert "INT8 on 8 held-out samples: " in printed.splitlines()[-1] and "mm from FP32's mesh" in printed
    whole, start = load_checkpoint(tmp_path / "whole.pt"), load_checkpoint(converted.checkpoint)
    about = whole.metrics.get("fine_tuned")
    same = all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), start.model.parameters(), strict=True))
    if about is None:
        assert same and "fine-tuning gained nothing, the weights are those that came in" in printed
    else:
        assert not same and about["after"]["moved_mm"] < about["before"]["moved_mm"]
        assert about["rounding"] in ("data", "nearest") and about["from_sha256"] == start.sha256

    looks = []
    original = finetuning._Run.moved

    def stopped(run, network, teacher):
        looks.append(1)
        if len(looks) == 3:
            raise KeyboardInterrupt
        return original(run, network, teacher)

    monkeypatch.setattr(finetuning._Run, "moved", stopped)
    assert main(arguments(converted, tmp_path / "again.pt", *rate)) == 130
    assert not (tmp_path / "again.pt").exists() and (tmp_path / "again-work" / STATE).exists()
    monkeypatch.undo()
    capsys.readouterr()
    assert main(arguments(converted, tmp_path / "again.pt", *rate)) == 0
    assert "goes on at step 2" in capsys.readouterr().out
    again = load_checkpoint(tmp_path / "again.pt")
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)

    command = ["convert", str(tmp_path / "again.pt"), "-o", str(tmp_path / "bundle"), "--data", str(converted.data)]
    few = ["--calibration-samples", "16", "--verify-samples", "8", "--tolerance-mm", "int8=300"]
    assert main([*command, *few]) == 0
    expected = "data" if about is None else about["rounding"]
    assert Bundle.load(tmp_path / "bundle").passport["calibration"]["rounding"] == expected


@pytest.mark.slow
def test_a_state_that_is_none(converted, tmp_path, capsys):
    work = tmp_path / "out-work"
    work.mkdir()
    (work / STATE).write_bytes(b"nothing")
    assert main(arguments(converted, tmp_path / "out.pt")) == 2
    assert "state.pt is no state of this fine-tuning" in capsys.readouterr().err


def test_settings_in_python():
    with pytest.raises(UserError, match="--batch must be at least 1"):
        Settings(batch=0)
    with pytest.raises(UserError, match="15 calibration samples are too few: at least 16 are needed"):
        Settings(calibration_samples=15)
