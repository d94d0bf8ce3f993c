"""Training configurations: YAML in, checkpoints out, mistakes named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from metro_edge.errors import UserError
from training.config import FitConfig

SHIPPED = sorted(Path("training/configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configurations_load(path: Path) -> None:
    config = FitConfig.from_yaml(path)
    assert config.name == path.stem
    assert FitConfig.from_dict(config.to_dict()) == config


def test_round_trip_through_plain_values(tiny_config: FitConfig) -> None:
    values = yaml.safe_load(yaml.safe_dump(_plain(tiny_config.to_dict())))
    assert FitConfig.from_dict(values) == tiny_config


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "lacks 'name'"),
        ({"model": "alexnet"}, "unknown network preset"),
        ({"model": 3}, "preset's name or a mapping"),
        ({"model": {"preset": "metro_edge", "vertex_levels": [10, 20, 30]}}, "mesh levels"),
        ({"optim": {"learning_rate": 1.0}}, "no field 'learning_rate'"),
        ({"optim": {"epochs": "ten"}}, "epochs must be int"),
        ({"optim": {"epochs": True}}, "epochs must be int"),
        ({"optim": {"epochs": 0}}, "at least 1"),
        ({"optim": []}, "must be a mapping"),
        ({"data": {"train_count": 0}}, "at least 1"),
        ({"optim": {"lr": float("nan")}}, "optim: lr must be a finite number, got nan"),
        ({"losses": {"vertices": float("inf")}}, "losses: vertices must be a finite number"),
        ({"distill": {"joints": float("nan")}}, "distill: joints must be a finite number"),
        ({"box_scale": float("inf")}, "box_scale must be a finite number"),
        ({"data": {"train_seed": 5, "validation_seed": 5}}, "share the seed 5"),
        ({"surprise": 1}, "no field 'surprise'"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    values = {"name": "x", "model": "metro_edge"} | change
    with pytest.raises(UserError, match=message):
        FitConfig.from_dict({k: v for k, v in values.items() if v is not None})


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        FitConfig.from_yaml(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="expected a mapping"):
        FitConfig.from_yaml(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match="cannot read"):
        FitConfig.from_yaml(tmp_path / "bad.yaml")
