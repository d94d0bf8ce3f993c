"""What a run starts from: another run, in whole or in part, or a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metro_edge.errors import UserError
from tests.own_sets_files import write_3dpw
from tests.released_files import SMALL_BODY, standing_state
from tests.smpl_files import metro_folder
from training.__main__ import main
from training.bodies import body_template
from training.bodies.smpl import skinned_body
from training.checkpoint import Checkpoint, build_model, load_any, load_checkpoint, save_checkpoint
from training.config import FitConfig
from training.start import start_partially, start_weights


def _config(values: dict[str, Any], model: dict[str, Any] | None = None, **optim: Any) -> FitConfig:
    return FitConfig.from_dict({**values, "model": {**values["model"], **(model or {})}, "optim": optim})


@pytest.fixture
def values(tiny_config: FitConfig) -> dict[str, Any]:
    return {"name": "tiny", "model": tiny_config.to_dict()["model"]}


@pytest.fixture
def source(values: dict[str, Any], tmp_path: Path) -> tuple[str, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    config = _config(values)
    model = build_model(config).eval()
    save_checkpoint(tmp_path / "source.pt", Checkpoint(model, config))
    return str(tmp_path / "source.pt"), model.state_dict()


def test_the_same_architecture_is_taken_over_whole(values: dict[str, Any], source: Any) -> None:
    path, state = source
    config = _config(values, {"dropout": 0.2, "mvm_fraction": 0.1}, start_from=path)  # of training, not of weights
    model = build_model(config)
    assert path in start_weights(model, config)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_another_architecture_is_refused_by_field(values: dict[str, Any], source: Any) -> None:
    config = _config(values, {"camera_hidden": 9}, start_from=source[0])
    with pytest.raises(UserError, match=r"another architecture, 'tiny', which differs in camera_hidden; optim\.start"):
        start_weights(build_model(config), config)


def test_partial_start_takes_what_fits_and_reports_the_rest(values: dict[str, Any], source: Any) -> None:
    path, state = source
    config = _config(values, {"camera_hidden": 9}, start_from=path, start_partial=True)
    torch.manual_seed(2)
    model = build_model(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = start_weights(model, config)
    other = {"camera_head.points.weight", "camera_head.points.bias", "camera_head.output.weight"}
    assert "3 of another shape: " in report and all(name in report for name in other)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in other else state[name]), name


def test_of_another_mesh_only_what_does_not_belong_to_it(values: dict[str, Any], source: Any) -> None:
    path, state = source
    config = _config(values, start_from=path, start_partial=True)
    torch.manual_seed(2)
    model = build_model(config)
    foreign = FitConfig.from_dict({**config.to_dict(), "name": "foreign"})
    object.__setattr__(foreign.model, "vertex_levels", (145, 1227, 13718))  # as if of other coarse vertices
    report = start_partially(model, Checkpoint(build_model(_config(values)), foreign), config)
    bound = [name for name in state if name.startswith(("template_", "upsampling."))]
    assert bound and set(bound) <= set(report.left) and set(bound) <= set(report.fresh)
    assert any(name.startswith("backbone.") for name in report.used)


def test_nothing_in_common_is_an_error(values: dict[str, Any], source: Any, tmp_path: Path) -> None:
    config = _config(values, start_from="nothing", start_partial=True)

    class Empty:
        def state_dict(self) -> dict[str, torch.Tensor]:
            return {"elsewhere.weight": torch.zeros(3)}

    with pytest.raises(UserError, match="no entry fits 'tiny'"):
        start_partially(build_model(config), Checkpoint(Empty(), config), config)  # type: ignore[arg-type]


def test_a_backbone_alone(values: dict[str, Any], source: Any) -> None:
    path, state = source
    config = _config(values, backbone_checkpoint=path)
    torch.manual_seed(2)
    model = build_model(config)
    report = start_weights(model, config)
    assert path in report
    own = model.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in own if name.startswith("backbone."))
    assert not torch.equal(own["camera_head.points.weight"], state["camera_head.points.weight"])


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"start_partial": True}, "give start_from"),
        ({"start_from": "a.pt", "backbone_checkpoint": "b.pt"}, "has a backbone already"),
        ({"accumulate": 0}, "at least 1"),
        ({"checkpoint_every_steps": -1}, "must not be negative"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\)"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"step_factor": 0.0}, "step_factor in"),
    ],
)
def test_mistakes_are_named(optim: dict[str, Any], message: str, values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=message):
        _config(values, **optim)


@pytest.mark.slow
def test_fine_tuning_a_released_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`fit` with optim.start_from: two steps on made 3DPW from a state dictionary as METRO's."""
    folder, file = metro_folder(), tmp_path / "metro_3dpw_state_dict.bin"
    template = body_template("smpl", folder)
    torch.save(standing_state(SMALL_BODY, template), file)
    for split in ("train", "validation"):
        write_3dpw(tmp_path / "3dpw", skinned_body(folder), split)
    sets = [str(tmp_path / "3dpw")]
    values = {
        "name": "tuned",
        "body_path": str(folder),
        "crop_rule": "metro_eval",
        "model": SMALL_BODY.to_dict(),
        "data": {
            "train_sets": sets, "validation_sets": sets, "smpl": str(folder), "augmentation": "metro", "workers": 0,
        },
        "optim": {
            "start_from": str(file), "epochs": 1, "batch_size": 2,
            "lr": 1e-4, "warmup_steps": 0, "schedule": "constant",
        },
    }  # fmt: skip
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump(values))
    released = load_any(file, template).model.state_dict()
    config = FitConfig.from_yaml(tmp_path / "tune.yaml")
    model = build_model(config)
    assert start_weights(model, config) == f"started from {file}"
    assert all(torch.equal(value, released[name]) for name, value in model.state_dict().items())

    assert main(["fit", str(tmp_path / "tune.yaml"), "-o", str(tmp_path / "run"), "--max-steps", "2"]) == 0
    tuned = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert tuned.config == config
    moved = {name: float((value - released[name]).abs().max()) for name, value in tuned.model.state_dict().items()}
    for name in ("backbone.model.conv1.weight", "encoders.0.input.weight", "encoders.1.output.weight",
                 "camera_head.output.weight", "upsampling.1.weight"):  # fmt: skip
        # AdamW moves a weight by at most about lr a step, whatever its gradient.
        assert 1e-5 < moved[name] < 3e-4, (name, moved[name])
    assert not any(moved[name] for name in moved if name.startswith("template_") or "running_" in name)

    other = {**values, "model": {**values["model"], "camera_hidden": 9}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    capsys.readouterr()
    assert main(["fit", str(tmp_path / "other.yaml"), "-o", str(tmp_path / "other")]) == 2
    assert "another architecture, 'metro_body_resnet50', which differs in camera_hidden" in capsys.readouterr().err
