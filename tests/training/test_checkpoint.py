"""Checkpoints: what goes in comes out, and nothing in one can run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from metro_edge.errors import UserError
from training.checkpoint import Checkpoint, build_model, load_checkpoint, save_checkpoint
from training.config import FitConfig


@pytest.fixture
def checkpoint(tiny_config: FitConfig) -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(build_model(tiny_config).eval(), tiny_config, {"samples": 3})


def test_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, checkpoint)
    again = load_checkpoint(path)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected, got = checkpoint.model(images), again.model(images)
    torch.testing.assert_close(got.vertices[-1], expected.vertices[-1], rtol=0, atol=0)
    torch.testing.assert_close(got.camera, expected.camera, rtol=0, atol=0)
    assert again.config == checkpoint.config
    assert again.metrics == {"samples": 3}
    assert len(again.sha256) == 64
    assert not list(tmp_path.glob("*.partial"))


def test_half_sized_files_hold_rounded_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "full.pt", checkpoint)
    save_checkpoint(tmp_path / "half.pt", checkpoint, half=True)
    assert (tmp_path / "half.pt").stat().st_size < 0.65 * (tmp_path / "full.pt").stat().st_size
    again = load_checkpoint(tmp_path / "half.pt").model.state_dict()
    for name, value in checkpoint.model.state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(again[name], expected), name


def test_another_architecture_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, checkpoint)
    content = torch.load(path, weights_only=True)
    content["config"]["model"]["camera_hidden"] = 7
    torch.save(content, path)
    with pytest.raises(UserError, match="camera_head"):
        load_checkpoint(path)


class _Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint("missing.pt")
    Path("noise.pt").write_bytes(b"\x00\x01 not a checkpoint")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint("noise.pt")
    Path("bomb.pt").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint("bomb.pt")
    assert not Path("exploded").exists()
    torch.save([1, 2], "list.pt")
    with pytest.raises(UserError, match="holds a list"):
        load_checkpoint("list.pt")
    torch.save({"resnet.weight": torch.zeros(1)}, "other.pt")
    with pytest.raises(UserError, match=r"resnet\.weight"):
        load_checkpoint("other.pt")


def test_later_versions_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, checkpoint)
    content = torch.load(path, weights_only=True)
    torch.save(content | {"version": 99}, path)
    with pytest.raises(UserError, match="version 99"):
        load_checkpoint(path)


def test_unwritable_place(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        save_checkpoint(tmp_path / "no" / "folder" / "a.pt", checkpoint)
